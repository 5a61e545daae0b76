//! A vCPU's ring of dirty pages, shared with the kernel (KVM_CAP_DIRTY_LOG_RING_ACQ_REL).
#![expect(unsafe_code, reason = "maps the ring, and an ioctl")]

use engine::Error;
use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VmFd;
use std::{
    io,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering::*},
};

/// `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
/// Bits of an entry's flags: the kernel has filled it, we have read it.
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// The mapping outlives the vCPU's file descriptor.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    base: NonNull<kvm_dirty_gfn>,
    entries: u32,
    /// The next entry to be read; it counts on beyond `entries`.
    next: AtomicU32,
}

// SAFETY: entries are read and written through atomics and volatile loads only, and `harvest`
// is called by one thread at a time, which its callers' lock sees to; were it not, pages would
// be told twice, and nothing else.
unsafe impl Send for DirtyRing {}
// SAFETY: as above.
unsafe impl Sync for DirtyRing {}

impl DirtyRing {
    /// `entries` is what the VM's rings were made with: a power of two.
    pub(crate) fn new(vcpu: &impl AsRawFd, entries: u32) -> io::Result<Self> {
        // SAFETY: a new mapping of a file at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::len(entries),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { base, entries: entries.max(1), next: AtomicU32::new(0) })
    }

    fn len(entries: u32) -> usize {
        entries as usize * size_of::<kvm_dirty_gfn>()
    }

    /// Hands every new entry, as slot and page of the slot, to `each`; true if there was one.
    /// Entries are the kernel's again after [`reset_rings`].
    pub(crate) fn harvest(&self, mut each: impl FnMut(u32, u64)) -> bool {
        let mut any = false;
        // No more than the ring has, should the kernel go on filling it.
        for _ in 0..self.entries {
            let index = self.next.load(Relaxed) % self.entries;
            // SAFETY: the index is below the number of mapped entries.
            let entry = unsafe { self.base.add(index as usize) };
            // SAFETY: the flags are an aligned word of the mapping, used atomically by both.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry.as_ptr()).flags) };
            if flags.load(Acquire) & DIRTY == 0 {
                break;
            }
            // SAFETY: the entry is mapped; the kernel leaves it alone until it is reset.
            let gfn = unsafe { entry.as_ptr().read_volatile() };
            each(gfn.slot, gfn.offset);
            flags.store(RESET, Release);
            self.next.store(self.next.load(Relaxed).wrapping_add(1), Relaxed);
            any = true;
        }
        any
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by `new`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::len(self.entries)) };
    }
}

/// Protects the harvested pages anew and gives their entries back.
pub(crate) fn reset_rings(vm: &VmFd) -> Result<(), Error> {
    // SAFETY: the ioctl takes no argument.
    match unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) } {
        0.. => Ok(()),
        _ => Err(Error::Os { call: "KVM_RESET_DIRTY_RINGS", source: io::Error::last_os_error() }),
    }
}
