//! What engine `translate` executes, as data.

use crate::{CpuidTable, Feature};
use x86_defs::msr;

/// How the engine comes to have a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// It emulates it, whatever the host is.
    Engine,
    /// It executes these instructions on the host's own units.
    Host,
}

/// Not listed, and so never offered: AVX-512, LA57, and whatever
/// [`hidden`](crate::model::HIDDEN) names.
const FEATURES: &[(By, &[&str])] = &[
    (
        By::Engine,
        &[
            // System architecture.
            "fpu",
            "vme",
            "de",
            "pse",
            "tsc",
            "msr",
            "pae",
            "mce",
            "cx8",
            "apic",
            "sep",
            "mtrr",
            "pge",
            "mca",
            "pat",
            "pse36",
            "clflush",
            "fxsr",
            "pcid",
            "x2apic",
            "tsc_deadline_timer",
            "xsave",
            "hypervisor",
            "arat",
            "fsgsbase",
            "tsc_adjust",
            "smep",
            "invpcid",
            "smap",
            "umip",
            "xsaveopt",
            "xsavec",
            "xgetbv1",
            "syscall",
            "nx",
            "pdpe1gb",
            "rdtscp",
            "rdpid",
            "lm",
            "invtsc",
            "ibrs",
            "stibp",
            "ssbd",
            "arch_capabilities",
            // Kernels that do not trust BHI_NO choose this over a loop in each system call.
            "bhi_ctrl",
            // Instructions on general registers, which the interpreter computes itself or which
            // only promise speed.
            "cmov",
            "cx16",
            "movbe",
            "popcnt",
            "erms",
            "fsrm",
            "clflushopt",
            "clwb",
            "lahf_lm",
            "abm",
            "3dnowprefetch",
            "bmi1",
            "bmi2",
            "adx",
        ],
    ),
    (
        By::Host,
        &[
            "mmx",
            "sse",
            "sse2",
            "pni",
            "ssse3",
            "sse4_1",
            "sse4_2",
            "pclmulqdq",
            "aes",
            "avx",
            "f16c",
            "fma",
            "avx2",
            "sha_ni",
            "rdrand",
            "rdseed",
        ],
    ),
];

/// The features that guests of `translate` can be given on a host with this table, with the
/// host's identity and address widths.
pub fn translate_features(host: &CpuidTable) -> CpuidTable {
    let mut table = CpuidTable::default();
    for entry in &host.entries {
        if matches!(entry.leaf, 0 | 1 | 4 | 0x8000_0000..=0x8000_0008) {
            let mut kept = *entry;
            if entry.leaf == 1 {
                (kept.ebx, kept.ecx, kept.edx) = (0, 0, 0);
            }
            if matches!(entry.leaf, 0x8000_0001 | 0x8000_0007) {
                (kept.ecx, kept.edx) = (0, 0);
            }
            if entry.leaf == 0x8000_0008 {
                kept.ebx = 0;
            }
            table.set(kept);
        }
    }
    for (by, names) in FEATURES {
        for feature in names.iter().filter_map(|name| Feature::named(name)) {
            if *by == By::Engine || host.has(feature) {
                table.set_feature(feature, true);
            }
        }
    }
    table
}

/// IA32_ARCH_CAPABILITIES under `translate` (SDM volume 4, table 2-2).
///
/// Guest code is data to an interpreter: the processor never speculates along a guest's
/// branches or loads with the guest's privilege, so the leaks that these bits deny do not
/// exist between the guest's own privilege levels, and a guest kernel's mitigations would
/// cost time and stop nothing. This says nothing of what the interpreter itself speculates:
/// for that reason a VMM process holds no secret but its own guest's.
pub const TRANSLATE_ARCH_CAPABILITIES: u64 = 1 << 0 // RDCL_NO
    | 1 << 1 // IBRS_ALL: set once, and the kernel needs no retpolines
    | 1 << 3 // SKIP_L1DFL_VMENTRY
    | 1 << 4 // SSB_NO
    | 1 << 5 // MDS_NO
    | 1 << 6 // IF_PSCHANGE_MC_NO
    | 1 << 8 // TAA_NO
    | 1 << 13 // SBDR_SSDP_NO
    | 1 << 14 // FBSDP_NO
    | 1 << 15 // PSDP_NO
    | 1 << 20 // BHI_NO
    | 1 << 24 // PBRSB_NO
    | 1 << 26 // GDS_NO
    | 1 << 27 // RFDS_NO
    | 1 << 62; // ITS_NO

/// MSRs that only say what the processor is, with their values under `translate`.
pub const TRANSLATE_FEATURE_MSRS: &[(u32, u64)] = &[
    (msr::IA32_ARCH_CAPABILITIES, TRANSLATE_ARCH_CAPABILITIES),
    // A revision above those whose microcode Linux distrusts.
    (msr::IA32_BIOS_SIGN_ID, 0xffff_ffff_0000_0000),
    (msr::IA32_PLATFORM_ID, 0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_feature() {
        for name in FEATURES.iter().flat_map(|(_, names)| *names) {
            assert!(Feature::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn vector_instructions_need_the_host() {
        let none = translate_features(&CpuidTable::default());
        assert!(none.has_named("smap") && !none.has_named("avx2") && !none.has_named("sse2"));
        let host = translate_features(&crate::host_table());
        assert!(host.has_named("sse2") && !host.has_named("avx512f") && !host.has_named("la57"));
        assert_eq!(host.has_named("avx2"), std::arch::is_x86_feature_detected!("avx2"));
    }
}
