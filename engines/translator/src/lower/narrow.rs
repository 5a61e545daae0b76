//! 32-bit code, of which most is what it would be in 64-bit code.
//!
//! It is translated only while all segments but FS and GS are flat, and the upper halves of the
//! guest's registers are zero: see [`crate::width`]. So an offset is a linear address, and one
//! that is computed by a 32-bit LEA wraps as it should. An access that reaches beyond 4 GiB
//! crosses a page, which misses the TLB, and its handler raises what is due. Instructions that
//! 64-bit code does not have are rewritten, or, if they depend on the width of the stack, made
//! here.

use super::{BASE, Done, Lowerer, Untranslated};
use crate::{
    asm::Mem,
    probe::Place,
    regs::{self, GUEST_RBP, GUEST_RSP, SA, SB, SC},
    state::field,
};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// The instructions of 32-bit code that begin at an offset in their page, addressed as [`BASE`]
/// says; an invalid one where decoding fails.
pub fn decode(bytes: &[u8], start: u16, count: usize) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(32, bytes, start.into(), DecoderOptions::NONE);
    (0..count).map(|_| widened(decoder.decode())).collect()
}

/// The same instruction as in 64-bit code, as far as there is one.
fn widened(mut insn: Instruction) -> Instruction {
    let ip = insn.ip();
    insn.set_ip(BASE.wrapping_add(ip));
    if insn.op0_kind() == OpKind::NearBranch32 {
        // The distance from the page, which may be before it.
        let offset = i64::from(insn.near_branch32() as i32);
        insn.set_op0_kind(OpKind::NearBranch64);
        insn.set_near_branch64(BASE.wrapping_add_signed(offset));
    }
    let code = match insn.code() {
        Code::Jmp_rel8_32 => Code::Jmp_rel8_64,
        Code::Jmp_rel32_32 => Code::Jmp_rel32_64,
        code => with_modrm(code),
    };
    insn.set_code(code);
    insn
}

/// The form with ModRM of what has no other in 64-bit code.
pub(super) fn with_modrm(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        code => code,
    }
}

/// The index registers of a string instruction, if all of 32 bits are used.
pub(super) fn string_operands(insn: &Instruction, moves: bool) -> bool {
    insn.op0_kind() == OpKind::MemoryESEDI
        && (!moves || insn.op1_kind() == OpKind::MemorySegESI)
        && insn.segment_prefix() == Register::None
}

