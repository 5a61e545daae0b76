//! Host addresses at which pages of the guest's memory appear once more.
#![expect(unsafe_code, reason = "maps memory")]

use std::{io, ptr};

/// What one window spans: linear addresses with the same upper 32 bits.
pub const SPAN: usize = 1 << 32;
/// Between windows, and around them: what is near a window's end faults.
pub const GUARD: usize = 1 << 20;
const PAGE: usize = 4096;

/// A reservation in which nothing can be accessed but what is mapped into it.
#[derive(Debug)]
pub struct Reserve {
    base: *mut u8,
    windows: usize,
}

// SAFETY: the reservation belongs to this value alone and to no thread.
unsafe impl Send for Reserve {}
// SAFETY: nothing is accessed through a shared reference.
unsafe impl Sync for Reserve {}

const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

impl Reserve {
    pub fn new(windows: usize) -> io::Result<Self> {
        let len = Self::len(windows);
        // SAFETY: a new mapping, where the kernel finds room, replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, FLAGS, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), windows })
    }

    const fn len(windows: usize) -> usize {
        windows * (SPAN + GUARD) + GUARD
    }

    /// Host address of a window's beginning.
    pub fn address(&self, window: usize) -> u64 {
        let at = GUARD + window.min(self.windows - 1) * (SPAN + GUARD);
        self.base.wrapping_add(at) as u64
    }

    /// The window and the offset in it of a host address.
    pub fn find(&self, host: u64) -> Option<(usize, usize)> {
        let at = usize::try_from(host.checked_sub(self.base as u64)?).ok()?.checked_sub(GUARD)?;
        let (window, offset) = (at / (SPAN + GUARD), at % (SPAN + GUARD));
        (window < self.windows && offset < SPAN).then_some((window, offset))
    }

    /// Pages of shared memory from host address `from` on, which are mapped readable and
    /// writable and are parts of one mapping, appear at an offset of a window, too. False if
    /// they cannot.
    pub fn show(
        &self,
        window: usize,
        offset: usize,
        len: usize,
        from: u64,
        writable: bool,
    ) -> bool {
        let aligned = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        if !aligned || window >= self.windows || offset >= SPAN || len > SPAN - offset {
            return false;
        }
        if !from.is_multiple_of(PAGE as u64) {
            return false;
        }
        let to = (self.address(window) as usize + offset) as *mut libc::c_void;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the new place is inside the reservation, in which no reference points. An old
        // length of 0 leaves the old mapping as it is and makes a second one of the same pages
        // if they are shared, else fails (mremap(2)). What follows them in the new one is what
        // follows them in the file, which the caller knows to be the guest's.
        let at = unsafe { libc::mremap(from as *mut libc::c_void, 0, len, flags, to) };
        if at == libc::MAP_FAILED {
            return false;
        }
        if writable {
            return true;
        }
        // SAFETY: the mapping that was just made.
        let done = unsafe { libc::mprotect(at, len, libc::PROT_READ) } == 0;
        if !done {
            self.hide(window, offset, len);
        }
        done
    }

    /// Nothing is in this part of a window any more.
    pub fn hide(&self, window: usize, offset: usize, len: usize) {
        let offset = offset & !(PAGE - 1);
        if window >= self.windows || offset >= SPAN || len > SPAN - offset {
            return;
        }
        // A part may need one more mapping than there may be; the whole never does.
        if !self.reserve_again(window, offset, len) && !self.reserve_again(window, 0, SPAN) {
            // Going on would let the guest access what it may not.
            std::process::abort();
        }
    }

    fn reserve_again(&self, window: usize, offset: usize, len: usize) -> bool {
        let at = (self.address(window) as usize + offset) as *mut libc::c_void;
        let flags = FLAGS | libc::MAP_FIXED;
        // SAFETY: inside the reservation, as the caller has seen to.
        unsafe { libc::mmap(at, len, libc::PROT_NONE, flags, -1, 0) != libc::MAP_FAILED }
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // SAFETY: the whole reservation, which nobody uses any more.
        unsafe { libc::munmap(self.base.cast(), Self::len(self.windows)) };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The rights with which a host address is mapped.
    fn rights(at: u64) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let holds = |line: &&str| {
            let (start, rest) = line.split_once('-').unwrap();
            let end = rest.split(' ').next().unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(start)..number(end)).contains(&at)
        };
        let line = maps.lines().find(holds).unwrap_or_default();
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// Memory as the guest's is.
    pub fn shared(len: usize) -> u64 {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which lives as long as the process.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, rights, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        at as u64
    }

    #[test]
    fn a_page_appears_with_its_rights_and_disappears() {
        let reserve = Reserve::new(2).unwrap();
        let from = shared(2 * PAGE);
        let at = reserve.address(1) + 0x5000;
        assert_eq!(reserve.find(at + 3), Some((1, 0x5003)));
        assert_eq!(rights(at), "---p");
        assert!(reserve.show(1, 0x5000, PAGE, from, true));
        assert_eq!(rights(at), "rw-s");
        // SAFETY: both are mapped so.
        let seen = unsafe {
            *(from as *mut u64) = 0x1234;
            *(at as *const u64)
        };
        assert_eq!(seen, 0x1234);
        assert!(reserve.show(1, 0x5000, PAGE, from + PAGE as u64, false));
        assert_eq!((rights(at), rights(from)), ("r--s".into(), "rw-s".into()));
        reserve.hide(1, 0x5000, PAGE);
        assert_eq!((rights(at), rights(from)), ("---p".into(), "rw-s".into()));
        assert!(reserve.show(1, 0, PAGE, from, true));
        reserve.hide(1, 0, SPAN);
        assert_eq!(rights(reserve.address(1)), "---p");
    }

    #[test]
    fn around_a_window_is_nothing() {
        let reserve = Reserve::new(2).unwrap();
        for window in 0..2 {
            let start = reserve.address(window);
            assert_eq!(reserve.find(start), Some((window, 0)));
            assert_eq!(reserve.find(start + SPAN as u64 - 1), Some((window, SPAN - 1)));
            for outside in [start - 1, start - GUARD as u64, start + SPAN as u64] {
                assert_eq!((reserve.find(outside), rights(outside)), (None, "---p".into()));
            }
        }
        // What is not shared cannot be shown.
        let private = Box::new([0_u8; 3 * PAGE]);
        let at = (private.as_ptr() as u64).next_multiple_of(PAGE as u64);
        assert!(
            !reserve.show(0, 0, PAGE, at, true)
                && !reserve.show(2, 0, PAGE, shared(2 * PAGE), true)
        );
        assert_eq!(rights(reserve.address(0)), "---p");
    }
}
