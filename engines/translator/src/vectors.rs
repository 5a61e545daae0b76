//! The guest's vector registers and MXCSR, in the host's while blocks use them.
//!
//! They are either *live*, in the host's registers, or in the guest's XSAVE area. Blocks that
//! use none leave the host's alone, so that they stay live across such blocks. A block that uses
//! some looks, when it is entered, at a word that tells whether they are live and may be used,
//! and has them loaded if not: from there to its end they are live. Before anything outside
//! runs, which may clobber them, they are stored.

use crate::{
    asm::{Asm, Mem, RAX, RDX},
    regs::{SA, SB, SC},
    state::{State, field},
};
use std::mem::offset_of;
use x86_defs::xsave;

/// What a block uses, as bits; none of them if it uses no vector registers.
pub const USED: u8 = 8;
/// VEX encodings.
pub const AVX: u8 = 1;
/// Instructions that depend on MXCSR or raise SIMD floating-point exceptions.
pub const FP: u8 = 2;
/// The x87 registers, too, which are live only if the vector registers are.
pub const X87: u8 = 4;

/// How many combinations there are beside [`USED`].
pub const KINDS: usize = 8;

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
    retire_x87(asm);
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
    for kind in 0..X87 {
        asm.load(SC, bad(kind));
        asm.store(wanted(kind), SC);
    }
    asm.patch(done);
}

/// The request for the x87 registers, as XSAVE and XRSTOR take it. Changes no flag.
fn request_x87(asm: &mut Asm) {
    asm.bytes(&[0xb8, 1, 0, 0, 0]); // mov eax, 1
    asm.bytes(&[0xba, 0, 0, 0, 0]); // mov edx, 0
}

/// Stores the x87 registers to the area at [`SB`], if they are live. RAX and RDX are lost.
fn retire_x87(asm: &mut Asm) {
    asm.load(SC, field!(x87_retired));
    let mut done = None;
    asm.unless_rcx_zero(|asm| done = Some(asm.jmp_forward()));
    request_x87(asm);
    asm.bytes(&[0x49, 0x0f, 0xae, 0x23]); // xsave64 [r11]
    asm.bytes(&[0xdb, 0xe3]); // fninit
    // The pointers are the host's, and so is what is said to be in use.
    let at = |offset: usize| Mem::at(SB, offset as i32);
    asm.load(SC, field!(x87_ip));
    asm.store(at(xsave::FIP), SC);
    asm.load(SC, field!(x87_dp));
    asm.store(at(xsave::FDP), SC);
    asm.load32(SC, field!(x87_op));
    asm.store16(at(xsave::FOP), SC);
    asm.store_imm(at(xsave::XSTATE_BV), 7, true);
    asm.store_imm(field!(x87_retired), 1, true);
    done.into_iter().for_each(|done| asm.patch(done));
}

/// Loads the x87 registers, if they are not live and may be used: nothing is pending in them
/// then. The vector registers are live. RAX, RDX and the scratch registers are lost, but for
/// [`SA`].
pub fn revive_x87(asm: &mut Asm) {
    debug_assert_eq!(SB, 11, "encoded below");
    asm.load(SC, field!(x87_retired));
    let mut load = None;
    asm.unless_rcx_zero(|asm| load = Some(asm.jmp_forward()));
    let live = asm.jmp_forward();
    load.into_iter().for_each(|load| asm.patch(load));
    asm.load(SC, bad(X87));
    let mut unusable = None;
    asm.unless_rcx_zero(|asm| unusable = Some(asm.jmp_forward()));
    asm.load(SB, field!(fpu));
    request_x87(asm);
    asm.bytes(&[0x49, 0x0f, 0xae, 0x2b]); // xrstor64 [r11]
    asm.store_imm(field!(x87_retired), 0, true);
    for kind in X87..2 * X87 {
        asm.load(SC, bad(kind));
        asm.store(wanted(kind), SC);
    }
    unusable.into_iter().chain([live]).for_each(|done| asm.patch(done));
}

/// The same as [`revive_thunk`] for a block that uses the x87 registers, too.
pub fn revive_x87_thunk(asm: &mut Asm) {
    revive(asm);
    asm.store(field!(saved_rax), RAX);
    asm.store(field!(saved_rdx), RDX);
    revive_x87(asm);
    asm.load(RAX, field!(saved_rax));
    asm.load(RDX, field!(saved_rdx));
    asm.jmp_reg(SA);
}

/// Makes them live for a block that found them not so, which goes on at [`SA`].
pub fn revive_thunk(asm: &mut Asm) {
    revive(asm);
    asm.jmp_reg(SA);
}
