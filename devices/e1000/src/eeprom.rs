//! The EEPROM: 64 words, read through a register or bit by bit over its four wires (SDM, 5).
//!
//! The wires are those of a 93C46: what is shifted in begins with a one, then come two bits of
//! operation and six of address. Nothing can be written to it.

use nic::Mac;
use serde::{Deserialize, Serialize};

pub(crate) const WORDS: usize = 64;
/// Words (SDM, table 5-2).
const CONTROL_1: usize = 0x0a;
const SUBSYSTEM: usize = 0x0b;
const SUBSYSTEM_VENDOR: usize = 0x0c;
const DEVICE: usize = 0x0d;
const VENDOR: usize = 0x0e;
const CONTROL_2: usize = 0x0f;
const CHECKSUM: usize = 0x3f;
/// What all words add up to.
const SUM: u16 = 0xbaba;
/// The EEPROM is valid; IDs are to be taken from it.
const CONTROL_1_VALUE: u16 = 0x4003;
/// The controller asks for pauses, and heeds them.
const CONTROL_2_VALUE: u16 = 0x3000;

/// Bits of EECD (SDM, 13.4.3).
mod eecd {
    pub const CLOCK: u32 = 1;
    pub const SELECT: u32 = 1 << 1;
    pub const IN: u32 = 1 << 2;
    pub const OUT: u32 = 1 << 3;
    pub const FLASH: u32 = 3 << 4;
    pub const REQUEST: u32 = 1 << 6;
    pub const GRANT: u32 = 1 << 7;
    pub const PRESENT: u32 = 1 << 8;
    pub const WRITABLE: u32 = CLOCK | SELECT | IN | FLASH | REQUEST;
    /// Writing to the flash is disabled.
    pub const RESET: u32 = 1 << 4;
}

/// Bits of EERD (SDM, 13.4.4).
const START: u32 = 1;
const DONE: u32 = 1 << 4;

/// Bits of a command after its leading one.
const COMMAND: u8 = 8;
const READ: u8 = 0b10;

/// What the wires have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wires {
    /// The register's writable bits.
    pub register: u32,
    /// Bits of the command that are shifted in, after the leading one; `None` before that.
    pub command: Option<(u8, u8)>,
    /// The word that is shifted out, the next bit of it, and its address.
    pub output: Option<(u16, u8, u8)>,
    /// What the last clock put on the output.
    pub level: bool,
}

impl Default for Wires {
    fn default() -> Self {
        Self { register: eecd::RESET, command: None, output: None, level: true }
    }
}

/// What is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Eeprom([u16; WORDS]);

impl Eeprom {
    pub(crate) fn new(mac: Mac, subsystem_vendor: u16, subsystem: u16) -> Self {
        let mut words = [0; WORDS];
        for (word, pair) in words.iter_mut().zip(mac.0.as_chunks::<2>().0) {
            *word = u16::from_le_bytes(*pair);
        }
        words[CONTROL_1] = CONTROL_1_VALUE;
        words[SUBSYSTEM] = subsystem;
        words[SUBSYSTEM_VENDOR] = subsystem_vendor;
        words[DEVICE] = crate::DEVICE;
        words[VENDOR] = crate::VENDOR;
        words[CONTROL_2] = CONTROL_2_VALUE;
        let sum = words.iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        words[CHECKSUM] = SUM.wrapping_sub(sum);
        Self(words)
    }

    fn word(&self, address: u8) -> u16 {
        self.0.get(usize::from(address) % WORDS).copied().unwrap_or(0)
    }

    /// What EERD holds after this was written to it.
    pub(crate) fn read_by_register(&self, value: u32) -> u32 {
        if value & START == 0 {
            return value;
        }
        let address = (value >> 8) as u8;
        u32::from(self.word(address)) << 16 | u32::from(address) << 8 | DONE
    }
}

impl Wires {
    pub(crate) fn read(&self) -> u32 {
        let mut value = self.register | eecd::PRESENT;
        if value & eecd::REQUEST != 0 {
            value |= eecd::GRANT;
        }
        if self.level {
            value |= eecd::OUT;
        }
        value
    }

