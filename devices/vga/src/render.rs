//! From registers and memory to a picture.

use crate::{
    dispi::Mode,
    planes::Planes,
    regs::{Dac, Regs, attr, crtc, gc, seq},
    vram::Vram,
};
use display::Frame;

/// What the registers say of the raster.
struct Raster {
    /// Characters, of 8 or 9 pixels each, in a row.
    columns: u16,
    lines: u16,
    /// Scan lines of a character or of a row of pixels, less the doubling.
    cell: u16,
    /// Each scan line comes twice.
    doubled: bool,
    /// Of the first cell.
    start: usize,
    /// Cells from a row to the next.
    pitch: usize,
    /// At this scan line the picture begins again at cell 0.
    split: u16,
}

impl Raster {
    fn of(regs: &Regs) -> Self {
        let reg = |index: usize| u16::from(regs.crtc[index]);
        let overflow = reg(crtc::OVERFLOW);
        let scan = reg(crtc::MAX_SCAN);
        let bit = |from: u16, bit: u16, to: u16| (from >> bit & 1) << to;
        let last = reg(crtc::END_VERTICAL) | bit(overflow, 1, 8) | bit(overflow, 6, 9);
        let start = reg(crtc::START_HIGH) << 8 | reg(crtc::START_LOW);
        Self {
            columns: reg(crtc::END_HORIZONTAL) + 1,
            lines: last + 1,
            cell: (scan & 0x1f) + 1,
            doubled: scan & 0x80 != 0,
            start: start.into(),
            pitch: usize::from(reg(crtc::OFFSET)) * 2,
            split: reg(crtc::LINE_COMPARE) | bit(overflow, 4, 8) | bit(scan, 6, 9),
        }
    }

    /// For each scan line: the cell that its row begins with, and the line inside the row.
    fn scan_lines(&self) -> impl Iterator<Item = (usize, u16)> {
        let (mut base, mut line) = (self.start, 0);
        let repeats = if self.doubled { 2 } else { 1 };
        let (cell, pitch, split) = (self.cell, self.pitch, self.split);
        (0..self.lines).map(move |y| {
            let here = (base, line / repeats);
            line += 1;
            if y == split {
                (base, line) = (0, 0);
            } else if line >= cell * repeats {
                (base, line) = (base.wrapping_add(pitch), 0);
            }
            here
        })
    }
}

/// A DAC's colour on the screen; components have six bits, or eight.
fn color(dac: &Dac, index: u8, wide: bool) -> u32 {
    let [r, g, b] = dac.colors.get(usize::from(index & dac.mask)).copied().unwrap_or_default();
    let full = |c: u8| if wide { c } else { c << 2 | c >> 4 & 3 };
    u32::from_be_bytes([0, full(r), full(g), full(b)])
}

/// The colours of the attribute controller's sixteen.
fn palette(regs: &Regs) -> [u32; 16] {
    let select = regs.attributes[attr::COLOR_SELECT];
    let replace = regs.attributes[attr::MODE] & 0x80 != 0;
    std::array::from_fn(|i| {
        let six = regs.attributes[i] & 0x3f;
        let low = if replace { six & 0xf | (select & 3) << 4 } else { six };
        color(&regs.dac, low | (select & 0xc) << 4, false)
    })
}

/// The screen while the VGA's own registers rule.
pub(crate) fn legacy(regs: &Regs, planes: &Planes, frame: &mut Frame) {
    let blank =
        regs.attribute_index & attr::SCREEN == 0 || regs.sequencer[seq::CLOCKING] & 0x20 != 0;
    if blank {
        frame.resize(640, 400);
        frame.rows_mut().for_each(|row| row.fill(0));
    } else if regs.graphics[gc::MISC] & 1 == 0 {
        text(regs, planes, frame);
    } else {
        graphics(regs, planes, frame);
    }
}

/// Where in plane 2 the two fonts begin: for characters with attribute bit 3 clear, and set.
fn fonts(regs: &Regs) -> [usize; 2] {
    let map = regs.sequencer[seq::CHARACTER_MAP];
    let place = |low: u8, high: u8| usize::from((low & 3) << 1 | high & 1) * 0x2000;
    [place(map, map >> 4), place(map >> 2, map >> 5)]
}

