//! Branches, calls and returns, and how a block is left.

use super::{BASE, Done, Exit, Lowerer, Untranslated};
use crate::{
    asm::{Mem, Patch},
    far::{Far, far},
    jumps,
    regs::{self, GUEST_RSP, SA, SB, SC},
    state::{field, gpr},
};
use iced_x86::{Code, FlowControl, Instruction, OpKind};
use std::mem::offset_of;

/// A branch to another page that was not there, or not from here, the last time.
#[derive(Debug)]
pub(super) struct FarMiss {
    number: u32,
    offset: i64,
    patch: Patch,
}

/// Control never simply goes on to the next instruction.
pub fn is_flow(insn: &Instruction) -> bool {
    !matches!(insn.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
}

pub(super) const PAGE: i64 = 4096;

/// What direct branches reach from their page, in bytes, without a check that it is canonical:
/// blocks run where all of that is. Kernels lie far from where addresses are not canonical, and
/// their modules far from them. Programs have shared code, such as a vDSO, near the end of
/// their half, and few branches that reach far.
pub fn reach(plane: usize) -> u64 {
    if plane < 2 { 1 << 31 } else { 1 << 26 }
}

impl Lowerer<'_> {
    /// Control goes to an offset from the page: inside it, by a jump that can be linked.
    pub(super) fn exit(&mut self, offset: i64) {
        self.retire();
        if (0..PAGE).contains(&offset) {
            let jump = self.asm.jmp_forward();
            self.linked(jump, offset, false);
        } else {
            self.over_far(offset);
        }
    }

    /// Numbers of branches to other pages: the first, and the end. Further ones have none.
    pub fn fars(mut self, (first, end): (u32, u32)) -> Self {
        (self.next_far, self.end_far) = (first, end);
        self
    }

    /// Control goes to an offset in another page; see [`crate::far`].
    fn over_far(&mut self, offset: i64) {
        let number = self.next_far;
        if number >= self.end_far {
            self.page_relative(SA, offset);
            return self.asm.jmp(self.thunks.jump);
        }
        self.next_far += 1;
        let asm = &mut self.asm;
        asm.load(SC, field!(page));
        asm.load(SB, field!(table));
        asm.lea(SC, Mem::indexed(SC, SB, 0, 0), true);
        asm.load(SB, far(number, offset_of!(Far, key)));
        asm.lea(SC, Mem::indexed(SC, SB, 0, 0), true);
        let mut missed = None;
        asm.unless_rcx_zero(|asm| missed = Some(asm.jmp_forward()));
        asm.load(SC, far(number, offset_of!(Far, page)));
        asm.store(field!(page), SC);
        asm.jmp_mem(far(number, offset_of!(Far, host)));
        self.fars.extend(missed.map(|patch| FarMiss { number, offset, patch }));
    }

    /// What such branches do elsewhere.
    pub(super) fn far_misses(&mut self) {
        let mut fars = std::mem::take(&mut self.fars);
        for FarMiss { number, offset, patch } in fars.drain(..) {
            self.asm.patch(patch);
            self.page_relative(SA, offset);
            self.asm.mov_imm32(SC, number);
            self.asm.jmp_mem(far(number, offset_of!(Far, miss)));
        }
        self.fars = fars;
    }

    /// The jump goes to an offset in the page; `returned` to by a return.
    pub(super) fn linked(&mut self, jump: Patch, offset: i64, returned: bool) {
        let (cell, plane) = (self.first_cell + self.exits.len() as u32, self.exit_plane);
        self.exits.push(Exit { cell, offset, returned, plane, jump, stub: 0 });
    }

    /// The same as [`Self::exit`] if the condition holds.
    fn exit_if(&mut self, condition: u8, offset: i64) {
        if (0..PAGE).contains(&offset) && !self.counted {
            let jump = self.asm.jcc_forward(condition);
            self.linked(jump, offset, false);
        } else {
            self.aside(condition, |this| this.exit(offset));
        }
    }

    /// Control goes to the linear address in [`SA`].
    pub(super) fn jump(&mut self) {
        self.retire();
        self.asm.jmp(self.thunks.jump);
    }

    /// Of a relative branch, from the page.
    pub(super) fn target(insn: &Instruction) -> Result<i64, Untranslated> {
        if insn.op0_kind() != OpKind::NearBranch64 {
            return Err(Untranslated);
        }
        let offset = insn.near_branch64().wrapping_sub(BASE) as i64;
        i32::try_from(offset).map_err(|_| Untranslated)?;
        Ok(offset)
    }

    /// The target of a direct branch may not be canonical.
    fn is_remote(&self, target: i64) -> bool {
        !self.narrow && self.short.is_none() && target.unsigned_abs() >= reach(self.plane)
    }

    /// Leaves a direct branch to what is not canonical to the handler.
    fn remote(&mut self, target: i64) {
        if self.is_remote(target) {
            self.page_relative(SA, target);
            self.canonical();
        }
    }

    pub(super) fn jmp(&mut self, insn: &Instruction) -> Done {
        match insn.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => {
                let target = Self::target(insn)?;
                self.remote(target);
                if target != self.start {
                    self.exit(target);
                } else if !self.turns() {
                    self.retire();
                    self.asm.jmp(self.origin);
                }
            }
            Code::Jmp_rm32 if self.narrow => {
                self.narrow_target(insn)?;
                self.jump();
            }
            Code::Jmp_rm64 => {
                self.indirect_target(insn)?;
                if self.counted {
                    // It may not be retired.
                    self.canonical();
                }
                self.retire();
                // Only canonical addresses are in the table.
                jumps::look_ahead(&mut self.asm);
                self.aside_unless_zero(|this| {
                    this.canonical();
                    this.asm.jmp(this.thunks.jump_missed);
                });
                jumps::go_on(&mut self.asm);
            }
            _ => return Err(Untranslated),
        }
        Ok(())
    }

    pub(super) fn jcc(&mut self, insn: &Instruction) -> Done {
        let target = Self::target(insn)?;
        let condition = (insn.condition_code() as u8).wrapping_sub(1);
        if condition > 15 || self.is_remote(target) {
            return Err(Untranslated);
        }
        if target != self.start {
            self.exit_if(condition, target);
        } else if self.turns() {
            let end = insn.next_ip().wrapping_sub(BASE) as i64;
            self.exit_if(condition ^ 1, end);
        } else if self.counted {
            let around = self.asm.branch(condition ^ 1);
            self.retire();
            self.asm.jmp(self.origin);
            self.asm.land(around);
        } else {
            self.asm.jcc(condition, self.origin);
        }
        Ok(())
    }

    /// So many instructions are one turn of the loop that the block is; see [`super::turns`].
    pub fn turning(mut self, turn: Option<usize>) -> Self {
        self.turn = turn;
        self
    }

    /// The branch under way, to the block's beginning, goes on with the turn that is made next.
    fn turns(&self) -> bool {
        let end = self.index + 1;
        self.turn.is_some_and(|turn| end < self.length && end.is_multiple_of(turn))
    }

    /// What is done out of line if the condition holds; control does not come back.
    fn aside(&mut self, condition: u8, f: impl FnOnce(&mut Self)) {
        if self.reuse.plain {
            // This is out of line.
            let around = self.asm.branch(condition ^ 1);
            f(self);
            return self.asm.land(around);
        }
        let out = self.asm.jcc_forward(condition);
        self.asm.change_part();
        self.asm.patch(out);
        f(self);
        self.asm.change_part();
    }

    /// What is done out of line unless [`SC`] is zero; control does not come back.
    pub(super) fn aside_unless_zero(&mut self, f: impl FnOnce(&mut Self)) {
        if self.reuse.plain {
            let around = self.asm.branch_rcx_zero();
            f(self);
            return self.asm.land(around);
        }
        let mut out = None;
        self.asm.unless_rcx_zero(|asm| out = Some(asm.jmp_forward()));
        self.asm.change_part();
        out.into_iter().for_each(|out| self.asm.patch(out));
        f(self);
        self.asm.change_part();
    }

    /// Target of an indirect jump or call in [`SA`].
    fn indirect_target(&mut self, insn: &Instruction) -> Done {
        if insn.op0_kind() == OpKind::Memory {
            let place = self.operand(insn, false, 8)?;
            self.asm.load(SA, place.host());
        } else {
            let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
            match regs::home(number) {
                Some(host) => self.asm.mov(SA, host, true),
                None => self.asm.load(SA, gpr(number)),
            }
        }
        Ok(())
    }

    /// Leaves what is not canonical in [`SA`] to the handler, which raises #GP.
    pub(super) fn canonical(&mut self) {
        self.asm.load(SC, field!(half));
        self.asm.lea(SC, Mem::indexed(SC, SA, 0, 0), true);
        self.asm.rorx(SC, SC, 48);
        self.asm.movzx16(SC, SC);
        let mut patch = None;
        self.asm.unless_rcx_zero(|asm| patch = Some(asm.jmp_forward()));
        self.handler_from(patch);
    }

    pub(super) fn call(&mut self, insn: &Instruction) -> Done {
        let direct = match insn.code() {
            Code::Call_rel32_64 => Some(Self::target(insn)?),
            Code::Call_rm64 => None,
            _ => return Err(Untranslated),
        };
        match direct {
            Some(target) => self.remote(target),
            None => {
                self.indirect_target(insn)?;
                // Only canonical addresses are in the table. The others fault before all effects.
                jumps::look_ahead(&mut self.asm);
                let around = self.asm.branch_rcx_zero();
                self.canonical();
                jumps::not_found(&mut self.asm);
                self.asm.land(around);
                self.asm.store(field!(temp), SA);
                self.asm.store(field!(jump), SB);
                self.reuse.lost();
            }
        }
        let place = self.stack(GUEST_RSP, -8, true);
        let back = insn.next_ip().wrapping_sub(BASE) as i64;
        self.page_relative(SC, back);
        self.asm.store(place.host(), SC);
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, -8), true);
        if self.returns {
            self.expect_return(back);
        }
        match direct {
            Some(target) => self.exit(target),
            None => {
                self.retire();
                self.asm.load(SA, field!(temp));
                self.asm.load(SB, field!(jump));
                jumps::go_on(&mut self.asm);
            }
        }
        Ok(())
    }

    pub(super) fn ret(&mut self, insn: &Instruction) -> Done {
        let extra = match insn.code() {
            Code::Retnq => 0,
            Code::Retnq_imm16 => i32::from(insn.immediate16()),
            _ => return Err(Untranslated),
        };
        let place = self.stack(GUEST_RSP, 0, false);
        self.asm.load(SA, place.host());
        self.compare_expected();
        self.aside_unless_zero(|this| {
            this.canonical();
            this.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, 8 + extra), true);
            this.jump();
        });
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, 8 + extra), true);
        self.retire();
        self.return_as_expected();
        Ok(())
    }
}
