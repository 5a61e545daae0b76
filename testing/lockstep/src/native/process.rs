//! The parent's side of the child process: starting it, and a batch's way there and back.
#![expect(unsafe_code, reason = "fork, pipes, and memory shared with the child")]

use super::{
    BATCH,
    child::{self, Block, FILE_LEN, Start},
};
use crate::case::{Background, Case, Mode, Outcome};
use guest_mem::Memfd;
use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr::{NonNull, null_mut},
    sync::{Arc, atomic::Ordering::SeqCst},
};

/// A batch takes milliseconds; a case that hangs is ended by the child's own timer.
const PATIENCE_MS: i32 = 60_000;

/// The child process, killed when dropped.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    block: Shared,
    to: PipeWriter,
    from: PipeReader,
    _memory: Arc<Memfd>,
}

impl Child {
    pub fn start(mode: Mode) -> io::Result<Self> {
        let block = Shared::new()?;
        let memory = Memfd::new(FILE_LEN as u64)?;
        let (child_reads, to) = io::pipe()?;
        let (from, child_writes) = io::pipe()?;
        let start = Start {
            mode,
            block: block.0.as_ptr(),
            memory: memory.as_fd().as_raw_fd(),
            from_parent: child_reads.as_raw_fd(),
            to_parent: child_writes.as_raw_fd(),
        };
        // SAFETY: the child calls `enter` at once, which uses nothing that another thread of
        // this process may have been changing, but the allocator for one small object: glibc
        // keeps that usable across fork.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: this is the child; `start` points to what it has inherited.
            0 => unsafe { child::enter(start) },
            _ => {}
        }
        // SAFETY: pidfd_open returns a new descriptor or an error.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is nobody else's.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
        Ok(Self { pid, pidfd, block, to, from, _memory: memory })
    }

    /// Outcomes of the cases that were done; fewer than `cases` if the process died.
    pub fn run(&mut self, background: &Background, cases: &[Case]) -> io::Result<Vec<Outcome>> {
        let cases = &cases[..cases.len().min(BATCH)];
        self.block.put(background, cases);
        let died = self.to.write_all(&[1]).is_err() || !self.answered()?;
        let done = self.block.done();
        if died && done >= cases.len() {
            return Err(io::Error::other("the native process died between two cases"));
        }
        Ok(self.block.outcomes(if died { done } else { cases.len() }))
    }

    /// False if the process died.
    fn answered(&mut self) -> io::Result<bool> {
        let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [poll(self.from.as_raw_fd()), poll(self.pidfd.as_raw_fd())];
        loop {
            // SAFETY: an array of two.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, PATIENCE_MS) };
            match ready {
                0 => return Ok(false),
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                _ if fds[0].revents & libc::POLLIN != 0 => {
                    return Ok(self.from.read(&mut [0])? == 1);
                }
                _ => return Ok(false),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the process is this one's child and has not been waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, null_mut(), 0);
        }
    }
}

/// The block in memory that a child shares with its parent.
#[derive(Debug)]
struct Shared(NonNull<Block>);

// SAFETY: a mapping can be used from any thread; there is one owner.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let at = unsafe { libc::mmap(null_mut(), size_of::<Block>(), prot, flags, -1, 0) };
        match NonNull::new(at.cast::<Block>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => Ok(Self(at)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn put(&mut self, background: &Background, cases: &[Case]) {
        let block = self.0.as_ptr();
        // SAFETY: the mapping holds a Block, of integers throughout, so that any bytes are
        // valid; the child does not touch it before it is told.
        unsafe {
            (&raw mut (*block).background).write_volatile(*background);
            let to = (&raw mut (*block).cases).cast::<Case>();
            for (n, case) in cases.iter().enumerate().take(BATCH) {
                to.add(n).write_volatile(*case);
            }
            (*block).done.store(0, SeqCst);
            (*block).count.store(cases.len() as u32, SeqCst);
        }
    }

    fn done(&self) -> usize {
        // SAFETY: an atomic integer in the mapping.
        unsafe { (*self.0.as_ptr()).done.load(SeqCst) as usize }
    }

    fn outcomes(&self, count: usize) -> Vec<Outcome> {
        // SAFETY: as in `put`; whatever a case wrote there is read once, by value.
        let at = unsafe { (&raw const (*self.0.as_ptr()).outcomes).cast::<Outcome>() };
        (0..count.min(BATCH))
            // SAFETY: below BATCH.
            .map(|n| unsafe { at.add(n).read_volatile() })
            .collect()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Block>()) };
    }
}
