//! The virtio memory balloon (virtio 1.2, section 5.5).
//!
//! What the driver puts into the balloon, and what it reports as free, is given back to the host
//! ([`GuestMem::discard`]); it is zero when the guest uses it again, and needs no asking. A page
//! that is no RAM is counted and otherwise passed over, as is the order in which pages come and go:
//! whatever a driver says, only the guest's own memory changes.
//!
//! Statistics are the driver's word. A driver keeps one buffer with them in its queue, which is
//! handed back when somebody [asks](VirtioBalloon::ask_statistics) and comes again with new ones.

mod stats;

pub use stats::{Statistics, Tag};

use guest_mem::{GuestMem, PAGE};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*},
    },
    time::Duration,
};
use virtio::{Chain, GuestError, Handle, Queue, Served, VirtioDevice};

/// Feature bits (5.5.3).
pub mod feature {
    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

const DEVICE_TYPE: u16 = 5;
/// PCI has no class for it.
const CLASS: u32 = 0xff_00_00;
/// The queues (5.5.2); that of free-page hints is not there.
pub const INFLATE: u16 = 0;
pub const DEFLATE: u16 = 1;
pub const STATS: u16 = 2;
pub const REPORTING: u16 = 3;
const QUEUE_SIZE: u16 = 128;
/// Page numbers that are looked at in one piece.
const PIECE: usize = 1024;
/// `actual` in the configuration (5.5.4).
const ACTUAL: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// Pages that the driver is to put in, and has.
    pub target: u32,
    pub actual: u32,
}

impl Schema for BalloonState {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Counters {
    inflated: AtomicU64,
    deflated: AtomicU64,
    reported: AtomicU64,
    returned: AtomicU64,
    ignored: AtomicU64,
}

pub struct VirtioBalloon {
    memory: Arc<GuestMem>,
    /// Pages of all RAM: no target is larger.
    pages: u32,
    handle: OnceLock<Handle>,
    target: AtomicU32,
    actual: AtomicU32,
    /// Somebody wants new statistics.
    asked: AtomicBool,
    statistics: Mutex<Statistics>,
    told: Condvar,
    counters: Counters,
}

impl fmt::Debug for VirtioBalloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, actual) = (&self.target, &self.actual);
        let mut debug = f.debug_struct("VirtioBalloon");
        debug.field("target", target).field("actual", actual).finish_non_exhaustive()
    }
}

