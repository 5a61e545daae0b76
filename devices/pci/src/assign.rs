//! What firmware does before an operating system starts: gives every BAR an address.

use crate::{
    config::{command, reg},
    gsi,
    host::PciHost,
    lock,
};

impl PciHost {
    /// Places all BARs in the window, the largest first, each at a multiple of its size, and
    /// enables decoding. A BAR for which there is no room stays at 0, where nothing decodes it.
    /// For a machine that starts its guest without firmware; a guest may place them elsewhere.
    pub fn assign(&self) {
        let slots = self.slots();
        let mut bars: Vec<_> = slots
            .iter()
            .flat_map(|slot| {
                let bars = lock(&slot.space).bars().to_vec();
                bars.into_iter().map(move |bar| (slot, bar))
            })
            .collect();
        bars.sort_by_key(|(slot, bar)| (std::cmp::Reverse(bar.size), slot.number, bar.index));
        let window = self.window();
        let mut next = window.start;
        for (slot, bar) in bars {
            let size = u64::from(bar.size);
            let base = next.next_multiple_of(size);
            if base + size <= window.end {
                lock(&slot.space).set_bar(&bar, base);
                next = base + size;
            }
        }
        for slot in &slots {
            let mut space = lock(&slot.space);
            if space.byte(reg::INTERRUPT_PIN) != 0 {
                space.write(reg::INTERRUPT_LINE, &[gsi(slot.number) as u8]);
            }
            if !space.bars().is_empty() {
                // The I/O bit stays 0 where there is none.
                space.write(reg::COMMAND, &(command::IO | command::MEMORY).to_le_bytes());
            }
        }
        self.remap();
    }
}
