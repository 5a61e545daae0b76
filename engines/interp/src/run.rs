//! The run loop.

use crate::{
    Cache,
    boundary::Next,
    cache::{Heat, Span},
    counters::Counters,
    fetch::linear_ip,
    templates::Templates,
};
use emit::StubCache;
use engine::{BreakpointKind, DebugExit, Exit, GuestDebug, Stats};
use iced_x86::{InstructionInfoFactory, Mnemonic};
use semantics::{Cpu, Ctx, Insn, Stop, event, features::IsaFeatures};
use std::sync::atomic::Ordering::Relaxed;
use translator::{Left, Translator, Width};
use vcpu_state::{Exception, MpState, Shadow};
use x86_defs::{PAGE_SIZE, dr, exception, rflags};

/// One vCPU's interpreter: what it has decoded, and what it watches for.
#[derive(Debug)]
pub struct Interp {
    pub(crate) cache: Cache,
    pub(crate) features: IsaFeatures,
    pub(crate) stubs: StubCache,
    pub(crate) templates: Templates,
    pub(crate) translator: Option<Translator>,
    /// Blocks are translated when they have run so often.
    pub(crate) hot: u32,
    /// What `locate` found is in a page for which `Tags::global` holds.
    pub(crate) global: bool,
    pub(crate) factory: InstructionInfoFactory,
    /// How often something was looked for while pages were checked.
    pub(crate) looks: u32,
    /// The block that was last left by a branch.
    pub(crate) behind: Span,
    /// Room for decoding.
    pub(crate) spare: Vec<Insn>,
    /// How often code had changed at the place of what is decoded now.
    pub(crate) replaced: u32,
    /// Linear addresses before which a debugger wants to stop.
    breakpoints: Vec<u64>,
    single_step: bool,
    pub(crate) retired: u64,
    pub(crate) counters: Counters,
}

impl Interp {
    pub fn new(features: IsaFeatures, stubs: StubCache) -> Self {
        Self {
            cache: Cache::default(),
            features,
            stubs,
            templates: Templates::default(),
            translator: None,
            hot: 0,
            global: false,
            factory: InstructionInfoFactory::new(),
            looks: 0,
            behind: Span::default(),
            spare: Vec::new(),
            replaced: 0,
            breakpoints: Vec::new(),
            single_step: false,
            retired: 0,
            counters: Counters::default(),
        }
    }

    /// Instructions retired, where an iteration of a REP counts as one.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// What was counted, with that of the vCPU that it runs.
    pub fn report(&self, cpu: &Cpu, stats: &mut Stats) {
        if let Some(translator) = &self.translator {
            translator.report(stats);
        }
        let inside = self.translator.as_ref().map(Translator::exceptions).unwrap_or_default();
        self.counters.report(stats, cpu.mmu.walks(), &inside);
        stats.group("run loop").bytes("decoded code", self.cache.in_use() as u64);
    }

    /// Sets what a debugger watches for; data breakpoints are the MMU's.
    pub fn set_debug(&mut self, debug: &GuestDebug) {
        self.single_step = debug.single_step;
        let execute = debug.breakpoints.iter().filter(|b| b.kind == BreakpointKind::Execute);
        self.breakpoints = execute.map(|b| b.address).collect();
    }

    /// Runs until something ends it, or so many instructions are retired.
    pub fn run(&mut self, ctx: &mut Ctx<'_>, budget: u64) -> Exit {
        ctx.cpu.slot.enter_guest();
        ctx.cpu.look = true;
        let exit = self.run_inside(ctx, budget);
        ctx.cpu.slot.leave_guest();
        exit
    }

