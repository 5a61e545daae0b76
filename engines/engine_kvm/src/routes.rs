//! The table of interrupt routes, which the IOAPIC's pins and irqfds share.
//!
//! With the split irqchip the kernel reads the first entries as the IOAPIC's pins and tells
//! userspace of the end of those that are level-triggered (KVM_CAP_SPLIT_IRQCHIP).

use crate::{
    os,
    sys::{self, IrqfdRequest},
    vm::Inner,
};
use engine::{Error, IrqHandle, Msi};
use kvm_bindings::*;
use kvm_ioctls::VmFd;
use std::{
    collections::BTreeMap,
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Pins of the machine's IOAPIC.
pub(crate) const PINS: u32 = 24;

#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<BTreeMap<u32, Msi>>);

fn entry((gsi, msi): (&u32, &Msi)) -> kvm_irq_routing_entry {
    let message = kvm_irq_routing_msi {
        address_lo: msi.address as u32,
        address_hi: (msi.address >> 32) as u32,
        data: msi.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi: *gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi: message },
        ..Default::default()
    }
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Msi>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a changed table the kernel's, or leaves both as they were.
    fn change<T>(
        &self,
        vm: &VmFd,
        how: impl FnOnce(&mut BTreeMap<u32, Msi>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut table = self.lock();
        let mut new = table.clone();
        let result = how(&mut new)?;
        if new != *table {
            let entries: Vec<_> = new.iter().map(entry).collect();
            let routing = KvmIrqRouting::from_entries(&entries);
            let routing = routing.map_err(|_| Error::Unsupported("so many interrupt routes"))?;
            vm.set_gsi_routing(&routing).map_err(os("KVM_SET_GSI_ROUTING"))?;
            *table = new;
        }
        Ok(result)
    }

    pub(crate) fn set_pins(&self, vm: &VmFd, pins: &[Option<Msi>]) -> Result<(), Error> {
        if pins.len() > PINS as usize {
            return Err(Error::Unsupported("more than 24 IOAPIC pins"));
        }
        self.change(vm, |table| {
            for gsi in 0..PINS {
                match pins.get(gsi as usize).copied().flatten() {
                    Some(msi) => table.insert(gsi, msi),
                    None => table.remove(&gsi),
                };
            }
            Ok(())
        })
    }

    fn add(&self, vm: &VmFd, msi: Msi) -> Result<u32, Error> {
        self.change(vm, |table| {
            let mut numbers = PINS..KVM_MAX_IRQ_ROUTES as u32;
            let free = numbers.find(|gsi| !table.contains_key(gsi));
            let gsi = free.ok_or(Error::Unsupported("so many interrupt routes"))?;
            table.insert(gsi, msi);
            Ok(gsi)
        })
    }
}

/// An irqfd with its route.
struct Bound {
    vm: Arc<Inner>,
    event: OwnedFd,
    gsi: u32,
    masked: Mutex<bool>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("gsi", &self.gsi).finish_non_exhaustive()
    }
}

pub(crate) fn bind(
    vm: &Arc<Inner>,
    msi: Msi,
    event: BorrowedFd<'_>,
) -> Result<Box<dyn IrqHandle>, Error> {
    let event = event.try_clone_to_owned().map_err(|source| Error::Os { call: "dup", source })?;
    let gsi = vm.routes.add(&vm.fd, msi)?;
    // From here on dropping it undoes all.
    let bound = Bound { vm: vm.clone(), event, gsi, masked: Mutex::new(true) };
    bound.mask(false)?;
    Ok(Box::new(bound))
}

impl IrqHandle for Bound {
    fn update(&self, msi: Msi) -> Result<(), Error> {
        self.vm.routes.change(&self.vm.fd, |table| {
            table.insert(self.gsi, msi);
            Ok(())
        })
    }

    /// An unbound eventfd collects; binding one that has collected signals at once.
    fn mask(&self, masked: bool) -> Result<(), Error> {
        let mut now = self.masked.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != masked {
            let request = if masked { IrqfdRequest::Unbind } else { IrqfdRequest::Bind };
            sys::irqfd(&self.vm.fd, self.event.as_fd(), self.gsi, request)?;
            *now = masked;
        }
        Ok(())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // What the kernel does not know is unbound already.
        drop(self.mask(true));
        drop(self.vm.routes.change(&self.vm.fd, |table| {
            table.remove(&self.gsi);
            Ok(())
        }));
    }
}
