//! The CPU models: what each must have, would like to have, and says it is.

use std::fmt;

/// Never given to a guest, whatever the engine could do, because the saved state has no place
/// for it, no engine emulates it, or it belongs to the host.
pub const HIDDEN: &[&str] = &[
    "monitor",
    "vmx",
    "smx",
    "svm",
    "est",
    "tm2",
    "dtes64",
    "ds_cpl",
    "sdbg",
    "xtpr",
    "pdcm",
    "dca",
    "osxsave",
    "pn",
    "dts",
    "acpi",
    "ss",
    "ht",
    "tm",
    "pbe",
    "sgx",
    "sgx_lc",
    "hle",
    "rtm",
    "cqm",
    "rdt_a",
    "mpx",
    "intel_pt",
    "pku",
    "ospke",
    "pks",
    "waitpkg",
    "shstk",
    "ibt",
    "tme",
    "la57",
    "bus_lock_detect",
    "enqcmd",
    "uintr",
    "hybrid_cpu",
    "tsxldtrk",
    "pconfig",
    "arch_lbr",
    "amx_bf16",
    "amx_tile",
    "amx_int8",
    "core_capabilities",
    "xsaves",
    "xfd",
    "cmp_legacy",
    "extapic",
    "ibs",
    "skinit",
    "lwp",
    "xop",
    "fma4",
    "tbm",
    "perfctr_core",
    "perfctr_nb",
    "mwaitx",
    "osvw",
    "3dnow",
    "3dnowext",
    "virt_ssbd",
];

const V1: &[&str] = &[
    "fpu", "tsc", "msr", "pae", "cx8", "apic", "pge", "cmov", "pat", "clflush", "mmx", "fxsr",
    "sse", "sse2", "syscall", "lm",
];
/// x86-64 psABI, micro-architecture levels.
const V2: &[&str] = &["pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm"];
const V3: &[&str] = &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

/// Given where the engine has them: no program of the level depends on them.
const WANTED: &[&str] = &[
    "vme",
    "de",
    "pse",
    "mce",
    "sep",
    "mtrr",
    "mca",
    "pse36",
    "nx",
    "rdtscp",
    "x2apic",
    "tsc_deadline_timer",
    "hypervisor",
    "arat",
    "tsc_adjust",
    "invtsc",
    "pcid",
    "pdpe1gb",
    // Against speculation, as the host needs it.
    "ibrs",
    "stibp",
    "ssbd",
    "md_clear",
    "flush_l1d",
    "arch_capabilities",
    "bhi_ctrl",
    "ibpb",
    "amd_ibrs",
    "amd_stibp",
    "amd_ssbd",
];
const WANTED_V3: &[&str] = &[
    "pclmulqdq",
    "aes",
    "rdrand",
    "rdseed",
    "adx",
    "fsgsbase",
    "smep",
    "smap",
    "umip",
    "erms",
    "fsrm",
    "invpcid",
    "xsaveopt",
    "xsavec",
    "xgetbv1",
    "clflushopt",
    "clwb",
    "3dnowprefetch",
    "rdpid",
    "sha_ni",
];

/// Family, model, stepping and brand that a named model reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub signature: u32,
    pub brand: &'static str,
}

/// What kind of processor a guest is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuModel {
    pub(crate) name: &'static str,
    pub(crate) required: &'static [&'static [&'static str]],
    pub(crate) wanted: &'static [&'static [&'static str]],
    /// `None`: the host's own.
    pub(crate) identity: Option<Identity>,
}

/// Signatures are those of the first well-known processor of the level, which guests know how
/// to handle: Nehalem, Skylake, Skylake-SP. All are GenuineIntel, whatever the host is,
/// so that SYSENTER and SYSCALL keep one meaning in a guest that moves; see SDM volume 2 on
/// SYSCALL outside 64-bit mode.
const MODELS: &[CpuModel] = &[
    CpuModel {
        name: "x86-64-v2",
        required: &[V1, V2],
        wanted: &[WANTED],
        identity: Some(Identity { signature: 0x0001_06a3, brand: "Sarang x86-64-v2" }),
    },
    CpuModel {
        name: "x86-64-v3",
        required: &[V1, V2, V3],
        wanted: &[WANTED, WANTED_V3],
        identity: Some(Identity { signature: 0x0005_06e3, brand: "Sarang x86-64-v3" }),
    },
    CpuModel {
        name: "x86-64-v4",
        required: &[V1, V2, V3, V4],
        wanted: &[WANTED, WANTED_V3],
        identity: Some(Identity { signature: 0x0005_0654, brand: "Sarang x86-64-v4" }),
    },
    CpuModel { name: "host", required: &[V1], wanted: &[], identity: None },
];

/// No model has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownModel(pub String);

impl fmt::Display for UnknownModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = CpuModel::names().collect();
        write!(f, "no CPU model is called {:?}; there are {}", self.0, names.join(", "))
    }
}

impl std::error::Error for UnknownModel {}

impl CpuModel {
    pub fn named(name: &str) -> Result<CpuModel, UnknownModel> {
        let found = MODELS.iter().find(|m| m.name == name).copied();
        found.ok_or_else(|| UnknownModel(name.into()))
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        MODELS.iter().map(|m| m.name)
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Features without which the model is refused.
    pub fn required(&self) -> impl Iterator<Item = &'static str> {
        self.required.iter().flat_map(|names| names.iter().copied())
    }

    pub(crate) fn wanted(&self) -> impl Iterator<Item = &'static str> {
        self.wanted.iter().flat_map(|names| names.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Feature;

    #[test]
    fn every_name_is_a_feature_and_none_is_hidden() {
        for model in MODELS {
            for name in model.required().chain(model.wanted()) {
                assert!(Feature::named(name).is_some(), "{name}");
                assert!(!HIDDEN.contains(&name), "{name}");
            }
        }
        for name in HIDDEN {
            assert!(Feature::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_there_are() {
        let refusal = CpuModel::named("pentium").unwrap_err().to_string();
        assert_eq!(
            refusal,
            "no CPU model is called \"pentium\"; there are x86-64-v2, x86-64-v3, x86-64-v4, host"
        );
    }
}
