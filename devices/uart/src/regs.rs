//! The chip itself: registers, FIFO and interrupt sources (PC16550D, section 8).

use crate::After;
use std::collections::VecDeque;

/// Interrupt enable.
pub(crate) mod ier {
    pub const RECEIVED: u8 = 1;
    pub const THR_EMPTY: u8 = 2;
    pub const LINE_STATUS: u8 = 4;
    pub const MODEM_STATUS: u8 = 8;
    pub const ALL: u8 = 0xf;
}

/// Interrupt identification: what a read answers, in order of priority.
mod iir {
    pub const LINE_STATUS: u8 = 6;
    pub const RECEIVED: u8 = 4;
    pub const TIMEOUT: u8 = 0xc;
    pub const THR_EMPTY: u8 = 2;
    pub const MODEM_STATUS: u8 = 0;
    pub const NONE: u8 = 1;
    pub const FIFO: u8 = 0xc0;
}

pub(crate) mod fcr {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RX: u8 = 2;
    /// What stays: enable and trigger level.
    pub const KEPT: u8 = 0xc1;
}

mod lcr {
    pub const DLAB: u8 = 0x80;
}

pub(crate) mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    /// On a PC this gates the interrupt onto the bus.
    pub const OUT2: u8 = 8;
    pub const LOOP: u8 = 0x10;
    pub const ALL: u8 = 0x1f;
}

pub(crate) mod lsr {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const BREAK: u8 = 0x10;
    /// Overrun, parity, framing, break.
    pub const ERRORS: u8 = 0x1e;
    /// Those that travel with a byte.
    pub const BYTE_ERRORS: u8 = 0x1c;
    /// THR and transmitter empty.
    pub const EMPTY: u8 = 0x60;
    pub const FIFO_ERROR: u8 = 0x80;
}

mod msr {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
}

pub(crate) const FIFO: usize = 16;
/// 1.8432 MHz / 16 / 12: 9600 baud, as firmware leaves it.
const DIVISOR: u16 = 12;

#[derive(Clone, Debug)]
pub(crate) struct Regs {
    pub(crate) ier: u8,
    pub(crate) fcr: u8,
    pub(crate) lcr: u8,
    pub(crate) mcr: u8,
    pub(crate) scr: u8,
    pub(crate) divisor: u16,
    /// Bytes with their error flags.
    pub(crate) rx: VecDeque<(u8, u8)>,
    pub(crate) overrun: bool,
    /// The low half of the MSR: which inputs changed since it was read.
    pub(crate) changed: u8,
    /// The THR became empty and that was not yet seen in the IIR.
    pub(crate) thr_empty: bool,
    /// A sender was refused and is to be told of room.
    waiting: bool,
}

impl Default for Regs {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            divisor: DIVISOR,
            rx: VecDeque::with_capacity(FIFO),
            overrun: false,
            changed: 0,
            thr_empty: true,
            waiting: false,
        }
    }
}

