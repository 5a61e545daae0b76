//! Rectangles as they are sent: raw (RFC 6143, 7.7.1) and ZRLE (7.7.6).

use crate::pixel::PixelFormat;
use flate2::{Compression, write::ZlibEncoder};
use std::io::{self, Write};

/// Sides of ZRLE's tiles.
const TILE: usize = 64;
/// Colours that a tile's palette has at most here: more take as many bits as a byte.
const PALETTE: usize = 16;

/// Pixels of a rectangle, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pixels<'a> {
    pub width: usize,
    pub pixels: &'a [u32],
}

/// Appends all pixels.
pub(crate) fn raw(pixels: Pixels<'_>, format: &PixelFormat, out: &mut Vec<u8>) {
    pixels.pixels.iter().for_each(|pixel| format.put(*pixel, out));
}

/// The compressed stream of a connection, which goes on from rectangle to rectangle.
#[derive(Debug)]
pub(crate) struct Zrle {
    stream: ZlibEncoder<Vec<u8>>,
    plain: Vec<u8>,
}

impl Default for Zrle {
    fn default() -> Self {
        // Screens are mostly the same bytes again and again: the fastest level finds that.
        Self { stream: ZlibEncoder::new(Vec::new(), Compression::fast()), plain: Vec::new() }
    }
}

impl Zrle {
    /// Appends the rectangle's length and data.
    pub(crate) fn encode(
        &mut self,
        pixels: Pixels<'_>,
        format: &PixelFormat,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.plain.clear();
        let rows: Vec<&[u32]> = pixels.pixels.chunks(pixels.width.max(1)).collect();
        for band in rows.chunks(TILE) {
            for x in (0..pixels.width).step_by(TILE) {
                let width = TILE.min(pixels.width - x);
                let tile = band.iter().flat_map(|row| row.get(x..x + width).unwrap_or_default());
                let tile: Vec<u32> = tile.copied().collect();
                put_tile(&tile, width, format, &mut self.plain);
            }
        }
        self.stream.write_all(&self.plain)?;
        // Everything out that the stream held back.
        self.stream.flush()?;
        let data = self.stream.get_mut();
        out.extend(u32::try_from(data.len()).map_err(io::Error::other)?.to_be_bytes());
        out.append(data);
        Ok(())
    }
}

/// One colour, few colours as indices, or pixels.
fn put_tile(tile: &[u32], width: usize, format: &PixelFormat, out: &mut Vec<u8>) {
    let mut palette: Vec<u32> = Vec::new();
    for pixel in tile {
        if !palette.contains(pixel) {
            palette.push(*pixel);
            if palette.len() > PALETTE {
                out.push(0);
                tile.iter().for_each(|pixel| format.put_compressed(*pixel, out));
                return;
            }
        }
    }
    // At most 16; 1 is the code of a tile of one colour.
    out.push(palette.len() as u8);
    palette.iter().for_each(|color| format.put_compressed(*color, out));
    let bits = match palette.len() {
        0 | 1 => return,
        2 => 1,
        3 | 4 => 2,
        _ => 4,
    };
    for row in tile.chunks(width.max(1)) {
        for pixels in row.chunks(8 / bits) {
            let byte = pixels.iter().enumerate().fold(0, |sum, (i, pixel)| {
                let index = palette.iter().position(|color| color == pixel).unwrap_or(0) as u8;
                sum | index << (8 - bits * (i + 1))
            });
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress};
    use proptest::prelude::*;

    /// What a client makes of a rectangle whose pixels have three bytes.
    fn decode(stream: &mut Decompress, data: &[u8], width: usize, height: usize) -> Vec<u32> {
        let length = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
        assert_eq!(length, data.len() - 4);
        let mut plain = Vec::with_capacity(width * height * 4 + 4096);
        stream.decompress_vec(&data[4..], &mut plain, FlushDecompress::Sync).unwrap();
        let mut bytes = plain.into_iter();
        let mut next = || bytes.next().unwrap();
        let mut pixels = vec![0; width * height];
        for y in (0..height).step_by(TILE) {
            for x in (0..width).step_by(TILE) {
                let (w, h) = (TILE.min(width - x), TILE.min(height - y));
                let kind = usize::from(next());
                let color =
                    |next: &mut dyn FnMut() -> u8| u32::from_le_bytes([next(), next(), next(), 0]);
                let palette: Vec<u32> = (0..kind).map(|_| color(&mut next)).collect();
                let bits = match kind {
                    0 | 1 => 0,
                    2 => 1,
                    3 | 4 => 2,
                    _ => 4,
                };
                for row in 0..h {
                    let mut left = 0;
                    let mut byte = 0;
                    for column in 0..w {
                        let value = if kind == 0 {
                            color(&mut next)
                        } else if bits == 0 {
                            palette[0]
                        } else {
                            if left == 0 {
                                (byte, left) = (next(), 8);
                            }
                            left -= bits;
                            palette[usize::from(byte >> left) & ((1 << bits) - 1)]
                        };
                        pixels[(y + row) * width + x + column] = value;
                    }
                }
            }
        }
        assert_eq!(bytes.next(), None, "all of it was used");
        pixels
    }

    fn there_and_back(pictures: &[(usize, Vec<u32>)]) {
        let (mut zrle, mut stream) = (Zrle::default(), Decompress::new(true));
        for (width, pixels) in pictures {
            let mut out = Vec::new();
            let picture = Pixels { width: *width, pixels };
            zrle.encode(picture, &PixelFormat::default(), &mut out).unwrap();
            assert_eq!(&decode(&mut stream, &out, *width, pixels.len() / width), pixels);
        }
    }

    #[test]
    fn large_pictures_come_back() {
        let noise = |i: u32| i.wrapping_mul(0x9e37_79b1) >> 8;
        there_and_back(&[
            (720, vec![0; 720 * 400]),
            (1024, (0..1024 * 64).map(noise).collect()),
            (129, (0..129 * 65).map(|i| noise(i) % 3).collect()),
            (1, vec![7]),
        ]);
    }

    #[test]
    fn raw_is_all_pixels() {
        let mut out = Vec::new();
        raw(Pixels { width: 1, pixels: &[0x01_0203, 4] }, &PixelFormat::default(), &mut out);
        assert_eq!(out, [3, 2, 1, 0, 4, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn pictures_come_back(
            pictures in proptest::collection::vec((1usize..150, 1usize..150, 1u32..40, any::<u32>()), 1..5)
        ) {
            let picture = |(width, height, colors, seed): (usize, usize, u32, u32)| {
                let pixel = |i: usize| ((i as u32).wrapping_mul(seed | 1) >> 16) % colors * 0x1_0101;
                (width, (0..width * height).map(pixel).collect())
            };
            let pictures: Vec<_> = pictures.into_iter().map(picture).collect();
            there_and_back(&pictures);
        }
    }
}
