//! The virtio SCSI host adapter (virtio 1.2, section 5.6).
//!
//! ```text
//!   control queue --> control   task management ----+
//!   event queue  <--- events    units come and go   v
//!   request queues -> request --> medium --> scsi::Unit --> disk::Disk
//! ```
//!
//! Each request queue has a thread, which executes one command after the other on the unit that it
//! is for; what commands mean is the crate `scsi`'s matter. Data are moved through a buffer of
//! bounded size; between two pieces the thread looks whether it is to rest, or the command to end.
//!
//! Units have an [`Address`]: a target, and a number there (LUN). They may come and go while the
//! guest runs ([`VirtioScsi::plug`], [`VirtioScsi::unplug`]), of which it hears by the event queue.
//!
//! Locks: a queue, then the units' table, a unit's state, or the events, none of which is held while
//! another is taken.

mod address;
mod config;
mod control;
mod events;
mod medium;
mod request;
mod tasks;

pub use address::{Address, LUN_MAX, TARGET_MAX};
pub(crate) use request::Response;

use config::Sizes;
use disk::Disk;
use events::{Event, Events};
use medium::Fault;
use request::{End, Request};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use scsi::{Sense, Unit, UnitState};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::*},
    },
};
use tasks::Tasks;
use virtio::{GuestError, Handle, Queue, Served, VirtioDevice};

/// Feature bits (5.6.3).
pub mod feature {
    /// Units come and go.
    pub const HOTPLUG: u64 = 1 << 1;
    /// And change.
    pub const CHANGE: u64 = 1 << 2;
}

const DEVICE_TYPE: u16 = 8;
/// PCI's class: mass storage, SCSI.
const CLASS: u32 = 0x01_00_00;
/// The queues (5.6.2).
pub const CONTROL: u16 = 0;
pub const EVENTS: u16 = 1;
/// The first of them.
pub const REQUESTS: u16 = 2;
const QUEUE_SIZE: u16 = 256;
/// Small ones: hardly ever more than one request is in them.
const CONTROL_SIZE: u16 = 64;
/// Request queues at most.
pub const QUEUES_MAX: u16 = 32;
/// Bytes that are moved at once.
const BUFFER: usize = 128 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScsiState {
    /// The sizes that the driver chose.
    pub sense_size: u32,
    pub cdb_size: u32,
    /// The driver has not heard of everything.
    pub missed: bool,
    pub units: Vec<(Address, UnitState)>,
}

impl Schema for ScsiState {
    const KIND: &'static str = "virtio-scsi";
    /// 2: a CD drive's attention is sense data.
    const VERSION: u16 = 2;
}

#[derive(Debug, Default)]
struct Counters {
    commands: AtomicU64,
    failed: AtomicU64,
    functions: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    discarded: AtomicU64,
    flushes: AtomicU64,
}

/// Why a unit was not put at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Beyond [`TARGET_MAX`] or [`LUN_MAX`].
    Range,
    Taken,
}

/// Why a disc was not put into a drive, or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is no CD drive.
    NoDrive,
    /// The guest has locked it.
    Locked,
}

pub struct VirtioScsi {
    units: RwLock<BTreeMap<Address, Arc<Unit>>>,
    sizes: Sizes,
    features: AtomicU64,
    handle: OnceLock<Handle>,
    events: Mutex<Events>,
    tasks: Tasks,
    /// One for each request queue.
    buffers: Vec<Mutex<Vec<u8>>>,
    counters: Counters,
}

impl fmt::Debug for VirtioScsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioScsi").field("units", &self.units).finish_non_exhaustive()
    }
}

impl VirtioScsi {
    /// An adapter without units, with 1 to [`QUEUES_MAX`] request queues.
    pub fn new(queues: u16) -> Arc<Self> {
        let queues = queues.clamp(1, QUEUES_MAX);
        Arc::new(Self {
            units: RwLock::default(),
            sizes: Sizes::default(),
            features: AtomicU64::new(0),
            handle: OnceLock::new(),
            events: Mutex::default(),
            tasks: Tasks::new(queues),
            buffers: (0..queues).map(|_| Mutex::default()).collect(),
            counters: Counters::default(),
        })
    }

    /// Puts a unit there; a driver that runs is told.
    ///
    /// # Errors
    /// If there can be none, or there is one.
    pub fn plug(&self, address: Address, unit: Unit) -> Result<(), AddressError> {
        if address.target > TARGET_MAX || address.lun > LUN_MAX {
            return Err(AddressError::Range);
        }
        let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
        if units.contains_key(&address) {
            return Err(AddressError::Taken);
        }
        units.insert(address, Arc::new(unit));
        drop(units);
        self.notify(Event::Rescan(address));
        Ok(())
    }

