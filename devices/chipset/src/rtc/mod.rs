//! The MC146818A real-time clock with 128 bytes of CMOS memory, and the NMI mask that shares
//! its index port.
//!
//! The time is the host's realtime plus what the guest made of it. Time, RAM and modes have a
//! battery: a reset keeps them.

mod calendar;
mod regs;

use crate::{
    Config,
    bytes::{BytePorts, Bytewise, lock},
};
use device::{Clock, Device, LineRef, Timer, Wiring};
use regs::{CMOS_SIZE, Now, RESET_A, Regs, UPDATING, VALID, b, c, reg};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

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

pub struct Rtc {
    regs: Mutex<Regs>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Arc<dyn Timer>>,
    outputs: Outputs,
}

/// Where its interrupt goes, and its alarm alone.
#[derive(Clone)]
pub(crate) struct Outputs {
    pub(crate) irq: LineRef,
    pub(crate) alarm: LineRef,
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
    pub(crate) fn build(config: &Config, outputs: Outputs, wiring: &mut Wiring) -> Arc<Self> {
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
        let rtc = Arc::new(Self { regs: Mutex::new(regs), clock, timer: OnceLock::new(), outputs });
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

    /// The lock is held while the lines are driven: neither interrupt controllers nor ACPI's
    /// registers call this.
    fn with<T>(&self, change: impl FnOnce(&mut Regs, Now) -> T) -> T {
        let mut regs = lock(&self.regs);
        let now = self.now();
        regs.look(now);
        let result = change(&mut regs, now);
        self.outputs.irq.set(regs.irq());
        self.outputs.alarm.set(regs.alarm());
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
        self.outputs.irq.restore(regs.irq());
        self.outputs.alarm.restore(regs.alarm());
        self.arm(&regs, self.now());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
