//! Calls out of translated code that only ask for numbers: the time-stamp counter, CPUID.
//!
//! What is called does not look at the guest's registers, so that only those are stored that a
//! function of the System V ABI may change, and nothing goes to the vCPU.

use crate::{
    asm::{Asm, Mem, RAX, RBX, RDI, RDX},
    regs::{GUEST_RCX, SA, SC},
    state::{field, gpr},
    vectors,
};
use x86_defs::gpr;

const RSI: u8 = 6;
const R8: u8 = 8;

/// Guest registers whose host registers a callee may change, but for RAX and RDX.
const CHANGED: [(u8, u8); 4] = [
    (gpr::RSI as u8, RSI),
    (gpr::RDI as u8, RDI),
    (gpr::R8 as u8, R8),
    (gpr::RCX as u8, GUEST_RCX),
];

/// Reads the time-stamp counter into [`SA`]. RAX, RDX and the scratch registers are lost.
/// Afterwards those registers are live that a block uses.
pub fn tsc_thunk(asm: &mut Asm, used: u8) {
    ask(asm, field!(tsc), used, |asm| asm.mov(SA, RAX, true), &[]);
}

/// Answers CPUID. The scratch registers are lost.
pub fn cpuid_thunk(asm: &mut Asm, used: u8) {
    let answered = [(gpr::RAX as u8, RAX), (gpr::RBX as u8, RBX), (gpr::RDX as u8, RDX)];
    ask(asm, field!(cpuid), used, |_| {}, &answered);
}

/// Calls a function of the state's address, whose result `take` takes; it finds guest registers
/// in the state, and leaves its answers there. RAX and RDX are lost unless they are answered.
fn ask(asm: &mut Asm, function: Mem, used: u8, take: impl FnOnce(&mut Asm), answered: &[(u8, u8)]) {
    asm.pop(SC);
    asm.store(field!(resume), SC);
    for (guest, host) in CHANGED.iter().chain(answered) {
        asm.store(gpr(*guest), *host);
    }
    asm.save_flags();
    asm.store32(field!(saved_flags), RAX);
    vectors::retire(asm);
    asm.mov(RDI, crate::asm::RSP, true);
    asm.load(crate::asm::RSP, field!(host_rsp));
    // Twice, for the alignment.
    asm.push(RDI);
    asm.push(RDI);
    asm.call_mem(Mem { base: Some(RDI), ..function });
    asm.pop(RDI);
    asm.mov(crate::asm::RSP, RDI, true);
    take(asm);
    if used != 0 {
        vectors::revive(asm);
    }
    if used & vectors::X87 != 0 {
        vectors::revive_x87(asm);
    }
    asm.load32(RAX, field!(saved_flags));
    asm.restore_flags();
    for (guest, host) in CHANGED.iter().chain(answered) {
        asm.load(*host, gpr(*guest));
    }
    // A return, which the processor has predicted since the call.
    asm.push_mem(field!(resume));
    asm.ret();
}
