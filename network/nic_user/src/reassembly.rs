//! Fragments of the guest, put together: RFC 791 section 3.2, RFC 8200 section 4.5.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Datagrams that are incomplete at a time; more replace the oldest.
const DATAGRAMS: usize = 8;
/// Pieces of one datagram: what 64 KiB are at the smallest MTU, and some.
const PIECES: usize = 64;
const LONGEST: usize = 65_535;
/// The guest sends them in a row, so what is missing after this does not come.
const PATIENCE: Duration = Duration::from_secs(15);

/// What all pieces of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ident: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'a> {
    pub(crate) offset: usize,
    pub(crate) more: bool,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    since: Instant,
    bytes: Vec<u8>,
    /// Where pieces begin and end, in order, none overlapping another.
    pieces: Vec<(usize, usize)>,
    /// Known when the last piece has come.
    len: Option<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    datagrams: Vec<Datagram>,
}

impl Reassembly {
    /// Adds a piece; returns the datagram's payload when it was the missing one. Pieces that
    /// contradict others end the datagram, RFC 5722.
    pub(crate) fn add(&mut self, key: Key, piece: &Fragment<'_>, now: Instant) -> Option<Vec<u8>> {
        self.datagrams.retain(|d| now.saturating_duration_since(d.since) < PATIENCE);
        let index = match self.datagrams.iter().position(|d| d.key == key) {
            Some(index) => index,
            None => {
                if self.datagrams.len() >= DATAGRAMS {
                    self.datagrams.remove(0);
                }
                let (bytes, pieces) = (Vec::new(), Vec::new());
                self.datagrams.push(Datagram { key, since: now, bytes, pieces, len: None });
                self.datagrams.len() - 1
            }
        };
        let datagram = self.datagrams.get_mut(index)?;
        if datagram.add(piece).is_none() {
            self.datagrams.remove(index);
            return None;
        }
        datagram.is_complete().then(|| self.datagrams.remove(index).bytes)
    }

    pub(crate) fn clear(&mut self) {
        self.datagrams.clear();
    }
}

impl Datagram {
    /// `None`: the piece does not fit.
    fn add(&mut self, piece: &Fragment<'_>) -> Option<()> {
        let (start, end) = (piece.offset, piece.offset.checked_add(piece.payload.len())?);
        let aligned = !piece.more || piece.payload.len().is_multiple_of(8);
        if start == end || end > LONGEST || !aligned || self.pieces.len() >= PIECES {
            return None;
        }
        if self.pieces.contains(&(start, end)) {
            return Some(());
        }
        if self.pieces.iter().any(|&(s, e)| start < e && s < end) {
            return None;
        }
        if !piece.more {
            if self.len.is_some() || self.pieces.iter().any(|&(_, e)| e > end) {
                return None;
            }
            self.len = Some(end);
        } else if self.len.is_some_and(|len| end > len) {
            return None;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(start..end)?.copy_from_slice(piece.payload);
        self.pieces.push((start, end));
        Some(())
    }

    fn is_complete(&self) -> bool {
        let have: usize = self.pieces.iter().map(|(start, end)| end - start).sum();
        self.len == Some(have)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(ident: u32) -> Key {
        let addr = IpAddr::from([10, 0, 2, 15]);
        Key { src: addr, dst: addr, protocol: 17, ident }
    }

    fn cut(bytes: &[u8], size: usize) -> Vec<(usize, bool, Vec<u8>)> {
        let pieces = bytes.len().div_ceil(size);
        let piece = |(i, part): (usize, &[u8])| (i * size, i + 1 < pieces, part.to_vec());
        bytes.chunks(size).enumerate().map(piece).collect()
    }

    proptest! {
        #[test]
        fn any_order_gives_the_datagram(
            bytes in prop::collection::vec(any::<u8>(), 1..4000),
            size in (1usize..64).prop_map(|n| n * 64),
            order in any::<prop::sample::Index>(),
        ) {
            let mut pieces = cut(&bytes, size);
            let count = pieces.len();
            pieces.rotate_left(order.index(count));
            let mut reassembly = Reassembly::default();
            let now = Instant::now();
            for (i, (offset, more, payload)) in pieces.iter().enumerate() {
                let piece = Fragment { offset: *offset, more: *more, payload };
                let whole = reassembly.add(key(1), &piece, now);
                prop_assert_eq!(whole.is_some(), i + 1 == count);
                if let Some(whole) = whole {
                    prop_assert_eq!(&whole, &bytes);
                }
            }
            prop_assert!(reassembly.datagrams.is_empty());
        }

        #[test]
        fn nonsense_stays_within_bounds(
            pieces in prop::collection::vec(
                (0u32..12, 0usize..70_000, any::<bool>(), 0usize..3000), 0..200)
        ) {
            let mut reassembly = Reassembly::default();
            let now = Instant::now();
            for (ident, offset, more, len) in pieces {
                let payload = vec![1; len];
                let piece = Fragment { offset, more, payload: &payload };
                if let Some(whole) = reassembly.add(key(ident), &piece, now) {
                    prop_assert!(whole.len() <= LONGEST && whole.iter().all(|b| *b == 1));
                }
                prop_assert!(reassembly.datagrams.len() <= DATAGRAMS);
                prop_assert!(reassembly.datagrams.iter().all(|d| d.bytes.len() <= LONGEST));
            }
        }
    }

    #[test]
    fn old_pieces_and_overlaps_are_dropped() {
        let mut reassembly = Reassembly::default();
        let now = Instant::now();
        let first = Fragment { offset: 0, more: true, payload: &[1; 16] };
        let last = Fragment { offset: 16, more: false, payload: &[2; 5] };
        assert_eq!(reassembly.add(key(1), &first, now), None);
        assert_eq!(reassembly.add(key(1), &last, now + PATIENCE), None, "the first is forgotten");
        let overlap = Fragment { offset: 8, more: true, payload: &[3; 16] };
        assert_eq!(reassembly.add(key(2), &first, now), None);
        assert_eq!(reassembly.add(key(2), &overlap, now), None);
        assert_eq!(reassembly.add(key(2), &last, now), None, "the datagram is gone");
        // As many bytes as the datagram has, but for a hole that the overlap would hide.
        let last = Fragment { offset: 32, more: false, payload: &[2; 5] };
        for piece in [&first, &overlap, &last] {
            assert_eq!(reassembly.add(key(3), piece, now), None);
        }
    }
}
