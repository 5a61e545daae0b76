//! One counter of the 8254 (Intel's data sheet 231164). What it shows is computed from the
//! clock whenever somebody looks.

use serde::{Deserialize, Serialize};

/// Whether the counter counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// Waits for a count or a trigger.
    #[default]
    Idle,
    /// Since this tick.
    Since(u64),
    /// The gate is low; so many ticks had passed.
    Held(u64),
}

/// Which byte is read or written next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Half {
    #[default]
    Low,
    High,
}

/// The counter's registers; also its saved form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    /// 0 to 5.
    pub mode: u8,
    pub bcd: bool,
    /// RW1 and RW0: 1 low byte, 2 high byte, 3 both.
    pub access: u8,
    /// The count in use, 1 to 65536; 0 before the first.
    pub count: u32,
    /// Written while a period was under way; in use from the next (modes 2 and 3), or from the
    /// next trigger (modes 1 and 5).
    pub next: Option<u32>,
    pub run: Run,
    pub gate: bool,
    pub write_half: Half,
    pub read_half: Half,
    pub low_byte: u8,
    pub latched_count: Option<u16>,
    pub latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: 3,
            count: 0,
            next: None,
            run: Run::Idle,
            gate,
            write_half: Half::Low,
            read_half: Half::Low,
            low_byte: 0,
            latched_count: None,
            latched_status: None,
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        let count = |count: u32| count <= 0x1_0000;
        let runs = self.run == Run::Idle || self.count != 0;
        self.mode < 6
            && (1..4).contains(&self.access)
            && runs
            && count(self.count)
            && self.next.is_none_or(|next| next != 0 && count(next))
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Ticks counted since the count was loaded.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => Some(now.saturating_sub(start)),
            Run::Held(ticks) => Some(ticks),
        }
    }

    /// A count that waits for the end of a period takes over when that has come.
    pub(super) fn settle(&mut self, now: u64) {
        let (Some(next), Run::Since(start), true) = (self.next, self.run, self.periodic()) else {
            return;
        };
        let end = start.saturating_add(u64::from(self.count));
        if now >= end {
            (self.count, self.next, self.run) = (next, None, Run::Since(end));
        }
    }

    /// A control word for this counter (data sheet, figure 7).
    pub(super) fn program(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        // Modes 6 and 7 are modes 2 and 3.
        self.mode = if mode > 5 { mode & 3 } else { mode };
        self.access = control >> 4 & 3;
        self.bcd = control & 1 != 0;
        (self.write_half, self.read_half) = (Half::Low, Half::Low);
        (self.latched_count, self.latched_status) = (None, None);
        (self.run, self.next) = (Run::Idle, None);
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.write_half) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Half::Low) => {
                (self.low_byte, self.write_half) = (value, Half::High);
                if self.mode == 0 {
                    // The first byte stops the count (data sheet, "Mode 0").
                    self.run = Run::Idle;
                }
                return;
            }
            (_, Half::High) => {
                self.write_half = Half::Low;
                u16::from_le_bytes([self.low_byte, value])
            }
        };
        self.load(self.decode(count), now);
    }

    fn decode(&self, count: u16) -> u32 {
        let value = if self.bcd {
            // Digits above nine count as they weigh.
            (0..4).rev().fold(0, |sum, i| sum * 10 + u32::from(count >> (4 * i) & 0xf))
        } else {
            u32::from(count)
        };
        if value == 0 { self.modulus() as u32 } else { value.min(0x1_0000) }
    }

    fn encode(&self, value: u64) -> u16 {
        let value = value % self.modulus();
        if !self.bcd {
            return value as u16;
        }
        (0..4).rev().fold(0, |bcd, i| bcd << 4 | (value / 10u64.pow(i) % 10) as u16)
    }

    fn load(&mut self, count: u32, now: u64) {
        match (self.mode, self.run) {
            (1 | 5, _) => self.next = Some(count),
            (2 | 3, Run::Since(start)) if self.count != 0 => {
                // From the beginning of this period, at whose end it takes over.
                let into = now.saturating_sub(start) % u64::from(self.count);
                (self.run, self.next) = (Run::Since(now.saturating_sub(into)), Some(count));
            }
            _ => {
                (self.count, self.next) = (count, None);
                self.run = if self.gate { Run::Since(now) } else { Run::Held(0) };
            }
        }
    }

    /// The gate input (data sheet, figure 21).
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match (self.mode, self.run) {
            (1 | 5, _) if rises => {
                self.count = self.next.take().unwrap_or(self.count);
                if self.count != 0 {
                    self.run = Run::Since(now);
                }
            }
            (0 | 4, Run::Held(ticks)) if rises => {
                self.run = Run::Since(now.saturating_sub(ticks));
            }
            (2 | 3, Run::Held(_)) if rises => {
                self.count = self.next.take().unwrap_or(self.count);
                self.run = Run::Since(now);
            }
            (0 | 2 | 3 | 4, Run::Since(start)) if falls => {
                self.run = Run::Held(now.saturating_sub(start));
            }
            _ => {}
        }
    }

    /// The counting element.
    pub(super) fn value(&self, now: u64) -> u16 {
        let count = u64::from(self.count);
        let Some(ticks) = self.elapsed(now).filter(|_| count != 0) else {
            return self.encode(count);
        };
        let value = match self.mode {
            2 => count - ticks % count,
            // Counts down by two, twice each period.
            3 => count - (ticks % count * 2) % count,
            _ => {
                let modulus = self.modulus();
                (count + modulus - ticks % modulus) % modulus
            }
        };
        self.encode(value)
    }

    pub(super) fn output(&self, now: u64) -> bool {
        let count = u64::from(self.count);
        let Some(ticks) = self.elapsed(now).filter(|_| count != 0) else {
            return self.mode != 0;
        };
        match self.mode {
            0 => ticks >= count,
            1 => ticks >= count,
            2 => !self.gate || ticks % count != count - 1,
            3 => !self.gate || ticks % count < count.div_ceil(2),
            _ => ticks != count,
        }
    }

    /// The next tick after `now` at which the output rises.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let Run::Since(start) = self.run else { return None };
        let count = u64::from(self.count);
        let once = match self.mode {
            2 | 3 => {
                let period = now.saturating_sub(start).checked_div(count)?.saturating_add(1);
                return Some(start.saturating_add(period.saturating_mul(count)));
            }
            0 | 1 => start.saturating_add(count),
            _ => start.saturating_add(count).saturating_add(1),
        };
        (once > now).then_some(once)
    }

    /// How many periods end in the ticks after `from`, up to `now`.
    pub(super) fn rises_between(&self, from: u64, now: u64) -> u64 {
        match (self.next_rise(from), self.periodic()) {
            (Some(first), true) if first <= now => 1 + (now - first) / u64::from(self.count).max(1),
            (Some(first), false) if first <= now => 1,
            _ => 0,
        }
    }

    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now));
            self.read_half = Half::Low;
        }
    }

    /// Status byte (data sheet, figure 12).
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let null = self.run == Run::Idle || self.next.is_some();
            self.latched_status = Some(
                u8::from(self.output(now)) << 7
                    | u8::from(null) << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let latched = self.latched_count;
        let [low, high] = latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        match (self.access, self.read_half) {
            (1, _) => {
                self.latched_count = None;
                low
            }
            (2, _) => {
                self.latched_count = None;
                high
            }
            (_, Half::Low) => {
                self.read_half = Half::High;
                low
            }
            (_, Half::High) => {
                self.read_half = Half::Low;
                self.latched_count = None;
                high
            }
        }
    }
}

#[cfg(test)]
mod tests;
