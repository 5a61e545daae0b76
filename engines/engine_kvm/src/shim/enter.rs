//! The KVM_RUN loop of a guest in ring 3.

use super::{Registers, Shim, image::Left, view::View};
use crate::{
    os,
    state::{regs_from, regs_into, segment_into},
    sys::{self, KvmExit},
    vcpu::{KvmVcpu, internal_error},
};
use engine::{Cause, Error, Exit, Flow, Pending, Trap, VcpuHost};
use kvm_bindings::*;
use std::sync::atomic::Ordering::SeqCst;
use vcpu_state::{Exception, Regs};
use x86_defs::{
    exception::{BP, GP, OF},
    is_canonical_48, rflags,
    segment::SELECTOR_RPL,
};

/// How the guest has come out of the kernel.
enum Out {
    /// By a stub of the shim's.
    Left,
    /// Nothing of it needs more than another look.
    Again,
    Exit(Exit),
}

/// With these, ring 3 would have ports, or be something else.
const NOT_IN_RING_3: u64 = rflags::IOPL | rflags::VM | rflags::VIF | rflags::VIP;

const NO_EVENT: Out = Out::Exit(Exit::Unhandled("the guest left by what is no event of its own"));

impl KvmVcpu {
    pub(crate) fn drive_ring3(&mut self, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        let Some(mut shim) = self.shim.take() else {
            return Err(Error::Unsupported("a vCPU that is in ring 0 for once"));
        };
        let exit = self.drive_shim(&mut shim, host);
        let put = self.put(&mut shim);
        self.shim = Some(shim);
        let exit = exit?;
        put.map(|()| exit)
    }

    fn drive_shim(&mut self, shim: &mut Shim, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        shim.image.install(&self.vm.mem, shim.id)?;
        loop {
            // What an instruction has raised comes before all else, and before a stop: a state has no
            // place for it.
            if let Some(exception) = shim.raised.take() {
                let next = self.fetch(shim)?.regs.rip;
                self.offer(shim, Trap { cause: Cause::Exception(exception), next }, host)?;
                continue;
            }
            if !shim.inside {
                if self.kick.look() | self.stop {
                    self.kick.stopped();
                    self.stop = false;
                    return Ok(Exit::Stopped);
                }
                if let Some(cause) = due(shim, host) {
                    let next = self.fetch(shim)?.regs.rip;
                    self.offer(shim, Trap { cause, next }, host)?;
                    continue;
                }
                if shim.halted {
                    return Ok(Exit::Idle);
                }
            }
            match self.enter_ring3(shim)? {
                Out::Again => {}
                Out::Exit(exit) => return Ok(exit),
                Out::Left => {
                    let Some(trap) = self.event(shim)? else {
                        return Ok(Exit::Unhandled("an exception in the shim itself"));
                    };
                    self.offer(shim, trap, host)?;
                }
            }
        }
    }

    fn offer(&mut self, shim: &mut Shim, trap: Trap, host: &mut dyn VcpuHost) -> Result<(), Error> {
        let registers = self.fetch(shim)?;
        let mut view = View::new(self, shim, registers);
        let flow = host.trap(trap, &mut view);
        shim.cached = Some(view.finish()?);
        self.stop |= flow == Flow::Stop;
        Ok(())
    }

    /// All registers, from the kernel.
    pub(super) fn registers(&self) -> Result<Registers, Error> {
        let regs = regs_from(&self.fd.get_regs().map_err(os("KVM_GET_REGS"))?);
        Ok(Registers { regs, special: self.get_sregs()? })
    }

    fn fetch(&self, shim: &mut Shim) -> Result<Registers, Error> {
        let registers = match shim.cached {
            Some(registers) => registers,
            None => self.registers()?,
        };
        shim.cached = Some(registers);
        Ok(registers)
    }

    /// The kernel has the registers again.
    fn put(&self, shim: &mut Shim) -> Result<(), Error> {
        let Some(registers) = shim.cached.take() else { return Ok(()) };
        let Registers { mut regs, mut special } = registers;
        if special.cs.l == 0 {
            regs.rip &= 0xffff_ffff;
        }
        regs.rflags = regs.rflags & rflags::DEFINED & !NOT_IN_RING_3 | rflags::FIXED;
        for segment in [
            &mut special.es,
            &mut special.cs,
            &mut special.ss,
            &mut special.ds,
            &mut special.fs,
            &mut special.gs,
        ] {
            // What the processor has when it has loaded a descriptor (SDM volume 3, 27.3.1.2).
            segment.type_ |= segment.present & 1;
        }
        // Ring 0 is the shim's, whatever has happened to what these were read from.
        if [special.cs, special.ss].iter().any(|segment| segment.dpl != 3) {
            return Err(Error::Unsupported("a guest without ring 0 that is not in ring 3"));
        }
        shim.entered = (special.cs, special.ss);
        self.put_sregs(&special)?;
        self.fd.set_regs(&regs_into(&regs)).map_err(os("KVM_SET_REGS"))
    }

