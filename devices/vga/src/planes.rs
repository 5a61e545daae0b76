//! The VGA's own 256 KiB: four planes of 64 KiB, and what the graphics controller does between
//! them and the processor.

use crate::regs::{Regs, gc, seq};

/// Addresses in each plane.
const CELLS: usize = 0x1_0000;

/// A cell is the byte at one address of all four planes, plane 0 lowest.
#[derive(Clone, Debug)]
pub(crate) struct Planes {
    cells: Vec<u32>,
    pub(crate) latch: u32,
}

impl Default for Planes {
    fn default() -> Self {
        Self { cells: vec![0; CELLS], latch: 0 }
    }
}

/// Each of four bits becomes a byte of ones.
fn spread(bits: u8) -> u32 {
    (0..4).fold(0, |sum, i| if bits >> i & 1 != 0 { sum | 0xff << (8 * i) } else { sum })
}

fn in_all(byte: u8) -> u32 {
    u32::from(byte) * 0x0101_0101
}

/// Where the window at 0xa0000 leads: the offset into the memory, if it is open there.
pub(crate) fn window(regs: &Regs, offset: u64) -> Option<usize> {
    let (start, len) = match regs.graphics[gc::MISC] >> 2 & 3 {
        0 => (0, 0x2_0000),
        1 => (0, 0x1_0000),
        2 => (0x1_0000, 0x8000),
        _ => (0x1_8000, 0x8000),
    };
    let at = offset.checked_sub(start).filter(|at| *at < len)?;
    usize::try_from(at).ok()
}

/// How the processor's addresses are spread over planes.
enum Chain {
    /// The address, and one plane.
    Plane(usize, u32),
    /// The address, in all planes.
    All(usize),
}

fn chain(regs: &Regs, at: usize) -> Chain {
    if regs.sequencer[seq::MEMORY_MODE] & seq::CHAIN_4 != 0 {
        Chain::Plane(at >> 2, at as u32 & 3)
    } else if regs.graphics[gc::MODE] & gc::ODD_EVEN != 0 {
        let high = u32::from(regs.graphics[gc::READ_MAP] & 2);
        Chain::Plane(at >> 1, high | at as u32 & 1)
    } else {
        Chain::All(at)
    }
}

impl Planes {
    /// Of no memory, where none is looked at.
    pub(crate) fn none() -> Self {
        Self { cells: Vec::new(), latch: 0 }
    }

    /// The cell at an address, which wraps.
    pub(crate) fn cell(&self, at: usize) -> u32 {
        self.cells.get(at % CELLS).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, at: usize, mask: u32, value: u32) {
        if let Some(cell) = self.cells.get_mut(at % CELLS) {
            *cell = *cell & !mask | value & mask;
        }
    }

    pub(crate) fn read(&mut self, regs: &Regs, at: usize) -> u8 {
        let (at, plane) = match chain(regs, at) {
            Chain::Plane(at, plane) => (at, plane),
            Chain::All(at) => (at, u32::from(regs.graphics[gc::READ_MAP] & 3)),
        };
        self.latch = self.cell(at);
        if regs.graphics[gc::MODE] & 8 == 0 {
            return (self.latch >> (8 * plane)) as u8;
        }
        // Ones where the planes that matter have the colour.
        let differ = (self.latch ^ spread(regs.graphics[gc::COLOR_COMPARE]))
            & spread(regs.graphics[gc::COLOR_CARE]);
        let [a, b, c, d] = differ.to_le_bytes();
        !(a | b | c | d)
    }

    pub(crate) fn write(&mut self, regs: &Regs, at: usize, value: u8) {
        let planes = regs.sequencer[seq::MAP_MASK];
        match chain(regs, at) {
            Chain::Plane(at, plane) => {
                let mask = 0xffu32 << (8 * plane) & spread(planes);
                self.set(at, mask, in_all(value));
            }
            Chain::All(at) => {
                let value = self.combine(&regs.graphics, value);
                self.set(at, spread(planes), value);
            }
        }
    }

    /// What a write comes to in all planes.
    fn combine(&self, gc: &[u8; gc::COUNT], value: u8) -> u32 {
        let rotated = value.rotate_right(u32::from(gc[gc::ROTATE] & 7));
        let mut mask = in_all(gc[gc::BIT_MASK]);
        let source = match gc[gc::MODE] & 3 {
            0 => {
                let set = spread(gc[gc::ENABLE_SET_RESET]);
                in_all(rotated) & !set | spread(gc[gc::SET_RESET]) & set
            }
            1 => return self.latch,
            2 => spread(value & 0xf),
            _ => {
                mask &= in_all(rotated);
                spread(gc[gc::SET_RESET])
            }
        };
        let result = match gc[gc::ROTATE] >> 3 & 3 {
            0 => source,
            1 => source & self.latch,
            2 => source | self.latch,
            _ => source ^ self.latch,
        };
        result & mask | self.latch & !mask
    }

    pub(crate) fn save(&self) -> Vec<u32> {
        let used = self.cells.iter().rposition(|cell| *cell != 0).map_or(0, |last| last + 1);
        self.cells.get(..used).unwrap_or_default().to_vec()
    }

