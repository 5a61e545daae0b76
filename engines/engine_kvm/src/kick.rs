//! Taking a vCPU out of KVM_RUN.

use crate::sys::{self, RunPage};
use engine::{Error, Kick};
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering::SeqCst};

const NOTIFY: u8 = 1;
const STOP: u8 = 2;

/// The bits say what is wanted; `immediate_exit` makes a KVM_RUN that has not begun return at
/// once; the signal ends one that has. The bits go first, so whoever sees the kernel return
/// finds the reason.
#[derive(Debug)]
pub(crate) struct KvmKick {
    wanted: AtomicU8,
    thread: AtomicI32,
    run: RunPage,
}

impl KvmKick {
    pub(crate) fn new(fd: &VcpuFd) -> Result<Self, Error> {
        let run = RunPage::new(fd).map_err(|source| Error::Os { call: "mmap kvm_run", source })?;
        Ok(Self { wanted: AtomicU8::new(0), thread: AtomicI32::new(0), run })
    }

    pub(crate) fn set_immediate_exit(&self, on: bool) {
        self.run.set_immediate_exit(on);
    }

    /// Answers `notify`, as the caller looks now, and says whether to stop.
    pub(crate) fn look(&self) -> bool {
        self.set_immediate_exit(false);
        self.wanted.fetch_and(!NOTIFY, SeqCst) & STOP != 0
    }

    /// Someone has kicked since the last look.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(SeqCst) != 0
    }

    /// The stop has caused its return.
    pub(crate) fn stopped(&self) {
        self.wanted.fetch_and(!STOP, SeqCst);
    }

    /// From here on kicks signal this thread.
    pub(crate) fn enter(&self) {
        sys::unblock();
        self.thread.store(sys::current_thread(), SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.thread.store(0, SeqCst);
    }

    fn kick(&self, why: u8) {
        self.wanted.fetch_or(why, SeqCst);
        self.set_immediate_exit(true);
        let thread = self.thread.load(SeqCst);
        if thread != 0 {
            sys::send(thread);
        }
    }
}

impl Kick for KvmKick {
    fn notify(&self) {
        self.kick(NOTIFY);
    }

    fn stop(&self) {
        self.kick(STOP);
    }
}
