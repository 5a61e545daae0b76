//! One instruction executed by its handler, in the middle of translated code.

use crate::{
    counters::Cause,
    levels,
    native::Env,
    segments,
    spaces::space,
    state::State,
    table::Site,
    thunks::{FAR, GO_ELSEWHERE, GO_ON, LEAVE, RETRY, WINDOW, WRITE},
    tlb, vectors,
    width::{Width, covers},
    windows::Awaited,
};
use semantics::{CodeSize, Cpu, Insn, Stop, event};
use std::time::Instant;
use vcpu_state::SegReg;
use x86_defs::{
    cr::{cr0, cr4, xcr0},
    rflags, xsave,
};

/// Executes the instruction of `State::site`. The result is one of [`GO_ON`], [`LEAVE`] and
/// [`GO_ELSEWHERE`].
pub fn execute(state: &mut State, env: &mut Env<'_, '_>) -> u32 {
    let miss = std::mem::take(&mut state.miss);
    if miss == FAR {
        state.rip = state.missed;
        env.tables.copy(state, env.elsewhere);
        return GO_ELSEWHERE;
    }
    if miss == WINDOW {
        if window_fault(state, env) {
            state.resume = state.resume.wrapping_add(RETRY);
        }
        return GO_ON;
    }
    let missed = miss != 0;
    if missed && refill(state, env, miss == WRITE) {
        state.resume = state.resume.wrapping_add(RETRY);
        return GO_ON;
    }
    let table = env.table;
    let Some(site) = table.site(state.site) else {
        // Cannot be: sites are made with their block. Going on would be worse.
        env.stop = Some(Stop::Shutdown);
        return LEAVE;
    };
    let decoded = env.sites.take(env.ctx, state.site, &site, site.address(state.page));
    if missed {
        env.counters.tlb_misses += 1;
    } else {
        env.counters.callout(decoded.mnemonic);
    }
    let how = handle(state, env, &site, &decoded.insn, missed);
    env.sites.put(decoded);
    how
}

/// Executes an instruction by its handler. `missed`: because it missed the TLB.
fn handle(
    state: &mut State,
    env: &mut Env<'_, '_>,
    site: &Site<'_>,
    insn: &Insn,
    missed: bool,
) -> u32 {
    let Site { start, flow, index, count, .. } = *site;
    take(state, env);
    if state.counted {
        // Of a REP the first iteration is the instruction itself.
        env.ctx.cpu.rep_budget = state.budget.saturating_sub(u64::from(count) - 1).max(1);
    }
    let base = state.page.wrapping_add(u64::from(start));
    let (tags, plane) = (env.ctx.cpu.mmu.tags(), env.ctx.cpu.mmu.plane());
    let spaces = levels::spaces(env.ctx.cpu, false);
    let width = Width::of(env.ctx.cpu);
    let next = base.wrapping_add(u64::from(insn.end));
    env.ctx.cpu.rip = next;
    let result = (insn.handler)(env.ctx, insn);
    if let Err(stop) = result
        && stop != Stop::Branch
    {
        if stop != Stop::Halt {
            let start = u64::from(insn.end).wrapping_sub(u64::from(insn.len));
            env.ctx.cpu.rip = base.wrapping_add(start);
        }
        settle(state, env, index + u32::from(stop == Stop::Halt));
        return stopped(state, env, stop);
    }
    if missed {
        tlb::refresh(state, &mut env.ctx.cpu.mmu, env.counters, env.windows);
        tlb::enter(state, &env.ctx.cpu.mmu, state.missed, env.counters);
    }
    let mmu = &env.ctx.cpu.mmu;
    // A REP may have more iterations to do.
    let moved = flow || result.is_err() || env.ctx.cpu.rip != next;
    let other = mmu.tags() != tags
        || mmu.plane() != plane
        || Width::of(env.ctx.cpu) != width
        || levels::spaces(env.ctx.cpu, false) != spaces;
    if !moved && !other && (!env.ctx.cpu.leave || env.autonomous && env.ctx.quiet()) {
        let bad = state.bad;
        give(state, env);
        if state.bad == bad {
            settle(state, env, 0);
            return GO_ON;
        }
        // The block relies on what it was entered with.
    }
    settle(state, env, index + 1);
    if go_elsewhere(state, env) {
        return GO_ELSEWHERE;
    }
    env.counters.exit(match (moved, other) {
        (true, _) => Cause::Flow,
        (false, true) => Cause::Space,
        (false, false) => Cause::Asked,
    });
    LEAVE
}

/// Whether what an access by a window did not find is there now.
fn window_fault(state: &mut State, env: &mut Env<'_, '_>) -> bool {
    let began = Instant::now();
    let shown = show_missing(state, env);
    env.windows.faulted(state, began) && shown
}

