//! A board without a machine, for the tests of devices: time that a test moves by hand, and
//! sinks that remember.

use crate::*;
use saved_state::{Error, Part, Reader, Writer};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Alarms {
    now: u64,
    armed: Vec<(Option<u64>, Fire)>,
}

/// A clock that stands still until [`Self::advance`] moves it, firing timers on the way.
#[derive(Clone, Default)]
pub struct FakeTime {
    alarms: Arc<Mutex<Alarms>>,
    /// Nanoseconds since 1970 at guest time 0.
    pub epoch_ns: u64,
}

impl fmt::Debug for FakeTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeTime({} ns)", self.now_ns())
    }
}

impl FakeTime {
    /// Moves time on by `ns`.
    ///
    /// # Panics
    /// If timers fire more than a million times on the way, which is a device that arms itself
    /// for ever.
    pub fn advance(&self, ns: u64) {
        let end = self.now_ns().saturating_add(ns);
        for _ in 0..1_000_000 {
            let mut alarms = lock(&self.alarms);
            let due = alarms
                .armed
                .iter()
                .enumerate()
                .filter_map(|(i, (at, _))| at.filter(|at| *at <= end).map(|at| (at, i)))
                .min();
            let Some((at, index)) = due else {
                alarms.now = end;
                return;
            };
            alarms.now = alarms.now.max(at);
            let now = alarms.now;
            alarms.armed[index].0 = None;
            let fire = alarms.armed[index].1.clone();
            drop(alarms);
            fire(now);
        }
        panic!("a timer fires for ever");
    }

    /// When the next timer fires.
    pub fn next(&self) -> Option<u64> {
        lock(&self.alarms).armed.iter().filter_map(|(at, _)| *at).min()
    }
}

impl Clock for FakeTime {
    fn now_ns(&self) -> u64 {
        lock(&self.alarms).now
    }
    fn realtime_ns(&self) -> u64 {
        self.epoch_ns.saturating_add(self.now_ns())
    }
}

struct FakeTimer(Arc<Mutex<Alarms>>, usize);

impl Timer for FakeTimer {
    fn arm(&self, at: Option<u64>) {
        lock(&self.0).armed[self.1].0 = at;
    }
}

impl Timers for FakeTime {
    fn create(&self, fire: Fire) -> Arc<dyn Timer> {
        let mut alarms = lock(&self.alarms);
        alarms.armed.push((None, fire));
        Arc::new(FakeTimer(self.alarms.clone(), alarms.armed.len() - 1))
    }
}

/// Remembers what it was sent, as line, message and power sink.
#[derive(Debug, Default)]
pub struct Recorder {
    levels: Mutex<Vec<bool>>,
    messages: Mutex<Vec<Msi>>,
    power: Mutex<Vec<PowerEvent>>,
}

impl Recorder {
    /// The line's level: what it was last set to.
    pub fn level(&self) -> bool {
        lock(&self.levels).last().copied().unwrap_or(false)
    }
    /// Rising edges since the last call.
    pub fn take_edges(&self) -> usize {
        let mut levels = lock(&self.levels);
        let edges = levels.windows(2).filter(|w| !w[0] && w[1]).count();
        let last = levels.last().copied().unwrap_or(false);
        *levels = vec![last];
        edges
    }
    pub fn take_messages(&self) -> Vec<Msi> {
        std::mem::take(&mut lock(&self.messages))
    }
    pub fn take_power(&self) -> Vec<PowerEvent> {
        std::mem::take(&mut lock(&self.power))
    }
}

impl Line for Recorder {
    fn set(&self, level: bool) {
        let mut levels = lock(&self.levels);
        if levels.is_empty() {
            levels.push(false);
        }
        levels.push(level);
    }
    fn restore(&self, level: bool) {
        *lock(&self.levels) = vec![level];
    }
}

impl MsiSink for Recorder {
    fn send(&self, msi: Msi) {
        lock(&self.messages).push(msi);
    }
}

impl PowerSink for Recorder {
    fn request(&self, event: PowerEvent) {
        lock(&self.power).push(event);
    }
}

/// Addresses for what tests map, of which none takes memory until it is used.
const CAPACITY: u64 = 64 << 20;

/// An empty board and what its sinks remember.
///
/// # Panics
/// If the host has no addresses for it.
pub fn wiring(time: &FakeTime, recorder: &Arc<Recorder>) -> Wiring {
    let memory = guest_mem::GuestMem::new(CAPACITY).expect("address space");
    Wiring {
        slots: memory.clone(),
        memory,
        clock: Arc::new(time.clone()),
        timers: Arc::new(time.clone()),
        power: recorder.clone(),
        msi: recorder.clone(),
        pio: PioBus::default(),
        mmio: MmioBus::default(),
        devices: Vec::new(),
        irqs: Vec::new(),
    }
}

/// What the devices of a board save, in their order.
pub fn save(board: &Wiring) -> Vec<Part> {
    let mut writer = Writer::default();
    board.devices.iter().for_each(|device| device.save(&mut writer));
    writer.finish()
}

/// The devices of a board become what [`save`] saved of others like them.
///
/// # Errors
/// What a device refuses, or leaves.
pub fn restore(board: &Wiring, parts: &[Part]) -> Result<(), Error> {
    let mut reader = Reader::new(parts.to_vec())?;
    for device in &board.devices {
        device.restore(&mut reader)?;
    }
    reader.finish()
}
