//! The PC board: what is done with all devices of the machine together.

use crate::{
    Error, Tracer,
    apic::TscOffsets,
    clock::GuestClock,
    extras::Extras,
    info::{Info, State, VcpuInfo},
    plug::Ports,
    power::PowerGate,
    start::Starter,
    stats::DeviceCounters,
    timers::TimerThread,
    vcpu::VcpuThread,
};
use chipset::Chipset;
use device::{Clock, Device};
use engine::Vm;
use local_apic::ApicBus;
use pci::PciHost;
use pv_kvm::PvKvm;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use vcpu_state::VcpuState;
use vga::Vga;

pub(crate) struct Board {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) clock: Arc<GuestClock>,
    pub(crate) power: Arc<PowerGate>,
    pub(crate) timers: TimerThread,
    pub(crate) devices: Vec<Arc<dyn Device>>,
    pub(crate) chipset: Chipset,
    pub(crate) pci: Arc<PciHost>,
    pub(crate) extras: Arc<Extras>,
    pub(crate) ports: Ports,
    pub(crate) apics: Apics,
    pub(crate) starter: Starter,
    pub(crate) vga: Option<Arc<Vga>>,
    pub(crate) tracer: Tracer,
    pub(crate) engine: &'static str,
    pub(crate) cpu_model: String,
    pub(crate) memory: u64,
}

/// Who has the local APICs.
pub(crate) enum Apics {
    Board { bus: Arc<ApicBus>, offsets: Arc<TscOffsets>, pv: Arc<PvKvm> },
    Engine { nmi: Vec<Arc<AtomicBool>> },
}

impl Board {
    /// Does what firmware would: writes the boot plan to memory, places BARs, and sets every
    /// vCPU to its reset state.
    pub(crate) fn load(&self, vcpus: &[VcpuThread]) -> Result<(), Error> {
        let bsp = self.starter.start(&self.pci, self.vm.memory(), self.vga.as_deref())?;
        let failed = |source| Error::Engine { engine: self.engine, source };
        if let Apics::Board { bus, .. } = &self.apics
            && let Some(apic) = bus.apic(0)
        {
            apic.set_virtual_wire();
        }
        // One that comes later is made anew then.
        for (id, vcpu) in (0..).zip(vcpus).filter(|(id, _)| self.has_cpu(*id)) {
            let mut state = if id == 0 { bsp.clone() } else { VcpuState::reset(id) };
            if id == 0 && matches!(self.apics, Apics::Engine { .. }) {
                virtual_wire(&mut state);
            }
            let set = vcpu.with(move |vcpu, _| vcpu.set_state(&state));
            set.unwrap_or(Err(engine::Error::Unsupported("a vCPU without its thread")))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Those of the board, and those behind ports.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.devices.iter().chain(self.ports.devices())
    }

    pub(crate) fn reset(&self, vcpus: &[VcpuThread]) -> Result<(), String> {
        self.extras.before_reset();
        for device in self.devices() {
            device.reset();
        }
        match &self.apics {
            Apics::Board { bus, offsets, pv } => {
                bus.reset();
                pv.reset();
                (0..vcpus.len() as u32).for_each(|id| offsets.set(id, 0));
            }
            Apics::Engine { nmi } => nmi.iter().for_each(|n| n.store(false, SeqCst)),
        }
        self.load(vcpus).map_err(|e| e.line())
    }

    /// Time stops, and then devices: what they do last belongs to the time before.
    pub(crate) fn pause_time(&self) {
        self.clock.pause();
        self.timers.rest();
        self.devices().for_each(|device| device.pause());
    }

    /// What devices have counted, by their names; those that count.
    pub(crate) fn counters(&self) -> Vec<DeviceCounters> {
        let of = |device: &Arc<dyn Device>| (device.name(), device.counters());
        self.devices().map(of).filter(|(_, counters)| !counters.is_empty()).collect()
    }

    pub(crate) fn resume_time(&self) {
        self.clock.resume();
        self.timers.clock_changed();
        if matches!(self.apics, Apics::Engine { .. }) {
            // The engine's own paravirtual clock goes on with ours; a guest without it does not
            // miss what could not be set.
            drop(self.vm.set_clock(&self.clock.sample()));
        }
        if let Apics::Board { pv, .. } = &self.apics {
            pv.refresh(true);
        }
        self.devices().for_each(|device| device.resume());
    }

    pub(crate) fn power_button(&self) {
        self.chipset.pm.power_button();
    }

    pub(crate) fn sleep_button(&self) {
        self.chipset.pm.sleep_button();
    }

    pub(crate) fn nmi(&self, vcpus: &[VcpuThread]) {
        match &self.apics {
            Apics::Board { bus, .. } => bus.apics().iter().for_each(|apic| apic.nmi()),
            Apics::Engine { nmi } => {
                for (flag, vcpu) in nmi.iter().zip(vcpus) {
                    flag.store(true, SeqCst);
                    vcpu.waker.wake();
                }
            }
        }
    }

    pub(crate) fn info(&self, state: State, mut vcpus: Vec<VcpuInfo>) -> Info {
        for (id, vcpu) in (0..).zip(&mut vcpus) {
            vcpu.present = self.has_cpu(id);
        }
        Info {
            state,
            engine: self.engine,
            cpu_model: self.cpu_model.clone(),
            memory: self.memory,
            uptime_ns: self.clock.now_ns(),
            kernel: self.starter.description(),
            vcpus,
        }
    }
}

/// What firmware leaves on the bootstrap processor's APIC.
fn virtual_wire(state: &mut VcpuState) {
    const ENABLED: u32 = 0x1ff;
    const EXTINT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let page = &mut state.apic.regs;
    for (index, value) in [(0xf, ENABLED), (0x35, EXTINT), (0x36, NMI)] {
        if let Some(reg) = page.get_mut(index) {
            *reg = value;
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.tracer.flush();
    }
}
