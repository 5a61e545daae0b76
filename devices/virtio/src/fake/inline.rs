//! A device without threads: its queues are served when a test says so.

use crate::{GuestError, Handle, Queue, Served, VirtioDevice};
use saved_state::{Error, Reader, Writer};
use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// Another device, whose doorbells only note which queue was rung. [`Self::settle`] then serves
/// these on the caller's thread: what happens is the same every time, a panic is the caller's,
/// and nothing is under way when it returns. A queue that waits for others, which it rings and which
/// have threads of their own, finds them served when it has rung.
pub struct Inline {
    inner: Arc<dyn VirtioDevice>,
    handle: OnceLock<Handle>,
    rung: AtomicU64,
    /// Queues that are being served.
    serving: AtomicU64,
}

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inline").field("device", &self.inner.name()).finish_non_exhaustive()
    }
}

impl Inline {
    pub fn new(inner: Arc<dyn VirtioDevice>) -> Arc<Self> {
        Arc::new(Self { inner, handle: OnceLock::new(), rung: 0.into(), serving: 0.into() })
    }

    /// Serves queues until none has been rung.
    pub fn settle(&self) {
        loop {
            let rung = self.rung.load(SeqCst);
            if rung == 0 {
                return;
            }
            self.rung.fetch_and(!(rung & rung.wrapping_neg()), SeqCst);
            self.serve_now(rung.trailing_zeros() as u16);
        }
    }

    fn serve_now(&self, queue: u16) {
        let Some(core) = self.handle.get().and_then(|handle| handle.0.upgrade()) else { return };
        self.serving.fetch_or(1 << queue, SeqCst);
        core.serve(queue);
        self.serving.fetch_and(!(1 << queue), SeqCst);
    }

    /// Whether a queue is being served, and none by the thread of this one.
    fn is_waited_for(&self, queue: u16) -> bool {
        let threads = self.inner.threads().max(1);
        let serving = self.serving.load(SeqCst);
        let same = |other: &usize| other % threads == usize::from(queue) % threads;
        serving != 0 && !(0..crate::QUEUES_MAX).filter(same).any(|other| serving >> other & 1 != 0)
    }
}

impl VirtioDevice for Inline {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn device_type(&self) -> u16 {
        self.inner.device_type()
    }
    fn class(&self) -> u32 {
        self.inner.class()
    }
    fn queue_sizes(&self) -> Vec<u16> {
        self.inner.queue_sizes()
    }
    fn features(&self) -> u64 {
        self.inner.features()
    }
    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle.clone());
        self.inner.attach(handle);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.inner.read_config(offset, data);
    }
    fn write_config(&self, offset: u64, data: &[u8]) {
        self.inner.write_config(offset, data);
    }
    fn activate(&self, features: u64) {
        self.inner.activate(features);
    }
    fn reset(&self) {
        self.inner.reset();
    }
    fn doorbell(&self, index: u16) -> bool {
        if self.inner.doorbell(index) {
            return true;
        }
        if self.is_waited_for(index) {
            self.serve_now(index);
        } else {
            self.rung.fetch_or(1 << index, SeqCst);
        }
        true
    }
    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        self.inner.serve(index, queue)
    }
    fn save(&self, to: &mut Writer, instance: u32) {
        self.inner.save(to, instance);
    }
    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        self.inner.restore(from, instance)
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }
}
