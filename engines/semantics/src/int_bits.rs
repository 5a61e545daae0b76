//! Bit tests, scans and counts, BMI1 and BMI2, ADX, CRC32.

use crate::{
    Ctx, Insn, Stop,
    insn::prefix,
    operand::{Int, Rm, reg_number},
};
use iced_x86::Mnemonic;

pub trait BitOp {
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

pub struct Bt;
impl BitOp for Bt {
    const WRITES: bool = false;
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}

pub struct Bts;
impl BitOp for Bts {
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

pub struct Btr;
impl BitOp for Btr {
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

pub struct Btc;
impl BitOp for Btc {
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

fn finish<T: Int>(ctx: &mut Ctx<'_>, old: T, n: u32) {
    let cf = old.to64() >> n & 1 != 0;
    ctx.cpu.flags.set_cf(cf);
}

#[inline(always)]
fn bit_at<Op: BitOp, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn, n: u64) -> Result<(), Stop> {
    let n = n as u32 & (T::BITS - 1);
    let old = if Op::WRITES {
        D::rmw(ctx, insn, |a: T| T::from64(Op::apply(a.to64(), 1 << n)))?
    } else {
        D::load::<T>(ctx, insn)?
    };
    finish(ctx, old, n);
    Ok(())
}

pub fn bit_imm<Op: BitOp, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    bit_at::<Op, T, D>(ctx, insn, insn.imm)
}

pub fn bit_reg<Op: BitOp, T: Int, D: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let n = ctx.reg::<T>(insn.reg).to64();
    bit_at::<Op, T, D>(ctx, insn, n)
}

/// A register index selects a bit of the string that begins at the operand.
pub fn bit_string<Op: BitOp, T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let index = ctx.reg::<T>(insn.reg).sext();
    let n = index as u32 & (T::BITS - 1);
    let units = (index as i64 >> T::BITS.trailing_zeros()) as u64;
    let offset = units.wrapping_mul(u64::from(T::BYTES));
    let ea = ctx.raw_ea(insn).wrapping_add(offset) & insn.address_mask();
    let old = if Op::WRITES {
        let locked = insn.prefix & prefix::LOCK != 0;
        ctx.rmw(insn.segment(), ea, locked, |a: T| T::from64(Op::apply(a.to64(), 1 << n)))?
    } else {
        ctx.load::<T>(insn.segment(), ea)?
    };
    finish(ctx, old, n);
    Ok(())
}

/// BSF and BSR: a zero source leaves the destination alone, as processors do.
pub fn bsf<const REVERSE: bool, T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let a = S::load::<T>(ctx, insn)?.to64();
    if a == 0 {
        ctx.cpu.flags.set_zf(true);
        return Ok(());
    }
    let n = if REVERSE { 63 - a.leading_zeros() } else { a.trailing_zeros() };
    ctx.set_reg(insn.reg, T::from64(u64::from(n)));
    ctx.cpu.flags.set_zf(false);
    Ok(())
}

/// TZCNT and LZCNT. What the manual leaves undefined (OF, SF, AF, PF) is cleared, as processors
/// of Intel do: so it is the same where translated code runs them on the host.
pub fn count<const LEADING: bool, T: Int, S: Rm>(
    ctx: &mut Ctx<'_>,
    insn: &Insn,
) -> Result<(), Stop> {
    let a = S::load::<T>(ctx, insn)?.to64();
    let n = match (a, LEADING) {
        (0, _) => T::BITS,
        (a, true) => a.leading_zeros() - (64 - T::BITS),
        (a, false) => a.trailing_zeros(),
    };
    ctx.set_reg(insn.reg, T::from64(u64::from(n)));
    let cf = if a == 0 { x86_defs::rflags::CF } else { 0 };
    let zf = if n == 0 { x86_defs::rflags::ZF } else { 0 };
    ctx.cpu.flags.set_bits(cf | zf);
    Ok(())
}

pub fn popcnt<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let a = S::load::<T>(ctx, insn)?.to64();
    ctx.set_reg(insn.reg, T::from64(u64::from(a.count_ones())));
    ctx.cpu.flags.set_bits(if a == 0 { x86_defs::rflags::ZF } else { 0 });
    Ok(())
}

