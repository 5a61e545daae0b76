//! What the monitor says of itself (VESA Enhanced EDID Standard, release A2).

use std::array;

/// A block of EDID 1.4 for a screen of any size, which prefers 1024 by 768 at 60 Hz.
pub(crate) fn block() -> [u8; 128] {
    let mut edid = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = edid.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // Maker "SRG", product 1, week 0 of 2026.
    put(8, &maker(b"SRG"));
    put(10, &[1, 0, 0, 0, 0, 0, 0, 36]);
    put(18, &[1, 4]);
    // Digital, 8 bits a colour; 27 by 20 cm; gamma 2.2; RGB, and the first timing is preferred.
    put(20, &[0xa5, 27, 20, 120, 0x06]);
    // The colours of sRGB.
    put(25, &[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // 640x480, 800x600 and 1024x768 at 60 Hz; then 1280x1024 and 1600x1200, at 60 Hz.
    put(35, &[0x21, 0x08, 0x00]);
    put(38, &[0x81, 0x80, 0xa9, 0x40]);
    (42..54).step_by(2).for_each(|at| put(at, &[1, 1]));
    put(54, &timing());
    put(72, &text(0xfc, b"Sarang VGA"));
    // 50 to 125 Hz, 30 to 160 kHz, 300 MHz.
    put(90, &[0, 0, 0, 0xfd, 0, 50, 125, 30, 160, 30, 1, 10, 32, 32, 32, 32, 32, 32]);
    put(108, &text(0xff, b"1"));
    let sum = edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    edid[127] = sum.wrapping_neg();
    edid
}

/// Three letters of five bits.
fn maker(name: &[u8; 3]) -> [u8; 2] {
    let letters = name.iter().fold(0u16, |sum, c| sum << 5 | u16::from(c & 0x1f));
    letters.to_be_bytes()
}

/// 1024 by 768, as VESA's monitor timings have it: 65 MHz, totals 1344 and 806.
fn timing() -> [u8; 18] {
    let clock = 6500u16.to_le_bytes();
    let [low, high] = clock;
    [
        low, high, 0x00, 0x40, 0x41, 0x00, 0x26, 0x30, 0x18, 0x88, 0x36, 0x00, 0x0e, 0xc8, 0x00, 0,
        0, 0x18,
    ]
}

/// A descriptor with a line of text.
fn text(tag: u8, line: &[u8]) -> [u8; 18] {
    array::from_fn(|i| match i {
        3 => tag,
        0..5 => 0,
        _ => match line.get(i - 5) {
            Some(c) => *c,
            None if i - 5 == line.len() => b'\n',
            None => b' ',
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_sound() {
        let edid = block();
        assert_eq!(edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        // Detailed timing: active and blanking pixels and lines.
        let t = timing();
        let wide = |low: usize, high: usize, shift: u32| {
            u16::from(t[low]) | u16::from(t[high] >> shift & 0xf) << 8
        };
        assert_eq!((wide(2, 4, 4), wide(3, 4, 0)), (1024, 320));
        assert_eq!((wide(5, 7, 4), wide(6, 7, 0)), (768, 38));
        assert_eq!(&edid[77..88], b"Sarang VGA\n");
    }
}
