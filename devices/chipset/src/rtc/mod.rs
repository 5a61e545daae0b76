//! The MC146818A real-time clock with 128 bytes of CMOS memory, and the NMI mask that shares
//! its index port.
//!
//! The time is the host's realtime plus what the guest made of it. Time, RAM and modes have a
//! battery: a reset keeps them.

mod calendar;

use crate::{
    Config,
    bytes::{BytePorts, Bytewise, lock, mul_div},
};
use calendar::{DAY, Date, Format};
use device::{Clock, Device, LineRef, Timer, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

const NS: u64 = 1_000_000_000;
/// Register A's UIP bit is set so long before an update.
const UPDATE_NS: u64 = 244_000;
const CMOS_SIZE: usize = 128;

/// Register numbers.
mod reg {
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
const RATE: u8 = 0x0f;
const RESET_A: u8 = 0x26;
const UPDATING: u8 = 0x80;

/// Register B.
mod b {
    pub const SET: u8 = 0x80;
    pub const BINARY: u8 = 0x04;
    pub const HOURS_24: u8 = 0x02;
    /// Interrupt enables and square wave, which a reset clears.
    pub const RESET: u8 = 0x78;
}

/// Register C; the enables in register B are at the same places.
mod c {
    pub const IRQ: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
    pub const ALL: u8 = PERIODIC | ALARM | UPDATE;
}

/// Register D: the battery is good.
const VALID: u8 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcState {
    pub index: u8,
    pub nmi_masked: bool,
    /// All registers and the RAM; those of the time are meaningful while updates are halted,
    /// and register C without its IRQF.
    pub cmos: Vec<u8>,
    /// Seconds that the guest's time is ahead of realtime.
    pub offset: i64,
    /// The guest second and the 32.768 kHz tick up to which flags are up to date.
    pub seen_second: i64,
    pub seen_tick: u64,
}

impl Schema for RtcState {
    const KIND: &'static str = "rtc-mc146818";
    const VERSION: u16 = 1;
}

#[derive(Clone, Debug)]
struct Regs {
    index: u8,
    nmi_masked: bool,
    cmos: [u8; CMOS_SIZE],
    offset: i64,
    seen_second: i64,
    seen_tick: u64,
}

/// Both clocks at once.
#[derive(Clone, Copy)]
struct Now {
    guest_ns: u64,
    realtime_ns: u64,
}

impl Now {
    fn tick(self) -> u64 {
        mul_div(self.guest_ns, 32_768, NS)
    }
    fn realtime_s(self) -> i64 {
        (self.realtime_ns / NS) as i64
    }
    fn fraction(self) -> u64 {
        self.realtime_ns % NS
    }
}

impl Regs {
    fn halted(&self) -> bool {
        self.cmos[reg::B] & b::SET != 0 || self.cmos[reg::A] & 0x60 == 0x60
    }

    fn format(&self) -> Format {
        let b = self.cmos[reg::B];
        Format { binary: b & b::BINARY != 0, hours_24: b & b::HOURS_24 != 0 }
    }

    fn second(&self, now: Now) -> i64 {
        now.realtime_s().saturating_add(self.offset)
    }

    fn irq(&self) -> bool {
        self.cmos[reg::C] & self.cmos[reg::B] & c::ALL != 0
    }

    /// Ticks of 32.768 kHz between periodic interrupts (data sheet, table 5).
    fn period(&self) -> Option<u64> {
        match self.cmos[reg::A] & RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Writes the time into its registers.
    fn show(&mut self, now: Now) {
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
    fn adopt(&mut self, now: Now) {
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
    fn next_alarm(&self, after: i64) -> Option<i64> {
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
    fn look(&mut self, now: Now) {
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
    fn next_event(&self, now: Now) -> Option<u64> {
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

    fn read(&mut self, now: Now) -> u8 {
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

    fn write(&mut self, value: u8, now: Now) {
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

pub struct Rtc {
    regs: Mutex<Regs>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Arc<dyn Timer>>,
    irq: LineRef,
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc").field("regs", &self.regs).finish_non_exhaustive()
    }
}

/// Memory sizes where SeaBIOS and its like look for them.
fn cmos(config: &Config) -> [u8; CMOS_SIZE] {
    let mut cmos = [0; CMOS_SIZE];
    let mut put = |at: usize, value: u64, limit: u64, bytes: usize| {
        let value = value.min(limit).to_le_bytes();
        cmos[at..at + bytes].copy_from_slice(&value[..bytes]);
    };
    let above_1m = config.memory_low.saturating_sub(1 << 20) >> 10;
    put(0x15, (config.memory_low >> 10).min(640), 640, 2);
    put(0x17, above_1m, 0xffff, 2);
    put(0x30, above_1m, 0xffff, 2);
    put(0x34, config.memory_low.saturating_sub(16 << 20) >> 16, 0xffff, 2);
    put(0x5b, config.memory_high >> 16, 0xff_ffff, 3);
    cmos[reg::A] = RESET_A;
    cmos[reg::B] = b::HOURS_24;
    cmos[reg::D] = VALID;
    cmos
}

impl Rtc {
    pub(crate) fn build(config: &Config, wiring: &mut Wiring) -> Arc<Self> {
        let mut regs = Regs {
            index: 0,
            nmi_masked: false,
            cmos: cmos(config),
            offset: 0,
            seen_second: 0,
            seen_tick: 0,
        };
        let clock = wiring.clock.clone();
        let now = Now { guest_ns: clock.now_ns(), realtime_ns: clock.realtime_ns() };
        (regs.seen_second, regs.seen_tick) = (now.realtime_s(), now.tick());
        let irq = wiring.irq(8);
        let rtc = Arc::new(Self { regs: Mutex::new(regs), clock, timer: OnceLock::new(), irq });
        let weak = Arc::downgrade(&rtc);
        let timer = wiring.timers.create(Arc::new(move |_| {
            if let Some(rtc) = weak.upgrade() {
                rtc.with(|_, _| ());
            }
        }));
        let _ = rtc.timer.set(timer);
        wiring.claim_ports("rtc", 0x70..=0x71, Arc::new(Bytewise(rtc.clone())));
        wiring.devices.push(rtc.clone());
        rtc
    }

    /// Bit 7 of port 0x70: NMIs of the board are masked.
    pub fn nmi_masked(&self) -> bool {
        lock(&self.regs).nmi_masked
    }

    fn now(&self) -> Now {
        Now { guest_ns: self.clock.now_ns(), realtime_ns: self.clock.realtime_ns() }
    }

    /// The lock is held while the line is driven; interrupt controllers call no device.
    fn with<T>(&self, change: impl FnOnce(&mut Regs, Now) -> T) -> T {
        let mut regs = lock(&self.regs);
        let now = self.now();
        regs.look(now);
        let result = change(&mut regs, now);
        self.irq.set(regs.irq());
        self.arm(&regs, now);
        result
    }

    fn arm(&self, regs: &Regs, now: Now) {
        if let Some(timer) = self.timer.get() {
            timer.arm(regs.next_event(now));
        }
    }
}

impl BytePorts for Rtc {
    fn read_byte(&self, port: u16) -> Option<u8> {
        (port == 0x71).then(|| self.with(Regs::read))
    }

    fn write_byte(&self, port: u16, value: u8) {
        match port {
            0x70 => {
                let mut regs = lock(&self.regs);
                (regs.index, regs.nmi_masked) = (value & 0x7f, value & 0x80 != 0);
            }
            0x71 => self.with(|regs, now| regs.write(value, now)),
            _ => {}
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> String {
        "rtc".into()
    }

    fn reset(&self) {
        self.with(|regs, _| {
            regs.cmos[reg::B] &= !b::RESET;
            regs.cmos[reg::C] = 0;
            (regs.index, regs.nmi_masked) = (0, false);
        });
    }

    fn save(&self, to: &mut Writer) {
        let regs = lock(&self.regs).clone();
        let Regs { index, nmi_masked, cmos, offset, seen_second, seen_tick } = regs;
        let cmos = cmos.to_vec();
        to.put(0, &RtcState { index, nmi_masked, cmos, offset, seen_second, seen_tick });
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let refuse = |reason: &str| malformed::<RtcState>(reason);
        let RtcState { index, nmi_masked, cmos, offset, seen_second, seen_tick } = from.take(0)?;
        let cmos = <[u8; CMOS_SIZE]>::try_from(cmos).map_err(|_| refuse("not 128 bytes"))?;
        if index > 0x7f || cmos[reg::A] & UPDATING != 0 || cmos[reg::C] & !c::ALL != 0 {
            return Err(refuse("a register has a value that the clock has not"));
        }
        let restored = Regs { index, nmi_masked, cmos, offset, seen_second, seen_tick };
        let mut regs = lock(&self.regs);
        *regs = restored;
        self.irq.restore(regs.irq());
        self.arm(&regs, self.now());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
