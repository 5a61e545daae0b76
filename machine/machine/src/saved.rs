//! The machine's own saved state, and all of it.

use crate::{
    board::{Apics, Board},
    clock::GuestClock,
    platform::Platform,
    vcpu::{VcpuThread, with_source},
};
use device::Clock;
use saved_state::{Part, Reader, Schema, Writer};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::SeqCst;
use vcpu_state::{ApicState, MpState, Tsc, VcpuState};

/// The frequency of a saved machine's TSC; `None` if that is not in the state.
pub fn tsc_khz(saved: &[Part]) -> Option<u32> {
    let tsc = |part: &&Part| part.kind == Tsc::KIND && part.instance == 0;
    let part = saved.iter().find(tsc)?.clone();
    let tsc: Tsc = Reader::new(vec![part]).ok()?.take(0).ok()?;
    (tsc.khz != 0).then_some(tsc.khz)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClockState {
    pub(crate) guest_ns: u64,
}

impl Schema for ClockState {
    const KIND: &'static str = "clock";
    const VERSION: u16 = 1;
}

impl ClockState {
    pub(crate) fn of(clock: &GuestClock) -> Self {
        Self { guest_ns: clock.now_ns() }
    }
}

impl Board {
    /// Everything but memory. vCPUs are parked. Their interrupts come last: one that somebody's
    /// input causes meanwhile comes once more than it should, and not once less.
    pub(crate) fn save_all(&self, vcpus: &[VcpuThread]) -> Result<Vec<Part>, String> {
        let mut writer = Writer::default();
        if matches!(self.apics, Apics::Engine { .. }) {
            self.end_what_was_ended(&self.states(vcpus)?);
        }
        writer.put(0, &ClockState::of(&self.common.clock));
        for device in self.devices() {
            device.save(&mut writer);
        }
        for (id, state) in (0..).zip(self.states(vcpus)?) {
            state.save(id, &mut writer);
        }
        Ok(writer.finish())
    }

    fn states(&self, vcpus: &[VcpuThread]) -> Result<Vec<VcpuState>, String> {
        let mut states = Vec::new();
        for (id, vcpu) in (0..).zip(vcpus) {
            if !self.has_cpu(id) {
                // What has reached it is of no matter.
                states.push(VcpuState::reset(id));
                continue;
            }
            let state = vcpu.with(|vcpu, _| vcpu.state()).ok_or("a vCPU is gone")?;
            let mut state = state.map_err(|e| with_source(&e))?;
            match &self.apics {
                Apics::Board { bus, pv, .. } => {
                    if let Some(apic) = bus.apic(id) {
                        apply_apic(&mut state, apic.save(), apic.cr8());
                        pv.save(id, &mut state.msrs);
                    }
                }
                Apics::Engine { nmi } => {
                    let waits = nmi.get(id as usize).is_some_and(|nmi| nmi.load(SeqCst));
                    state.events.nmi_pending |= waits;
                }
            }
            states.push(state);
        }
        Ok(states)
    }

    /// The end of a level-triggered interrupt comes from an engine's local APIC only when the vCPU
    /// runs again, and is in no state: the IOAPIC would wait for it for ever.
    fn end_what_was_ended(&self, states: &[VcpuState]) {
        let ended = |vector: &u8| !states.iter().any(|state| is_waiting(&state.apic, *vector));
        let vectors = self.chipset.ioapic.not_ended().into_iter().filter(ended);
        vectors.for_each(|vector| self.chipset.ioapic.eoi(vector));
    }

    pub(crate) fn restore_all(&self, parts: Vec<Part>, vcpus: &[VcpuThread]) -> Result<(), String> {
        let text = |e: saved_state::Error| e.to_string();
        let mut reader = Reader::new(parts).map_err(text)?;
        let mut states = Vec::new();
        for id in 0..vcpus.len() as u32 {
            states.push(VcpuState::restore(id, &mut reader).map_err(text)?);
        }
        let clock: ClockState = reader.take(0).map_err(text)?;
        self.common.clock.set(clock.guest_ns);
        for device in self.devices() {
            device.restore(&mut reader).map_err(text)?;
        }
        reader.finish().map_err(text)?;
        for ((id, vcpu), mut state) in (0..).zip(vcpus).zip(states) {
            if !self.has_cpu(id) {
                continue;
            }
            match &self.apics {
                Apics::Board { bus, offsets, pv } => {
                    pv.restore(id, &mut state.msrs).map_err(|e| e.to_string())?;
                    let common = self.common.clock.tsc();
                    offsets.set(id, state.tsc.value.wrapping_sub(common));
                    if let Some(apic) = bus.apic(id) {
                        apic.restore(&take_apic(&mut state)).map_err(text)?;
                    }
                }
                Apics::Engine { nmi } => {
                    // One that waits is in the vCPU's state.
                    nmi.get(id as usize).into_iter().for_each(|nmi| nmi.store(false, SeqCst));
                }
            }
            let set = vcpu.with(move |vcpu, _| vcpu.set_state(&state)).ok_or("a vCPU is gone")?;
            set.map_err(|e| with_source(&e))?;
        }
        Ok(())
    }
}

/// Whether a vector is requested or in service (SDM volume 3, 11.8.4).
fn is_waiting(apic: &ApicState, vector: u8) -> bool {
    const IN_SERVICE: usize = 0x10;
    const REQUESTED: usize = 0x20;
    let (index, bit) = (usize::from(vector / 32), 1 << (vector % 32));
    let has = |base: usize| apic.regs.get(base + index).is_some_and(|word| word & bit != 0);
    has(IN_SERVICE) || has(REQUESTED)
}

/// The board's APIC into the sections of a vCPU's state.
fn apply_apic(state: &mut VcpuState, saved: local_apic::Saved, cr8: u8) {
    state.apic = saved.apic;
    state.tsc.deadline = saved.deadline;
    state.control.cr8 = cr8;
    state.events.nmi_pending |= saved.nmi;
    state.events.sipi = saved.sipi.or(state.events.sipi);
    if saved.init {
        state.mp = MpState::Init;
    }
}

/// The inverse: what is the APIC's leaves the vCPU's sections.
fn take_apic(state: &mut VcpuState) -> local_apic::Saved {
    let init = state.mp == MpState::Init;
    if init {
        state.mp = MpState::WaitForSipi;
    }
    local_apic::Saved {
        apic: state.apic.clone(),
        deadline: state.tsc.deadline,
        init,
        nmi: std::mem::take(&mut state.events.nmi_pending),
        sipi: state.events.sipi.take(),
    }
}
