//! The registers of a VGA: which bits they have, and how ports reach them.
//!
//! Numbers are those of the IBM VGA's technical reference, which chips since then follow.

use serde::{Deserialize, Serialize};

/// Ports, color addressing.
pub(crate) mod port {
    pub const ATTRIBUTE: u16 = 0x3c0;
    pub const ATTRIBUTE_READ: u16 = 0x3c1;
    /// Miscellaneous output; reads give input status 0.
    pub const MISC: u16 = 0x3c2;
    pub const SEQUENCER: u16 = 0x3c4;
    pub const SEQUENCER_DATA: u16 = 0x3c5;
    pub const PEL_MASK: u16 = 0x3c6;
    /// Where the DAC is read from; reads give the DAC's state.
    pub const DAC_READ: u16 = 0x3c7;
    pub const DAC_WRITE: u16 = 0x3c8;
    pub const DAC_DATA: u16 = 0x3c9;
    pub const FEATURE_READ: u16 = 0x3ca;
    pub const MISC_READ: u16 = 0x3cc;
    pub const GRAPHICS: u16 = 0x3ce;
    pub const GRAPHICS_DATA: u16 = 0x3cf;
    pub const CRTC: u16 = 0x3d4;
    pub const CRTC_DATA: u16 = 0x3d5;
    /// Input status 1; writes go to the feature control register.
    pub const STATUS: u16 = 0x3da;
}

/// CRT controller registers.
pub(crate) mod crtc {
    pub const END_HORIZONTAL: usize = 0x01;
    pub const OVERFLOW: usize = 0x07;
    pub const MAX_SCAN: usize = 0x09;
    pub const CURSOR_START: usize = 0x0a;
    pub const CURSOR_END: usize = 0x0b;
    pub const START_HIGH: usize = 0x0c;
    pub const START_LOW: usize = 0x0d;
    pub const CURSOR_HIGH: usize = 0x0e;
    pub const CURSOR_LOW: usize = 0x0f;
    /// Bit 7 protects registers 0 to 7.
    pub const END_RETRACE: usize = 0x11;
    pub const END_VERTICAL: usize = 0x12;
    pub const OFFSET: usize = 0x13;
    pub const MODE: usize = 0x17;
    pub const LINE_COMPARE: usize = 0x18;
    pub const COUNT: usize = 0x19;
}

/// Sequencer registers.
pub(crate) mod seq {
    pub const CLOCKING: usize = 1;
    pub const MAP_MASK: usize = 2;
    pub const CHARACTER_MAP: usize = 3;
    pub const MEMORY_MODE: usize = 4;
    pub const COUNT: usize = 5;
    /// Bits that are there.
    pub const BITS: [u8; COUNT] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
    /// Of the memory mode: addresses go through the planes in turn.
    pub const CHAIN_4: u8 = 8;
}

/// Graphics controller registers.
pub(crate) mod gc {
    pub const SET_RESET: usize = 0;
    pub const ENABLE_SET_RESET: usize = 1;
    pub const COLOR_COMPARE: usize = 2;
    pub const ROTATE: usize = 3;
    pub const READ_MAP: usize = 4;
    pub const MODE: usize = 5;
    pub const MISC: usize = 6;
    pub const COLOR_CARE: usize = 7;
    pub const BIT_MASK: usize = 8;
    pub const COUNT: usize = 9;
    pub const BITS: [u8; COUNT] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
    /// Of the mode register: even addresses lead to even planes.
    pub const ODD_EVEN: u8 = 0x10;
}

/// Attribute controller registers; the first 16 are the palette.
pub(crate) mod attr {
    pub const MODE: usize = 0x10;
    pub const PLANE_ENABLE: usize = 0x12;
    pub const COLOR_SELECT: usize = 0x14;
    pub const COUNT: usize = 0x15;
    /// Of the index: the palette goes to the screen, which is blank otherwise.
    pub const SCREEN: u8 = 0x20;

