//! What a PC's firmware leaves: 80 by 25 characters, for kernels that are started without one.

use crate::{
    planes::Planes,
    regs::{Regs, attr},
};

/// 256 glyphs of 16 lines, in the order of code page 437: Spleen 8x16, by Frederic Cambus, and
/// a few signs that it lacks. See `font_8x16.txt` for its licence.
const FONT: &[u8; 4096] = include_bytes!("font_8x16.bin");

const SEQUENCER: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const GRAPHICS: [u8; 9] = [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff];
const CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00,
    0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
/// Dark colours, brown among them, then bright ones: indices of the DAC's first 64.
const PALETTE: [u8; 16] =
    [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f];
/// A space, light grey on black.
const BLANK: u32 = 0x0720;

/// Mode 3, with 400 lines.
pub(crate) fn start(regs: &mut Regs, planes: &mut Planes) {
    *regs = Regs::default();
    regs.misc = 0x67;
    (regs.sequencer, regs.graphics, regs.crtc) = (SEQUENCER, GRAPHICS, CRTC);
    regs.attributes[..16].copy_from_slice(&PALETTE);
    regs.attributes[attr::MODE..].copy_from_slice(&[0x0c, 0x00, 0x0f, 0x08, 0x00]);
    regs.attribute_index = attr::SCREEN;
    for (index, color) in (0u8..64).zip(&mut regs.dac.colors) {
        *color = ega(index);
    }
    *planes = Planes::default();
    (0..0x4000).for_each(|at| planes.set(at, 0xffff, BLANK));
    for (code, glyph) in FONT.chunks_exact(16).enumerate() {
        for (line, bits) in glyph.iter().enumerate() {
            planes.set(code * 32 + line, 0xff_0000, u32::from(*bits) << 16);
        }
    }
}

/// Two bits for each of red, green and blue: strong ones in bits 2 to 0, weak ones in 5 to 3.
fn ega(index: u8) -> [u8; 3] {
    [2, 1, 0].map(|bit| (index >> bit & 1) * 0x2a + (index >> (bit + 3) & 1) * 0x15)
}
