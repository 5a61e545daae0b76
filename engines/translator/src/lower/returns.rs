//! Calls remember where they return to, in guest and in host code.
//!
//! A call notes the return address with the host address of what follows the call, in a table
//! whose index is made of the guest's stack pointer: where the return address lies. A return
//! looks there, and goes on if the address is the same. What makes this fast is that both are a
//! CALL and a RET of the host, so that its own return predictor knows the way. The pushed host
//! address is moved to the table at once: guest calls do not nest on the host's stack.
//!
//! What is noted is right as long as the address space is the same and the code exists, whoever
//! returns there: [`State::forget_returns`](crate::state::State::forget_returns). Stacks that
//! are switched, and calls that never return, do no harm.

use super::{Lowerer, flow::PAGE};
use crate::{
    asm::{Mem, Short},
    regs::{GUEST_RSP, SA, SB, SC},
    state::{expected_host, expected_return, field},
};

impl Lowerer<'_> {
    /// The return address, an offset from the page, is in [`SC`] and on the guest's stack.
    pub(super) fn expect_return(&mut self, back: i64) {
        let asm = &mut self.asm;
        asm.not(SC);
        asm.pext(SB, GUEST_RSP, field!(stack_mask));
        asm.store(expected_return(self.plane, SB), SC);
        let goes_on = asm.call_forward();
        // Here it returns to, with the address in SA, from whatever page.
        asm.lea(SC, Mem::at(SA, -back as i32), true);
        asm.store(field!(page), SC);
        if (0..PAGE).contains(&back) {
            let jump = self.asm.jmp_forward();
            self.linked(jump, back, true);
        } else {
            self.asm.jmp(self.thunks.jump);
        }
        self.asm.patch(goes_on);
        self.asm.pop_mem(expected_host(self.plane, SB));
    }

    /// The same as [`Self::compare_expected`], and jumps if it is.
    pub(super) fn is_expected(&mut self) -> Short {
        self.compare_expected();
        self.asm.branch_rcx_zero()
    }

    /// [`SC`] is zero if the return address in [`SA`], which is on top of the guest's stack, is
    /// expected there; [`SB`] is its place then.
    pub(super) fn compare_expected(&mut self) {
        self.asm.pext(SB, GUEST_RSP, field!(stack_mask));
        self.asm.load(SC, expected_return(self.plane, SB));
        // a + !b + 1 = a - b
        self.asm.lea(SC, Mem::indexed(SC, SA, 0, 1), true);
    }

    /// Goes where [`Self::is_expected`] said. That is expected once only, and looked up the next
    /// time: what follows does not look at the word of requests, and each cycle in which there is
    /// a return has a call, too. A cycle of returns and of links that go forward alone there is
    /// not. The address stays: whatever stood there instead, a guest might return to.
    pub(super) fn return_as_expected(&mut self) {
        let host = expected_host(self.plane, SB);
        self.asm.load(SC, field!(elsewhere));
        self.asm.push_mem(host);
        self.asm.store(Mem { disp: host.disp + 8, ..host }, SC);
        self.asm.ret();
    }
}
