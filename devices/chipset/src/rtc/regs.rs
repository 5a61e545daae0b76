//! The clock's registers, and what time does to them (Motorola's data sheet MC146818A).

use super::calendar::{DAY, Date, Format};
use crate::bytes::mul_div;

pub(super) const NS: u64 = 1_000_000_000;
/// Register A's UIP bit is set so long before an update.
const UPDATE_NS: u64 = 244_000;
pub(super) const CMOS_SIZE: usize = 128;

/// Register numbers.
pub(super) mod reg {
    pub const SECOND: usize = 0;
    pub const SECOND_ALARM: usize = 1;
    pub const MINUTE: usize = 2;
    pub const MINUTE_ALARM: usize = 3;
    pub const HOUR: usize = 4;
    pub const HOUR_ALARM: usize = 5;
    pub const WEEKDAY: usize = 6;
    pub const DAY: usize = 7;
    pub const MONTH: usize = 8;
    pub const YEAR: usize = 9;
    pub const A: usize = 0xa;
    pub const B: usize = 0xb;
    pub const C: usize = 0xc;
    pub const D: usize = 0xd;
    pub const CENTURY: usize = 0x32;
}

/// Register A: the rate selector, and the divider's value that runs.
pub(super) const RATE: u8 = 0x0f;
pub(super) const RESET_A: u8 = 0x26;
pub(super) const UPDATING: u8 = 0x80;

/// Register B.
pub(super) mod b {
    pub const SET: u8 = 0x80;
    pub const BINARY: u8 = 0x04;
    pub const HOURS_24: u8 = 0x02;
    /// Interrupt enables and square wave, which a reset clears.
    pub const RESET: u8 = 0x78;
}

/// Register C; the enables in register B are at the same places.
pub(super) mod c {
    pub const IRQ: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
    pub const ALL: u8 = PERIODIC | ALARM | UPDATE;
}

/// Register D: the battery is good.
pub(super) const VALID: u8 = 0x80;

#[derive(Clone, Debug)]
pub(super) struct Regs {
    pub(super) index: u8,
    pub(super) nmi_masked: bool,
    pub(super) cmos: [u8; CMOS_SIZE],
    pub(super) offset: i64,
    pub(super) seen_second: i64,
    pub(super) seen_tick: u64,
}

/// Both clocks at once.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) guest_ns: u64,
    pub(super) realtime_ns: u64,
}

impl Now {
    pub(super) fn tick(self) -> u64 {
        mul_div(self.guest_ns, 32_768, NS)
    }
    pub(super) fn realtime_s(self) -> i64 {
        (self.realtime_ns / NS) as i64
    }
    pub(super) fn fraction(self) -> u64 {
        self.realtime_ns % NS
    }
}

impl Regs {
    pub(super) fn halted(&self) -> bool {
        self.cmos[reg::B] & b::SET != 0 || self.cmos[reg::A] & 0x60 == 0x60
    }

    pub(super) fn format(&self) -> Format {
        let b = self.cmos[reg::B];
        Format { binary: b & b::BINARY != 0, hours_24: b & b::HOURS_24 != 0 }
    }

    pub(super) fn second(&self, now: Now) -> i64 {
        now.realtime_s().saturating_add(self.offset)
    }

    pub(super) fn irq(&self) -> bool {
        self.cmos[reg::C] & self.cmos[reg::B] & c::ALL != 0
    }

    /// An alarm has gone off that interrupts, and is not yet acknowledged.
    pub(super) fn alarm(&self) -> bool {
        self.cmos[reg::C] & self.cmos[reg::B] & c::ALARM != 0
    }