    /// Bits that are there.
    pub(crate) fn bits(index: usize) -> u8 {
        match index {
            0..=15 => 0x3f,
            MODE => 0xef,
            0x11 => 0xff,
            PLANE_ENABLE => 0x3f,
            _ => 0x0f,
        }
    }
}

/// The registers, as they are and as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regs {
    pub misc: u8,
    pub feature: u8,
    pub sequencer_index: u8,
    pub sequencer: [u8; seq::COUNT],
    pub graphics_index: u8,
    pub graphics: [u8; gc::COUNT],
    /// With bit 5, which lets the palette through.
    pub attribute_index: u8,
    /// The next write to the attribute port is data.
    pub attribute_data: bool,
    pub attributes: [u8; attr::COUNT],
    pub crtc_index: u8,
    pub crtc: [u8; crtc::COUNT],
    pub dac: Dac,
    /// Reads of input status 1, which shows a retrace now and then.
    pub status_reads: u8,
}

/// The colour palette, and where software is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dac {
    pub mask: u8,
    pub read_index: u8,
    pub write_index: u8,
    /// The component that comes next: 0 to 2.
    pub component: u8,
    /// The last index was for reading.
    pub reading: bool,
    /// What was written of a colour that is not complete.
    pub partial: [u8; 2],
    /// 256 colours: red, green, blue.
    pub colors: Vec<[u8; 3]>,
}

impl Default for Dac {
    fn default() -> Self {
        Self {
            mask: 0xff,
            read_index: 0,
            write_index: 0,
            component: 0,
            reading: false,
            partial: [0; 2],
            colors: vec![[0; 3]; 256],
        }
    }
}

impl Default for Regs {
    fn default() -> Self {
        Self {
            misc: 0,
            feature: 0,
            sequencer_index: 0,
            sequencer: [0; seq::COUNT],
            graphics_index: 0,
            graphics: [0; gc::COUNT],
            attribute_index: 0,
            attribute_data: false,
            attributes: [0; attr::COUNT],
            crtc_index: 0,
            crtc: [0; crtc::COUNT],
            dac: Dac::default(),
            status_reads: 0,
        }
    }
}

impl Dac {
    fn read(&mut self) -> u8 {
        let color = self.colors.get(usize::from(self.read_index)).copied().unwrap_or_default();
        let value = color.get(usize::from(self.component)).copied().unwrap_or(0);
        if self.advance() {
            self.read_index = self.read_index.wrapping_add(1);
        }
        value
    }

    /// A colour takes effect when it is complete.
    fn write(&mut self, value: u8) {
        if let Some(place) = self.partial.get_mut(usize::from(self.component)) {
            *place = value;
        } else if let Some(color) = self.colors.get_mut(usize::from(self.write_index)) {
            *color = [self.partial[0], self.partial[1], value];
        }
        if self.advance() {
            self.write_index = self.write_index.wrapping_add(1);
        }
    }

    /// True after the last component.
    fn advance(&mut self) -> bool {
        self.component = if self.component >= 2 { 0 } else { self.component + 1 };
        self.component == 0
    }
}

impl Regs {
    /// Whether this port is used as the board is set: the CRTC is at 0x3bx or at 0x3dx.
    fn color_port(&self, port: u16) -> Option<u16> {
        match (port, self.misc & 1 != 0) {
            (0x3b0..=0x3bf, true) | (0x3d0..=0x3df, false) => None,
            (0x3b0..=0x3bf, false) => Some(port + 0x20),
            _ => Some(port),
        }
    }

