//! Disks: what the guest reaches each through, and how firmware calls it.

use crate::{DiskPart, Error};
use ahci::Plug;
use device::Wiring;
use pci::PciHost;
use scsi::{Cd, DiskUnit, Identity, Unit};
use virtio_blk::VirtioBlk;
use virtio_scsi::{Address, VirtioScsi};
use vm_spec::DiskBus;

/// Queues that a disk has at most: each takes a thread.
pub(crate) const QUEUES_MAX: u32 = 4;
/// Units of one SCSI target: what firmware looks for (OVMF asks for so many).
const UNITS: usize = 8;

/// How firmware is told of a disk: an Open Firmware device path (IEEE 1275, 3.2.1.1) in the form
/// of QEMU's file `bootorder`.
pub(crate) type BootPath = String;

/// Where a disk is on its adapter, of which the place on the bus is known later.
enum Place {
    Path(BootPath),
    Sata(usize),
    Scsi(Address),
}

/// Puts all of them on the board; what firmware may boot from, in their order.
pub(crate) fn add(
    disks: Vec<DiskPart>,
    pci: &PciHost,
    vcpus: u32,
    wiring: &mut Wiring,
) -> Result<Vec<BootPath>, Error> {
    let queues = vcpus.min(QUEUES_MAX) as u16;
    // The adapters come last on the bus; paths of theirs are known only then.
    let (mut places, mut plugs, mut units) = (Vec::new(), Vec::new(), Vec::new());
    for DiskPart { disk, serial, bus } in disks {
        let place = match bus {
            DiskBus::Virtio => {
                let device = VirtioBlk::new(&virtio_blk::Config { serial, queues }, disk);
                let slot = virtio::build(device, pci, wiring).map_err(Error::Thread)?.slot();
                Place::Path(format!("/pci@i0cf8/scsi@{slot:x}/disk@0,0"))
            }
            DiskBus::Sata | DiskBus::Cd => {
                plugs.push(if bus.is_cd() {
                    Plug::Cd(Some(disk))
                } else {
                    Plug::Disk { disk, serial }
                });
                Place::Sata(plugs.len() - 1)
            }
            DiskBus::Scsi | DiskBus::ScsiCd => {
                let address = address(units.len());
                units.push((address, unit(DiskPart { disk, serial, bus }, address)));
                Place::Scsi(address)
            }
        };
        places.push(place);
    }
    let sata = if plugs.is_empty() {
        0
    } else {
        ahci::build(plugs, pci, wiring).map_err(Error::Thread)?.slot()
    };
    let scsi = if units.is_empty() { 0 } else { build_scsi(units, queues, pci, wiring)? };
    let path = |place| match place {
        Place::Path(path) => path,
        Place::Sata(port) => format!("/pci@i0cf8/pci8086,2922@{sata:x}/drive@{port:x}/disk@0"),
        Place::Scsi(Address { target, lun }) => {
            format!("/pci@i0cf8/scsi@{scsi:x}/channel@0/disk@{target:x},{lun:x}")
        }
    };
    Ok(places.into_iter().map(path).collect())
}

/// The address of a disk by its number: a description has fewer disks than there are.
fn address(number: usize) -> Address {
    Address { target: (number / UNITS) as u8, lun: (number % UNITS) as u16 }
}

fn unit(DiskPart { disk, serial, bus }: DiskPart, Address { target, lun }: Address) -> Unit {
    let identity = Identity { serial, place: format!("{target}:{lun}") };
    if bus.is_cd() {
        Unit::Cd(Cd::new(Some(disk), Some(identity)))
    } else {
        Unit::Disk(DiskUnit::new(disk, identity))
    }
}

/// One adapter for all; its slot.
fn build_scsi(
    units: Vec<(Address, Unit)>,
    queues: u16,
    pci: &PciHost,
    wiring: &mut Wiring,
) -> Result<u8, Error> {
    let adapter = VirtioScsi::new(queues);
    for (address, unit) in units {
        // Of addresses that are counted up none is taken, and no description has too many.
        let plugged = adapter.plug(address, unit);
        debug_assert_eq!(plugged, Ok(()));
    }
    Ok(virtio::build(adapter, pci, wiring).map_err(Error::Thread)?.slot())
}
