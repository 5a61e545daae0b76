//! The bytes of an input, taken apart into what a target does.

use arbitrary::Unstructured;

/// Bytes that are taken from the front. What is taken behind the end is zero.
#[derive(Debug)]
pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// Below a limit that is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        match limit {
            0..=0x100 => u64::from(self.u8()) % limit.max(1),
            0x101..=0x1_0000 => u64::from(self.u16()) % limit,
            _ => self.u64() % limit,
        }
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A width of an access.
    pub(crate) fn width(&mut self, of: &[usize]) -> usize {
        self.pick(of)
    }

    /// So many bytes, or as many as are left.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let len = len.min(self.0.len());
        self.0.bytes(len).unwrap_or_default()
    }

    /// Some bytes, of which the input says how many.
    pub(crate) fn some(&mut self, most: usize) -> &'a [u8] {
        let len = self.below(most as u64 + 1) as usize;
        self.bytes(len)
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// Small numbers mostly, and those at which arithmetic goes wrong.
    pub(crate) fn number(&mut self) -> u64 {
        match self.u8() {
            0..=0x7f => self.u8().into(),
            0x80..=0xaf => self.u16().into(),
            0xb0..=0xbf => self.u32().into(),
            0xc0..=0xcf => self.u64(),
            0xd0..=0xdf => 0u64.wrapping_sub(self.u8().into()),
            0xe0..=0xef => 1u64.wrapping_shl(self.u8().into()).wrapping_sub(1),
            _ => 1u64.wrapping_shl(self.u8().into()),
        }
    }

    /// Mostly in memory of this size, often at its end, sometimes nowhere.
    pub(crate) fn address(&mut self, size: u64) -> u64 {
        match self.u8() {
            0..=0xdf => self.below(size.max(1)),
            0xe0..=0xef => size.wrapping_sub(self.u8().into()),
            0xf0..=0xf7 => 0u64.wrapping_sub(self.u8().into()),
            _ => self.u64(),
        }
    }
}
