//! The compressed payload of a bzImage, decompressed on the host.
//!
//! The payload ends in the decompressed size as 4 little-endian bytes: appended by the
//! kernel's build for all formats but gzip, whose own trailer has it in the same place
//! (`scripts/Makefile.lib`, `size_append`).

use crate::Error;
use crate::bytes::u32_at;
use std::fmt;
use std::io::Read;

/// The compressions that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Xz,
    Lzma,
    Bzip2,
    /// The legacy frame of `lz4 -l`.
    Lz4,
    Zstd,
}

/// No kernel is larger.
const MAX_SIZE: u64 = 1 << 30;
/// No dictionary or window is larger: the kernel's build uses up to 128 MiB.
const MAX_WINDOW: u32 = 128 << 20;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// Decompressed bytes in each block of the legacy frame but the last.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

impl Compression {
    /// Known by its first bytes.
    pub fn of(payload: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Compression); 7] = [
            (b"\x7fELF", Compression::None),
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x5d\0\0", Compression::Lzma),
            (b"BZh", Compression::Bzip2),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        MAGIC.iter().find(|(magic, _)| payload.starts_with(magic)).map(|&(_, name)| name)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Decompresses a payload with its size at its end. Fails when that size is above `limit` or
/// 1 GiB, and when it is not the true one.
pub(crate) fn payload(
    compression: Compression,
    payload: &[u8],
    limit: u64,
) -> Result<Vec<u8>, Error> {
    let corrupt = |reason: String| Error::Corrupt { compression, reason };
    if compression == Compression::None {
        return Ok(payload.to_vec());
    }
    let body = payload.len().saturating_sub(4);
    let size = u32_at(payload, body).ok_or_else(|| corrupt("no size at its end".into()))?;
    let limit = limit.min(MAX_SIZE);
    if u64::from(size) > limit {
        return Err(Error::TooLarge { size: size.into(), limit });
    }
    let size = size as usize;
    let body = payload.get(..body).unwrap_or(&[]);
    let output = match compression {
        Compression::None => Ok(Vec::new()),
        Compression::Gzip => read(flate2::read::GzDecoder::new(payload), size),
        Compression::Bzip2 => read(bzip2::read::BzDecoder::new(body), size),
        Compression::Xz => {
            read(lzma_rust2::XzReader::new_mem_limit(body, false, lzma_memory_kib()), size)
        }
        Compression::Lzma => lzma_rust2::LzmaReader::new_mem_limit(body, lzma_memory_kib(), None)
            .map_err(|error| error.to_string())
            .and_then(|reader| read(reader, size)),
        Compression::Zstd => zstd(body, size),
        Compression::Lz4 => lz4_legacy(body, size),
    };
    let output = output.map_err(corrupt)?;
    if output.len() != size {
        return Err(corrupt(format!("{} bytes instead of {size}", output.len())));
    }
    Ok(output)
}

/// The window, and as much again for the decoder's tables.
const fn lzma_memory_kib() -> u32 {
    2 * (MAX_WINDOW / 1024)
}

/// Reads until the end, or until one byte more than `size`.
fn read(reader: impl Read, size: usize) -> Result<Vec<u8>, String> {
    let mut output = Vec::new();
    output.try_reserve_exact(size + 1).map_err(|error| error.to_string())?;
    reader.take(size as u64 + 1).read_to_end(&mut output).map_err(|error| error.to_string())?;
    Ok(output)
}

fn zstd(body: &[u8], size: usize) -> Result<Vec<u8>, String> {
    use ruzstd::decoding::StreamingDecoder;
    let window = u64::from(MAX_WINDOW);
    let reader = StreamingDecoder::new_with_max_window_size(body, window)
        .map_err(|error| error.to_string())?;
    read(reader, size)
}

/// Blocks, each after its compressed size, and each of 8 MiB decompressed but the last.
fn lz4_legacy(body: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut output = vec![0; size];
    let mut done = 0;
    let mut rest = body;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length);
        rest = after;
        // Concatenated frames repeat the magic.
        if length == LZ4_LEGACY_MAGIC {
            continue;
        }
        let (block, after) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .ok_or("a block reaches past the end")?;
        rest = after;
        let end = size.min(done + LZ4_LEGACY_BLOCK);
        let room = output.get_mut(done..end).unwrap_or_default();
        let wrote =
            lz4_flex::block::decompress_into(block, room).map_err(|error| error.to_string())?;
        done += wrote;
    }
    if !rest.is_empty() {
        return Err("a block's size is cut off".into());
    }
    output.truncate(done);
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{self, compress};
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    /// Something with long matches, more than one LZ4 block, and noise.
    fn sample(size: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..size).map(|i| if i % 4096 < 3000 { (i / 7 % 251) as u8 } else { noise() }).collect()
    }

    const ALL: [Compression; 5] = [
        Compression::Gzip,
        Compression::Xz,
        Compression::Lzma,
        Compression::Bzip2,
        Compression::Lz4,
    ];

    #[test]
    fn every_format_round_trips() {
        for compression in ALL.into_iter().chain([Compression::Zstd]) {
            for size in [1, 4096, 300_000] {
                let data = sample(size);
                let packed = compress(compression, &data);
                assert_eq!(Compression::of(&packed), Some(compression));
                let unpacked = payload(compression, &packed, 1 << 30).unwrap();
                assert!(unpacked == data, "{compression}, {size} bytes");
            }
        }
    }

    #[test]
    fn lz4_continues_over_blocks() {
        let data = sample(LZ4_LEGACY_BLOCK + 100_000);
        let packed = compress(Compression::Lz4, &data);
        assert!(payload(Compression::Lz4, &packed, 1 << 30).unwrap() == data);
    }

    #[test]
    fn xz_with_the_x86_filter_as_the_kernel_uses_it() {
        let data = synthetic::calls(40_000);
        let packed = synthetic::xz_bcj_payload(&data);
        assert!(payload(Compression::Xz, &packed, 1 << 30).unwrap() == data);
    }

    #[test]
    fn a_size_above_the_limit_is_refused_before_decompression() {
        let packed = compress(Compression::Gzip, &sample(5000));
        let error = payload(Compression::Gzip, &packed, 4999).unwrap_err();
        assert_eq!(error, Error::TooLarge { size: 5000, limit: 4999 });
    }

    #[test]
    fn a_wrong_size_is_corrupt() {
        for compression in ALL.into_iter().chain([Compression::Zstd]) {
            for wrong in [4999u32, 5001] {
                let mut packed = compress(compression, &sample(5000));
                let at = packed.len() - 4;
                packed[at..].copy_from_slice(&wrong.to_le_bytes());
                let error = payload(compression, &packed, 1 << 30).unwrap_err();
                assert!(matches!(error, Error::Corrupt { .. }), "{compression}: {error}");
            }
        }
    }

    /// Cases per format; `SARANG_LONG` runs the long test.
    fn cases() -> u32 {
        if std::env::var_os("SARANG_LONG").is_some() { 200_000 } else { 500 }
    }

    fn damaged(compression: Compression) {
        let whole = compress(compression, &sample(6000));
        let config =
            ProptestConfig { cases: cases(), failure_persistence: None, ..Default::default() };
        let change = (0..whole.len(), any::<u8>());
        let strategy =
            (proptest::collection::vec(change, 1..5), proptest::option::of(4..whole.len()));
        TestRunner::new(config)
            .run(&strategy, |(changes, length)| {
                let mut packed = whole.clone();
                for (at, value) in changes {
                    packed[at] = value;
                }
                if let Some(length) = length {
                    packed.truncate(length - 4);
                    packed.extend(6000u32.to_le_bytes());
                }
                if let Ok(unpacked) = payload(compression, &packed, 1 << 20) {
                    prop_assert!(unpacked.len() <= 1 << 20);
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn damaged_gzip() {
        damaged(Compression::Gzip);
    }

    #[test]
    fn damaged_xz() {
        damaged(Compression::Xz);
    }

    #[test]
    fn damaged_lzma() {
        damaged(Compression::Lzma);
    }

    #[test]
    fn damaged_bzip2() {
        damaged(Compression::Bzip2);
    }

    #[test]
    fn damaged_lz4() {
        damaged(Compression::Lz4);
    }

    #[test]
    fn damaged_zstd() {
        damaged(Compression::Zstd);
    }
}
