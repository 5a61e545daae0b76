//! Feature bits by name: which bit of which CPUID leaf says what.
//!
//! Names are Linux's (`/proc/cpuinfo`), which operators know; bits are those of SDM volume 2,
//! CPUID, and APM volume 3, appendix E.

use crate::{CpuidEntry, CpuidTable};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One bit of CPUID's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub leaf: u32,
    /// Used where the leaf has sub-leaves.
    pub subleaf: u32,
    pub output: Output,
    pub bit: u8,
}

impl Feature {
    /// The feature of this name.
    pub fn named(name: &str) -> Option<&'static Feature> {
        all().find(|f| f.name == name)
    }

    fn has_subleaves(&self) -> bool {
        matches!(self.leaf, 7 | 0xd)
    }
}

fn output(entry: &CpuidEntry, which: Output) -> u32 {
    match which {
        Output::Eax => entry.eax,
        Output::Ebx => entry.ebx,
        Output::Ecx => entry.ecx,
        Output::Edx => entry.edx,
    }
}

impl CpuidTable {
    pub fn has(&self, feature: &Feature) -> bool {
        let entry = self.get(feature.leaf, feature.subleaf);
        entry.is_some_and(|e| output(e, feature.output) >> feature.bit & 1 != 0)
    }

    /// True if the table has the feature of this name; unknown names are absent features.
    pub fn has_named(&self, name: &str) -> bool {
        Feature::named(name).is_some_and(|f| self.has(f))
    }

    /// Sets or clears the bit; setting adds the leaf if need be.
    pub fn set_feature(&mut self, feature: &Feature, on: bool) {
        if self.get(feature.leaf, feature.subleaf).is_none() {
            if !on {
                return;
            }
            let subleaf = feature.has_subleaves().then_some(feature.subleaf);
            self.set(CpuidEntry { leaf: feature.leaf, subleaf, ..CpuidEntry::default() });
        }
        if let Some(entry) = self.get_mut(feature.leaf, feature.subleaf) {
            let word = match feature.output {
                Output::Eax => &mut entry.eax,
                Output::Ebx => &mut entry.ebx,
                Output::Ecx => &mut entry.ecx,
                Output::Edx => &mut entry.edx,
            };
            *word = *word & !(1 << feature.bit) | u32::from(on) << feature.bit;
        }
    }

    /// Every feature that the table has and this list knows.
    pub fn features(&self) -> impl Iterator<Item = &'static Feature> + '_ {
        all().filter(|f| self.has(f))
    }
}

/// Every feature with a name here.
pub fn all() -> impl Iterator<Item = &'static Feature> {
    GROUPS.iter().flat_map(|group| group.iter())
}

macro_rules! group {
    ($name:ident = $leaf:literal, $subleaf:literal, $output:ident: $($bit:literal $feature:literal)*) => {
        const $name: &[Feature] = &[$(Feature {
            name: $feature, leaf: $leaf, subleaf: $subleaf, output: Output::$output, bit: $bit,
        },)*];
    };
}

const GROUPS: &[&[Feature]] = &[
    LEAF_1_EDX,
    LEAF_1_ECX,
    LEAF_6_EAX,
    LEAF_7_EBX,
    LEAF_7_ECX,
    LEAF_7_EDX,
    LEAF_7_1_EAX,
    LEAF_7_2_EDX,
    LEAF_D_1_EAX,
    LEAF_EXT1_ECX,
    LEAF_EXT1_EDX,
    LEAF_EXT7_EDX,
    LEAF_EXT8_EBX,
];

group!(LEAF_1_EDX = 1, 0, Edx:
    0 "fpu" 1 "vme" 2 "de" 3 "pse" 4 "tsc" 5 "msr" 6 "pae" 7 "mce" 8 "cx8" 9 "apic" 11 "sep"
    12 "mtrr" 13 "pge" 14 "mca" 15 "cmov" 16 "pat" 17 "pse36" 18 "pn" 19 "clflush" 21 "dts"
    22 "acpi" 23 "mmx" 24 "fxsr" 25 "sse" 26 "sse2" 27 "ss" 28 "ht" 29 "tm" 31 "pbe");
