//! What a device is built into.

use crate::*;
use guest_mem::GuestMem;
use std::{fmt, ops::RangeInclusive, sync::Arc};

/// What a guest can ask of its machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// ACPI S5, or its like.
    PowerOff,
    Reset,
    /// pvpanic.
    GuestPanicked,
    /// pvpanic: panicked, and a crash kernel was loaded.
    GuestCrashLoaded,
    /// The debug-exit port, with what was written.
    DebugExit(u32),
}

pub trait PowerSink: Send + Sync {
    /// Returns at once; the machine acts at the next instruction boundary.
    fn request(&self, event: PowerEvent);
}

/// The machine under construction.
pub struct Wiring {
    pub memory: Arc<GuestMem>,
    /// Changes what is memory.
    pub slots: Arc<dyn SlotMap>,
    pub clock: Arc<dyn Clock>,
    pub timers: Arc<dyn Timers>,
    pub power: Arc<dyn PowerSink>,
    pub msi: Arc<dyn MsiSink>,
    pub pio: PioBus,
    pub mmio: MmioBus,
    pub devices: Vec<Arc<dyn Device>>,
    /// Lines of the board by ISA IRQ (0 to 15) or GSI (16 to 23); set by the interrupt
    /// controllers, taken by everyone after them.
    pub irqs: Vec<LineRef>,
}

impl Wiring {
    /// # Panics
    /// If the range is another's: the board's address map is the programmer's.
    pub fn claim_ports(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u16>,
        device: Arc<dyn PioDevice>,
    ) {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        if let Err(other) = self.pio.claim(Claim { name, range, device }) {
            panic!("ports of {name} overlap those of {other}");
        }
    }

    /// # Panics
    /// If the range is another's.
    pub fn claim_mmio(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
        device: Arc<dyn MmioDevice>,
    ) {
        if let Err(other) = self.mmio.claim(Claim { name, range, device }) {
            panic!("registers of {name} overlap those of {other}");
        }
    }

    /// A new source of the board's line; one that leads nowhere if there is no such line.
    pub fn irq(&self, number: usize) -> LineRef {
        match self.irqs.get(number) {
            Some(line) => line.share().unwrap_or_else(|| line.clone()),
            None => Arc::new(NoLine),
        }
    }
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("pio", &self.pio).field("mmio", &self.mmio).finish()
    }
}
