//! Shared bytes without copies, and checked little-endian access to files and tables.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A part of some shared bytes: a file in memory, a mapping, or a table made here.
#[derive(Clone)]
pub struct Bytes {
    source: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All of `source`, which may be anything that holds bytes and does not change.
    pub fn new(source: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let range = 0..(*source).as_ref().len();
        Self { source, range }
    }

    pub fn as_slice(&self) -> &[u8] {
        (*self.source).as_ref().get(self.range.clone()).unwrap_or(&[])
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of these bytes, without a copy; `None` if it reaches past the end.
    pub fn slice(&self, part: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(part.start)?;
        let end = self.range.start.checked_add(part.end)?;
        (start <= end && end <= self.range.end)
            .then(|| Self { source: self.source.clone(), range: start..end })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// The `N` bytes at `offset`, if the file has them.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Writes `value` at `offset` of a table made here; what does not fit is left out.
pub(crate) fn put(table: &mut [u8], offset: usize, value: &[u8]) {
    debug_assert!(offset + value.len() <= table.len(), "a table made here is too short");
    for (to, from) in table.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

/// The text before the first zero, with what is not printable ASCII left out.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = bytes.iter().take_while(|&&byte| byte != 0).take(80);
    text.filter(|byte| byte.is_ascii_graphic() || **byte == b' ').map(|&b| char::from(b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_stay_inside() {
        let all = Bytes::from(vec![1, 2, 3, 4]);
        let part = all.slice(1..4).unwrap();
        assert_eq!(part.as_slice(), [2, 3, 4]);
        assert_eq!(part.slice(1..2).unwrap().as_slice(), [3]);
        assert!(part.slice(1..4).is_none());
        assert!(part.slice(usize::MAX..usize::MAX).is_none());
    }

    #[test]
    fn reads_past_the_end_are_none() {
        assert_eq!(u16_at(&[1, 2, 3], 1), Some(0x302));
        assert_eq!(u16_at(&[1, 2, 3], 2), None);
        assert_eq!(u64_at(&[0; 8], usize::MAX), None);
    }
}