fn text(regs: &Regs, planes: &Planes, frame: &mut Frame) {
    let raster = Raster::of(regs);
    let clocking = regs.sequencer[seq::CLOCKING];
    let wide = clocking & 1 == 0;
    // Forty columns are made by a dot clock of half the speed.
    let zoom = if clocking & 8 != 0 { 2 } else { 1 };
    let dots = if wide { 9 } else { 8 };
    frame.resize(raster.columns * dots * zoom, raster.lines);
    let colors = palette(regs);
    let fonts = fonts(regs);
    let mode = regs.attributes[attr::MODE];
    let cursor = Cursor::of(regs);
    let chars = usize::from(dots * zoom);
    for (row, (base, line)) in frame.rows_mut().zip(raster.scan_lines()) {
        for (column, pixels) in row.chunks_exact_mut(chars).enumerate() {
            let at = base.wrapping_add(column);
            let [code, attribute, ..] = planes.cell(at).to_le_bytes();
            let font = fonts[usize::from(attribute >> 3 & 1)];
            let glyph = font + usize::from(code) * 32 + usize::from(line);
            let mut bits = u16::from(planes.cell(glyph).to_le_bytes()[2]) << 1;
            // The ninth dot repeats the eighth where lines are drawn.
            if mode & 4 != 0 && (0xc0..=0xdf).contains(&code) {
                bits |= bits >> 1 & 1;
            }
            if cursor.is_at(at, line) {
                bits = 0x1ff;
            }
            // Where the last bit makes characters blink they are shown, always.
            let back = if mode & 8 != 0 { attribute >> 4 & 7 } else { attribute >> 4 };
            let [fore, back] = [attribute & 0xf, back].map(|i| colors[usize::from(i & 0xf)]);
            for (dot, pixel) in pixels.iter_mut().enumerate() {
                let dot = dot as u16 / zoom;
                *pixel = if bits >> (8 - dot) & 1 != 0 { fore } else { back };
            }
        }
    }
}

struct Cursor {
    at: Option<usize>,
    first: u8,
    last: u8,
}

impl Cursor {
    fn of(regs: &Regs) -> Self {
        let [start, end] = [crtc::CURSOR_START, crtc::CURSOR_END].map(|i| regs.crtc[i]);
        let at = u16::from_be_bytes([regs.crtc[crtc::CURSOR_HIGH], regs.crtc[crtc::CURSOR_LOW]]);
        let on = start & 0x20 == 0;
        Self { at: on.then_some(at.into()), first: start & 0x1f, last: end & 0x1f }
    }

    fn is_at(&self, at: usize, line: u16) -> bool {
        self.at == Some(at) && (u16::from(self.first)..=u16::from(self.last)).contains(&line)
    }
}

fn graphics(regs: &Regs, planes: &Planes, frame: &mut Frame) {
    let raster = Raster::of(regs);
    let shift = regs.graphics[gc::MODE] >> 5 & 3;
    let slow = regs.sequencer[seq::CLOCKING] & 8 != 0;
    let colors = palette(regs);
    let enabled = regs.attributes[attr::PLANE_ENABLE] & 0xf;
    // A cell has eight pixels, or four that are twice as wide.
    let per_row = raster.columns * 8 * if slow && shift < 2 { 2 } else { 1 };
    let zoom = if slow || shift >= 2 { 2 } else { 1 };
    frame.resize(per_row, raster.lines);
    let per_cell = if shift >= 2 { 4 } else { 8 };
    let mode = regs.crtc[crtc::MODE];
    for (row, (base, line)) in frame.rows_mut().zip(raster.scan_lines()) {
        // CGA's modes have odd lines apart: the row's lowest bits are address bits.
        let place = |at: usize| {
            let mut at = at;
            if mode & 1 == 0 {
                let bit = 12 + u32::from(mode >> 6 & 1);
                at = at & !(1 << bit) | usize::from(line & 1) << bit;
            }
            at
        };
        for (index, pixels) in row.chunks_mut(per_cell * zoom).enumerate() {
            let cell = planes.cell(place(base.wrapping_add(index)));
            for (dot, pixel) in pixels.iter_mut().enumerate() {
                let dot = (dot / zoom) as u32;
                *pixel = match shift {
                    0 => colors[usize::from(planar(cell, dot) & enabled)],
                    1 => colors[usize::from(packed(cell, dot) & enabled)],
                    _ => color(&regs.dac, (cell >> (8 * dot)) as u8, false),
                };
            }
        }
    }
}

/// A pixel whose bits are in four planes.
fn planar(cell: u32, dot: u32) -> u8 {
    (0..4).fold(0, |sum, plane| sum | ((cell >> (8 * plane + 7 - dot)) as u8 & 1) << plane)
}

/// A pixel of two bits: four in plane 0, and four in plane 1.
fn packed(cell: u32, dot: u32) -> u8 {
    let byte = if dot < 4 { cell } else { cell >> 8 } as u8;
    byte >> (6 - 2 * (dot & 3)) & 3
}

