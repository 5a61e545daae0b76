//! The decoded form of an instruction: what hot handlers need, in few bytes.

use crate::{Ctx, Stop};
use vcpu_state::SegReg;

/// Executes one instruction. `Cpu::rip` is already that of the next one.
pub type Handler = fn(&mut Ctx<'_>, &Insn) -> Result<(), Stop>;

/// No register: reads as zero.
pub const NO_REG: u8 = 16;
/// RIP as the base of a memory operand.
pub const RIP_REG: u8 = 17;

/// Bits of [`Insn::prefix`].
pub mod prefix {
    pub const LOCK: u8 = 1;
    /// F3 as a repeat prefix.
    pub const REP: u8 = 2;
    /// F2.
    pub const REPNE: u8 = 4;
}

#[derive(Clone, Debug)]
pub struct Insn {
    pub handler: Handler,
    /// Immediate, sign-extended as the instruction does it; or the target's displacement from
    /// the next instruction, of a near branch; or a 64-bit absolute address.
    pub imm: u64,
    /// What rare handlers need.
    pub cold: Option<Box<Cold>>,
    /// Displacement of the memory operand. Of relative branches: whoever keeps decoded
    /// instructions may note here where the target is; zero at first.
    pub disp: i32,
    /// Offset of the next instruction from the beginning of the block.
    pub end: u16,
    pub len: u8,
    /// First register operand. Of byte registers, bit 4 set means AH, CH, DH or BH: bits 8 to
    /// 15 of the register in bits 0 to 1.
    pub reg: u8,
    /// Second register operand.
    pub rm: u8,
    pub base: u8,
    pub index: u8,
    /// Shift count of the index.
    pub scale: u8,
    /// Segment of the memory operand, as [`SegReg`].
    pub seg: u8,
    /// Address size in bytes: 2, 4, 8.
    pub asize: u8,
    /// Operand size in bytes.
    pub osize: u8,
    pub prefix: u8,
}

/// The whole instruction, and room for what executes it on the host's own units.
#[derive(Clone, Debug)]
pub struct Cold {
    pub iced: iced_x86::Instruction,
    /// See [`crate::vec::Selected`].
    pub stub: Option<emit::Stub>,
    pub fop: u16,
}

impl Insn {
    /// The decoder's view; of an instruction whose handler was selected without it, invalid.
    pub fn iced(&self) -> &iced_x86::Instruction {
        static NONE: std::sync::LazyLock<iced_x86::Instruction> =
            std::sync::LazyLock::new(iced_x86::Instruction::default);
        self.cold.as_ref().map_or_else(|| &*NONE, |cold| &cold.iced)
    }

    #[inline(always)]
    pub fn segment(&self) -> SegReg {
        segment(self.seg)
    }

    /// Mask of effective addresses.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        match self.asize {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => !0,
        }
    }
}

/// By number, as [`SegReg`] counts.
#[inline(always)]
pub fn segment(number: u8) -> SegReg {
    match number & 7 {
        0 => SegReg::Es,
        1 => SegReg::Cs,
        2 => SegReg::Ss,
        3 => SegReg::Ds,
        4 => SegReg::Fs,
        5 => SegReg::Gs,
        6 => SegReg::Ldtr,
        _ => SegReg::Tr,
    }
}

/// An instruction of more than 15 bytes (SDM volume 3, 6.15, interrupt 13).
pub fn too_long() -> Insn {
    fn raise(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
        Err(ctx.cpu.fault_code(x86_defs::exception::GP, 0))
    }
    Insn {
        handler: raise,
        imm: 0,
        cold: None,
        disp: 0,
        end: 0,
        len: x86_defs::MAX_INSTRUCTION_LEN as u8,
        reg: NO_REG,
        rm: NO_REG,
        base: NO_REG,
        index: NO_REG,
        scale: 0,
        seg: 3,
        asize: 8,
        osize: 0,
        prefix: 0,
    }
}
