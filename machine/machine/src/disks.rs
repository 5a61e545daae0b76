//! Disks: what the guest reaches each through, and how firmware calls it.

use crate::{DiskPart, Error, units::Units, virtio_bus::VirtioBus};
use ahci::Plug;
use device::Wiring;
use virtio_blk::VirtioBlk;
use virtio_scsi::Address;
use vm_spec::DiskBus;

/// Queues that a disk has at most: each takes a thread.
const QUEUES_MAX: u32 = 4;

/// How many queues a disk has, and pairs of them a network card, where the guest has so many
/// vCPUs.
pub(crate) fn queues(vcpus: u32) -> u16 {
    vcpus.clamp(1, QUEUES_MAX) as u16
}

/// How firmware is told of a disk: an Open Firmware device path (IEEE 1275, 3.2.1.1) in the form
/// of QEMU's file `bootorder`.
pub(crate) type BootPath = String;

/// Where a disk is on its adapter, of which the place on the bus is known later.
enum Place {
    Path(BootPath),
    Sata(usize),
    Scsi(Address),
}

/// Puts all of them on the board; what firmware may boot from, in their order, and the SCSI adapter
/// if there is one.
pub(crate) fn add(
    disks: Vec<DiskPart>,
    bus: &mut VirtioBus,
    vcpus: u32,
    wiring: &mut Wiring,
) -> Result<(Vec<BootPath>, Option<Units>), Error> {
    let queues = queues(vcpus);
    // The adapters come last on the bus; paths of theirs are known only then.
    let (mut places, mut plugs, mut units) = (Vec::new(), Vec::new(), None);
    for DiskPart { disk, serial, bus: kind } in disks {
        let place = match kind {
            DiskBus::Virtio => {
                let device = VirtioBlk::new(&virtio_blk::Config { serial, queues }, disk);
                let adapter = bus.add(device, wiring)?.storage_path();
                Place::Path(format!("{adapter}/disk@0,0"))
            }
            DiskBus::Sata | DiskBus::Cd => {
                plugs.push(if kind.is_cd() {
                    Plug::Cd(Some(disk))
                } else {
                    Plug::Disk { disk, serial }
                });
                Place::Sata(plugs.len() - 1)
            }
            DiskBus::Scsi | DiskBus::ScsiCd => {
                let units = units.get_or_insert_with(|| Units::new(queues));
                let unit = DiskPart { disk, serial, bus: kind };
                // No description has more disks than there are addresses.
                let address = units.add(unit, "from the start".into());
                Place::Scsi(address.ok_or(Error::TooManyUnits)?)
            }
        };
        places.push(place);
    }
    let sata = if plugs.is_empty() {
        0
    } else {
        ahci::build(plugs, bus.pci(), wiring).map_err(Error::Thread)?.slot()
    };
    let scsi = match &units {
        Some(units) => bus.add(units.adapter(), wiring)?.storage_path(),
        None => String::new(),
    };
    let path = |place| match place {
        Place::Path(path) => path,
        Place::Sata(port) => format!("/pci@i0cf8/pci8086,2922@{sata:x}/drive@{port:x}/disk@0"),
        Place::Scsi(Address { target, lun }) => {
            format!("{scsi}/channel@0/disk@{target:x},{lun:x}")
        }
    };
    Ok((places.into_iter().map(path).collect(), units))
}
