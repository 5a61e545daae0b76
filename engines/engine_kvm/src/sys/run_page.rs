//! The `kvm_run` page: the exit union, and `immediate_exit` for other threads.
#![expect(unsafe_code, reason = "reads the kernel's exit union, maps the page for kicks")]

use kvm_bindings::*;
use std::{
    io,
    mem::offset_of,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering::SeqCst},
};

const LEN: usize = 4096;

/// An alias of the page, which may outlive the vCPU's file descriptor.
#[derive(Debug)]
pub(crate) struct RunPage(NonNull<u8>);

// SAFETY: the only access through it is atomic.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(crate) fn new(vcpu: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: a new mapping of a file at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at zero"))
    }

    /// KVM_RUN returns at once with EINTR while it is set, after it has finished an access.
    /// Async-signal-safe.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        let at = offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte is in the mapped page, which lives as long as `self`, and the
        // kernel reads it as one byte.
        let flag = unsafe { AtomicU8::from_ptr(self.0.as_ptr().add(at)) };
        flag.store(on.into(), SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by `new`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LEN) };
    }
}

/// What the kernel wants done before the next KVM_RUN.
#[derive(Debug)]
pub(crate) enum KvmExit<'r> {
    Pio { port: u16, size: usize, write: bool, data: &'r mut [u8] },
    Mmio { gpa: u64, write: bool, data: &'r mut [u8] },
    Msr { index: u32, write: bool, value: &'r mut u64, fault: &'r mut u8 },
    Eoi(u8),
    Debug(kvm_debug_exit_arch),
    Internal(u32),
    SystemEvent,
    Other(u32),
}

/// kvm-ioctls' own decoding drops the operand size of a coalesced REP.
pub(crate) fn decode(run: &mut kvm_run, mapped: usize) -> KvmExit<'_> {
    let page = std::ptr::from_mut(run).cast::<u8>();
    let exit = &mut run.__bindgen_anon_1;
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says which member the kernel wrote; here and below.
            let io = unsafe { exit.io };
            let (size, at) = (usize::from(io.size), io.data_offset as usize);
            let len = size.saturating_mul(io.count as usize);
            if at.saturating_add(len) > mapped {
                return KvmExit::Other(KVM_EXIT_IO);
            }
            // SAFETY: so many operands lie at that offset of the mapped `kvm_run` area, which
            // is borrowed for as long as the slice is.
            let data = unsafe { std::slice::from_raw_parts_mut(page.add(at), len) };
            let write = u32::from(io.direction) == KVM_EXIT_IO_OUT;
            KvmExit::Pio { port: io.port, size, write, data }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: see above.
            let mmio = unsafe { &mut exit.mmio };
            let len = (mmio.len as usize).min(mmio.data.len());
            let data = &mut mmio.data[..len];
            KvmExit::Mmio { gpa: mmio.phys_addr, write: mmio.is_write != 0, data }
        }
        reason @ (KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR) => {
            // SAFETY: see above.
            let msr = unsafe { &mut exit.msr };
            let (write, value) = (reason == KVM_EXIT_X86_WRMSR, &mut msr.data);
            KvmExit::Msr { index: msr.index, write, value, fault: &mut msr.error }
        }
        // SAFETY: see above.
        KVM_EXIT_IOAPIC_EOI => KvmExit::Eoi(unsafe { exit.eoi }.vector),
        // SAFETY: see above.
        KVM_EXIT_DEBUG => KvmExit::Debug(unsafe { exit.debug }.arch),
        // SAFETY: see above.
        KVM_EXIT_INTERNAL_ERROR => KvmExit::Internal(unsafe { exit.internal }.suberror),
        KVM_EXIT_SYSTEM_EVENT => KvmExit::SystemEvent,
        reason => KvmExit::Other(reason),
    }
}
