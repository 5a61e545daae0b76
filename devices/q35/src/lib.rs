//! The chipset's PCI side, as firmware and kernels know it from QEMU's machine `q35`: the host
//! bridge of Intel's 82G33 (MCH) with its shadow RAM, and the LPC bridge of the ICH9.
//!
//! ```text
//!   00:00.0  MCH  --PAM registers--> shadow: what is between 768 KiB and 1 MiB
//!   00:1f.0  LPC  (ISA bridge; where the power-management ports and interrupt routes are)
//! ```
//!
//! Firmware goes by the bridges' identity: without it SeaBIOS does not find RAM to run from, and
//! OVMF does not start. What a chipset can place anywhere is at one place here, where all
//! firmware puts it: the enhanced configuration space, and the power-management ports.
//!
//! There is no system-management mode: it is told to have been set up already, and firmware does
//! without.
//!
//! Sections cited are those of Intel's data sheets 317607 ("MCH", 3 Series Express Chipset
//! Family) and 316972 ("ICH9").

mod lpc;
mod mch;
mod shadow;

pub use shadow::{AREA, Rom, ShadowState};

use device::Wiring;
use guest_mem::Memfd;
use pci::PciHost;
use std::{fmt, ops::Range, sync::Arc};

/// The slot of the LPC bridge, where firmware looks for it.
pub const LPC_SLOT: u8 = 31;

/// Where things are.
#[derive(Clone)]
pub struct Config {
    /// The enhanced configuration space.
    pub ecam: Range<u64>,
    /// Below 4 GiB: where BARs can be.
    pub window: Range<u64>,
    /// The first port of ACPI's registers, a multiple of 128.
    pub pm_base: u16,
    /// RAM from address 0 on, at least 1 MiB of it.
    pub ram: Arc<Memfd>,
    /// What is at the end of the first megabyte before firmware opens shadow RAM. Without it the
    /// shadow RAM is open from the start, as firmware would leave it.
    pub rom: Option<Rom>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("ecam", &self.ecam).finish_non_exhaustive()
    }
}

/// Puts both bridges on the board. The memory between 768 KiB and 1 MiB is theirs to lay out.
pub fn build(config: &Config, wiring: &mut Wiring) -> Arc<PciHost> {
    let pci = mch::build(config, wiring);
    lpc::build(config, &pci, wiring);
    pci
}
