//! The seam between a machine and whatever executes its guest.
//!
//! An engine knows nothing of devices; a machine knows nothing of KVM or of translated code.
//! Two rules make engines interchangeable:
//!
//! 1. **Boundary rule.** While the guest runs, the engine calls [`VcpuHost`] and finishes the
//!    instruction itself. Whenever [`Vcpu::run`] returns, the vCPU stands between two
//!    instructions, or two iterations of a REP, and may be saved; an event not yet delivered
//!    is state. All operands of an instruction are probed before its first device side effect.
//! 2. **Neutral state.** [`VcpuState`] is architecture, never back end: what one engine saves,
//!    every other engine restores.
//!
//! **Interrupts are pulled, not pushed.** Where the host has the local APIC
//! ([`Caps::local_apic`] is false), the engine asks at instruction boundaries what is pending
//! and acknowledges what it takes. Where the engine has it, messages go to
//! [`Vm::signal_msi`], and `pending` names only the PIC's interrupt and NMIs.
//!
//! **Layout changes are atomic to running vCPUs** and legal from a callback.
//!
//! **Every input of a vCPU crosses at a named point** of [`VcpuHost`]: ports, MMIO, MSRs,
//! interrupts, the TSC, random numbers. A host that wraps another records or replays them.

mod debug;
mod host;
pub mod stats;

pub use debug::{Breakpoint, BreakpointKind, DebugExit, GuestDebug};
pub use host::{
    Cause, CpuView, Flow, GeneralProtection, Pending, Roots, TableChanges, Trace, Trap, VcpuHost,
};
pub use stats::Stats;

use cpu_model::CpuidTable;
use guest_mem::{Change, Generation, GuestMem, PageBitmap, SlotId};
use std::{os::fd::BorrowedFd, sync::Arc};
use vcpu_state::VcpuState;
pub use x86_defs::Msi;

/// What an engine can do, settled once when it is opened.
#[derive(Clone, Debug)]
pub struct Caps {
    pub intercepts: Intercepts,
    /// Those that it has besides in a VM that gives it [`VmConfig::ring0`].
    pub ring0_intercepts: Intercepts,
    /// [`Vcpu::run_for`] works.
    pub counted: bool,
    /// The engine emulates local APICs; then [`VcpuHost`] need not.
    pub local_apic: bool,
    /// Breakpoints that [`Vcpu::set_debug`] takes at most.
    pub breakpoints: usize,
    pub max_vcpus: u32,
    /// The guest's TSC frequency when [`VmConfig::tsc_khz`] does not ask for another.
    pub tsc_khz: u32,
    /// Another frequency can be had.
    pub tsc_scaling: bool,
    /// The features that guests can be given: what the engine executes, as a CPUID table.
    pub cpuid: CpuidTable,
    /// IA32_ARCH_CAPABILITIES of a VM that gives [`VmConfig::ring0`], if it is an engine's own and not the
    /// processor's that runs it.
    pub ring0_capabilities: Option<u64>,
}

impl Caps {
    /// What an engine cannot do is refused before a VM exists, never later.
    pub fn check(&self, config: &VmConfig) -> Result<(), Error> {
        let (want, mut have) = (config.intercepts, self.intercepts);
        if config.ring0.is_some() {
            have.exceptions |= self.ring0_intercepts.exceptions;
            have.syscall |= self.ring0_intercepts.syscall;
            have.cpuid |= self.ring0_intercepts.cpuid;
        }
        if want.exceptions & !have.exceptions != 0
            || (want.syscall && !have.syscall)
            || (want.cpuid && !have.cpuid)
        {
            return Err(Error::Unsupported("these intercepts"));
        }
        if config.counted && !self.counted {
            return Err(Error::Unsupported("counting retired instructions"));
        }
        if config.tsc_khz.is_some_and(|khz| khz != self.tsc_khz) && !self.tsc_scaling {
            return Err(Error::Unsupported("another TSC frequency than the host's"));
        }
        Ok(())
    }
}

