//! Contracts of devices: port and MMIO facets, lines, MSI, timers, the bus map.
//!
//! A device crate exports `build(&Config, &mut Wiring) -> ...`: it claims ports and MMIO
//! ranges, takes lines, timers and the clock from the [`Wiring`], and leaves an
//! `Arc<dyn Device>` there for reset, save and restore. Devices know no engine, and engines
//! no device. A device is called on vCPU threads and on the timer thread, so it locks itself;
//! it never calls out (a line, an MSI, an output) while it holds its lock in a way that the
//! callee could call back into it.
//!
//! Guest input is hostile: no value that a guest writes may panic, overflow or hang a device.

mod bus;
pub mod fake;
mod line;
mod slots;
mod time;
mod wiring;

pub use bus::{Bus, Claim, MmioBus, MmioDevice, PioBus, PioDevice};
pub use line::{Line, LineRef, MsiSink, NoLine};
pub use slots::{FIRST_SLOT, SlotMap};
pub use time::{Clock, Fire, Timer, Timers};
pub use wiring::{PowerEvent, PowerSink, Wiring};

use saved_state::{Error, Reader, Writer};
pub use x86_defs::Msi;

/// What a machine does with every device.
pub trait Device: Send + Sync {
    /// Short and unique in a machine, for messages: `pic`, `uart0`.
    fn name(&self) -> String;
    /// Back to the power-on state.
    fn reset(&self);
    /// Guest time stops. When this returns, no thread of the device touches guest memory or
    /// interrupts. A device is built paused.
    fn pause(&self) {}
    /// Guest time goes on.
    fn resume(&self) {}
    /// vCPUs are stopped, and the device is paused.
    fn save(&self, to: &mut Writer);
    /// Takes its parts, validates all of them, and only then changes. Lines are driven to
    /// their restored levels without producing an edge.
    fn restore(&self, from: &mut Reader) -> Result<(), Error>;
    /// What was counted since the device was built, by name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
