//! Counting retired instructions, where a VM wants that.
//!
//! [`State::budget`](crate::state::State::budget) says how many instructions may yet be retired.
//! A block is entered only if all of it fits, so that nothing has to be looked at inside; what
//! does not fit is left to the interpreter, which stops exactly. Each way out of a block says
//! how many of its instructions it has retired: in code all of them go through
//! [`Lowerer::retire`], and a callout that does not come back tells the same in
//! [`crate::callout`]. No flag changes.

use super::Lowerer;
use crate::{
    asm::{Mem, Patch},
    regs::SC,
    state::field,
};

impl Lowerer<'_> {
    /// Counts, or does not: then no code is made for it.
    pub fn counted(mut self, counted: bool) -> Self {
        self.counted = counted;
        self
    }

    /// At the block's entry: the jump that is taken if its instructions are too many.
    pub(super) fn want_budget(&mut self) -> Option<Patch> {
        if !self.counted {
            return None;
        }
        self.asm.load(SC, field!(budget));
        self.asm.lea(SC, Mem::at(SC, -(self.length as i32)), true);
        // A budget is below 2^47, so that these bits are zero but for a negative number.
        self.asm.rorx(SC, SC, 48);
        self.asm.movzx16(SC, SC);
        let mut short = None;
        self.asm.unless_rcx_zero(|asm| short = Some(asm.jmp_forward()));
        short
    }

    /// Control leaves the block, and of its instructions all up to the one under way are
    /// retired. [`SC`] is lost.
    pub(super) fn retire(&mut self) {
        self.retire_some(self.index + 1);
    }

    /// The same, with `done` instructions from the block's beginning.
    pub(super) fn retire_some(&mut self, done: usize) {
        if !self.counted {
            return;
        }
        self.asm.load(SC, field!(budget));
        self.asm.lea(SC, Mem::at(SC, -(done as i32)), true);
        self.asm.store(field!(budget), SC);
    }
}
