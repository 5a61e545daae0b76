//! Values that find mistakes: edges of integers and of floating-point formats, mixed with
//! random ones.

use crate::{
    Rng,
    case::Background,
    layout::{self, CODE, DATA, STACK},
};

/// An integer whose interesting edges lie anywhere in its 64 bits.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.below(12) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << rng.below(64),
        4 => (1 << rng.below(64)) - 1,
        5 => !(1 << rng.below(64)),
        6 => rng.pick(&[0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000]),
        7 => (rng.below(256) as i64 - 128) as u64,
        8 => rng.u64() >> rng.below(64),
        9 => (rng.u64() as i64 >> rng.below(64)) as u64,
        10 => rng.pick(&[i64::MAX as u64, i64::MIN as u64, 0xffff_ffff, 0x0123_4567_89ab_cdef]),
        _ => rng.u64(),
    }
}

pub fn double(rng: &mut Rng) -> u64 {
    let sign = rng.u64() << 63;
    let fraction = integer(rng) & ((1 << 52) - 1);
    sign | match rng.below(10) {
        0 => 0,
        1 => 0x7ff << 52,
        // Signalling and quiet NaNs.
        2 => 0x7ff << 52 | fraction | 1,
        3 => 0xfff << 51 | fraction,
        4 => fraction,
        5 => ((rng.below(200) as f64) / 4.0).to_bits(),
        6 => rng.pick(&[1023, 1, 0x7fe, 1086, 1054, 1055, 1085]) << 52 | fraction,
        7 => (1023 + rng.below(66) as u64) << 52 | fraction,
        8 => (990 + rng.below(66) as u64) << 52 | rng.u64() >> 12,
        _ => rng.u64() & i64::MAX as u64,
    }
}

pub fn single(rng: &mut Rng) -> u32 {
    let sign = (rng.u64() as u32) << 31;
    let fraction = integer(rng) as u32 & ((1 << 23) - 1);
    sign | match rng.below(10) {
        0 => 0,
        1 => 0xff << 23,
        2 => 0xff << 23 | fraction | 1,
        3 => 0x1ff << 22 | fraction,
        4 => fraction,
        5 => ((rng.below(200) as f32) / 4.0).to_bits(),
        6 => rng.pick(&[127, 1, 0xfe, 190, 158, 159, 189]) << 23 | fraction,
        7 => (127 + rng.below(34) as u32) << 23 | fraction,
        8 => (110 + rng.below(34) as u32) << 23 | rng.u64() as u32 >> 9,
        _ => rng.u64() as u32 & i32::MAX as u32,
    }
}

/// Sixteen bytes of one lane type.
pub fn vector(rng: &mut Rng) -> u128 {
    let kind = rng.below(6);
    let mut two = |f: fn(&mut Rng) -> u64| u128::from(f(rng)) << 64 | u128::from(f(rng));
    match kind {
        0 => two(|r| u64::from(single(r)) << 32 | u64::from(single(r))),
        1 => two(double),
        2 => two(integer),
        3 => two(|r| (0..8).fold(0, |v, _| v << 8 | u64::from(integer(r) as u8))),
        4 => two(|r| (0..4).fold(0, |v, _| v << 16 | u64::from(integer(r) as u16))),
        _ => two(Rng::u64),
    }
}

/// An x87 register: also the encodings that the 387 and later refuse.
pub fn extended(rng: &mut Rng) -> u128 {
    let sign = u128::from(rng.u64() & 1) << 79;
    let fraction = u128::from(integer(rng));
    let one = 1u128 << 63;
    let exponent = |e: u128| e << 64;
    sign | match rng.below(12) {
        0 => 0,
        1 => exponent(0x7fff) | one,
        2 => exponent(0x7fff) | one | fraction,
        // Denormal and pseudo-denormal; unnormal, pseudo-infinity and pseudo-NaN.
        3 => fraction & (one - 1),
        4 => fraction | one,
        5 => exponent(rng.below(0x8000) as u128) | fraction,
        6 => exponent(0x3fff) | one | fraction,
        7 => exponent(0x3fff + rng.below(66) as u128) | one | fraction,
        8 => exponent(0x3fff - 66 + rng.below(66) as u128) | one | fraction,
        9 => exponent(rng.pick(&[1, 2, 0x7ffe, 0x7ffd])) | one | fraction,
        10 => exponent(rng.below(0x7fff) as u128) | one | u128::from(rng.u64()),
        _ => exponent(0x3fff + 2) | one | (rng.below(64) as u128) << 57,
    }
}

/// A linear address in the case's areas, mostly.
pub fn address(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => STACK.linear + rng.below(STACK.len()) as u64,
        1 => CODE.linear + rng.below(CODE.len()) as u64,
        2 => layout::READ_ONLY.end() - rng.below(64) as u64,
        _ => DATA.linear + rng.below(DATA.len()) as u64,
    }
}

/// What memory holds before a batch.
pub fn background(seed: u64) -> Box<Background> {
    let mut rng = Rng::new(seed ^ 0x6261_636b_6772_6f75);
    let mut words = vec![0; layout::WORDS];
    let mut n = 0;
    while n < words.len() {
        let kind = rng.below(8);
        // Runs of one kind, so that an operand of several words is of one kind too.
        for _ in 0..1 + rng.below(8) {
            let value = match kind {
                0 | 1 => integer(&mut rng),
                2 => double(&mut rng),
                3 => u64::from(single(&mut rng)) << 32 | u64::from(single(&mut rng)),
                4 => address(&mut rng),
                5 => 0,
                6 => extended(&mut rng) as u64,
                _ => rng.u64(),
            };
            if let Some(word) = words.get_mut(n) {
                *word = value;
            }
            n += 1;
        }
    }
    let mut all = Box::new([0; layout::WORDS]);
    all.copy_from_slice(&words);
    all
}
