//! What 16-bit code does with its stack, whose pointer has 16 bits.

use super::{
    BASE, Done, Lowerer, Untranslated,
    short::{SS, Short, segment},
};
use crate::{
    asm::Mem,
    probe::Place,
    regs::{self, GUEST_RBP, GUEST_RSP, SA, SB, SC},
    segments::{Words, word},
    state::field,
};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use std::mem::offset_of;

const RBP: u8 = 5;

impl Lowerer<'_> {
    pub(super) fn short_stack(&mut self, insn: &Instruction, short: Short) -> Done {
        match insn.mnemonic() {
            Mnemonic::Push => self.short_push(insn),
            Mnemonic::Pop => self.short_pop(insn, short),
            Mnemonic::Leave => self.short_leave(insn),
            Mnemonic::Call => self.short_call(insn),
            Mnemonic::Ret => self.short_ret(insn),
            Mnemonic::Pushf => self.short_pushf(insn),
            _ => Err(Untranslated),
        }
    }

    /// The place of a push, checked.
    fn short_push_place(&mut self, size: i32) -> Place {
        self.asm.lea(SA, Mem::at(GUEST_RSP, -size), false);
        self.asm.movzx16(SA, SA);
        self.in_segment(SS, true, size as usize);
        self.probe_at(Place::SA, true, size as usize)
    }

    /// What the low half of a register points to.
    fn short_top(&mut self, register: u8, size: i32) -> Place {
        self.asm.movzx16(SA, register);
        self.in_segment(SS, false, size as usize);
        self.probe_at(Place::SA, false, size as usize)
    }

    /// The stack pointer's low half moves, by way of a scratch register.
    fn move_low(&mut self, by: i32, scratch: u8) {
        self.asm.lea(scratch, Mem::at(GUEST_RSP, by), false);
        self.asm.mov16(GUEST_RSP, scratch);
    }

    fn store_short(&mut self, place: Place, from: u8, size: i32) {
        match size {
            2 => self.asm.store16(place.host(), from),
            _ => self.asm.store32(place.host(), from),
        }
    }

    fn short_push(&mut self, insn: &Instruction) -> Done {
        use Code::*;
        let size = match insn.code() {
            Push_r16 | Pushw_imm8 | Push_imm16 | Push_rm16 => 2,
            Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => 2,
            Push_r32 | Pushd_imm8 | Pushd_imm32 | Push_rm32 => 4,
            Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => 4,
            _ => return Err(Untranslated),
        };
        if insn.op0_kind() == OpKind::Memory {
            let place = self.operand(insn, false, size as usize)?;
            self.load_short(SC, place, size == 4);
            self.asm.store(field!(temp), SC);
            let place = self.short_push_place(size);
            self.asm.load(SC, field!(temp));
            self.store_short(place, SC, size);
            self.move_low(-size, SC);
            return Ok(());
        }
        let place = self.short_push_place(size);
        let from = match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                let number = segment(insn.op0_register())?;
                self.asm.load(SC, word(number, offset_of!(Words, selector)));
                SC
            }
            OpKind::Register => {
                let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
                regs::home(number).ok_or(Untranslated)?
            }
            _ => {
                self.asm.mov_imm32(SC, insn.immediate(0) as u32);
                SC
            }
        };
        self.store_short(place, from, size);
        self.move_low(-size, SC);
        Ok(())
    }

    fn short_pop(&mut self, insn: &Instruction, short: Short) -> Done {
        use Code::*;
        if insn.op0_kind() != OpKind::Register {
            return Err(Untranslated);
        }
        let register = insn.op0_register();
        if matches!(insn.code(), Popw_ES | Popw_DS | Popw_FS | Popw_GS) {
            let number = self.paragraph(register, short)?;
            let place = self.short_top(GUEST_RSP, 2);
            self.load_short(SA, place, false);
            self.move_low(2, SC);
            self.load_paragraph(number);
            return Ok(());
        }
        let size = match insn.code() {
            Pop_r16 | Pop_rm16 => 2,
            Pop_r32 | Pop_rm32 => 4,
            _ => return Err(Untranslated),
        };
        let number = regs::number(register).ok_or(Untranslated)?;
        let place = self.short_top(GUEST_RSP, size);
        self.load_short(SA, place, size == 4);
        // What is read replaces what was added.
        self.move_low(size, SC);
        self.set_short(number, SA, size)
    }

    /// The low half of a guest register, or the register, as 32-bit code has it.
    fn set_short(&mut self, number: u8, from: u8, size: i32) -> Done {
        if size == 2 {
            return self.set_low(number, from);
        }
        let home = regs::home(number).ok_or(Untranslated)?;
        self.asm.mov(home, from, false);
        Ok(())
    }

    fn short_leave(&mut self, insn: &Instruction) -> Done {
        let size = match insn.code() {
            Code::Leavew => 2,
            Code::Leaved => 4,
            _ => return Err(Untranslated),
        };
        let place = self.short_top(GUEST_RBP, size);
        self.load_short(SA, place, size == 4);
        self.asm.lea(SC, Mem::at(GUEST_RBP, size), false);
        self.asm.mov16(GUEST_RSP, SC);
        self.set_short(RBP, SA, size)
    }

    fn short_call(&mut self, insn: &Instruction) -> Done {
        let (direct, size) = match insn.code() {
            Code::Call_rel16 => (Some(Self::target(insn)?), 2),
            Code::Call_rel32_32 => (Some(Self::target(insn)?), 4),
            Code::Call_rm16 => (None, 2),
            Code::Call_rm32 => (None, 4),
            _ => return Err(Untranslated),
        };
        if direct.is_none() {
            self.short_target(insn)?;
            self.asm.store(field!(temp), SA);
        }
        let place = self.short_push_place(size);
        let back = insn.next_ip().wrapping_sub(BASE) as i64;
        self.page_relative(SC, back);
        self.store_short(place, SC, size);
        self.move_low(-size, SB);
        if self.returns {
            self.expect_return(back);
        }
        match direct {
            Some(target) => self.exit(target),
            None => {
                self.asm.load(SA, field!(temp));
                self.jump();
            }
        }
        Ok(())
    }

    fn short_ret(&mut self, insn: &Instruction) -> Done {
        let (size, extra) = match insn.code() {
            Code::Retnw => (2, 0),
            Code::Retnw_imm16 => (2, i32::from(insn.immediate16())),
            Code::Retnd => (4, 0),
            Code::Retnd_imm16 => (4, i32::from(insn.immediate16())),
            _ => return Err(Untranslated),
        };
        let place = self.short_top(GUEST_RSP, size);
        self.load_short(SA, place, size == 4);
        if size == 4 {
            self.below_64k();
        }
        let expected = self.is_expected();
        self.move_low(size + extra, SC);
        self.jump();
        self.asm.land(expected);
        self.move_low(size + extra, SC);
        self.retire();
        self.return_as_expected();
        Ok(())
    }

    fn short_pushf(&mut self, insn: &Instruction) -> Done {
        if insn.code() != Code::Pushfw {
            return Err(Untranslated);
        }
        self.needs_supervisor()?;
        let place = self.short_push_place(2);
        self.asm.lea(SB, place.host(), true);
        self.flags_image();
        self.asm.store16(Mem::at(SB, 0), SC);
        self.move_low(-2, SC);
        Ok(())
    }
}
