//! The back end of Xen's block devices (`io/blkif.h`), which Linux knows as `xvda` and so on.
//!
//! Each queue that the driver chooses has a ring and a thread, which carries out one request after the
//! other on the [`Disk`]. The pages of a request are granted by the domain; their bytes move through
//! a buffer of bounded size, and between two pieces the thread looks whether it is to rest.
//!
//! A request that is wrong has the response `BLKIF_RSP_ERROR`. A ring whose indexes are wrong is not
//! served any more, until the driver connects again.

mod choice;
mod grants;
mod queue;
mod request;
mod worker;

pub use request::REQUEST_BUFFER;

use choice::Choice;
use device::Device;
use disk::Disk;
use queue::{Running, Shared};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};
use xen_abi::blkif::{SECTOR, info};
use xen_front::{Backend, Connect, Domain, Nodes, Position};

/// Segments of an indirect request.
pub const SEGMENTS_MAX: u16 = 256;
/// Pages of a ring, as a power of two: `XENBUS_MAX_RING_GRANT_ORDER`.
pub const RING_ORDER_MAX: u32 = 4;
/// Queues at most.
pub const QUEUES_MAX: u16 = 32;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The how manieth disk, from 0: `xvda`.
    pub index: u32,
    /// Queues that the driver may have, each with its thread: 1 to 32.
    pub queues: u16,
    /// It is a CD.
    pub cdrom: bool,
    /// Pages may stay granted, and in use, from one request to the next. A driver copies each block to
    /// or from such a page, which is cheaper only than what it saves the back end: here next to nothing,
    /// since a page that is granted is not mapped anywhere.
    pub persistent_grants: bool,
}

impl Config {
    /// The number of the device, `virtual-device`, as libxl gives it (`docs/man/xen-vbd-interface`):
    /// the major number 202 with 16 minor numbers each, or one of its own kind after 16 disks.
    pub fn number(&self) -> u32 {
        match self.index {
            index @ 0..16 => 202 << 8 | index << 4,
            index => 1 << 28 | index << 8,
        }
    }