impl VirtioBalloon {
    /// For a guest with this many bytes of RAM.
    pub fn new(memory: Arc<GuestMem>, bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            memory,
            pages: u32::try_from(bytes / PAGE).unwrap_or(u32::MAX),
            handle: OnceLock::new(),
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            asked: AtomicBool::new(false),
            statistics: Mutex::default(),
            told: Condvar::new(),
            counters: Counters::default(),
        })
    }

    /// Bytes of RAM that the driver is to give up, in whole pages.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX).min(self.pages);
        if self.target.swap(pages, SeqCst) != pages
            && let Some(handle) = self.handle.get()
        {
            handle.config_changed();
        }
    }

    /// Bytes that the driver is to give up, and what it says it has.
    pub fn size(&self) -> (u64, u64) {
        let bytes = |pages: &AtomicU32| u64::from(pages.load(SeqCst)) * PAGE;
        (bytes(&self.target), bytes(&self.actual))
    }

    fn statistics_now(&self) -> MutexGuard<'_, Statistics> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the driver, waits so long for its answer, and returns what it said last.
    pub fn ask_statistics(&self, patience: Duration) -> Statistics {
        let before = self.statistics_now().generation;
        self.asked.store(true, SeqCst);
        if let Some(handle) = self.handle.get() {
            handle.kick(STATS);
        }
        let old = |now: &mut Statistics| now.generation == before;
        let waited = self.told.wait_timeout_while(self.statistics_now(), patience, old);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Gives pages of RAM back; neighbours in one go.
    fn discard(&self, mut pages: Vec<u32>) {
        pages.sort_unstable();
        let mut rest = pages.as_slice();
        while let Some(first) = rest.first() {
            let next = rest.windows(2).position(|pair| pair[1] > pair[0].saturating_add(1));
            let (run, after) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
            rest = after;
            let last = run.last().unwrap_or(first);
            self.discard_bytes(u64::from(*first) * PAGE, (u64::from(last - first) + 1) * PAGE);
        }
    }

    fn discard_bytes(&self, gpa: u64, len: u64) {
        let returned = self.memory.discard(gpa, len);
        self.counters.returned.fetch_add(returned, Relaxed);
        self.counters.ignored.fetch_add((len - returned.min(len)) / PAGE, Relaxed);
    }

    /// An array of page numbers (5.5.6). False if the queue has to rest before its end: the pages
    /// then come again.
    fn page_numbers(
        &self,
        chain: &mut Chain,
        interrupted: &dyn Fn() -> bool,
        each: &mut dyn FnMut(Vec<u32>),
    ) -> bool {
        let mut bytes = vec![0; 4 * PIECE];
        while chain.readable.len() >= 4 {
            if interrupted() {
                return false;
            }
            let len = chain.readable.read(&mut bytes);
            let numbers = bytes.get(..len).unwrap_or_default().chunks_exact(4);
            each(numbers.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        }
        true
    }

    fn serve_pages(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(mut chain) = queue.pop()? {
            let whole = chain.clone();
            let mut count = 0u64;
            let done = self.page_numbers(&mut chain, &|| queue.interrupted(), &mut |pages| {
                count += pages.len() as u64;
                if index == INFLATE {
                    self.discard(pages);
                }
            });
            if !done {
                queue.put_back(whole);
                return Ok(Served::Left);
            }
            let counter = match index {
                INFLATE => &self.counters.inflated,
                _ => &self.counters.deflated,
            };
            counter.fetch_add(count, Relaxed);
            queue.complete(whole, 0)?;
        }
        Ok(Served::Drained)
    }

    /// Free memory is what the buffers of a request are (5.5.6.9).
    fn serve_reports(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(chain) = queue.pop()? {
            for (gpa, len) in chain.writable.pieces() {
                self.discard_bytes(gpa, len.into());
                self.counters.reported.fetch_add(u64::from(len) / PAGE, Relaxed);
            }
            queue.complete(chain, 0)?;
        }
        Ok(Served::Drained)
    }

    fn serve_statistics(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(mut chain) = queue.pop()? {
            let whole = chain.clone();
            if self.asked.swap(false, SeqCst) {
                // The driver fills another.
                queue.complete(whole, 0)?;
                continue;
            }
            self.statistics_now().take(&mut chain.readable);
            self.told.notify_all();
            queue.put_back(whole);
            return Ok(Served::Left);
        }
        Ok(Served::Drained)
    }
}

impl VirtioDevice for VirtioBalloon {
    fn name(&self) -> &'static str {
        "virtio_balloon"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn features(&self) -> u64 {
        feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let words = [self.target.load(SeqCst), self.actual.load(SeqCst)];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        virtio::read_config_bytes(&bytes, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            self.actual.store(u32::from_le_bytes(bytes), SeqCst);
        }
    }

    /// The target stays: it is the operator's. Pages that were in the balloon are the guest's.
    fn reset(&self) {
        self.actual.store(0, SeqCst);
        self.asked.store(false, SeqCst);
        *self.statistics_now() = Statistics::default();
    }

    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        match index {
            INFLATE | DEFLATE => self.serve_pages(index, queue),
            STATS => self.serve_statistics(queue),
            _ => self.serve_reports(queue),
        }
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let (target, actual) = (self.target.load(SeqCst), self.actual.load(SeqCst));
        to.put(instance, &BalloonState { target, actual });
    }

    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: BalloonState = from.take(instance)?;
        if state.target > self.pages {
            return Err(malformed::<BalloonState>("the balloon is larger than the memory"));
        }
        self.target.store(state.target, SeqCst);
        self.actual.store(state.actual, SeqCst);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { inflated, deflated, reported, returned, ignored } = &self.counters;
        vec![
            ("pages inflated", inflated.load(Relaxed)),
            ("pages deflated", deflated.load(Relaxed)),
            ("pages reported free", reported.load(Relaxed)),
            ("bytes returned to the host", returned.load(Relaxed)),
            ("pages that are no memory", ignored.load(Relaxed)),
        ]
    }
}
