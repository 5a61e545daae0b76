//! The virtio block device (virtio 1.2, section 5.2).
//!
//! Each queue has a thread, which carries out one request after the other on the [`Disk`].
//! Requests are moved through a buffer of bounded size, so that no request, however long,
//! takes more of the host's memory; between two pieces the thread looks whether it is to rest.
//!
//! An error of the host's storage is the request's status, VIRTIO_BLK_S_IOERR. Only a request
//! that has no room for a header or a status makes the device need a reset.

mod config;
mod request;

pub use request::REQUEST_BUFFER;

use config::Layout;
use disk::Disk;
use request::{Outcome, Request};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
};
use virtio::{GuestError, Queue, Served, VirtioDevice};

/// Feature bits (5.2.3).
pub mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

const DEVICE_TYPE: u16 = 2;
/// PCI's class: mass storage, SCSI, which is what such devices have always said.
const CLASS: u32 = 0x01_00_00;
const QUEUE_SIZE: u16 = 256;
/// Bytes of a serial number (5.2.6).
const SERIAL: usize = 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// At most 20 bytes of ASCII.
    pub serial: String,
    /// Queues, each with its thread: 1 to 32.
    pub queues: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkState {
    /// The disk's, in bytes: the guest relies on it.
    pub capacity: u64,
    /// The cache mode that the driver chose.
    pub writeback: bool,
}

impl Schema for BlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Counters {
    read: AtomicU64,
    written: AtomicU64,
    flushes: AtomicU64,
    discarded: AtomicU64,
    errors: AtomicU64,
}

pub struct VirtioBlk {
    disk: Arc<dyn Disk>,
    layout: Layout,
    serial: [u8; SERIAL],
    /// One for each queue.
    buffers: Vec<Mutex<Vec<u8>>>,
    /// The driver knows that writes have to be flushed.
    flushes: AtomicBool,
    writeback: AtomicBool,
    counters: Counters,
}

impl fmt::Debug for VirtioBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBlk").field("shape", &self.disk.shape()).finish_non_exhaustive()
    }
}

impl VirtioBlk {
    pub fn new(config: &Config, disk: Arc<dyn Disk>) -> Arc<Self> {
        let queues = config.queues.clamp(1, 32);
        let mut serial = [0; SERIAL];
        serial.iter_mut().zip(config.serial.bytes()).for_each(|(to, from)| *to = from);
        Arc::new(Self {
            layout: Layout::new(&disk.shape(), queues, QUEUE_SIZE),
            disk,
            serial,
            buffers: (0..queues).map(|_| Mutex::default()).collect(),
            flushes: AtomicBool::new(false),
            writeback: AtomicBool::new(true),
            counters: Counters::default(),
        })
    }

    fn buffer(&self, queue: u16) -> Option<MutexGuard<'_, Vec<u8>>> {
        let buffer = self.buffers.get(usize::from(queue))?;
        Some(buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Each write is on stable storage before it is reported (5.2.5.2): for drivers that do not
    /// flush.
    fn writes_through(&self) -> bool {
        !self.flushes.load(SeqCst) || !self.writeback.load(SeqCst)
    }
}

impl VirtioDevice for VirtioBlk {
    fn name(&self) -> &'static str {
        "virtio_blk"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.buffers.len()]
    }

    fn threads(&self) -> usize {
        self.buffers.len()
    }

    fn features(&self) -> u64 {
        let shape = self.disk.shape();
        let mut features = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::CONFIG_WCE;
        if self.buffers.len() > 1 {
            features |= feature::MQ;
        }
        if shape.read_only {
            return features | feature::RO;
        }
        if shape.discard {
            features |= feature::DISCARD;
        }
        features | feature::WRITE_ZEROES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.layout.read(self.writeback.load(SeqCst), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (config::WRITEBACK, [value]) = (offset, data) {
            self.writeback.store(value & 1 != 0, SeqCst);
        }
    }

    fn activate(&self, features: u64) {
        self.flushes.store(features & feature::FLUSH != 0, SeqCst);
    }

    fn reset(&self) {
        self.flushes.store(false, SeqCst);
        self.writeback.store(true, SeqCst);
    }

    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let Some(mut buffer) = self.buffer(index) else { return Ok(Served::Left) };
        while let Some(chain) = queue.pop()? {
            // Kept from here on, in case the request is begun anew.
            let whole = chain.clone();
            let room = u32::try_from(chain.writable.len()).unwrap_or(u32::MAX);
            let request = Request::parse(chain)?;
            match self.execute(request, &mut buffer, &|| queue.interrupted()) {
                Outcome::Interrupted => {
                    queue.put_back(whole);
                    return Ok(Served::Left);
                }
                Outcome::Done => {
                    queue.complete(whole, room)?;
                    queue.signal()?;
                }
            }
        }
        Ok(Served::Drained)
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let (capacity, writeback) = (self.disk.shape().bytes, self.writeback.load(SeqCst));
        to.put(instance, &BlkState { capacity, writeback });
    }

    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: BlkState = from.take(instance)?;
        if state.capacity != self.disk.shape().bytes {
            return Err(malformed::<BlkState>("the disk has another size"));
        }
        self.writeback.store(state.writeback, SeqCst);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { read, written, flushes, discarded, errors } = &self.counters;
        vec![
            ("bytes read", read.load(Relaxed)),
            ("bytes written", written.load(Relaxed)),
            ("flushes", flushes.load(Relaxed)),
            ("bytes discarded or zeroed", discarded.load(Relaxed)),
            ("failed requests", errors.load(Relaxed)),
        ]
    }
}
