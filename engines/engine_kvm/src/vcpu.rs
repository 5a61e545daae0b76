//! The KVM_RUN loop.

use crate::{
    cpuid, debug,
    held::Held,
    kick::KvmKick,
    msrs, os,
    shim::Shim,
    sys::{self, KvmExit},
    vm::Inner,
};
use engine::*;
use kvm_bindings::*;
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use vcpu_state::VcpuState;
use x86_defs::rflags;

pub(crate) struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) vm: Arc<Inner>,
    pub(crate) kick: Arc<KvmKick>,
    pub(crate) id: u32,
    /// The kernel takes the PIC's interrupt now; `None` where it has not said.
    window: Option<bool>,
    /// The last exit was an access that the next KVM_RUN completes.
    mid_access: bool,
    /// A callback said [`Flow::Stop`].
    pub(crate) stop: bool,
    debug: GuestDebug,
    /// Of a guest without a ring 0.
    pub(crate) shim: Option<Shim>,
    /// Guest time stands still.
    pub(crate) held: Option<Held>,
}

/// What an exit of the kernel comes to.
enum Served {
    Access(Flow),
    /// Single-stepped, or halted while counting.
    Retired,
    Nothing,
    Exit(Exit),
}

impl KvmVcpu {
    pub(crate) fn new(vm: &Arc<Inner>, id: u32) -> Result<Self, Error> {
        if vm.image.is_some_and(|image| u64::from(id) >= image.vcpus()) {
            return Err(Error::Unsupported("a vCPU of this number"));
        }
        let fd = vm.fd.create_vcpu(id.into()).map_err(os("KVM_CREATE_VCPU"))?;
        if vm.features.enforce_pv_cpuid {
            let mut cap =
                kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, ..Default::default() };
            cap.args[0] = 1;
            fd.enable_cap(&cap).map_err(os("KVM_ENABLE_CAP"))?;
        }
        let table = cpuid::to_kvm(&vm.cpuid.for_vcpu(id))?;
        fd.set_cpuid2(&table).map_err(os("KVM_SET_CPUID2"))?;
        sys::set_mce(&fd, msrs::MCG_CAP);
        if vm.tsc.khz() != vm.features.host_khz {
            fd.set_tsc_khz(vm.tsc.khz()).map_err(os("KVM_SET_TSC_KHZ"))?;
        }
        vm.msrs.get_or_init(|| msrs::kept(&fd));
        if vm.features.ring_entries != 0 {
            let ring = sys::DirtyRing::new(&fd, vm.features.ring_entries);
            vm.rings.add(ring.map_err(|source| Error::Os { call: "mmap dirty ring", source })?);
        }
        let kick = Arc::new(KvmKick::new(&fd)?);
        vm.add_kick(&kick);
        let (vm, debug) = (vm.clone(), GuestDebug::default());
        let (window, mid_access, stop) = (None, false, false);
        let shim = vm.image.map(|image| Shim::new(image, id));
        let mut vcpu = Self { fd, vm, kick, id, window, mid_access, stop, debug, shim, held: None };
        vcpu.set_state(&VcpuState::reset(id))?;
        Ok(vcpu)
    }

    pub(crate) fn kept_msrs(&self) -> &[u32] {
        self.vm.msrs.get().map_or(&[], Vec::as_slice)
    }

    /// What follows from a state that was just loaded.
    pub(crate) fn restored(&mut self, state: &VcpuState) {
        self.mid_access = false;
        self.window = None;
        // A guest with the paravirtual clock is told that it did not run; others need not be.
        let _ = self.fd.kvmclock_ctrl();
        if self.id == 0
            && let Some(offset) = sys::tsc_offset(&self.fd)
        {
            self.vm.tsc.set_ahead(offset.wrapping_sub(state.tsc.adjust));
        }
    }

    fn drive(&mut self, budget: Option<u64>, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        let mut left = budget;
        let stepping = budget.is_some() || self.debug.single_step;
        loop {
            let stop = self.kick.look() | self.stop;
            let pending = host.pending();
            if self.mid_access {
                // Whatever waits for a boundary waits for the access, whose second half
                // may be a second exit: neither is lost.
                if stop || pending.is_some() || stepping {
                    self.kick.set_immediate_exit(true);
                }
            } else if stop {
                self.kick.stopped();
                self.stop = false;
                return Ok(Exit::Stopped);
            } else if self.take(pending, host)? {
                continue;
            } else if left == Some(0) {
                return Ok(Exit::Retired);
            }
            let want_window = pending == Some(Pending::Interrupt);
            if want_window && self.window.is_none() {
                // A halted vCPU would wait in the kernel without a look at its window.
                self.kick.set_immediate_exit(true);
            }
            self.fd.get_kvm_run().request_interrupt_window = want_window.into();
            let completes = self.mid_access;
            if let Err(e) = self.enter() {
                match e.errno() {
                    // Not every kernel ends a step that was an access with KVM_EXIT_DEBUG.
                    libc::EINTR if completes && stepping => match left.as_mut() {
                        Some(n) => *n = n.saturating_sub(1),
                        None => return Ok(Exit::Debug(DebugExit::Step)),
                    },
                    libc::EINTR | libc::EAGAIN => {}
                    libc::EFAULT => {
                        return Ok(Exit::Unhandled("KVM cannot reach the guest's memory"));
                    }
                    _ => return Err(os("KVM_RUN")(e)),
                }
                continue;
            }
            match self.serve(host)? {
                Served::Access(flow) => {
                    self.mid_access = true;
                    self.stop |= flow == Flow::Stop;
                }
                Served::Retired => left = left.map(|n| n.saturating_sub(1)),
                Served::Nothing => {}
                Served::Exit(exit) => return Ok(exit),
            }
        }
    }

    fn enter(&mut self) -> Result<(), kvm_ioctls::Error> {
        let inside = self.vm.gate.enter();
        let result = self.fd.run().map(drop);
        drop(inside);
        self.window = Some(self.fd.get_kvm_run().ready_for_interrupt_injection != 0);
        self.mid_access = false;
        result
    }

    /// Takes what is pending, if it can be taken now; true: look again.
    fn take(&mut self, pending: Option<Pending>, host: &mut dyn VcpuHost) -> Result<bool, Error> {
        match pending {
            Some(Pending::Interrupt) if self.window == Some(true) => {
                self.window = Some(false);
                if let Some(vector) = host.ack(Pending::Interrupt) {
                    self.inject(vector)?;
                }
                Ok(true)
            }
            // No intercepts, no personality.
            None | Some(Pending::Interrupt | Pending::Personality) => Ok(false),
            Some(Pending::Nmi) => {
                if host.ack(Pending::Nmi).is_some() {
                    self.fd.nmi().map_err(os("KVM_NMI"))?;
                }
                Ok(true)
            }
            Some(Pending::Init | Pending::Sipi) => {
                Err(Error::Unsupported("INIT and SIPI from the machine: the kernel has the APICs"))
            }
        }
    }

    /// The PIC's interrupt goes in as one whose delivery has begun, which is saved with the
    /// vCPU. KVM_INTERRUPT would keep it where no state section has it.
    fn inject(&mut self, vector: u8) -> Result<(), Error> {
        let mut events = self.fd.get_vcpu_events().map_err(os("KVM_GET_VCPU_EVENTS"))?;
        (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, 0);
        events.flags &= KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
        self.fd.set_vcpu_events(&events).map_err(os("KVM_SET_VCPU_EVENTS"))?;
        let mp = self.fd.get_mp_state().map_err(os("KVM_GET_MP_STATE"))?;
        if mp.mp_state == KVM_MP_STATE_HALTED {
            let mp_state = KVM_MP_STATE_RUNNABLE;
            self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(os("KVM_SET_MP_STATE"))?;
        }
        Ok(())
    }

    fn serve(&mut self, host: &mut dyn VcpuHost) -> Result<Served, Error> {
        let mapped = self.vm.fd.run_size();
        Ok(Served::Access(match sys::decode(self.fd.get_kvm_run(), mapped) {
            KvmExit::Pio { port, size, write: false, data } => host.pio_in(port, size, data),
            KvmExit::Pio { port, size, write: true, data } => host.pio_out(port, size, data),
            KvmExit::Mmio { gpa, write: false, data } => host.mmio_read(gpa, data),
            KvmExit::Mmio { gpa, write: true, data } => host.mmio_write(gpa, data),
            KvmExit::Msr { index, write, value, fault } => {
                let done = if write { host.wrmsr(index, *value) } else { host.rdmsr(index, value) };
                *fault = done.is_err().into();
                done.unwrap_or(Flow::Continue)
            }
            KvmExit::Eoi(vector) => {
                self.stop |= host.eoi(vector) == Flow::Stop;
                return Ok(Served::Nothing);
            }
            KvmExit::Debug(at) => return self.debugged(&at),
            KvmExit::Internal(suberror) => {
                return Ok(Served::Exit(Exit::Unhandled(internal_error(suberror))));
            }
            KvmExit::SystemEvent | KvmExit::Other(KVM_EXIT_SHUTDOWN) => {
                return Ok(Served::Exit(Exit::Shutdown));
            }
            KvmExit::Other(KVM_EXIT_DIRTY_RING_FULL) => {
                self.vm.rings.collect(&self.vm.fd)?;
                return Ok(Served::Nothing);
            }
            KvmExit::Other(KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR | KVM_EXIT_INTR) => {
                return Ok(Served::Nothing);
            }
            // The kernel waits itself where it has the APIC; should it not, this is a poll.
            KvmExit::Other(KVM_EXIT_HLT) => return Ok(Served::Retired),
            KvmExit::Other(KVM_EXIT_FAIL_ENTRY) => {
                return Ok(Served::Exit(Exit::Unhandled(
                    "the processor refused the guest's state",
                )));
            }
            KvmExit::Other(_) => {
                return Ok(Served::Exit(Exit::Unhandled("an exit of KVM that is not known here")));
            }
        }))
    }

    /// Without a debugger it is a step of [`Vcpu::run_for`].
    fn debugged(&mut self, at: &kvm_debug_exit_arch) -> Result<Served, Error> {
        if !self.debug.single_step && self.debug.breakpoints.is_empty() {
            return Ok(Served::Retired);
        }
        let exit = debug::exit(&self.debug, at);
        if matches!(exit, DebugExit::Breakpoint { .. }) {
            // Resuming executes the instruction, as after a fault (SDM volume 3, 18.3.1.1).
            let mut regs = self.fd.get_regs().map_err(os("KVM_GET_REGS"))?;
            regs.rflags |= rflags::RF;
            self.fd.set_regs(&regs).map_err(os("KVM_SET_REGS"))?;
        }
        Ok(Served::Exit(Exit::Debug(exit)))
    }

    fn apply_debug(&self, counting: bool) -> Result<(), Error> {
        let mut debug = debug::to_kvm(&self.debug)?;
        if counting {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        self.fd.set_guest_debug(&debug).map_err(os("KVM_SET_GUEST_DEBUG"))
    }

    fn drive_kickable(
        &mut self,
        budget: Option<u64>,
        host: &mut dyn VcpuHost,
    ) -> Result<Exit, Error> {
        self.kick.enter();
        let exit = match self.shim {
            Some(_) => self.drive_ring3(host),
            None => self.drive(budget, host),
        };
        self.kick.leave();
        exit
    }
}

