//! The PC board: what is done with all devices of the machine together.

use crate::{
    Error, ScsiAddress,
    apic::TscOffsets,
    extras::Extras,
    parts::DiskPart,
    place::Place,
    platform::{Common, Platform, Sleep},
    plug::{Plug, PlugError, Ports},
    start::Starter,
    vcpu::VcpuThread,
};
use chipset::Chipset;
use device::Device;
use local_apic::ApicBus;
use pci::PciHost;
use pv_kvm::PvKvm;
use saved_state::Part;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use vcpu_state::VcpuState;
use vga::Vga;

pub(crate) struct Board {
    pub(crate) common: Common,
    pub(crate) chipset: Chipset,
    pub(crate) pci: Arc<PciHost>,
    pub(crate) extras: Arc<Extras>,
    pub(crate) ports: Ports,
    pub(crate) apics: Apics,
    pub(crate) starter: Starter,
    pub(crate) vga: Option<Arc<Vga>>,
}

/// Who has the local APICs.
pub(crate) enum Apics {
    Board { bus: Arc<ApicBus>, offsets: Arc<TscOffsets>, pv: Arc<PvKvm> },
    Engine { nmi: Vec<Arc<AtomicBool>> },
}

impl Platform for Board {
    fn common(&self) -> &Common {
        &self.common
    }

    fn kernel(&self) -> String {
        self.starter.description()
    }

    /// Does what firmware would: writes the boot plan to memory, places BARs, and sets every
    /// vCPU to its reset state.
    fn load(&self, vcpus: &[VcpuThread]) -> Result<(), Error> {
        let memory = self.common.vm.memory();
        let bsp = self.starter.start(&self.pci, memory, self.vga.as_deref())?;
        let failed = |source| Error::Engine { engine: self.common.engine, source };
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

    fn reset(&self, vcpus: &[VcpuThread]) -> Result<(), String> {
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

    /// Those of the board, and those behind ports.
    fn devices(&self) -> Box<dyn Iterator<Item = &Arc<dyn Device>> + '_> {
        Box::new(self.common.devices.iter().chain(self.ports.devices()))
    }

    fn clocks_go_on(&self) {
        match &self.apics {
            // The engine's own paravirtual clock goes on with ours; a guest without it does not
            // miss what could not be set.
            Apics::Engine { .. } => {
                drop(self.common.vm.set_clock(&self.common.clock.sample()));
            }
            Apics::Board { pv, .. } => pv.refresh(true),
        }
    }

    fn power_button(&self) {
        self.chipset.pm.power_button();
    }

    fn sleep_button(&self) -> Sleep {
        self.chipset.pm.sleep_button();
        Sleep::Pressed
    }

    fn nmi(&self, vcpus: &[VcpuThread]) {
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

    fn has_cpu(&self, id: u32) -> bool {
        self.chipset.cpus.as_ref().is_none_or(|cpus| cpus.is_present(id))
    }

    fn set_cpus(&self, count: u32, vcpus: &[VcpuThread]) -> Result<(), String> {
        self.set_count(count, vcpus)
    }

    fn renew_ejected(&self, vcpus: &[VcpuThread]) -> Result<(), String> {
        self.renew_those_ejected(vcpus)
    }

    fn set_memory(&self, bytes: u64) -> bool {
        self.extras.set_memory(bytes)
    }

    fn leave(&self, bytes: u64) -> bool {
        self.extras.leave(bytes)
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.extras.resize(columns, rows);
    }

    fn plug(&mut self, plug: Plug, label: String, running: bool) -> Result<Place, PlugError> {
        self.ports.plug(plug, label, running)
    }

    fn insert(
        &mut self,
        drive: ScsiAddress,
        disc: Option<DiskPart>,
        label: String,
    ) -> Result<(), PlugError> {
        self.ports.insert(drive, disc, label)
    }

    fn unplug(&mut self, place: Place) -> bool {
        self.ports.unplug(place)
    }

    fn places(&mut self) -> Vec<(Place, Option<String>)> {
        self.ports.labels()
    }

    fn forget_ejected(&mut self) {
        self.ports.forget_ejected();
    }

    fn save(&self, vcpus: &[VcpuThread]) -> Result<Vec<Part>, String> {
        self.save_all(vcpus)
    }

    fn restore(&self, parts: Vec<Part>, vcpus: &[VcpuThread]) -> Result<(), String> {
        self.restore_all(parts, vcpus)
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
