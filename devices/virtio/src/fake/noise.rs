//! What no driver does, for devices that must survive it.

use super::{Board, RAM, SIZE, driver};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Where the device's own configuration is, behind the BAR.
const CONFIG: u64 = 0x2000;
/// How long a device is waited for that may have nothing to do: it has a thread of its own.
const PATIENCE: Duration = Duration::from_micros(300);

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// Mostly in RAM, often at its end, sometimes nowhere.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => RAM - self.below(64),
            2 => 0u64.wrapping_sub(self.below(64)),
            _ => self.below(RAM),
        }
    }

    fn length(&mut self) -> u32 {
        match self.below(8) {
            0 => self.next() as u32,
            1 => 0,
            2 => 1 << self.below(32),
            3 | 4 => self.below(0x9000) as u32,
            _ => self.below(600) as u32,
        }
    }
}

impl Board {
    /// Fills the rings of a device that was started with descriptors, chains and indices of
    /// noise, rings, and reads and writes its configuration, by a number which is not zero.
    /// Meanwhile small requests that make sense are put between, and a device that needs a reset
    /// gets it, with these features.
    pub fn noise(&self, seed: u64, features: u64) {
        let mut random = Random(seed);
        let queues = u64::from(self.queues());
        for _ in 0..96 {
            let queue = random.below(queues) as u16;
            let before = self.used(queue);
            let what = random.below(8);
            let rung = matches!(what, 3..=5 | 7);
            match what {
                0..=2 => {
                    let (at, len) = (random.address(), random.length());
                    let (index, next) = (random.below(8) as u16, random.below(10) as u16);
                    self.describe(queue, index, at, len, random.below(8) as u16, next);
                }
                3 | 4 => {
                    self.offer(queue, random.below(u64::from(SIZE) + 1) as u16);
                    self.ring(queue);
                }
                5 => {
                    let given = random.next().to_le_bytes();
                    let given = &given[..random.below(9) as usize];
                    self.submit(queue, given, random.below(64) as u32);
                }
                6 => {
                    let (at, len) = (random.below(0x110), 1 << random.below(4));
                    self.write(self.bar + CONFIG + at, random.next(), len);
                    self.read(self.bar + CONFIG + at, len);
                }
                _ => {
                    let index = random.next() as u16;
                    self.memory.write(driver(queue) + 2, &index.to_le_bytes()).expect("RAM");
                    self.ring(queue);
                }
            }
            let asleep = || self.used(queue) == before && self.status() & 0x40 == 0;
            let limit = Instant::now() + PATIENCE;
            while rung && asleep() && Instant::now() < limit {
                thread::yield_now();
            }
            if self.status() & 0x40 != 0 {
                self.start_over(features);
            }
        }
        assert_eq!(self.failures(), 0, "a device panicked, seed {seed}");
    }

    /// A device after noise as a driver finds it that starts over.
    pub fn start_over(&self, features: u64) {
        self.set_status(0);
        self.until("a reset", || self.status() == 0);
        self.clear_rings();
        self.start(features, true);
    }
}
