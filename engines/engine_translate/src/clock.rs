//! The VM's clock, where the machine does not keep its own.

use engine::ClockSample;
use std::{
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Runs from the last setting on, at the TSC's frequency.
#[derive(Debug)]
pub struct VmClock {
    khz: u32,
    base: Mutex<(Instant, ClockSample)>,
}

impl VmClock {
    pub fn new(khz: u32) -> Self {
        let zero = ClockSample { khz, ..ClockSample::default() };
        Self { khz, base: Mutex::new((Instant::now(), zero)) }
    }

    pub fn sample(&self) -> ClockSample {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let ns = base.0.elapsed().as_nanos();
        let ticks = ns * u128::from(self.khz) / 1_000_000;
        let realtime = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ClockSample {
            guest_ns: base.1.guest_ns.wrapping_add(ns as u64),
            tsc: base.1.tsc.wrapping_add(ticks as u64),
            khz: self.khz,
            realtime_ns: realtime.as_nanos() as u64,
        }
    }

    pub fn set(&self, at: &ClockSample) {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), *at);
    }
}