    /// `None` for more than there is.
    pub(crate) fn restore(mut cells: Vec<u32>, latch: u32) -> Option<Self> {
        if cells.len() > CELLS {
            return None;
        }
        cells.resize(CELLS, 0);
        Some(Self { cells, latch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All planes written, the whole window open, write mode 0.
    fn planar() -> (Planes, Regs) {
        let mut regs = Regs::default();
        regs.sequencer[seq::MAP_MASK] = 0xf;
        regs.graphics[gc::BIT_MASK] = 0xff;
        (Planes::default(), regs)
    }

    #[test]
    fn the_window_is_where_the_register_says() {
        let mut regs = Regs::default();
        for (map, first, last, outside) in [
            (0, 0, 0x1_ffff, u64::MAX),
            (1, 0, 0xffff, 0x1_0000),
            (2, 0x1_0000, 0x1_7fff, 0x1_8000),
            (3, 0x1_8000, 0x1_ffff, 0x1_7fff),
        ] {
            regs.graphics[gc::MISC] = map << 2;
            assert_eq!(window(&regs, first), Some(0), "{map}");
            assert_eq!(window(&regs, last), Some((last - first) as usize), "{map}");
            assert_eq!(window(&regs, outside), None, "{map}");
        }
    }

    #[test]
    fn write_modes() {
        let (mut planes, mut regs) = planar();
        planes.write(&regs, 0, 0xa5);
        assert_eq!(planes.cell(0), 0xa5a5_a5a5);
        regs.graphics[gc::ENABLE_SET_RESET] = 0b0011;
        regs.graphics[gc::SET_RESET] = 0b0001;
        planes.write(&regs, 1, 0x0f);
        assert_eq!(planes.cell(1), 0x0f0f_00ff);
        // Mode 1 copies what was read last.
        planes.read(&regs, 0);
        regs.graphics[gc::MODE] = 1;
        planes.write(&regs, 2, 0);
        assert_eq!(planes.cell(2), 0xa5a5_a5a5);
        // Mode 2: the value is a colour, the bit mask says which pixels.
        regs.graphics[gc::MODE] = 2;
        regs.graphics[gc::BIT_MASK] = 0xf0;
        planes.read(&regs, 3);
        planes.write(&regs, 3, 0b1010);
        assert_eq!(planes.cell(3), 0xf000_f000);
        // Mode 3: the value is a mask, set/reset the colour.
        regs.graphics[gc::MODE] = 3;
        regs.graphics[gc::BIT_MASK] = 0xff;
        regs.graphics[gc::SET_RESET] = 0b0110;
        planes.read(&regs, 4);
        planes.write(&regs, 4, 0x81);
        assert_eq!(planes.cell(4), 0x0081_8100);
    }

    #[test]
    fn functions_rotation_and_masks() {
        let (mut planes, mut regs) = planar();
        planes.write(&regs, 0, 0b1100);
        for (function, want) in [(1, 0b1000), (2, 0b1110), (3, 0b0110)] {
            regs.graphics[gc::ROTATE] = function << 3;
            planes.read(&regs, 0);
            planes.write(&regs, 1, 0b1010);
            assert_eq!(planes.cell(1) as u8, want);
        }
        regs.graphics[gc::ROTATE] = 1;
        regs.sequencer[seq::MAP_MASK] = 0b0100;
        planes.write(&regs, 9, 1);
        assert_eq!(planes.cell(9), 0x0080_0000);
    }

    #[test]
    fn reads_give_a_plane_or_compare() {
        let (mut planes, mut regs) = planar();
        planes.set(5, u32::MAX, 0x4433_2211);
        regs.graphics[gc::READ_MAP] = 2;
        assert_eq!(planes.read(&regs, 5), 0x33);
        planes.set(6, u32::MAX, 0x00ff_00f0);
        regs.graphics[gc::MODE] = 8;
        regs.graphics[gc::COLOR_COMPARE] = 0b0101;
        regs.graphics[gc::COLOR_CARE] = 0b1111;
        assert_eq!(planes.read(&regs, 6), 0xf0);
        regs.graphics[gc::COLOR_CARE] = 0;
        assert_eq!(planes.read(&regs, 6), 0xff);
    }

    #[test]
    fn chained_addresses_go_through_the_planes() {
        let (mut planes, mut regs) = planar();
        regs.sequencer[seq::MEMORY_MODE] = seq::CHAIN_4;
        (0..8).for_each(|at| planes.write(&regs, at, at as u8 + 1));
        assert_eq!((planes.cell(0), planes.cell(1)), (0x0403_0201, 0x0807_0605));
        assert_eq!(planes.read(&regs, 6), 7);
        let (mut planes, mut regs) = planar();
        regs.graphics[gc::MODE] = gc::ODD_EVEN;
        regs.sequencer[seq::MAP_MASK] = 3;
        (0..4).for_each(|at| planes.write(&regs, at, at as u8 + 1));
        assert_eq!((planes.cell(0), planes.cell(1)), (0x0201, 0x0403));
        assert_eq!(planes.read(&regs, 3), 4);
    }
}