group!(LEAF_1_ECX = 1, 0, Ecx:
    0 "pni" 1 "pclmulqdq" 2 "dtes64" 3 "monitor" 4 "ds_cpl" 5 "vmx" 6 "smx" 7 "est" 8 "tm2"
    9 "ssse3" 11 "sdbg" 12 "fma" 13 "cx16" 14 "xtpr" 15 "pdcm" 17 "pcid" 18 "dca" 19 "sse4_1"
    20 "sse4_2" 21 "x2apic" 22 "movbe" 23 "popcnt" 24 "tsc_deadline_timer" 25 "aes" 26 "xsave"
    27 "osxsave" 28 "avx" 29 "f16c" 30 "rdrand" 31 "hypervisor");
group!(LEAF_6_EAX = 6, 0, Eax: 2 "arat");
group!(LEAF_7_EBX = 7, 0, Ebx:
    0 "fsgsbase" 1 "tsc_adjust" 2 "sgx" 3 "bmi1" 4 "hle" 5 "avx2" 6 "fdp_excptn_only" 7 "smep"
    8 "bmi2" 9 "erms" 10 "invpcid" 11 "rtm" 12 "cqm" 13 "zero_fcs_fds" 14 "mpx" 15 "rdt_a"
    16 "avx512f" 17 "avx512dq" 18 "rdseed" 19 "adx" 20 "smap" 21 "avx512ifma" 23 "clflushopt"
    24 "clwb" 25 "intel_pt" 26 "avx512pf" 27 "avx512er" 28 "avx512cd" 29 "sha_ni" 30 "avx512bw"
    31 "avx512vl");
group!(LEAF_7_ECX = 7, 0, Ecx:
    1 "avx512vbmi" 2 "umip" 3 "pku" 4 "ospke" 5 "waitpkg" 6 "avx512_vbmi2" 7 "shstk" 8 "gfni"
    9 "vaes" 10 "vpclmulqdq" 11 "avx512_vnni" 12 "avx512_bitalg" 13 "tme" 14 "avx512_vpopcntdq"
    16 "la57" 22 "rdpid" 24 "bus_lock_detect" 25 "cldemote" 27 "movdiri" 28 "movdir64b"
    29 "enqcmd" 30 "sgx_lc" 31 "pks");
group!(LEAF_7_EDX = 7, 0, Edx:
    2 "avx512_4vnniw" 3 "avx512_4fmaps" 4 "fsrm" 5 "uintr" 8 "avx512_vp2intersect" 10 "md_clear"
    14 "serialize" 15 "hybrid_cpu" 16 "tsxldtrk" 18 "pconfig" 19 "arch_lbr" 20 "ibt" 22 "amx_bf16"
    23 "avx512_fp16" 24 "amx_tile" 25 "amx_int8" 26 "ibrs" 27 "stibp" 28 "flush_l1d"
    29 "arch_capabilities" 30 "core_capabilities" 31 "ssbd");
group!(LEAF_7_1_EAX = 7, 1, Eax: 4 "avx_vnni" 5 "avx512_bf16" 10 "fzrm" 11 "fsrs" 12 "fsrc");
group!(LEAF_7_2_EDX = 7, 2, Edx: 0 "psfd" 1 "ipred_ctrl" 2 "rrsba_ctrl" 3 "ddpd_u" 4 "bhi_ctrl" 5 "mcdt_no");
group!(LEAF_D_1_EAX = 0xd, 1, Eax: 0 "xsaveopt" 1 "xsavec" 2 "xgetbv1" 3 "xsaves" 4 "xfd");
group!(LEAF_EXT1_ECX = 0x8000_0001, 0, Ecx:
    0 "lahf_lm" 1 "cmp_legacy" 2 "svm" 3 "extapic" 4 "cr8_legacy" 5 "abm" 6 "sse4a"
    7 "misalignsse" 8 "3dnowprefetch" 9 "osvw" 10 "ibs" 11 "xop" 12 "skinit" 15 "lwp" 16 "fma4"
    21 "tbm" 22 "topoext" 23 "perfctr_core" 24 "perfctr_nb" 29 "mwaitx");
