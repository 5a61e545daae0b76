//! The guest's time as devices see it.

use std::sync::Arc;

/// Guest time: stops while the machine is paused, survives save and restore.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the machine was powered on.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since 1970, for clocks on the board.
    fn realtime_ns(&self) -> u64;
}

/// One alarm.
pub trait Timer: Send + Sync {
    /// Fires once at `at` guest nanoseconds, or soon if that has passed; replaces what was
    /// armed. `None` disarms. A fire that was already under way may still arrive. Devices call
    /// this with their own lock held, so it never fires from within, and the timer thread
    /// holds no lock that this takes while it fires.
    fn arm(&self, at: Option<u64>);
}

/// Called on the timer thread with the current guest nanoseconds.
pub type Fire = Arc<dyn Fn(u64) + Send + Sync>;

pub trait Timers: Send + Sync {
    fn create(&self, fire: Fire) -> Arc<dyn Timer>;
}
