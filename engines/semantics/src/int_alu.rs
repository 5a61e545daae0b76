//! Binary and unary arithmetic and logic.

use crate::{
    Ctx, Flags, Insn, Stop,
    operand::{Int, Rm},
};

/// A two-operand operation. `carry` is CF before it.
pub trait Alu {
    /// CMP and TEST write flags only.
    const WRITES: bool = true;
    fn value(a: u64, b: u64, carry: bool) -> u64;
    /// `result` is truncated to the operand size, as `a` and `b` are.
    fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T);
}

macro_rules! alu {
    ($name:ident, $writes:expr, |$a:ident, $b:ident, $c:ident| $value:expr, $kind:ident) => {
        pub struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn value($a: u64, $b: u64, $c: bool) -> u64 {
                $value
            }
            #[inline(always)]
            fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
                $kind(flags, a, b, result);
            }
        }
    };
}

#[inline(always)]
pub fn add_flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
    let (a, b, r) = (a.to64(), b.to64(), result.to64());
    flags.set_arith(result.sext(), (a & b) | ((a | b) & !r), T::BITS);
}

#[inline(always)]
pub fn sub_flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
    let (a, b, r) = (a.to64(), b.to64(), result.to64());
    flags.set_arith(result.sext(), (!a & b) | ((!a | b) & r), T::BITS);
}

#[inline(always)]
fn logic_flags<T: Int>(flags: &mut Flags, _: T, _: T, result: T) {
    flags.set_logic(result.sext());
}

alu!(Add, true, |a, b, _c| a.wrapping_add(b), add_flags);
alu!(Or, true, |a, b, _c| a | b, logic_flags);
alu!(Adc, true, |a, b, c| a.wrapping_add(b).wrapping_add(u64::from(c)), add_flags);
alu!(Sbb, true, |a, b, c| a.wrapping_sub(b).wrapping_sub(u64::from(c)), sub_flags);
alu!(And, true, |a, b, _c| a & b, logic_flags);
alu!(Sub, true, |a, b, _c| a.wrapping_sub(b), sub_flags);
alu!(Xor, true, |a, b, _c| a ^ b, logic_flags);
alu!(Cmp, false, |a, b, _c| a.wrapping_sub(b), sub_flags);
alu!(Test, false, |a, b, _c| a & b, logic_flags);

#[inline(always)]
fn rm_with<Op: Alu, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn, b: T) -> Result<(), Stop> {
    let carry = ctx.cpu.flags.cf();
    let value = |a: T| T::from64(Op::value(a.to64(), b.to64(), carry));
    let a = if Op::WRITES { D::rmw(ctx, insn, value)? } else { D::load(ctx, insn)? };
    Op::flags(&mut ctx.cpu.flags, a, b, value(a));
    Ok(())
}

/// `op r/m, reg`.
pub fn rm_r<Op: Alu, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = ctx.reg::<T>(insn.reg);
    rm_with::<Op, T, D>(ctx, insn, b)
}

/// `op r/m, imm`.
pub fn rm_i<Op: Alu, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    rm_with::<Op, T, D>(ctx, insn, T::from64(insn.imm))
}

/// `op reg, r/m`.
pub fn r_rm<Op: Alu, T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let b = S::load::<T>(ctx, insn)?;
    let a = ctx.reg::<T>(insn.reg);
    let r = T::from64(Op::value(a.to64(), b.to64(), ctx.cpu.flags.cf()));
    if Op::WRITES {
        ctx.set_reg(insn.reg, r);
    }
    Op::flags(&mut ctx.cpu.flags, a, b, r);
    Ok(())
}

/// `xor r, r`, `sub r, r` of the same register.
pub fn zero<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.set_reg(insn.rm, T::default());
    ctx.cpu.flags.set_logic(0);
    Ok(())
}

/// INC: CF stays.
pub fn inc<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let a = D::rmw(ctx, insn, |a: T| T::from64(a.to64().wrapping_add(1)))?;
    let cf = ctx.cpu.flags.cf();
    let r = T::from64(a.to64().wrapping_add(1));
    add_flags(&mut ctx.cpu.flags, a, T::from64(1), r);
    ctx.cpu.flags.set_cf(cf);
    Ok(())
}

/// DEC: CF stays.
pub fn dec<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let a = D::rmw(ctx, insn, |a: T| T::from64(a.to64().wrapping_sub(1)))?;
    let cf = ctx.cpu.flags.cf();
    let r = T::from64(a.to64().wrapping_sub(1));
    sub_flags(&mut ctx.cpu.flags, a, T::from64(1), r);
    ctx.cpu.flags.set_cf(cf);
    Ok(())
}

pub fn neg<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let a = D::rmw(ctx, insn, |a: T| T::from64(a.to64().wrapping_neg()))?;
    sub_flags(&mut ctx.cpu.flags, T::default(), a, T::from64(a.to64().wrapping_neg()));
    Ok(())
}

pub fn not<T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    D::rmw(ctx, insn, |a: T| T::from64(!a.to64()))?;
    Ok(())
}
