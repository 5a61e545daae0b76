//! The 8254 interval timer, and the port (0x61) that gates its counter 2.
//!
//! Counter 0 drives IRQ 0. When the host is late, periods that were missed are made up for one
//! by one, up to [`BACKLOG`], spaced so that the guest can take each; the rest is dropped.

pub mod counter;

use crate::bytes::{BytePorts, Bytewise, lock, mul_div};
use counter::Counter;
use device::{Clock, Device, LineRef, Timer, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

pub const PIT_HZ: u64 = 1_193_182;
const NS: u64 = 1_000_000_000;
/// Missed ticks that are made up for.
pub const BACKLOG: u64 = 32;
/// IRQ 0 rises no more often than this.
const SHORTEST_NS: u64 = 50_000;
/// Port 0x61's refresh bit toggles each 15.085 microseconds.
const REFRESH_NS: u64 = 15_085;
const SYSTEM_CONTROL: u16 = 0x61;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitState {
    pub counters: Vec<Counter>,
    /// Port 0x61, bits 0 to 3.
    pub control: u8,
    /// The tick up to which counter 0's output was looked at.
    pub seen: u64,
    /// Rises of counter 0's output that IRQ 0 has yet to follow.
    pub backlog: u64,
    /// Guest nanoseconds before which IRQ 0 does not rise again.
    pub not_before: u64,
}

impl Schema for PitState {
    const KIND: &'static str = "pit-8254";
    const VERSION: u16 = 1;
}

#[derive(Debug)]
struct Regs {
    counters: [Counter; 3],
    control: u8,
    seen: u64,
    backlog: u64,
    not_before: u64,
}

impl Default for Regs {
    fn default() -> Self {
        let counter = Counter::new;
        Self {
            counters: [counter(true), counter(true), counter(false)],
            control: 0,
            seen: 0,
            backlog: 0,
            not_before: 0,
        }
    }
}

pub struct Pit {
    regs: Mutex<Regs>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Arc<dyn Timer>>,
    irq: LineRef,
}

impl fmt::Debug for Pit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pit").field("regs", &self.regs).finish_non_exhaustive()
    }
}

impl Pit {
    pub(crate) fn build(irq: LineRef, wiring: &mut Wiring) -> Arc<Self> {
        let pit = Arc::new(Self {
            regs: Mutex::new(Regs::default()),
            clock: wiring.clock.clone(),
            timer: OnceLock::new(),
            irq,
        });
        let weak = Arc::downgrade(&pit);
        let timer = wiring.timers.create(Arc::new(move |_| {
            if let Some(pit) = weak.upgrade() {
                pit.fire();
            }
        }));
        let _ = pit.timer.set(timer);
        let ports = Arc::new(Bytewise(pit.clone()));
        wiring.claim_ports("pit", 0x40..=0x43, ports.clone());
        wiring.claim_ports("system_control", SYSTEM_CONTROL..=SYSTEM_CONTROL, ports);
        wiring.devices.push(pit.clone());
        pit
    }

    fn tick(&self) -> u64 {
        mul_div(self.clock.now_ns(), PIT_HZ, NS)
    }

    /// The timer: IRQ 0 follows one rise. The line is pulsed with the lock held; interrupt
    /// controllers call no device.
    fn fire(&self) {
        let mut regs = lock(&self.regs);
        let now = self.tick();
        regs.look(now);
        let now_ns = self.clock.now_ns();
        if regs.backlog > 0 && now_ns >= regs.not_before {
            regs.backlog -= 1;
            regs.not_before = now_ns.saturating_add(regs.spacing());
            self.irq.pulse();
        }
        self.arm(&regs, now);
    }

    fn arm(&self, regs: &Regs, tick: u64) {
        let at = if regs.backlog > 0 {
            Some(regs.not_before)
        } else {
            // One nanosecond more, since conversion rounds down.
            let next = regs.counters[0].next_rise(tick);
            let next = next.map(|rise| mul_div(rise, NS, PIT_HZ).saturating_add(1));
            next.map(|at| at.max(regs.not_before))
        };
        if let Some(timer) = self.timer.get() {
            timer.arm(at);
        }
    }

