//! The guest's time: one clock that stops while the machine is paused.
//!
//! The common TSC is derived from it, so that every reading of time in a machine is of one
//! clock and nothing drifts across a pause or a restore.

use device::Clock;
use engine::ClockSample;
use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

const RUNNING: u64 = u64::MAX;

/// Guest nanoseconds since power-on.
#[derive(Debug)]
pub struct GuestClock {
    origin: Instant,
    /// Host nanoseconds since `origin` at which guest time would have been zero; wraps.
    zero: AtomicU64,
    /// Guest time at the pause, or [`RUNNING`].
    paused_at: AtomicU64,
    khz: u32,
}

impl GuestClock {
    /// Paused at zero; `khz` is the TSC's frequency.
    pub fn new(khz: u32) -> Self {
        Self {
            origin: Instant::now(),
            zero: AtomicU64::new(0),
            paused_at: AtomicU64::new(0),
            khz: khz.max(1),
        }
    }

    fn host_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    pub fn is_running(&self) -> bool {
        self.paused_at.load(Acquire) == RUNNING
    }

    /// No effect if it is paused already.
    pub fn pause(&self) {
        let now = self.now_ns();
        if self.is_running() {
            self.paused_at.store(now, Release);
        }
    }

    /// No effect if it runs already.
    pub fn resume(&self) {
        let at = self.paused_at.load(Acquire);
        if at != RUNNING {
            self.zero.store(self.host_ns().wrapping_sub(at), Relaxed);
            self.paused_at.store(RUNNING, Release);
        }
    }

    /// Sets a paused clock: restoring.
    pub fn set(&self, guest_ns: u64) {
        self.paused_at.store(guest_ns.min(RUNNING - 1), Release);
    }

    /// The common TSC: guest time in units of its frequency.
    pub fn tsc(&self) -> u64 {
        self.ns_to_tsc(self.now_ns())
    }

    /// Every clock of the machine at one instant.
    pub fn sample(&self) -> ClockSample {
        let guest_ns = self.now_ns();
        let realtime_ns = self.realtime_ns();
        ClockSample { guest_ns, tsc: self.ns_to_tsc(guest_ns), khz: self.khz, realtime_ns }
    }

    pub fn ns_to_tsc(&self, ns: u64) -> u64 {
        match self.khz {
            // The usual frequency.
            1_000_000 => ns,
            khz => (u128::from(ns) * u128::from(khz) / 1_000_000) as u64,
        }
    }

    /// Guest time at which the common TSC reaches `tsc`, rounded up.
    pub fn tsc_to_ns(&self, tsc: u64) -> u64 {
        let ns = (u128::from(tsc) * 1_000_000).div_ceil(u128::from(self.khz));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

impl Clock for GuestClock {
    fn now_ns(&self) -> u64 {
        match self.paused_at.load(Acquire) {
            RUNNING => self.host_ns().wrapping_sub(self.zero.load(Relaxed)),
            at => at,
        }
    }

    fn realtime_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn stands_still_while_paused_and_goes_on_where_it_was() {
        let clock = GuestClock::new(2_000_000);
        assert_eq!(clock.now_ns(), 0);
        clock.set(1_000_000);
        clock.resume();
        std::thread::sleep(Duration::from_millis(2));
        clock.pause();
        let at = clock.now_ns();
        assert!(at >= 3_000_000);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now_ns(), at);
        assert_eq!(clock.tsc(), at * 2);
        clock.resume();
        assert!(clock.now_ns() >= at);
    }

    #[test]
    fn a_deadline_in_tsc_units_is_not_early() {
        let clock = GuestClock::new(2_100_003);
        for tsc in [0, 1, 12345, 1 << 40] {
            assert!(clock.ns_to_tsc(clock.tsc_to_ns(tsc)) >= tsc);
        }
        assert_eq!(GuestClock::new(1).tsc_to_ns(u64::MAX), u64::MAX);
    }
}
