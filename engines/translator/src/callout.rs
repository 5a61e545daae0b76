//! One instruction executed by its handler, in the middle of translated code.

use crate::{counters::Cause, native::Env, state::State, table::Site, tlb, vectors};
use semantics::{Cpu, Stop};
use vcpu_state::SegReg;
use x86_defs::{
    cr::{cr0, cr4, xcr0},
    rflags, xsave,
};

/// True to leave translated code: then the guest's registers are the vCPU's.
pub fn execute(state: &mut State, env: &mut Env<'_, '_>) -> bool {
    let missed = std::mem::take(&mut state.miss) != 0;
    let Some(Site { start, insn, flow, index, count }) = env.table.site(state.site) else {
        // Cannot be: sites are made with their block. Going on would be worse.
        env.stop = Some(Stop::Shutdown);
        return true;
    };
    if missed {
        env.counters.tlb_misses += 1;
    } else {
        env.counters.callout(env.table.mnemonic(state.site));
    }
    take(state, env);
    if state.counted {
        // Of a REP the first iteration is the instruction itself.
        env.ctx.cpu.rep_budget = state.budget.saturating_sub(u64::from(count) - 1).max(1);
    }
    let base = state.page.wrapping_add(u64::from(start));
    let (tags, plane) = (env.ctx.cpu.mmu.tags(), env.ctx.cpu.mmu.plane());
    env.ctx.cpu.rip = base.wrapping_add(u64::from(insn.end));
    let result = (insn.handler)(env.ctx, insn);
    if let Err(stop) = result
        && stop != Stop::Branch
    {
        if stop != Stop::Halt {
            let start = u64::from(insn.end).wrapping_sub(u64::from(insn.len));
            env.ctx.cpu.rip = base.wrapping_add(start);
        }
        settle(state, env, index + u32::from(stop == Stop::Halt));
        env.counters.exit(if stop == Stop::Fault { Cause::Fault } else { Cause::Stop });
        env.stop = Some(stop);
        return true;
    }
    if missed {
        tlb::refresh(state, &mut env.ctx.cpu.mmu, env.counters);
        tlb::enter(state, &env.ctx.cpu.mmu, state.missed, env.counters);
    }
    let mmu = &env.ctx.cpu.mmu;
    let cause = if flow || result.is_err() {
        Cause::Flow
    } else if mmu.tags() != tags || mmu.plane() != plane {
        Cause::Space
    } else if env.ctx.cpu.leave {
        Cause::Asked
    } else {
        let bad = state.bad;
        give(state, env);
        if state.bad == bad {
            settle(state, env, 0);
            return false;
        }
        // The block relies on what it was entered with.
        Cause::Asked
    };
    env.counters.exit(cause);
    settle(state, env, index + 1);
    true
}

/// Of the block, so many instructions are retired that were not counted yet, and what
/// [`Cpu::rep_retired`] says.
fn settle(state: &mut State, env: &mut Env<'_, '_>, retired: u32) {
    if state.counted {
        let retired = std::mem::take(&mut env.ctx.cpu.rep_retired) + u64::from(retired);
        state.budget = state.budget.saturating_sub(retired);
    }
}

/// The guest's registers go to the vCPU.
pub fn take(state: &State, env: &mut Env<'_, '_>) {
    let cpu = &mut *env.ctx.cpu;
    if let Some(gpr) = cpu.gpr.get_mut(..16) {
        gpr.copy_from_slice(&state.gpr);
    }
    cpu.flags.set_bits(state.flags);
    if state.masked != 0 {
        cpu.fpu.set_u32(xsave::MXCSR, state.mxcsr);
    }
}

/// The vCPU's registers go to translated code.
pub fn give(state: &mut State, env: &mut Env<'_, '_>) {
    let cpu = &mut *env.ctx.cpu;
    if let Some(gpr) = cpu.gpr.get(..16) {
        state.gpr.copy_from_slice(gpr);
    }
    // The direction flag and the like stay the vCPU's: no copied instruction depends on them.
    state.backward = cpu.rflags & rflags::DF;
    state.flags = cpu.flags.bits() & rflags::STATUS | rflags::FIXED;
    state.fs = cpu.segment(SegReg::Fs).base;
    state.gs = cpu.segment(SegReg::Gs).base;
    state.fpu = cpu.fpu.area.as_mut_ptr() as u64;
    let mxcsr = cpu.fpu.mxcsr();
    let (sse, avx) = (usable(cpu, false), usable(cpu, true));
    // Unmasked exceptions are the handlers' matter.
    let masked = mxcsr & MASKS == MASKS && mxcsr >> 16 == 0;
    state.mxcsr = if masked { mxcsr } else { xsave::MXCSR_RESET };
    state.masked = masked.into();
    for (kind, bad) in (0..).zip(&mut state.bad) {
        let good = sse && (avx || kind & vectors::AVX == 0) && (masked || kind & vectors::FP == 0);
        *bad = (!good).into();
    }
    tlb::refresh(state, &mut cpu.mmu, env.counters);
}

/// A block may run that uses so much of the vector registers, by what [`give`] found.
pub fn may_run(state: &State, used: u8) -> bool {
    let bad = state.bad.get(usize::from(used) % vectors::KINDS);
    used == 0 || bad == Some(&0)
}

/// MXCSR's exception masks (SDM volume 1, 10.2.3).
pub const MASKS: u32 = 0x3f << 7;

/// SSE, or AVX, instructions raise neither #UD nor #NM in 64-bit mode.
fn usable(cpu: &Cpu, avx: bool) -> bool {
    const NEEDED: u64 = xcr0::SSE | xcr0::AVX;
    let enabled = match avx {
        true => cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & NEEDED == NEEDED,
        false => cpu.cr0 & cr0::EM == 0 && cpu.cr4 & cr4::OSFXSR != 0,
    };
    enabled && cpu.cr0 & cr0::TS == 0
}
