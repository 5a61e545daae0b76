//! The arithmetic flags, kept as what they follow from.
//!
//! ZF, SF and PF follow from a result; CF, AF and OF from the carries out of each bit of the
//! addition that made it. Handlers store these two words, and few of them are ever asked for.

use x86_defs::rflags;

/// Carries that count: out of the top two bits, and out of bit 3.
const CARRIES: u64 = 3 << 62 | 8;
/// Inverts SF, for states that no result has (ZF with SF).
const SF_FLIP: u64 = 1;
/// Is XORed with the low byte of the result before its parity is taken.
const PF_SHIFT: u32 = 8;

/// CF, PF, AF, ZF, SF and OF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Sign-extended to 64 bits.
    pub result: u64,
    /// Bit 63 the carry out of the top bit, bit 62 into it, bit 3 out of bit 3.
    pub carries: u64,
}

impl Flags {
    /// Of a result that is already sign-extended, and the vector of carries of an operation
    /// `bits` wide.
    #[inline(always)]
    pub fn set_arith(&mut self, result: u64, carries: u64, bits: u32) {
        self.result = result;
        self.carries = (carries << (64 - bits) | carries & 8) & CARRIES;
    }

    /// CF, OF and AF clear.
    #[inline(always)]
    pub fn set_logic(&mut self, result: u64) {
        self.result = result;
        self.carries = 0;
    }

    /// Of a sign-extended result; AF clear.
    #[inline(always)]
    pub fn set_result(&mut self, result: u64, cf: bool, of: bool) {
        self.result = result;
        self.carries = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.carries >> 63 != 0
    }

    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.carries ^ self.carries << 1) >> 63 != 0
    }

    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub fn sf(&self) -> bool {
        (self.result >> 63 ^ self.carries & SF_FLIP) != 0
    }

    #[inline(always)]
    pub fn af(&self) -> bool {
        self.carries & 8 != 0
    }

    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.result ^ self.carries >> PF_SHIFT) as u8).count_ones() & 1 == 0
    }

    #[inline]
    pub fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_cf_of(cf, of);
    }

    #[inline]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.carries = self.carries & !(3 << 62) | u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    /// ZF alone; the others stay.
    pub fn set_zf(&mut self, zf: bool) {
        let bits = self.bits();
        self.set_bits(bits & !rflags::ZF | if zf { rflags::ZF } else { 0 });
    }

    /// As they are in RFLAGS.
    #[inline]
    pub fn bits(&self) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        bit(self.cf(), rflags::CF)
            | bit(self.pf(), rflags::PF)
            | bit(self.af(), rflags::AF)
            | bit(self.zf(), rflags::ZF)
            | bit(self.sf(), rflags::SF)
            | bit(self.of(), rflags::OF)
    }

    /// From RFLAGS; other bits are ignored.
    #[inline]
    pub fn set_bits(&mut self, bits: u64) {
        let is = |bit: u64| bits & bit != 0;
        self.set_result(if is(rflags::ZF) { 0 } else { 0x100 }, is(rflags::CF), is(rflags::OF));
        self.carries |= if is(rflags::SF) { SF_FLIP } else { 0 }
            | u64::from(!is(rflags::PF)) << PF_SHIFT
            | u64::from(is(rflags::AF)) << 3;
    }

    /// A condition code as encoded in Jcc, SETcc and CMOVcc (SDM volume 1, appendix B).
    #[inline(always)]
    pub fn condition(&self, code: u8) -> bool {
        let base = match code >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() | self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() | (self.sf() != self.of()),
        };
        base != (code & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_combination_survives() {
        for n in 0..64u64 {
            let masks = [rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF, rflags::OF];
            let bits =
                masks.iter().enumerate().filter(|(i, _)| n >> i & 1 != 0).map(|(_, m)| m).sum();
            let mut flags = Flags::default();
            flags.set_bits(bits);
            assert_eq!(flags.bits(), bits);
            flags.set_cf(true);
            assert_eq!(flags.bits(), bits | rflags::CF);
            flags.set_zf(false);
            assert_eq!(flags.bits(), (bits | rflags::CF) & !rflags::ZF);
        }
    }

    #[test]
    fn flags_of_byte_addition_and_subtraction() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let mut flags = Flags::default();
                let (r, carry) = a.overflowing_add(b);
                let carries = (a & b) | ((a | b) & !r);
                flags.set_arith(r as i8 as u64, u64::from(carries), 8);
                assert_eq!(flags.cf(), carry);
                assert_eq!(flags.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(flags.af(), (a & 15) + (b & 15) > 15);
                let (r, borrow) = a.overflowing_sub(b);
                let borrows = (!a & b) | ((!a | b) & r);
                flags.set_arith(r as i8 as u64, u64::from(borrows), 8);
                assert_eq!(flags.cf(), borrow);
                assert_eq!(flags.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(flags.condition(12), (a as i8) < (b as i8));
                assert_eq!(flags.condition(6), a <= b);
            }
        }
    }
}
