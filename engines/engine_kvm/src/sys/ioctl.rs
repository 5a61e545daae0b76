//! Ioctls that kvm-ioctls lacks, or has only for its own event type.
#![expect(unsafe_code, reason = "ioctls, and memory lent to the kernel")]

use engine::Error;
use guest_mem::Region;
use kvm_bindings::*;
use kvm_ioctls::{VcpuFd, VmFd};
use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `_IOC` of `linux/asm-generic/ioctl.h` for KVM's type, 0xae.
const fn number(direction: u64, nr: u64, size: usize) -> libc::c_ulong {
    direction << 30 | (size as u64) << 16 | 0xae << 8 | nr
}
const WRITE: u64 = 1;
const READ: u64 = 2;

const KVM_IRQFD: libc::c_ulong = number(WRITE, 0x76, size_of::<kvm_irqfd>());
const KVM_IOEVENTFD: libc::c_ulong = number(WRITE, 0x79, size_of::<kvm_ioeventfd>());
const KVM_SET_XSAVE: libc::c_ulong = number(WRITE, 0xa5, size_of::<kvm_xsave>());
const KVM_GET_XSAVE2: libc::c_ulong = number(READ, 0xcf, size_of::<kvm_xsave>());
const KVM_GET_XSAVE: libc::c_ulong = number(READ, 0xa4, size_of::<kvm_xsave>());
const KVM_GET_SREGS2: libc::c_ulong = number(READ, 0xcc, size_of::<kvm_sregs2>());
const KVM_SET_SREGS2: libc::c_ulong = number(WRITE, 0xcd, size_of::<kvm_sregs2>());
const KVM_SET_DEVICE_ATTR: libc::c_ulong = number(WRITE, 0xe1, size_of::<kvm_device_attr>());
const KVM_GET_DEVICE_ATTR: libc::c_ulong = number(WRITE, 0xe2, size_of::<kvm_device_attr>());

const KVM_X86_SETUP_MCE: libc::c_ulong = number(WRITE, 0x9c, size_of::<u64>());

fn done(call: &'static str, result: libc::c_int) -> Result<(), Error> {
    match result {
        0.. => Ok(()),
        _ => Err(Error::Os { call, source: io::Error::last_os_error() }),
    }
}

fn refused(call: &'static str, result: libc::c_int) -> Result<(), Error> {
    match done(call, result) {
        Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            Err(Error::State(format!("{call} refuses it")))
        }
        other => other,
    }
}

/// Gives the kernel the region at its guest-physical address; `len` 0 takes it back.
pub(crate) fn map_slot(vm: &VmFd, region: &Region, len: u64, log: bool) -> Result<(), Error> {
    let read_only = if region.slot.writable { 0 } else { KVM_MEM_READONLY };
    let slot = kvm_userspace_memory_region {
        slot: region.slot.id,
        flags: read_only | if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: region.slot.gpa,
        memory_size: len,
        userspace_addr: region.host_address(),
    };
    // SAFETY: the layout keeps the region, and with it the mapping, for as long as the kernel
    // has the slot; guest memory is never lent to safe code as a reference.
    let set = unsafe { vm.set_user_memory_region(slot) };
    set.map_err(crate::os("KVM_SET_USER_MEMORY_REGION"))
}

