//! ACPI fixed hardware: PM1 event and control blocks, the PM timer, the SCI (ACPI 6.5,
//! section 4.8.3).
//!
//! The clock's alarm has a status of its own here (RTC_STS), which is heard where HPET has taken
//! over the clock's interrupt.

use crate::bytes::{lock, mul_div};
use device::{Clock, Device, Line, LineRef, PioDevice, PowerEvent, PowerSink, Timer, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// PM1a_EVT_BLK, four bytes.
pub const EVENT: u16 = 0x600;
/// PM1a_CNT_BLK, two bytes.
pub const CONTROL: u16 = 0x604;
/// PM_TMR_BLK, four bytes, 32 bits wide.
pub const TIMER: u16 = 0x608;
/// SCI_INT: level-triggered, active high.
pub const SCI_IRQ: usize = 9;
/// SLP_TYP of \_S5.
pub const SLEEP_TYPE_S5: u8 = 5;
pub const TIMER_HZ: u64 = 3_579_545;

/// PM1 status and enable bits.
mod event {
    pub const TIMER: u16 = 1;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const SLEEP_BUTTON: u16 = 1 << 9;
    pub const RTC: u16 = 1 << 10;
    pub const WAKE: u16 = 1 << 15;
    pub const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;
    pub const STATUS: u16 = ENABLES | WAKE;
}

mod control {
    /// There is no SMI, hence no other mode than ACPI's.
    pub const SCI_ENABLE: u16 = 1;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
    /// BM_RLD and SLP_TYP.
    pub const KEPT: u16 = 0x1c02;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmState {
    pub status: u16,
    pub enable: u16,
    pub control: u16,
    /// How often the timer's top bit had changed when the status was last brought up to date.
    pub halves: u64,
}

impl Schema for PmState {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Regs {
    status: u16,
    enable: u16,
    control: u16,
    halves: u64,
}

impl Regs {
    fn sci(&self) -> bool {
        self.status & self.enable & event::ENABLES != 0
    }
}

pub struct Pm {
    regs: Mutex<Regs>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Arc<dyn Timer>>,
    sci: LineRef,
    power: Arc<dyn PowerSink>,
}

impl fmt::Debug for Pm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pm").field("regs", &self.regs).finish_non_exhaustive()
    }
}

impl Pm {
    pub(crate) fn build(wiring: &mut Wiring) -> Arc<Self> {
        let pm = Arc::new(Self {
            regs: Mutex::new(Regs::default()),
            clock: wiring.clock.clone(),
            timer: OnceLock::new(),
            sci: wiring.irq(SCI_IRQ),
            power: wiring.power.clone(),
        });
        let weak = Arc::downgrade(&pm);
        let timer = wiring.timers.create(Arc::new(move |_| {
            if let Some(pm) = weak.upgrade() {
                pm.with(|_| ());
            }
        }));
        let _ = pm.timer.set(timer);
        wiring.claim_ports("acpi_pm", EVENT..=TIMER + 3, pm.clone());
        wiring.devices.push(pm.clone());
        pm
    }

    /// The operator presses the power button.
    pub fn power_button(&self) {
        self.with(|regs| regs.status |= event::POWER_BUTTON);
    }

    /// The operator presses the sleep button.
    pub fn sleep_button(&self) {
        self.with(|regs| regs.status |= event::SLEEP_BUTTON);
    }

    /// Where the clock's alarm leads to.
    pub(crate) fn alarm_line(self: &Arc<Self>) -> LineRef {
        Arc::new(Alarm { pm: self.clone(), level: AtomicBool::new(false) })
    }

    /// The timer's count, not yet cut to 32 bits.
    fn ticks(&self) -> u64 {
        mul_div(self.clock.now_ns(), TIMER_HZ, 1_000_000_000)
    }

    /// Brings the timer's status up to date, changes the registers, drives the SCI. The lock
    /// is held while the line is driven; interrupt controllers call no device.
    fn with<T>(&self, change: impl FnOnce(&mut Regs) -> T) -> T {
        let mut regs = lock(&self.regs);
        let halves = self.ticks() >> 31;
        if halves != regs.halves {
            regs.halves = halves;
            regs.status |= event::TIMER;
        }
        let result = change(&mut regs);
        self.sci.set(regs.sci());
        self.arm(&regs);
        result
    }

    /// The status needs an alarm only while it can interrupt.
    fn arm(&self, regs: &Regs) {
        let wanted = regs.enable & event::TIMER != 0 && regs.status & event::TIMER == 0;
        let next = mul_div((regs.halves + 1) << 31, 1_000_000_000, TIMER_HZ).saturating_add(1);
        if let Some(timer) = self.timer.get() {
            timer.arm(wanted.then_some(next));
        }
    }

    fn read_byte(&self, regs: &Regs, ticks: u64, port: u16) -> u8 {
        let value: u32 = match port & !3 {
            EVENT => u32::from(regs.status) | u32::from(regs.enable) << 16,
            CONTROL => u32::from(regs.control | control::SCI_ENABLE),
            TIMER => ticks as u32,
            _ => 0,
        };
        value.to_le_bytes()[usize::from(port & 3)]
    }

    /// True if the machine goes off.
    fn write_byte(regs: &mut Regs, port: u16, value: u8) -> bool {
        let (word, mask) = match port & 1 {
            0 => (u16::from(value), 0x00ff),
            _ => (u16::from(value) << 8, 0xff00),
        };
        match port & !1 {
            EVENT => regs.status &= !word,
            port if port == EVENT + 2 => {
                regs.enable = (regs.enable & !mask | word) & event::ENABLES;
            }
            CONTROL => {
                regs.control = (regs.control & !mask | word) & control::KEPT;
                let sleep = (regs.control >> 10 & 7) as u8;
                return word & control::SLEEP_ENABLE != 0 && sleep == SLEEP_TYPE_S5;
            }
            _ => {}
        }
        false
    }
}

/// Sets RTC_STS when it rises (ACPI 6.5, table 4.10). Its level is its source's to restore.
struct Alarm {
    pm: Arc<Pm>,
    level: AtomicBool,
}

impl Line for Alarm {
    fn set(&self, level: bool) {
        if level && !self.level.swap(level, Relaxed) {
            self.pm.with(|regs| regs.status |= event::RTC);
        }
        self.level.store(level, Relaxed);
    }

    fn restore(&self, level: bool) {
        self.level.store(level, Relaxed);
    }
}

impl PioDevice for Pm {
    fn read(&self, port: u16, data: &mut [u8]) {
        let ticks = self.ticks();
        if port == TIMER {
            // Clock sources read it often: no lock.
            data.iter_mut().zip((ticks as u32).to_le_bytes()).for_each(|(to, from)| *to = from);
            return;
        }
        self.with(|regs| {
            for (i, byte) in (0u16..).zip(data) {
                *byte = self.read_byte(regs, ticks, port.wrapping_add(i));
            }
        });
    }

    fn write(&self, port: u16, data: &[u8]) {
        let off = self.with(|regs| {
            let bytes = (0u16..).zip(data);
            bytes.fold(false, |off, (i, byte)| {
                off | Self::write_byte(regs, port.wrapping_add(i), *byte)
            })
        });
        if off {
            self.power.request(PowerEvent::PowerOff);
        }
    }
}

impl Device for Pm {
    fn name(&self) -> String {
        "acpi_pm".into()
    }

    /// The timer counts guest time, so it does not start again.
    fn reset(&self) {
        self.with(|regs| *regs = Regs { halves: regs.halves, ..Regs::default() });
    }

    fn save(&self, to: &mut Writer) {
        let regs = lock(&self.regs);
        let Regs { status, enable, control, halves } = *regs;
        to.put(0, &PmState { status, enable, control, halves });
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let PmState { status, enable, control, halves } = from.take(0)?;
        if status & !event::STATUS != 0
            || enable & !event::ENABLES != 0
            || control & !control::KEPT != 0
            || halves >> 32 != 0
        {
            return Err(malformed::<PmState>("a register has bits that are not there"));
        }
        let mut regs = lock(&self.regs);
        *regs = Regs { status, enable, control, halves };
        self.sci.restore(regs.sci());
        self.arm(&regs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::fake::{FakeTime, Recorder, wiring};

    fn board() -> (Arc<Pm>, FakeTime, Arc<Recorder>) {
        let (time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
        let mut wiring = wiring(&time, &sink);
        wiring.irqs = vec![sink.clone(); 16];
        (Pm::build(&mut wiring), time, sink)
    }

    fn read(pm: &Pm, port: u16) -> u32 {
        let mut data = [0; 4];
        pm.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_timer_counts_and_tells_its_top_bit() {
        let (pm, time, sink) = board();
        time.advance(1_000_000_000);
        assert_eq!(read(&pm, TIMER), 3_579_545);
        pm.write(EVENT + 2, &[1, 0]);
        assert!(!sink.level());
        time.advance(600_000_000_000);
        assert!(sink.level());
        assert_eq!(read(&pm, EVENT), 0x0001_0001);
        assert_ne!(read(&pm, TIMER) & 1 << 31, 0);
        pm.write(EVENT, &[1, 0]);
        assert!(!sink.level());
        time.advance(600_000_000_000);
        assert!(sink.level(), "the top bit fell");
    }

    #[test]
    fn buttons_interrupt_until_cleared() {
        for bit in [1, 2] {
            let (pm, _, sink) = board();
            if bit == 1 {
                pm.power_button()
            } else {
                pm.sleep_button()
            }
            assert!(!sink.level(), "not enabled");
            pm.write(EVENT + 2, &[0, bit]);
            assert!(sink.level());
            pm.write(EVENT, &[0, bit]);
            assert!(!sink.level());
        }
    }

    #[test]
    fn an_alarm_is_told_once_when_it_rises() {
        let (pm, _, sink) = board();
        let alarm = pm.alarm_line();
        pm.write(EVENT + 2, &[0, 4]);
        alarm.set(true);
        assert!(sink.level());
        pm.write(EVENT, &[0, 4]);
        alarm.set(true);
        assert!(!sink.level(), "the alarm stays, and was told");
        alarm.set(false);
        alarm.restore(true);
        alarm.set(true);
        assert_eq!(
            (sink.level(), read(&pm, EVENT) >> 10 & 1),
            (false, 0),
            "told before it was saved"
        );
        alarm.set(false);
        alarm.set(true);
        assert_eq!((sink.level(), read(&pm, EVENT) >> 10 & 1), (true, 1));
    }

    #[test]
    fn sleep_type_5_is_off_and_others_are_not() {
        let (pm, _, sink) = board();
        assert_eq!(read(&pm, CONTROL) & 1, 1, "ACPI mode");
        pm.write(CONTROL, &[1, 1 << 2 | 1 << 5]);
        pm.write(CONTROL, &[1, 5 << 2]);
        assert_eq!(sink.take_power(), []);
        pm.write(CONTROL, &[1, 5 << 2 | 1 << 5]);
        assert_eq!(sink.take_power(), [PowerEvent::PowerOff]);
        assert_eq!(read(&pm, CONTROL) & 0x2000, 0);
    }
}