    fn run_inside(&mut self, ctx: &mut Ctx<'_>, budget: u64) -> Exit {
        let end = self.retired.saturating_add(budget);
        ctx.cpu.rep_budget = u64::MAX;
        loop {
            match self.boundary(ctx) {
                Next::Exit(exit) => return exit,
                Next::Again => continue,
                Next::Execute => {}
            }
            let left = end.saturating_sub(self.retired);
            if left == 0 {
                return Exit::Retired;
            }
            let result = if self.steps(ctx) {
                self.step(ctx, left)
            } else {
                self.blocks(ctx, end).map(|()| None)
            };
            match result {
                Ok(None) => {}
                Ok(Some(exit)) => return exit,
                Err(stop) => {
                    if let Some(exit) = self.stopped(ctx, stop) {
                        return exit;
                    }
                }
            }
        }
    }

    /// Something wants attention before or after every single instruction.
    fn steps(&self, ctx: &mut Ctx<'_>) -> bool {
        let cpu = &mut *ctx.cpu;
        let steps = cpu.rflags & rflags::TF != 0
            || cpu.dr7 & dr::DR7_ENABLED != 0
            || cpu.events.shadow != Shadow::None
            || self.single_step
            || !self.breakpoints.is_empty();
        if !steps {
            // It suppresses breakpoints, which there are none of, for one instruction.
            cpu.rflags &= !rflags::RF;
        }
        steps
    }

    /// Block after block, until one has to be left.
    fn blocks(&mut self, ctx: &mut Ctx<'_>, end: u64) -> Result<(), Stop> {
        let mut translating = self.translator.is_some();
        let mut left = None;
        let mut span = self.locate(ctx)?;
        // Where the block begins, and the instruction that is executed first.
        let (mut base, mut from) = (ctx.cpu.rip, 0);
        loop {
            if from == 0
                && translating
                && Width::of(ctx.cpu).is_some()
                && let Some(result) =
                    self.translated(ctx, span, left.take(), end.saturating_sub(self.retired))
            {
                left = Some(result?);
                // The rest is interpreted: it is shorter than one block.
                translating = left != Some(Left::Short);
                if ctx.cpu.leave || ctx.cpu.slot.flags.load(Relaxed) != 0 {
                    self.count_reps(ctx);
                    return Ok(());
                }
                if self.retired >= end {
                    return Ok(());
                }
                span = self.locate(ctx)?;
                continue;
            }
            if span.is_bare() {
                span = self.dress(ctx, span)?;
            }
            let insns = self.cache.insns(span).get(from..).unwrap_or_default();
            if end != u64::MAX {
                self.retired += std::mem::take(&mut ctx.cpu.rep_retired);
                let left = end.saturating_sub(self.retired);
                let Some(spare) = left.checked_sub(insns.len() as u64) else {
                    ctx.cpu.rep_budget = left;
                    return if left == 0 { Ok(()) } else { self.one(ctx, span) };
                };
                // Of a REP the first iteration is the instruction itself.
                ctx.cpu.rep_budget = spare + 1;
            }
            if from == 0 {
                base = ctx.cpu.rip;
            }
            let mut rest = insns.iter();
            let mut branch = None;
            while let Some(insn) = rest.next() {
                ctx.cpu.rip = base.wrapping_add(u64::from(insn.end));
                match (insn.handler)(ctx, insn) {
                    Ok(()) => {
                        if ctx.cpu.leave {
                            break;
                        }
                    }
                    Err(Stop::Branch) => {
                        branch = Some(insn);
                        break;
                    }
                    Err(stop) => {
                        self.retired += (insns.len() - rest.len() - 1) as u64;
                        return Err(failed(ctx, base, insn, stop, &mut self.retired));
                    }
                }
            }
            let done = (insns.len() - rest.len()) as u32;
            self.retired += u64::from(done);
            if ctx.cpu.leave || ctx.cpu.slot.flags.load(Relaxed) != 0 {
                self.count_reps(ctx);
                return Ok(());
            }
            if end != u64::MAX {
                self.retired += std::mem::take(&mut ctx.cpu.rep_retired);
                // Fetching what follows may fault, which is for the next run.
                if self.retired >= end {
                    return Ok(());
                }
            }
            let Some(branch) = branch else {
                (span, from) = (self.locate(ctx)?, 0);
                continue;
            };
            if let Some(target) = self.cache.chained(branch) {
                (span, from) = (target, 0);
                continue;
            }
            let last = (from as u32).wrapping_add(done).wrapping_sub(1);
            let loops = match self.inside(span, ctx.cpu.rip.wrapping_sub(base), end) {
                Inside::At(index) => {
                    from = index;
                    continue;
                }
                Inside::Hot => true,
                Inside::No => false,
            };
            (span, from) = (self.follow(ctx, base, (span, last), loops)?, 0);
        }
    }

