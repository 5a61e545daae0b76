//! CPUID tables to and from KVM's.

use crate::os;
use cpu_model::{CpuidEntry, CpuidTable, Feature, mask};
use engine::Error;
use kvm_bindings::{
    CpuId, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES,
    kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;

/// State that the neutral vCPU state has no place for.
const NO_STATE_FOR: &[&str] = &[
    "avx512f",
    "avx512dq",
    "avx512ifma",
    "avx512pf",
    "avx512er",
    "avx512cd",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "avx512_4vnniw",
    "avx512_4fmaps",
    "avx512_vp2intersect",
    "avx512_fp16",
    "avx512_bf16",
    "pku",
    "pks",
    "shstk",
    "ibt",
    "amx_bf16",
    "amx_tile",
    "amx_int8",
    "xfd",
    "xsaves",
    "mpx",
];

/// What guests can be given.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuidTable, Error> {
    let from = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let from = from.map_err(os("KVM_GET_SUPPORTED_CPUID"))?;
    let mut table = CpuidTable::default();
    for e in from.as_slice() {
        let significant = e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        table.set(CpuidEntry {
            leaf: e.function,
            subleaf: significant.then_some(e.index),
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        });
    }
    // Older kernels have the timer and do not list it.
    if kvm.check_extension_raw(KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0
        && let Some(timer) = Feature::named("tsc_deadline_timer")
    {
        table.set_feature(timer, true);
    }
    Ok(mask(&table, NO_STATE_FOR))
}

/// The table as KVM_SET_CPUID2 takes it.
pub(crate) fn to_kvm(table: &CpuidTable) -> Result<CpuId, Error> {
    let entries: Vec<_> = table
        .entries
        .iter()
        .map(|e| kvm_cpuid_entry2 {
            function: e.leaf,
            index: e.subleaf.unwrap_or(0),
            flags: if e.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| Error::Unsupported("so many CPUID leaves"))
}
