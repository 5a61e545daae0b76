//! The local APIC's registers (SDM volume 3, 11.4).

use serde::{Deserialize, Serialize};
use x86_defs::msr::apic_base;

/// The APIC's page as the xAPIC lays it out, which is also what KVM_GET_LAPIC returns, and
/// what is not in the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The 32-bit registers at 16-byte strides, in order: index 2 is the ID, 3 the version,
    /// 8 the TPR and so on to 0x3f. In x2APIC mode the ID is the 32-bit one.
    pub regs: Vec<u32>,
    /// Guest nanoseconds until the timer's next expiry; `None` when it does not count. In
    /// TSC-deadline mode the `tsc` section has the deadline and this is `None`.
    pub timer_left_ns: Option<u64>,
}

impl ApicState {
    /// Registers in [`Self::regs`].
    pub const REGS: usize = 64;

    /// Values after power-on of the vCPU with this APIC ID (SDM volume 3, 11.4.7.1).
    pub fn reset(id: u32) -> Self {
        let mut regs = vec![0; Self::REGS];
        regs[0x2] = id << 24;
        regs[0x3] = 0x0005_0014; // version 0x14, six LVT entries
        regs[0xe] = !0; // DFR: flat
        regs[0xf] = 0xff; // SVR: disabled
        regs[0x32..=0x37].fill(1 << 16); // LVT: masked
        let bsp = if id == 0 { apic_base::BSP } else { 0 };
        let base = apic_base::DEFAULT | apic_base::ENABLE | bsp;
        Self { base, regs, timer_left_ns: None }
    }
}
