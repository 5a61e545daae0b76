//! The MSRs that belong to a vCPU and have no section of their own.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Values by index. EFER, the segment bases of FS and GS, the APIC's registers and the TSC's
/// are in other sections; KERNEL_GS_BASE, the SYSCALL and SYSENTER targets, PAT, the MTRRs,
/// TSC_AUX, MISC_ENABLE, SPEC_CTRL, XSS and KVM's are here. An index that is absent has its
/// reset value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs(pub BTreeMap<u32, u64>);

impl Msrs {
    pub fn get(&self, index: u32) -> Option<u64> {
        self.0.get(&index).copied()
    }

    pub fn set(&mut self, index: u32, value: u64) {
        self.0.insert(index, value);
    }
}
