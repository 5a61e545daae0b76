//! One 8259A (Intel's data sheet 231468), without its wiring.

use serde::{Deserialize, Serialize};

/// Which initialization command word is written next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Init {
    #[default]
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// The chip's registers; also its saved form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chip {
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    /// Levels of the inputs, for finding edges.
    pub lines: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// ICW2: vector of input 0.
    pub base: u8,
    pub icw3: u8,
    pub init: Init,
    /// ICW1 announced ICW4.
    pub wants_icw4: bool,
    /// ICW1: no cascade, hence no ICW3.
    pub single: bool,
    pub auto_eoi: bool,
    pub rotate_on_auto_eoi: bool,
    pub special_mask: bool,
    pub fully_nested: bool,
    /// The next read is a poll.
    pub poll: bool,
    /// The command port reads the ISR instead of the IRR.
    pub read_isr: bool,
    /// The input of highest priority.
    pub first: u8,
}

/// The input that a slave hangs on.
pub(super) const CASCADE: u8 = 2;

impl Chip {
    /// Reset keeps the levels of the inputs, which are others' state.
    pub(super) fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::default() };
    }

    pub(super) fn is_valid(&self) -> bool {
        self.first < 8 && self.base & 7 == 0
    }

    pub(super) fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1u8 << (input & 7);
        let before = self.lines & bit != 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.elcr & bit != 0 {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if level && !before {
            self.irr |= bit;
        }
    }

    /// Sets the level only; requests from edges stay as they are.
    pub(super) fn restore_input(&mut self, input: u8, level: bool) {
        let bit = 1u8 << (input & 7);
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        self.irr = self.irr & !self.elcr | self.lines & self.elcr;
    }

    pub(super) fn write_elcr(&mut self, value: u8) {
        self.elcr = value;
        self.irr = self.irr & !value | self.lines & value;
    }

    /// Position in the order of priority, 0 the highest, of the first input in `set`.
    fn rank(&self, set: u8) -> Option<u8> {
        (0..8).find(|rank| set & 1 << ((rank + self.first) & 7) != 0)
    }

    /// The input that would be acknowledged.
    pub(super) fn request(&self, master: bool) -> Option<u8> {
        let rank = self.rank(self.irr & !self.imr)?;
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        // The slave may interrupt its own service: the master cannot tell its inputs apart.
        if self.fully_nested && master {
            serving &= !(1 << CASCADE);
        }
        let free = self.rank(serving).is_none_or(|busy| rank < busy);
        free.then_some((rank + self.first) & 7)
    }

    /// The processor takes the request of `input`.
    pub(super) fn acknowledge(&mut self, input: u8) {
        let bit = 1u8 << (input & 7);
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.first = (input + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.base & 0xf8 | input & 7
    }

    /// A read in poll mode is an acknowledgement (data sheet, "Poll command").
    pub(super) fn take_poll(&mut self, master: bool) -> u8 {
        self.poll = false;
        match self.request(master) {
            Some(input) => {
                self.acknowledge(input);
                0x80 | input
            }
            None => 0,
        }
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// Edge requests are forgotten: an input must rise again (data sheet, "ICW1").
    fn write_icw1(&mut self, value: u8) {
        let (lines, elcr) = (self.lines, self.elcr);
        *self = Self {
            irr: lines & elcr,
            lines,
            elcr,
            base: self.base,
            init: Init::Icw2,
            wants_icw4: value & 1 != 0,
            single: value & 2 != 0,
            ..Self::default()
        };
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.read_isr = value & 1 != 0;
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            kind @ (1 | 5) => {
                // In special mask mode a masked input's service is not ended so.
                let serving = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(rank) = self.rank(serving) {
                    let input = (rank + self.first) & 7;
                    self.isr &= !(1 << input);
                    if kind == 5 {
                        self.first = (input + 1) & 7;
                    }
                }
            }
            3 => self.isr &= !(1 << input),
            6 => self.first = (input + 1) & 7,
            7 => {
                self.isr &= !(1 << input);
                self.first = (input + 1) & 7;
            }
            _ => {}
        }
    }

    pub(super) fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.wants_icw4 { Init::Icw4 } else { Init::Done };
        match self.init {
            Init::Done => self.imr = value,
            Init::Icw2 => {
                self.base = value & 0xf8;
                self.init = if self.single { after_icw3 } else { Init::Icw3 };
            }
            Init::Icw3 => {
                self.icw3 = value;
                self.init = after_icw3;
            }
            Init::Icw4 => {
                self.fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init = Init::Done;
            }
        }
    }
}

#[cfg(test)]
mod tests;