fn show_missing(state: &mut State, env: &mut Env<'_, '_>) -> bool {
    let Some((window, linear)) = env.windows.linear(state, state.fault) else { return false };
    let write = state.fault_write != 0;
    take_rights(state, env.ctx.cpu);
    let mmu = &mut env.ctx.cpu.mmu;
    let known = mmu.held(linear).is_some_and(|held| held.read && (held.write || !write));
    if !known && !mmu.fill(linear, write) {
        let rip = env.table.site(state.site).map(|site| site.address(state.page));
        env.windows.vain(rip.map(|rip| Awaited { rip, window, linear, write }));
        return false;
    }
    tlb::refresh(state, &mut env.ctx.cpu.mmu, env.counters, env.windows);
    env.windows.show(state, window, &env.ctx.cpu.mmu, linear, write)
}

/// The guest has handled what its own access by a window was refused for, and returns to that:
/// what it has put there appears at once, since the access would only fault again. The page
/// counts as accessed then (SDM volume 3, 4.8), and not as written.
fn answered(state: &mut State, env: &mut Env<'_, '_>) {
    let Some(awaited) = env.windows.answered(env.ctx.cpu.rip) else { return };
    let Awaited { window, linear, write, .. } = awaited;
    let mmu = &mut env.ctx.cpu.mmu;
    if mmu.plane() != Some(2) || !mmu.fill_early(linear, write) {
        return;
    }
    tlb::refresh(state, &mut env.ctx.cpu.mmu, env.counters, env.windows);
    env.windows.show(state, window, &env.ctx.cpu.mmu, linear, write);
}

/// Whether a page that missed could be entered in the TLB, so that the access will hit. All of
/// the guest's registers stay where they are. Faults, devices and code are the handler's.
fn refill(state: &mut State, env: &mut Env<'_, '_>, write: bool) -> bool {
    let linear = state.missed;
    take_rights(state, env.ctx.cpu);
    let before = std::mem::replace(&mut state.refilled, (state.site, linear));
    // Two accesses of one instruction, whose entries have the same place, would take turns.
    if before.0 == state.site && tlb::contend(before.1, linear) {
        return false;
    }
    // It is known: the access crosses a page, or is not aligned.
    if tlb::knows(state, env.ctx.cpu.mmu.plane(), linear, write) {
        return false;
    }
    if !env.ctx.cpu.mmu.fill(linear, write) {
        return false;
    }
    env.counters.tlb_refills += 1;
    tlb::refresh(state, &mut env.ctx.cpu.mmu, env.counters, env.windows);
    tlb::enter(state, &env.ctx.cpu.mmu, linear, env.counters);
    tlb::knows(state, env.ctx.cpu.mmu.plane(), linear, write)
}

/// The instruction did not complete. Exceptions are offered to who asked for them, or delivered.
fn stopped(state: &mut State, env: &mut Env<'_, '_>, stop: Stop) -> u32 {
    if stop == Stop::Fault && env.autonomous {
        env.counters.exception(env.ctx.cpu.raised.vector);
        let offered = env.ctx.offer_exception();
        match if offered { Ok(()) } else { event::raise(env.ctx) } {
            Ok(()) if go_elsewhere(state, env) => return GO_ELSEWHERE,
            Ok(()) => env.counters.exit(Cause::Fault),
            Err(stop) => {
                env.counters.exit(Cause::Stop);
                env.stop = Some(stop);
            }
        }
        return LEAVE;
    }
    env.counters.exit(if stop == Stop::Fault { Cause::Fault } else { Cause::Stop });
    env.stop = Some(stop);
    LEAVE
}

