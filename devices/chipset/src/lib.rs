//! PIC, PIT, HPET, IOAPIC, RTC, ACPI PM, reset, pvpanic and debug ports; registers for CPUs that
//! come and go.
//!
//! [`build`] puts all of them on the board and sets up its interrupt lines, so it comes before
//! every other device. Locks are taken in this order: a device's own (the clock's before that of ACPI's
//! registers), that of a gate, that of a shared line, that of a PIC or IOAPIC, then whatever the message sink takes. Nothing here is called back
//! by what it calls, so lines and messages are driven with the device's lock held; power
//! events, outputs and hooks are called without.

mod bytes;
pub mod cpus;
mod gate;
pub mod gpe;
pub mod hpet;
pub mod ioapic;
mod lines;
pub mod misc;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod reset;
pub mod rtc;

pub use cpus::Cpus;
pub use ioapic::IoApic;
pub use pic::Pic;
pub use pm::Pm;
pub use rtc::Rtc;

use byte_stream::Output;
use device::{LineRef, NoLine, Wiring};
use lines::SharedLine;
use std::{fmt, sync::Arc};

/// What the board is to have.
#[derive(Clone, Default)]
pub struct Config {
    /// Bytes of RAM that begin at address 0, and at 4 GiB: for the CMOS.
    pub memory_low: u64,
    pub memory_high: u64,
    /// CPUs from the start, and how many there can be, where they come and go.
    pub cpus: Option<(u32, u32)>,
    /// Where port 0xe9 leads; it is absent otherwise.
    pub debug_console: Option<Arc<dyn Output>>,
    /// Where port 0x402 leads, at which firmware writes its log; it is absent otherwise.
    pub firmware_log: Option<Arc<dyn Output>>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("memory_low", &self.memory_low)
            .field("memory_high", &self.memory_high)
            .finish_non_exhaustive()
    }
}

/// Handles to what the machine talks to.
#[derive(Clone, Debug)]
pub struct Chipset {
    pub pic: Arc<Pic>,
    pub ioapic: Arc<IoApic>,
    pub pm: Arc<Pm>,
    pub rtc: Arc<Rtc>,
    /// What tells of CPUs that come and go.
    pub cpus: Option<Arc<Cpus>>,
}

/// Builds the chipset and fills in `wiring.irqs`.
pub fn build(config: &Config, wiring: &mut Wiring) -> Chipset {
    let pic = Pic::build(wiring);
    let ioapic = IoApic::build(wiring);
    wiring.irqs = (0..ioapic::PINS).map(|irq| line(irq, &pic, &ioapic)).collect();
    let replaced = [0, 8].map(|irq| gate::Gate::new(wiring.irq(irq)));
    let [of_pit, of_rtc] = replaced.clone();
    pit::Pit::build(of_pit, wiring);
    let pm = Pm::build(wiring);
    let outputs = rtc::Outputs { irq: of_rtc, alarm: pm.alarm_line() };
    let rtc = Rtc::build(config, outputs, wiring);
    hpet::Hpet::build(replaced, wiring);
    reset::ResetControl::build(wiring);
    misc::build(config, wiring);
    let cpus = config.cpus.map(|(start, most)| {
        let events = gpe::Gpe::build(wiring);
        Cpus::build(start, most, events, wiring)
    });
    Chipset { pic, ioapic, pm, rtc, cpus }
}

/// ISA IRQ n leads to input n of the PICs and to pin n of the IOAPIC; IRQ 0 to pin 2, which is
/// free because the PIC's input 2 is the cascade. The MADT tells of it.
fn line(irq: usize, pic: &Arc<Pic>, ioapic: &Arc<IoApic>) -> LineRef {
    let pins = match (irq, u8::try_from(irq)) {
        (2, _) => return Arc::new(NoLine),
        (0, _) => vec![pic.input(0), ioapic.pin(2)],
        (_, Ok(input @ 0..16)) => vec![pic.input(input), ioapic.pin(irq)],
        _ => vec![ioapic.pin(irq)],
    };
    SharedLine::new(pins)
}
