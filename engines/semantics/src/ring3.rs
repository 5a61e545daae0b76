//! A guest whose kernel runs at level 3, as its programs do (Xen's PV guests).
//!
//! Both have page tables of their own. To the TLB they are what the two levels of any other guest
//! are: each has a plane, so that neither change from one to the other forgets anything. Every change
//! of page tables is known to the personality, which tells of them; so what the TLB holds of an
//! address space is still right when that is loaded again, unless something has changed since. The
//! upper half of the kernel's tables, which all its address spaces share, is as if its pages were
//! global until something of it changes, and what is known of where its code is, until that has moved.

use crate::{Cpu, mem::Mmu};
use engine::{Roots, TableChanges};
use x86_defs::paging::{A, ADDRESS, D};

/// Address spaces that are remembered.
const SPACES: usize = 16;

/// What the vCPU knows of its guest.
#[derive(Debug, Default)]
pub struct Ring3 {
    pub roots: Roots,
    pub in_kernel: bool,
    spaces: [Space; SPACES],
    next: usize,
    /// When the TLB last forgot all, all that it held of the kernel's half, and where its code is.
    seen: TableChanges,
}

#[derive(Clone, Copy, Debug, Default)]
struct Space {
    roots: Roots,
    /// [`TableChanges::any`] when the TLB last forgot all that it held of it.
    changes: u64,
}

impl Ring3 {
    fn root(&self) -> u64 {
        if self.in_kernel { self.roots.kernel } else { self.roots.program }
    }

    /// A PCID for the roots, and whether what the TLB holds under it is right.
    fn space(&mut self, changes: u64) -> (u16, bool) {
        let known = self.spaces.iter().position(|space| space.roots == self.roots);
        let place = known.unwrap_or(self.next % SPACES);
        if known.is_none() {
            self.next = (place + 1) % SPACES;
        }
        let new = Space { roots: self.roots, changes };
        let old = std::mem::replace(&mut self.spaces[place], new);
        (place as u16 + 1, known.is_some() && old.changes == changes)
    }
}

impl Cpu {
    /// See [`engine::CpuView::set_roots`].
    pub(crate) fn set_roots(&mut self, roots: Roots, lasting: bool) {
        let now = self.slots.tables().get();
        let first = self.ring3.is_none();
        let mut ring3 = self.ring3.take().unwrap_or_default();
        let old = std::mem::replace(&mut ring3.roots, roots);
        let alike = !first && self.mmu.maps_kernel_alike(old.kernel, roots.kernel);
        if !alike || ring3.seen.code != now.code {
            self.mmu.forget_global_code();
        }
        if !alike || ring3.seen.upper != now.upper {
            self.mmu.flush_tlb();
            ring3.seen = now;
        }
        ring3.seen.code = now.code;
        let (pcid, keep) = if lasting { ring3.space(now.any) } else { (0, false) };
        self.cr3 = ring3.root();
        self.ring3 = Some(ring3);
        let paging = self.new_paging();
        self.mmu.switch(paging, pcid, keep);
        self.mode_changed();
    }

    /// See [`engine::CpuView::enter`].
    pub(crate) fn enter_level(&mut self, kernel: bool) {
        let Some(ring3) = &mut self.ring3 else { return };
        ring3.in_kernel = kernel;
        self.cr3 = ring3.root();
        self.mmu.set_root(self.cr3);
        self.mode_changed();
    }

    /// The guest's kernel runs, at level 3.
    pub(crate) fn is_deprivileged(&self) -> bool {
        self.ring3.as_ref().is_some_and(|ring3| ring3.in_kernel)
    }

    /// Forgets all translations, as far as tables have changed.
    pub(crate) fn flush_tables(&mut self) {
        let now = self.slots.tables().get();
        let Some(ring3) = &mut self.ring3 else { return self.mmu.flush_all() };
        let seen = std::mem::replace(&mut ring3.seen, now);
        if seen.code != now.code {
            self.mmu.forget_global_code();
        }
        if seen.upper != now.upper {
            self.mmu.flush_tlb();
        } else if seen.any != now.any {
            self.mmu.flush_non_global();
        }
    }
}

impl Mmu {
    /// Under both roots the tables are the same of all in the upper half that the TLB has been asked
    /// for.
    fn maps_kernel_alike(&self, old: u64, new: u64) -> bool {
        let entry = |root: u64, slot: u64| {
            self.phys().load::<u64>((root & ADDRESS) + slot * 8).map(|entry| entry & !(A | D))
        };
        old == new
            || self.kernel_slots().all(|slot| {
                let (old, new) = (entry(old, slot), entry(new, slot));
                old.is_some() && old == new
            })
    }
}
