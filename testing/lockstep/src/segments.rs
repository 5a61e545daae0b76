//! Which segments each mode runs with: flat ones of the GDT, as Linux has them, or ones with
//! bases, limits and directions of their own, natively in the LDT.

use crate::{
    case::Mode,
    layout::{CODE, DATA, STACK},
};
use vcpu_state::{SegReg, Segment};
use x86_defs::segment::{ATTR_CODE, ATTR_DB, ATTR_EC, ATTR_G, ATTR_L, ATTR_RW};

pub const USER_CS: u16 = 0x33;
pub const USER32_CS: u16 = 0x23;
pub const USER_DS: u16 = 0x2b;

/// Present, DPL 3, accessed.
const USER: u16 = 0xf1;
const NULL: Segment = Segment { selector: 0, base: 0, limit: 0, attr: 0 };

/// ES, CS, SS, DS, FS, GS, as [`SegReg`] counts.
pub fn of(mode: Mode) -> [Segment; 6] {
    let data =
        Segment { selector: USER_DS, base: 0, limit: !0, attr: USER | ATTR_RW | ATTR_DB | ATTR_G };
    let code = |selector, bits| Segment {
        selector,
        attr: USER | ATTR_CODE | ATTR_RW | ATTR_G | bits,
        ..data
    };
    match mode {
        Mode::Long => [data, code(USER_CS, ATTR_L), data, data, NULL, NULL],
        Mode::Compat => [data, code(USER32_CS, ATTR_DB), data, data, data, NULL],
        Mode::Seg16 => own(0),
        Mode::Seg32 => own(ATTR_DB),
    }
}

fn own(size: u16) -> [Segment; 6] {
    let segment = |entry: u16, base: u64, limit: u32, kind: u16| {
        let selector = entry << 3 | 7;
        Segment { selector, base, limit, attr: USER | kind | size }
    };
    [
        segment(0, DATA.linear + 0x800, 0xffff, ATTR_RW),
        segment(1, CODE.linear, CODE.len() as u32 - 1, ATTR_CODE | ATTR_RW),
        segment(2, STACK.linear, STACK.len() as u32 - 1, ATTR_RW),
        segment(3, DATA.linear, 0x3fdf, ATTR_RW),
        // Valid from 1000H on.
        segment(4, DATA.linear, 0xfff, ATTR_RW | ATTR_EC),
        // Read-only.
        segment(5, DATA.linear, 0x3fff, 0),
    ]
}

/// The base of a segment; FS and GS of 64-bit mode are the case's.
pub fn base(mode: Mode, which: SegReg) -> u64 {
    of(mode).get(which as usize).map_or(0, |segment| segment.base)
}