    /// `None` where no register answers.
    pub(crate) fn read(&mut self, port: u16) -> Option<u8> {
        let of = |file: &[u8], index: u8| file.get(usize::from(index)).copied().unwrap_or(0);
        Some(match self.color_port(port)? {
            port::ATTRIBUTE => self.attribute_index,
            port::ATTRIBUTE_READ => of(&self.attributes, self.attribute_index & 0x1f),
            // The sense of a color display, and no interrupt.
            port::MISC => 0x10,
            port::SEQUENCER => self.sequencer_index,
            port::SEQUENCER_DATA => of(&self.sequencer, self.sequencer_index),
            port::PEL_MASK => self.dac.mask,
            port::DAC_READ => {
                if self.dac.reading {
                    3
                } else {
                    0
                }
            }
            port::DAC_WRITE => self.dac.write_index,
            port::DAC_DATA => self.dac.read(),
            port::FEATURE_READ => self.feature,
            port::MISC_READ => self.misc,
            port::GRAPHICS => self.graphics_index,
            port::GRAPHICS_DATA => of(&self.graphics, self.graphics_index),
            port::CRTC => self.crtc_index,
            port::CRTC_DATA => of(&self.crtc, self.crtc_index),
            port::STATUS => {
                self.attribute_data = false;
                self.status_reads = self.status_reads.wrapping_add(1);
                // Software waits for retraces to begin and to end: both come after a few reads.
                match self.status_reads & 0xf {
                    0..8 => 0,
                    8..12 => 0x01,
                    _ => 0x09,
                }
            }
            _ => return None,
        })
    }

    pub(crate) fn write(&mut self, port: u16, value: u8) {
        let Some(port) = self.color_port(port) else { return };
        match port {
            port::ATTRIBUTE => self.write_attribute(value),
            port::MISC => self.misc = value & !0x10,
            port::SEQUENCER => self.sequencer_index = value & 7,
            port::SEQUENCER_DATA => {
                let index = usize::from(self.sequencer_index);
                if let (Some(reg), Some(bits)) =
                    (self.sequencer.get_mut(index), seq::BITS.get(index))
                {
                    *reg = value & bits;
                }
            }
            port::PEL_MASK => self.dac.mask = value,
            port::DAC_READ => {
                (self.dac.read_index, self.dac.component, self.dac.reading) = (value, 0, true);
            }
            port::DAC_WRITE => {
                (self.dac.write_index, self.dac.component, self.dac.reading) = (value, 0, false);
            }
            port::DAC_DATA => self.dac.write(value),
            port::GRAPHICS => self.graphics_index = value & 0xf,
            port::GRAPHICS_DATA => {
                let index = usize::from(self.graphics_index);
                if let (Some(reg), Some(bits)) = (self.graphics.get_mut(index), gc::BITS.get(index))
                {
                    *reg = value & bits;
                }
            }
            port::CRTC => self.crtc_index = value & 0x3f,
            port::CRTC_DATA => self.write_crtc(value),
            port::STATUS => self.feature = value & 3,
            _ => {}
        }
    }

    fn write_attribute(&mut self, value: u8) {
        if self.attribute_data {
            let index = usize::from(self.attribute_index & 0x1f);
            // The palette is closed to software while it is on the screen.
            let open = index > 15 || self.attribute_index & attr::SCREEN == 0;
            if open && let Some(reg) = self.attributes.get_mut(index) {
                *reg = value & attr::bits(index);
            }
        } else {
            self.attribute_index = value & 0x3f;
        }
        self.attribute_data = !self.attribute_data;
    }

    fn write_crtc(&mut self, value: u8) {
        let index = usize::from(self.crtc_index);
        let protects = self.crtc[crtc::END_RETRACE] & 0x80 != 0;
        let Some(reg) = self.crtc.get_mut(index) else { return };
        if !protects || index > crtc::OVERFLOW {
            *reg = value;
        } else if index == crtc::OVERFLOW {
            // The line compare's bit is not protected.
            *reg = *reg & !0x10 | value & 0x10;
        }
    }

    /// What a saved state must not have, as no writes lead there.
    pub(crate) fn is_possible(&self) -> bool {
        let within =
            |file: &[u8], bits: &[u8]| file.iter().zip(bits).all(|(reg, bits)| reg & !bits == 0);
        within(&self.sequencer, &seq::BITS)
            && within(&self.graphics, &gc::BITS)
            && self.attributes.iter().enumerate().all(|(i, reg)| reg & !attr::bits(i) == 0)
            && self.attribute_index <= 0x3f
            && self.dac.component <= 2
            && self.dac.colors.len() == 256
    }
}