/// The three-operand group: ANDN, BEXTR, BZHI, PDEP, PEXT, RORX, SARX, SHLX, SHRX, and the
/// two-operand BLSI, BLSMSK, BLSR.
pub fn bmi(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let size = insn.osize;
    let bits = u32::from(size) * 8;
    let trunc = |v: u64| if size == 8 { v } else { v & 0xffff_ffff };
    let sext = |v: u64| if size == 8 { v } else { v as u32 as i32 as i64 as u64 };
    let a = ctx.read_op(insn, 1, size)?;
    let mnemonic = insn.iced().mnemonic();
    let b = match mnemonic {
        Mnemonic::Blsi | Mnemonic::Blsmsk | Mnemonic::Blsr => 0,
        Mnemonic::Rorx => insn.iced().immediate8().into(),
        _ => ctx.read_op(insn, 2, size)?,
    };
    let flags = &mut ctx.cpu.flags;
    let count = b as u32 & (bits - 1);
    let r = match mnemonic {
        Mnemonic::Andn => {
            let r = !a & b;
            flags.set_logic(sext(r));
            r
        }
        Mnemonic::Bextr => {
            let (start, len) = (b as u8, (b >> 8) as u8);
            let shifted = if start < 64 { a >> start } else { 0 };
            let r = if len < 64 { shifted & ((1 << len) - 1) } else { shifted };
            flags.set_bits(if r == 0 { x86_defs::rflags::ZF } else { 0 });
            r
        }
        Mnemonic::Bzhi => {
            let n = u32::from(b as u8);
            let r = if n < bits { a & ((1 << n) - 1) } else { a };
            flags.set_result(sext(r), n >= bits, false);
            r
        }
        Mnemonic::Blsi => {
            let r = a & a.wrapping_neg();
            flags.set_result(sext(r), a != 0, false);
            r
        }
        Mnemonic::Blsmsk => {
            let r = trunc(a ^ a.wrapping_sub(1));
            flags.set_result(sext(r), a == 0, false);
            r
        }
        Mnemonic::Blsr => {
            let r = a & a.wrapping_sub(1);
            flags.set_result(sext(r), a == 0, false);
            r
        }
        Mnemonic::Pdep => deposit(a, b),
        Mnemonic::Pext => extract(a, b),
        Mnemonic::Rorx if size == 8 => a.rotate_right(count),
        Mnemonic::Rorx => u64::from((a as u32).rotate_right(count)),
        Mnemonic::Sarx => (sext(a) as i64 >> count) as u64,
        Mnemonic::Shlx => a << count,
        _ => a >> count,
    };
    ctx.write_op(insn, 0, size, trunc(r))
}

fn deposit(a: u64, mut mask: u64) -> u64 {
    let (mut r, mut n) = (0, 0);
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if a >> n & 1 != 0 {
            r |= bit;
        }
        (mask, n) = (mask ^ bit, n + 1);
    }
    r
}

fn extract(a: u64, mut mask: u64) -> u64 {
    let (mut r, mut n) = (0, 0);
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if a & bit != 0 {
            r |= 1 << n;
        }
        (mask, n) = (mask ^ bit, n + 1);
    }
    r
}

/// ADCX and ADOX.
pub fn adx<const OVERFLOW: bool>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let size = insn.osize;
    let b = ctx.read_op(insn, 1, size)?;
    let number = reg_number(insn.iced().op0_register());
    let (cf, of) = (ctx.cpu.flags.cf(), ctx.cpu.flags.of());
    let carry = u128::from(if OVERFLOW { of } else { cf });
    let a = if size == 8 { ctx.reg::<u64>(number) } else { ctx.reg::<u32>(number).into() };
    let sum = u128::from(a) + u128::from(b) + carry;
    let out = sum >> (u32::from(size) * 8) != 0;
    if size == 8 {
        ctx.set_reg(number, sum as u64);
    } else {
        ctx.set_reg(number, sum as u32);
    }
    let (cf, of) = if OVERFLOW { (cf, out) } else { (out, of) };
    ctx.cpu.flags.set_cf_of(cf, of);
    Ok(())
}

/// CRC32 with the Castagnoli polynomial, reflected.
pub fn crc32(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    // The source is as wide as the instruction's own operand; `osize` holds that.
    let data = ctx.read_op(insn, 1, insn.osize)?;
    let number = reg_number(insn.iced().op0_register());
    let mut crc = ctx.reg::<u32>(number);
    for n in 0..insn.osize {
        crc ^= u32::from((data >> (8 * n)) as u8);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    ctx.set_reg(number, crc);
    Ok(())
}