/// Prepares to go on at the vCPU's RIP by the table of jumps, if nothing has to be looked at
/// first. If false, the run loop has to look.
fn go_elsewhere(state: &mut State, env: &mut Env<'_, '_>) -> bool {
    let cpu = &mut *env.ctx.cpu;
    cpu.leave = true;
    // The next instruction clears RF: a run that ends before it must not.
    if !env.autonomous || state.counted && cpu.rflags & rflags::RF != 0 {
        return false;
    }
    answered(state, env);
    // Every system call of a guest at level 3 comes here.
    let seldom = env.ctx.cpu.ring3.is_none();
    let windows = env.windows.choose(state, env.ctx.cpu, seldom);
    let space = space(env.ctx, env.tables, true, windows);
    let Some(space) = space.filter(|_| env.ctx.quiet()) else { return false };
    env.counters.stayed += 1;
    state.rip = env.ctx.cpu.rip;
    // Of supervisor code the table has under this only what is in global pages, for which it
    // is right.
    let plane = env.ctx.cpu.mmu.plane().unwrap_or_default();
    levels::enter(state, env, plane, space);
    give(state, env);
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
pub fn take(state: &mut State, env: &mut Env<'_, '_>) {
    let cpu = &mut *env.ctx.cpu;
    if let Some(gpr) = cpu.gpr.first_chunk_mut::<16>() {
        *gpr = state.registers();
    }
    cpu.flags.set_bits(state.flags);
    cpu.segment_mut(SegReg::Fs).base = state.fs;
    cpu.segment_mut(SegReg::Gs).base = state.gs;
    cpu.hot.kernel_gs_base = state.kernel_gs;
    segments::take(state, cpu);
    take_rights(state, cpu);
    if cpu.fdp_exceptions_only {
        // There were none.
        cpu.fpu.set_u64(xsave::FDP, state.kept_dp);
        cpu.fpu.set_u16(xsave::FOP, state.kept_op as u16);
    }
    if state.masked != 0 {
        cpu.fpu.set_u32(xsave::MXCSR, state.mxcsr);
    }
}

/// Of RFLAGS what the status flags are not. With AC, and with the level, the rights may have
/// changed.
fn take_rights(state: &mut State, cpu: &mut Cpu) {
    let ac = (cpu.rflags ^ state.ac) & rflags::AC != 0;
    cpu.rflags = state.rest | state.intf | state.ac;
    levels::settle(state, cpu);
    if ac {
        cpu.mode_changed();
    }
}

/// The vCPU's registers go to translated code.
pub fn give(state: &mut State, env: &mut Env<'_, '_>) {
    let cpu = &mut *env.ctx.cpu;
    // This may close windows, which decides where levels lead.
    tlb::refresh(state, &mut cpu.mmu, env.counters, env.windows);
    if let Some(gpr) = cpu.gpr.first_chunk::<16>() {
        state.set_registers(gpr);
    }
    state.backward = cpu.rflags & rflags::DF;
    // No copied instruction depends on the direction flag and the like.
    state.intf = cpu.rflags & rflags::IF;
    state.ac = cpu.rflags & rflags::AC;
    state.rest = cpu.rflags & !(rflags::STATUS | rflags::IF | rflags::AC) | rflags::FIXED;
    state.held = (cpu.held || cpu.look).into();
    (state.cr0, state.cr2, state.cr3, state.cr4) = (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4);
    levels::arm(state, env);
    let cpu = &mut *env.ctx.cpu;
    (state.idt_limit, state.idt_base) = (cpu.idtr.limit.into(), cpu.idtr.base);
    (state.gdt_limit, state.gdt_base) = (cpu.gdtr.limit.into(), cpu.gdtr.base);
    state.kernel_gs = cpu.hot.kernel_gs_base;
    state.flags = cpu.flags.bits() & rflags::STATUS | rflags::FIXED;
    for (to, segment) in state.selectors.iter_mut().zip(&cpu.seg) {
        *to = segment.selector.into();
    }
    state.fsgs_bad = (cpu.cr4 & cr4::FSGSBASE == 0).into();
    state.fs = cpu.segment(SegReg::Fs).base;
    state.gs = cpu.segment(SegReg::Gs).base;
    state.fs_odd = (!covers(cpu.segment(SegReg::Fs))).into();
    if cpu.mode.code == CodeSize::Bits16 {
        segments::give(state, cpu);
    }
    state.gs_odd = (!covers(cpu.segment(SegReg::Gs))).into();
    state.fpu = cpu.fpu.area.as_mut_ptr() as u64;
    let mxcsr = cpu.fpu.mxcsr();
    let (sse, avx) = (usable(cpu, false), usable(cpu, true));
    // Unmasked exceptions are the handlers' matter.
    let masked = mxcsr & MASKS == MASKS && mxcsr >> 16 == 0;
    state.mxcsr = if masked { mxcsr } else { xsave::MXCSR_RESET };
    state.masked = masked.into();
    let fpu = &cpu.fpu;
    (state.x87_ip, state.x87_dp) = (fpu.u64(xsave::FIP), fpu.u64(xsave::FDP));
    state.x87_op = fpu.u16(xsave::FOP).into();
    (state.kept_dp, state.kept_op) = (state.x87_dp, state.x87_op);
    // FCW's masks, and FSW.ES (SDM volume 1, 8.1.3 and 8.1.5).
    let quiet = fpu.u16(xsave::FCW) & X87_MASKS == X87_MASKS && fpu.u16(xsave::FSW) & 0x80 == 0;
    let x87 = cpu.cr0 & (cr0::EM | cr0::TS) == 0 && quiet;
    for (kind, bad) in (0..).zip(&mut state.bad) {
        let good = sse
            && (avx || kind & vectors::AVX == 0)
            && (masked || kind & vectors::FP == 0)
            && (x87 || kind & vectors::X87 == 0);
        *bad = (!good).into();
    }
}

/// A block may run that uses so much of the vector registers, by what [`give`] found.
pub fn may_run(state: &State, used: u8) -> bool {
    let bad = state.bad.get(usize::from(used) % vectors::KINDS);
    used == 0 || bad == Some(&0)
}

/// FCW's exception masks (SDM volume 1, 8.1.5).
pub const X87_MASKS: u16 = 0x3f;

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
