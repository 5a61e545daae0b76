//! A domain in saved state, and back.

use super::board::Domain;
use crate::{
    platform::Platform,
    saved::ClockState,
    vcpu::{VcpuThread, with_source},
};
use saved_state::{Part, Reader, Schema, Writer};
use serde::{Deserialize, Serialize};
use vcpu_state::VcpuState;

/// Memory at [`q35::AREA`], which a machine saves itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AreaState {
    bytes: Vec<u8>,
}

impl Schema for AreaState {
    const KIND: &'static str = "xen-area";
    const VERSION: u16 = 1;
}

impl Domain {
    pub(super) fn save_all(&self, vcpus: &[VcpuThread]) -> Result<Vec<Part>, String> {
        let mut writer = Writer::default();
        writer.put(0, &ClockState::of(&self.common.clock));
        for device in self.devices() {
            device.save(&mut writer);
        }
        self.toolstack.save(&mut writer);
        self.xen.save(&mut writer);
        let mut bytes = vec![0; (q35::AREA.end - q35::AREA.start) as usize];
        let read = self.common.vm.memory().read(q35::AREA.start, &mut bytes);
        read.map_err(|error| with_source(&error))?;
        writer.put(0, &AreaState { bytes });
        for (id, vcpu) in (0..).zip(vcpus) {
            let state = vcpu.with(|vcpu, _| vcpu.state()).ok_or("a vCPU is gone")?;
            state.map_err(|error| with_source(&error))?.save(id, &mut writer);
        }
        Ok(writer.finish())
    }

    /// Page tables are looked through when all of memory is there.
    pub(super) fn restore_all(&self, parts: Vec<Part>, vcpus: &[VcpuThread]) -> Result<(), String> {
        let text = |error: saved_state::Error| error.to_string();
        let mut reader = Reader::new(parts).map_err(text)?;
        let mut states = Vec::new();
        for id in 0..vcpus.len() as u32 {
            states.push(VcpuState::restore(id, &mut reader).map_err(text)?);
        }
        let clock: ClockState = reader.take(0).map_err(text)?;
        let area: AreaState = reader.take(0).map_err(text)?;
        if area.bytes.len() as u64 != q35::AREA.end - q35::AREA.start {
            return Err("the saved memory has another size".into());
        }
        let memory = self.common.vm.memory();
        self.toolstack.disconnect();
        memory.write(q35::AREA.start, &area.bytes).map_err(|error| with_source(&error))?;
        self.common.clock.set(clock.guest_ns);
        self.xen.restore(&mut reader).map_err(text)?;
        for device in self.devices() {
            device.restore(&mut reader).map_err(text)?;
        }
        self.toolstack.restore(&mut reader, memory).map_err(text)?;
        reader.finish().map_err(text)?;
        for ((id, vcpu), mut state) in (0..).zip(vcpus).zip(states) {
            self.xen.admit(id, &mut state).map_err(|why| format!("vCPU {id}: {why}"))?;
            // The common one: what a TSC means is told anew when the clocks go on, and one that goes on
            // from elsewhere would not be what is told.
            state.tsc.value = 0;
            let set = vcpu.with(move |vcpu, _| vcpu.set_state(&state)).ok_or("a vCPU is gone")?;
            set.map_err(|error| with_source(&error))?;
        }
        Ok(())
    }
}
