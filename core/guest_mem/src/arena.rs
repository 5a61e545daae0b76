//! One reservation of host addresses that holds every slot, and the single instructions that
//! access it.
#![expect(unsafe_code, reason = "maps memory, and accesses it by single instructions")]

use crate::Memfd;
use std::{
    arch::asm,
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
    sync::{Mutex, PoisonError},
};

/// A place in an [`Arena`]. Any value is safe to use: an access out of bounds reads zeroes and
/// writes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArenaOffset(pub usize);

/// The reservation. All of it is always readable and writable: what no slot occupies is
/// private zero memory, so an offset that outlived its slot reaches nothing of anybody.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    len: usize,
    /// Occupied ranges, sorted.
    used: Mutex<Vec<(usize, usize)>>,
}

// SAFETY: the reservation belongs to no thread, and its bytes are only accessed by single
// instructions (inline assembly), for which every race is defined by the processor.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// Integers that one instruction loads and stores.
pub trait Plain: Copy + Default + Eq + Into<u64> + sealed::Sealed {
    /// The low bits.
    fn truncate(value: u64) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `at` points to mapped, readable memory of this size.
    unsafe fn load(at: *const u8) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `at` points to mapped, writable memory of this size.
    unsafe fn store(at: *mut u8, value: Self);
    #[doc(hidden)]
    /// Returns what was there.
    /// # Safety
    /// As for `store`.
    unsafe fn cmpxchg(at: *mut u8, old: Self, new: Self) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// As for `store`.
    unsafe fn xchg(at: *mut u8, new: Self) -> Self;
}

