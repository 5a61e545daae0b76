//! Between two instructions: requests of other threads, events on their way, interrupts.

use crate::{Interp, run::debug_exception};
use engine::{Cause, DebugExit, Exit, Pending, Trap};
use semantics::{
    Ctx, Stop, event,
    sync::{Request, flag},
};
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use vcpu_state::{MpState, Raised, Shadow};
use x86_defs::rflags;

/// Once in so many looks, it is asked which pages are not checked any more.
const LOOKS: u32 = 16;

pub enum Next {
    Execute,
    /// Something was done: look again.
    Again,
    Exit(Exit),
}

impl Interp {
    pub(crate) fn boundary(&mut self, ctx: &mut Ctx<'_>) -> Next {
        self.counters.boundaries += 1;
        let cpu = &mut *ctx.cpu;
        cpu.leave = false;
        let flags = cpu.slot.flags.load(Acquire);
        if flags != 0 {
            cpu.serve_requests();
            cpu.leave = false;
            if flags & flag::NOTIFY != 0 {
                cpu.slot.flags.fetch_and(!flag::NOTIFY, AcqRel);
                cpu.look = true;
            }
        }
        for range in std::mem::take(&mut cpu.stale_code) {
            self.counters.stale += 1;
            self.cache.invalidate(&range);
        }
        if ctx.cpu.look && ctx.cpu.slots.code_pages().any() {
            self.looks = self.looks.wrapping_add(1);
            // It takes a lock and the time.
            if self.looks.is_multiple_of(LOOKS) {
                self.calm(ctx);
            }
        }
        if let Some(next) = self.debug_traps(ctx) {
            return next;
        }
        if self.stop_wanted(ctx) {
            return Next::Exit(Exit::Stopped);
        }
        if on_its_way(ctx) {
            return self.after(ctx, |ctx| event::inject(ctx).map(drop));
        }
        if ctx.cpu.look
            && let Some(next) = self.look(ctx)
        {
            return next;
        }
        if ctx.cpu.events.nmi_pending && self.takes_nmi(ctx) {
            ctx.cpu.events.nmi_pending = false;
            self.counters.nmis += 1;
            return self.after(ctx, event::nmi);
        }
        match ctx.cpu.mp {
            MpState::Running => Next::Execute,
            MpState::Halted | MpState::Init | MpState::WaitForSipi => Next::Exit(Exit::Idle),
        }
    }

    /// Decodes anew what comes from pages that are not checked any more.
    #[cold]
    fn calm(&mut self, ctx: &mut Ctx<'_>) {
        let slots = ctx.cpu.slots.clone();
        for page in slots.code_pages().expired() {
            let range = page..page.saturating_add(x86_defs::PAGE_SIZE);
            drop(slots.ask_others(&Request::Code(range.clone()), Some(&ctx.cpu.slot)));
            self.cache.invalidate(&range);
        }
    }

    fn stop_wanted(&self, ctx: &mut Ctx<'_>) -> bool {
        let asked = std::mem::take(&mut ctx.cpu.stop_asked);
        let kicked = ctx.cpu.slot.flags.load(Acquire) & flag::STOP != 0
            && ctx.cpu.slot.flags.fetch_and(!flag::STOP, AcqRel) & flag::STOP != 0;
        asked || kicked
    }

    /// Traps of the instruction before: data breakpoints and single-step.
    fn debug_traps(&mut self, ctx: &mut Ctx<'_>) -> Option<Next> {
        if let Some(address) = ctx.cpu.mmu.watch_hit.take() {
            return Some(Next::Exit(Exit::Debug(DebugExit::Watchpoint { address })));
        }
        // They wait until the instruction after MOV SS is done.
        if ctx.cpu.dr_hits == 0 || ctx.cpu.events.shadow == Shadow::MovSs {
            return None;
        }
        let bits = std::mem::take(&mut ctx.cpu.dr_hits);
        let stop = debug_exception(ctx, bits);
        Some(self.after(ctx, |_| Err(stop)))
    }

    fn after(
        &mut self,
        ctx: &mut Ctx<'_>,
        f: impl FnOnce(&mut Ctx<'_>) -> Result<(), Stop>,
    ) -> Next {
        match f(ctx) {
            Ok(()) => Next::Again,
            Err(stop) => self.stopped(ctx, stop).map_or(Next::Again, Next::Exit),
        }
    }

    /// Asks the host what is pending, and takes it if it can be taken.
    fn look(&mut self, ctx: &mut Ctx<'_>) -> Option<Next> {
        ctx.cpu.held = false;
        let pending = ctx.pending();
        let Some(what) = pending else {
            ctx.cpu.look = false;
            return None;
        };
        match what {
            Pending::Interrupt => {
                let open = ctx.cpu.rflags & rflags::IF != 0
                    && ctx.cpu.events.shadow == Shadow::None
                    && matches!(ctx.cpu.mp, MpState::Running | MpState::Halted);
                if !open {
                    // Whatever opens the window looks again.
                    (ctx.cpu.look, ctx.cpu.held) = (false, true);
                    return None;
                }
                match ctx.call(|host| host.ack(Pending::Interrupt)) {
                    Some(vector) => {
                        self.counters.interrupts += 1;
                        Some(self.after(ctx, |ctx| event::interrupt(ctx, vector)))
                    }
                    None => Some(Next::Again),
                }
            }
            Pending::Nmi => {
                let _ = ctx.call(|host| host.ack(Pending::Nmi));
                ctx.cpu.events.nmi_pending = true;
                Some(Next::Again)
            }
            Pending::Init => {
                let _ = ctx.call(|host| host.ack(Pending::Init));
                let id = ctx.cpu.id;
                let mut state = ctx.cpu.save_state(0, 0);
                state.init(id);
                ctx.cpu.load_state(&state);
                Some(Next::Again)
            }
            Pending::Personality => {
                ctx.cpu.mp = MpState::Running;
                ctx.cpu.look = false;
                let next = ctx.cpu.rip;
                ctx.trap(Trap { cause: Cause::Asked, next });
                Some(Next::Again)
            }
            Pending::Sipi => {
                if let Some(vector) = ctx.call(|host| host.ack(Pending::Sipi)) {
                    ctx.cpu.startup(vector);
                }
                Some(Next::Again)
            }
        }
    }

    fn takes_nmi(&self, ctx: &Ctx<'_>) -> bool {
        !ctx.cpu.events.nmi_masked
            && ctx.cpu.events.shadow == Shadow::None
            && matches!(ctx.cpu.mp, MpState::Running | MpState::Halted)
    }
}

/// Events of restored state that are not yet delivered.
fn on_its_way(ctx: &Ctx<'_>) -> bool {
    let events = &ctx.cpu.events;
    events.exception != Raised::None || events.interrupt.is_some() || events.nmi_injected
}
