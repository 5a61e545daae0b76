//! Operands: registers of every width, effective addresses, and the three places that an r/m
//! operand can be.

use crate::{
    Ctx, Insn, Stop,
    insn::{RIP_REG, prefix, segment},
};
use guest_mem::Plain;
use iced_x86::{OpKind, Register};

/// Operand types of integer instructions.
pub trait Int: Plain + Ord + Send + 'static {
    const BITS: u32;
    const BYTES: u8 = (Self::BITS / 8) as u8;
    fn to64(self) -> u64;
    /// Truncates.
    fn from64(value: u64) -> Self;
    /// Sign-extends.
    fn sext(self) -> u64;
}

macro_rules! int {
    ($ty:ty, $signed:ty) => {
        impl Int for $ty {
            const BITS: u32 = <$ty>::BITS;
            #[inline(always)]
            fn to64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn from64(value: u64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }
        }
    };
}

int!(u8, i8);
int!(u16, i16);
int!(u32, i32);
int!(u64, i64);

impl Ctx<'_> {
    /// A register as instructions of this width see it; see [`Insn::reg`] for byte registers.
    #[inline(always)]
    pub fn reg<T: Int>(&self, number: u8) -> T {
        if T::BITS == 8 {
            let shift = u32::from(number >> 4 & 1) * 8;
            T::from64(self.cpu.gpr[usize::from(number & 15)] >> shift)
        } else {
            T::from64(self.cpu.gpr[usize::from(number & 31)])
        }
    }

    /// Writes a register: 32-bit writes clear the upper half, narrower ones keep the rest (SDM
    /// volume 1, 3.4.1.1).
    #[inline(always)]
    pub fn set_reg<T: Int>(&mut self, number: u8, value: T) {
        let at = &mut self.cpu.gpr[usize::from(number & 15)];
        *at = match T::BITS {
            8 => {
                let shift = u32::from(number >> 4 & 1) * 8;
                *at & !(0xff << shift) | value.to64() << shift
            }
            16 => *at & !0xffff | value.to64(),
            _ => value.to64(),
        };
    }

    /// The effective address without the address-size mask.
    #[inline(always)]
    pub fn raw_ea(&self, insn: &Insn) -> u64 {
        let gpr = &self.cpu.gpr;
        let base =
            if insn.base == RIP_REG { self.cpu.rip } else { gpr[usize::from(insn.base & 31)] };
        let index = gpr[usize::from(insn.index & 31)] << (insn.scale & 3);
        base.wrapping_add(index).wrapping_add(insn.disp as i64 as u64)
    }

    /// The effective address of the memory operand (the offset in its segment).
    #[inline]
    pub fn ea(&self, insn: &Insn) -> u64 {
        self.raw_ea(insn) & insn.address_mask()
    }

    /// Reads operand `n` of a general-register, memory or immediate kind, `size` bytes wide,
    /// zero-extended.
    pub fn read_op(&mut self, insn: &Insn, n: u32, size: u8) -> Result<u64, Stop> {
        let iced = insn.iced();
        match iced.op_kind(n) {
            OpKind::Register => {
                let number = reg_number(iced.op_register(n));
                Ok(match size {
                    1 => u64::from(self.reg::<u8>(number)),
                    2 => u64::from(self.reg::<u16>(number)),
                    4 => u64::from(self.reg::<u32>(number)),
                    _ => self.reg::<u64>(number),
                })
            }
            OpKind::Memory => {
                let ea = self.ea(insn);
                self.load_sized(insn.seg, ea, size)
            }
            _ => Ok(iced.immediate(n)),
        }
    }

    /// Writes operand `n`, a general register or memory.
    pub fn write_op(&mut self, insn: &Insn, n: u32, size: u8, value: u64) -> Result<(), Stop> {
        let iced = insn.iced();
        if iced.op_kind(n) == OpKind::Register {
            let number = reg_number(iced.op_register(n));
            match size {
                1 => self.set_reg(number, value as u8),
                2 => self.set_reg(number, value as u16),
                4 => self.set_reg(number, value as u32),
                _ => self.set_reg(number, value),
            }
            return Ok(());
        }
        let ea = self.ea(insn);
        self.store_sized(insn.seg, ea, size, value)
    }

    /// Loads `size` (1, 2, 4, 8) bytes, zero-extended.
    pub fn load_sized(&mut self, seg: u8, ea: u64, size: u8) -> Result<u64, Stop> {
        let seg = segment(seg);
        Ok(match size {
            1 => u64::from(self.load::<u8>(seg, ea)?),
            2 => u64::from(self.load::<u16>(seg, ea)?),
            4 => u64::from(self.load::<u32>(seg, ea)?),
            _ => self.load::<u64>(seg, ea)?,
        })
    }

    pub fn store_sized(&mut self, seg: u8, ea: u64, size: u8, value: u64) -> Result<(), Stop> {
        let seg = segment(seg);
        match size {
            1 => self.store(seg, ea, value as u8),
            2 => self.store(seg, ea, value as u16),
            4 => self.store(seg, ea, value as u32),
            _ => self.store(seg, ea, value),
        }
    }
}

