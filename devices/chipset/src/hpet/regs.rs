//! The registers and what time does to them ("IA-PC HPET Specification" 1.0a, 2.3).
//!
//! Time is given in ticks of the clock, which never stops; the main counter is that and an offset
//! while it counts. What a timer does next is a tick, so looking late misses nothing.

use super::state::{HpetState, TimerState};

/// Femtoseconds of a tick, and nanoseconds.
pub(super) const PERIOD_FS: u32 = 10_000_000;
pub(super) const TICK_NS: u64 = 10;
pub(super) const TIMERS: usize = 3;
/// Inputs of the IOAPIC that a timer can be led to: 11, and 20 to 23.
pub(super) const ROUTES: u32 = 1 << 11 | 0xf << 20;
/// Revision 1, three timers, 64 bits, legacy replacement, Intel's.
pub(super) const CAPABILITIES: u32 = 0x8086_0001 | (TIMERS as u32 - 1) << 8 | 1 << 13 | 1 << 15;

/// Offsets.
mod reg {
    pub const CAPABILITIES: u64 = 0x000;
    pub const CONFIG: u64 = 0x010;
    pub const STATUS: u64 = 0x020;
    pub const COUNTER: u64 = 0x0f0;
    pub const TIMERS: u64 = 0x100;
    pub const TIMER_SIZE: u64 = 0x20;
    /// Of a timer.
    pub const TIMER_CONFIG: u64 = 0x00;
    pub const COMPARATOR: u64 = 0x08;
}

/// Bits of the general configuration.
mod config {
    pub const ENABLE: u64 = 1;
    pub const LEGACY: u64 = 1 << 1;
    pub const WRITABLE: u64 = ENABLE | LEGACY;
}

/// Bits of a timer's configuration.
pub(super) mod timer {
    pub const LEVEL: u64 = 1 << 1;
    pub const ENABLE: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const SET: u64 = 1 << 6;
    pub const NARROW: u64 = 1 << 8;
    pub const ROUTE: u64 = 0x1f << 9;
    pub const WRITABLE: u64 = LEVEL | ENABLE | PERIODIC | SET | NARROW | ROUTE;
    /// Periodic, and 64 bits wide.
    pub const CAPABILITIES: u64 = 1 << 4 | 1 << 5;
}

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    pub(super) config: u64,
    pub(super) comparator: u64,
    /// What is added to the comparator at each match.
    pub(super) period: u64,
    /// When the counter comes to the comparator; none while it stands.
    pub(super) due: Option<u64>,
}

impl Default for Timer {
    fn default() -> Self {
        Self { config: 0, comparator: u64::MAX, period: 0, due: None }
    }
}

impl Timer {
    pub(super) fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// The bits that are compared.
    fn mask(&self) -> u64 {
        if self.has(timer::NARROW) { u32::MAX.into() } else { u64::MAX }
    }

    /// The counter or the comparator is another: when they meet. `at_once` if that may be now.
    fn aim(&mut self, now: u64, counter: u64, at_once: bool) {
        let mask = self.mask();
        let distance = self.comparator.wrapping_sub(counter) & mask;
        let distance = if distance == 0 && !at_once { mask } else { distance };
        self.due = now.checked_add(distance);
    }

    /// Whether it has matched up to now; then it goes on to the next match.
    fn look(&mut self, now: u64) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else { return false };
        let late = now - due;
        let step = if self.has(timer::PERIODIC) { self.period } else { 0 };
        if let Some(missed) = late.checked_div(step) {
            // Matches that were missed are one.
            let ahead = missed.saturating_add(1).saturating_mul(step);
            self.comparator = self.comparator.wrapping_add(ahead) & self.mask();
            self.due = due.checked_add(ahead);
        } else {
            // The counter comes round.
            let round = self.mask().checked_add(1);
            let rounds = |round: u64| (late / round + 1).checked_mul(round);
            self.due = round.and_then(rounds).and_then(|ahead| due.checked_add(ahead));
        }
        true
    }
}

