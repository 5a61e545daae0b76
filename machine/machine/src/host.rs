//! The board as one vCPU sees it: the other side of the engine's seam.

use crate::{
    apic::VcpuApic,
    clock::GuestClock,
    info::{Activity, Exits, VcpuInfo},
    power::PowerGate,
    trace::Tracer,
};
use chipset::Pic;
use device::{MmioBus, PioBus};
use engine::{CpuView, Flow, GeneralProtection, Pending, Trace, Trap, Vcpu, VcpuHost};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use vcpu_state::MpState;
use vm_spec::TraceKind;
use x86_defs::rflags;
use xen_pv::XenPv;

pub(crate) struct BoardHost {
    pub(crate) id: u32,
    pub(crate) pio: Arc<PioBus>,
    pub(crate) mmio: Arc<MmioBus>,
    pub(crate) clock: Arc<GuestClock>,
    pub(crate) power: Arc<PowerGate>,
    pub(crate) tracer: Tracer,
    /// Interrupts: the board's own local APIC, or the little that an engine with its own
    /// leaves to the board.
    pub(crate) interrupts: Interrupts,
    pub(crate) exits: Exits,
}

pub(crate) enum Interrupts {
    /// The board's, and KVM's paravirtual MSRs.
    Board { apic: VcpuApic, pic: Arc<Pic> },
    Engine {
        pic: Arc<Pic>,
        /// The monitor's NMI.
        nmi: Arc<AtomicBool>,
        ioapic: Arc<chipset::IoApic>,
    },
    /// None: a Xen domain's vCPU is told of events.
    Xen(Arc<XenPv>),
}

impl BoardHost {
    pub(crate) fn power_requested(&self) -> bool {
        self.power.requested()
    }

    /// After a callback in which a device may have asked for a reset or the like.
    fn flow(&self) -> Flow {
        if self.power.requested() { Flow::Stop } else { Flow::Continue }
    }

    /// Tells the guest how long this thread waited for a processor.
    pub(crate) fn update_steal(&self) {
        if let Interrupts::Board { apic, .. } = &self.interrupts {
            apic.update_steal();
        }
        if let Interrupts::Xen(xen) = &self.interrupts
            && xen.counts_delay(self.id)
            && let Some(delay) = pv_kvm::run_delay_ns()
        {
            xen.delayed(self.id, delay);
        }
    }

    pub(crate) fn info(&self, vcpu: &mut dyn Vcpu) -> VcpuInfo {
        let state = vcpu.state().ok();
        let activity = state.as_ref().map_or(Activity::Off, |state| match state.mp {
            MpState::Running => Activity::Runs,
            MpState::Halted if state.regs.rflags & rflags::IF != 0 => Activity::Idle,
            MpState::Halted | MpState::Init | MpState::WaitForSipi => Activity::Off,
        });
        VcpuInfo {
            retired: vcpu.retired(),
            rip: state.map_or(0, |state| state.regs.rip),
            activity,
            present: true,
            exits: self.exits,
        }
    }

    fn trace_access(&self, what: &str, at: u64, data: &[u8]) {
        if self.tracer.wants(TraceKind::Exits) {
            self.tracer.line(self.id, format_args!("{what} {at:#x} {data:02x?}"));
        }
    }
}

impl VcpuHost for BoardHost {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        self.exits.pio += 1;
        for operand in data.chunks_mut(size.max(1)) {
            self.pio.read(port, operand);
            self.trace_access("in", port.into(), operand);
        }
        self.flow()
    }

    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        self.exits.pio += 1;
        for operand in data.chunks(size.max(1)) {
            self.trace_access("out", port.into(), operand);
            self.pio.write(port, operand);
        }
        self.flow()
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        self.exits.mmio += 1;
        match &self.interrupts {
            Interrupts::Board { apic, .. } if apic.mmio_read(gpa, data) => {}
            _ => self.mmio.read(gpa, data),
        }
        self.trace_access("read", gpa, data);
        self.flow()
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.exits.mmio += 1;
        self.trace_access("write", gpa, data);
        match &self.interrupts {
            Interrupts::Board { apic, .. } if apic.mmio_write(gpa, data) => {}
            _ => self.mmio.write(gpa, data),
        }
        self.flow()
    }

    fn rdmsr(&mut self, index: u32, value: &mut u64) -> Result<Flow, GeneralProtection> {
        self.exits.msr += 1;
        let Interrupts::Board { apic, .. } = &self.interrupts else {
            return Err(GeneralProtection);
        };
        *value = apic.rdmsr(index)?;
        self.trace_access("rdmsr", index.into(), &value.to_le_bytes());
        Ok(Flow::Continue)
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<Flow, GeneralProtection> {
        self.exits.msr += 1;
        self.trace_access("wrmsr", index.into(), &value.to_le_bytes());
        let Interrupts::Board { apic, .. } = &self.interrupts else {
            return Err(GeneralProtection);
        };
        apic.wrmsr(index, value)?;
        Ok(Flow::Continue)
    }

    fn pending(&self) -> Option<Pending> {
        match &self.interrupts {
            Interrupts::Board { apic, pic } => apic.pending(pic),
            Interrupts::Engine { nmi, .. } if nmi.load(SeqCst) => Some(Pending::Nmi),
            // The PIC's line leads to the bootstrap processor's LINT0.
            Interrupts::Engine { pic, .. } => {
                (self.id == 0 && pic.pending()).then_some(Pending::Interrupt)
            }
            Interrupts::Xen(xen) => xen.is_pending(self.id).then_some(Pending::Personality),
        }
    }

    fn ack(&mut self, what: Pending) -> Option<u8> {
        self.exits.interrupts += 1;
        match &self.interrupts {
            Interrupts::Board { apic, pic } => apic.ack(what, pic),
            Interrupts::Engine { nmi, pic, .. } => match what {
                Pending::Nmi => nmi.swap(false, SeqCst).then_some(2),
                Pending::Interrupt => pic.ack(),
                Pending::Init | Pending::Sipi | Pending::Personality => None,
            },
            Interrupts::Xen(_) => None,
        }
    }

    fn cr8(&mut self) -> u8 {
        match &self.interrupts {
            Interrupts::Board { apic, .. } => apic.apic.cr8(),
            Interrupts::Engine { .. } | Interrupts::Xen(_) => 0,
        }
    }

    fn set_cr8(&mut self, value: u8) -> Flow {
        if let Interrupts::Board { apic, .. } = &self.interrupts {
            apic.apic.set_cr8(value);
        }
        Flow::Continue
    }

    fn eoi(&mut self, vector: u8) -> Flow {
        if let Interrupts::Engine { ioapic, .. } = &self.interrupts {
            ioapic.eoi(vector);
        }
        Flow::Continue
    }

    fn tsc(&mut self) -> u64 {
        self.clock.tsc()
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        if let Interrupts::Board { apic, .. } = &self.interrupts {
            apic.set_tsc_offset(offset);
        }
    }

    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        self.exits.traps += 1;
        let Interrupts::Xen(xen) = &self.interrupts else { return Flow::Stop };
        match xen.trap(self.id, trap, cpu) {
            Flow::Continue => self.flow(),
            Flow::Stop => Flow::Stop,
        }
    }

    fn trace(&mut self, event: Trace) {
        self.tracer.event(self.id, event);
    }
}