    /// What follows a branch, which is that instruction of a block that begins at `base`;
    /// `loops`: it leads into its own block, and has done so often.
    fn follow(
        &mut self,
        ctx: &mut Ctx<'_>,
        base: u64,
        (before, last): (Span, u32),
        loops: bool,
    ) -> Result<Span, Stop> {
        // Elsewhere a segment's limit has to be asked.
        let near = ctx.cpu.mode.is64() && (ctx.cpu.rip ^ base) >> 12 == 0;
        let epoch = self.cache.epoch();
        self.behind = before;
        let span = self.locate(ctx)?;
        if loops && let Some(Heat::Runs(runs)) = self.cache.heat(span) {
            *runs = (*runs).max(self.hot);
        }
        // What ends in the next page depends on more than this one.
        let whole = ctx.cpu.rip % PAGE_SIZE + u64::from(span.len) <= PAGE_SIZE;
        if near && whole {
            self.cache.chain(epoch, before, last, span);
        }
        Ok(span)
    }

    /// Whether what follows a branch is this far inside its own block, and may be executed
    /// there. Only what is to be translated, since it has been executed often enough, is made a
    /// block of its own.
    fn inside(&mut self, span: Span, offset: u64, end: u64) -> Inside {
        if offset >= u64::from(span.len) || self.hot == 0 {
            return Inside::No;
        }
        let Some(&mut turns) = self.cache.turns(span) else { return Inside::No };
        if turns >= self.hot {
            return Inside::Hot;
        }
        let insns = self.cache.insns(span);
        let index = insns.partition_point(|insn| u64::from(insn.end) <= offset);
        let starts = |insn: &Insn| u64::from(insn.end) == offset + u64::from(insn.len);
        // Otherwise it is the rest of an instruction, or longer than the budget.
        let fits = end == u64::MAX || self.retired + (insns.len() - index) as u64 <= end;
        if !insns.get(index).is_some_and(starts) || !fits {
            return Inside::No;
        }
        self.cache.turns(span).into_iter().for_each(|n| *n = turns + 1);
        Inside::At(index)
    }

    fn count_reps(&mut self, ctx: &mut Ctx<'_>) {
        self.retired += std::mem::take(&mut ctx.cpu.rep_retired);
    }

    /// The first instruction of a block.
    fn one(&mut self, ctx: &mut Ctx<'_>, span: Span) -> Result<(), Stop> {
        let Some(insn) = self.cache.insns(span).first() else { return Ok(()) };
        let base = ctx.cpu.rip;
        ctx.cpu.rip = base.wrapping_add(u64::from(insn.end));
        match (insn.handler)(ctx, insn) {
            Ok(()) | Err(Stop::Branch) => {}
            Err(stop) => return Err(failed(ctx, base, insn, stop, &mut self.retired)),
        }
        self.retired += 1;
        self.count_reps(ctx);
        Ok(())
    }

