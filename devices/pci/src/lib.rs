//! PCI: the host bridge, configuration space, BARs, MSI and MSI-X.
//!
//! ```text
//!   ports 0xcf8, 0xcfc ----+--> PciHost --> Slot --> ConfigSpace    (bytes and masks)
//!   ECAM ------------------+       |          +----> Requester      (interrupts, DMA allowed)
//!   windows of memory and ports ---+          `----> dyn Function   (what the BARs lead to)
//! ```
//!
//! [`build`] puts the bridge on the board: a root bus 0 with up to 31 functions, each in a slot
//! of its own. A device crate describes its function by a [`FunctionConfig`], adds it with
//! [`PciHost::add`], and is called through [`Function`] where a BAR is read or written. What it
//! does towards the board goes through its [`Requester`].
//!
//! A BAR with memory behind it ([`Function::memory`]), such as a framebuffer, is memory of the
//! guest while it is decoded; accesses to it come nowhere near this crate then.
//!
//! Behind [root ports](PciHost::add_port) functions can be [plugged](PciHost::plug) while the guest
//! runs, and leave when it lets go of them ([`PciHost::ask_unplug`], [`PciHost::on_eject`]). Each
//! port leads to a bus with one device.
//!
//! A function on the root bus can have a BAR for ports; ports behind a root port there are none.
//!
//! Sections cited are those of the PCI Local Bus Specification 3.0 ("PCI") and of the PCI
//! Express Base Specification 5.0 ("PCIe").
//!
//! Locks, in the order in which they are taken: that of a function's registers, the maps, a
//! function's configuration space, its port's, its requester's, then what a line or a message
//! takes. [`Function`] is called with none of them held but the first.

mod assign;
mod config;
mod function;
mod host;
mod hotplug;
mod mapped;
mod msi;
mod msix;
mod port;
mod requester;
mod state;

pub use config::{Bar, BarKind, Capability, FunctionConfig, MsixConfig, Registers};
pub use function::{Function, Nothing};
pub use host::PciHost;
pub use hotplug::PlugError;
pub use port::PortState;
pub use requester::Requester;
pub use state::{FunctionState, HostState, VectorState};

use device::Wiring;
use std::{ops::Range, sync::Arc};

/// Slots of a bus.
pub const SLOTS: u8 = 32;
/// GSIs that the interrupt pins lead to: 16 to 23.
pub const FIRST_GSI: u32 = 16;
const GSIS: u32 = 8;

/// Where the bridge's ranges are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The enhanced configuration space: 1 MiB for each bus.
    pub ecam: Range<u64>,
    /// Below 4 GiB: where BARs can be.
    pub window: Range<u64>,
}

/// The GSI to which pin INTA# of a slot leads. Level-triggered; as in every PC the pins of
/// neighbouring slots lead to different inputs.
pub fn gsi(slot: u8) -> u32 {
    FIRST_GSI + u32::from(slot) % GSIS
}

/// Puts a host bridge on the board that drivers take as it comes, with nothing but itself on its
/// bus.
pub fn build(config: &Config, wiring: &mut Wiring) -> Arc<PciHost> {
    PciHost::build(config, &host::BRIDGE, Arc::new(Nothing), wiring)
}

/// The same with a host bridge of a kind, for software that knows bridges.
pub fn build_as(
    config: &Config,
    bridge: &FunctionConfig,
    function: Arc<dyn Function>,
    wiring: &mut Wiring,
) -> Arc<PciHost> {
    PciHost::build(config, bridge, function, wiring)
}

/// A poisoned lock is taken all the same: a panic elsewhere is reported there.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
