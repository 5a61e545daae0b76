//! The memory in which translated code's state lies, with the stack on which it runs.
//!
//! RSP points to the state while translated code runs, so the host's other registers are the
//! guest's. What is pushed, and the frames of signals that arrive meanwhile, go below the
//! state. Callouts are served on the thread's own stack.
#![expect(unsafe_code, reason = "maps memory, and borrows the state in it")]

use crate::state::State;
use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// Faults, so that the stack cannot grow into what is below.
const GUARD: usize = 4096;
/// A few words are pushed; signals need some KiB each, for the vector registers.
const STACK: usize = 256 << 10;
const LEN: usize = GUARD + STACK + size_of::<State>();

/// A state, all of whose fields begin as zero.
#[derive(Debug)]
pub(crate) struct Region {
    /// Where the mapping begins.
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Region {}
// SAFETY: a shared reference only reads the state.
unsafe impl Sync for Region {}

impl Region {
    pub fn new() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(at.cast()).ok_or(io::ErrorKind::Other)?;
        let region = Self { start };
        // SAFETY: the first page of the mapping that was made above; nothing is in it yet.
        if unsafe { libc::mprotect(at, GUARD, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(region)
    }

    fn state(&self) -> NonNull<State> {
        // SAFETY: inside the mapping by its length.
        unsafe { self.start.add(GUARD + STACK).cast() }
    }
}

impl Deref for Region {
    type Target = State;

    fn deref(&self) -> &State {
        // SAFETY: the mapping has room for a state there, which is aligned as the page is; its
        // fields are integers, for which the mapping's zeros are values.
        unsafe { self.state().as_ref() }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut State {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { self.state().as_mut() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; translated code runs only while the region is
        // borrowed.
        unsafe { libc::munmap(self.start.as_ptr().cast(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zero_and_aligned_with_a_guarded_stack_below() {
        let mut region = Region::new().unwrap();
        assert_eq!((region.rip, region.fars[region.fars.len() - 1].host), (0, 0));
        region.fars.iter_mut().for_each(|far| far.host = 7);
        assert_eq!(std::ptr::from_ref(&*region) as usize % 64, 0);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = region.start.as_ptr() as usize;
        let starts = |at: usize| {
            let line = maps
                .lines()
                .find(|l| l.contains(&format!("{at:x}-")) || l.starts_with(&format!("{at:x}-")));
            line.and_then(|l| l.split_whitespace().nth(1)).map(str::to_owned)
        };
        assert_eq!(starts(start).as_deref(), Some("---p"));
        assert_eq!(starts(start + GUARD).as_deref(), Some("rw-p"));
    }
}