/// Pages of a guest that runs in ring 3 alone, for an engine that intercepts by code of its own in
/// ring 0. They are memory that the guest cannot reach, and every root of the guest's has them, for
/// the supervisor: the first for reading and executing, those behind it for reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring0 {
    /// The guest-physical address of the first page.
    pub gpa: u64,
    /// Its linear address.
    pub linear: u64,
    /// One for all, and one for each vCPU.
    pub pages: u64,
    /// In the GDT of every vCPU this selector is 64-bit code of ring 0.
    pub code: u16,
}

/// Guest events that go to [`VcpuHost::trap`] instead of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intercepts {
    /// One bit per exception vector.
    pub exceptions: u32,
    pub syscall: bool,
    pub cpuid: bool,
}

#[derive(Clone, Debug, Default)]
pub struct VmConfig {
    pub intercepts: Intercepts,
    /// Only for guests of which nothing runs in ring 0. An engine that does not need it has no use
    /// for it.
    pub ring0: Option<Ring0>,
    pub counted: bool,
    /// What the guest's CPUID answers.
    pub cpuid: CpuidTable,
    /// Sum of the lengths of all memory slots that the VM will ever have at once, in bytes.
    pub memory: u64,
    pub tsc_khz: Option<u32>,
    /// Tell [`VcpuHost::trace`] of interrupts and exceptions, where the engine sees them.
    pub trace: bool,
}

/// A way of executing guests: KVM, the translator.
pub trait Engine: Send + Sync {
    fn name(&self) -> &'static str;
    fn caps(&self) -> &Caps;
    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>, Error>;
}

/// One guest: its physical address space and its clock.
pub trait Vm: Send + Sync {
    /// The same memory as devices see it.
    fn memory(&self) -> &Arc<GuestMem>;

    /// Applies all changes or none. No instruction sees half of them, and running vCPUs need
    /// not be stopped; legal from a callback, which is why completion is a separate question:
    /// see [`Vm::settled`].
    fn set_layout(&self, changes: &[Change]) -> Result<Generation, Error>;

    /// No vCPU still executes an instruction begun under an older layout.
    fn settled(&self, generation: Generation) -> bool;

    /// vCPU 0 is the bootstrap processor; the number is also the APIC ID. Each starts in its
    /// reset state.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error>;

    fn log_dirty(&self, on: bool) -> Result<(), Error>;

    /// Adds to `out`, and forgets, the pages written since the last call by the guest (the
    /// engine's log) or by devices ([`guest_mem::DmaBuf`]). A page that is written while this
    /// runs is in `out`, or will be in the next call's.
    fn take_dirty(&self, slot: SlotId, out: &mut PageBitmap) -> Result<(), Error>;

    fn clock(&self) -> Result<ClockSample, Error>;
    fn set_clock(&self, at: &ClockSample) -> Result<(), Error>;

    /// Delivers a message to the local APICs. Only with [`Caps::local_apic`].
    fn signal_msi(&self, _msi: Msi) -> Result<(), Error> {
        Err(Error::Unsupported("messages: the machine has the local APICs"))
    }

    /// The IOAPIC's pins as messages, with those that are level-triggered: what an engine with
    /// local APICs needs to call [`VcpuHost::eoi`]. Only with [`Caps::local_apic`].
    fn set_pin_routes(&self, _pins: &[Option<Msi>]) -> Result<(), Error> {
        Err(Error::Unsupported("pin routes: the machine has the local APICs"))
    }

    /// Signals `event` when the guest writes there, without a callback.
    fn doorbell(&self, _at: &Doorbell, _event: BorrowedFd<'_>) -> Result<Handle, Error> {
        Err(Error::Unsupported("doorbells"))
    }

