//! The virtio memory device (virtio 1.2, section 5.15): a region of guest-physical space in which
//! the driver plugs and unplugs blocks of memory, as many as the operator wants it to have.
//!
//! All of the region is mapped from the start, and takes nothing of the host while nobody writes
//! to it. A block that is unplugged is given back to the host at once ([`GuestMem::discard`]). The
//! guest promises not to touch what is not plugged (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE); one that
//! does so all the same gets zeroes and takes memory of the host, at most that of the region, which
//! is what the operator has allowed.
//!
//! A reset of the device leaves blocks as they are, since a guest may use them without a driver
//! (5.15.5.2); a reset of the machine unplugs all.

mod blocks;

pub use blocks::{BLOCK, Blocks, State};

use device::Device;
use guest_mem::GuestMem;
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::*},
    },
};
use virtio::{Chain, GuestError, Handle, Queue, Served, VirtioDevice};

/// Feature bits (5.15.3).
pub mod feature {
    /// `node_id` is an ACPI proximity domain.
    pub const ACPI_PXM: u64 = 1 << 0;
    pub const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
}

const DEVICE_TYPE: u16 = 24;
/// PCI has no class for it.
const CLASS: u32 = 0xff_00_00;
const QUEUE_SIZE: u16 = 128;
/// Bytes of a request, and of an answer (5.15.6).
const REQUEST: usize = 24;
const ANSWER: usize = 10;
/// The node that all memory belongs to.
const NODE: u16 = 0;

/// Types of requests.
mod request {
    pub const PLUG: u16 = 0;
    pub const UNPLUG: u16 = 1;
    pub const UNPLUG_ALL: u16 = 2;
    pub const STATE: u16 = 3;
}

/// Types of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ack,
    Nack,
    Error,
    State(State),
}

impl Answer {
    fn encode(self) -> [u8; ANSWER] {
        let (kind, state) = match self {
            Self::Ack => (0u16, 0),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
            Self::State(State::Plugged) => (0, 0u16),
            Self::State(State::Unplugged) => (0, 1),
            Self::State(State::Mixed) => (0, 2),
        };
        let mut bytes = [0; ANSWER];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}

/// Where the region is. It is mapped, from memory that takes nothing before it is written.
#[derive(Clone, Debug)]
pub struct Config {
    pub memory: Arc<GuestMem>,
    /// Guest-physical address, a multiple of [`BLOCK`].
    pub address: u64,
    /// Bytes, a multiple of [`BLOCK`].
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemState {
    pub address: u64,
    pub size: u64,
    /// Bytes that the driver is to have.
    pub requested: u64,
    /// First block of each plugged run, and how many it has; in order.
    pub plugged: Vec<(u64, u64)>,
}

impl Schema for MemState {
    const KIND: &'static str = "virtio-mem";
    const VERSION: u16 = 1;
}

/// How far the guest has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes that there can be, that the driver is to have, and that it has.
    pub region: u64,
    pub requested: u64,
    pub plugged: u64,
}

#[derive(Debug, Default)]
struct Counters {
    plugged: AtomicU64,
    unplugged: AtomicU64,
    refused: AtomicU64,
    returned: AtomicU64,
}

#[derive(Debug)]
struct Region {
    blocks: Blocks,
    requested: u64,
}

pub struct VirtioMem {
    config: Config,
    region: Mutex<Region>,
    handle: OnceLock<Handle>,
    counters: Counters,
}

impl fmt::Debug for VirtioMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMem").field("sizes", &self.sizes()).finish_non_exhaustive()
    }
}

