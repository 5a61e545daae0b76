//! Faults of the host in translated code.
//!
//! An access by a window (see [`crate::windows`]) faults where the window has nothing. The
//! signal's handler finds where in the code memory control is, and leads it to what was made
//! for this case: the instruction has had no effect yet.
#![expect(unsafe_code, reason = "handles signals")]

use crate::state::{BIAS, State};
use std::{cell::Cell, collections::BTreeMap, mem, ops::Range, ptr, sync::OnceLock};

/// Where instructions may fault, and where they go then: offsets in the code memory.
#[derive(Debug, Default)]
pub struct Recover {
    /// By the first byte: the end, and what to do.
    ranges: BTreeMap<usize, (usize, usize)>,
}

impl Recover {
    /// What an entry takes, about.
    pub const BYTES: usize = 48;

    pub fn add(&mut self, start: usize, end: usize, to: usize) {
        self.ranges.insert(start, (end, to));
    }

    /// What begins there is not there any more.
    pub fn forget(&mut self, range: Range<usize>) {
        let gone: Vec<usize> = self.ranges.range(range).map(|(start, _)| *start).collect();
        for start in gone {
            self.ranges.remove(&start);
        }
    }

    fn find(&self, at: usize) -> Option<usize> {
        let (_, (end, to)) = self.ranges.range(..=at).next_back()?;
        (at < *end).then_some(*to)
    }
}

/// What a thread in translated code has at hand.
#[derive(Clone, Copy)]
struct Present {
    code: usize,
    len: usize,
    recover: *const Recover,
}

thread_local! {
    static PRESENT: Cell<Option<Present>> = const { Cell::new(None) };
}

/// While this lives, faults of this thread at `len` bytes of code from `code` on are looked up
/// in `recover`.
pub struct Guard(());

impl Guard {
    pub fn new(code: *const u8, len: usize, recover: &Recover) -> Self {
        let recover = ptr::from_ref(recover);
        PRESENT.set(Some(Present { code: code as usize, len, recover }));
        Self(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        PRESENT.set(None);
    }
}

/// What was done with SIGSEGV before; `None` if it could not be changed.
static OLD: OnceLock<Option<libc::sigaction>> = OnceLock::new();

/// Handles faults from now on. Those of others go where they went before. False if that is not
/// to be had.
///
/// Operands by a window, whose addresses are canonical whatever register they are made of, raise
/// SIGSEGV only. SIGBUS, where the host has no memory left for a page, is not for the guest.
pub fn install() -> bool {
    let replace = || {
        // SAFETY: all zeroes is a valid action; the handler lives for ever, and does what a
        // handler may.
        let (done, old) = unsafe {
            let (mut action, mut old): (libc::sigaction, _) = (mem::zeroed(), mem::zeroed());
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            (libc::sigaction(libc::SIGSEGV, &action, &mut old), old)
        };
        (done == 0).then_some(old)
    };
    OLD.get_or_init(replace).is_some()
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both.
    let (context, address) =
        unsafe { (&mut *context.cast::<libc::ucontext_t>(), (*info).si_addr() as u64) };
    let registers = &mut context.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize] as usize;
    if let Some(present) = PRESENT.get()
        && let Some(offset) = at.checked_sub(present.code).filter(|at| *at < present.len)
        // SAFETY: the guard that set it borrows the table, which nobody changes meanwhile.
        && let Some(to) = unsafe { &*present.recover }.find(offset)
    {
        let rsp = registers[libc::REG_RSP as usize] as usize as *mut u8;
        // SAFETY: translated code that accesses guest memory has the state's address in RSP.
        // It does not run now, and nobody else has the state.
        let state = unsafe { &mut *rsp.wrapping_sub(BIAS).cast::<State>() };
        state.fault = address;
        state.fault_write = u64::from(registers[libc::REG_ERR as usize] as u64 & 2 != 0);
        registers[libc::REG_RIP as usize] = (present.code + to) as i64;
        return;
    }
    // SAFETY: as above; what was there before is asked again when the instruction faults again.
    unsafe {
        match OLD.get() {
            Some(Some(old)) => libc::sigaction(signal, old, ptr::null_mut()),
            _ => libc::sigaction(signal, &mem::zeroed(), ptr::null_mut()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_added_is_recovered() {
        let mut recover = Recover::default();
        recover.add(100, 110, 1000);
        recover.add(110, 120, 2000);
        recover.add(300, 310, 3000);
        let found = [99, 100, 109, 110, 119, 120, 305].map(|at| recover.find(at));
        let expected = [None, Some(1000), Some(1000), Some(2000), Some(2000), None, Some(3000)];
        assert_eq!(found, expected);
        recover.forget(100..300);
        assert_eq!([105, 115, 305].map(|at| recover.find(at)), [None, None, Some(3000)]);
    }
}
