//! The units of the machine's SCSI adapter, from the start and later ones.

use crate::DiskPart;
use scsi::{Cd, DiskUnit, Identity, Unit};
use std::{collections::BTreeMap, sync::Arc};
use virtio_scsi::{Address, InsertError, TARGET_MAX, VirtioScsi};

/// Units of one target: what firmware looks for (OVMF asks for so many).
const OF_TARGET: usize = 8;
const MAX: usize = (TARGET_MAX as usize + 1) * OF_TARGET;

/// An adapter, and what the operator calls its units.
pub(crate) struct Units {
    adapter: Arc<VirtioScsi>,
    labels: BTreeMap<Address, String>,
}

/// The address of a unit by its number.
fn address(number: usize) -> Address {
    Address { target: (number / OF_TARGET) as u8, lun: (number % OF_TARGET) as u16 }
}

fn unit(DiskPart { disk, serial, bus }: DiskPart, Address { target, lun }: Address) -> Unit {
    let identity = Identity { serial, place: format!("{target}:{lun}") };
    if bus.is_cd() {
        Unit::Cd(Cd::new(Some(disk), Some(identity)))
    } else {
        Unit::Disk(DiskUnit::new(disk, identity))
    }
}

impl Units {
    /// An adapter without units, with so many request queues.
    pub(crate) fn new(queues: u16) -> Self {
        Self { adapter: VirtioScsi::new(queues), labels: BTreeMap::new() }
    }

    pub(crate) fn adapter(&self) -> Arc<VirtioScsi> {
        self.adapter.clone()
    }

    /// Puts a disk or a CD drive at the first free address; `None` if there is none.
    pub(crate) fn add(&mut self, disk: DiskPart, label: String) -> Option<Address> {
        let free = |address: &Address| !self.labels.contains_key(address);
        let address = (0..MAX).map(address).find(free)?;
        self.adapter.plug(address, unit(disk, address)).ok()?;
        self.labels.insert(address, label);
        Some(address)
    }

    /// Takes a unit away, whether or not the guest still uses it; false if there is none.
    pub(crate) fn remove(&mut self, address: Address) -> bool {
        self.labels.remove(&address);
        self.adapter.unplug(address)
    }

    /// Puts a disc into a CD drive, or takes out what there is.
    pub(crate) fn insert(
        &mut self,
        address: Address,
        disc: Option<DiskPart>,
        label: String,
    ) -> Result<(), InsertError> {
        self.adapter.insert(address, disc.map(|part| part.disk))?;
        self.labels.insert(address, label);
        Ok(())
    }

    pub(crate) fn labels(&self) -> &BTreeMap<Address, String> {
        &self.labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::{Memory, Shape};
    use vm_spec::DiskBus;

    fn disk() -> DiskPart {
        let disk = Arc::new(Memory::new(Shape::of_bytes(4096)));
        DiskPart { disk, serial: String::new(), bus: DiskBus::Scsi }
    }

    #[test]
    fn addresses_are_counted_up_and_used_again() {
        let mut units = Units::new(1);
        let at = |target, lun| Some(Address { target, lun });
        let mut add = || units.add(disk(), "a".into());
        assert_eq!([add(), add(), add()], [at(0, 0), at(0, 1), at(0, 2)]);
        let middle = Address { target: 0, lun: 1 };
        assert!(units.remove(middle) && !units.remove(middle));
        assert_eq!(units.labels().len(), 2);
        assert_eq!(units.add(disk(), "b".into()), Some(middle));
        for number in 3..MAX {
            assert_eq!(units.add(disk(), "c".into()), Some(address(number)));
        }
        assert_eq!(address(8), Address { target: 1, lun: 0 });
        assert_eq!(units.add(disk(), "d".into()), None, "all are taken");
    }
}
