//! The inline check of the TLB.

use crate::{
    asm::{Asm, Mem, RSP},
    regs::{SA, SB, SC},
    state::{TlbEntry, field, tlb_field},
};
use std::mem::offset_of;

/// With a linear address in [`SA`]: falls through with the host address as [`host`], or does
/// what `miss` emits, which must not return here.
///
/// A page's distance from an access is below 4096 if it is the right one and the access does
/// not reach into the next. No instruction here changes flags. [`SC`] is lost.
pub fn probe(asm: &mut Asm, plane: usize, write: bool, len: usize, miss: impl FnOnce(&mut Asm)) {
    let tag = if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
    asm.pext(SB, SA, field!(index_mask));
    asm.lea(SB, Mem { base: None, index: Some((SB, 3)), disp: 0 }, true);
    asm.load(SC, tlb_field(plane, SB, tag));
    asm.load(SB, tlb_field(plane, SB, offset_of!(TlbEntry, delta)));
    // Vectors have 64 bytes at most.
    asm.lea(SC, Mem::indexed(SC, SA, 0, len as i32 - 1), true);
    asm.shrx(SC, SC, RSP);
    asm.unless_rcx_zero(miss);
}

/// The operand after [`probe`].
pub fn host() -> Mem {
    Mem::indexed(SA, SB, 0, 0)
}