/// The screen in one of the display interface's modes.
pub(crate) fn linear(mode: &Mode, dac: &Dac, planes: &Planes, vram: &Vram, frame: &mut Frame) {
    frame.resize(mode.width, mode.height);
    if mode.bpp == 4 {
        let pitch = usize::from(mode.width) / 8;
        for (y, row) in frame.rows_mut().enumerate() {
            for (x, pixel) in row.iter_mut().enumerate() {
                let cell = planes.cell(y * pitch + x / 8);
                *pixel = color(dac, planar(cell, x as u32 & 7), mode.wide_dac);
            }
        }
        return;
    }
    let bytes = usize::from(mode.bpp.div_ceil(8));
    let mut line = vec![0; usize::from(mode.width) * bytes];
    for (y, row) in (0u32..).zip(frame.rows_mut()) {
        let at = y.checked_mul(mode.pitch).and_then(|at| at.checked_add(mode.start));
        vram.read(at.unwrap_or(u32::MAX).into(), &mut line);
        for (pixel, bytes) in row.iter_mut().zip(line.chunks_exact(bytes)) {
            *pixel = match (mode.bpp, bytes) {
                (15, [low, high]) => split(u16::from_le_bytes([*low, *high]), 5),
                (16, [low, high]) => split(u16::from_le_bytes([*low, *high]), 6),
                (24 | 32, [b, g, r, ..]) => u32::from_be_bytes([0, *r, *g, *b]),
                (_, [index, ..]) => color(dac, *index, mode.wide_dac),
                _ => 0,
            };
        }
    }
}

/// A pixel of 5 bits of red, so many of green, and 5 of blue.
fn split(value: u16, greens: u32) -> u32 {
    let full = |value: u16, bits: u32| {
        let value = u32::from(value) & ((1 << bits) - 1);
        value << (8 - bits) | value >> (2 * bits - 8)
    };
    full(value >> (5 + greens), 5) << 16 | full(value >> 5, greens) << 8 | full(value, 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text_mode;

    #[test]
    fn a_character_is_drawn_in_its_colours() {
        let (mut regs, mut planes) = (Regs::default(), Planes::default());
        text_mode::start(&mut regs, &mut planes);
        let mut frame = Frame::default();
        legacy(&regs, &planes, &mut frame);
        assert_eq!((frame.width(), frame.height()), (720, 400));
        // White on blue: a full block at column 2 of row 1.
        planes.set(82, 0xffff, 0x1fdb);
        legacy(&regs, &planes, &mut frame);
        assert_eq!(frame.row(16, 17, 19), [0, 0xff_ffff]);
        assert_eq!(frame.row(31, 26, 28), [0xff_ffff, 0], "the ninth dot, too");
        planes.set(82, 0xffff, 0x1f20);
        legacy(&regs, &planes, &mut frame);
        assert_eq!(frame.row(20, 18, 27), [0xaa; 9]);
    }

    #[test]
    fn the_cursor_is_drawn_where_it_is() {
        let (mut regs, mut planes) = (Regs::default(), Planes::default());
        text_mode::start(&mut regs, &mut planes);
        regs.crtc[crtc::CURSOR_LOW] = 3;
        let mut frame = Frame::default();
        legacy(&regs, &planes, &mut frame);
        assert_eq!((frame.row(12, 27, 28), frame.row(13, 27, 28)), (&[0][..], &[0xaa_aaaa][..]));
        regs.crtc[crtc::CURSOR_START] |= 0x20;
        legacy(&regs, &planes, &mut frame);
        assert_eq!(frame.row(13, 27, 28), [0]);
    }

    #[test]
    fn mode_13h_is_a_byte_a_pixel() {
        let mut regs = Regs::default();
        text_mode::start(&mut regs, &mut Planes::default());
        regs.graphics[gc::MISC] = 5;
        regs.graphics[gc::MODE] = 0x40;
        regs.crtc[crtc::MAX_SCAN] = 0x41;
        regs.crtc[crtc::MODE] = 0xa3;
        regs.sequencer[seq::MEMORY_MODE] = 0x0e;
        regs.dac.colors[7] = [0x3f, 0, 0x20];
        let mut planes = Planes::default();
        planes.set(81, u32::MAX, 7 << 8);
        let mut frame = Frame::default();
        legacy(&regs, &planes, &mut frame);
        assert_eq!((frame.width(), frame.height()), (640, 400));
        assert_eq!(frame.row(2, 9, 13), [0, 0xff_0082, 0xff_0082, 0]);
        assert_eq!(frame.row(3, 9, 13), frame.row(2, 9, 13));
        assert_eq!(frame.row(4, 10, 11), [0]);
    }

    #[test]
    fn planes_make_a_colour() {
        assert_eq!((planar(0x8000_0080, 0), planar(0x0001_0000, 7)), (0b1001, 0b0100));
        assert_eq!((packed(0b10_01, 3), packed(0b1100_0000 << 8, 4)), (0b01, 0b11));
        assert_eq!(split(0xffff, 6), 0xff_ffff);
        assert_eq!((split(0x7c00, 5), split(0x07e0, 6)), (0xff_0000, 0x00_ff00));
    }
}