    /// Ticks of 32.768 kHz between periodic interrupts (data sheet, table 5).
    pub(super) fn period(&self) -> Option<u64> {
        match self.cmos[reg::A] & RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Writes the time into its registers.
    pub(super) fn show(&mut self, now: Now) {
        let (date, format) = (Date::from_unix(self.second(now)), self.format());
        self.cmos[reg::SECOND] = format.encode(date.second);
        self.cmos[reg::MINUTE] = format.encode(date.minute);
        self.cmos[reg::HOUR] = format.encode_hour(date.hour);
        self.cmos[reg::WEEKDAY] = format.encode(date.weekday());
        self.cmos[reg::DAY] = format.encode(date.day);
        self.cmos[reg::MONTH] = format.encode(date.month);
        self.cmos[reg::YEAR] = format.encode(date.year);
        self.cmos[reg::CENTURY] = format.encode(date.year / 100);
    }

    /// Makes the registers' time the clock's.
    pub(super) fn adopt(&mut self, now: Now) {
        let (format, cmos) = (self.format(), &self.cmos);
        let date = Date {
            year: format.decode(cmos[reg::CENTURY]) * 100 + format.decode(cmos[reg::YEAR]),
            month: format.decode(cmos[reg::MONTH]),
            day: format.decode(cmos[reg::DAY]),
            hour: format.decode_hour(cmos[reg::HOUR]),
            minute: format.decode(cmos[reg::MINUTE]),
            second: format.decode(cmos[reg::SECOND]),
        };
        self.offset = date.to_unix().saturating_sub(now.realtime_s());
        self.seen_second = self.second(now);
    }

    /// The first second after `after` at which the alarm goes off. An alarm register from 0xc0
    /// on matches everything.
    pub(super) fn next_alarm(&self, after: i64) -> Option<i64> {
        let format = self.format();
        let matches = |reg: usize, byte: u8| self.cmos[reg] >= 0xc0 || self.cmos[reg] == byte;
        let (midnight, time) = (after.div_euclid(DAY) * DAY, after.rem_euclid(DAY));
        for hour in 0..48 {
            let at_hour = hour * 3600;
            let hour_matches = matches(reg::HOUR_ALARM, format.encode_hour(hour % 24));
            if !hour_matches || at_hour + 3599 <= time {
                continue;
            }
            for minute in 0..60 {
                let at_minute = at_hour + minute * 60;
                let minute_matches = matches(reg::MINUTE_ALARM, format.encode(minute));
                if !minute_matches || at_minute + 59 <= time {
                    continue;
                }
                let second = (0..60).find(|second| {
                    at_minute + second > time && matches(reg::SECOND_ALARM, format.encode(*second))
                });
                if let Some(second) = second {
                    return Some(midnight + at_minute + second);
                }
            }
        }
        None
    }

    /// Brings register C up to date.
    pub(super) fn look(&mut self, now: Now) {
        let (second, tick) = (self.second(now), now.tick());
        if !self.halted() && second > self.seen_second {
            self.cmos[reg::C] |= c::UPDATE;
            if self.next_alarm(self.seen_second).is_some_and(|alarm| alarm <= second) {
                self.cmos[reg::C] |= c::ALARM;
            }
        }
        if self.period().is_some_and(|period| tick / period > self.seen_tick / period) {
            self.cmos[reg::C] |= c::PERIODIC;
        }
        (self.seen_second, self.seen_tick) = (second, tick);
    }

    /// Guest nanoseconds of the next event that would raise the interrupt.
    pub(super) fn next_event(&self, now: Now) -> Option<u64> {
        let cmos = &self.cmos;
        let wanted = |bit: u8| cmos[reg::B] & bit != 0 && cmos[reg::C] & bit == 0;
        let after_seconds = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0).saturating_mul(NS);
            now.guest_ns.saturating_add(seconds.saturating_sub(now.fraction()))
        };
        let periodic = self.period().filter(|_| wanted(c::PERIODIC)).map(|period| {
            mul_div((now.tick() / period + 1) * period, NS, 32_768).saturating_add(1)
        });
        let runs = !self.halted();
        let update = (runs && wanted(c::UPDATE)).then(|| after_seconds(1));
        let second = self.second(now);
        let alarm = (runs && wanted(c::ALARM)).then(|| self.next_alarm(second)).flatten();
        let alarm = alarm.map(|at| after_seconds(at.saturating_sub(second)));
        [periodic, update, alarm].into_iter().flatten().min()
    }

    pub(super) fn read(&mut self, now: Now) -> u8 {
        let index = usize::from(self.index);
        match index {
            reg::A if !self.halted() && now.fraction() >= NS - UPDATE_NS => {
                self.cmos[reg::A] | UPDATING
            }
            reg::C => {
                let irq = if self.irq() { c::IRQ } else { 0 };
                std::mem::take(&mut self.cmos[reg::C]) | irq
            }
            reg::D => VALID,
            reg::SECOND | reg::MINUTE | reg::HOUR | reg::WEEKDAY..=reg::YEAR | reg::CENTURY
                if !self.halted() =>
            {
                self.show(now);
                self.cmos[index]
            }
            _ => self.cmos.get(index).copied().unwrap_or(0xff),
        }
    }

    pub(super) fn write(&mut self, value: u8, now: Now) {
        let index = usize::from(self.index);
        let halted = self.halted();
        match index {
            reg::C | reg::D => {}
            reg::A | reg::B => {
                if !halted {
                    self.show(now);
                }
                let value = if index == reg::A { value & !UPDATING } else { value };
                // SET ends update-ended interrupts (data sheet, register B).
                let ends = index == reg::B && value & b::SET != 0;
                self.cmos[index] = if ends { value & !c::UPDATE } else { value };
                if halted && !self.halted() {
                    self.adopt(now);
                }
            }
            reg::SECOND | reg::MINUTE | reg::HOUR | reg::WEEKDAY..=reg::YEAR | reg::CENTURY => {
                if halted {
                    self.cmos[index] = value;
                } else {
                    self.show(now);
                    self.cmos[index] = value;
                    self.adopt(now);
                }
            }
            _ => {
                if let Some(byte) = self.cmos.get_mut(index) {
                    *byte = value;
                }
            }
        }
    }
}
