//! What firmware does before an operating system starts: gives every BAR an address, and every
//! bridge its bus and a part of the window.

use crate::{
    config::{Bar, BarKind, command, reg},
    gsi,
    host::{PciHost, Slot},
    lock,
};
use std::{cmp::Reverse, ops::Range, sync::Arc};

/// What each port passes on, for what may be plugged in later.
const PORT_WINDOW: u64 = 2 << 20;
/// Ports that are given out: from where those of old cards end.
const PORTS: Range<u64> = 0xc000..0x1_0000;
/// What bridges can tell apart.
const PORT_ALIGNMENT: u64 = 1 << 20;

impl PciHost {
    /// Places all BARs in the window, the largest first, each at a multiple of its size, and
    /// enables decoding. A BAR for which there is no room stays at 0, where nothing decodes it.
    /// For a machine that starts its guest without firmware; a guest may place them elsewhere.
    pub fn assign(&self) {
        let slots = self.slots();
        let window = self.window();
        let (behind, root): (Vec<_>, Vec<_>) =
            slots.iter().cloned().partition(|slot| slot.parent.is_some());
        place(&root, &PORTS, |bar| bar.kind == BarKind::Io);
        let mut next = place(&root, &window, is_memory);
        for port in root.iter().filter(|slot| slot.port.is_some()) {
            let start = next.next_multiple_of(PORT_ALIGNMENT);
            let range = start..start + PORT_WINDOW;
            let (Some(index), true) =
                (port.port.as_ref().map(|p| p.index), range.end <= window.end)
            else {
                break;
            };
            lock(&port.space).set_bridge(index as u8 + 1, &range);
            let is_behind = |slot: &&Arc<Slot>| {
                slot.parent.as_ref().is_some_and(|parent| Arc::ptr_eq(parent, port))
            };
            let children: Vec<_> = behind.iter().filter(is_behind).cloned().collect();
            place(&children, &range, is_memory);
            next = range.end;
        }
        slots.iter().for_each(enable);
        self.remap();
    }
}

fn is_memory(bar: &Bar) -> bool {
    bar.kind != BarKind::Io
}

/// Places BARs, those of this kind, of functions on one bus; where what is free begins.
fn place(slots: &[Arc<Slot>], window: &Range<u64>, kind: impl Fn(&Bar) -> bool) -> u64 {
    let mut bars: Vec<(&Arc<Slot>, Bar)> = slots
        .iter()
        .flat_map(|slot| {
            let bars = lock(&slot.space).bars().to_vec();
            bars.into_iter().map(move |bar| (slot, bar))
        })
        .filter(|(_, bar)| kind(bar))
        .collect();
    bars.sort_by_key(|(slot, bar)| (Reverse(bar.size), slot.number, bar.index));
    let mut next = window.start;
    for (slot, bar) in bars {
        let size = u64::from(bar.size);
        let base = next.next_multiple_of(size);
        if base + size <= window.end {
            lock(&slot.space).set_bar(&bar, base);
            next = base + size;
        }
    }
    next
}

fn enable(slot: &Arc<Slot>) {
    // Behind a port, pins are the port's.
    let number = slot.parent.as_ref().map_or(slot.number, |port| port.number);
    let mut space = lock(&slot.space);
    if space.byte(reg::INTERRUPT_PIN) != 0 {
        space.write(reg::INTERRUPT_LINE, &[gsi(number) as u8]);
    }
    if !space.bars().is_empty() {
        // The I/O bit stays 0 where there is none.
        space.write(reg::COMMAND, &(command::IO | command::MEMORY).to_le_bytes());
    }
}
