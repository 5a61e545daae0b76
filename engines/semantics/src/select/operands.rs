//! Operand forms.

use super::Picker;
use crate::{CodeSize, insn::NO_REG, insn::RIP_REG, operand::reg_number};
use iced_x86::{OpKind, Register};
use vcpu_state::SegReg;

/// Where an r/m operand is; see [`crate::operand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Reg,
    Flat,
    Any,
}

pub fn segment_number(register: Register) -> u8 {
    let which = match register {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        _ => SegReg::Ds,
    };
    which as u8
}

impl Picker<'_> {
    /// Fills in what the instruction's memory operand, if any, is.
    pub fn memory_operand(&mut self) {
        for n in 0..self.iced.op_count() {
            use OpKind::*;
            let asize = match self.iced.op_kind(n) {
                MemorySegSI | MemorySegDI | MemoryESDI => 2,
                MemorySegESI | MemorySegEDI | MemoryESEDI => 4,
                MemorySegRSI | MemorySegRDI | MemoryESRDI => 8,
                Memory => {
                    self.addressed();
                    continue;
                }
                _ => continue,
            };
            self.insn.asize = asize;
            if !matches!(self.iced.op_kind(n), MemoryESDI | MemoryESEDI | MemoryESRDI) {
                self.insn.seg = self.segment(iced_x86::Register::None);
            }
        }
    }

    fn addressed(&mut self) {
        let (iced, insn) = (self.iced, &mut self.insn);
        let (base, index) = (iced.memory_base(), iced.memory_index());
        insn.asize = match (base, index) {
            (Register::None, Register::None) => match iced.memory_displ_size() {
                2 => 2,
                8 => 8,
                _ => 4,
            },
            // The index of a gather is a vector.
            (Register::None, index) if index.is_gpr() => index.size() as u8,
            (Register::None, _) => insn.asize,
            (base, _) => base.size() as u8,
        };
        let displacement = iced.memory_displacement64();
        insn.disp = displacement as i32;
        match base {
            Register::None => {}
            Register::RIP | Register::EIP => {
                insn.base = RIP_REG;
                insn.disp = displacement.wrapping_sub(iced.next_ip()) as i32;
            }
            base => insn.base = reg_number(base),
        }
        if index.is_gpr() && index.size() > 1 {
            insn.index = reg_number(index);
            insn.scale = iced.memory_index_scale().trailing_zeros() as u8;
        }
        self.insn.seg = self.segment(base);
    }

    /// The operand's segment. In 64-bit mode the prefixes for CS, SS, DS and ES do not even
    /// choose between #SS and #GP.
    pub fn segment(&self, base: Register) -> u8 {
        let named = segment_number(self.iced.memory_segment());
        if self.size != CodeSize::Bits64 || named >= SegReg::Fs as u8 {
            return named;
        }
        let stack = matches!(base, Register::RSP | Register::RBP | Register::ESP | Register::EBP);
        if stack { SegReg::Ss as u8 } else { SegReg::Ds as u8 }
    }

    fn place(&self) -> Place {
        let flat = self.size == CodeSize::Bits64
            && self.insn.asize == 8
            && self.insn.seg < SegReg::Fs as u8;
        if flat { Place::Flat } else { Place::Any }
    }

    /// The place of operand `n`, a general register or memory. A register becomes `rm`.
    pub fn rm(&mut self, n: u32) -> Option<Place> {
        match self.iced.op_kind(n) {
            OpKind::Register => {
                self.insn.rm = self.gpr(n)?;
                Some(Place::Reg)
            }
            OpKind::Memory => Some(self.place()),
            _ => None,
        }
    }

    /// Operand `n`, a general register, becomes `reg`.
    pub fn reg(&mut self, n: u32) -> Option<()> {
        self.insn.reg = self.gpr(n)?;
        Some(())
    }

    /// The number of operand `n`, if it is a general register.
    pub fn gpr(&self, n: u32) -> Option<u8> {
        let register = self.iced.op_register(n);
        let general = self.iced.op_kind(n) == OpKind::Register && register.is_gpr();
        general.then(|| reg_number(register))
    }

    /// Width of operand `n` in bytes.
    pub fn width(&self, n: u32) -> u8 {
        match self.iced.op_kind(n) {
            OpKind::Register => self.iced.op_register(n).size() as u8,
            _ => self.iced.memory_size().size() as u8,
        }
    }

    pub fn is_memory(&self, n: u32) -> bool {
        self.iced.op_kind(n) == OpKind::Memory
    }

    pub fn is_immediate(&self, n: u32) -> bool {
        use OpKind::*;
        matches!(
            self.iced.op_kind(n),
            Immediate8
                | Immediate8_2nd
                | Immediate16
                | Immediate32
                | Immediate64
                | Immediate8to16
                | Immediate8to32
                | Immediate8to64
                | Immediate32to64
        )
    }

    /// Operand `n` is an immediate, which becomes `imm`.
    pub fn imm(&mut self, n: u32) -> Option<()> {
        if !self.is_immediate(n) {
            return None;
        }
        self.insn.imm = self.iced.immediate(n);
        Some(())
    }

    /// Operand 0 is a near branch's target.
    pub fn branch(&mut self) -> Option<()> {
        self.insn.osize = match self.iced.op0_kind() {
            OpKind::NearBranch16 => 2,
            OpKind::NearBranch32 => 4,
            OpKind::NearBranch64 => 8,
            _ => return None,
        };
        self.insn.imm = self.iced.near_branch_target().wrapping_sub(self.iced.next_ip());
        Some(())
    }

    /// The operands are one register.
    pub fn same_registers(&self) -> bool {
        self.insn.rm == self.insn.reg && self.insn.rm != NO_REG
    }
}
