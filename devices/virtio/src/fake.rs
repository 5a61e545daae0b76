//! A board with one virtio device and a driver for it, for the tests of devices.
//!
//! # Panics
//! Everything here panics where a test has gone wrong.

use crate::{VirtioDevice, VirtioPci, build};
use device::{
    Device, LineRef, Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use guest_mem::{Change, GuestMem, Memfd, Slot};
use pci::{Config, PciHost};
use saved_state::{Error, Part};
use std::{
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

mod inline;
mod noise;

pub use inline::Inline;

pub const ECAM: u64 = 0xe000_0000;
const WINDOW: u64 = 0xc000_0000;
/// Bytes of RAM, from address 0 on.
pub const RAM: u64 = 1 << 20;
/// Descriptors of each queue that the driver sets up.
pub const SIZE: u16 = 8;
/// Only a hang takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// What [`Board::new`] puts together. A thread of a device survives its panics, and tells the driver
/// only that a reset is needed, as of the driver's own errors: a board whose device did so panics
/// when it is dropped.
pub struct Board {
    pub wiring: Wiring,
    pub memory: Arc<GuestMem>,
    pub pci: Arc<PciHost>,
    pub virtio: Arc<VirtioPci>,
    pub sink: Arc<Recorder>,
    pub line: Arc<Recorder>,
    pub bar: u64,
    shadow: Mutex<Vec<u16>>,
}

/// Where a queue's descriptor table is.
pub fn table(queue: u16) -> u64 {
    0x1_0000 + u64::from(queue) * 0x1_0000
}

/// Where its available ring is.
pub fn driver(queue: u16) -> u64 {
    table(queue) + 0x1000
}

/// Where its used ring is.
pub fn device(queue: u16) -> u64 {
    table(queue) + 0x2000
}

/// Where a queue's data is.
pub fn buffer(queue: u16) -> u64 {
    table(queue) + 0x3000
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("virtio", &self.virtio).finish_non_exhaustive()
    }
}

impl Board {
    /// The device in slot 1, its BAR placed, and running.
    pub fn new(device: Arc<dyn VirtioDevice>) -> Self {
        Self::with(|_| device)
    }

    /// The same, for a device that is given the board's memory.
    pub fn with(make: impl FnOnce(&Arc<GuestMem>) -> Arc<dyn VirtioDevice>) -> Self {
        let (sink, line) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut wiring = wiring(&FakeTime::default(), &sink);
        let ram = Memfd::new(RAM).expect("memory");
        let memory = GuestMem::new(RAM).expect("memory");
        let slot = Slot { id: 0, gpa: 0, mem: ram, offset: 0, len: RAM, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).expect("a slot");
        let device = make(&memory);
        wiring.memory = memory.clone();
        wiring.irqs = (0..24).map(|_| line.clone() as LineRef).collect();
        let config = Config { ecam: ECAM..ECAM + (1 << 28), window: WINDOW..ECAM };
        let pci = pci::build(&config, &mut wiring);
        let shadow = Mutex::new(vec![0; device.queue_sizes().len()]);
        let virtio = build(device, &pci, &mut wiring).expect("threads");
        pci.assign();
        let mut this = Self { wiring, memory, pci, virtio, sink, line, bar: 0, shadow };
        this.bar = this.read(ECAM + (1 << 15) + 0x10, 4);
        this.wiring.devices.iter().for_each(|device| device.resume());
        this
    }

    pub fn read(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.wiring.mmio.read(at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, at: u64, value: u64, len: usize) {
        self.wiring.mmio.write(at, &value.to_le_bytes()[..len]);
    }

    pub fn queues(&self) -> u16 {
        self.shadow.lock().expect("no panic").len() as u16
    }

    pub fn status(&self) -> u8 {
        self.read(self.bar + 20, 1) as u8
    }

    pub fn set_status(&self, value: u8) {
        self.write(self.bar + 20, value.into(), 1);
    }

    /// Bus master, and messages where they are wanted.
    pub fn enable(&self, messages: bool) {
        self.write(ECAM + (1 << 15) + 4, 6, 2);
        if messages {
            self.write(ECAM + (1 << 15) + 0x42, 0x8000, 2);
            for vector in 0..=self.queues() {
                let entry = self.bar + 0x4000 + 16 * u64::from(vector);
                self.write(entry, 0xfee0_0000, 8);
                self.write(entry + 8, 0x40 + u64::from(vector), 8);
            }
        }
    }

    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(1 | 2);
        for half in 0..2u64 {
            self.write(self.bar + 8, half, 4);
            self.write(self.bar + 12, features >> (32 * half) & 0xffff_ffff, 4);
        }
        self.set_status(1 | 2 | 8);
        self.status() & 8 != 0
    }

    pub fn set_up(&self, queue: u16, [table, driver, device]: [u64; 3], vector: u16) {
        self.write(self.bar + 22, queue.into(), 2);
        self.write(self.bar + 24, SIZE.into(), 2);
        self.write(self.bar + 26, vector.into(), 2);
        self.write(self.bar + 32, table, 8);
        self.write(self.bar + 40, driver & 0xffff_ffff, 4);
        self.write(self.bar + 44, driver >> 32, 4);
        self.write(self.bar + 48, device, 8);
        self.write(self.bar + 28, 1, 2);
    }

    /// A device whose driver is ready.
    pub fn start(&self, features: u64, messages: bool) {
        assert!(self.try_start(features, messages), "features {features:#x}");
    }

    /// The same, unless the device refuses the features.
    pub fn try_start(&self, features: u64, messages: bool) -> bool {
        self.enable(messages);
        if !self.negotiate(features) {
            return false;
        }
        self.write(self.bar + 16, 0, 2);
        for queue in 0..self.queues() {
            let parts = [table(queue), driver(queue), device(queue)];
            self.set_up(queue, parts, queue + 1);
        }
        self.shadow.lock().expect("no panic").fill(0);
        self.set_status(1 | 2 | 4 | 8);
        true
    }

    /// Writes descriptor `index`.
    pub fn describe(&self, queue: u16, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(table(queue) + 16 * u64::from(index), &bytes).expect("RAM");
    }

    /// Makes a chain available, without ringing.
    pub fn offer(&self, queue: u16, head: u16) {
        let mut shadow = self.shadow.lock().expect("no panic");
        let index = &mut shadow[usize::from(queue)];
        let at = driver(queue) + 4 + 2 * u64::from(*index % SIZE);
        self.memory.write(at, &head.to_le_bytes()).expect("RAM");
        *index = index.wrapping_add(1);
        self.memory.write(driver(queue) + 2, &index.to_le_bytes()).expect("RAM");
    }

    pub fn ring(&self, queue: u16) {
        self.write(self.bar + 0x3000 + 4 * u64::from(queue), queue.into(), 2);
    }

    pub fn half(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).expect("RAM");
        u16::from_le_bytes(bytes)
    }

    pub fn used(&self, queue: u16) -> u16 {
        self.half(device(queue) + 2)
    }

    /// Head and length of an entry of the used ring.
    pub fn used_entry(&self, queue: u16, index: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        let at = device(queue) + 4 + 8 * u64::from(index % SIZE);
        self.memory.read(at, &mut bytes).expect("RAM");
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        (word(0), word(4))
    }

    /// Puts a request into a queue and rings: `given` for the device, and room for `wanted`
    /// bytes. At most 4 KiB and 32 KiB.
    pub fn submit(&self, queue: u16, given: &[u8], wanted: u32) {
        assert!(given.len() <= 0x1000 && wanted <= 0x8000);
        let at = buffer(queue);
        self.memory.write(at, given).expect("RAM");
        let more = wanted > 0;
        let mut index = 0;
        if !given.is_empty() {
            self.describe(queue, 0, at, given.len() as u32, u16::from(more), 1);
            index = 1;
        }
        if more {
            self.describe(queue, index, at + 0x1000, wanted, 2, 0);
        }
        self.offer(queue, 0);
        self.ring(queue);
    }

    /// The same, and waits for the answer; `None` if the device needs a reset instead.
    pub fn call(&self, queue: u16, given: &[u8], wanted: u32) -> Option<Vec<u8>> {
        let before = self.used(queue);
        self.submit(queue, given, wanted);
        self.until("an answer", || self.used(queue) != before || self.status() & 0x40 != 0);
        if self.used(queue) == before {
            return None;
        }
        let mut bytes = vec![0; self.used_entry(queue, before).1 as usize];
        self.memory.read(buffer(queue) + 0x1000, &mut bytes).expect("RAM");
        Some(bytes)
    }

    /// Forgets what is in the rings, for a device that was reset.
    pub fn clear_rings(&self) {
        for queue in 0..self.queues() {
            self.memory.write(driver(queue), &[0; 64]).expect("RAM");
            self.memory.write(device(queue), &[0; 128]).expect("RAM");
        }
    }

    pub fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let limit = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < limit, "{what}");
            thread::yield_now();
        }
    }

    /// Panics of the device's threads so far.
    pub(crate) fn failures(&self) -> u64 {
        self.virtio.core.counters.failures.load(Relaxed)
    }

    /// Forgets those, which a test has made; how many there were.
    pub fn forgive_failures(&self) -> u64 {
        self.virtio.core.counters.failures.swap(0, Relaxed)
    }

    fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.wiring.devices.iter()
    }

    /// Nothing of the device runs when this returns.
    pub fn pause(&self) {
        self.devices().for_each(|device| device.pause());
    }

    pub fn resume(&self) {
        self.devices().for_each(|device| device.resume());
    }

    /// Everything but memory.
    pub fn save(&self) -> Vec<Part> {
        self.pause();
        fake::save(&self.wiring)
    }

    pub fn restore(&self, parts: &[Part]) -> Result<(), Error> {
        self.pause();
        fake::restore(&self.wiring, parts)
    }

    /// Neither runs meanwhile: a device that has just been started may not have looked at its
    /// queues yet, and would find the other's there.
    pub fn copy_memory_to(&self, other: &Self) {
        self.pause();
        other.pause();
        let mut bytes = vec![0; RAM as usize];
        self.memory.read(0, &mut bytes).expect("RAM");
        other.memory.write(0, &bytes).expect("RAM");
        // What the driver remembers moves along.
        let shadow = self.shadow.lock().expect("no panic").clone();
        *other.shadow.lock().expect("no panic") = shadow;
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.virtio.end();
        if !thread::panicking() {
            assert_eq!(self.failures(), 0, "a thread of the device panicked");
        }
    }
}