pub(crate) fn internal_error(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once in KVM",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "a fault of KVM while delivering an event",
        _ => "an internal error of KVM",
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        self.drive_kickable(None, host)
    }

    /// Counts by single steps: slow, which is all that lockstep needs.
    fn run_for(&mut self, retired: u64, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        if self.shim.is_some() {
            return Err(Error::Unsupported("counting instructions of a guest without a ring 0"));
        }
        self.apply_debug(true)?;
        let exit = self.drive_kickable(Some(retired), host);
        self.apply_debug(false)?;
        exit
    }

    fn state(&mut self) -> Result<VcpuState, Error> {
        let mut state = self.save_guest()?;
        if let Some(held) = &self.held {
            held.correct(&mut state);
        }
        Ok(state)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), Error> {
        self.restore_guest(state)?;
        self.hold_again(state);
        Ok(())
    }

    fn hold_time(&mut self) -> Result<(), Error> {
        self.hold()
    }

    fn release_time(&mut self) -> Result<(), Error> {
        self.release()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn set_debug(&mut self, debug: &GuestDebug) -> Result<(), Error> {
        debug::to_kvm(debug)?;
        if self.shim.is_some() && *debug != GuestDebug::default() {
            return Err(Error::Unsupported("a debugger for a guest without a ring 0"));
        }
        self.debug = debug.clone();
        self.apply_debug(false)
    }
}
