//! Segment registers as 16-bit code uses them.
//!
//! The state has a few words for each. Code of real mode, where a selector is a paragraph,
//! loads them without the vCPU's knowledge; [`take`] tells it.

use crate::{
    asm::Mem,
    state::{State, field},
};
use semantics::Cpu;
use vcpu_state::{SegReg, Segment};
use x86_defs::segment::{ATTR_CODE, ATTR_EC, ATTR_RW};

/// In the order of their numbers (SDM volume 2, 2.1.5).
const REGISTERS: [SegReg; COUNT] =
    [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];
pub const COUNT: usize = 6;

/// One of them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Words {
    pub base: u64,
    pub selector: u64,
    /// The sum of one of these two and of the offset of an operand's last byte is below 2^32 if
    /// the segment lets it be read, or written.
    pub read: u64,
    pub write: u64,
    /// Not zero if the vCPU does not know the selector.
    pub loaded: u64,
}

/// What no sum with is below 2^32.
const NEVER: u64 = 1 << 32;

/// The word at an offset in [`Words`].
pub fn word(number: u8, at: usize) -> Mem {
    let words = field!(segments);
    let at = usize::from(number) % COUNT * size_of::<Words>() + at;
    Mem { disp: words.disp + at as i32, ..words }
}

/// What the segment lets be read, and written, as [`Words`] has it; see
/// `semantics::mem::segmented`.
fn rights(segment: &Segment, real: bool) -> (u64, u64) {
    let code = segment.attr & ATTR_CODE != 0;
    let writable = segment.attr & ATTR_RW != 0;
    let up = code || segment.attr & ATTR_EC == 0;
    let to_limit = u64::from(!segment.limit);
    let word = |right: bool| if right { to_limit } else { NEVER };
    if real {
        return (to_limit, to_limit);
    }
    let usable = segment.usable() && up;
    (word(usable && (!code || writable)), word(usable && !code && writable))
}

/// The vCPU's segments go to translated code.
pub fn give(state: &mut State, cpu: &Cpu) {
    let real = cpu.mode.real_like();
    for (words, which) in state.segments.iter_mut().zip(REGISTERS) {
        let segment = cpu.segment(which);
        let (read, write) = rights(segment, real);
        let (base, selector) = (segment.base, segment.selector.into());
        *words = Words { base, selector, read, write, loaded: 0 };
    }
}

/// What code has loaded goes to the vCPU.
#[inline]
pub fn take(state: &mut State, cpu: &mut Cpu) {
    if std::mem::take(&mut state.loaded) == 0 {
        return;
    }
    for (words, which) in state.segments.iter_mut().zip(REGISTERS) {
        if std::mem::take(&mut words.loaded) != 0 {
            cpu.load_paragraph(which, words.selector as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_type() {
        let segment = |limit, attr| Segment { selector: 8, base: 0, limit, attr };
        let within = |(read, write): (u64, u64), last: u64| {
            [read, write].map(|word| word.wrapping_add(last) < 1 << 32)
        };
        let cases = [
            // Read-only, writable, expand-down, code, readable code, conforming, absent, null.
            (0x91, [true, false]),
            (0x93, [true, true]),
            (0x97, [false, false]),
            (0x99, [false, false]),
            (0x9b, [true, false]),
            (0x9f, [true, false]),
            (0x13, [false, false]),
            (0, [false, false]),
        ];
        for (attr, expected) in cases {
            let rights_of = |limit| rights(&segment(limit, attr), false);
            assert_eq!(within(rights_of(0x1234), 0x1234), expected, "{attr:x}");
            assert_eq!(within(rights_of(0x1234), 0x1235), [false; 2], "{attr:x}");
            assert_eq!(within(rights_of(!0), 0xffff_ffff), expected, "{attr:x}");
            assert_eq!(within(rights_of(!0), 1 << 32), [false; 2], "{attr:x}");
            // Types do not matter in real mode.
            let real = rights(&segment(0xffff, attr), true);
            assert_eq!((within(real, 0xffff), within(real, 0x1_0000)), ([true; 2], [false; 2]));
        }
    }
}
