//! Pages that the guest wrote, from the kernel's log or from the vCPUs' rings.
//!
//! The log is a bitmap for each slot that the kernel copies out and clears. Rings tell pages
//! in the order of writing, cost what was written rather than what there is, and stop a vCPU
//! that writes faster than they are read; they are an option of
//! [`KvmEngine::with_dirty_rings`](crate::KvmEngine::with_dirty_rings).

use crate::{os, sys};
use engine::Error;
use guest_mem::{PageBitmap, Region, SlotId};
use kvm_ioctls::VmFd;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The rings of all vCPUs, and what was read from them and not yet asked for.
#[derive(Debug, Default)]
pub(crate) struct Rings(Mutex<Collected>);

#[derive(Debug, Default)]
struct Collected {
    rings: Vec<Arc<sys::DirtyRing>>,
    pages: BTreeMap<SlotId, Vec<u64>>,
}

impl Rings {
    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, ring: sys::DirtyRing) {
        self.lock().rings.push(Arc::new(ring));
    }

    /// Empties all rings, which lets a vCPU go on that filled its own.
    pub(crate) fn collect(&self, vm: &VmFd) -> Result<(), Error> {
        let mut collected = self.lock();
        let Collected { rings, pages } = &mut *collected;
        let mut any = false;
        for ring in rings {
            any |= ring.harvest(|slot, page| pages.entry(slot).or_default().push(page));
        }
        // The collected pages stay even if this fails: they are dirty.
        if any { sys::reset_rings(vm) } else { Ok(()) }
    }

    /// Moves the slot's pages to `out`.
    pub(crate) fn take(&self, slot: SlotId, out: &mut PageBitmap) {
        for page in self.lock().pages.remove(&slot).unwrap_or_default() {
            let word = usize::try_from(page / 64).ok().and_then(|at| out.0.get_mut(at));
            if let Some(word) = word {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// The slot is gone.
    pub(crate) fn forget(&self, slot: SlotId) {
        self.lock().pages.remove(&slot);
    }
}

/// Adds the kernel's log of a slot to `out`.
pub(crate) fn take_log(vm: &VmFd, region: &Region, out: &mut PageBitmap) -> Result<(), Error> {
    let len = usize::try_from(region.slot.len).unwrap_or(usize::MAX);
    let log = vm.get_dirty_log(region.slot.id, len).map_err(os("KVM_GET_DIRTY_LOG"))?;
    out.0.iter_mut().zip(log).for_each(|(to, from)| *to |= from);
    Ok(())
}
