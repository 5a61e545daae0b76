//! Moves, exchanges, conversions, LEA, XLAT.

use crate::{
    Ctx, Insn, Stop,
    insn::{prefix, segment},
    int_alu::sub_flags,
    operand::{Int, Rm},
};
use x86_defs::exception;

pub fn rm_r<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.reg::<T>(insn.reg);
    D::store(ctx, insn, value)
}

pub fn rm_i<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    D::store(ctx, insn, T::from64(insn.imm))
}

pub fn r_rm<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = S::load::<T>(ctx, insn)?;
    ctx.set_reg(insn.reg, value);
    Ok(())
}

/// MOV between the accumulator and a 64-bit absolute address.
pub fn load_abs<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.load::<T>(insn.segment(), insn.imm)?;
    ctx.set_reg(insn.reg, value);
    Ok(())
}

pub fn store_abs<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.reg::<T>(insn.reg);
    ctx.store(insn.segment(), insn.imm, value)
}

pub fn movzx<From: Int, To: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = S::load::<From>(ctx, insn)?;
    ctx.set_reg(insn.reg, To::from64(value.to64()));
    Ok(())
}

pub fn movsx<From: Int, To: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = S::load::<From>(ctx, insn)?;
    ctx.set_reg(insn.reg, To::from64(value.sext()));
    Ok(())
}

pub fn lea<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let ea = ctx.ea(insn);
    ctx.set_reg(insn.reg, T::from64(ea));
    Ok(())
}

/// XCHG; with memory it is locked, prefix or not.
pub fn xchg_mem<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let new = ctx.reg::<T>(insn.reg);
    let ea = ctx.ea(insn);
    let old = ctx.rmw(insn.segment(), ea, true, |_| new)?;
    ctx.set_reg(insn.reg, old);
    Ok(())
}

pub fn xchg_reg<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (a, b) = (ctx.reg::<T>(insn.rm), ctx.reg::<T>(insn.reg));
    ctx.set_reg(insn.rm, b);
    ctx.set_reg(insn.reg, a);
    Ok(())
}

pub fn xadd<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = ctx.reg::<T>(insn.reg);
    let sum = |a: T| T::from64(a.to64().wrapping_add(b.to64()));
    let a = D::rmw(ctx, insn, sum)?;
    ctx.set_reg(insn.reg, a);
    if D::REGISTER {
        // The sum wins where both operands are one register.
        ctx.set_reg(insn.rm, sum(a));
    }
    crate::int_alu::add_flags(&mut ctx.cpu.flags, a, b, sum(a));
    Ok(())
}

/// CMPXCHG. A memory destination is written in either case (SDM volume 2).
pub fn cmpxchg<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (expected, new) = (ctx.reg::<T>(0), ctx.reg::<T>(insn.reg));
    let old = D::rmw(ctx, insn, |old: T| if old == expected { new } else { old })?;
    if old != expected {
        ctx.set_reg(0, old);
    }
    let r = T::from64(expected.to64().wrapping_sub(old.to64()));
    sub_flags(&mut ctx.cpu.flags, expected, old, r);
    Ok(())
}

/// CMPXCHG with a register destination, which is not written at all when unequal.
pub fn cmpxchg_reg<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (expected, new, old) = (ctx.reg::<T>(0), ctx.reg::<T>(insn.reg), ctx.reg::<T>(insn.rm));
    if old == expected {
        ctx.set_reg(insn.rm, new);
    } else {
        ctx.set_reg(0, old);
    }
    let r = T::from64(expected.to64().wrapping_sub(old.to64()));
    sub_flags(&mut ctx.cpu.flags, expected, old, r);
    Ok(())
}