impl VirtioMem {
    /// Nothing is plugged, and nothing is to be.
    pub fn new(config: Config) -> Arc<Self> {
        let blocks = Blocks::new(config.size / BLOCK);
        Arc::new(Self {
            config,
            region: Mutex::new(Region { blocks, requested: 0 }),
            handle: OnceLock::new(),
            counters: Counters::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Region> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest to have so many bytes of the region, rounded down to whole blocks.
    pub fn request(&self, bytes: u64) {
        let wanted = bytes.min(self.config.size) / BLOCK * BLOCK;
        let before = std::mem::replace(&mut self.lock().requested, wanted);
        if before != wanted
            && let Some(handle) = self.handle.get()
        {
            handle.config_changed();
        }
    }

    pub fn sizes(&self) -> Sizes {
        let region = self.lock();
        Sizes {
            region: self.config.size,
            requested: region.requested,
            plugged: region.blocks.count() * BLOCK,
        }
    }

    fn discard(&self, range: &Range<u64>) {
        let address = self.config.address + range.start * BLOCK;
        let len = (range.end - range.start) * BLOCK;
        let returned = self.config.memory.discard(address, len);
        self.counters.returned.fetch_add(returned, Relaxed);
    }

    /// The blocks that a request names; `None` if they are not all of the region.
    fn range(&self, address: u64, count: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.config.address)?;
        let first = offset / BLOCK;
        let range = first..first.checked_add(count.into())?;
        let whole = offset.is_multiple_of(BLOCK) && count > 0;
        (whole && range.end <= self.config.size / BLOCK).then_some(range)
    }

    fn plug(&self, range: &Range<u64>) -> Answer {
        let mut region = self.lock();
        let more = (range.end - range.start) * BLOCK;
        if region.blocks.count() * BLOCK + more > region.requested {
            return Answer::Nack;
        }
        if region.blocks.state(range) != Some(State::Unplugged) {
            return Answer::Error;
        }
        region.blocks.set(range, true);
        self.counters.plugged.fetch_add(more, Relaxed);
        Answer::Ack
    }

    fn unplug(&self, range: &Range<u64>) -> Answer {
        let mut region = self.lock();
        if region.blocks.state(range) != Some(State::Plugged) {
            return Answer::Error;
        }
        region.blocks.set(range, false);
        self.counters.unplugged.fetch_add((range.end - range.start) * BLOCK, Relaxed);
        self.discard(range);
        Answer::Ack
    }

    /// Also what was touched without being plugged.
    fn unplug_all(&self) -> Answer {
        let mut region = self.lock();
        let all = 0..self.config.size / BLOCK;
        self.counters.unplugged.fetch_add(region.blocks.count() * BLOCK, Relaxed);
        region.blocks.set(&all, false);
        self.discard(&all);
        Answer::Ack
    }

    fn obey(&self, bytes: &[u8; REQUEST]) -> Answer {
        let part = |at: usize, len: usize| {
            let bytes = bytes.iter().skip(at).take(len).rev();
            bytes.fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
        };
        let range = self.range(part(8, 8), part(16, 2) as u16);
        match (part(0, 2) as u16, range) {
            (request::PLUG, Some(range)) => self.plug(&range),
            (request::UNPLUG, Some(range)) => self.unplug(&range),
            (request::UNPLUG_ALL, _) => self.unplug_all(),
            (request::STATE, Some(range)) => {
                self.lock().blocks.state(&range).map_or(Answer::Error, Answer::State)
            }
            _ => Answer::Error,
        }
    }

    fn answer(&self, chain: &mut Chain) -> Result<u32, GuestError> {
        let mut bytes = [0; REQUEST];
        if chain.readable.read(&mut bytes) < bytes.len() {
            return Err(GuestError("a request for memory is too short"));
        }
        if chain.writable.len() < ANSWER as u64 {
            return Err(GuestError("a request for memory has no room for its answer"));
        }
        let answer = self.obey(&bytes);
        if matches!(answer, Answer::Nack | Answer::Error) {
            self.counters.refused.fetch_add(1, Relaxed);
        }
        Ok(chain.writable.write(&answer.encode()) as u32)
    }
}

impl VirtioDevice for VirtioMem {
    fn name(&self) -> &'static str {
        "virtio_mem"
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

    fn features(&self) -> u64 {
        feature::ACPI_PXM | feature::UNPLUGGED_INACCESSIBLE
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    /// struct virtio_mem_config (5.15.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Sizes { region, requested, plugged } = self.sizes();
        // All of the region is usable from the start.
        let words = [BLOCK, NODE.into(), self.config.address, region, region, plugged, requested];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        virtio::read_config_bytes(&bytes, offset, data);
    }

    fn serve(&self, _: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(mut chain) = queue.pop()? {
            let written = self.answer(&mut chain)?;
            queue.complete(chain, written)?;
        }
        Ok(Served::Drained)
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let region = self.lock();
        let runs = region.blocks.runs().filter(|(plugged, _)| *plugged);
        let state = MemState {
            address: self.config.address,
            size: self.config.size,
            requested: region.requested,
            plugged: runs.map(|(_, run)| (run.start, run.end - run.start)).collect(),
        };
        to.put(instance, &state);
    }

    /// What was in the blocks is memory, which is not this device's to restore.
    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: MemState = from.take(instance)?;
        let fault = |reason: &str| Err(malformed::<MemState>(reason));
        if (state.address, state.size) != (self.config.address, self.config.size) {
            return fault("the region is another one");
        }
        if state.requested > state.size || !state.requested.is_multiple_of(BLOCK) {
            return fault("the driver is to have what it cannot");
        }
        let mut blocks = Blocks::new(state.size / BLOCK);
        for (first, count) in &state.plugged {
            let range = *first..first.saturating_add(*count);
            if blocks.state(&range) != Some(State::Unplugged) {
                return fault("a run of blocks is not of the region, or is there twice");
            }
            blocks.set(&range, true);
        }
        for (_, range) in blocks.runs().filter(|(plugged, _)| !plugged) {
            self.discard(&range);
        }
        *self.lock() = Region { blocks, requested: state.requested };
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { plugged, unplugged, refused, returned } = &self.counters;
        vec![
            ("bytes plugged", plugged.load(Relaxed)),
            ("bytes unplugged", unplugged.load(Relaxed)),
            ("bytes returned to the host", returned.load(Relaxed)),
            ("requests refused", refused.load(Relaxed)),
        ]
    }
}

/// The memory itself, which a reset of the machine takes away.
impl Device for VirtioMem {
    fn name(&self) -> String {
        "pluggable memory".into()
    }

    fn reset(&self) {
        self.unplug_all();
    }

    fn save(&self, _: &mut Writer) {}

    fn restore(&self, _: &mut Reader) -> Result<(), Error> {
        Ok(())
    }
}
