//! Disks: what the guest reaches each through, and how firmware calls it.

use crate::{DiskPart, Error};
use ahci::Plug;
use device::Wiring;
use pci::PciHost;
use virtio_blk::VirtioBlk;
use vm_spec::DiskBus;

/// Queues that a disk has at most: each takes a thread.
pub(crate) const QUEUES_MAX: u32 = 4;

/// How firmware is told of a disk: an Open Firmware device path (IEEE 1275, 3.2.1.1) in the form
/// of QEMU's file `bootorder`.
pub(crate) type BootPath = String;

/// Puts all of them on the board; what firmware may boot from, in their order.
pub(crate) fn add(
    disks: Vec<DiskPart>,
    pci: &PciHost,
    vcpus: u32,
    wiring: &mut Wiring,
) -> Result<Vec<BootPath>, Error> {
    let queues = vcpus.min(QUEUES_MAX) as u16;
    // The SATA adapter comes last on the bus; a path of its is known only then.
    let (mut paths, mut plugs) = (Vec::new(), Vec::new());
    for DiskPart { disk, serial, bus } in disks {
        match bus {
            DiskBus::Virtio => {
                let device = VirtioBlk::new(&virtio_blk::Config { serial, queues }, disk);
                let slot = virtio::build(device, pci, wiring).map_err(Error::Thread)?.slot();
                paths.push(Ok(format!("/pci@i0cf8/scsi@{slot:x}/disk@0,0")));
                continue;
            }
            DiskBus::Sata => plugs.push(Plug::Disk { disk, serial }),
            DiskBus::Cd => plugs.push(Plug::Cd(Some(disk))),
        }
        paths.push(Err(plugs.len() - 1));
    }
    if plugs.is_empty() {
        return Ok(paths.into_iter().flatten().collect());
    }
    let slot = ahci::build(plugs, pci, wiring).map_err(Error::Thread)?.slot();
    let sata = |port| format!("/pci@i0cf8/pci8086,2922@{slot:x}/drive@{port:x}/disk@0");
    Ok(paths.into_iter().map(|path| path.unwrap_or_else(sata)).collect())
}
