//! The virtio entropy device (virtio 1.2, section 5.4): one queue of buffers to be filled with
//! random bytes.
//!
//! A request is given at most [`AT_ONCE`] bytes, whatever room it has: the specification lets a
//! device give less, and so no request takes long.

use std::{
    fmt,
    io::Read,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use virtio::{GuestError, Queue, Served, VirtioDevice};

const DEVICE_TYPE: u16 = 4;
/// PCI has no class for it.
const CLASS: u32 = 0xff_00_00;
const QUEUE_SIZE: u16 = 64;
/// The most bytes that one request is given.
pub const AT_ONCE: usize = 4096;

/// Where the bytes come from: the host's generator.
type Source = Box<dyn Read + Send>;

pub struct VirtioRng {
    source: Mutex<Source>,
    given: AtomicU64,
    failed: AtomicU64,
}

impl fmt::Debug for VirtioRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioRng").field("given", &self.given).finish_non_exhaustive()
    }
}

impl VirtioRng {
    /// With a source that never ends, such as `/dev/urandom`.
    pub fn new(source: impl Read + Send + 'static) -> Arc<Self> {
        let source: Source = Box::new(source);
        Arc::new(Self { source: Mutex::new(source), given: 0.into(), failed: 0.into() })
    }

    fn fill(&self, bytes: &mut [u8]) -> bool {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        source.read_exact(bytes).is_ok()
    }
}

impl VirtioDevice for VirtioRng {
    fn name(&self) -> &'static str {
        "virtio_rng"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn serve(&self, _: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let mut bytes = [0; AT_ONCE];
        while let Some(mut chain) = queue.pop()? {
            if !chain.readable.is_empty() || chain.writable.is_empty() {
                // 5.4.6.1
                return Err(GuestError("a request for random bytes has no room for them"));
            }
            let len = usize::try_from(chain.writable.len()).unwrap_or(AT_ONCE).min(AT_ONCE);
            let Some(wanted) = bytes.get_mut(..len) else { return Ok(Served::Left) };
            // A host without random bytes gives none; never others.
            let mut written = 0;
            if self.fill(wanted) {
                written = chain.writable.write(wanted);
                self.given.fetch_add(written as u64, Relaxed);
            } else {
                self.failed.fetch_add(1, Relaxed);
            }
            queue.complete(chain, written as u32)?;
        }
        Ok(Served::Drained)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes given", self.given.load(Relaxed)),
            ("failed requests", self.failed.load(Relaxed)),
        ]
    }
}