    /// Takes a unit away; commands under way still come to their end. False if there is none.
    pub fn unplug(&self, address: Address) -> bool {
        let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
        let there = units.remove(&address).is_some();
        drop(units);
        if there {
            self.notify(Event::Removed(address));
        }
        there
    }

    /// Puts another disc into a CD drive, or takes out what there is; a driver that runs is told of
    /// another one.
    ///
    /// # Errors
    /// If there is no such drive, or the guest does not let go of its disc.
    pub fn insert(&self, address: Address, disc: Option<Arc<dyn Disk>>) -> Result<(), InsertError> {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        let unit = units.get(&address).cloned();
        drop(units);
        let Some(Unit::Cd(drive)) = unit.as_deref() else { return Err(InsertError::NoDrive) };
        let is_there = disc.is_some();
        if !drive.insert(disc) {
            return Err(InsertError::Locked);
        }
        if is_there {
            self.notify(Event::Changed(address, Sense::DISC_CHANGED));
        }
        Ok(())
    }

    /// Executes what is in a request queue; `queue` counts from the first of them.
    fn serve_requests(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let Some(mut buffer) = self.buffer(index) else { return Ok(Served::Left) };
        buffer.resize(BUFFER, 0);
        let mut progress = self.tasks.progress();
        while let Some(chain) = queue.pop()? {
            // Kept from here on, in case the request is begun anew.
            let whole = chain.clone();
            let request = Request::parse(chain, self.sizes.get())?;
            let task = request.task();
            let stop = || {
                if queue.interrupted() {
                    return Some(Fault::Interrupted);
                }
                task.and_then(|task| self.tasks.ended(index, task)).map(Fault::Response)
            };
            self.tasks.set_current(index, task);
            let end = self.execute(request, &mut buffer, &stop);
            self.tasks.set_current(index, None);
            match end {
                End::Interrupted => {
                    queue.put_back(whole);
                    return Ok(Served::Left);
                }
                End::Done(written) => {
                    queue.complete(whole, written)?;
                    queue.signal()?;
                }
            }
            self.tasks.answered(index, &mut progress);
        }
        if !queue.interrupted() {
            self.tasks.drained(index, &progress);
        }
        Ok(Served::Drained)
    }
}

impl VirtioDevice for VirtioScsi {
    fn name(&self) -> &'static str {
        "virtio_scsi"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let requests = std::iter::repeat_n(QUEUE_SIZE, self.buffers.len());
        [CONTROL_SIZE, CONTROL_SIZE].into_iter().chain(requests).collect()
    }

    /// A function of the control queue waits for the others.
    fn threads(&self) -> usize {
        usize::from(REQUESTS) + self.buffers.len()
    }

    fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.sizes.read(self.buffers.len() as u16, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.sizes.write(offset, data);
    }

    fn activate(&self, features: u64) {
        self.features.store(features, SeqCst);
    }

    fn reset(&self) {
        self.features.store(0, SeqCst);
        self.sizes.reset();
        *lock(&self.events) = Events::default();
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        units.values().for_each(|unit| unit.reset(Sense::POWER_ON));
    }

    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        match index {
            CONTROL => self.serve_control(queue),
            EVENTS => self.serve_events(queue),
            _ => self.serve_requests(index - REQUESTS, queue),
        }
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let (sense_size, cdb_size) = self.sizes.get();
        let missed = lock(&self.events).any();
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        let units = units.iter().map(|(address, unit)| (*address, unit.state())).collect();
        to.put(instance, &ScsiState { sense_size, cdb_size, missed, units });
    }

    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: ScsiState = from.take(instance)?;
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        let same = units.len() == state.units.len()
            && units
                .iter()
                .zip(&state.units)
                .all(|((address, unit), (saved, state))| address == saved && unit.accepts(state));
        if !same {
            return Err(malformed::<ScsiState>("the adapter has other units"));
        }
        if !Sizes::sound(state.sense_size, state.cdb_size) {
            return Err(malformed::<ScsiState>("a size is none"));
        }
        for (unit, (_, state)) in units.values().zip(&state.units) {
            unit.set_state(state);
        }
        self.sizes.set(state.sense_size, state.cdb_size);
        *lock(&self.events) = Events::after(state.missed);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { commands, failed, functions, read, written, discarded, flushes } =
            &self.counters;
        vec![
            ("commands", commands.load(Relaxed)),
            ("failed commands", failed.load(Relaxed)),
            ("task management functions", functions.load(Relaxed)),
            ("bytes read", read.load(Relaxed)),
            ("bytes written", written.load(Relaxed)),
            ("bytes discarded or zeroed", discarded.load(Relaxed)),
            ("flushes", flushes.load(Relaxed)),
        ]
    }
}