/// What a look at the time found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fired(pub(super) [bool; TIMERS]);

#[derive(Debug)]
pub(super) struct Regs {
    config: u64,
    /// Of level-triggered timers that have fired.
    pub(super) status: u64,
    /// The counter while it stands; the difference to the clock's ticks while it counts.
    base: u64,
    pub(super) timers: [Timer; TIMERS],
}

impl Default for Regs {
    fn default() -> Self {
        Self { config: 0, status: 0, base: 0, timers: [Timer::default(); TIMERS] }
    }
}

/// Puts the part of a register that is written in place.
fn merge(old: u64, shift: u32, value: u64, len: usize) -> u64 {
    let mask = if len >= 8 { u64::MAX } else { u64::from(u32::MAX) << shift };
    old & !mask | value << shift & mask
}

/// The route of this configuration is one of those that a timer has.
fn offered(config: u64) -> bool {
    ROUTES >> ((config & timer::ROUTE) >> 9) & 1 != 0
}

impl Regs {
    pub(super) fn counts(&self) -> bool {
        self.config & config::ENABLE != 0
    }

    /// Timer 0 has the place of the PIT, and timer 1 that of the RTC.
    pub(super) fn is_legacy(&self) -> bool {
        self.config & config::WRITABLE == config::WRITABLE
    }

    fn counter(&self, now: u64) -> u64 {
        if self.counts() { now.wrapping_add(self.base) } else { self.base }
    }

    /// The GSI that the timer is led to; none if it is led nowhere.
    pub(super) fn route(&self, index: usize) -> Option<u32> {
        match (self.is_legacy(), index) {
            (true, 0) => Some(0),
            (true, 1) => Some(8),
            _ => {
                let config = self.timers.get(index).filter(|t| offered(t.config))?.config;
                Some(((config & timer::ROUTE) >> 9) as u32)
            }
        }
    }

    /// A line that is level-triggered is high.
    pub(super) fn level(&self, index: usize) -> bool {
        let on =
            self.timers.get(index).is_some_and(|t| t.has(timer::ENABLE) && t.has(timer::LEVEL));
        on && self.counts() && self.status >> index & 1 != 0
    }

    /// Brings everything up to now.
    pub(super) fn look(&mut self, now: u64) -> Fired {
        let mut fired = Fired::default();
        for (index, (timer, fired)) in self.timers.iter_mut().zip(&mut fired.0).enumerate() {
            *fired = timer.look(now) && timer.has(timer::ENABLE);
            if *fired && timer.has(timer::LEVEL) {
                self.status |= 1 << index;
            }
        }
        fired
    }

    /// The tick of the next interrupt of each timer.
    pub(super) fn due(&self, index: usize) -> Option<u64> {
        self.timers.get(index).filter(|timer| timer.has(timer::ENABLE)).and_then(|t| t.due)
    }

    /// The register at an offset that is a multiple of eight.
    pub(super) fn read(&self, offset: u64, now: u64) -> u64 {
        match offset {
            reg::CAPABILITIES => u64::from(PERIOD_FS) << 32 | u64::from(CAPABILITIES),
            reg::CONFIG => self.config,
            reg::STATUS => self.status,
            reg::COUNTER => self.counter(now),
            _ => {
                let Some((timer, register)) = self.place(offset) else { return 0 };
                match register {
                    reg::TIMER_CONFIG => {
                        let capabilities = u64::from(ROUTES) << 32 | timer::CAPABILITIES;
                        timer.config & !timer::SET | capabilities
                    }
                    reg::COMPARATOR => timer.comparator & timer.mask(),
                    _ => 0,
                }
            }
        }
    }

    fn index(offset: u64) -> Option<(usize, u64)> {
        let at = offset.checked_sub(reg::TIMERS)?;
        Some(((at / reg::TIMER_SIZE) as usize, at % reg::TIMER_SIZE))
    }

