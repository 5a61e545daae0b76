//! One bit per page.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A plain copy, one bit per page of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageBitmap(pub Vec<u64>);

impl PageBitmap {
    pub fn for_len(bytes: u64) -> Self {
        Self(vec![0; bytes.div_ceil(crate::PAGE * 64) as usize])
    }

    /// Indices of the set bits.
    pub fn pages(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 64).filter(|p| self.0[p / 64] >> (p % 64) & 1 == 1)
    }
}

/// The shared one.
#[derive(Debug)]
pub struct AtomicBitmap(Box<[AtomicU64]>);

impl AtomicBitmap {
    pub(crate) fn for_len(bytes: u64) -> Self {
        let words = bytes.div_ceil(crate::PAGE * 64);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    pub fn get(&self, page: usize) -> bool {
        self.0.get(page / 64).is_some_and(|w| w.load(SeqCst) >> (page % 64) & 1 != 0)
    }

    /// Sets the bit; true if it was clear.
    #[inline]
    pub fn set(&self, page: usize) -> bool {
        let bit = 1 << (page % 64);
        self.0
            .get(page / 64)
            .is_some_and(|w| w.load(SeqCst) & bit == 0 && w.fetch_or(bit, SeqCst) & bit == 0)
    }

    pub fn clear(&self, page: usize) {
        if let Some(word) = self.0.get(page / 64) {
            word.fetch_and(!(1 << (page % 64)), SeqCst);
        }
    }

    /// Moves every set bit to `out`.
    pub fn take(&self, out: &mut PageBitmap) {
        for (to, from) in out.0.iter_mut().zip(&self.0) {
            *to |= from.swap(0, SeqCst);
        }
    }
}
