//! VMASKMOVPS and its kin, MASKMOVDQU and MASKMOVQ in software: elements whose mask is clear are
//! not accessed, and cannot fault.
//!
//! The elements stand one after the other from the effective address of the memory operand, which
//! is (E/R)DI in the data segment for MASKMOVDQU and MASKMOVQ. A load reads all of
//! [`MaskedMove::active`] and then calls [`MaskedMove::finish_load`]; a store probes them all,
//! writes them, and then calls [`MaskedMove::finish_store`].

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use vcpu_state::FpuState;
use x86_defs::xsave;

use crate::{lanes, x87};

/// A decoded masked move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedMove {
    /// Bytes of an element: 1, 4 or 8.
    pub element_size: usize,
    /// How many elements the memory operand has: 2 to 16.
    pub count: usize,
    pub stores: bool,
    /// It is MASKMOVQ, on MMX registers: an x87 exception that is pending comes first.
    pub mmx: bool,
    /// It has a VEX prefix.
    pub vex: bool,
    mask: usize,
    /// Source or destination.
    data: usize,
}

impl MaskedMove {
    /// `None` if it is another instruction.
    pub fn of(insn: &Instruction) -> Option<Self> {
        let element_size = match insn.mnemonic() {
            Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4,
            Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => 8,
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Maskmovq => 1,
            _ => return None,
        };
        let mmx = insn.mnemonic() == Mnemonic::Maskmovq;
        let vex = !matches!(insn.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq);
        let (stores, data, mask) = if element_size == 1 {
            // The first operand is the memory at (E/R)DI.
            (true, insn.op1_register(), insn.op2_register())
        } else if insn.op0_kind() == OpKind::Memory {
            (true, insn.op2_register(), insn.op1_register())
        } else {
            (false, insn.op0_register(), insn.op1_register())
        };
        let number = |register: Register| {
            let number = register.number();
            (register != Register::None && number < 16).then_some(number)
        };
        let len = if mmx {
            8
        } else if data.is_ymm() {
            32
        } else {
            16
        };
        Some(Self {
            element_size,
            count: len / element_size,
            stores,
            mmx,
            vex,
            mask: number(mask)?,
            data: number(data)?,
        })
    }

    /// The elements to access, as a set: bit n for element n.
    pub fn active(&self, fpu: &FpuState) -> u32 {
        (0..self.count).fold(0, |all, n| {
            let active = if self.mmx {
                mmx_byte(fpu, self.mask, n) & 0x80 != 0
            } else {
                lanes::sign(fpu, self.mask, self.element_size, n)
            };
            all | u32::from(active) << n
        })
    }

    /// Element `n` of a store's source.
    pub fn element(&self, fpu: &FpuState, n: usize) -> u64 {
        if self.mmx {
            u64::from(mmx_byte(fpu, self.data, n & 7))
        } else {
            lanes::get(fpu, self.data, self.element_size, n)
        }
    }

    /// Sets a load's destination; elements that were not read become zero.
    pub fn finish_load(&self, fpu: &mut FpuState, values: &[u64; 8]) {
        let active = self.active(fpu);
        // The mask may be the destination.
        fpu.set_xmm(self.data, 0);
        fpu.set_ymm_hi(self.data, 0);
        for (n, &value) in values.iter().enumerate().take(self.count) {
            if active >> n & 1 != 0 {
                lanes::set(fpu, self.data, self.element_size, n, value);
            }
        }
    }

    /// What MASKMOVQ does to the x87 unit; nothing for the others.
    pub fn finish_store(&self, fpu: &mut FpuState) {
        if self.mmx {
            x87::enter_mmx(fpu);
        }
    }
}

/// Byte `n` of an MMX register.
fn mmx_byte(fpu: &FpuState, register: usize, n: usize) -> u8 {
    let st = (register + 8 - x87::top(fpu)) & 7;
    fpu.area[xsave::ST + 16 * st + (n & 7)]
}
