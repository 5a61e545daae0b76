//! The domain's disks and network cards.

use crate::{
    disks,
    parts::{DiskPart, NetworkPart},
};
use device::Device;
use disk::Disk;
use std::sync::Arc;
use vm_spec::DiskBus;
use xen_blk::XenBlk;
use xen_front::Backend;
use xen_net::XenNet;

/// A device of the domain's.
pub(crate) struct Unit {
    /// Of its folders in xenstore.
    pub(crate) number: u32,
    pub(crate) backend: Arc<dyn Backend>,
    /// What is paused and saved with it, itself last.
    pub(crate) devices: Vec<Arc<dyn Device>>,
}

/// A disk or CD, the how manieth of them.
pub(crate) fn disk(index: u32, vcpus: u32, disk: Arc<dyn Disk>, bus: DiskBus) -> Unit {
    let queues = disks::queues(vcpus);
    let config = xen_blk::Config { index, queues, cdrom: bus.is_cd() };
    let backend = XenBlk::new(&config, disk);
    Unit { number: config.number(), backend: backend.clone(), devices: vec![backend] }
}

/// A network card, the how manieth of them.
pub(crate) fn network(handle: u16, vcpus: u32, part: NetworkPart) -> Unit {
    let NetworkPart { network, device, mac, mtu, .. } = part;
    let queues = disks::queues(vcpus);
    let backend = XenNet::new(xen_net::Config { handle, mac, mtu, queues }, network);
    let devices: Vec<Arc<dyn Device>> = vec![device, backend.clone()];
    Unit { number: handle.into(), backend, devices }
}

/// Those that a domain has from its start.
pub(crate) fn all(disks: Vec<DiskPart>, networks: Vec<NetworkPart>, vcpus: u32) -> Vec<Unit> {
    let disks = (0..).zip(disks).map(|(index, part)| disk(index, vcpus, part.disk, part.bus));
    let networks = (0..).zip(networks).map(|(handle, part)| network(handle, vcpus, part));
    disks.chain(networks).collect()
}
