//! The high precision event timer: a counter of 100 MHz and three comparators, one-shot and
//! periodic ("IA-PC HPET Specification" 1.0a, "HPET" below). Messages (FSB) it has none.
//!
//! With legacy replacement timers 0 and 1 have the lines of the PIT and of the RTC, which are not
//! heard then (HPET, 2.3.5).

mod regs;
mod state;

#[cfg(test)]
mod tests;

pub use state::{HpetState, TimerState};

use crate::{bytes::lock, gate::Gate};
use device::{Clock, Device, LineRef, MmioDevice, Timer, Wiring};
use regs::{Fired, ROUTES, Regs, TICK_NS, TIMERS};
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

pub const ADDRESS: u64 = 0xfed0_0000;
pub const SIZE: u64 = 0x400;
/// What ACPI tells of it: the lower half of its capabilities.
pub const ID: u32 = regs::CAPABILITIES;
/// Nanoseconds between two alarms of a timer, whatever period the guest gave it.
const SHORTEST_NS: u64 = 50_000;

/// Lines that the timers can be led to, a source for each timer.
struct Pins(Vec<(u32, [LineRef; TIMERS])>);

impl Pins {
    fn new(wiring: &Wiring) -> Self {
        let gsis = (0..32).filter(|gsi| [0, 8].contains(gsi) || ROUTES >> gsi & 1 != 0);
        Self(gsis.map(|gsi| (gsi, std::array::from_fn(|_| wiring.irq(gsi as usize)))).collect())
    }

    /// The timer's source of each line, and which line it is.
    fn of(&self, timer: usize) -> impl Iterator<Item = (u32, &LineRef)> {
        self.0.iter().filter_map(move |(gsi, lines)| Some((*gsi, lines.get(timer)?)))
    }
}

/// What the lock is around.
#[derive(Debug, Default)]
struct Inner {
    regs: Regs,
    /// Guest time before which a timer's alarm does not come again.
    not_before: [u64; TIMERS],
}

pub struct Hpet {
    inner: Mutex<Inner>,
    clock: Arc<dyn Clock>,
    alarms: OnceLock<[Arc<dyn Timer>; TIMERS]>,
    pins: Pins,
    /// Of the PIT and of the RTC.
    replaced: [Arc<Gate>; 2],
}

impl fmt::Debug for Hpet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hpet").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Hpet {
    pub(crate) fn build(replaced: [Arc<Gate>; 2], wiring: &mut Wiring) -> Arc<Self> {
        let hpet = Arc::new(Self {
            inner: Mutex::default(),
            clock: wiring.clock.clone(),
            alarms: OnceLock::new(),
            pins: Pins::new(wiring),
            replaced,
        });
        let alarms = std::array::from_fn(|index| {
            let weak = Arc::downgrade(&hpet);
            wiring.timers.create(Arc::new(move |_| {
                if let Some(hpet) = weak.upgrade() {
                    hpet.fire(index);
                }
            }))
        });
        // Just made, so it has none yet.
        let _ = hpet.alarms.set(alarms);
        wiring.claim_mmio("hpet", ADDRESS..=ADDRESS + SIZE - 1, hpet.clone());
        wiring.devices.push(hpet.clone());
        hpet
    }

    fn now(&self) -> u64 {
        self.clock.now_ns() / TICK_NS
    }

    fn fire(&self, index: usize) {
        let mut inner = lock(&self.inner);
        let next = self.clock.now_ns().saturating_add(SHORTEST_NS);
        if let Some(place) = inner.not_before.get_mut(index) {
            *place = next;
        }
        let fired = inner.regs.look(self.now());
        self.drive(&inner.regs, fired);
        self.arm(&inner);
    }

    /// Lines are driven with the lock held: interrupt controllers call no device.
    fn drive(&self, regs: &Regs, fired: Fired) {
        for (index, fired) in fired.0.into_iter().enumerate() {
            let (route, level) = (regs.route(index), regs.level(index));
            for (gsi, line) in self.pins.of(index) {
                let here = route == Some(gsi);
                if here && fired && !level {
                    line.pulse();
                } else {
                    line.set(here && level);
                }
            }
        }
    }

    fn arm(&self, inner: &Inner) {
        let Some(alarms) = self.alarms.get() else { return };
        for (index, alarm) in alarms.iter().enumerate() {
            let due = inner.regs.due(index);
            let at = due.map(|due| due.saturating_mul(TICK_NS));
            let earliest = inner.not_before.get(index).copied().unwrap_or(0);
            alarm.arm(at.map(|at| at.max(earliest)));
        }
    }

    fn replace(&self, regs: &Regs) {
        let open = !regs.is_legacy();
        self.replaced.iter().for_each(|gate| gate.open(open));
    }
}

impl MmioDevice for Hpet {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Registers have eight bytes; those that are read are of one or two.
        let mut inner = lock(&self.inner);
        let now = self.now();
        let fired = inner.regs.look(now);
        let mut register = (u64::MAX, 0);
        for (at, byte) in (offset..).zip(data) {
            if register.0 != at & !7 {
                register = (at & !7, inner.regs.read(at & !7, now));
            }
            *byte = register.1.to_le_bytes()[(at & 7) as usize];
        }
        // Clock sources read often, and mostly nothing has fired.
        if fired != Fired::default() {
            self.drive(&inner.regs, fired);
            self.arm(&inner);
        }
    }

    /// Four bytes or eight, aligned (HPET, 2.1).
    fn write(&self, offset: u64, data: &[u8]) {
        let len = data.len();
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len as u64) {
            return;
        }
        let value = data.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let mut inner = lock(&self.inner);
        // One time for all of it: a match is either before the write, or by what was written.
        let now = self.now();
        let fired = inner.regs.look(now);
        self.drive(&inner.regs, fired);
        let legacy = inner.regs.is_legacy();
        inner.regs.write(offset, value, len, now);
        if inner.regs.is_legacy() != legacy {
            self.replace(&inner.regs);
        }
        let fired = inner.regs.look(now);
        self.drive(&inner.regs, fired);
        self.arm(&inner);
    }
}

impl Device for Hpet {
    fn name(&self) -> String {
        "hpet".into()
    }

    fn reset(&self) {
        let mut inner = lock(&self.inner);
        *inner = Inner::default();
        self.replace(&inner.regs);
        self.drive(&inner.regs, Fired::default());
        self.arm(&inner);
    }

    fn save(&self, to: &mut Writer) {
        to.put(0, &lock(&self.inner).regs.save());
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: HpetState = from.take(0)?;
        let refused = || malformed::<HpetState>("bits that are not there, or other timers");
        let regs = Regs::restored(&state).ok_or_else(refused)?;
        let mut inner = lock(&self.inner);
        *inner = Inner { regs, ..Inner::default() };
        let open = !inner.regs.is_legacy();
        self.replaced.iter().for_each(|gate| gate.restore_open(open));
        for index in 0..TIMERS {
            let (route, level) = (inner.regs.route(index), inner.regs.level(index));
            self.pins.of(index).for_each(|(gsi, line)| line.restore(route == Some(gsi) && level));
        }
        self.arm(&inner);
        Ok(())
    }
}
