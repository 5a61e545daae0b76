//! Code that all blocks share, at the beginning of the code memory.

use crate::{
    asm::{Asm, Mem, RAX, RBP, RBX, RDI, RSP},
    jumps, light,
    regs::{SA, SC, homes},
    state::{field, gpr},
    vectors,
};

/// RDI: the value for RSP; RSI: where to go. Returns what ended it in EAX.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thunks {
    pub enter: usize,
    /// Leaves with all state in [`crate::state::State`]; EAX is [`LEFT`].
    pub leave: usize,
    /// Called with `site` set: executes one instruction outside.
    pub callout: usize,
    /// The same, after [`SA`] missed the TLB.
    pub miss: usize,
    /// Reads the time-stamp counter, and answers CPUID: for blocks that use no vector registers,
    /// for those that use some, and for those that use the x87 registers, too.
    pub tsc: [usize; 3],
    pub cpuid: [usize; 3],
    /// The same two as above for blocks that use vector registers.
    pub callout_live: usize,
    pub miss_live: usize,
    /// The same two for blocks that use the x87 registers, too.
    pub callout_x87: usize,
    pub miss_x87: usize,
    /// Loads the vector registers, and goes to [`SA`]; and the x87 registers, too.
    pub revive: usize,
    pub revive_x87: usize,
    /// Goes to the linear address in [`SA`], which is canonical.
    pub jump: usize,
    /// The same after [`jumps::look_up`] has missed, which left its [`SB`](crate::regs::SB).
    pub jump_missed: usize,
    /// The same for the branch to another page whose number is in [`SC`], which is told where
    /// that is; see [`crate::far`].
    pub relink: usize,
}

/// What a callout answers: translated code goes on behind it;
pub const GO_ON: u32 = 0;
/// it is left, and the guest's registers are the vCPU's;
pub const LEAVE: u32 = 1;
/// it goes on where `rip` says.
pub const GO_ELSEWHERE: u32 = 2;
/// What `miss` says of the access, beside 0 for none.
pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
/// What it says if a branch to another page missed.
pub const FAR: u32 = 3;
/// Of the branches to other pages that miss, one in so many copies where it went.
pub const FAR_TURNS: i32 = 6;
/// What it says if an access by a window faulted.
pub const WINDOW: u32 = 4;
/// How far behind the return address of a miss the instruction is begun again.
pub const RETRY: u64 = 5;
/// Translated code left by an exit.
pub const LEFT: u32 = 0;
/// The value of `exit` if a jump was not in the table.
pub const EXIT_JUMP: u32 = u32::MAX;
/// The value of `exit` if the word of requests was not zero.
pub const EXIT_POLL: u32 = u32::MAX - 1;
/// The value of `exit` if the block is longer than what may yet be retired.
pub const EXIT_BUDGET: u32 = u32::MAX - 2;

/// What a function of the System V ABI preserves.
const SAVED: [u8; 6] = [RBX, RBP, 12, 13, 14, 15];

