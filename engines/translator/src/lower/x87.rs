//! x87 instructions, on the host's own registers while all exceptions are masked.

use super::{
    BASE, Done, Lowerer, Untranslated,
    copy::{Plan, Temps},
};
use crate::{
    probe::Place,
    regs::{SA, SB, SC},
    state::{BIAS, State, field},
    vectors,
};
use emit::{Properties, Unit};
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Mnemonic, OpKind, Register};
use std::mem::offset_of;

impl Lowerer<'_> {
    pub(super) fn x87(&mut self, insn: &Instruction, properties: &Properties) -> Done {
        use Mnemonic::{Fldcw, Fnclex, Fnstcw, Fnstsw, Wait};
        debug_assert_eq!(properties.unit, Unit::X87);
        self.vectors |= match insn.mnemonic() {
            Fldcw => self.load_control(insn)?,
            // Nothing is pending.
            Wait => vectors::USED | vectors::X87,
            Fnstcw | Fnstsw | Fnclex => {
                self.on_stack(insn, properties)?;
                vectors::USED | vectors::X87
            }
            _ if properties.x87_pointers => {
                let operand = self.on_stack(insn, properties)?;
                self.note(insn, operand);
                vectors::USED | vectors::X87
            }
            _ => return Err(Untranslated),
        };
        Ok(())
    }

    fn on_stack(
        &mut self,
        insn: &Instruction,
        properties: &Properties,
    ) -> Result<Option<Place>, Untranslated> {
        let mut plan = Plan { insn: *insn, temps: Temps::default() };
        let plain = insn.op_kinds().enumerate().all(|(n, kind)| {
            let register = insn.op_register(n as u32);
            kind == OpKind::Memory
                || kind == OpKind::Register && (register.is_st() || register == Register::AX)
        });
        if !plain || crate::regs::home(0) != Some(0) {
            return Err(Untranslated);
        }
        let mut operand = None;
        if let Some(memory) = properties.memory {
            if matches!(insn.memory_segment(), Register::FS | Register::GS) {
                return Err(Untranslated);
            }
            let place = self.operand(insn, memory.write, memory.size.into())?;
            plan.use_host_address(place);
            operand = Some(place);
        }
        self.encode(&plan.insn)?;
        Ok(operand)
    }

    /// FIP, FOP and FDP, of which the host's own mean nothing. (Whether the guest's processor
    /// changes the last two without an exception is known when they are stored.)
    fn note(&mut self, insn: &Instruction, operand: Option<Place>) {
        if let Some(place) = operand {
            self.asm.lea(SC, place.linear(), true);
            self.asm.store(field!(x87_dp), SC);
        }
        self.page_relative(SC, insn.ip().wrapping_sub(BASE) as i64);
        self.asm.store(field!(x87_ip), SC);
        let known = self.known.get(self.index);
        let opcode = known.and_then(|insn| insn.cold.as_ref()).map_or(0, |cold| cold.fop);
        self.asm.store_imm(field!(x87_op), i32::from(opcode & 0x7ff), true);
    }

    /// FLDCW of what masks everything.
    fn load_control(&mut self, insn: &Instruction) -> Result<u8, Untranslated> {
        self.address(insn)?;
        self.probe(false, 2);
        debug_assert_eq!(Place::SA.base, SA);
        let operand =
            MemoryOperand::with_base_index(crate::regs::name(SA, 8), crate::regs::name(SB, 8));
        self.x87_insn(Instruction::with2(Code::Movzx_r32_rm16, Register::ECX, operand))?;
        self.asm.store(field!(new_fcw), SC);
        self.asm.not32(SC);
        self.handler_unless_zero(|asm| asm.pext(SC, SC, field!(fcw_masks)));
        let at = offset_of!(State, new_fcw) as i64 - BIAS as i64;
        let control = MemoryOperand::with_base_displ(Register::RSP, at);
        self.x87_insn(Instruction::with1(Code::Fldcw_m2byte, control))?;
        Ok(vectors::USED | vectors::X87)
    }

    fn x87_insn(&mut self, insn: Result<Instruction, IcedError>) -> Done {
        let insn = insn.map_err(|_| Untranslated)?;
        self.encode(&insn)
    }
}
