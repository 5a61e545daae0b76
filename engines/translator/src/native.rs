//! Entering host code, and being called from it.
#![expect(unsafe_code, reason = "calls generated code, which calls back")]

use crate::{
    callout,
    counters::Counters,
    jumps::Tables,
    sites::Sites,
    state::{BIAS, State},
    table::Table,
    windows::Windows,
};
use emit::CodeMemory;
use semantics::{Ctx, Stop};
use x86_defs::gpr;

/// What a callout works on, while translated code runs.
pub struct Env<'e, 'c> {
    pub ctx: &'e mut Ctx<'c>,
    pub table: &'e Table,
    pub sites: &'e mut Sites,
    pub counters: &'e mut Counters,
    pub tables: &'e mut Tables,
    pub windows: &'e mut Windows,
    /// Host address of the code that looks jumps up.
    pub elsewhere: u64,
    /// See [`crate::Translator::autonomous`].
    pub autonomous: bool,
    /// Why an instruction did not complete.
    pub stop: Option<Stop>,
}

/// The type behind [`State::env`], whatever its lifetimes.
type Opaque = *mut Env<'static, 'static>;

/// Executes translated code at an offset of `memory`, until it leaves; `enter` is the offset of
/// [`crate::thunks::Thunks::enter`]. The result is 0 if all of the guest's registers are in
/// `state`, 1 if they are in `env`'s vCPU.
///
/// What is at both offsets was made by this crate and belongs to `state`, which it accesses
/// within bounds by construction: the caller, [`crate::Translator`], keeps the three together.
pub(crate) fn enter(
    memory: &CodeMemory,
    enter: usize,
    at: usize,
    state: &mut State,
    env: &mut Env<'_, '_>,
) -> u32 {
    state.env = std::ptr::from_mut(env) as u64;
    state.callout = called_out as *const () as u64;
    state.tsc = read_tsc as *const () as u64;
    state.cpuid = read_cpuid as *const () as u64;
    let rsp = std::ptr::from_mut(state).cast::<u8>().wrapping_add(BIAS);
    let target = memory.address(at);
    // SAFETY: at `enter` is code of this signature, made by `thunks::build`: it preserves what
    // the ABI wants preserved and keeps the stack aligned for the call back. Between, only code
    // of `lower` and `thunks` runs. That code accesses the thread's stack in `thunks` only, and
    // there by balanced pushes and pops; its own stack, which lies below `state`; fields of
    // `state`, whose address RSP has again after each push and pop; and guest memory at
    // addresses that a TLB entry of `state` vouches for: `tlb` enters pages of the arena only,
    // which stay mapped as long as the vCPU. It cannot fault otherwise: what it copies from the
    // guest is on an allow-list of instructions that raise nothing with valid operands. `state`
    // and `env` are borrowed exclusively here, and used by translated code and the functions
    // that it calls only, never by both at once.
    unsafe {
        let run: extern "sysv64" fn(*mut u8, *const u8) -> u32 =
            std::mem::transmute(memory.address(enter));
        run(rsp, target)
    }
}

/// Called by translated code: executes the instruction of `State::site`. The result is
/// [`crate::thunks::GO_ON`] or one of the others.
extern "sysv64" fn called_out(rsp: *mut u8) -> u32 {
    // SAFETY: translated code passes the address that `enter` gave it, of a state that `enter`
    // borrows exclusively, and does not access it before this returns. The environment is the
    // one that `enter` borrows; its lifetimes outlast the call.
    let (state, env) = unsafe {
        let state = &mut *rsp.wrapping_sub(BIAS).cast::<State>();
        let env = &mut *(state.env as Opaque);
        (state, env)
    };
    callout::execute(state, env)
}

/// Called by translated code: the time-stamp counter.
extern "sysv64" fn read_tsc(rsp: *mut u8) -> u64 {
    // SAFETY: as in `called_out`.
    let env = unsafe {
        let state = &mut *rsp.wrapping_sub(BIAS).cast::<State>();
        &mut *(state.env as Opaque)
    };
    env.counters.tsc_reads += 1;
    env.ctx.tsc()
}

/// Called by translated code: CPUID, of and into the guest's registers in the state.
extern "sysv64" fn read_cpuid(rsp: *mut u8) {
    // SAFETY: as in `called_out`.
    let (state, env) = unsafe {
        let state = &mut *rsp.wrapping_sub(BIAS).cast::<State>();
        let env = &mut *(state.env as Opaque);
        (state, env)
    };
    env.counters.cpuids += 1;
    let (leaf, subleaf) = (state.register(gpr::RAX), state.register(gpr::RCX));
    let answer = env.ctx.cpu.leaf(leaf, subleaf);
    for (register, value) in [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].into_iter().zip(answer) {
        state.set_register(register, value);
    }
}

/// Writes code where no translated code is that could run meanwhile.
pub(crate) fn write(memory: &CodeMemory, at: usize, code: &[u8]) -> bool {
    // SAFETY: the memory belongs to one translator, whose vCPU is not in translated code: it
    // has the translator exclusively here. The range is not anything that runs now: it is new
    // code, or where a jump leads, after which the processor is serialized before it is run.
    unsafe { memory.write(at, code.len(), code) }
}
