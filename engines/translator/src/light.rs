//! Calls out of translated code that only ask for a number: the time-stamp counter.
//!
//! What is called does not look at the guest's registers, so that only those are stored that a
//! function of the System V ABI may change, and nothing goes to the vCPU.

use crate::{
    asm::{Asm, Mem, RAX, RDI},
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
    asm.pop(SC);
    asm.store(field!(resume), SC);
    asm.save_flags();
    asm.store32(field!(saved_flags), RAX);
    for (guest, host) in CHANGED {
        asm.store(gpr(guest), host);
    }
    vectors::retire(asm);
    asm.mov(RDI, crate::asm::RSP, true);
    asm.load(crate::asm::RSP, field!(host_rsp));
    // Twice, for the alignment.
    asm.push(RDI);
    asm.push(RDI);
    asm.call_mem(Mem { base: Some(RDI), ..field!(tsc) });
    asm.pop(RDI);
    asm.mov(crate::asm::RSP, RDI, true);
    asm.mov(SA, RAX, true);
    if used != 0 {
        vectors::revive(asm);
    }
    if used & vectors::X87 != 0 {
        vectors::revive_x87(asm);
    }
    asm.load32(RAX, field!(saved_flags));
    asm.restore_flags();
    for (guest, host) in CHANGED {
        asm.load(host, gpr(guest));
    }
    // A return, which the processor has predicted since the call.
    asm.push_mem(field!(resume));
    asm.ret();
}
