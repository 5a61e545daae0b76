//! The hypervisor's CPUID leaves.

use cpu_model::CpuidEntry;
use x86_defs::msr;

/// Which parts of the interface a guest is told of: bits of leaf 0x4000_0001's EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(pub u32);

const CLOCKSOURCE: u32 = 1 << 0;
const NOP_IO_DELAY: u32 = 1 << 1;
const CLOCKSOURCE2: u32 = 1 << 3;
const STEAL_TIME: u32 = 1 << 5;
const POLL_CONTROL: u32 = 1 << 12;
const CLOCKSOURCE_STABLE: u32 = 1 << 24;

impl Features {
    /// All that is served here. Steal time only where the host tells threads how long they
    /// waited: without that it would be an invention.
    pub fn all() -> Self {
        let steal = if crate::run_delay_ns().is_some() { STEAL_TIME } else { 0 };
        let clock = CLOCKSOURCE | CLOCKSOURCE2 | CLOCKSOURCE_STABLE;
        Self(clock | NOP_IO_DELAY | POLL_CONTROL | steal)
    }

    /// Those that another's leaf 0x4000_0001, such as the kernel's KVM's, has too.
    pub fn within(self, eax: u32) -> Self {
        Self(self.0 & eax)
    }

    pub(crate) fn has_msr(self, index: u32) -> bool {
        let needs = match index {
            msr::KVM_WALL_CLOCK | msr::KVM_SYSTEM_TIME => CLOCKSOURCE,
            msr::KVM_WALL_CLOCK_NEW | msr::KVM_SYSTEM_TIME_NEW => CLOCKSOURCE2,
            msr::KVM_STEAL_TIME => STEAL_TIME,
            msr::KVM_POLL_CONTROL => POLL_CONTROL,
            _ => return false,
        };
        self.0 & needs != 0
    }
}

/// The signature leaf and the features leaf.
pub fn leaves(features: Features) -> Vec<CpuidEntry> {
    let signature = CpuidEntry {
        leaf: 0x4000_0000,
        eax: 0x4000_0001,
        ebx: u32::from_le_bytes(*b"KVMK"),
        ecx: u32::from_le_bytes(*b"VMKV"),
        edx: u32::from_le_bytes(*b"M\0\0\0"),
        ..CpuidEntry::default()
    };
    let feature_bits = CpuidEntry { leaf: 0x4000_0001, eax: features.0, ..CpuidEntry::default() };
    vec![signature, feature_bits]
}