    fn place(&self, offset: u64) -> Option<(&Timer, u64)> {
        let (index, register) = Self::index(offset)?;
        Some((self.timers.get(index)?, register))
    }

    /// Writes four bytes or eight; everything is up to now already.
    pub(super) fn write(&mut self, offset: u64, value: u64, len: usize, now: u64) {
        let (at, shift) = (offset & !7, 8 * (offset as u32 & 4));
        match at {
            reg::CONFIG => {
                let value = merge(self.config, shift, value, len) & config::WRITABLE;
                let counter = self.counter(now);
                let switched = (self.config ^ value) & config::ENABLE != 0;
                self.config = value;
                if switched {
                    self.set_counter(counter, now);
                }
            }
            // Ones clear.
            reg::STATUS => self.status &= !merge(0, shift, value, len),
            reg::COUNTER => {
                let counter = merge(self.counter(now), shift, value, len);
                self.set_counter(counter, now);
            }
            _ => self.write_timer(at, shift, value, len, now),
        }
    }

    fn set_counter(&mut self, counter: u64, now: u64) {
        let counts = self.counts();
        self.base = if counts { counter.wrapping_sub(now) } else { counter };
        for timer in &mut self.timers {
            if counts {
                timer.aim(now, counter, false);
            } else {
                timer.due = None;
            }
        }
    }

    fn write_timer(&mut self, at: u64, shift: u32, value: u64, len: usize, now: u64) {
        let (counts, counter) = (self.counts(), self.counter(now));
        let Some((index, register)) = Self::index(at) else { return };
        let Some(timer) = self.timers.get_mut(index) else { return };
        match register {
            reg::TIMER_CONFIG => {
                let before = timer.config;
                timer.config = merge(before, shift, value, len) & timer::WRITABLE;
                // What is not offered reads as another than was written (HPET, 2.3.8).
                if !offered(timer.config) {
                    timer.config &= !timer::ROUTE;
                }
                if !timer.has(timer::LEVEL) {
                    self.status &= !(1 << index);
                }
                let kind = timer::NARROW | timer::PERIODIC;
                if counts && (before ^ timer.config) & kind != 0 {
                    timer.aim(now, counter, false);
                }
            }
            reg::COMPARATOR => {
                let whole = len >= 8 || shift != 0 || timer.has(timer::NARROW);
                if timer.has(timer::PERIODIC) {
                    timer.period = merge(timer.period, shift, value, len) & timer.mask();
                }
                if !timer.has(timer::PERIODIC) || timer.has(timer::SET) {
                    timer.comparator = merge(timer.comparator, shift, value, len);
                    if counts {
                        timer.aim(now, counter, true);
                    }
                }
                // With the second half of two.
                if whole {
                    timer.config &= !timer::SET;
                }
            }
            _ => {}
        }
    }

    pub(super) fn save(&self) -> HpetState {
        let timer = |t: &Timer| TimerState {
            config: t.config,
            comparator: t.comparator,
            period: t.period,
            due: t.due,
        };
        HpetState {
            config: self.config,
            status: self.status,
            base: self.base,
            timers: self.timers.iter().map(timer).collect(),
        }
    }

    /// What was saved; `None` if that cannot be.
    pub(super) fn restored(state: &HpetState) -> Option<Self> {
        let known = state.config & !config::WRITABLE == 0 && state.status >> TIMERS == 0;
        let timers = <&[TimerState; TIMERS]>::try_from(&*state.timers).ok()?;
        // While the counter stands nothing comes to a match.
        let counts = state.config & config::ENABLE != 0;
        let fits = timers
            .iter()
            .all(|timer| timer.config & !timer::WRITABLE == 0 && (counts || timer.due.is_none()));
        let timers = timers.each_ref().map(|t| Timer {
            config: t.config,
            comparator: t.comparator,
            period: t.period,
            due: t.due,
        });
        let HpetState { config, status, base, .. } = *state;
        (known && fits).then_some(Self { config, status, base, timers })
    }
}
