//! Pixels as a client wants them (RFC 6143, 7.4).

/// How a pixel is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PixelFormat {
    /// 1, 2 or 4.
    bytes: usize,
    big_endian: bool,
    /// Red, green and blue: the largest value, and how far it is shifted.
    parts: [(u16, u8); 3],
    /// Pixels are indices: see [`Self::color_map`].
    mapped: bool,
    depth: u8,
}

/// What a server says of its screen: 32 bits, little-endian, as the frames here are.
impl Default for PixelFormat {
    fn default() -> Self {
        Self {
            bytes: 4,
            big_endian: false,
            parts: [(255, 16), (255, 8), (255, 0)],
            mapped: false,
            depth: 24,
        }
    }
}

/// Two bits of blue, three of green, three of red: what indices of a colour map stand for.
const MAPPED: [(u16, u8); 3] = [(7, 0), (7, 3), (3, 6)];

impl PixelFormat {
    /// `None` for one that cannot be: other widths, or bits outside of the pixel.
    pub(crate) fn parse(bytes: &[u8; 16]) -> Option<Self> {
        let [bits, depth, big, true_color, r0, r1, g0, g1, b0, b1, rs, gs, bs, ..] = *bytes;
        if !matches!(bits, 8 | 16 | 32) || depth > bits {
            return None;
        }
        let size = usize::from(bits / 8);
        if true_color == 0 {
            let mapped =
                Self { bytes: size, big_endian: big != 0, parts: MAPPED, mapped: true, depth };
            return (bits == 8).then_some(mapped);
        }
        let part = |high, low, shift: u8| {
            let max = u16::from_be_bytes([high, low]);
            let ones = u32::from(max).checked_add(1)?.is_power_of_two() && max != 0;
            let fits = u32::from(shift) + max.count_ones() <= u32::from(bits);
            (ones && fits).then_some((max, shift))
        };
        let parts = [part(r0, r1, rs)?, part(g0, g1, gs)?, part(b0, b1, bs)?];
        Some(Self { bytes: size, big_endian: big != 0, parts, mapped: false, depth })
    }

    /// As the server sends it when it introduces itself.
    pub(crate) fn encode(&self) -> [u8; 16] {
        let [(r, rs), (g, gs), (b, bs)] = self.parts;
        let ([r0, r1], [g0, g1], [b0, b1]) = (r.to_be_bytes(), g.to_be_bytes(), b.to_be_bytes());
        let (bits, big) = (8 * self.bytes as u8, u8::from(self.big_endian));
        [bits, self.depth, big, u8::from(!self.mapped), r0, r1, g0, g1, b0, b1, rs, gs, bs, 0, 0, 0]
    }

    fn value(&self, pixel: u32) -> u32 {
        let [_, r, g, b] = pixel.to_be_bytes();
        self.parts.iter().zip([r, g, b]).fold(0, |sum, ((max, shift), part)| {
            let scaled = (u32::from(part) * u32::from(*max) + 127) / 255;
            sum | scaled << shift
        })
    }

    /// Appends a pixel, `0x00RRGGBB`.
    pub(crate) fn put(&self, pixel: u32, out: &mut Vec<u8>) {
        let value = self.value(pixel);
        let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
        if self.big_endian {
            out.extend(&big[4 - self.bytes..]);
        } else {
            out.extend(&little[..self.bytes]);
        }
    }

    /// Appends a pixel as ZRLE has it: without the byte that means nothing (7.7.5).
    pub(crate) fn put_compressed(&self, pixel: u32, out: &mut Vec<u8>) {
        if self.bytes != 4 || self.depth > 24 {
            return self.put(pixel, out);
        }
        let used = self.parts.iter().fold(0, |sum, (max, shift)| sum | u32::from(*max) << shift);
        let value = self.value(pixel);
        let low = if used >> 24 == 0 {
            value
        } else if used & 0xff == 0 {
            value >> 8
        } else {
            return self.put(pixel, out);
        };
        let [b0, b1, b2, _] = low.to_le_bytes();
        out.extend(if self.big_endian { [b2, b1, b0] } else { [b0, b1, b2] });
    }