    /// A change by the guest, which sees rises up to now delivered as they were.
    fn with<T>(&self, change: impl FnOnce(&mut Regs, u64) -> T) -> T {
        let mut regs = lock(&self.regs);
        let now = self.tick();
        regs.look(now);
        change(&mut regs, now)
    }

    fn change(&self, change: impl FnOnce(&mut Regs, u64)) {
        self.with(|regs, now| {
            change(regs, now);
            self.arm(regs, now);
        });
    }
}

impl Regs {
    /// Nanoseconds between IRQ 0's rises while it makes up for missed ones.
    fn spacing(&self) -> u64 {
        let counter = &self.counters[0];
        let quarter = if counter.mode == 2 || counter.mode == 3 { counter.count / 4 } else { 0 };
        mul_div(quarter.into(), NS, PIT_HZ).max(SHORTEST_NS)
    }

    /// Counts the rises of counter 0's output up to `now`.
    fn look(&mut self, now: u64) {
        let seen = std::mem::replace(&mut self.seen, now).min(now);
        let counter = &mut self.counters[0];
        let rises = counter.rises_between(seen, now);
        counter.settle(now);
        self.backlog = self.backlog.saturating_add(rises).min(BACKLOG);
        for counter in &mut self.counters[1..] {
            counter.settle(now);
        }
    }

    fn write_control(&mut self, value: u8, now: u64) {
        let select = usize::from(value >> 6);
        let Some(counter) = self.counters.get_mut(select) else {
            return self.read_back(value, now);
        };
        if value & 0x30 == 0 {
            counter.latch_count(now);
        } else {
            counter.program(value);
            if select == 0 {
                (self.backlog, self.not_before) = (0, 0);
            }
        }
    }

    fn read_back(&mut self, value: u8, now: u64) {
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << i == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(now);
            }
            if value & 0x10 == 0 {
                counter.latch_status(now);
            }
        }
    }
}

impl BytePorts for Pit {
    fn read_byte(&self, port: u16) -> Option<u8> {
        match port {
            0x40..=0x42 => {
                let index = usize::from(port - 0x40);
                Some(self.with(|regs, now| regs.counters[index].read(now)))
            }
            SYSTEM_CONTROL => Some(self.with(|regs, now| {
                let refresh = (self.clock.now_ns() / REFRESH_NS) as u8 & 1;
                let out = u8::from(regs.counters[2].output(now));
                regs.control | refresh << 4 | out << 5
            })),
            // The control word cannot be read.
            _ => None,
        }
    }

    fn write_byte(&self, port: u16, value: u8) {
        match port {
            0x40 => self.change(|regs, now| regs.counters[0].write(value, now)),
            0x41 | 0x42 => {
                let index = usize::from(port - 0x40);
                self.with(|regs, now| regs.counters[index].write(value, now));
            }
            0x43 => self.change(|regs, now| regs.write_control(value, now)),
            SYSTEM_CONTROL => self.with(|regs, now| {
                regs.control = value & 0xf;
                regs.counters[2].set_gate(value & 1 != 0, now);
            }),
            _ => {}
        }
    }
}

impl Device for Pit {
    fn name(&self) -> String {
        "pit".into()
    }

    fn reset(&self) {
        self.change(|regs, now| *regs = Regs { seen: now, ..Regs::default() });
    }

    fn save(&self, to: &mut Writer) {
        let regs = lock(&self.regs);
        let state = PitState {
            counters: regs.counters.to_vec(),
            control: regs.control,
            seen: regs.seen,
            backlog: regs.backlog,
            not_before: regs.not_before,
        };
        drop(regs);
        to.put(0, &state);
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let refuse = |reason: &str| malformed::<PitState>(reason);
        let PitState { counters, control, seen, backlog, not_before } = from.take(0)?;
        let counters = <[Counter; 3]>::try_from(counters).map_err(|_| refuse("not 3 counters"))?;
        if control > 0xf || backlog > BACKLOG || !counters.iter().all(Counter::is_valid) {
            return Err(refuse("a register has a value that the chip has not"));
        }
        let gates = [true, true, control & 1 != 0];
        if counters.iter().zip(gates).any(|(counter, gate)| counter.gate != gate) {
            return Err(refuse("a gate is not at the level that drives it"));
        }
        let mut regs = lock(&self.regs);
        *regs = Regs { counters, control, seen, backlog, not_before };
        self.arm(&regs, self.tick());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