pub fn build(asm: &mut Asm) -> Thunks {
    let enter = asm.here();
    SAVED.iter().for_each(|r| asm.push(*r));
    // With the return address, the stack is now eight bytes off its alignment of 16.
    asm.push(RAX);
    asm.store(Mem { base: Some(RDI), ..field!(host_rsp) }, RSP);
    asm.mov(RSP, RDI, true);
    asm.mov(SA, 6, true);
    load(asm);
    asm.jmp_reg(SA);

    let leave = asm.here();
    store(asm);
    asm.bytes(&[0x31, 0xc0]); // xor eax, eax
    let leave_with_eax = asm.here();
    asm.load(RSP, field!(host_rsp));
    asm.pop(SC);
    SAVED.iter().rev().for_each(|r| asm.pop(*r));
    asm.bytes(&[0xc3]);

    let jump = asm.here();
    let mut missed = None;
    jumps::look_up_any(asm, |asm| missed = Some(asm.jmp_forward()));
    missed.into_iter().for_each(|missed| asm.patch(missed));
    let jump_missed = asm.here();
    let mut missed = None;
    jumps::look_further(asm, |asm| missed = Some(asm.jmp_forward()));
    missed.into_iter().for_each(|missed| asm.patch(missed));
    asm.store(field!(rip), SA);
    asm.store_imm(field!(exit), EXIT_JUMP as i32, false);
    asm.jmp(leave);
    let elsewhere = asm.here();
    load(asm);
    asm.load(SA, field!(rip));
    asm.jmp(jump);
    let back = [leave_with_eax, elsewhere];
    let (miss, callout) = callouts(asm, back, 0);
    let (miss_live, callout_live) = callouts(asm, back, vectors::USED);
    let (miss_x87, callout_x87) = callouts(asm, back, vectors::USED | vectors::X87);
    let relink = asm.here();
    // A branch that runs once or twice, in a space that ends soon, would copy in vain: of those
    // that miss, each so many copies, so that the ones which run often soon will have.
    asm.store32(field!(far), SC);
    asm.load(SC, field!(far_turn));
    asm.lea(SC, Mem::at(SC, -1), true);
    asm.store(field!(far_turn), SC);
    asm.unless_rcx_zero(|asm| asm.jmp(jump));
    asm.store_imm(field!(far_turn), FAR_TURNS, true);
    asm.store(field!(missed), SA);
    asm.store_imm(field!(miss), FAR as i32, false);
    let _ = asm.call(callout);
    // It goes elsewhere.
    asm.jmp(leave);
    let [tsc, cpuid] = [light::tsc_thunk, light::cpuid_thunk].map(|thunk| {
        [0, vectors::USED, vectors::USED | vectors::X87].map(|used| {
            let at = asm.here();
            thunk(asm, used);
            at
        })
    });
    let revive = asm.here();
    vectors::revive_thunk(asm);
    let revive_x87 = asm.here();
    vectors::revive_x87_thunk(asm);
    Thunks {
        enter,
        leave,
        callout,
        miss,
        tsc,
        cpuid,
        callout_live,
        miss_live,
        callout_x87,
        miss_x87,
        revive,
        revive_x87,
        jump,
        jump_missed,
        relink,
    }
}

/// After which the registers are live that a block uses.
fn callouts(asm: &mut Asm, [leave_with_eax, elsewhere]: [usize; 2], used: u8) -> (usize, usize) {
    let miss = asm.here();
    // Above the return address of the call to here.
    let above = |mem: Mem| Mem { disp: mem.disp + 8, ..mem };
    asm.store(above(field!(missed)), SA);
    let callout = asm.here();
    asm.pop(SC);
    asm.store(field!(resume), SC);
    store(asm);
    // The callee preserves RBX.
    asm.mov(RBX, RSP, true);
    asm.mov(RDI, RSP, true);
    asm.load(RSP, field!(host_rsp));
    asm.call_mem(Mem { base: Some(RBX), ..field!(callout) });
    asm.mov(RSP, RBX, true);
    const { assert!(GO_ON < LEAVE && GO_ELSEWHERE > LEAVE) };
    asm.cmp_imm(RAX, LEAVE as i8, false);
    asm.unless(5, |asm| asm.jmp(leave_with_eax));
    asm.unless(6, |asm| asm.jmp(elsewhere));
    if used != 0 {
        vectors::revive(asm);
    }
    if used & vectors::X87 != 0 {
        vectors::revive_x87(asm);
    }
    load(asm);
    // A return, which the processor has predicted since the call.
    asm.push_mem(field!(resume));
    asm.bytes(&[0xc3]);
    (miss, callout)
}

/// Guest registers and flags into the state.
fn store(asm: &mut Asm) {
    for (guest, host) in homes() {
        asm.store(gpr(guest), host);
    }
    asm.bytes(&[0x9c]); // pushfq
    asm.pop_mem(field!(flags));
    vectors::retire(asm);
}

fn load(asm: &mut Asm) {
    asm.push_mem(field!(flags));
    asm.bytes(&[0x9d]); // popfq
    for (guest, host) in homes() {
        asm.load(host, gpr(guest));
    }
}
