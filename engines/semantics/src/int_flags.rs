//! CLC, STC, CMC, CLD, STD, LAHF, SAHF, RDRAND, RDSEED.

use crate::{Ctx, Insn, Stop, operand::reg_number};
use x86_defs::rflags;

/// CLC (0), STC (1), CMC (2).
pub fn carry<const KIND: u8>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let cf = match KIND {
        0 => false,
        1 => true,
        _ => !ctx.cpu.flags.cf(),
    };
    ctx.cpu.flags.set_cf(cf);
    Ok(())
}

pub fn cld(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.cpu.rflags &= !rflags::DF;
    Ok(())
}

pub fn std(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.cpu.rflags |= rflags::DF;
    Ok(())
}

pub fn lahf(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let value = (ctx.cpu.flags.bits() | rflags::FIXED) as u8;
    ctx.set_reg(0x10, value);
    Ok(())
}

pub fn sahf(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let of = ctx.cpu.flags.bits() & rflags::OF;
    let ah = u64::from(ctx.reg::<u8>(0x10));
    ctx.cpu.flags.set_bits(of | ah);
    Ok(())
}

/// RDRAND and RDSEED: the host's random numbers.
pub fn random(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.random();
    let number = reg_number(insn.iced().op0_register());
    match insn.osize {
        2 => ctx.set_reg(number, value as u16),
        4 => ctx.set_reg(number, value as u32),
        _ => ctx.set_reg(number, value),
    }
    ctx.cpu.flags.set_bits(rflags::CF);
    Ok(())
}
