//! Changes of the privilege level inside translated code.
//!
//! SYSCALL and SYSRET are executed in place, without the vCPU's knowledge. What they leave to
//! be done to it, [`settle`] does before anything outside looks at it: CS, SS, and what follows
//! from them. They may be executed so while [`arm`] finds nothing against it.

use crate::{
    native::Env,
    spaces::{WINDOWED, number},
    state::{PLANES, State},
};
use semantics::{Cpu, mem::Privilege, sys_call};
use x86_defs::{
    cr::{cr4, efer},
    rflags,
};

/// Values of [`State::level`]: the vCPU's segments are right, or are those that the instruction
/// loads, which was the last to change them.
pub const SETTLED: u64 = 0;
pub const SYSCALL: u64 = 1;
pub const SYSRET: u64 = 2;

const SUPERVISOR: usize = 0;
const USER: usize = 2;

/// The segments and the level of a vCPU, whose RFLAGS are right, become what translated code
/// has made of them.
#[inline]
pub fn settle(state: &mut State, cpu: &mut Cpu) {
    match std::mem::replace(&mut state.level, SETTLED) {
        SETTLED => return,
        SYSCALL => sys_call::load_syscall_segments(cpu),
        _ => sys_call::load_sysret_segments::<true>(cpu),
    }
    // Whether to leave is what the instruction itself would have asked.
    let leave = cpu.leave;
    cpu.update_mode();
    cpu.leave = leave;
}

/// Translated code that is about to run may change levels, or not. The tables of jumps of the
/// other level have to be those of its present address space.
#[inline]
pub fn arm(state: &mut State, env: &Env<'_, '_>) {
    let cpu = &*env.ctx.cpu;
    let [supervisor, user] = spaces(cpu, env.windows.are_open());
    let enabled = env.autonomous && cpu.efer & efer::SCE != 0;
    // With AC the target would be another plane.
    let syscall = enabled
        && !cpu.intercepts.syscall
        && cpu.hot.sfmask & rflags::AC != 0
        && state.spaces[SUPERVISOR] == supervisor;
    state.syscall_bad = (!syscall).into();
    state.sysret_bad = (!enabled || state.spaces[USER % PLANES] != user).into();
    let tsc = cpu.cr4 & cr4::TSD == 0;
    state.cpuid_bad = cpu.intercepts.cpuid.into();
    (state.tsc_bad, state.tsc_aux) = ((!tsc).into(), cpu.hot.tsc_aux);
    for (to, [cs, ss]) in state.level_selectors.iter_mut().zip(sys_call::selectors(cpu)) {
        *to = [cs.into(), ss.into()];
    }
    state.lstar = cpu.hot.lstar;
    state.syscall_keeps = !cpu.hot.sfmask | rflags::FIXED;
}

/// The numbers of the spaces in which 64-bit code of the two levels runs now.
pub fn spaces(cpu: &Cpu, windows: bool) -> [u64; 2] {
    let [supervisor, user] =
        [Privilege::Supervisor, Privilege::User].map(|whose| cpu.mmu.tags_of(whose).global);
    let version = if windows { WINDOWED } else { USER };
    [number(supervisor, false, SUPERVISOR), number(user, false, version)]
}

/// Translated code is entered with the rights of a plane and in this space; what it needs at the
/// other level is prepared, so that it can go there by itself.
pub fn enter(state: &mut State, env: &mut Env<'_, '_>, plane: usize, space: u64) {
    if env.ctx.cpu.ring3.is_some() {
        // The personality leads to the other one.
        return env.tables.enter_alone(state, plane, space, env.elsewhere);
    }
    env.tables.enter(state, plane, space, env.elsewhere);
    let [supervisor, user] = spaces(env.ctx.cpu, env.windows.are_open());
    let narrow = state.spaces[USER % PLANES] >> 2 & 1 != 0;
    if plane == USER {
        env.tables.prepare(state, SUPERVISOR, supervisor, env.elsewhere);
    } else if !narrow {
        // To 32-bit code other ways lead.
        env.tables.prepare(state, USER, user, env.elsewhere);
    }
}