group!(LEAF_EXT1_EDX = 0x8000_0001, 0, Edx:
    11 "syscall" 20 "nx" 22 "mmxext" 25 "fxsr_opt" 26 "pdpe1gb" 27 "rdtscp" 29 "lm" 30 "3dnowext"
    31 "3dnow");
group!(LEAF_EXT7_EDX = 0x8000_0007, 0, Edx: 8 "invtsc");
group!(LEAF_EXT8_EBX = 0x8000_0008, 0, Ebx:
    0 "clzero" 2 "xsaveerptr" 9 "wbnoinvd" 12 "ibpb" 14 "amd_ibrs" 15 "amd_stibp" 24 "amd_ssbd"
    25 "virt_ssbd");

/// A difference between two tables, for messages and comparisons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// In the first and not in the second.
    pub missing: Vec<&'static str>,
    /// In the second and not in the first.
    pub added: Vec<&'static str>,
}

/// What a guest would notice in its feature bits when its table changed from `a` to `b`.
pub fn difference(a: &CpuidTable, b: &CpuidTable) -> Difference {
    let only = |x: &CpuidTable, y: &CpuidTable| {
        x.features().filter(|f| !y.has(f)).map(|f| f.name).collect()
    };
    Difference { missing: only(a, b), added: only(b, a) }
}

/// `table` without the features of these names.
pub fn mask(table: &CpuidTable, hide: &[&str]) -> CpuidTable {
    let mut out = table.clone();
    for feature in hide.iter().filter_map(|name| Feature::named(name)) {
        out.set_feature(feature, false);
    }
    out
}

pub(crate) fn set_named(table: &mut CpuidTable, name: &str, on: bool) {
    if let Some(feature) = Feature::named(name) {
        table.set_feature(feature, on);
    }
}

/// `a` with only those named features that `b` has too: what moves between both.
pub fn intersect(a: &CpuidTable, b: &CpuidTable) -> CpuidTable {
    let mut out = a.clone();
    for feature in all().filter(|f| a.has(f) && !b.has(f)) {
        out.set_feature(feature, false);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str]) -> CpuidTable {
        let mut out = CpuidTable::default();
        names.iter().for_each(|n| out.set_feature(Feature::named(n).unwrap(), true));
        out
    }

    #[test]
    fn no_bit_and_no_name_is_twice_in_the_list() {
        for (i, a) in all().enumerate() {
            for b in all().skip(i + 1) {
                assert_ne!(a.name, b.name);
                assert_ne!(
                    (a.leaf, a.subleaf, a.output, a.bit),
                    (b.leaf, b.subleaf, b.output, b.bit)
                );
            }
        }
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let t = table(&["sse4_2", "smap", "xsavec", "nx", "avx_vnni"]);
        assert_eq!(t.lookup(1, 0)[2], 1 << 20);
        assert_eq!(t.lookup(7, 0)[1], 1 << 20);
        assert_eq!(t.lookup(7, 1)[0], 1 << 4);
        assert_eq!(t.lookup(0xd, 1)[0], 1 << 1);
        assert_eq!(t.lookup(0x8000_0001, 0)[3], 1 << 20);
    }

    #[test]
    fn tables_are_masked_intersected_and_compared() {
        let (a, b) = (table(&["avx", "avx2", "fma"]), table(&["avx", "umip"]));
        assert_eq!(
            difference(&a, &b),
            Difference { missing: vec!["fma", "avx2"], added: vec!["umip"] }
        );
        let both = intersect(&a, &b);
        assert_eq!(both.features().map(|f| f.name).collect::<Vec<_>>(), ["avx"]);
        assert!(!mask(&a, &["avx2"]).has_named("avx2"));
        assert!(!a.has_named("no such feature"));
    }
}
