//! Multiplication and division.

use crate::{
    Ctx, Insn, Stop,
    operand::{Int, Rm},
};
use x86_defs::exception;

/// A product's halves into AX, or DX:AX and its wider forms.
#[inline(always)]
fn set_wide<T: Int>(ctx: &mut Ctx<'_>, wide: u128) {
    if T::BITS == 8 {
        ctx.set_reg(0, wide as u16);
    } else {
        ctx.set_reg(0, T::from64(wide as u64));
        ctx.set_reg(2, T::from64((wide >> T::BITS) as u64));
    }
}

#[inline(always)]
fn wide<T: Int>(ctx: &Ctx<'_>) -> u128 {
    if T::BITS == 8 {
        u128::from(ctx.reg::<u16>(0))
    } else {
        u128::from(ctx.reg::<T>(2).to64()) << T::BITS | u128::from(ctx.reg::<T>(0).to64())
    }
}

pub fn mul<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = S::load::<T>(ctx, insn)?.to64();
    let product = u128::from(ctx.reg::<T>(0).to64()) * u128::from(b);
    set_wide::<T>(ctx, product);
    let over = product >> T::BITS != 0;
    ctx.cpu.flags.set_result(T::from64(product as u64).sext(), over, over);
    Ok(())
}

/// The signed product, and whether it does not fit T.
#[inline(always)]
fn signed<T: Int>(a: T, b: T) -> (i128, bool) {
    let product = i128::from(a.sext() as i64) * i128::from(b.sext() as i64);
    (product, product != i128::from(T::from64(product as u64).sext() as i64))
}

pub fn imul<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = S::load::<T>(ctx, insn)?;
    let (product, over) = signed(ctx.reg::<T>(0), b);
    set_wide::<T>(ctx, product as u128);
    ctx.cpu.flags.set_result(T::from64(product as u64).sext(), over, over);
    Ok(())
}

pub fn imul_r_rm<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = S::load::<T>(ctx, insn)?;
    let (product, over) = signed(ctx.reg::<T>(insn.reg), b);
    ctx.set_reg(insn.reg, T::from64(product as u64));
    ctx.cpu.flags.set_result(T::from64(product as u64).sext(), over, over);
    Ok(())
}

pub fn imul_r_rm_i<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = S::load::<T>(ctx, insn)?;
    let (product, over) = signed(b, T::from64(insn.imm));
    ctx.set_reg(insn.reg, T::from64(product as u64));
    ctx.cpu.flags.set_result(T::from64(product as u64).sext(), over, over);
    Ok(())
}

/// Quotient and remainder into AL and AH, or AX and DX and their wider forms.
#[inline(always)]
fn set_divided<T: Int>(ctx: &mut Ctx<'_>, quotient: u64, remainder: u64) {
    ctx.set_reg(0, T::from64(quotient));
    ctx.set_reg(if T::BITS == 8 { 0x10 } else { 2 }, T::from64(remainder));
}

/// Flags are undefined after it, and stay.
pub fn div<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = u128::from(S::load::<T>(ctx, insn)?.to64());
    let a = wide::<T>(ctx);
    if b == 0 || (a / b) >> T::BITS != 0 {
        return Err(ctx.cpu.fault(exception::DE));
    }
    // Most dividends fit 64 bits, where dividing costs a fraction.
    let (q, r) = match (u64::try_from(a), b as u64) {
        (Ok(a), b) => (a / b, a % b),
        (Err(_), _) => ((a / b) as u64, (a % b) as u64),
    };
    set_divided::<T>(ctx, q, r);
    Ok(())
}

pub fn idiv<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = i128::from(S::load::<T>(ctx, insn)?.sext() as i64);
    let unused = 128 - if T::BITS == 8 { 16 } else { 2 * T::BITS };
    let a = (wide::<T>(ctx) << unused) as i128 >> unused;
    let (Some(q), Some(r)) = (a.checked_div(b), a.checked_rem(b)) else {
        return Err(ctx.cpu.fault(exception::DE));
    };
    if q != i128::from(T::from64(q as u64).sext() as i64) {
        return Err(ctx.cpu.fault(exception::DE));
    }
    set_divided::<T>(ctx, q as u64, r as u64);
    Ok(())
}

/// MULX: no flags; the high half goes to the first operand, and wins if both are one register.
pub fn mulx(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let size = insn.osize;
    let b = ctx.read_op(insn, 2, size)?;
    let iced = insn.iced();
    let high = crate::operand::reg_number(iced.op0_register());
    let low = crate::operand::reg_number(iced.op1_register());
    if size == 8 {
        let product = u128::from(ctx.cpu.gpr[2]) * u128::from(b);
        ctx.set_reg(low, product as u64);
        ctx.set_reg(high, (product >> 64) as u64);
    } else {
        let product = (ctx.cpu.gpr[2] & 0xffff_ffff).wrapping_mul(b);
        ctx.set_reg(low, product as u32);
        ctx.set_reg(high, (product >> 32) as u32);
    }
    Ok(())
}
