//! The guest's memory: what of it is there from the start, where more comes to, and what devices
//! lay out.

use crate::{Error, map, screen};
use device::SlotMap;
use engine::Vm;
use guest_mem::{Change, Memfd, Slot};
use std::sync::Arc;
use vm_spec::VmSpec;

/// Devices' memory, laid out by the engine.
pub(crate) struct Slots(pub(crate) Arc<dyn Vm>);

impl SlotMap for Slots {
    fn change(&self, changes: &[Change]) -> Result<(), guest_mem::Error> {
        let done = self.0.set_layout(changes);
        done.map(drop).map_err(|error| match error {
            engine::Error::Memory(error) => error,
            other => guest_mem::Error::Engine(other.to_string()),
        })
    }
}

/// Maps all RAM but what the host bridge lays out, and what a VGA takes the place of; RAM below
/// 4 GiB begins at offset 0.
pub(crate) fn map(vm: &dyn Vm, spec: &VmSpec, engine: &'static str) -> Result<Arc<Memfd>, Error> {
    let memory = spec.memory;
    let ram = Memfd::new(memory).map_err(|source| Error::Memory { size: memory >> 20, source })?;
    let hole = if spec.display.is_there() { screen::WINDOW.start } else { q35::AREA.start };
    let of_others = hole..q35::AREA.end;
    let mut offset = 0;
    let mut changes = Vec::new();
    let mut id = 0;
    for range in map::ram(memory) {
        for part in
            [range.start..range.end.min(of_others.start), of_others.end.max(range.start)..range.end]
        {
            if part.is_empty() {
                continue;
            }
            let (gpa, len, offset) =
                (part.start, part.end - part.start, offset + (part.start - range.start));
            changes.push(Change::Map(Slot {
                id,
                gpa,
                mem: ram.clone(),
                offset,
                len,
                writable: true,
            }));
            id += 1;
        }
        offset += range.end - range.start;
    }
    vm.set_layout(&changes).map_err(|source| Error::Engine { engine, source })?;
    Ok(ram)
}

/// Maps where memory comes to while the machine runs. It takes nothing of the host before it is
/// written.
pub(crate) fn map_room(vm: &dyn Vm, spec: &VmSpec, engine: &'static str) -> Result<(), Error> {
    /// Behind those of the RAM and of the ROM, before those of devices.
    const SLOT: u32 = 12;
    let len = spec.memory_room();
    if len == 0 {
        return Ok(());
    }
    let mem = Memfd::new(len).map_err(|source| Error::Memory { size: len >> 20, source })?;
    let gpa = map::hot_memory(spec.memory, len).start;
    let slot = Slot { id: SLOT, gpa, mem, offset: 0, len, writable: true };
    vm.set_layout(&[Change::Map(slot)]).map(drop).map_err(|source| Error::Engine { engine, source })
}
