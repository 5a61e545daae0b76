//! What kind of KVM this host has, before anything is asked of it.

use std::{fs, io::ErrorKind};

/// Whether guests can run on /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKvm {
    /// There is no /dev/kvm.
    Missing,
    /// This user may not open it.
    NotPermitted,
    /// It opens, but the processor has neither VT-x nor AMD-V: ring 0 is emulated in software,
    /// too slowly and incompletely for a stock kernel.
    SoftwareOnly,
    Hardware,
}

impl HostKvm {
    /// One line for users: why, or that it can be used.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "there is no /dev/kvm on this host",
            Self::NotPermitted => "this user may not open /dev/kvm",
            Self::SoftwareOnly => {
                "/dev/kvm works without VT-x or AMD-V: a software KVM that cannot run a stock \
                 kernel"
            }
            Self::Hardware => "/dev/kvm with hardware support",
        }
    }
}

/// Looks at the device and the processor's flags; opens no VM.
pub fn probe() -> HostKvm {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied) => HostKvm::NotPermitted,
        Err(_) => HostKvm::Missing,
        Ok(_) if hardware_flags(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) => {
            HostKvm::Hardware
        }
        Ok(_) => HostKvm::SoftwareOnly,
    }
}

/// Whether the processor walks the guest's tables and the host's (EPT, NPT). As the kernel's modules
/// say: without either of them, or where they are told not to, the kernel shadows the guest's.
pub(crate) fn has_nested_paging() -> bool {
    let says = |module: &str, name: &str| {
        let path = format!("/sys/module/{module}/parameters/{name}");
        fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    };
    says("kvm_intel", "ept") || says("kvm_amd", "npt")
}

/// The flags line rather than the CPUID instruction: firmware may have locked VT-x off, which
/// only the kernel knows.
fn hardware_flags(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_told_by_whole_flags() {
        assert!(hardware_flags("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(hardware_flags("flags : svm\n"));
        assert!(!hardware_flags("flags : fpu vmxish\nbugs : vmx\n"));
        assert!(!hardware_flags(""));
    }
}
