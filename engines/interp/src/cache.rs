//! Decoded blocks, and how they are found.

use semantics::Insn;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};

/// Instructions kept before everything is dropped.
const MAX_INSNS: usize = 120_000;
const JUMPS: usize = 4096;
const PAGE: u64 = 4096;

/// Straight-line code that is entered at its beginning only.
#[derive(Debug, Default)]
pub struct Block {
    pub insns: Box<[Insn]>,
    /// Guest-physical bytes that it was decoded from, in its first page.
    gpa: Range<u64>,
    /// Of an instruction that crosses pages: its bytes in the second one.
    rest: Range<u64>,
    /// Length in bytes.
    pub len: u32,
}

impl Block {
    pub fn new(insns: Vec<Insn>, gpa: Range<u64>, rest: Range<u64>) -> Self {
        let len = insns.last().map_or(0, |i| u32::from(i.end));
        Self { insns: insns.into(), gpa, rest, len }
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        let hit = |own: &Range<u64>| own.start < range.end && range.start < own.end;
        hit(&self.gpa) || hit(&self.rest)
    }
}

/// Where a block begins: guest-physical address, mode, and the second page of an instruction
/// that crosses pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub start: u64,
    pub mode: u64,
    pub second: Option<u64>,
}

/// What is known of a linear address under a tag of the MMU.
#[derive(Clone, Copy, Debug)]
struct Jump {
    linear: u64,
    /// The MMU's tag and the mode.
    tag: u64,
    block: u32,
}

const NOWHERE: Jump = Jump { linear: 0, tag: !0, block: 0 };

#[derive(Debug)]
pub struct Cache {
    blocks: Vec<Block>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32, BuildHasherDefault<Mix>>,
    by_page: HashMap<u64, Vec<(u32, Key)>, BuildHasherDefault<Mix>>,
    jumps: Box<[Jump]>,
    insns: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            by_page: HashMap::default(),
            jumps: vec![NOWHERE; JUMPS].into(),
            insns: 0,
        }
    }
}

fn slot(linear: u64) -> usize {
    (linear ^ linear >> 12) as usize % JUMPS
}

impl Cache {
    #[inline(always)]
    pub fn jump(&self, linear: u64, tag: u64) -> Option<u32> {
        let jump = &self.jumps[slot(linear)];
        (jump.linear == linear && jump.tag == tag).then_some(jump.block)
    }

    pub fn set_jump(&mut self, linear: u64, tag: u64, block: u32) {
        self.jumps[slot(linear)] = Jump { linear, tag, block };
    }

    pub fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    #[inline(always)]
    pub fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(number as usize)
    }

    /// Keeps a block; without a key, only until the next one is added.
    pub fn add(&mut self, key: Option<Key>, block: Block) -> u32 {
        if self.insns >= MAX_INSNS {
            self.clear();
        }
        self.insns += block.insns.len();
        let pages = [&block.gpa, &block.rest].map(|r| (!r.is_empty()).then_some(r.start / PAGE));
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.blocks.push(Block::default());
                self.blocks.len() as u32 - 1
            }
        };
        if let Some(at) = self.blocks.get_mut(number as usize) {
            *at = block;
        }
        match key {
            Some(key) => {
                self.by_key.insert(key, number);
                for page in pages.into_iter().flatten() {
                    self.by_page.entry(page).or_default().push((number, key));
                }
            }
            None => self.free.push(number),
        }
        number
    }

    /// Forgets everything decoded from these guest-physical bytes.
    pub fn invalidate(&mut self, range: &Range<u64>) {
        if range.end.saturating_sub(range.start) > 64 * PAGE {
            return self.clear();
        }
        let mut gone = Vec::new();
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            let Some(list) = self.by_page.get(&page) else { continue };
            let blocks = &self.blocks;
            let hit = |n: u32| blocks.get(n as usize).is_some_and(|b| b.overlaps(range));
            gone.extend(list.iter().copied().filter(|(n, _)| hit(*n)));
        }
        for (number, key) in &gone {
            self.remove(*number, key);
        }
        if !gone.is_empty() {
            self.jumps.fill(NOWHERE);
        }
    }

    fn remove(&mut self, number: u32, key: &Key) {
        // An instruction across pages may be named twice.
        if self.by_key.remove(key).is_none() {
            return;
        }
        let Some(at) = self.blocks.get_mut(number as usize) else { return };
        let block = std::mem::take(at);
        self.insns = self.insns.saturating_sub(block.insns.len());
        self.free.push(number);
        for range in [&block.gpa, &block.rest] {
            let page = range.start / PAGE;
            if let Some(list) = self.by_page.get_mut(&page) {
                list.retain(|(n, _)| *n != number);
                if list.is_empty() {
                    self.by_page.remove(&page);
                }
            }
        }
    }

    pub fn clear(&mut self) {
        *self = Self { jumps: std::mem::take(&mut self.jumps), ..Self::default_without_jumps() };
        self.jumps.fill(NOWHERE);
    }

    fn default_without_jumps() -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            by_page: HashMap::default(),
            jumps: Box::default(),
            insns: 0,
        }
    }
}

/// A multiplicative hash: keys are addresses, which a guest may choose to collide only at its
/// own cost.
#[derive(Debug, Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u64, len: u64) -> (Key, Block) {
        let key = Key { start, mode: 2, second: None };
        (key, Block { gpa: start..start + len, ..Block::default() })
    }

    #[test]
    fn only_what_was_written_is_forgotten() {
        let mut cache = Cache::default();
        let (a, b) = (block(0x1000, 16), block(0x1010, 16));
        let (ka, kb) = (a.0, b.0);
        let na = cache.add(Some(ka), a.1);
        let nb = cache.add(Some(kb), b.1);
        cache.set_jump(0x5000, 7, na);
        assert_eq!(cache.jump(0x5000, 7), Some(na));
        cache.invalidate(&(0x100f..0x1010));
        assert_eq!((cache.find(&ka), cache.find(&kb)), (None, Some(nb)));
        assert_eq!(cache.jump(0x5000, 7), None);
        cache.invalidate(&(0..u64::MAX));
        assert_eq!(cache.find(&kb), None);
    }

    #[test]
    fn an_instruction_across_pages_depends_on_both() {
        for write in [0x1fff..0x2000, 0x7000..0x7001] {
            let mut cache = Cache::default();
            let key = Key { start: 0x1ffe, mode: 2, second: Some(0x7000) };
            let block = Block { gpa: 0x1ffe..0x2000, rest: 0x7000..0x7003, ..Block::default() };
            cache.add(Some(key), block);
            cache.invalidate(&(0x7003..0x7008));
            assert!(cache.find(&key).is_some());
            cache.invalidate(&write);
            assert!(cache.find(&key).is_none());
            assert!(cache.by_page.is_empty());
        }
    }
}
