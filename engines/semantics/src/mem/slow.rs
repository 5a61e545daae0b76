//! Accesses that miss the TLB, cross a page, reach a device or code, or must be looked at.

use super::modify;
use crate::{Cpu, Ctx, Stop};
use guest_mem::{PAGE, Plain};
use soft_mmu::{Access, Place, Privilege};
use vcpu_state::SegReg;
use x86_defs::{exception::AC, is_canonical_48};

/// One or two translated pieces of an access: it crosses one page boundary at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub first: Place,
    /// Length of the first piece.
    pub split: usize,
    pub second: Option<Place>,
}

impl Cpu {
    /// Translates `len` bytes (1 to 4096) with the rights of `privilege`, and does everything
    /// that may fault. `seg` tells #SS from #GP.
    pub(super) fn probe_linear(
        &mut self,
        seg: SegReg,
        linear: u64,
        len: usize,
        access: Access,
        privilege: Privilege,
    ) -> Result<Pieces, Stop> {
        let mask = if self.mode.long { !0 } else { 0xffff_ffff };
        let last = linear.wrapping_add(len as u64 - 1) & mask;
        if self.mode.long && !(is_canonical_48(linear) && is_canonical_48(last)) {
            return Err(self.segment_fault(seg));
        }
        let first = match self.mmu.translate(linear, access, privilege) {
            Ok(place) => place,
            Err(e) => return Err(self.page_fault(linear & mask, e.0)),
        };
        let room = (PAGE - linear % PAGE) as usize;
        if len <= room {
            return Ok(Pieces { first, split: len, second: None });
        }
        let next = last & !(PAGE - 1);
        match self.mmu.translate(next, access, privilege) {
            Ok(second) => Ok(Pieces { first, split: room, second: Some(second) }),
            Err(e) => Err(self.page_fault(next, e.0)),
        }
    }

    /// [`Self::probe_linear`] of an explicit access, with alignment and data breakpoints.
    pub(super) fn probe_explicit(
        &mut self,
        seg: SegReg,
        linear: u64,
        len: usize,
        access: Access,
        aligned: usize,
    ) -> Result<Pieces, Stop> {
        let pieces = self.probe_linear(seg, linear, len, access, self.mmu.privilege)?;
        if self.mmu.align && !linear.is_multiple_of(aligned as u64) {
            return Err(self.fault_code(AC, 0));
        }
        if !self.mmu.watches.is_empty() {
            self.note_watches(linear, len as u64, access);
        }
        Ok(pieces)
    }

    #[cold]
    fn note_watches(&mut self, linear: u64, len: u64, access: Access) {
        for n in 0..self.mmu.watches.len() {
            let watch = self.mmu.watches[n];
            let apart = linear.wrapping_sub(watch.linear);
            let hit = apart < watch.len || apart.wrapping_neg() < len;
            if !hit || access == Access::Read && !watch.reads {
                continue;
            }
            if watch.bits == 0 {
                self.mmu.watch_hit = Some(watch.linear);
            }
            self.dr_hits |= watch.bits;
            self.leave = true;
        }
    }
}

impl Ctx<'_> {
    #[cold]
    #[inline(never)]
    pub(super) fn load_slow<T: Plain>(&mut self, seg: SegReg, linear: u64) -> Result<T, Stop> {
        let len = size_of::<T>();
        let pieces = self.cpu.probe_explicit(seg, linear, len, Access::Read, len)?;
        if let Pieces { first: Place { ram: Some(at), .. }, second: None, .. } = pieces {
            return Ok(self.cpu.mmu.arena.load(at));
        }
        let mut bytes = [0; 8];
        self.read_pieces(&pieces, &mut bytes[..len]);
        Ok(T::truncate(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn store_slow<T: Plain>(
        &mut self,
        seg: SegReg,
        linear: u64,
        value: T,
    ) -> Result<(), Stop> {
        let len = size_of::<T>();
        let pieces = self.cpu.probe_explicit(seg, linear, len, Access::Write, len)?;
        if let Pieces { first: Place { ram: Some(at), gpa, code }, second: None, .. } = pieces {
            self.cpu.mmu.arena.store(at, value);
            if code {
                self.cpu.code_written(gpa..gpa + len as u64);
            }
            return Ok(());
        }
        self.write_pieces(&pieces, &value.into().to_le_bytes()[..len]);
        Ok(())
    }

    /// A locked access that reaches a device is a read and a write; for one that crosses pages
    /// see [`crate::sync::Slots::split_lock`].
    #[cold]
    #[inline(never)]
    pub(super) fn rmw_slow<T: Plain>(
        &mut self,
        seg: SegReg,
        linear: u64,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> Result<T, Stop> {
        let len = size_of::<T>();
        let pieces = self.cpu.probe_explicit(seg, linear, len, Access::Write, len)?;
        if let Pieces { first: Place { ram: Some(at), gpa, code }, second: None, .. } = pieces {
            let old = modify(&self.cpu.mmu.arena, at, locked, f);
            if code {
                self.cpu.code_written(gpa..gpa + len as u64);
            }
            return Ok(old);
        }
        let ram = |place: Option<Place>| place.is_some_and(|p| p.ram.is_some());
        // A device may wait for other vCPUs, which must not wait for this one.
        let split = locked && ram(Some(pieces.first)) && ram(pieces.second);
        let slots = split.then(|| self.cpu.slots.clone());
        let _alone = slots.as_ref().map(|slots| slots.split_lock());
        let mut bytes = [0; 8];
        self.read_pieces(&pieces, &mut bytes[..len]);
        let old = T::truncate(u64::from_le_bytes(bytes));
        self.write_pieces(&pieces, &f(old).into().to_le_bytes()[..len]);
        Ok(old)
    }
}
