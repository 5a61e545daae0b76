//! One instruction executed by its handler, in the middle of translated code.

use crate::{native::Env, state::State, tlb};
use semantics::Stop;
use vcpu_state::SegReg;
use x86_defs::rflags;

/// True to leave translated code: then the guest's registers are the vCPU's.
pub fn execute(state: &mut State, env: &mut Env<'_, '_>) -> bool {
    let missed = std::mem::take(&mut state.miss) != 0;
    let Some((start, insn, flow)) = env.table.site(state.site) else {
        // Cannot be: sites are made with their block. Going on would be worse.
        env.stop = Some(Stop::Shutdown);
        return true;
    };
    take(state, env);
    let base = state.page.wrapping_add(u64::from(start));
    let (tag, plane) = (env.ctx.cpu.mmu.tag, env.ctx.cpu.mmu.plane());
    env.ctx.cpu.rip = base.wrapping_add(u64::from(insn.end));
    let result = (insn.handler)(env.ctx, insn);
    if result == Err(Stop::Branch) {
        return true;
    }
    if let Err(stop) = result {
        if stop != Stop::Halt {
            let start = u64::from(insn.end).wrapping_sub(u64::from(insn.len));
            env.ctx.cpu.rip = base.wrapping_add(start);
        }
        env.stop = Some(stop);
        return true;
    }
    let mmu = &env.ctx.cpu.mmu;
    if flow || env.ctx.cpu.leave || mmu.tag != tag || mmu.plane() != plane {
        return true;
    }
    give(state, env);
    if missed {
        tlb::enter(state, &env.ctx.cpu.mmu, state.missed);
    }
    false
}

/// The guest's registers go to the vCPU.
pub fn take(state: &State, env: &mut Env<'_, '_>) {
    let cpu = &mut *env.ctx.cpu;
    if let Some(gpr) = cpu.gpr.get_mut(..16) {
        gpr.copy_from_slice(&state.gpr);
    }
    cpu.flags.set_bits(state.flags);
}

/// The vCPU's registers go to translated code.
pub fn give(state: &mut State, env: &Env<'_, '_>) {
    let cpu = &*env.ctx.cpu;
    if let Some(gpr) = cpu.gpr.get(..16) {
        state.gpr.copy_from_slice(gpr);
    }
    // The direction flag and the like stay the vCPU's: no copied instruction depends on them.
    state.flags = cpu.flags.bits() & rflags::STATUS | rflags::FIXED;
    state.fs = cpu.segment(SegReg::Fs).base;
    state.gs = cpu.segment(SegReg::Gs).base;
    tlb::refresh(state, &cpu.mmu);
}
