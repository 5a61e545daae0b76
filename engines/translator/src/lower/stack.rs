//! PUSH, POP, LEAVE and LEA.

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::Mem,
    regs::{self, GUEST_RBP, GUEST_RSP, SA, SC},
    state::field,
};
use iced_x86::{Code, Instruction, OpKind, Register};

/// A PUSH or POP that does nothing with RSP but to move it. Where several follow each other and
/// none can fault any more, it is moved once.
pub(super) fn moves_only(insn: &Instruction) -> bool {
    match insn.code() {
        Code::Pushq_imm8 | Code::Pushq_imm32 => true,
        Code::Push_r64 | Code::Pop_r64 => insn.op0_register() != Register::RSP,
        _ => false,
    }
}

impl Lowerer<'_> {
    pub(super) fn push(&mut self, insn: &Instruction) -> Done {
        let from_memory = match insn.code() {
            Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 => false,
            Code::Push_rm64 => insn.op0_kind() == OpKind::Memory,
            _ => return Err(Untranslated),
        };
        if from_memory {
            let place = self.operand(insn, false, 8)?;
            self.asm.load(SC, place.host());
            self.asm.store(field!(temp), SC);
        }
        let place = self.stack(GUEST_RSP, self.moved - 8, true);
        match (from_memory, insn.op0_kind()) {
            (true, _) => {
                self.asm.load(SC, field!(temp));
                self.scratch.lost(SC);
                self.asm.store(place.host(), SC);
            }
            (_, OpKind::Register) => {
                let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
                let from = self.value(number, SC);
                self.asm.store(place.host(), from);
            }
            _ => self.asm.store_imm(place.host(), insn.immediate(0) as i32, true),
        }
        self.move_stack(-8);
        Ok(())
    }

    /// RSP changes; at once, unless the next instruction is of those that say so together.
    fn move_stack(&mut self, by: i32) {
        self.moved += by;
        let next = self.index + 1;
        let waits = self.runs.get(next).is_some_and(|run| *run) && self.reuse.knows_stack(next);
        if !waits {
            let by = std::mem::take(&mut self.moved);
            self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, by), true);
        }
    }

    pub(super) fn pop(&mut self, insn: &Instruction) -> Done {
        let register = matches!(insn.code(), Code::Pop_r64 | Code::Pop_rm64)
            && insn.op0_kind() == OpKind::Register;
        if !register {
            return Err(Untranslated);
        }
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        let place = self.stack(GUEST_RSP, self.moved, false);
        // What is read replaces what was added.
        let to = regs::home(number).filter(|home| *home != GUEST_RSP).unwrap_or(SC);
        self.asm.load(to, place.host());
        self.scratch.lost(to);
        self.move_stack(8);
        self.set(number, to);
        Ok(())
    }

    pub(super) fn leave(&mut self, insn: &Instruction) -> Done {
        if insn.code() != Code::Leaveq {
            return Err(Untranslated);
        }
        let place = self.stack(GUEST_RBP, 0, false);
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RBP, 8), true);
        self.asm.load(GUEST_RBP, place.host());
        Ok(())
    }

    pub(super) fn lea(&mut self, insn: &Instruction) -> Done {
        let wide = match insn.code() {
            Code::Lea_r64_m => true,
            Code::Lea_r32_m => false,
            _ => return Err(Untranslated),
        };
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        let to = regs::home(number).unwrap_or(SA);
        self.offset(insn, to, wide)?;
        self.reuse.keep();
        self.scratch.lost(to);
        self.set(number, to);
        Ok(())
    }
}