    /// What Linux calls it.
    pub fn disk_name(&self) -> String {
        let mut letters = Vec::new();
        let mut left = u64::from(self.index) + 1;
        while left > 0 {
            letters.push(char::from(b'a' + ((left - 1) % 26) as u8));
            left = (left - 1) / 26;
        }
        "xvd".chars().chain(letters.into_iter().rev()).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkState {
    /// The disk's, in bytes: the guest relies on it.
    pub capacity: u64,
    /// Responses that each queue has put, if it is connected. While it rests, no other requests were
    /// taken.
    pub queues: Option<Vec<u32>>,
}

impl Schema for BlkState {
    const KIND: &'static str = "xen-blk";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    flushes: AtomicU64,
    discarded: AtomicU64,
    errors: AtomicU64,
    events: AtomicU64,
    /// Rings that are not served any more.
    guest_errors: AtomicU64,
    /// Panics of the device's threads.
    failures: AtomicU64,
}

#[derive(Default)]
struct State {
    /// None, unless it is connected.
    queues: Option<Vec<Running>>,
    /// What was restored, for a driver that is connected already.
    restored: Option<Vec<Position>>,
}

pub struct XenBlk {
    config: Config,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

impl fmt::Debug for XenBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XenBlk").field("config", &self.config).finish_non_exhaustive()
    }
}

impl XenBlk {
    pub fn new(config: &Config, disk: Arc<dyn Disk>) -> Arc<Self> {
        let config = Config { queues: config.queues.clamp(1, QUEUES_MAX), ..config.clone() };
        Arc::new(Self { config, shared: Arc::new(Shared::new(disk)), state: Mutex::default() })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Drop for XenBlk {
    fn drop(&mut self) {
        self.disconnect();
    }
}

fn nodes<const N: usize>(all: [(&str, String); N]) -> Nodes {
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Backend for XenBlk {
    fn kind(&self) -> &'static str {
        "vbd"
    }

    fn front(&self) -> Nodes {
        let kind = if self.config.cdrom { "cdrom" } else { "disk" };
        nodes([
            ("virtual-device", self.config.number().to_string()),
            ("device-type", kind.to_owned()),
        ])
    }

    fn features(&self) -> Nodes {
        let shape = self.shared.disk.shape();
        let mode = if shape.read_only { "r" } else { "w" };
        let mut features = nodes([
            ("dev", self.config.disk_name()),
            ("mode", mode.to_owned()),
            ("removable", u32::from(self.config.cdrom).to_string()),
            ("feature-flush-cache", "1".to_owned()),
            ("feature-persistent", u32::from(self.config.persistent_grants).to_string()),
            ("feature-max-indirect-segments", SEGMENTS_MAX.to_string()),
            ("max-ring-page-order", RING_ORDER_MAX.to_string()),
            ("multi-queue-max-queues", self.config.queues.to_string()),
        ]);
        if shape.discard && !shape.read_only {
            features.extend(nodes([
                ("feature-discard", "1".to_owned()),
                ("discard-granularity", shape.physical_block.to_string()),
                ("discard-alignment", "0".to_owned()),
                ("discard-secure", "0".to_owned()),
            ]));
        }
        features
    }

    fn connect(
        &self,
        domain: &Arc<dyn Domain>,
        front: &Nodes,
        how: Connect,
    ) -> Result<Nodes, String> {
        let choice = Choice::parse(front, self.config.queues)?;
        let mut state = lock(&self.state);
        // Threads of a connection that nobody ended.
        state.queues = None;
        let restored = state.restored.take();
        let at = |queue: usize| match (how, &restored) {
            (Connect::First, _) => Ok(None),
            (Connect::Again, Some(all)) if all.len() == choice.queues.len() => {
                Ok(all.get(queue).copied())
            }
            (Connect::Again, _) => Err("its state is of other queues".to_owned()),
        };
        // Linux says it for itself, whether it was offered or not. After a move nobody knows what was.
        let offered = self.config.persistent_grants && how == Connect::First;
        let persistent = offered && choice.persistent;
        let mut queues = Vec::new();
        for (index, queue) in choice.queues.iter().enumerate() {
            let name = format!("{}.{index}", self.config.disk_name());
            let at = at(index)?;
            let started = Running::start(&self.shared, domain, name, queue, persistent, at);
            queues.push(started.map_err(|why| format!("queue {index}: {why}"))?);
        }
        state.queues = Some(queues);
        let shape = self.shared.disk.shape();
        let flags = (u32::from(shape.read_only) * info::READONLY)
            | (u32::from(self.config.cdrom) * (info::CDROM | info::REMOVABLE));
        Ok(nodes([
            ("sectors", (shape.bytes / SECTOR).to_string()),
            ("sector-size", shape.logical_block.to_string()),
            ("physical-sector-size", shape.physical_block.to_string()),
            ("info", flags.to_string()),
        ]))
    }

    fn disconnect(&self) {
        let mut state = lock(&self.state);
        state.queues = None;
        state.restored = None;
    }
}

impl Device for XenBlk {
    fn name(&self) -> String {
        self.config.disk_name()
    }

    fn reset(&self) {
        self.disconnect();
    }

    fn pause(&self) {
        self.shared.paused.store(true, SeqCst);
        lock(&self.state).queues.iter().flatten().for_each(Running::rest);
    }

    fn resume(&self) {
        self.shared.paused.store(false, SeqCst);
        lock(&self.state).queues.iter().flatten().for_each(Running::kick);
    }

    fn save(&self, to: &mut Writer) {
        let state = lock(&self.state);
        let put = |queue: &Running| queue.position().put;
        let queues = state.queues.as_ref().map(|all| all.iter().map(put).collect());
        let capacity = self.shared.disk.shape().bytes;
        to.put(self.config.number(), &BlkState { capacity, queues });
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let saved: BlkState = from.take(self.config.number())?;
        if saved.capacity != self.shared.disk.shape().bytes {
            return Err(malformed::<BlkState>("the disk has another size"));
        }
        if saved.queues.as_ref().is_some_and(|all| all.len() > usize::from(QUEUES_MAX)) {
            return Err(malformed::<BlkState>("it has too many queues"));
        }
        let mut state = lock(&self.state);
        state.queues = None;
        let position = |put| Position { taken: put, put };
        state.restored = saved.queues.map(|all| all.into_iter().map(position).collect());
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let all = &self.shared.counters;
        vec![
            ("requests", all.requests.load(Relaxed)),
            ("bytes read", all.read.load(Relaxed)),
            ("bytes written", all.written.load(Relaxed)),
            ("flushes", all.flushes.load(Relaxed)),
            ("bytes discarded", all.discarded.load(Relaxed)),
            ("failed requests", all.errors.load(Relaxed)),
            ("events", all.events.load(Relaxed)),
            ("guest errors", all.guest_errors.load(Relaxed)),
            ("failures", all.failures.load(Relaxed)),
        ]
    }
}
