//! The bus of the machine's virtio devices: PCI, or registers in memory.

use crate::{Error, map};
use device::Wiring;
use pci::PciHost;
use std::sync::Arc;
use virtio::{MmioPlace, MmioWindow, VirtioDevice};
use vm_spec::VirtioTransport;

pub(crate) struct VirtioBus {
    pci: Arc<PciHost>,
    /// With it no device is on the PCI bus.
    window: Option<MmioWindow>,
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    Slot(u8),
    Memory(MmioPlace),
}

impl Spot {
    /// The beginning of a disk's or an adapter's device path, as firmware makes it.
    pub(crate) fn storage_path(self) -> String {
        match self {
            Self::Slot(slot) => format!("/pci@i0cf8/scsi@{slot:x}"),
            Self::Memory(place) => format!("/virtio-mmio@{:016x}", place.address),
        }
    }

    /// The slot of a device of the PCI bus.
    pub(crate) fn slot(self) -> Option<u8> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::Memory(_) => None,
        }
    }
}

impl VirtioBus {
    pub(crate) fn new(transport: VirtioTransport, pci: Arc<PciHost>) -> Self {
        let window = match transport {
            VirtioTransport::Pci => None,
            VirtioTransport::Mmio => Some(MmioWindow::new(map::VIRTIO_MMIO, map::VIRTIO_GSIS)),
        };
        Self { pci, window }
    }

    /// The bus of all other devices.
    pub(crate) fn pci(&self) -> &Arc<PciHost> {
        &self.pci
    }

    /// Puts a device on the board.
    pub(crate) fn add(
        &mut self,
        device: Arc<dyn VirtioDevice>,
        wiring: &mut Wiring,
    ) -> Result<Spot, Error> {
        match &mut self.window {
            None => {
                virtio::build(device, &self.pci, wiring).map(|device| Spot::Slot(device.slot()))
            }
            Some(window) => window.build(device, wiring).map(|device| Spot::Memory(device.place())),
        }
        .map_err(Error::Thread)
    }

    /// The devices that ACPI has to tell of.
    pub(crate) fn places(&self) -> &[MmioPlace] {
        self.window.as_ref().map_or(&[], MmioWindow::places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_firmware() {
        assert_eq!(Spot::Slot(17).storage_path(), "/pci@i0cf8/scsi@11");
        let place = Spot::Memory(MmioPlace { address: 0xfec1_1000, gsi: 17 });
        assert_eq!(place.storage_path(), "/virtio-mmio@00000000fec11000");
        assert_eq!((Spot::Slot(3).slot(), place.slot()), (Some(3), None));
    }
}
