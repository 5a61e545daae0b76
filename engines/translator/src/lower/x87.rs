//! x87 instructions, on the host's own registers while all exceptions are masked.

use super::{BASE, Done, Lowerer, Untranslated, copy::Plan};
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
            Fnstcw | Fnstsw | Fnclex => self.on_stack(insn, properties)?,
            _ if properties.x87_pointers => {
                let used = self.on_stack(insn, properties)?;
                self.page_relative(SC, insn.ip().wrapping_sub(BASE) as i64);
                self.asm.store(field!(x87_ip), SC);
                used
            }
            _ => return Err(Untranslated),
        };
        Ok(())
    }

    fn on_stack(
        &mut self,
        insn: &Instruction,
        properties: &Properties,
    ) -> Result<u8, Untranslated> {
        let mut plan = Plan { insn: *insn, temps: Vec::new() };
        let plain = insn.op_kinds().enumerate().all(|(n, kind)| {
            let register = insn.op_register(n as u32);
            kind == OpKind::Memory
                || kind == OpKind::Register && (register.is_st() || register == Register::AX)
        });
        if !plain || crate::regs::home(0) != Some(0) {
            return Err(Untranslated);
        }
        if let Some(memory) = properties.memory {
            let place = self.operand(insn, memory.write, memory.size.into())?;
            plan.use_host_address(place);
        }
        self.encode(&plan.insn)?;
        Ok(vectors::USED | vectors::X87)
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