/// A slot that no guest's tables lead to comes, and goes.
pub(crate) fn come_and_go(vm: &VmFd, region: &Region) -> Result<(), Error> {
    // Beyond all others, in number and in place.
    let (slot, guest_phys_addr) = (0x7000, 1 << 46);
    for memory_size in [guest_mem::PAGE, 0] {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr,
            memory_size,
            userspace_addr: region.host_address(),
        };
        // SAFETY: the caller's region keeps the mapping until the slot is gone again.
        let set = unsafe { vm.set_user_memory_region(slot) };
        set.map_err(crate::os("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Binding and unbinding of an irqfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IrqfdRequest {
    Bind,
    Unbind,
}

pub(crate) fn irqfd(
    vm: &VmFd,
    event: BorrowedFd<'_>,
    gsi: u32,
    request: IrqfdRequest,
) -> Result<(), Error> {
    let flags = if request == IrqfdRequest::Unbind { KVM_IRQFD_FLAG_DEASSIGN } else { 0 };
    let fd = event.as_raw_fd().cast_unsigned();
    let arg = kvm_irqfd { fd, gsi, flags, ..Default::default() };
    // SAFETY: the ioctl reads one `kvm_irqfd`.
    done("KVM_IRQFD", unsafe { libc::ioctl(vm.as_raw_fd(), KVM_IRQFD, &arg) })
}

pub(crate) fn set_ioeventfd(vm: &VmFd, arg: &kvm_ioeventfd) -> Result<(), Error> {
    // SAFETY: the ioctl reads one `kvm_ioeventfd`.
    done("KVM_IOEVENTFD", unsafe { libc::ioctl(vm.as_raw_fd(), KVM_IOEVENTFD, arg) })
}

pub(crate) fn clear_ioeventfd(vm: &VmFd, arg: &kvm_ioeventfd) -> Result<(), Error> {
    let flags = arg.flags | 1 << kvm_ioeventfd_flag_nr_deassign;
    set_ioeventfd(vm, &kvm_ioeventfd { flags, ..*arg })
}

pub(crate) fn get_sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, Error> {
    let mut out = kvm_sregs2::default();
    // SAFETY: the ioctl writes one `kvm_sregs2`.
    let got = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS2, &mut out) };
    done("KVM_GET_SREGS2", got).map(|()| out)
}

pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY: the ioctl reads one `kvm_sregs2`.
    let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS2, sregs) };
    refused("KVM_SET_SREGS2", set)
}

/// A buffer as large as KVM_CAP_XSAVE2 says, at least `kvm_xsave`.
#[derive(Clone, Debug)]
pub(crate) struct XsaveArea(Vec<u32>);

impl XsaveArea {
    /// `bytes` is what KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) returned, 0 without it.
    pub(crate) fn new(bytes: i32) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(0).max(size_of::<kvm_xsave>());
        Self(vec![0; bytes.div_ceil(4)])
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.0
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }
}

/// KVM_GET_XSAVE2, or KVM_GET_XSAVE where `extended` is false.
pub(crate) fn get_xsave2(vcpu: &VcpuFd, area: &mut XsaveArea, extended: bool) -> Result<(), Error> {
    let call = if extended { KVM_GET_XSAVE2 } else { KVM_GET_XSAVE };
    // SAFETY: the ioctl writes at most as many bytes as KVM_CAP_XSAVE2 told, which the area
    // has by construction.
    let got = unsafe { libc::ioctl(vcpu.as_raw_fd(), call, area.0.as_mut_ptr()) };
    done("KVM_GET_XSAVE2", got)
}

pub(crate) fn set_xsave(vcpu: &VcpuFd, area: &XsaveArea) -> Result<(), Error> {
    // SAFETY: the ioctl reads at most as many bytes as KVM_CAP_XSAVE2 told.
    let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_XSAVE, area.0.as_ptr()) };
    refused("KVM_SET_XSAVE", set)
}

/// What the vCPU's TSC is ahead of the host's, where the kernel tells (since 5.16).
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attr = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(&mut offset) as u64,
        ..Default::default()
    };
    // SAFETY: the ioctl reads one `kvm_device_attr` and writes the eight bytes it points to.
    let got = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR, &attr) };
    (got == 0).then_some(offset)
}

/// The inverse; false where the kernel has no such call.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> bool {
    let attr = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_ref(&offset) as u64,
        ..Default::default()
    };
    // SAFETY: the ioctl reads one `kvm_device_attr` and the eight bytes it points to.
    let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &attr) };
    set == 0
}

/// Gives the vCPU IA32_MCG_CAP (SDM volume 3, 16.3.1.1). Where the kernel does not take it,
/// its own stays.
pub(crate) fn set_mce(vcpu: &VcpuFd, capability: u64) {
    // SAFETY: the ioctl reads eight bytes.
    unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_X86_SETUP_MCE, &capability) };
}

/// The host's TSC.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and processes may execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
