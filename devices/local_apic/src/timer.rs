//! The APIC timer: one-shot, periodic and TSC-deadline (11.5.4).

use crate::{
    LocalApic, TIMER_HZ,
    apic::lock,
    regs::{Regs, lvt},
};

/// What a timer tick lasts before division.
const TICK_NS: u64 = 1_000_000_000 / TIMER_HZ;
/// A periodic timer fires no more often than this; what a guest asks beyond is coalesced, as
/// the IRR coalesces it anyway.
const SHORTEST_PERIOD_NS: u64 = 20_000;

/// What the guest's TSC means in guest time.
pub trait TscClock: Send + Sync {
    /// Guest nanoseconds at which the vCPU's own TSC reads `tsc`; 0 or any past time if it
    /// already passed, `u64::MAX` if never.
    fn tsc_to_ns(&self, vcpu: u32, tsc: u64) -> u64;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

impl Regs {
    pub(crate) fn timer_mode(&self) -> Mode {
        match self.lvt[lvt::TIMER] >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            // 3 is reserved and behaves like 2.
            _ => Mode::Deadline,
        }
    }

    /// Nanoseconds for each count (figure 11-10).
    fn count_ns(&self) -> u64 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        TICK_NS << ((code + 1) & 7)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.count_ns()
    }

    pub(crate) fn current_count(&self, now: u64) -> u32 {
        if self.timer_mode() == Mode::Deadline {
            return 0;
        }
        let left = self.expiry.map_or(0, |at| at.saturating_sub(now));
        u32::try_from(left.div_ceil(self.count_ns())).unwrap_or(u32::MAX)
    }

    pub(crate) fn write_initial(&mut self, value: u32, now: u64) {
        if self.timer_mode() != Mode::Deadline {
            self.initial = value;
            self.expiry = (value != 0).then(|| now.saturating_add(self.period_ns()));
        }
    }

    /// The count goes on at the new speed.
    pub(crate) fn write_divide(&mut self, value: u32, now: u64) {
        let count = u64::from(self.current_count(now));
        self.divide = value & 0xb;
        if self.timer_mode() != Mode::Deadline && self.expiry.is_some() {
            self.expiry = Some(now.saturating_add(count * self.count_ns()));
        }
    }

    /// Changing to or from TSC-deadline mode disarms the timer (11.5.4.1).
    pub(crate) fn write_lvt_timer(&mut self, value: u32) {
        let before = self.timer_mode();
        self.write_lvt(lvt::TIMER, value);
        if (before == Mode::Deadline) != (self.timer_mode() == Mode::Deadline) {
            (self.expiry, self.deadline) = (None, 0);
        }
    }

    /// True if the timer expired by `now`; then it is set for its next time.
    fn expire(&mut self, now: u64) -> bool {
        let Some(at) = self.expiry.filter(|at| *at <= now) else { return false };
        self.expiry = match self.timer_mode() {
            Mode::Periodic if self.initial != 0 => {
                let period = self.period_ns();
                let late = (now - at) / period * period;
                let next = at.saturating_add(late).saturating_add(period);
                Some(next.max(now.saturating_add(SHORTEST_PERIOD_NS)))
            }
            _ => None,
        };
        self.deadline = 0;
        true
    }
}

impl LocalApic {
    /// The timer thread's call, and anyone's who thinks the time has come.
    pub fn timer_fired(&self, now_ns: u64) {
        let mut regs = lock(&self.regs);
        let fired = regs.expire(now_ns);
        let entry = regs.unmasked(lvt::TIMER);
        self.arm(&regs);
        drop(regs);
        if let (true, Some(entry)) = (fired, entry) {
            self.post(entry as u8, false);
        }
    }

    /// Guest nanoseconds of the timer's next expiry, for those who idle.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        lock(&self.regs).expiry
    }

    pub(crate) fn arm(&self, regs: &Regs) {
        if let Some(timer) = self.timer.get() {
            timer.arm(regs.expiry.filter(|at| *at != u64::MAX));
        }
    }

    pub(crate) fn set_deadline(&self, regs: &mut Regs, tsc: u64) {
        if regs.timer_mode() == Mode::Deadline {
            regs.deadline = tsc;
            regs.expiry = (tsc != 0).then(|| self.tsc.tsc_to_ns(self.id, tsc));
        }
    }

    /// The vCPU's TSC was written: its deadline is at another time now.
    pub fn tsc_changed(&self) {
        let mut regs = lock(&self.regs);
        let deadline = regs.deadline;
        if deadline != 0 {
            self.set_deadline(&mut regs, deadline);
            self.arm(&regs);
        }
    }
}
