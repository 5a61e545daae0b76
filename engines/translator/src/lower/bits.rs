//! BT, BTS, BTR and BTC with the number of a bit in a register, of a string of bits in memory
//! (SDM volume 2, BT: the number may be negative, and reach beyond the operand).

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::Mem,
    probe::Place,
    regs::{self, SA, SB, SC},
    state::{field, gpr},
};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// The operand is such a string.
pub(super) fn is_string(insn: &Instruction) -> bool {
    use Mnemonic::{Bt, Btc, Btr, Bts};
    matches!(insn.mnemonic(), Bt | Bts | Btr | Btc)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register
}

impl Lowerer<'_> {
    /// The unit that has the bit is addressed, and what is executed is the instruction itself,
    /// with the number of the bit in the unit.
    pub(super) fn bit_string(&mut self, insn: &Instruction) -> Done {
        let size = insn.memory_size().size();
        let short = [insn.memory_base(), insn.memory_index()].iter().any(|r| r.is_gpr32());
        if self.narrow || short || !matches!(size, 4 | 8) {
            return Err(Untranslated);
        }
        let wide = size == 8;
        let number = regs::number(insn.op1_register()).ok_or(Untranslated)?;
        self.address(insn)?;
        self.scratch.lost(SB);
        self.scratch.lost(SC);
        self.bit_number(number);
        if !wide {
            self.asm.movsxd_register(SC, SC);
        }
        self.asm.mov_imm32(SB, if wide { 6 } else { 5 });
        self.asm.sarx(SC, SC, SB);
        self.asm.lea(SA, Mem::indexed(SA, SC, if wide { 3 } else { 2 }, 0), true);
        let writes = insn.mnemonic() != Mnemonic::Bt;
        self.probe(writes, size);
        self.bit_number(number);
        self.asm.pext(SC, SC, if wide { field!(below_64) } else { field!(below_32) });
        let mut own = *insn;
        own.set_op1_register(regs::name(SC, size));
        own.set_segment_prefix(Register::None);
        let host = Place::SA.host();
        if writes {
            own.set_memory_base(regs::name(SA, 8));
            own.set_memory_index(regs::name(SB, 8));
            own.set_memory_index_scale(1);
            own.set_memory_displacement64(0);
            own.set_memory_displ_size(0);
        } else {
            // Several times as fast as with the operand in memory.
            match wide {
                true => self.asm.load(SB, host),
                false => self.asm.load32(SB, host),
            }
            own.set_op0_kind(OpKind::Register);
            own.set_op0_register(regs::name(SB, size));
        }
        self.encode(&own)
    }

    fn bit_number(&mut self, guest: u8) {
        match regs::home(guest) {
            Some(host) => self.asm.mov(SC, host, true),
            None => self.asm.load(SC, gpr(guest)),
        }
    }
}