    /// The message that says what indices stand for, if pixels are indices (7.6.2).
    pub(crate) fn color_map(&self) -> Option<Vec<u8>> {
        if !self.mapped {
            return None;
        }
        let mut message = vec![1, 0, 0, 0, 1, 0];
        for index in 0..=255u8 {
            for (max, shift) in MAPPED {
                let part = u32::from(index >> shift) & u32::from(max);
                let full = part * 0xffff / u32::from(max);
                message.extend((full as u16).to_be_bytes());
            }
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn format(bits: u8, depth: u8, big: u8, max: [u16; 3], shift: [u8; 3]) -> [u8; 16] {
        let mut bytes = vec![bits, depth, big, 1];
        max.iter().for_each(|max| bytes.extend(max.to_be_bytes()));
        bytes.extend(shift);
        bytes.extend([0; 3]);
        bytes.try_into().unwrap()
    }

    fn put(format: [u8; 16], pixel: u32) -> (Vec<u8>, Vec<u8>) {
        let format = PixelFormat::parse(&format).unwrap();
        let (mut plain, mut compressed) = (Vec::new(), Vec::new());
        format.put(pixel, &mut plain);
        format.put_compressed(pixel, &mut compressed);
        (plain, compressed)
    }

    #[test]
    fn pixels_are_written_as_they_are_wanted() {
        let rgb = format(32, 24, 0, [255; 3], [16, 8, 0]);
        assert_eq!(PixelFormat::parse(&rgb), Some(PixelFormat::default()));
        assert_eq!(PixelFormat::default().encode(), rgb);
        assert_eq!(put(rgb, 0x12_3456), (vec![0x56, 0x34, 0x12, 0], vec![0x56, 0x34, 0x12]));
        let high = format(32, 24, 1, [255; 3], [24, 16, 8]);
        assert_eq!(put(high, 0x12_3456), (vec![0x12, 0x34, 0x56, 0], vec![0x12, 0x34, 0x56]));
        let deep = format(32, 32, 0, [255; 3], [16, 8, 0]);
        assert_eq!(put(deep, 1).1.len(), 4);
        let half = format(16, 16, 0, [31, 63, 31], [11, 5, 0]);
        assert_eq!(put(half, 0xff_0000), (vec![0, 0xf8], vec![0, 0xf8]));
        let small = format(8, 8, 0, [7, 7, 3], [0, 3, 6]);
        assert_eq!(put(small, 0xff_ff00).0, [0x3f]);
    }

    #[test]
    fn a_colour_map_is_made_for_who_wants_one() {
        let mut indexed = format(8, 8, 0, [0; 3], [0; 3]);
        indexed[3] = 0;
        let format = PixelFormat::parse(&indexed).unwrap();
        let map = format.color_map().unwrap();
        assert_eq!((map.len(), &map[..6]), (6 + 256 * 6, &[1, 0, 0, 0, 1, 0][..]));
        assert_eq!(map[6 + 255 * 6..], [0xff; 6]);
        let mut index = Vec::new();
        format.put(0xff_ffff, &mut index);
        assert_eq!((index, PixelFormat::default().color_map()), (vec![255], None));
        indexed[0] = 16;
        assert_eq!(PixelFormat::parse(&indexed), None);
    }

    #[test]
    fn formats_that_cannot_be_are_refused() {
        for bad in [
            format(24, 24, 0, [255; 3], [16, 8, 0]),
            format(32, 24, 0, [254; 3], [16, 8, 0]),
            format(32, 24, 0, [255; 3], [25, 8, 0]),
            format(8, 16, 0, [7; 3], [0; 3]),
            format(32, 24, 0, [0; 3], [0; 3]),
        ] {
            assert_eq!(PixelFormat::parse(&bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_format_is_refused_or_works(bytes: [u8; 16], pixel: u32) {
            if let Some(format) = PixelFormat::parse(&bytes) {
                let (mut plain, mut compressed) = (Vec::new(), Vec::new());
                format.put(pixel & 0xff_ffff, &mut plain);
                format.put_compressed(pixel & 0xff_ffff, &mut compressed);
                prop_assert!(matches!(plain.len(), 1 | 2 | 4) && compressed.len() <= 4);
            }
        }
    }
}
