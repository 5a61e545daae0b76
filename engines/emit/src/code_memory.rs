//! Memory for generated code, never writable and executable through one address.
//!
//! Shared anonymous memory is mapped twice: a view to write and a view to execute, both made
//! once, before any system-call filter that denies PROT_EXEC. This needs no privilege. Being
//! anonymous it is what `perf` takes generated code for; of a memfd it would ask symbols.

#![expect(unsafe_code, reason = "maps executable memory and writes code into it")]

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;
use std::sync::LazyLock;

/// What unused code bytes hold: INT3, so that a stray jump stops at once.
const FILLER: u8 = 0xcc;

/// A bounded piece of memory with a writable and an executable view.
#[derive(Debug)]
pub struct CodeMemory {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    len: usize,
}

// SAFETY: the views are plain shared memory owned by this value; `write` demands exclusive use
// of the written range from its caller.
unsafe impl Send for CodeMemory {}
// SAFETY: as above; without `write` nothing is mutated.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    /// Reserves `len` bytes (a multiple of the page size); pages are allocated when first used.
    pub fn new(len: usize) -> io::Result<Self> {
        let execute = map(len)?;
        match map_again(execute, len) {
            Ok(write) => Ok(Self { write, execute, len }),
            Err(error) => {
                // SAFETY: the mapping was made above with this length and is used nowhere.
                unsafe { libc::munmap(execute.as_ptr().cast(), len) };
                Err(error)
            }
        }
    }

    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes `code` at `at` and fills up to `room` bytes; false if that does not fit.
    ///
    /// # Safety
    /// Nobody executes or writes the range meanwhile.
    pub unsafe fn write(&self, at: usize, room: usize, code: &[u8]) -> bool {
        if code.len() > room || at.checked_add(room).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: the range is inside the writable view, and the caller has it to itself.
        unsafe {
            let to = self.write.as_ptr().add(at);
            to.copy_from_nonoverlapping(code.as_ptr(), code.len());
            to.add(code.len()).write_bytes(FILLER, room - code.len());
        }
        true
    }

    /// A copy of what is at `at`: up to `len` bytes. Nobody else may be writing it.
    pub fn copy(&mut self, at: usize, len: usize) -> Vec<u8> {
        let len = len.min(self.len.saturating_sub(at));
        if len == 0 {
            return Vec::new();
        }
        // SAFETY: just checked to be inside the mapping, which is borrowed exclusively: nobody
        // writes to it.
        unsafe { std::slice::from_raw_parts(self.execute.as_ptr().add(at), len) }.to_vec()
    }

    /// The address at which the code at `at` executes; `at` is inside the memory.
    pub fn address(&self, at: usize) -> *const u8 {
        assert!(at < self.len, "offset outside the code memory");
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.execute.as_ptr().add(at) }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both were mapped with this length; whoever runs code in them holds a
        // reference to this value.
        unsafe {
            libc::munmap(self.write.as_ptr().cast(), self.len);
            libc::munmap(self.execute.as_ptr().cast(), self.len);
        }
    }
}

/// New memory to read and execute.
fn map(len: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // Pages count when they are used: of a large cache most never are.
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    address(at)
}

/// The same memory at a second address, to read and write.
fn map_again(first: NonNull<u8>, len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: with an old length of zero, a shared mapping stays where it is and gets a second
    // one elsewhere (mremap(2)).
    let at = unsafe { libc::mremap(first.as_ptr().cast(), 0, len, libc::MREMAP_MAYMOVE) };
    let second = address(at)?;
    // SAFETY: the mapping just made, which nobody uses yet.
    if unsafe { libc::mprotect(at, len, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::munmap(at, len) };
        return Err(error);
    }
    Ok(second)
}

fn address(at: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::Other))
}

/// Makes this processor fetch what was last written, where it may have executed other code at
/// the same address before (SDM volume 3, 9.1.3: a serializing instruction). CPUID, which is
/// mostly taken for it, leaves a virtual machine: 4 us where an IRET takes 40 ns.
pub fn serialize() {
    // CPUID.(EAX=07H, ECX=0):EDX[14].
    static KNOWN: LazyLock<bool> =
        LazyLock::new(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 14 & 1 != 0);
    if *KNOWN {
        // SAFETY: the processor has the instruction, which changes nothing but the order of
        // execution. The compiler takes memory for changed.
        unsafe { std::arch::asm!("serialize", options(nostack, preserves_flags)) };
    } else {
        return_here();
    }
}

/// The other instruction that serializes and that a program may execute, to where it stands.
fn return_here() {
    // SAFETY: the frame (SDM volume 3, 6.14.3) has the registers as they are, and the next
    // instruction's place: nothing changes but two registers, which are declared. The five words are
    // below RSP, which IRET sets to what it was; the compiler keeps nothing there, since it is not
    // told that the stack stays untouched. No thread of this process has a shadow stack, on
    // which IRET would look for a frame, too.
    unsafe {
        std::arch::asm!(
            "mov {old}, rsp",
            "mov {word:e}, ss",
            "push {word}",
            "push {old}",
            "pushfq",
            "mov {word:e}, cs",
            "push {word}",
            "lea {word}, [rip + 2f]",
            "push {word}",
            "iretq",
            "2:",
            old = out(reg) _,
            word = out(reg) _,
        );
    }
}

/// Prepares [`sync_all_processors`]; false if the kernel has no such thing.
pub(crate) fn register_for_sync() -> bool {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)
}

/// Makes every thread of this process fetch code anew before it executes further, as is due
/// when code is replaced that other processors may have fetched (SDM volume 3, 9.1.3).
pub(crate) fn sync_all_processors() -> bool {
    membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE)
}

fn membarrier(command: c_int) -> bool {
    // SAFETY: the commands touch no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_what_was_written() {
        let memory = CodeMemory::new(4096).unwrap();
        // mov eax, 42; ret
        let code = [0xb8, 42, 0, 0, 0, 0xc3];
        // SAFETY: the memory is ours alone; the code obeys the calling convention.
        unsafe {
            assert!(memory.write(64, 64, &code));
            let run: extern "sysv64" fn() -> u32 = std::mem::transmute(memory.address(64));
            assert_eq!(run(), 42);
        }
    }

    #[test]
    fn a_return_to_where_it_stands_changes_nothing() {
        let mut sum = 0_u64;
        for n in 0..1000 {
            let before = sum;
            return_here();
            assert_eq!(sum, before);
            sum += n;
        }
        assert_eq!(sum, 499_500);
    }

    #[test]
    fn no_view_is_writable_and_executable() {
        let memory = CodeMemory::new(4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of = |view: NonNull<u8>| {
            let start = format!("{:x}-", view.as_ptr() as usize);
            let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(of(memory.write), "rw-s");
        assert_eq!(of(memory.execute), "r-xs");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let memory = CodeMemory::new(4096).unwrap();
        // SAFETY: the memory is ours alone.
        unsafe {
            assert!(!memory.write(4090, 64, &[0xc3]));
            assert!(!memory.write(0, 1, &[0x90, 0xc3]));
            assert!(!memory.write(usize::MAX, 64, &[0xc3]));
        }
    }
}