impl Lowerer<'_> {
    /// The memory operand's segment is one whose offsets are linear addresses.
    pub(super) fn narrow_operand(&self, insn: &Instruction) -> Done {
        match insn.memory_segment() {
            // Code may not be written, nor always be read.
            Register::CS if self.narrow && self.short.is_none() => Err(Untranslated),
            _ => Ok(()),
        }
    }

    /// The linear address of an operand in FS or GS in [`SA`], where its offset is. What the
    /// segment does not allow is left to the handler.
    pub(super) fn narrow_base(&mut self, insn: &Instruction) -> Done {
        let (base, odd) = match insn.memory_segment() {
            Register::FS => (field!(fs), field!(fs_odd)),
            Register::GS => (field!(gs), field!(gs_odd)),
            _ => return Ok(()),
        };
        let len = insn.memory_size().size();
        if !(1..=64).contains(&len) {
            return Err(Untranslated);
        }
        self.scratch.lost(SC);
        self.scratch.lost(SB);
        self.handler_unless_zero(|asm| asm.load(SC, odd));
        // The base moves what reaches beyond 4 GiB to somewhere else.
        self.handler_unless_zero(|asm| {
            asm.lea(SC, Mem::at(SA, len as i32 - 1), true);
            asm.rorx(SC, SC, 32);
            asm.mov(SC, SC, false);
        });
        self.asm.load(SB, base);
        self.asm.lea(SA, Mem::indexed(SA, SB, 0, 0), false);
        Ok(())
    }

    /// Instructions that move the stack pointer.
    pub(super) fn narrow_stack(&mut self, insn: &Instruction) -> Done {
        match insn.mnemonic() {
            Mnemonic::Push => self.narrow_push(insn),
            Mnemonic::Pop => self.narrow_pop(insn),
            Mnemonic::Leave => self.narrow_leave(insn),
            Mnemonic::Call => self.narrow_call(insn),
            Mnemonic::Ret => self.narrow_ret(insn),
            _ => Err(Untranslated),
        }
    }

    /// The place of a push in [`SA`], checked.
    fn narrow_push_place(&mut self) -> Place {
        self.asm.lea(SA, Mem::at(GUEST_RSP, -4), false);
        self.scratch.lost(SA);
        self.probe_at(Place::SA, true, 4)
    }

    /// After that, the stack pointer.
    fn narrow_pushed(&mut self) {
        self.asm.mov(GUEST_RSP, SA, false);
    }

    fn narrow_push(&mut self, insn: &Instruction) -> Done {
        let from_memory = match insn.code() {
            Code::Push_r32 | Code::Pushd_imm8 | Code::Pushd_imm32 => false,
            Code::Push_rm32 => insn.op0_kind() == OpKind::Memory,
            _ => return Err(Untranslated),
        };
        if from_memory {
            let place = self.operand(insn, false, 4)?;
            self.asm.load32(SC, place.host());
            self.asm.store(field!(temp), SC);
        }
        let place = self.narrow_push_place();
        match (from_memory, insn.op0_kind()) {
            (true, _) => {
                self.asm.load(SC, field!(temp));
                self.asm.store32(place.host(), SC);
            }
            (_, OpKind::Register) => {
                let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
                let from = self.value(number, SC);
                self.asm.store32(place.host(), from);
            }
            _ => self.asm.store_imm(place.host(), insn.immediate(0) as i32, false),
        }
        self.narrow_pushed();
        Ok(())
    }

    fn narrow_pop(&mut self, insn: &Instruction) -> Done {
        let register = matches!(insn.code(), Code::Pop_r32 | Code::Pop_rm32)
            && insn.op0_kind() == OpKind::Register;
        if !register {
            return Err(Untranslated);
        }
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        let place = self.probe_at(Place { base: GUEST_RSP, disp: 0 }, false, 4);
        self.asm.load32(SC, place.host());
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, 4), false);
        self.set(number, SC);
        Ok(())
    }

    fn narrow_leave(&mut self, insn: &Instruction) -> Done {
        if insn.code() != Code::Leaved {
            return Err(Untranslated);
        }
        let place = self.probe_at(Place { base: GUEST_RBP, disp: 0 }, false, 4);
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RBP, 4), false);
        self.asm.load32(GUEST_RBP, place.host());
        Ok(())
    }

    /// Target of an indirect jump or call in [`SA`]; the code segment has all of them.
    pub(super) fn narrow_target(&mut self, insn: &Instruction) -> Done {
        if insn.op0_kind() == OpKind::Memory {
            let place = self.operand(insn, false, 4)?;
            self.asm.load32(SA, place.host());
        } else {
            let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
            let host = regs::home(number).ok_or(Untranslated)?;
            self.asm.mov(SA, host, false);
        }
        Ok(())
    }

    fn narrow_call(&mut self, insn: &Instruction) -> Done {
        let direct = match insn.code() {
            Code::Call_rel32_32 => Some(Self::target(insn)?),
            Code::Call_rm32 => None,
            _ => return Err(Untranslated),
        };
        if direct.is_none() {
            self.narrow_target(insn)?;
            self.asm.store(field!(temp), SA);
        }
        let place = self.narrow_push_place();
        let back = insn.next_ip().wrapping_sub(BASE) as i64;
        self.page_relative(SC, back);
        self.asm.store32(place.host(), SC);
        self.narrow_pushed();
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

    fn narrow_ret(&mut self, insn: &Instruction) -> Done {
        let extra = match insn.code() {
            Code::Retnd => 0,
            Code::Retnd_imm16 => i32::from(insn.immediate16()),
            _ => return Err(Untranslated),
        };
        let place = self.probe_at(Place { base: GUEST_RSP, disp: 0 }, false, 4);
        self.asm.load32(SA, place.host());
        let expected = self.is_expected();
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, 4 + extra), false);
        self.jump();
        self.asm.land(expected);
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, 4 + extra), false);
        self.retire();
        self.return_as_expected();
        Ok(())
    }
}
