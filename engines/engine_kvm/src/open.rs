//! Opening /dev/kvm: what it can do is settled here, once.

use crate::{
    cpuid, os,
    probe::{HostKvm, has_nested_paging, probe},
    shim, sys,
    vm::{Inner, KvmVm},
};
use engine::{Caps, Engine, Error, Intercepts, Vm, VmConfig};
use guest_mem::GuestMem;
use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::sync::Arc;

/// The engine over /dev/kvm.
#[derive(Debug)]
pub struct KvmEngine {
    fd: Kvm,
    caps: Caps,
    features: Features,
}

/// What this kernel has of the optional interfaces.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    pub sregs2: bool,
    /// Bytes that KVM_GET_XSAVE2 writes; 0 without it.
    pub xsave2: i32,
    pub msr_filter: bool,
    pub enforce_pv_cpuid: bool,
    pub x2apic_api: bool,
    /// Entries of each vCPU's ring of dirty pages; 0 for the log.
    pub ring_entries: u32,
    pub host_khz: u32,
    /// The kernel does what ring 0 does, with a processor that has no part in it.
    pub software: bool,
    /// The kernel keeps page tables of its own for the guest, and reads the guest's when it does not
    /// find what it looks for.
    pub shadowed: bool,
}

/// Without these the engine cannot keep its promises.
const NEEDED: &[(u32, &str)] = &[
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"),
    (KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"),
    (KVM_CAP_EXCEPTION_PAYLOAD, "KVM_CAP_EXCEPTION_PAYLOAD"),
    (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS"),
    (KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"),
];

impl KvmEngine {
    /// Dirty pages come from the kernel's log.
    pub fn open() -> Result<Self, Error> {
        Self::with(0)
    }

    /// Dirty pages come from rings of so many entries, one for each vCPU: a power of two.
    pub fn with_dirty_rings(entries: u32) -> Result<Self, Error> {
        if !entries.is_power_of_two() || entries < SMALLEST_RING {
            return Err(Error::Unsupported("dirty rings of this size"));
        }
        Self::with(entries)
    }

    fn with(ring_entries: u32) -> Result<Self, Error> {
        sys::install_handler();
        let fd = Kvm::new().map_err(|e| {
            let reason = std::io::Error::from_raw_os_error(e.errno());
            Error::Unusable(format!("/dev/kvm cannot be opened: {reason}"))
        })?;
        if fd.get_api_version() != KVM_API_VERSION.cast_signed() {
            return Err(Error::Unusable("/dev/kvm speaks another version of its interface".into()));
        }
        let extension = |cap: u32| fd.check_extension_raw(cap.into());
        for (cap, name) in NEEDED {
            if extension(*cap) <= 0 {
                return Err(Error::Unusable(format!("this kernel's KVM has no {name}")));
            }
        }
        let most = extension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).max(0).cast_unsigned();
        if ring_entries > most / size_of::<kvm_dirty_gfn>() as u32 {
            return Err(Error::Unusable("this kernel's KVM has no such dirty rings".into()));
        }
        let features = Features {
            sregs2: extension(KVM_CAP_SREGS2) > 0,
            xsave2: extension(KVM_CAP_XSAVE2),
            msr_filter: extension(KVM_CAP_X86_MSR_FILTER) > 0,
            enforce_pv_cpuid: extension(KVM_CAP_ENFORCE_PV_FEATURE_CPUID) > 0,
            x2apic_api: extension(KVM_CAP_X2APIC_API) > 0,
            ring_entries,
            host_khz: host_khz(&fd)?,
            software: probe() == HostKvm::SoftwareOnly,
            shadowed: !has_nested_paging(),
        };
        let caps = Caps {
            intercepts: Intercepts::default(),
            ring0_intercepts: shim::INTERCEPTS,
            counted: true,
            local_apic: true,
            breakpoints: 4,
            max_vcpus: u32::try_from(fd.get_max_vcpus()).unwrap_or(1),
            tsc_khz: features.host_khz,
            tsc_scaling: fd.check_extension(Cap::TscControl),
            cpuid: cpuid::supported(&fd)?,
            ring0_capabilities: None,
        };
        Ok(Self { fd, caps, features })
    }
}

/// The kernel keeps some entries in reserve, and those of the processor's own log.
const SMALLEST_RING: u32 = 1024;

/// Only a vCPU tells it, on older kernels.
fn host_khz(kvm: &Kvm) -> Result<u32, Error> {
    let vm = create_vm(kvm)?;
    let vcpu = vm.create_vcpu(0).map_err(os("KVM_CREATE_VCPU"))?;
    vcpu.get_tsc_khz().map_err(os("KVM_GET_TSC_KHZ"))
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR => {}
            other => return other.map_err(os("KVM_CREATE_VM")),
        }
    }
}

fn enable(vm: &VmFd, cap: u32, args: [u64; 4]) -> Result<(), Error> {
    let cap = kvm_enable_cap { cap, args, ..Default::default() };
    vm.enable_cap(&cap).map_err(os("KVM_ENABLE_CAP"))
}

/// Two pages below the firmware's area that real mode needs on Intel processors without
/// unrestricted guests.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

fn configure(vm: &VmFd, features: &Features) -> Result<(), Error> {
    vm.set_identity_map_address(IDENTITY_MAP).map_err(os("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS).map_err(os("KVM_SET_TSS_ADDR"))?;
    enable(vm, KVM_CAP_SPLIT_IRQCHIP, [crate::routes::PINS.into(), 0, 0, 0])?;
    if features.x2apic_api {
        let api = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(vm, KVM_CAP_X2APIC_API, [api.into(), 0, 0, 0])?;
    }
    enable(vm, KVM_CAP_EXCEPTION_PAYLOAD, [1, 0, 0, 0])?;
    let mut reasons = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
    if features.msr_filter {
        reasons |= KVM_MSR_EXIT_REASON_FILTER;
    }
    enable(vm, KVM_CAP_X86_USER_SPACE_MSR, [reasons.into(), 0, 0, 0])?;
    if features.msr_filter {
        crate::msrs::set_filter(vm)?;
    }
    if features.ring_entries != 0 {
        let bytes = u64::from(features.ring_entries) * size_of::<kvm_dirty_gfn>() as u64;
        enable(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, [bytes, 0, 0, 0])?;
    }
    Ok(())
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    /// An empty [`VmConfig::cpuid`] means all that the engine supports.
    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>, Error> {
        self.caps.check(config)?;
        let image = shim::check(config)?;
        let fd = create_vm(&self.fd)?;
        configure(&fd, &self.features)?;
        let mem = GuestMem::new(config.memory)?;
        let cpuid = if config.cpuid.entries.is_empty() { &self.caps.cpuid } else { &config.cpuid };
        let khz = config.tsc_khz.unwrap_or(self.caps.tsc_khz);
        let inner = Inner::new(fd, mem, self.features, cpuid.clone(), khz, image);
        Ok(Arc::new(KvmVm(Arc::new(inner))))
    }
}
