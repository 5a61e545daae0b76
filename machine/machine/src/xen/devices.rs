//! The domain's disks and network cards, from the start and while it runs.

use super::toolstack::Toolstack;
use crate::{
    Error, disks,
    parts::{DiskPart, NetworkPart},
    place::Place,
    plug::{Plug, PlugError},
};
use device::Device;
use disk::Disk;
use std::sync::Arc;
use vm_spec::{DiskBus, NetModel};
use xen_blk::XenBlk;
use xen_bus::{Id, Removal};
use xen_front::Backend;
use xen_net::XenNet;

/// What Linux's xen-blkfront puts aside for each queue of a disk, used or not: 32 requests of 32
/// segments.
const KEPT_BY_QUEUE: u64 = 4 << 20;
/// What part of a domain's memory a disk may take so.
const KEPT_PART: u64 = 32;

/// How many queues a disk offers to a domain of this size: of little memory fewer.
fn disk_queues(vcpus: u32, memory: u64) -> u16 {
    let afforded = (memory / KEPT_PART / KEPT_BY_QUEUE).max(1);
    disks::queues(vcpus).min(u16::try_from(afforded).unwrap_or(u16::MAX))
}

/// A device of the domain's.
pub(crate) struct Unit {
    /// Of its folders in xenstore.
    pub(crate) number: u32,
    pub(crate) backend: Arc<dyn Backend>,
    /// What is paused and saved with it, itself last.
    devices: Vec<Arc<dyn Device>>,
}

impl Unit {
    fn id(&self) -> Id {
        Id { kind: self.backend.kind(), number: self.number }
    }
}

/// All of them.
pub(crate) struct Units {
    toolstack: Arc<Toolstack>,
    vcpus: u32,
    /// Bytes of the domain's memory.
    memory: u64,
    /// As the operator calls each; nothing for those that were there from the start.
    there: Vec<(Unit, Option<String>)>,
}

impl Units {
    pub(crate) fn new(toolstack: Arc<Toolstack>, vcpus: u32, memory: u64) -> Self {
        Self { toolstack, vcpus, memory, there: Vec::new() }
    }

    /// Those that a domain has from its start.
    pub(crate) fn add_all(
        &mut self,
        disks: Vec<DiskPart>,
        networks: Vec<NetworkPart>,
    ) -> Result<(), Error> {
        for part in disks {
            let unit = self.disk(part.disk, part.bus);
            self.toolstack.add(&unit)?;
            self.there.push((unit, None));
        }
        for part in networks {
            let unit = self.network(part);
            self.toolstack.add(&unit)?;
            self.there.push((unit, None));
        }
        Ok(())
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.there.iter().flat_map(|(unit, _)| &unit.devices)
    }

    fn has(&self, id: Id) -> bool {
        self.there.iter().any(|(unit, _)| unit.id() == id)
    }

    /// A disk or CD, the first that there is not.
    fn disk(&self, disk: Arc<dyn Disk>, bus: DiskBus) -> Unit {
        let queues = disk_queues(self.vcpus, self.memory);
        let config =
            |index| xen_blk::Config { index, queues, cdrom: bus.is_cd(), persistent_grants: false };
        let is_free = |index: &u32| !self.has(Id { kind: "vbd", number: config(*index).number() });
        let config = config((0..).find(is_free).unwrap_or(u32::MAX));
        let backend = XenBlk::new(&config, disk);
        Unit { number: config.number(), backend: backend.clone(), devices: vec![backend] }
    }

    /// A network card, the first that there is not.
    fn network(&self, part: NetworkPart) -> Unit {
        let NetworkPart { network, device, mac, mtu, .. } = part;
        let is_free = |handle: &u16| !self.has(Id { kind: "vif", number: u32::from(*handle) });
        let handle = (0..=u16::MAX).find(is_free).unwrap_or(u16::MAX);
        let queues = disks::queues(self.vcpus);
        let backend = XenNet::new(xen_net::Config { handle, mac, mtu, queues }, network);
        let devices: Vec<Arc<dyn Device>> = vec![device, backend.clone()];
        Unit { number: handle.into(), backend, devices }
    }

    pub(crate) fn plug(
        &mut self,
        plug: Plug,
        label: String,
        running: bool,
    ) -> Result<Place, PlugError> {
        self.forget_gone();
        let unit = match plug {
            Plug::Disk(DiskPart { bus: DiskBus::Sata | DiskBus::Scsi, .. }) => {
                return Err(PlugError::Bus);
            }
            Plug::Disk(part) => self.disk(part.disk, part.bus),
            Plug::Network(NetworkPart { model: NetModel::E1000, .. }) => {
                return Err(PlugError::Model);
            }
            Plug::Network(part) => self.network(part),
            _ => return Err(PlugError::Domain),
        };
        let id = self.toolstack.add(&unit).map_err(PlugError::DomainDevice)?;
        if running {
            unit.devices.iter().for_each(|device| device.resume());
        }
        self.there.push((unit, Some(label)));
        Ok(Place::Device(id))
    }

    /// Asks the kernel to let go of a device; false if there is none.
    pub(crate) fn unplug(&mut self, place: Place) -> bool {
        let Place::Device(id) = place else { return false };
        let removal = self.toolstack.remove(id);
        if removal == Some(Removal::Done) {
            self.forget_gone();
        }
        removal.is_some()
    }

    /// What the kernel has let go of goes: its threads end, its files are closed.
    pub(crate) fn forget_gone(&mut self) {
        let toolstack = &self.toolstack;
        self.there.retain(|(unit, _)| {
            let there = toolstack.has(unit.id());
            if !there {
                unit.devices.iter().for_each(|device| device.pause());
            }
            there
        });
    }

    /// What there is, as it was called.
    pub(crate) fn labels(&mut self) -> Vec<(Place, Option<String>)> {
        self.forget_gone();
        let from_start = || Some("from the start".to_owned());
        let line = |(unit, label): &(Unit, Option<String>)| {
            (Place::Device(unit.id()), label.clone().or_else(from_start))
        };
        self.there.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::disk_queues;

    #[test]
    fn disks_leave_a_small_domain_its_memory() {
        let queues =
            |vcpus| [0, 64, 128, 256, 512, 4096, 1 << 24].map(|mib| disk_queues(vcpus, mib << 20));
        assert_eq!(queues(1), [1; 7]);
        assert_eq!(queues(4), [1, 1, 1, 2, 4, 4, 4]);
        assert_eq!(disk_queues(32, u64::MAX), 4);
    }
}
