//! Sets of the 256 vectors: atomic ones for IRR and TMR, which other threads write.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

fn place(vector: u8) -> (usize, u32) {
    (usize::from(vector >> 5), 1 << (vector & 31))
}

/// The highest bit in eight registers.
pub(crate) fn highest(
    words: impl DoubleEndedIterator<Item = u32> + ExactSizeIterator,
) -> Option<u8> {
    let mut base = words.len() as u32 * 32;
    for word in words.rev() {
        base -= 32;
        if word != 0 {
            return u8::try_from(base + word.ilog2()).ok();
        }
    }
    None
}

#[derive(Debug, Default)]
pub(crate) struct VectorSet([AtomicU32; 8]);

impl VectorSet {
    /// True if it was not in the set.
    pub(crate) fn insert(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word].fetch_or(bit, SeqCst) & bit == 0
    }

    pub(crate) fn remove(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word].fetch_and(!bit, SeqCst) & bit != 0
    }

    pub(crate) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word].load(SeqCst) & bit != 0
    }

    pub(crate) fn highest(&self) -> Option<u8> {
        highest(self.0.iter().map(|word| word.load(SeqCst)))
    }

    pub(crate) fn word(&self, index: usize) -> u32 {
        self.0.get(index).map_or(0, |word| word.load(SeqCst))
    }

    pub(crate) fn words(&self) -> [u32; 8] {
        std::array::from_fn(|i| self.word(i))
    }

    pub(crate) fn set_words(&self, words: [u32; 8]) {
        for (to, from) in self.0.iter().zip(words) {
            to.store(from, SeqCst);
        }
    }
}

/// The ISR: only its own vCPU changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Isr(pub(crate) [u32; 8]);

impl Isr {
    pub(crate) fn insert(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] |= bit;
    }

    pub(crate) fn remove(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] &= !bit;
    }

    pub(crate) fn highest(&self) -> Option<u8> {
        highest(self.0.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_is_found_in_every_word() {
        let set = VectorSet::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 100, 255] {
            assert!(set.insert(vector));
            assert!(!set.insert(vector));
            assert_eq!(set.highest(), Some(vector));
        }
        assert!(set.remove(255) && !set.contains(255));
        assert_eq!(set.highest(), Some(100));
    }
}
