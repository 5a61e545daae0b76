//! Shifts and rotates (SDM volume 2: SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD, SARX...).

use crate::{
    Ctx, Insn, Stop,
    operand::{Int, Rm},
};

/// What an operation does to the flags.
pub enum Effect {
    /// All status flags, from the result.
    All {
        cf: bool,
        of: bool,
    },
    /// CF and OF.
    Carry {
        cf: bool,
        of: bool,
    },
    None,
}

pub trait Shift {
    /// `count` is masked to 5 or 6 bits and not zero; the result may have bits beyond T.
    fn run<T: Int>(a: T, count: u32, carry: bool) -> (u64, Effect);
}

fn top<T: Int>(value: u64) -> bool {
    value >> (T::BITS - 1) & 1 != 0
}

pub struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn run<T: Int>(a: T, count: u32, _: bool) -> (u64, Effect) {
        // 8- and 16-bit operands can be shifted by more than their width.
        let wide = u128::from(a.to64()) << count;
        let cf = wide >> T::BITS & 1 != 0;
        let r = wide as u64;
        (r, Effect::All { cf, of: top::<T>(r) != cf })
    }
}

pub struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn run<T: Int>(a: T, count: u32, _: bool) -> (u64, Effect) {
        let before = a.to64() >> (count - 1);
        (before >> 1, Effect::All { cf: before & 1 != 0, of: top::<T>(a.to64()) })
    }
}

pub struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn run<T: Int>(a: T, count: u32, _: bool) -> (u64, Effect) {
        let before = a.sext() as i64 >> (count - 1);
        ((before >> 1) as u64, Effect::All { cf: before & 1 != 0, of: false })
    }
}

pub struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn run<T: Int>(a: T, count: u32, _: bool) -> (u64, Effect) {
        let (a, n) = (a.to64(), count % T::BITS);
        let r = if n == 0 { a } else { T::from64(a << n | a >> (T::BITS - n)).to64() };
        let cf = r & 1 != 0;
        (r, Effect::Carry { cf, of: top::<T>(r) != cf })
    }
}

pub struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn run<T: Int>(a: T, count: u32, _: bool) -> (u64, Effect) {
        let (a, n) = (a.to64(), count % T::BITS);
        let r = if n == 0 { a } else { T::from64(a >> n | a << (T::BITS - n)).to64() };
        (r, Effect::Carry { cf: top::<T>(r), of: top::<T>(r) != top::<T>(r << 1) })
    }
}

pub struct Rcl;
impl Shift for Rcl {
    fn run<T: Int>(a: T, count: u32, carry: bool) -> (u64, Effect) {
        let n = count % (T::BITS + 1);
        if n == 0 {
            return (a.to64(), Effect::None);
        }
        let wide = u128::from(carry) << T::BITS | u128::from(a.to64());
        let turned = wide << n | wide >> (T::BITS + 1 - n);
        let (r, cf) = (turned as u64, turned >> T::BITS & 1 != 0);
        (r, Effect::Carry { cf, of: top::<T>(r) != cf })
    }
}

pub struct Rcr;
impl Shift for Rcr {
    fn run<T: Int>(a: T, count: u32, carry: bool) -> (u64, Effect) {
        let n = count % (T::BITS + 1);
        if n == 0 {
            return (a.to64(), Effect::None);
        }
        let wide = u128::from(carry) << T::BITS | u128::from(a.to64());
        let turned = wide >> n | wide << (T::BITS + 1 - n);
        let (r, cf) = (turned as u64, turned >> T::BITS & 1 != 0);
        (r, Effect::Carry { cf, of: top::<T>(r) != top::<T>(r << 1) })
    }
}

#[inline(always)]
fn mask<T: Int>() -> u32 {
    if T::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn shift<Op: Shift, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn, count: u64) -> Result<(), Stop> {
    let count = count as u32 & mask::<T>();
    if count == 0 {
        // Nothing changes but the upper half of a 32-bit register.
        D::rmw(ctx, insn, |a: T| a)?;
        return Ok(());
    }
    let carry = ctx.cpu.flags.cf();
    let a = D::rmw(ctx, insn, |a: T| T::from64(Op::run(a, count, carry).0))?;
    let (r, effect) = Op::run(a, count, carry);
    match effect {
        Effect::All { cf, of } => ctx.cpu.flags.set_result(T::from64(r).sext(), cf, of),
        Effect::Carry { cf, of } => ctx.cpu.flags.set_cf_of(cf, of),
        Effect::None => {}
    }
    Ok(())
}

pub fn by_imm<Op: Shift, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    shift::<Op, T, D>(ctx, insn, insn.imm)
}

pub fn by_cl<Op: Shift, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let count = ctx.cpu.gpr[1];
    shift::<Op, T, D>(ctx, insn, count)
}

/// SHLD and SHRD. By more than the operand's 16 bits the result is undefined: here bits come
/// round from the destination, as on Intel's processors.
#[inline(always)]
fn double<const LEFT: bool, T: Int, D: Rm>(
    ctx: &mut Ctx<'_>,
    insn: &Insn,
    count: u64,
) -> Result<(), Stop> {
    let count = count as u32 & mask::<T>();
    if count == 0 {
        D::rmw(ctx, insn, |a: T| a)?;
        return Ok(());
    }
    let b = ctx.reg::<T>(insn.reg).to64();
    let run = |a: T| {
        let (a, bits) = (u128::from(a.to64()), T::BITS);
        let b = u128::from(b);
        if bits == 16 {
            let wide = a << 32 | b << 16 | a;
            return if LEFT {
                ((wide << count >> 32) as u64, wide << count >> 48 & 1 != 0)
            } else {
                ((wide >> count) as u64, wide >> (count - 1) & 1 != 0)
            };
        }
        if LEFT {
            let wide = a << bits | b;
            ((wide << count >> bits) as u64, a >> (bits - count) & 1 != 0)
        } else {
            let wide = b << bits | a;
            ((wide >> count) as u64, wide >> (count - 1) & 1 != 0)
        }
    };
    let a = D::rmw(ctx, insn, |a: T| T::from64(run(a).0))?;
    let (r, cf) = run(a);
    let of = top::<T>(r) != top::<T>(a.to64());
    ctx.cpu.flags.set_result(T::from64(r).sext(), cf, of);
    Ok(())
}

pub fn double_imm<const LEFT: bool, T: Int, D: Rm>(
    ctx: &mut Ctx<'_>,
    insn: &Insn,
) -> Result<(), Stop> {
    double::<LEFT, T, D>(ctx, insn, insn.imm)
}

pub fn double_cl<const LEFT: bool, T: Int, D: Rm>(
    ctx: &mut Ctx<'_>,
    insn: &Insn,
) -> Result<(), Stop> {
    let count = ctx.cpu.gpr[1];
    double::<LEFT, T, D>(ctx, insn, count)
}