    pub(crate) fn write(&mut self, value: u32, eeprom: &Eeprom) {
        let before = self.register;
        self.register = value & eecd::WRITABLE;
        if value & eecd::SELECT == 0 {
            // Not selected, it is ready.
            (self.command, self.output, self.level) = (None, None, true);
        } else if !before & value & eecd::CLOCK != 0 {
            self.clock(value & eecd::IN != 0, eeprom);
        }
    }

    /// The clock rises.
    fn clock(&mut self, input: bool, eeprom: &Eeprom) {
        if let Some((word, left, address)) = self.output {
            let left = left.wrapping_sub(1) & 0xf;
            self.level = word >> left & 1 != 0;
            // Behind a word the next one follows.
            let next = address.wrapping_add(1);
            self.output = if left == 0 {
                Some((eeprom.word(next), 0, next))
            } else {
                Some((word, left, address))
            };
            return;
        }
        let Some((bits, count)) = self.command else {
            self.command = input.then_some((0, 0));
            return;
        };
        if count >= COMMAND {
            // A command that is none of ours goes on until it is deselected.
            return;
        }
        let bits = bits << 1 | u8::from(input);
        self.command = Some((bits, count + 1));
        if count + 1 == COMMAND && bits >> 6 == READ {
            let address = bits & 0x3f;
            // A zero goes before the word.
            self.level = false;
            self.output = Some((eeprom.word(address), 0, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eeprom() -> Eeprom {
        Eeprom::new(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]), 0x8086, 0x001e)
    }

    /// Shifts bits in, the highest first, as a driver does.
    fn shift_in(wires: &mut Wires, eeprom: &Eeprom, bits: u32, count: u32) {
        for n in (0..count).rev() {
            let input = (bits >> n & 1) << 2;
            for clock in [0, 1, 0] {
                wires.write(0x42 | input | clock, eeprom);
            }
        }
    }

    fn shift_out(wires: &mut Wires, eeprom: &Eeprom) -> u16 {
        let mut word = 0;
        for _ in 0..16 {
            wires.write(0x43, eeprom);
            word = word << 1 | (wires.read() >> 3 & 1) as u16;
            wires.write(0x42, eeprom);
        }
        word
    }

    #[test]
    fn words_add_up() {
        let sum = eeprom().0.iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        assert_eq!(sum, 0xbaba);
    }

    #[test]
    fn words_are_read_by_register_and_by_wire() {
        let eeprom = eeprom();
        assert_eq!(eeprom.read_by_register(0x0101), 0x1200_0110);
        assert_eq!(eeprom.read_by_register(0x0100), 0x0100, "not without the start bit");
        let mut wires = Wires::default();
        wires.write(0x40, &eeprom);
        assert_eq!(wires.read() & 0x1c0, 0x1c0, "present and granted");
        for (address, expected) in [(0, 0x5452), (1, 0x1200), (2, 0x5634), (0x0d, 0x100e)] {
            wires.write(0x40, &eeprom);
            wires.write(0x42, &eeprom);
            // Zeroes before the leading one mean nothing.
            shift_in(&mut wires, &eeprom, 0b110 << 6 | address, 11);
            assert_eq!(wires.read() & 8, 0);
            assert_eq!(shift_out(&mut wires, &eeprom), expected, "{address}");
        }
        // The next word follows.
        assert_eq!(shift_out(&mut wires, &eeprom), 0x8086);
    }

    #[test]
    fn it_cannot_be_written() {
        let eeprom = eeprom();
        let mut wires = Wires::default();
        wires.write(0x42, &eeprom);
        shift_in(&mut wires, &eeprom, 0b101 << 6 | 1, 9);
        shift_in(&mut wires, &eeprom, 0xffff, 16);
        assert_eq!(wires.read() & 8, 8, "ready");
        assert_eq!(eeprom, self::eeprom());
    }
}
