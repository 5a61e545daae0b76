//! The hypervisor's CPUID leaves (`arch-x86/cpuid.h`), and what a domain is not told of.

use crate::misc::VERSION;
use cpu_model::CpuidEntry;

/// `XEN_CPUID_LEAF(n)`.
const fn leaf(number: u32) -> u32 {
    0x4000_0000 + number
}

/// What needs ring 0, or what Xen does not offer.
const HIDDEN: &[&str] = &[
    "vme",
    "pse",
    "pge",
    "mtrr",
    "pse36",
    "mce",
    "mca",
    "acpi",
    "pcid",
    "invpcid",
    "smep",
    "smap",
    "umip",
    "pku",
    "ospke",
    "la57",
    "tsc_deadline_timer",
    "tsc_adjust",
    "pdpe1gb",
    "monitor",
    "vmx",
    "svm",
    "xsaves",
    "mpx",
    "x2apic",
    "pdcm",
    "arat",
    "sep",
    "psfd",
    "ipred_ctrl",
    "rrsba_ctrl",
    "ddpd_u",
    "amd_ibrs",
    "amd_stibp",
    "amd_ssbd",
    "virt_ssbd",
];

/// By what a kernel learns that it needs no retpolines, no thunks for returns and no clearing of
/// buffers, and tells a processor so.
const SPECULATION: &[&str] = &["arch_capabilities", "ibrs", "stibp", "ssbd", "bhi_ctrl"];

/// Features that a domain has not, by the names of `cpu_model`. With IA32_ARCH_CAPABILITIES of its own
/// it is told that there are such.
pub fn hidden(arch_capabilities: Option<u64>) -> Vec<&'static str> {
    let speculation = if arch_capabilities.is_none() { SPECULATION } else { &[] };
    HIDDEN.iter().chain(speculation).copied().collect()
}

/// `XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD`.
const PRESERVE_AD: u32 = 1 << 0;
/// `XEN_CPUID_TSC_MODE_NEVER_EMULATE`.
const TSC_NATIVE: u32 = 2;

/// The leaves of a domain with RAM up to this address.
pub fn leaves(tsc_khz: u32, end: u64) -> Vec<CpuidEntry> {
    let entry = |number, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        leaf: leaf(number),
        eax,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    };
    let name = [*b"XenV", *b"MMXe", *b"nVMM"].map(u32::from_le_bytes);
    let width = 64 - end.saturating_sub(1).leading_zeros();
    vec![
        entry(0, [leaf(5), name[0], name[1], name[2]]),
        entry(1, [VERSION as u32, 0, 0, 0]),
        // No hypercall page by MSR.
        entry(2, [0, 0, PRESERVE_AD, 0]),
        CpuidEntry { subleaf: Some(0), ..entry(3, [0, TSC_NATIVE, tsc_khz, 0]) },
        entry(4, [0, 0, 0, 0]),
        entry(5, [0, width, 0, 0]),
    ]
}
