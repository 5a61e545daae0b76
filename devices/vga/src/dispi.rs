//! Bochs' display interface: modes of any size by eleven registers, as the VGA firmware of Bochs
//! and QEMU, and Linux's `bochs` driver, use them.
//!
//! Registers are reached by an index port 0x1ce and a data port 0x1cf, or in a page of MMIO.

use serde::{Deserialize, Serialize};

pub(crate) const INDEX_PORT: u16 = 0x1ce;
/// The data port for those who keep ports even; for all others it is the one before.
pub(crate) const DATA_PORT_EVEN: u16 = 0x1d0;

/// The interface's version: linear framebuffers, virtual sizes, 8-bit DAC, memory size.
const ID: u16 = 0xb0c5;
const ID_OLDEST: u16 = 0xb0c0;
/// The largest mode.
pub(crate) const X_MAX: u16 = 2560;
pub(crate) const Y_MAX: u16 = 1600;
const BPP_MAX: u16 = 32;

/// Bits of the enable register.
pub(crate) mod enable {
    pub const ENABLED: u16 = 0x01;
    /// The sizes read as the largest that there are.
    pub const CAPABILITIES: u16 = 0x02;
    pub const DAC_8_BITS: u16 = 0x20;
    pub const KEEP_MEMORY: u16 = 0x80;
    pub const ALL: u16 = 0xe3;
}

/// The registers, as they are and as they are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispi {
    pub index: u16,
    pub id: u16,
    pub x: u16,
    pub y: u16,
    pub bpp: u16,
    pub enable: u16,
    pub bank: u16,
    pub virtual_width: u16,
    pub x_offset: u16,
    pub y_offset: u16,
}

impl Default for Dispi {
    fn default() -> Self {
        Self {
            index: 0,
            id: ID,
            x: 640,
            y: 480,
            bpp: 8,
            enable: 0,
            bank: 0,
            virtual_width: 640,
            x_offset: 0,
            y_offset: 0,
        }
    }
}

/// A mode that is on, whose picture lies inside the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) width: u16,
    pub(crate) height: u16,
    pub(crate) bpp: u16,
    /// Bytes from a row to the next.
    pub(crate) pitch: u32,
    /// Of the first pixel.
    pub(crate) start: u32,
    pub(crate) wide_dac: bool,
}

/// Bytes that `pixels` in a row take, a row of 4 bits counted as 8.
fn row_bytes(pixels: u16, bpp: u16) -> u32 {
    u32::from(pixels) * u32::from(bpp.div_ceil(8).max(1))
}

impl Dispi {
    /// The mode that is on; `None` while the VGA's own registers rule.
    pub(crate) fn mode(&self, memory: u32) -> Option<Mode> {
        if self.enable & enable::ENABLED == 0 {
            return None;
        }
        let pitch = row_bytes(self.virtual_width.max(self.x), self.bpp);
        let start = u32::from(self.y_offset)
            .checked_mul(pitch)?
            .checked_add(row_bytes(self.x_offset, self.bpp))?;
        // Of a picture that reaches beyond the memory there are fewer rows.
        let row = row_bytes(self.x, self.bpp);
        let room =
            memory.checked_sub(start)?.checked_sub(row).map(|rest| rest / pitch.max(1) + 1)?;
        let height = self.y.min(u16::try_from(room).unwrap_or(u16::MAX));
        Some(Mode {
            width: self.x,
            height,
            bpp: self.bpp,
            pitch,
            start,
            wide_dac: self.enable & enable::DAC_8_BITS != 0,
        })
    }

    pub(crate) fn read(&self, index: u16, memory: u32) -> u16 {
        let capabilities = self.enable & enable::CAPABILITIES != 0;
        match index {
            0 => self.id,
            1 if capabilities => X_MAX,
            1 => self.x,
            2 if capabilities => Y_MAX,
            2 => self.y,
            3 if capabilities => BPP_MAX,
            3 => self.bpp,
            4 => self.enable,
            5 => self.bank,
            6 => self.virtual_width,
            7 => self.virtual_height(memory),
            8 => self.x_offset,
            9 => self.y_offset,
            10 => u16::try_from(memory >> 16).unwrap_or(u16::MAX),
            _ => 0,
        }
    }

    fn virtual_height(&self, memory: u32) -> u16 {
        let rows = memory / row_bytes(self.virtual_width, self.bpp).max(1);
        u16::try_from(rows).unwrap_or(u16::MAX)
    }

