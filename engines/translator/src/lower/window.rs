//! Accesses by windows.
//!
//! The check of a window stands before that of the TLB, which is out of line then: whichever
//! of them hits, the distance to the host address is in [`SB`]. An access by a window may
//! fault, where the window has nothing yet. It is begun again when that has changed, or done by
//! way of the TLB, in the plain part.

use super::{Again, Lowerer, access::Access, flags::Flags, reuse::Reuse};
use crate::{
    asm::{Mem, Patch},
    probe::{self, Place},
    regs::{GUEST_RSP, SA, SB, SC},
    state::field,
    thunks::WINDOW,
    windows::Expectation,
};

/// How far from the address that is compared an operand may be: less than there is nothing
/// around a window.
const NEAR: i32 = 1 << 16;
const PAGE: usize = 4096;

/// An access by a window, which may fault.
#[derive(Debug)]
pub(super) struct Recovery {
    pub index: usize,
    pub again: Again,
    pub end: usize,
    /// How the guest's flags are had there.
    pub flags: Flags,
    /// How far the guest's RSP is from its host register.
    pub moved: i32,
}

impl Reuse {
    /// The window in which each instruction's access is expected.
    pub fn windows(&self, expectation: &Expectation) -> Vec<Option<u8>> {
        let Expectation { registers, page, .. } = expectation;
        let known =
            |access: &Access| Some(expectation.window(access.address(registers, *page)?) as u8);
        // What the x87 unit stores of ten bytes, it stores in two parts, of which the first may
        // be there when the second faults.
        let single = |pair: &[Option<Access>; 2]| match pair {
            [Some(access), None] | [None, Some(access)] if access.len != 10 => Some(known(access)),
            _ => None,
        };
        let choices: Vec<Option<Option<u8>>> = self.accesses().iter().map(single).collect();
        // What is pointed to lies mostly where the pointer does.
        let mut other = choices.iter().flatten().flatten().copied().filter(|window| *window != 0);
        let mut last = other.next().unwrap_or(1);
        choices
            .into_iter()
            .map(|choice| {
                choice.map(|known| {
                    last = known.filter(|window| *window != 0).unwrap_or(last);
                    known.unwrap_or(last)
                })
            })
            .collect()
    }
}

impl Lowerer<'_> {
    /// The window in which the operand of the instruction under way is expected.
    pub(super) fn window(&self, place: Place) -> Option<usize> {
        let near = place.disp.checked_abs().is_some_and(|disp| disp < NEAR);
        let window = self.expected_windows.get(self.index).copied().flatten();
        window.filter(|_| near && !self.reuse.plain).map(usize::from)
    }

    /// The check of a window for the operand at `place`, and out of line that of the TLB for
    /// what begins at `start`, whose misses go to the result. Both are of one register.
    #[expect(clippy::too_many_arguments, reason = "two checks of one access")]
    pub(super) fn look_by_window(
        &mut self,
        window: usize,
        place: Place,
        start: Place,
        write: bool,
        len: usize,
        alignment: u8,
        flags: bool,
    ) -> Option<Patch> {
        self.used_window = true;
        [SA, SB, SC].into_iter().filter(|r| *r != place.base).for_each(|r| self.scratch.lost(r));
        let mismatch = probe::window(&mut self.asm, window, place.base, flags);
        let back = self.asm.here();
        self.asm.change_part();
        mismatch.into_iter().for_each(|patch| self.asm.patch(patch));
        probe::other_windows(&mut self.asm, window, place.base, flags, back);
        self.asm.store(field!(window_missed), place.base);
        self.asm.load(SC, field!(window_poll));
        self.asm.store(field!(poll), SC);
        if start.base != SA || start.disp != 0 {
            self.asm.lea(SA, start.linear(), true);
        }
        // No page has a longer range.
        let patch = if len > PAGE {
            Some(self.asm.jmp_forward())
        } else {
            let patch = self.look_up(SA, write, len, alignment, flags);
            self.restore_base(place, start);
            self.asm.jmp(back);
            patch
        };
        self.asm.change_part();
        patch
    }

    /// The operand's register is [`SA`], which the check of what begins before it has changed.
    fn restore_base(&mut self, place: Place, start: Place) {
        if place.base == SA && start.disp != 0 {
            self.asm.lea(SA, Mem::at(SA, start.disp.wrapping_neg()), true);
        }
    }

    /// What may fault has a plain part.
    pub(super) fn recoverable(&mut self) {
        for recovery in &self.recoveries {
            let index = recovery.index;
            if !self.reuse.doubled.iter().any(|(first, last)| (*first..=*last).contains(&index)) {
                self.reuse.doubled.push((index, index));
            }
        }
    }

    /// What is done where an access by a window has faulted.
    pub(super) fn recoveries(&mut self) {
        for Recovery { index, again, end, flags, moved } in std::mem::take(&mut self.recoveries) {
            self.recover.push([again.at, end, self.asm.here()]);
            self.flags_from(flags);
            self.site(index);
            self.asm.store_imm(field!(miss), WINDOW as i32, false);
            let (miss, _) = self.outside();
            let _ = self.asm.call(miss);
            self.retry(again);
            if moved != 0 {
                self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, moved), true);
            }
            let to = self.plain.get(index).copied().unwrap_or(self.thunks.leave);
            self.asm.jmp(to);
        }
    }
}
