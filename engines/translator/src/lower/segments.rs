//! Selectors are read, and the bases of FS and GS read and written, in translated code's state.

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::Mem,
    regs::{self, SA, SC},
    state::{field, gpr, selector},
};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

impl Lowerer<'_> {
    /// MOV from a segment register: zero-extended to a register of more than two bytes.
    pub(super) fn mov_from_segment(&mut self, insn: &Instruction) -> Done {
        let from = selector(insn.op1_register().number() as u8);
        if insn.op0_kind() == OpKind::Memory {
            let place = self.operand(insn, true, 2)?;
            self.scratch.lost(SC);
            self.asm.load(SC, from);
            self.asm.store16(place.host(), SC);
            return Ok(());
        }
        if insn.code() == Code::Mov_rm16_Sreg {
            let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
            self.scratch.clear();
            self.asm.load(SC, from);
            match regs::home(number) {
                Some(host) => self.asm.mov16(host, SC),
                None => self.asm.store16(gpr(number), SC),
            }
            return Ok(());
        }
        self.load_register(insn.op0_register(), from, true)
    }

    /// All of a guest register, from the state.
    pub(super) fn load_register(&mut self, register: Register, from: Mem, wide: bool) -> Done {
        let number = regs::number(register).ok_or(Untranslated)?;
        let to = regs::home(number).unwrap_or(SA);
        self.scratch.lost(to);
        match wide {
            true => self.asm.load(to, from),
            false => self.asm.load32(to, from),
        }
        self.set(number, to);
        Ok(())
    }

    /// RDFSBASE, RDGSBASE.
    pub(super) fn read_base(&mut self, insn: &Instruction) -> Done {
        if self.narrow {
            return Err(Untranslated);
        }
        self.unless_zero(field!(fsgs_bad));
        let base = match insn.mnemonic() {
            Mnemonic::Rdfsbase => field!(fs),
            _ => field!(gs),
        };
        let register = insn.op0_register();
        self.load_register(register, base, register.size() == 8)
    }

    /// WRFSBASE, WRGSBASE.
    pub(super) fn write_base(&mut self, insn: &Instruction) -> Done {
        if self.narrow {
            return Err(Untranslated);
        }
        self.unless_zero(field!(fsgs_bad));
        let register = insn.op0_register();
        let number = regs::number(register).ok_or(Untranslated)?;
        let from = self.value(number, SA);
        self.asm.mov(SA, from, register.size() == 8);
        self.scratch.lost(SA);
        self.canonical();
        let base = match insn.mnemonic() {
            Mnemonic::Wrfsbase => field!(fs),
            _ => field!(gs),
        };
        self.asm.store(base, SA);
        Ok(())
    }
}
