//! The guest's vector registers and MXCSR, in the host's while blocks use them.
//!
//! They are either *live*, in the host's registers, or in the guest's XSAVE area. Blocks that
//! use none leave the host's alone, so that they stay live across such blocks. A block that uses
//! some looks, when it is entered, at a word that tells whether they are live and may be used,
//! and has them loaded if not: from there to its end they are live. Before anything outside
//! runs, which may clobber them, they are stored.

use crate::{
    asm::{Asm, Mem},
    regs::{SA, SB, SC},
    state::{State, field},
};
use std::mem::offset_of;
use x86_defs::xsave;

/// What a block uses, as bits; none of them if it uses no vector registers.
pub const USED: u8 = 4;
/// VEX encodings.
pub const AVX: u8 = 1;
/// Instructions that depend on MXCSR or raise SIMD floating-point exceptions.
pub const FP: u8 = 2;

/// How many combinations there are beside [`USED`].
pub const KINDS: usize = 4;

/// The word that is zero if a block that uses this may go on.
pub fn wanted(used: u8) -> Mem {
    word(offset_of!(State, dead), used)
}

fn bad(used: u8) -> Mem {
    word(offset_of!(State, bad), used)
}

fn word(table: usize, used: u8) -> Mem {
    let base = field!(rip);
    let at = table as i64 - offset_of!(State, rip) as i64 + 8 * (i64::from(used) % KINDS as i64);
    Mem { disp: base.disp + at as i32, ..base }
}

fn lower(n: u8) -> Mem {
    Mem::at(SB, xsave::XMM as i32 + 16 * i32::from(n))
}

fn upper(n: u8) -> Mem {
    Mem::at(SB, xsave::YMM_HI as i32 + 16 * i32::from(n))
}

/// Stores them, if they are live, and makes MXCSR the host's. The scratch registers are lost.
pub fn retire(asm: &mut Asm) {
    asm.load(SC, field!(retired));
    let mut done = None;
    asm.unless_rcx_zero(|asm| done = Some(asm.jmp_forward()));
    asm.load(SB, field!(fpu));
    for n in 0..16 {
        asm.vstore_xmm(lower(n), n);
    }
    for n in 0..16 {
        asm.vstore_upper(upper(n), n);
    }
    // What is called has instructions without VEX, which are slow while an upper half is in use.
    asm.vzeroupper();
    asm.stmxcsr(field!(mxcsr));
    asm.ldmxcsr(field!(host_mxcsr));
    asm.store_imm(field!(retired), 1, true);
    for kind in 0..KINDS {
        asm.store_imm(wanted(kind as u8), 1, true);
    }
    done.into_iter().for_each(|done| asm.patch(done));
}

/// Loads them, if they are not live. The scratch registers are lost, but for [`SA`].
pub fn revive(asm: &mut Asm) {
    asm.load(SC, field!(retired));
    let mut load = None;
    asm.unless_rcx_zero(|asm| load = Some(asm.jmp_forward()));
    let done = asm.jmp_forward();
    load.into_iter().for_each(|load| asm.patch(load));
    asm.load(SB, field!(fpu));
    // Upper halves that are all zero are not loaded: then the processor does not take them for
    // used, as it would not for the guest.
    asm.vload_xmm(0, upper(0));
    for n in 1..16 {
        asm.vpor(0, 0, upper(n));
    }
    asm.vfold(0);
    asm.vmovq(SC, 0);
    for n in 0..16 {
        asm.vload_xmm(n, lower(n));
    }
    let mut wide = None;
    asm.unless_rcx_zero(|asm| wide = Some(asm.jmp_forward()));
    let narrow = asm.jmp_forward();
    wide.into_iter().for_each(|wide| asm.patch(wide));
    for n in 0..16 {
        asm.vload_upper(n, upper(n));
    }
    asm.patch(narrow);
    asm.ldmxcsr(field!(mxcsr));
    asm.store_imm(field!(retired), 0, true);
    for kind in 0..KINDS {
        asm.load(SC, bad(kind as u8));
        asm.store(wanted(kind as u8), SC);
    }
    asm.patch(done);
}

/// Makes them live for a block that found them not so, which goes on at [`SA`].
pub fn revive_thunk(asm: &mut Asm) {
    revive(asm);
    asm.jmp_reg(SA);
}