    fn enter_ring3(&mut self, shim: &mut Shim) -> Result<Out, Error> {
        let vm = self.vm.clone();
        let inside = vm.gate.enter();
        if shim.inside {
            // Only the shim's code runs now, and it does not take long.
            self.kick.set_immediate_exit(false);
        } else {
            let flushes = vm.flushes.load(SeqCst);
            if shim.stale || shim.flushed != flushes {
                if !self.forget(shim)? {
                    return Ok(NO_EVENT);
                }
                (shim.stale, shim.flushed) = (false, flushes);
            }
            self.put(shim)?;
        }
        let result = self.fd.run().map(drop);
        drop(inside);
        match result {
            Ok(()) => {}
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                shim.inside = self.is_inside()?;
                return Ok(Out::Again);
            }
            Err(e) if e.errno() == libc::EFAULT => {
                return Ok(Out::Exit(Exit::Unhandled("KVM cannot reach the guest's memory")));
            }
            Err(e) => return Err(os("KVM_RUN")(e)),
        }
        let out = self.came_out()?;
        match out {
            Out::Left => {
                shim.inside = false;
                self.complete()?;
            }
            // The kernel may have left before an event was delivered, or between that and its OUT.
            Out::Again => shim.inside = self.is_inside()?,
            Out::Exit(_) => {}
        }
        Ok(out)
    }

    /// Whether an event has begun that is not complete: an exception on its way, or the shim runs.
    fn is_inside(&self) -> Result<bool, Error> {
        let events = self.fd.get_vcpu_events().map_err(os("KVM_GET_VCPU_EVENTS"))?;
        let raised = events.exception.pending | events.exception.injected != 0;
        Ok(raised
            || is_soft(events.exception.nr)
            || self.get_sregs()?.cs.selector & SELECTOR_RPL == 0)
    }

    /// INT3 has come out: another that is on its way is known by its number alone.
    pub(super) fn forget_soft(&self) -> Result<(), Error> {
        let mut events = self.fd.get_vcpu_events().map_err(os("KVM_GET_VCPU_EVENTS"))?;
        events.exception.nr = 0;
        self.fd.set_vcpu_events(&events).map_err(os("KVM_SET_VCPU_EVENTS"))
    }

    fn came_out(&mut self) -> Result<Out, Error> {
        let mapped = self.vm.fd.run_size();
        Ok(match sys::decode(self.fd.get_kvm_run(), mapped) {
            // Ring 3 has no ports.
            KvmExit::Pio { write: true, .. } => Out::Left,
            KvmExit::Internal(suberror) => Out::Exit(Exit::Unhandled(internal_error(suberror))),
            KvmExit::SystemEvent | KvmExit::Other(KVM_EXIT_SHUTDOWN) => Out::Exit(Exit::Shutdown),
            KvmExit::Other(KVM_EXIT_DIRTY_RING_FULL) => {
                self.vm.rings.collect(&self.vm.fd)?;
                Out::Again
            }
            KvmExit::Other(KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_INTR) => Out::Again,
            KvmExit::Other(KVM_EXIT_FAIL_ENTRY) => {
                Out::Exit(Exit::Unhandled("the processor refused the guest's state"))
            }
            _ => NO_EVENT,
        })
    }

    /// The kernel finishes the OUT, and executes nothing beyond.
    fn complete(&mut self) -> Result<(), Error> {
        // Whoever kicks meanwhile has said what for: the next look sees it.
        self.kick.set_immediate_exit(true);
        match self.fd.run().map(drop) {
            Err(e) if e.errno() == libc::EINTR => Ok(()),
            Err(e) => Err(os("KVM_RUN")(e)),
            Ok(()) => Err(Error::Unsupported("a KVM that goes on where it was not to")),
        }
    }

    /// The vCPU forgets all that it knows of page tables: a load of CR3 does that in every
    /// processor. False if it did not come back from there.
    fn forget(&mut self, shim: &mut Shim) -> Result<bool, Error> {
        if self.vm.features.shadowed {
            self.vm.shadows.drop_wrong(&self.vm.fd, &self.vm.mem)?;
        }
        let Registers { regs, mut special } = self.fetch(shim)?;
        special.cs = segment_into(shim.image.code());
        special.ss = kvm_segment { unusable: 1, ..kvm_segment::default() };
        self.put_sregs(&special)?;
        let there = Regs { rip: shim.image.forget(), rflags: rflags::FIXED, ..regs };
        self.fd.set_regs(&regs_into(&there)).map_err(os("KVM_SET_REGS"))?;
        loop {
            self.kick.set_immediate_exit(false);
            match self.fd.run().map(drop) {
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(e) => return Err(os("KVM_RUN")(e)),
                Ok(()) => {}
            }
            match self.came_out()? {
                Out::Again => continue,
                Out::Left => break,
                Out::Exit(_) => return Ok(false),
            }
        }
        self.complete()?;
        let rip = self.fd.get_regs().map_err(os("KVM_GET_REGS"))?.rip;
        // The guest's run is not to end before it has begun, but for who has kicked.
        self.kick.set_immediate_exit(false);
        if self.kick.is_wanted() {
            self.kick.set_immediate_exit(true);
        }
        Ok(shim.image.left_at(rip) == Left::Forgot)
    }
}

/// An exception that the kernel reports neither as pending nor as injected, but for its number: it takes
/// the guest to run into it again (`kvm_exception_is_soft`), and drops it with KVM_SET_REGS. Where ring 3
/// is the processor's own, as in PVM, RIP is behind it already.
pub(super) fn is_soft(vector: u8) -> bool {
    matches!(vector, BP | OF)
}

/// What is to be offered before the guest goes on.
fn due(shim: &mut Shim, host: &dyn VcpuHost) -> Option<Cause> {
    if host.pending() == Some(Pending::Personality) {
        shim.halted = false;
        return Some(Cause::Asked);
    }
    // The processor would not be entered so.
    let lost = shim
        .cached
        .is_some_and(|Registers { regs, special }| special.cs.l != 0 && !is_canonical_48(regs.rip));
    (lost && !shim.halted).then_some(Cause::Exception(Exception {
        vector: GP,
        error: Some(0),
        payload: 0,
    }))
}