pub fn cmpxchg8b(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let pair = |ctx: &Ctx<'_>, high: u8, low: u8| {
        u64::from(ctx.reg::<u32>(high)) << 32 | u64::from(ctx.reg::<u32>(low))
    };
    let (expected, new) = (pair(ctx, 2, 0), pair(ctx, 1, 3));
    let ea = ctx.ea(insn);
    let locked = insn.prefix & prefix::LOCK != 0;
    let old =
        ctx.rmw(insn.segment(), ea, locked, |old: u64| if old == expected { new } else { old })?;
    if old != expected {
        ctx.set_reg(0, old as u32);
        ctx.set_reg(2, (old >> 32) as u32);
    }
    ctx.cpu.flags.set_zf(old == expected);
    Ok(())
}

pub fn cmpxchg16b(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let gpr = &ctx.cpu.gpr;
    let expected = u128::from(gpr[2]) << 64 | u128::from(gpr[0]);
    let new = u128::from(gpr[1]) << 64 | u128::from(gpr[3]);
    let ea = ctx.ea(insn);
    let linear =
        ea.wrapping_add(if insn.seg >= 4 { ctx.cpu.segment(insn.segment()).base } else { 0 });
    if linear & 15 != 0 {
        return Err(ctx.cpu.fault_code(exception::GP, 0));
    }
    let old = ctx.cmpxchg16(insn.segment(), ea, expected, new)?;
    if old != expected {
        ctx.cpu.gpr[0] = old as u64;
        ctx.cpu.gpr[2] = (old >> 64) as u64;
    }
    ctx.cpu.flags.set_zf(old == expected);
    Ok(())
}

/// BSWAP; of 16 bits it is undefined, and zero here as on most processors.
pub fn bswap<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.reg::<T>(insn.rm).to64();
    let swapped = match T::BITS {
        64 => value.swap_bytes(),
        32 => u64::from((value as u32).swap_bytes()),
        _ => 0,
    };
    ctx.set_reg(insn.rm, T::from64(swapped));
    Ok(())
}

/// CBW, CWDE, CDQE.
pub fn widen<From: Int, To: Int>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let value = ctx.reg::<From>(0).sext();
    ctx.set_reg(0, To::from64(value));
    Ok(())
}

/// CWD, CDQ, CQO.
pub fn sign<T: Int>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let value = (ctx.reg::<T>(0).sext() as i64 >> 63) as u64;
    ctx.set_reg(2, T::from64(value));
    Ok(())
}

pub fn xlat(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let at = ctx.cpu.gpr[3].wrapping_add(ctx.cpu.gpr[0] & 0xff) & insn.address_mask();
    let value = ctx.load::<u8>(segment(insn.seg), at)?;
    ctx.set_reg(0, value);
    Ok(())
}

/// MOVBE.
pub fn movbe_load<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = S::load::<T>(ctx, insn)?.to64().swap_bytes() >> (64 - T::BITS);
    ctx.set_reg(insn.reg, T::from64(value));
    Ok(())
}

pub fn movbe_store<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.reg::<T>(insn.reg).to64().swap_bytes() >> (64 - T::BITS);
    D::store(ctx, insn, T::from64(value))
}

pub fn cmov<const CODE: u8, T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = S::load::<T>(ctx, insn)?;
    // The upper half is cleared in either case.
    let old = ctx.reg::<T>(insn.reg);
    let new = if ctx.cpu.flags.condition(CODE) { value } else { old };
    ctx.set_reg(insn.reg, new);
    Ok(())
}

pub fn setcc<const CODE: u8, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = u8::from(ctx.cpu.flags.condition(CODE));
    D::store(ctx, insn, value)
}

/// SALC: AL is CF, repeated.
pub fn salc(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let value = if ctx.cpu.flags.cf() { 0xffu8 } else { 0 };
    ctx.set_reg(0, value);
    Ok(())
}

pub fn nop(_: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    Ok(())
}

/// CLFLUSH and its kin: checked like a load, and nothing to do.
pub fn touch(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let ea = ctx.ea(insn);
    ctx.load::<u8>(insn.segment(), ea)?;
    Ok(())
}
