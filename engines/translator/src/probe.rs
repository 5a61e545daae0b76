//! The inline check of the TLB.

use crate::{
    asm::{Asm, Mem, Patch, RSP, Rm},
    regs::{SA, SB, SC},
    state::{Plane, field, tlb_field, window_field},
    windows::{Slot, WINDOWS},
};
use std::mem::offset_of;

/// The greatest offset in a page.
const PAGE: i32 = 4095;
/// Of [`Asm::group1`].
const ADD: u8 = 0;
const CMP: u8 = 7;
/// Condition codes (SDM volume 1, appendix B).
const NOT_ZERO: u8 = 5;
const ABOVE: u8 = 7;

/// A linear address: a host register, and a displacement.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub base: u8,
    pub disp: i32,
}

impl Place {
    /// What [`SA`] says.
    pub const SA: Self = Self { base: SA, disp: 0 };

    /// The operand after [`probe`].
    pub fn host(self) -> Mem {
        Mem::indexed(self.base, SB, 0, self.disp)
    }

    pub fn linear(self) -> Mem {
        Mem::at(self.base, self.disp)
    }
}

/// With a linear address in a register: falls through with its distance from the host address
/// in [`SB`], or does what `miss` emits, which must not return here.
///
/// A page's distance from an access is below 4096 if it is the right one and the access does
/// not reach into the next. No instruction changes flags. [`SC`] is lost.
pub fn probe(
    asm: &mut Asm,
    plane: usize,
    write: bool,
    address: u8,
    len: usize,
    miss: impl FnOnce(&mut Asm),
) {
    debug_assert!(len <= PAGE as usize + 1);
    look_up(asm, plane, write, address);
    asm.lea(SC, Mem::indexed(SC, address, 0, len as i32 - 1), true);
    asm.shrx(SC, SC, RSP);
    asm.unless_rcx_zero(miss);
}

/// The same for an operand that must be aligned to its size, of 16 or 32 bytes. It cannot reach
/// into the next page, so that one test of bits tells all.
pub fn aligned(
    asm: &mut Asm,
    plane: usize,
    write: bool,
    address: u8,
    alignment: u8,
    miss: impl FnOnce(&mut Asm),
) {
    look_up(asm, plane, write, address);
    asm.lea(SC, Mem::indexed(SC, address, 0, 0), true);
    asm.pext(SC, SC, if alignment == 32 { field!(outside_32) } else { field!(outside_16) });
    asm.unless_rcx_zero(miss);
}

/// As [`probe`], where flags may change: control goes to the result on a miss, and the
/// processor takes no jump on a hit.
pub fn by_flags(
    asm: &mut Asm,
    plane: usize,
    write: bool,
    address: u8,
    len: usize,
    alignment: u8,
) -> Patch {
    debug_assert!(len <= PAGE as usize + 1);
    let tag = if write { offset_of!(Plane, write) } else { offset_of!(Plane, read) };
    asm.pext(SB, address, field!(index_mask));
    asm.mov(SC, address, true);
    asm.group1_load(ADD, 8, SC, Rm::Memory(tlb_field(plane, SB, tag)));
    let miss = if alignment > 1 {
        // All bits that are zero in the page, the low ones included.
        asm.test_imm(8, Rm::Register(SC), !PAGE | (i32::from(alignment) - 1));
        asm.jcc_forward(NOT_ZERO)
    } else {
        asm.group1_imm(CMP, 8, Rm::Register(SC), PAGE + 1 - len as i32);
        asm.jcc_forward(ABOVE)
    };
    asm.load(SB, tlb_field(plane, SB, offset_of!(Plane, delta)));
    miss
}

/// As [`probe`], of a window; see [`crate::windows`].
pub fn window(asm: &mut Asm, window: usize, address: u8, flags: bool) -> Option<Patch> {
    let at = |field| window_field(window, field);
    let mut missed = None;
    if flags {
        asm.rorx(SC, address, 32);
        asm.group1_load(CMP, 4, SC, Rm::Memory(at(offset_of!(Slot, high))));
        missed = Some(asm.jcc_forward(NOT_ZERO));
    } else {
        asm.load32(SB, at(offset_of!(Slot, low)));
        asm.rorx(SC, address, 32);
        asm.lea(SC, Mem::indexed(SC, SB, 0, 0), false);
        asm.unless_rcx_zero(|asm| missed = Some(asm.jmp_forward()));
    }
    asm.load(SB, at(offset_of!(Slot, delta)));
    missed
}

/// The same of the windows that were not expected. Goes to `back` if it is in one of them.
pub fn other_windows(asm: &mut Asm, expected: usize, address: u8, flags: bool, back: usize) {
    for window in (0..WINDOWS).filter(|window| *window != expected) {
        let at = |field| window_field(window, field);
        let found = |asm: &mut Asm| {
            asm.load(SB, at(offset_of!(Slot, delta)));
            asm.jmp(back);
        };
        if flags {
            // Its upper half is still there.
            asm.group1_load(CMP, 4, SC, Rm::Memory(at(offset_of!(Slot, high))));
            asm.unless(NOT_ZERO, found);
        } else {
            asm.load32(SB, at(offset_of!(Slot, low)));
            asm.rorx(SC, address, 32);
            asm.lea(SC, Mem::indexed(SC, SB, 0, 0), false);
            let mut next = None;
            asm.unless_rcx_zero(|asm| next = Some(asm.jmp_forward()));
            found(asm);
            next.into_iter().for_each(|next| asm.patch(next));
        }
    }
}

/// The distance from the linear to the host address in [`SB`], and the entry's tag in [`SC`].
fn look_up(asm: &mut Asm, plane: usize, write: bool, address: u8) {
    let tag = if write { offset_of!(Plane, write) } else { offset_of!(Plane, read) };
    asm.pext(SB, address, field!(index_mask));
    asm.load(SC, tlb_field(plane, SB, tag));
    asm.load(SB, tlb_field(plane, SB, offset_of!(Plane, delta)));
}
