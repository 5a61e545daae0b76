//! One decoded block.

use super::{NOBODY, Span, Translations};
use std::ops::Range;

const PAGE: u64 = 4096;

/// Where a block begins: guest-physical address, mode, and the second page of an instruction
/// that crosses pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub start: u64,
    pub mode: u64,
    pub second: Option<u64>,
}

impl Key {
    /// A multiplicative hash: keys are addresses, which a guest may choose to collide only at
    /// its own cost.
    pub fn hash(&self) -> u64 {
        let mixed = (self.start << 4 | self.mode) ^ self.second.unwrap_or(0).rotate_left(32);
        let product = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    }
}

/// Whether a block is worth translating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heat {
    /// How often it was executed.
    Runs(u32),
    /// It has a place for translations.
    Translated,
    /// It cannot be, or would not pay.
    Never,
}

/// Whether a block may be executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// It is not found any more.
    #[default]
    Gone,
    /// Its bytes are what they were: writes to them are noticed.
    Live,
    /// Its page was written: its bytes have to be compared, once writes are noticed again.
    Suspect,
    /// Writes to its page are not noticed: its bytes have to be compared before each execution.
    Checked,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub key: Key,
    pub span: Span,
    /// Where its bytes are kept.
    pub bytes: usize,
    pub trust: Trust,
    /// It was made for a page whose writes are not noticed: it ends after each store.
    pub checked: bool,
    pub heat: Heat,
    pub translations: Translations,
    /// Instructions whose immediate operands were seen to change.
    pub soft: u64,
    /// How often anything else of it changed.
    pub changes: u32,
    /// How often a branch of it has led to another of its instructions.
    pub turns: u32,
    /// The next one with the same hash.
    pub next: u32,
}

impl Block {
    /// Guest-physical bytes that it was decoded from, in its first page, and in the second.
    pub fn ranges(&self) -> [Range<u64>; 2] {
        let (start, len) = (self.key.start, u64::from(self.span.len));
        let first = len.min(PAGE - start % PAGE);
        let second = self.key.second.map_or(0..0, |page| page..page + (len - first));
        [start..start + first, second]
    }

    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.ranges().iter().any(|own| own.start < range.end && range.start < own.end)
    }

    /// Page numbers.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        let [first, second] = self.ranges();
        let second = (!second.is_empty()).then_some(second.start / PAGE);
        [Some(first.start / PAGE), second.filter(|page| *page != first.start / PAGE)]
            .into_iter()
            .flatten()
    }
}

impl Block {
    /// Stands for no block.
    pub fn none() -> Self {
        Self {
            key: Key::default(),
            span: Span { id: NOBODY, ..Span::default() },
            bytes: 0,
            trust: Trust::Gone,
            checked: false,
            heat: Heat::Never,
            translations: Translations::default(),
            soft: 0,
            changes: 0,
            turns: 0,
            next: 0,
        }
    }
}
