//! BARs that are memory: shown to the guest as RAM while they are decoded.

use device::{FIRST_SLOT, SlotMap};
use guest_mem::{Change, Memfd, Slot, SlotId};
use std::{fmt, ops::Range, sync::Arc};

/// A BAR that wants to be seen: slot, index, where, and what.
type Wanted = (u8, usize, Range<u64>, Arc<Memfd>);

pub(crate) struct MappedBars {
    /// What the bridge decodes: a BAR elsewhere is not reached.
    window: Range<u64>,
    slots: Arc<dyn SlotMap>,
    shown: Vec<(SlotId, Range<u64>)>,
}

impl fmt::Debug for MappedBars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedBars").field("shown", &self.shown).finish_non_exhaustive()
    }
}

/// Registers of a function that can be BARs with memory.
const BARS: u32 = 6;

impl MappedBars {
    pub(crate) fn new(window: Range<u64>, slots: Arc<dyn SlotMap>) -> Self {
        Self { window, slots, shown: Vec::new() }
    }

    /// From now on these are seen, and no others. One that lies outside the window or over
    /// another is not; the guest put it there.
    pub(crate) fn show(&mut self, wanted: Vec<Wanted>) {
        let id = |slot: u8, bar: usize| FIRST_SLOT + u32::from(slot) * BARS + bar as u32;
        let slots = &self.slots;
        self.shown.retain(|(shown, range)| {
            let stays =
                wanted.iter().any(|(slot, bar, at, _)| id(*slot, *bar) == *shown && at == range);
            // What cannot be taken away stays known, and is tried again.
            stays || slots.change(&[Change::Unmap(*shown)]).is_err()
        });
        for (slot, bar, range, mem) in wanted {
            let id = id(slot, bar);
            let inside = self.window.start <= range.start && range.end <= self.window.end;
            if !inside || self.shown.iter().any(|(shown, _)| *shown == id) {
                continue;
            }
            let (gpa, len) = (range.start, range.end - range.start);
            let map = Change::Map(Slot { id, gpa, mem, offset: 0, len, writable: true });
            // Where that fails its accesses go to the function.
            if self.slots.change(&[map]).is_ok() {
                self.shown.push((id, range));
            }
        }
    }
}
