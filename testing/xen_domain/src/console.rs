//! The host's end of a domain's console (`io/console.h`).

use crate::lock;
use guest_mem::GuestMem;
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

const IN_RING: u32 = 1024;
const OUT_RING: u32 = 2048;
const OUT: u64 = 0x400;
const IN_CONSUMER: u64 = 0xc00;
const IN_PRODUCER: u64 = 0xc04;
const OUT_CONSUMER: u64 = 0xc08;
const OUT_PRODUCER: u64 = 0xc0c;

#[derive(Debug)]
pub struct Console {
    memory: Arc<GuestMem>,
    at: u64,
    said: Mutex<Vec<u8>>,
    changed: Condvar,
    typed: Mutex<VecDeque<u8>>,
}

impl Console {
    pub fn new(memory: Arc<GuestMem>, at: u64) -> Self {
        Self {
            memory,
            at,
            said: Mutex::default(),
            changed: Condvar::new(),
            typed: Mutex::default(),
        }
    }

    pub fn say(&self, text: &[u8]) {
        lock(&self.said).extend_from_slice(text);
        self.changed.notify_all();
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&lock(&self.said)).into_owned()
    }

    pub fn type_in(&self, bytes: &[u8]) {
        lock(&self.typed).extend(bytes);
    }

    pub fn expect(&self, what: &str, after: usize, longest: Duration) -> Result<usize, String> {
        let limit = Instant::now() + longest;
        let mut said = lock(&self.said);
        loop {
            let new = said.get(after..).unwrap_or(&[]);
            if let Some(at) = new.windows(what.len()).position(|bytes| bytes == what.as_bytes()) {
                return Ok(after + at + what.len());
            }
            let Some(left) = limit.checked_duration_since(Instant::now()) else {
                return Err(format!("no {what:?}: {}", String::from_utf8_lossy(&said)));
            };
            let waited = self.changed.wait_timeout(said, left);
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn load(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        let _ = self.memory.read(self.at + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store(&self, offset: u64, value: u32) {
        let _ = self.memory.write(self.at + offset, &value.to_le_bytes());
    }

    /// Moves bytes both ways; true if the guest is to be told.
    pub fn serve(&self) -> bool {
        let (mut consumer, producer) = (self.load(OUT_CONSUMER), self.load(OUT_PRODUCER));
        let count = producer.wrapping_sub(consumer).min(OUT_RING);
        let mut text = Vec::new();
        for _ in 0..count {
            let mut byte = [0];
            let _ = self.memory.read(self.at + OUT + u64::from(consumer % OUT_RING), &mut byte);
            text.extend(byte);
            consumer = consumer.wrapping_add(1);
        }
        self.store(OUT_CONSUMER, consumer);
        if count > 0 {
            self.say(&text);
        }
        let (consumer, mut producer) = (self.load(IN_CONSUMER), self.load(IN_PRODUCER));
        let room = IN_RING - producer.wrapping_sub(consumer).min(IN_RING);
        let mut typed = lock(&self.typed);
        let put = (typed.len() as u32).min(room);
        for byte in typed.drain(..put as usize) {
            let _ = self.memory.write(self.at + u64::from(producer % IN_RING), &[byte]);
            producer = producer.wrapping_add(1);
        }
        self.store(IN_PRODUCER, producer);
        count + put > 0
    }
}