    /// Sends `msi` whenever `event` is signalled; dropping the handle unbinds.
    fn irqfd(&self, _msi: Msi, _event: BorrowedFd<'_>) -> Result<Box<dyn IrqHandle>, Error> {
        Err(Error::Unsupported("irqfds"))
    }
}

/// Keeps something registered while it lives.
pub type Handle = Box<dyn Send + Sync>;

/// An irqfd that lives as long as this.
pub trait IrqHandle: Send + Sync {
    fn update(&self, msi: Msi) -> Result<(), Error>;
    /// While masked, events collect in the eventfd.
    fn mask(&self, masked: bool) -> Result<(), Error>;
}

/// An address that rings when the guest writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    pub at: DoorbellAddress,
    /// Width of the write in bytes: 1, 2, 4, 8, or 0 for any.
    pub len: u32,
    /// Only writes of this value ring.
    pub datamatch: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellAddress {
    Port(u16),
    Mmio(u64),
}

/// One virtual CPU, owned by the thread that runs it.
pub trait Vcpu: Send {
    fn run(&mut self, host: &mut dyn VcpuHost) -> Result<Exit, Error>;

    /// Like `run`, and returns [`Exit::Retired`] after so many instructions, where an iteration
    /// of a REP counts as one. Needs [`VmConfig::counted`].
    fn run_for(&mut self, retired: u64, host: &mut dyn VcpuHost) -> Result<Exit, Error>;

    /// The `apic` section is meaningful with [`Caps::local_apic`] only; the machine fills it in
    /// otherwise.
    fn state(&mut self) -> Result<VcpuState, Error>;

    /// Also the reset: there is no other path than restoring the reset values.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), Error>;

    /// The machine is paused, and guest time with it. An engine that has clocks of its own lets
    /// them stand: [`Vcpu::state`] is the same however long this lasts.
    fn hold_time(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Guest time goes on from where it was held, or where [`Vcpu::set_state`] put it since.
    fn release_time(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick>;

    /// Breakpoints and single-stepping for a debugger outside the guest; replaces the last.
    fn set_debug(&mut self, debug: &GuestDebug) -> Result<(), Error>;

    /// Instructions retired since creation, where the engine counts them.
    fn retired(&self) -> Option<u64> {
        None
    }

    /// What was counted since creation.
    fn stats(&self) -> Stats {
        Stats::default()
    }
}

/// Takes a vCPU's attention from any thread or signal handler. Both kicks are sticky: one that
/// arrives outside `run`, or in the middle of an instruction, is cleared only by what it
/// causes. Async-signal-safe.
pub trait Kick: Send + Sync {
    /// Ask [`VcpuHost::pending`] again; `run` does not return, unless it would have been idle.
    fn notify(&self);
    /// This `run`, or else the next, returns [`Exit::Stopped`].
    fn stop(&self);
}

/// Why the guest stopped, always at an instruction boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Halted or waiting for SIPI; run again when something is pending. Engines with local
    /// APICs wait themselves and do not return this.
    Idle,
    /// A callback or [`Kick::stop`] asked for it.
    Stopped,
    /// The budget of [`Vcpu::run_for`] is used up.
    Retired,
    /// Triple fault.
    Shutdown,
    /// A breakpoint or single step of [`Vcpu::set_debug`].
    Debug(DebugExit),
    /// The engine lacks what the guest needs here.
    Unhandled(&'static str),
}

/// All of a VM's clocks, read at one instant: samples taken apart drift apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockSample {
    pub guest_ns: u64,
    /// The VM's common TSC; a vCPU's own differs by what its guest wrote.
    pub tsc: u64,
    pub khz: u32,
    pub realtime_ns: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Memory(#[from] guest_mem::Error),
    #[error("{call} failed")]
    Os { call: &'static str, source: std::io::Error },
    #[error("the engine does not support {0}")]
    Unsupported(&'static str),
    #[error("this host cannot run the engine: {0}")]
    Unusable(String),
    #[error("the saved vCPU state is not valid here: {0}")]
    State(String),
}
