//! What a handler works on: the vCPU, and the host that answers for everything outside it.

use crate::{Cpu, Insn};
use engine::{Cause, Flow, Trap, VcpuHost};
use vcpu_state::Exception;

/// Why a handler does not simply complete. One byte, so that results travel in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// An exception, described in [`Cpu::raised`]. The instruction has no effect.
    Fault,
    /// A relative branch was taken: the instruction is complete, and what follows it in memory
    /// is not next.
    Branch,
    /// HLT completed.
    Halt,
    /// A fault while a double fault was delivered (SDM volume 3, 6.15, interrupt 8).
    Shutdown,
    /// Something that the engine does not have; described in [`Cpu::unhandled`].
    Unhandled,
}

pub struct Ctx<'a> {
    pub cpu: &'a mut Cpu,
    host: &'a mut dyn VcpuHost,
}

impl std::fmt::Debug for Ctx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("rip", &self.cpu.rip).finish_non_exhaustive()
    }
}

impl<'a> Ctx<'a> {
    pub fn new(cpu: &'a mut Cpu, host: &'a mut dyn VcpuHost) -> Self {
        Self { cpu, host }
    }

    /// Calls the host. Meanwhile the vCPU counts as stopped for handshakes with other threads:
    /// whoever calls must not rely on an address translation from before.
    pub fn call<R>(&mut self, f: impl FnOnce(&mut dyn VcpuHost) -> R) -> R {
        self.cpu.slot.leave_guest();
        let result = f(self.host);
        self.cpu.slot.enter_guest();
        self.cpu.serve_requests();
        result
    }

    /// Calls the host, and heeds its wish to stop at the next instruction boundary.
    pub fn call_flow(&mut self, f: impl FnOnce(&mut dyn VcpuHost) -> Flow) {
        if self.call(f) == Flow::Stop {
            self.cpu.stop_asked = true;
        }
        // What a device was told may be what lets an interrupt through.
        self.cpu.look = true;
        self.cpu.leave = true;
    }

    /// Offers an intercepted event to the host, and heeds its wish to stop at the next instruction
    /// boundary.
    pub fn trap(&mut self, trap: Trap) {
        self.cpu.slot.leave_guest();
        let mut view = crate::mem::View::new(self.cpu);
        let flow = self.host.trap(trap, &mut view);
        drop(view);
        self.cpu.slot.enter_guest();
        self.cpu.serve_requests();
        self.cpu.stop_asked |= flow == Flow::Stop;
        self.cpu.leave = true;
    }

    /// Offers the exception in [`Cpu::raised`] to the host, if it asked for its vector: then where it
    /// leaves RIP, execution goes on.
    pub fn offer_exception(&mut self) -> bool {
        let (exception, wanted) = (self.cpu.raised, self.cpu.intercepts.exceptions);
        let wanted = wanted.checked_shr(exception.vector.into()).unwrap_or(0) & 1 != 0;
        if wanted {
            // Of a fault, the instruction that follows is not known without decoding it.
            let next = self.cpu.rip;
            self.trap(Trap { cause: Cause::Exception(exception), next });
        }
        wanted
    }

    /// What is pending, without the cost of a handshake.
    pub fn pending(&self) -> Option<engine::Pending> {
        self.host.pending()
    }

    /// The VM's common TSC plus this vCPU's offset.
    pub fn tsc(&mut self) -> u64 {
        self.host.tsc().wrapping_add(self.cpu.tsc_offset)
    }

    /// Random bits.
    pub fn random(&mut self) -> u64 {
        self.host.random()
    }

    /// RIP of the instruction under way; valid until its handler changes RIP.
    #[inline]
    pub fn start(&self, insn: &Insn) -> u64 {
        self.cpu.rip.wrapping_sub(u64::from(insn.len)) & self.cpu.mode.ip_mask()
    }
}

impl Cpu {
    /// Raises an exception without an error code: `return Err(cpu.fault(exception::UD))`.
    #[cold]
    pub fn fault(&mut self, vector: u8) -> Stop {
        self.raised = Exception { vector, error: None, payload: 0 };
        Stop::Fault
    }

    /// Raises an exception with an error code.
    #[cold]
    pub fn fault_code(&mut self, vector: u8, error: u32) -> Stop {
        self.raised = Exception { vector, error: Some(error), payload: 0 };
        Stop::Fault
    }

    #[cold]
    pub fn page_fault(&mut self, linear: u64, error: u32) -> Stop {
        let vector = x86_defs::exception::PF;
        self.raised = Exception { vector, error: Some(error), payload: linear };
        Stop::Fault
    }

    #[cold]
    pub fn unhandled(&mut self, what: &'static str) -> Stop {
        self.unhandled = what;
        Stop::Unhandled
    }
}
