//! The CPU that the guest sees.

use crate::Error;
use cpu_model::{CpuModel, CpuidTable, Options};
use engine::Engine;
use vm_spec::VmSpec;

/// CPUID leaf of KVM's features.
const KVM_FEATURES: u32 = 0x4000_0001;

pub(crate) struct GuestCpu {
    pub(crate) table: CpuidTable,
    pub(crate) model: String,
    pub(crate) pv: pv_kvm::Features,
}

fn model(engine: &dyn Engine, spec: &VmSpec) -> Result<CpuModel, Error> {
    match &spec.cpu_model {
        Some(name) => CpuModel::named(name).map_err(|e| Error::CpuModel(e.to_string())),
        None => cpu_model::best_model(&engine.caps().cpuid).ok_or_else(|| {
            Error::CpuModel("this engine offers not even x86-64-v2; give --cpu-model host".into())
        }),
    }
}

pub(crate) fn resolve(engine: &dyn Engine, spec: &VmSpec, tsc_khz: u32) -> Result<GuestCpu, Error> {
    let caps = engine.caps();
    let model = model(engine, spec)?;
    let pv = match caps.cpuid.get(KVM_FEATURES, 0) {
        // The kernel serves the MSRs.
        Some(kernel) if caps.local_apic => pv_kvm::Features::all().within(kernel.eax),
        _ => pv_kvm::Features::all(),
    };
    let options = Options {
        vcpus: spec.cpus_most(),
        tsc_khz,
        apic_khz: (local_apic::TIMER_HZ / 1000) as u32,
        hypervisor: pv_kvm::leaves(pv),
    };
    let table = cpu_model::resolve(&model, &caps.cpuid, &options)
        .map_err(|e| Error::CpuModel(e.to_string()))?;
    Ok(GuestCpu { table, model: model.name().into(), pv })
}

/// Of a Xen domain whose memory ends there.
pub(crate) fn resolve_xen(
    engine: &dyn Engine,
    spec: &VmSpec,
    tsc_khz: u32,
    end: u64,
) -> Result<GuestCpu, Error> {
    let model = model(engine, spec)?;
    let options = Options {
        vcpus: spec.cpus_most(),
        tsc_khz,
        apic_khz: tsc_khz,
        hypervisor: xen_pv::leaves(tsc_khz, end),
    };
    let table = cpu_model::resolve(&model, &engine.caps().cpuid, &options)
        .map_err(|e| Error::CpuModel(e.to_string()))?;
    let table = cpu_model::mask(&table, &xen_pv::hidden(engine.caps().ring0_capabilities));
    Ok(GuestCpu { table, model: model.name().into(), pv: pv_kvm::Features::all() })
}
