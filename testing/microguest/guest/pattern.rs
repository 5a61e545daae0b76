//! What blocks and packets are filled with: words that follow from a number and a place, the last
//! of which is a sum of the others.

use crate::{
    hardware::{load, store},
    numbers::{Dec, Hex},
};

/// xorshift64 (Marsaglia), of which no state is zero.
pub fn mix(mut word: u64) -> u64 {
    word ^= word << 13;
    word ^= word >> 7;
    word ^ word << 17
}

fn seed(number: u32, place: u32) -> u64 {
    (u64::from(number) << 32 | u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The words of `length` bytes in all, of which the first two are the number and the place.
pub fn words(number: u32, place: u32, length: u32) -> impl Iterator<Item = u64> {
    let (mut state, mut sum) = (seed(number, place), 0u64);
    let last = length / 8 - 1;
    (0..=last).map(move |index| {
        state = mix(state);
        let word = match index {
            0 => u64::from(place) << 32 | u64::from(number),
            index if index == last => sum,
            _ => state,
        };
        sum = sum.rotate_left(1).wrapping_add(word);
        word
    })
}

pub fn fill(at: u64, number: u32, place: u32, length: u32) {
    for (address, word) in (at..).step_by(8).zip(words(number, place, length)) {
        store(address, word);
    }
}

/// Ends the guest at the first word that is another.
pub fn check(what: &str, at: u64, number: u32, place: u32, length: u32) {
    for (address, word) in (at..).step_by(8).zip(words(number, place, length)) {
        let found: u64 = load(address);
        if found != word {
            let (byte, found, word) = (Dec(address - at), Hex(found), Hex(word));
            let (number, place) = (Dec(number.into()), Dec(place.into()));
            panic!("{what} {place} of number {number}, byte {byte}: {found} instead of {word}");
        }
    }
}
