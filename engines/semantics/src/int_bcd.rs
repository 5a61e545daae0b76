//! Decimal adjustment (SDM volume 2, AAA to DAS), outside 64-bit mode.

use crate::{Ctx, Insn, Stop};
use x86_defs::{exception, rflags};

fn set(ctx: &mut Ctx<'_>, al: u8, af: bool, cf: bool) {
    ctx.set_reg(0, al);
    ctx.cpu.flags.set_logic(al as i8 as u64);
    let bits = ctx.cpu.flags.bits();
    let af = if af { rflags::AF } else { 0 };
    ctx.cpu.flags.set_bits(bits | af | u64::from(cf));
}

pub fn daa(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let old = ctx.reg::<u8>(0);
    let (cf, af) = (ctx.cpu.flags.cf(), ctx.cpu.flags.af());
    let af = old & 15 > 9 || af;
    let cf = old > 0x99 || cf;
    let add = if af { 6 } else { 0 } + if cf { 0x60 } else { 0 };
    set(ctx, old.wrapping_add(add), af, cf);
    Ok(())
}

pub fn das(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let old = ctx.reg::<u8>(0);
    let (cf, af) = (ctx.cpu.flags.cf(), ctx.cpu.flags.af());
    let af = old & 15 > 9 || af;
    let high = old > 0x99 || cf;
    let sub = if af { 6 } else { 0 } + if high { 0x60 } else { 0 };
    // A borrow of the low digit's adjustment counts, too.
    let cf = high || (af && old < 6);
    set(ctx, old.wrapping_sub(sub), af, cf);
    Ok(())
}

fn ascii(ctx: &mut Ctx<'_>, adjust: u16) {
    let ax = ctx.reg::<u16>(0);
    let yes = ax & 15 > 9 || ctx.cpu.flags.af();
    let ax = if yes { ax.wrapping_add(adjust) } else { ax };
    set(ctx, ax as u8, yes, yes);
    ctx.set_reg(0, ax & 0xff0f);
}

pub fn aaa(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ascii(ctx, 0x106);
    Ok(())
}

pub fn aas(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ascii(ctx, 0x106u16.wrapping_neg());
    Ok(())
}

pub fn aam(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (al, base) = (ctx.reg::<u8>(0), insn.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(ctx.cpu.fault(exception::DE));
    };
    set(ctx, low, false, false);
    ctx.set_reg(0x10, high);
    Ok(())
}

pub fn aad(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (al, ah) = (ctx.reg::<u8>(0), ctx.reg::<u8>(0x10));
    let value = ah.wrapping_mul(insn.imm as u8).wrapping_add(al);
    set(ctx, value, false, false);
    ctx.set_reg(0x10, 0u8);
    Ok(())
}