impl Regs {
    fn capacity(&self) -> usize {
        if self.fcr & fcr::ENABLE != 0 { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if self.fcr & fcr::ENABLE == 0 {
            return 1;
        }
        match self.fcr >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The modem inputs: a connected terminal, or the outputs in loopback (8.6.7).
    fn inputs(&self) -> u8 {
        if self.mcr & mcr::LOOP == 0 {
            return msr::CTS | msr::DSR | msr::DCD;
        }
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)]
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |inputs, (_, input)| inputs | input)
    }

    fn line_status(&self) -> u8 {
        let head = self.rx.front().map_or(0, |(_, errors)| lsr::DATA_READY | errors);
        let overrun = if self.overrun { lsr::OVERRUN } else { 0 };
        let fifo = self.fcr & fcr::ENABLE != 0 && self.rx.iter().any(|(_, errors)| *errors != 0);
        lsr::EMPTY | head | overrun | if fifo { lsr::FIFO_ERROR } else { 0 }
    }

    /// The interrupt source of highest priority (table IV of the data sheet).
    fn source(&self) -> u8 {
        let on = |bit| self.ier & bit != 0;
        if on(ier::LINE_STATUS) && self.line_status() & lsr::ERRORS != 0 {
            iir::LINE_STATUS
        } else if on(ier::RECEIVED) && self.rx.len() >= self.trigger() {
            iir::RECEIVED
        } else if on(ier::RECEIVED) && !self.rx.is_empty() {
            // The sender pauses for four characters' time after every byte, which is no time.
            iir::TIMEOUT
        } else if on(ier::THR_EMPTY) && self.thr_empty {
            iir::THR_EMPTY
        } else if on(ier::MODEM_STATUS) && self.changed != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// The level of the interrupt line. OUT2 is not connected in loopback.
    pub(crate) fn line(&self) -> bool {
        self.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2 && self.source() != iir::NONE
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// True once after room came back for a sender who was refused.
    pub(crate) fn take_room(&mut self) -> bool {
        let open = self.mcr & mcr::LOOP == 0 && self.rx.len() < self.capacity();
        open && std::mem::take(&mut self.waiting)
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = match self.mcr & mcr::LOOP {
            0 => self.capacity().saturating_sub(self.rx.len()),
            _ => 0,
        };
        let taken = room.min(bytes.len());
        self.rx.extend(bytes.iter().take(taken).map(|byte| (*byte, 0)));
        self.waiting = taken < bytes.len();
        taken
    }

    pub(crate) fn receive_break(&mut self) {
        if self.mcr & mcr::LOOP == 0 {
            self.shift_in(0, lsr::BREAK);
        }
    }

    /// A byte arrives from a sender who does not wait.
    fn shift_in(&mut self, byte: u8, errors: u8) {
        if self.rx.len() < self.capacity() {
            self.rx.push_back((byte, errors));
            return;
        }
        self.overrun = true;
        // Without the FIFO the new byte takes the old one's place (8.6.3).
        if self.fcr & fcr::ENABLE == 0 {
            self.rx.clear();
            self.rx.push_back((byte, errors));
        }
    }

    pub(crate) fn read(&mut self, reg: u16) -> u8 {
        let dlab = self.lcr & lcr::DLAB != 0;
        match reg {
            0 if dlab => self.divisor.to_le_bytes()[0],
            1 if dlab => self.divisor.to_le_bytes()[1],
            0 => self.rx.pop_front().map_or(0, |(byte, _)| byte),
            1 => self.ier,
            2 => {
                let source = self.source();
                if source == iir::THR_EMPTY {
                    self.thr_empty = false;
                }
                source | if self.fcr & fcr::ENABLE != 0 { iir::FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let status = self.line_status();
                self.overrun = false;
                if let Some((_, errors)) = self.rx.front_mut() {
                    *errors = 0;
                }
                status
            }
            6 => self.inputs() | std::mem::take(&mut self.changed),
            _ => self.scr,
        }
    }

    pub(crate) fn write(&mut self, reg: u16, value: u8, after: &mut After) {
        let dlab = self.lcr & lcr::DLAB != 0;
        match reg {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => {
                if self.mcr & mcr::LOOP == 0 {
                    after.sent = Some(value);
                } else {
                    self.shift_in(value, 0);
                }
                self.thr_empty = true;
            }
            1 => {
                // Enabling the interrupt while the THR is empty raises it (8.6.5).
                if value & !self.ier & ier::THR_EMPTY != 0 {
                    self.thr_empty = true;
                }
                self.ier = value & ier::ALL;
            }
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => self.write_mcr(value),
            7 => self.scr = value,
            // LSR and MSR are read only but for factory tests.
            _ => {}
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & fcr::ENABLE != 0;
        // The other bits are programmed only while the enable bit is written as 1 (8.6.4).
        let value = if value & fcr::ENABLE != 0 { value } else { 0 };
        if toggled || value & fcr::CLEAR_RX != 0 {
            self.rx.clear();
            self.overrun &= !toggled;
        }
        self.fcr = value & fcr::KEPT;
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.inputs();
        self.mcr = value & mcr::ALL;
        let after = self.inputs();
        let both = before ^ after;
        // RI tells of its trailing edge only.
        let ring = before & !after & msr::RI;
        self.changed |= (both & (msr::CTS | msr::DSR | msr::DCD) | ring) >> 4;
    }
}

#[cfg(test)]
mod tests;