    /// True if a mode was switched on whose memory is to be cleared.
    pub(crate) fn write(&mut self, index: u16, value: u16, memory: u32) -> bool {
        match index {
            0 if (ID_OLDEST..=ID).contains(&value) => self.id = value,
            1 if (1..=X_MAX).contains(&value) => {
                // Rows are whole groups of eight pixels.
                self.x = value.next_multiple_of(8).min(X_MAX);
                self.virtual_width = self.virtual_width.max(self.x);
            }
            2 if (1..=Y_MAX).contains(&value) => self.y = value,
            // The older drivers' 0 means 8.
            3 if matches!(value, 0 | 4 | 8 | 15 | 16 | 24 | 32) => {
                self.bpp = if value == 0 { 8 } else { value };
            }
            4 => return self.switch(value),
            5 => {
                let banks = memory >> 16;
                self.bank = if u32::from(value) < banks { value } else { self.bank };
            }
            6 => {
                let fits = row_bytes(value, self.bpp) <= memory;
                if value >= self.x && fits {
                    self.virtual_width = value;
                }
            }
            8 => self.x_offset = value,
            9 => self.y_offset = value,
            _ => {}
        }
        false
    }

    fn switch(&mut self, value: u16) -> bool {
        let rises = value & !self.enable & enable::ENABLED != 0;
        self.enable = value & enable::ALL;
        if rises {
            self.virtual_width = self.x;
            (self.x_offset, self.y_offset, self.bank) = (0, 0, 0);
        }
        rises && value & enable::KEEP_MEMORY == 0
    }

    /// What a saved state must not have, as no writes lead there.
    pub(crate) fn is_possible(&self) -> bool {
        (ID_OLDEST..=ID).contains(&self.id)
            && (1..=X_MAX).contains(&self.x)
            && (1..=Y_MAX).contains(&self.y)
            && matches!(self.bpp, 4 | 8 | 15 | 16 | 24 | 32)
            && self.enable & !enable::ALL == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u32 = 16 << 20;

    #[test]
    fn a_mode_is_switched_on_as_linux_does_it() {
        let mut dispi = Dispi::default();
        assert_eq!((dispi.read(0, MEMORY), dispi.read(10, MEMORY)), (0xb0c5, 256));
        assert_eq!(dispi.mode(MEMORY), None);
        for (index, value) in
            [(4, 0), (3, 32), (1, 1024), (2, 768), (5, 0), (6, 1024), (8, 0), (9, 0)]
        {
            assert!(!dispi.write(index, value, MEMORY));
        }
        assert!(dispi.write(4, 0x41, MEMORY), "cleared");
        let mode = dispi.mode(MEMORY).unwrap();
        assert_eq!((mode.width, mode.height, mode.pitch, mode.start), (1024, 768, 4096, 0));
        assert_eq!(dispi.read(7, MEMORY), 4096);
        dispi.write(9, 768, MEMORY);
        assert_eq!(dispi.mode(MEMORY).unwrap().start, 768 * 4096);
        assert!(!dispi.write(4, 0xc1, MEMORY), "it is on already");
        dispi.write(4, 0, MEMORY);
        assert!(!dispi.write(4, 0xc1, MEMORY), "to be kept");
    }

    #[test]
    fn limits_are_told_and_kept() {
        let mut dispi = Dispi::default();
        dispi.write(4, 2, MEMORY);
        assert_eq!([1, 2, 3].map(|i| dispi.read(i, MEMORY)), [2560, 1600, 32]);
        dispi.write(4, 0, MEMORY);
        for (index, value) in
            [(1, 0), (1, 2561), (2, 0), (2, 1601), (3, 7), (0, 7), (5, 256), (6, 8)]
        {
            dispi.write(index, value, MEMORY);
        }
        assert_eq!(dispi, Dispi::default());
        dispi.write(1, 1366, MEMORY);
        assert_eq!(dispi.read(1, MEMORY), 1368);
    }

    #[test]
    fn a_picture_ends_where_the_memory_does() {
        let mut dispi = Dispi { x: 2560, y: 1600, bpp: 32, enable: 1, ..Dispi::default() };
        assert_eq!(dispi.mode(MEMORY).unwrap().height, 1600);
        dispi.y_offset = 1600;
        assert_eq!(dispi.mode(MEMORY).unwrap().height, 38);
        dispi.y_offset = u16::MAX;
        assert_eq!(dispi.mode(MEMORY), None);
        dispi = Dispi { virtual_width: u16::MAX, x_offset: u16::MAX, ..dispi };
        assert_eq!(dispi.mode(MEMORY), None);
    }
}
