//! DIV and IDIV, where it is certain that they do not fault.

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::{Mem, RAX, RDX},
    regs::{self, SA, SC},
};
use iced_x86::{Instruction, OpKind, Register};

/// Condition codes (SDM volume 1, appendix B).
const BELOW: u8 = 2;
const EQUAL: u8 = 4;
const ABOVE: u8 = 7;

impl Lowerer<'_> {
    /// The quotient fits if the dividend's upper half is below the divisor.
    pub(super) fn div(&mut self, insn: &Instruction) -> Done {
        let wide = self.divisor(insn)?;
        self.asm.bytes(&[0x9c]); // pushfq
        self.asm.cmp(RDX, SC, wide);
        self.unless_or_handler(BELOW);
        self.asm.lea(regs::HOST_RSP, Mem::at(regs::HOST_RSP, 8), true);
        self.asm.group3(6, SC, wide);
        Ok(())
    }

    /// The quotient fits if the dividend is the sign-extended lower half and the divisor is
    /// neither 0 nor -1.
    pub(super) fn idiv(&mut self, insn: &Instruction) -> Done {
        let wide = self.divisor(insn)?;
        self.asm.bytes(&[0x9c]); // pushfq
        self.asm.mov(SA, RAX, wide);
        self.asm.sar(SA, if wide { 63 } else { 31 }, wide);
        self.asm.cmp(SA, RDX, wide);
        self.unless_or_handler(EQUAL);
        self.asm.lea(SA, Mem::at(SC, 1), wide);
        self.asm.cmp_imm(SA, 1, wide);
        self.unless_or_handler(ABOVE);
        self.asm.lea(regs::HOST_RSP, Mem::at(regs::HOST_RSP, 8), true);
        self.asm.group3(7, SC, wide);
        Ok(())
    }

    /// The divisor, in [`SC`]; true if it has 64 bits.
    fn divisor(&mut self, insn: &Instruction) -> Result<bool, Untranslated> {
        if insn.op0_kind() == OpKind::Memory {
            let wide = match insn.memory_size().size() {
                8 => true,
                4 => false,
                _ => return Err(Untranslated),
            };
            let place = self.operand(insn, false, if wide { 8 } else { 4 })?;
            match wide {
                true => self.asm.load(SC, place.host()),
                false => self.asm.load32(SC, place.host()),
            }
            return Ok(wide);
        }
        let register = insn.op0_register();
        let wide = match register.size() {
            8 => true,
            4 => false,
            _ => return Err(Untranslated),
        };
        debug_assert_ne!(register, Register::None);
        let number = regs::number(register).ok_or(Untranslated)?;
        let from = self.value(number, SC);
        if from != SC {
            self.asm.mov(SC, from, true);
        }
        Ok(wide)
    }

    /// Goes on if the condition holds; else the flags, which are on the stack, come back and
    /// the handler divides.
    fn unless_or_handler(&mut self, condition: u8) {
        let mut patch = None;
        self.asm.unless(condition, |asm| {
            asm.bytes(&[0x9d]); // popfq
            patch = Some(asm.jmp_forward());
        });
        self.handler_from(patch);
    }
}