macro_rules! plain {
    ($ty:ty, $class:tt, $fmt:tt, $acc:tt) => {
        impl Plain for $ty {
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $ty
            }

            #[inline(always)]
            unsafe fn load(at: *const u8) -> Self {
                let value: $ty;
                // SAFETY: the caller's promise; the instruction touches nothing else.
                unsafe {
                    asm!(concat!("mov {v", $fmt, "}, [{at}]"), v = out($class) value, at = in(reg) at,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(at: *mut u8, value: Self) {
                // SAFETY: as above.
                unsafe {
                    asm!(concat!("mov [{at}], {v", $fmt, "}"), v = in($class) value, at = in(reg) at,
                        options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            unsafe fn cmpxchg(at: *mut u8, old: Self, new: Self) -> Self {
                let was: $ty;
                // SAFETY: as above.
                unsafe {
                    asm!(concat!("lock cmpxchg [{at}], {v", $fmt, "}"), v = in($class) new,
                        at = in(reg) at, inout($acc) old => was, options(nostack));
                }
                was
            }

            #[inline(always)]
            unsafe fn xchg(at: *mut u8, new: Self) -> Self {
                let was: $ty;
                // SAFETY: as above.
                unsafe {
                    asm!(concat!("xchg [{at}], {v", $fmt, "}"), v = inout($class) new => was,
                        at = in(reg) at, options(nostack, preserves_flags));
                }
                was
            }
        }
    };
}

plain!(u8, reg_byte, "", "al");
plain!(u16, reg, ":x", "ax");
plain!(u32, reg, ":e", "eax");
plain!(u64, reg, ":r", "rax");

impl Arena {
    pub(crate) fn reserve(len: usize) -> io::Result<Self> {
        let len = len.max(4096).next_multiple_of(4096);
        // SAFETY: a new mapping, where the kernel finds room, replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, PROT, ANONYMOUS, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), len, used: Mutex::default() })
    }

    /// Maps `len` bytes of `mem` where there is room; `Err(None)` if there is none.
    pub(crate) fn map(
        &self,
        mem: &Memfd,
        offset: u64,
        len: usize,
    ) -> Result<usize, Option<io::Error>> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut base, mut index) = (0usize, 0);
        for (start, end) in used.iter() {
            if start - base >= len {
                break;
            }
            (base, index) = (*end, index + 1);
        }
        let end = base.checked_add(len).filter(|end| *end <= self.len).ok_or(None)?;
        let offset = libc::off_t::try_from(offset).map_err(|e| Some(io::Error::other(e)))?;
        let (at, fd) = (self.base.wrapping_add(base).cast(), mem.as_fd().as_raw_fd());
        // SAFETY: `base..end` lies in the reservation, and no region occupies it.
        let got =
            unsafe { libc::mmap(at, len, PROT, libc::MAP_SHARED | libc::MAP_FIXED, fd, offset) };
        if got == libc::MAP_FAILED {
            return Err(Some(io::Error::last_os_error()));
        }
        used.insert(index, (base, end));
        Ok(base)
    }

    /// Gives a range that `map` returned back.
    pub(crate) fn unmap(&self, base: usize, len: usize) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.base.wrapping_add(base).cast();
        // SAFETY: the range was mapped by `map` inside the reservation; it stays readable and
        // writable, as zero memory.
        let got = unsafe { libc::mmap(at, len, PROT, ANONYMOUS | libc::MAP_FIXED, -1, 0) };
        // Where even that fails the old mapping stays, and so must its range.
        if got != libc::MAP_FAILED {
            used.retain(|(start, _)| *start != base);
        }
    }

    /// Where it is in this process, for translated code. Any offset has an address; those in the
    /// reservation can be accessed as long as the arena exists.
    pub fn host_address(&self, at: ArenaOffset) -> u64 {
        self.base.wrapping_add(at.0) as u64
    }

    /// The end of the part that one mapping of one file occupies, which `at` is in.
    pub fn mapped_until(&self, at: ArenaOffset) -> Option<ArenaOffset> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let part = used.iter().find(|(start, end)| (*start..*end).contains(&at.0));
        part.map(|(_, end)| ArenaOffset(*end))
    }

    #[inline(always)]
    fn at<const N: usize>(&self, at: ArenaOffset) -> Option<*mut u8> {
        // `len` is at least a page.
        (at.0 <= self.len - N).then(|| self.base.wrapping_add(at.0))
    }

    /// One load instruction: atomic if aligned, ordered as the processor orders loads.
    #[inline(always)]
    pub fn load<T: Plain>(&self, at: ArenaOffset) -> T {
        match self.at::<8>(at) {
            // SAFETY: eight bytes at `p` are in the reservation, which is readable.
            Some(p) => unsafe { T::load(p) },
            None => self.load_at_end(at),
        }
    }

    /// One store instruction.
    #[inline(always)]
    pub fn store<T: Plain>(&self, at: ArenaOffset, value: T) {
        match self.at::<8>(at) {
            // SAFETY: eight bytes at `p` are in the reservation, which is writable.
            Some(p) => unsafe { T::store(p, value) },
            None => self.store_at_end(at, value),
        }
    }

    #[cold]
    fn load_at_end<T: Plain>(&self, at: ArenaOffset) -> T {
        match self.fits(at, size_of::<T>()) {
            // SAFETY: the bytes are in the reservation.
            Some(p) => unsafe { T::load(p) },
            None => T::default(),
        }
    }

    #[cold]
    fn store_at_end<T: Plain>(&self, at: ArenaOffset, value: T) {
        if let Some(p) = self.fits(at, size_of::<T>()) {
            // SAFETY: the bytes are in the reservation.
            unsafe { T::store(p, value) }
        }
    }

    fn fits(&self, at: ArenaOffset, len: usize) -> Option<*mut u8> {
        let end = at.0.checked_add(len)?;
        (end <= self.len).then(|| self.base.wrapping_add(at.0))
    }

    /// `LOCK CMPXCHG`: returns what was there; the exchange happened if that equals `old`.
    #[inline]
    pub fn compare_exchange<T: Plain>(&self, at: ArenaOffset, old: T, new: T) -> T {
        match self.fits(at, size_of::<T>()) {
            // SAFETY: the bytes are in the reservation, which is writable.
            Some(p) => unsafe { T::cmpxchg(p, old, new) },
            None => T::default(),
        }
    }

    /// `XCHG` with memory.
    #[inline]
    pub fn exchange<T: Plain>(&self, at: ArenaOffset, new: T) -> T {
        match self.fits(at, size_of::<T>()) {
            // SAFETY: the bytes are in the reservation, which is writable.
            Some(p) => unsafe { T::xchg(p, new) },
            None => T::default(),
        }
    }

    /// `LOCK CMPXCHG16B`: returns what was there. `at` must be 16-byte aligned, or nothing
    /// happens and zero is returned. The host has the instruction: it is in x86-64-v2.
    pub fn compare_exchange_16(&self, at: ArenaOffset, old: u128, new: u128) -> u128 {
        let Some(p) = self.fits(at, 16).filter(|p| p.align_offset(16) == 0) else { return 0 };
        let (mut low, mut high) = (old as u64, (old >> 64) as u64);
        // SAFETY: sixteen aligned, writable bytes at `p`. RBX is swapped in and out because
        // the compiler reserves it; every other operand has a register by name, since one
        // that the compiler chooses may be RBX all the same.
        unsafe {
            asm!("xchg rsi, rbx", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
                inout("rsi") new as u64 => _, in("rdi") p,
                inout("rax") low, inout("rdx") high, in("rcx") (new >> 64) as u64,
                options(nostack));
        }
        u128::from(high) << 64 | u128::from(low)
    }

    /// Copies out; what lies beyond the arena stays as it was in `out`.
    pub fn read(&self, at: ArenaOffset, out: &mut [u8]) {
        if let Some(p) = self.fits(at, out.len()) {
            // SAFETY: both ranges are valid for their length and do not overlap: `out` is not
            // guest memory.
            unsafe { copy(p, out.as_mut_ptr(), out.len()) }
        }
    }

    /// Copies in; nothing is written unless all of it fits.
    pub fn write(&self, at: ArenaOffset, data: &[u8]) {
        if let Some(p) = self.fits(at, data.len()) {
            // SAFETY: as in `read`.
            unsafe { copy(data.as_ptr(), p, data.len()) }
        }
    }

    /// Fills with one byte; nothing is written unless all of it fits.
    pub fn fill(&self, at: ArenaOffset, len: usize, byte: u8) {
        if let Some(p) = self.fits(at, len) {
            // SAFETY: `len` writable bytes at `p`; the direction flag is clear by the ABI.
            unsafe {
                asm!("rep stosb", inout("rcx") len => _, inout("rdi") p => _, in("al") byte,
                    options(nostack, preserves_flags));
            }
        }
    }
}

/// `REP MOVSB`: a copy in which every race is the processor's matter, not the compiler's.
///
/// # Safety
/// `len` bytes are readable at `from` and writable at `to`.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: reserved with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

const PROT: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