    /// One instruction, or one iteration of a REP where that is asked for, with all that may
    /// happen before and after it.
    fn step(&mut self, ctx: &mut Ctx<'_>, left: u64) -> Result<Option<Exit>, Stop> {
        let linear = linear_ip(ctx);
        if self.breakpoints.contains(&linear) && ctx.cpu.rflags & rflags::RF == 0 {
            // As after a fault: running again executes the instruction.
            ctx.cpu.rflags |= rflags::RF;
            return Ok(Some(Exit::Debug(DebugExit::Breakpoint { address: linear })));
        }
        let hits = instruction_breakpoints(ctx, linear);
        if hits != 0 && ctx.cpu.rflags & rflags::RF == 0 {
            return Err(debug_exception(ctx, hits));
        }
        let mut span = self.locate(ctx)?;
        if span.is_bare() {
            span = self.dress(ctx, span)?;
        }
        let trapped = ctx.cpu.rflags & rflags::TF != 0;
        ctx.cpu.rflags &= !rflags::RF;
        if std::mem::take(&mut ctx.cpu.events.shadow) != Shadow::None {
            ctx.cpu.look = true;
        }
        let stepping = trapped || self.single_step;
        ctx.cpu.rep_budget = if stepping { 1 } else { left.max(1) };
        // INT n and the fast calls clear TF, and with it the trap.
        let software = self.cache.insns(span).first().is_some_and(enters_a_handler);
        let result = self.one(ctx, span);
        ctx.cpu.rep_budget = u64::MAX;
        result?;
        if trapped && !software {
            ctx.cpu.dr_hits |= dr::DR6_BS;
        }
        if self.single_step {
            return Ok(Some(Exit::Debug(DebugExit::Step)));
        }
        Ok(None)
    }

    fn raise(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Stop> {
        self.counters.exception(ctx.cpu.raised.vector);
        event::raise(ctx)
    }

    /// What a stop means for the vCPU.
    pub(crate) fn stopped(&mut self, ctx: &mut Ctx<'_>, stop: Stop) -> Option<Exit> {
        self.count_reps(ctx);
        match stop {
            Stop::Fault if ctx.offer_exception() => None,
            Stop::Fault => match self.raise(ctx) {
                Ok(()) => None,
                Err(Stop::Unhandled) => Some(Exit::Unhandled(ctx.cpu.unhandled)),
                Err(_) => Some(Exit::Shutdown),
            },
            Stop::Halt => {
                ctx.cpu.mp = MpState::Halted;
                ctx.cpu.look = true;
                None
            }
            Stop::Branch => None,
            Stop::Shutdown => Some(Exit::Shutdown),
            Stop::Unhandled => Some(Exit::Unhandled(ctx.cpu.unhandled)),
        }
    }
}

/// Where a branch has led.
enum Inside {
    /// To the instruction of this number in the same block.
    At(usize),
    /// Into the same block, for so many times that it is to be translated.
    Hot,
    No,
}

/// RIP after an instruction that did not simply complete.
#[cold]
fn failed(ctx: &mut Ctx<'_>, base: u64, insn: &Insn, stop: Stop, retired: &mut u64) -> Stop {
    match stop {
        Stop::Halt => *retired += 1,
        _ => ctx.cpu.rip = base.wrapping_add(u64::from(insn.end) - u64::from(insn.len)),
    }
    stop
}

fn enters_a_handler(insn: &Insn) -> bool {
    use Mnemonic::*;
    let mnemonic = insn.cold.as_ref().map_or(INVALID, |cold| cold.iced.mnemonic());
    matches!(mnemonic, Int | Int3 | Into | Int1 | Syscall | Sysenter)
}

/// DR6's bits for the guest's instruction breakpoints at this address.
fn instruction_breakpoints(ctx: &Ctx<'_>, linear: u64) -> u64 {
    let cpu = &*ctx.cpu;
    let hit = |n: &usize| {
        let enabled = cpu.dr7 >> (2 * n) & 3 != 0;
        enabled && cpu.dr7 >> (16 + 4 * n) & 3 == 0 && cpu.dr[*n] == linear
    };
    (0..4).filter(hit).map(|n| 1 << n).sum()
}

/// Raises #DB with these bits of DR6.
pub(crate) fn debug_exception(ctx: &mut Ctx<'_>, bits: u64) -> Stop {
    ctx.cpu.raised = Exception { vector: exception::DB, error: None, payload: bits };
    Stop::Fault
}