/// The number by which [`Ctx::reg`] knows a general register.
pub fn reg_number(register: Register) -> u8 {
    match register {
        Register::AH => 0x10,
        Register::CH => 0x11,
        Register::DH => 0x12,
        Register::BH => 0x13,
        _ if register.is_gpr() => register.full_register().number() as u8 & 15,
        _ => 0,
    }
}

/// Where an r/m operand is.
pub trait Rm {
    /// The register [`Insn::rm`], not memory.
    const REGISTER: bool = false;
    fn load<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<T, Stop>;
    fn store<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, value: T) -> Result<(), Stop>;
    /// Stores `f` of the old value and returns the old value; `f` may be called repeatedly.
    fn rmw<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, f: impl FnMut(T) -> T) -> Result<T, Stop>;
}

/// The register [`Insn::rm`].
#[derive(Debug)]
pub struct Reg;
/// Memory in 64-bit mode, of a segment without base, with 64-bit addresses.
#[derive(Debug)]
pub struct Flat;
/// Memory in whatever mode.
#[derive(Debug)]
pub struct Any;

impl Rm for Reg {
    const REGISTER: bool = true;

    #[inline(always)]
    fn load<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<T, Stop> {
        Ok(ctx.reg(insn.rm))
    }

    #[inline(always)]
    fn store<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, value: T) -> Result<(), Stop> {
        ctx.set_reg(insn.rm, value);
        Ok(())
    }

    #[inline(always)]
    fn rmw<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, mut f: impl FnMut(T) -> T) -> Result<T, Stop> {
        let old = ctx.reg(insn.rm);
        ctx.set_reg(insn.rm, f(old));
        Ok(old)
    }
}

impl Rm for Flat {
    #[inline(always)]
    fn load<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<T, Stop> {
        let ea = ctx.raw_ea(insn);
        ctx.load_flat(insn.segment(), ea)
    }

    #[inline(always)]
    fn store<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, value: T) -> Result<(), Stop> {
        let ea = ctx.raw_ea(insn);
        ctx.store_flat(insn.segment(), ea, value)
    }

    #[inline(always)]
    fn rmw<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, f: impl FnMut(T) -> T) -> Result<T, Stop> {
        let ea = ctx.raw_ea(insn);
        ctx.rmw_flat(insn.segment(), ea, insn.prefix & prefix::LOCK != 0, f)
    }
}

impl Rm for Any {
    #[inline(always)]
    fn load<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<T, Stop> {
        let ea = ctx.ea(insn);
        ctx.load(insn.segment(), ea)
    }

    #[inline(always)]
    fn store<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, value: T) -> Result<(), Stop> {
        let ea = ctx.ea(insn);
        ctx.store(insn.segment(), ea, value)
    }

    #[inline(always)]
    fn rmw<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn, f: impl FnMut(T) -> T) -> Result<T, Stop> {
        let ea = ctx.ea(insn);
        ctx.rmw(insn.segment(), ea, insn.prefix & prefix::LOCK != 0, f)
    }
}
