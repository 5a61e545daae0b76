//! Whether one instruction can simply follow another.

use crate::Ctx;
use engine::Pending;
use std::sync::atomic::Ordering::Relaxed;
use vcpu_state::{MpState, Raised, Shadow};
use x86_defs::{dr, rflags};

impl Ctx<'_> {
    /// Between two instructions: nothing is to be done before the next one, nothing watches it,
    /// and what made `Cpu::leave` true is no reason to leave any more. If false, that is true.
    ///
    /// The same as the run loop would find, which knows debuggers, too: not for vCPUs that
    /// have one.
    pub fn quiet(&mut self) -> bool {
        self.cpu.leave = true;
        let cpu = &*self.cpu;
        let busy = cpu.slot.flags.load(Relaxed) != 0
            || !cpu.stale_code.is_empty()
            || cpu.stop_asked
            || cpu.dr_hits != 0
            || cpu.mmu.watch_hit.is_some()
            || cpu.mp != MpState::Running
            || cpu.rflags & rflags::TF != 0
            || cpu.dr7 & dr::DR7_ENABLED != 0;
        let events = &cpu.events;
        let event = events.shadow != Shadow::None
            || events.exception != Raised::None
            || events.interrupt.is_some()
            || events.nmi_injected
            || events.nmi_pending;
        if busy || event || cpu.look && !self.nothing_pending() {
            return false;
        }
        // There are no breakpoints that it would suppress (SDM volume 3, 18.3.1.1).
        self.cpu.rflags &= !rflags::RF;
        self.cpu.leave = false;
        true
    }

    /// Asks the host: there is nothing that could be taken now.
    fn nothing_pending(&mut self) -> bool {
        let held = match self.pending() {
            None => false,
            Some(Pending::Interrupt) if self.cpu.rflags & rflags::IF == 0 => true,
            Some(_) => return false,
        };
        (self.cpu.look, self.cpu.held) = (false, held);
        true
    }
}
