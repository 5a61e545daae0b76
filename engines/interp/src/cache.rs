//! Decoded blocks, and how they are found.

use semantics::Insn;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    ops::Range,
};
use translator::Code;

/// Instructions kept before everything is dropped.
const MAX_INSNS: usize = 120_000;
/// The same if translations go with them.
const MAX_WITH_TRANSLATIONS: usize = 480_000;
const JUMPS: usize = 16384;
const PAGE: u64 = 4096;

/// Instructions in a row in the cache; valid until something is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub count: u16,
    /// Length in bytes.
    pub len: u16,
}

/// Straight-line code that is entered at its beginning only.
#[derive(Debug, Default)]
struct Block {
    span: Span,
    /// Guest-physical bytes that it was decoded from, in its first page.
    gpa: Range<u64>,
    /// Of an instruction that crosses pages: its bytes in the second one.
    rest: Range<u64>,
}

impl Block {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        let hit = |own: &Range<u64>| own.start < range.end && range.start < own.end;
        hit(&self.gpa) || hit(&self.rest)
    }
}

/// Where a block begins: guest-physical address, mode, and the second page of an instruction
/// that crosses pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub start: u64,
    pub mode: u64,
    pub second: Option<u64>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64((self.start << 4 | self.mode) ^ self.second.unwrap_or(0).rotate_left(32));
    }
}

/// What is known of a linear address under a tag of the MMU.
#[derive(Clone, Copy, Debug)]
struct Jump {
    linear: u64,
    /// The MMU's tag and the mode.
    tag: u64,
    span: Span,
}

const NOWHERE: Jump = Jump { linear: 0, tag: !0, span: Span { start: 0, count: 0, len: 0 } };

#[derive(Debug)]
pub struct Cache {
    /// Of all blocks, one after another; what is forgotten stays until all is dropped.
    insns: Vec<Insn>,
    /// For the first instruction of a block, how many there are; zero once it is forgotten.
    counts: Vec<u16>,
    by_key: HashMap<Key, Block, BuildHasherDefault<Mix>>,
    by_page: HashMap<u64, Vec<Key>, BuildHasherDefault<Mix>>,
    jumps: Box<[Jump]>,
    /// How often everything was dropped.
    epoch: u64,
    /// For the first instruction of a block, how it is to be executed.
    heat: Vec<Heat>,
    translations: Vec<Translations>,
    /// Translations of blocks that are gone.
    dropped: Vec<Code>,
    /// All of them are.
    cleared: bool,
    limit: usize,
}

/// Of one block, by the plane of the TLB.
pub type Translations = [Option<Code>; 3];

/// Whether a block is worth translating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heat {
    /// How often it was executed.
    Runs(u32),
    /// Index of its translations.
    Translated(u32),
    /// It cannot be, or would not pay.
    Never,
}

impl Default for Cache {
    fn default() -> Self {
        let mut cache = Self {
            insns: Vec::new(),
            counts: Vec::new(),
            by_key: HashMap::default(),
            by_page: HashMap::default(),
            jumps: vec![NOWHERE; JUMPS].into(),
            epoch: 0,
            heat: Vec::new(),
            translations: Vec::new(),
            dropped: Vec::new(),
            cleared: false,
            limit: MAX_INSNS,
        };
        cache.clear();
        cache
    }
}

fn slot(linear: u64) -> usize {
    (linear.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % JUMPS
}

impl Cache {
    /// What is known under one of two tags, and whether it is the second.
    #[inline(always)]
    pub fn jump(&self, linear: u64, tags: [u64; 2]) -> Option<(Span, bool)> {
        let jump = &self.jumps[slot(linear)];
        let (all, global) = (jump.tag == tags[0], jump.tag == tags[1]);
        (jump.linear == linear && (all || global)).then_some((jump.span, !all))
    }

    pub fn set_jump(&mut self, linear: u64, tag: u64, span: Span) {
        self.jumps[slot(linear)] = Jump { linear, tag, span };
    }

    pub fn find(&self, key: &Key) -> Option<Span> {
        self.by_key.get(key).map(|block| block.span)
    }

    #[inline(always)]
    pub fn insns(&self, span: Span) -> &[Insn] {
        let start = span.start as usize;
        self.insns.get(start..start + usize::from(span.count)).unwrap_or_default()
    }

    /// Where the branch's target was found before, if it is still there. Only of branches
    /// within a page, which lead to the same place in every address space.
    #[inline(always)]
    pub fn chained(&self, branch: &Insn) -> Option<Span> {
        let start = branch.disp as u32;
        let count = *self.counts.get(start as usize)?;
        (count != 0).then_some(Span { start, count, len: 0 })
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Notes the target of the branch at this index, if nothing was dropped since `epoch`.
    pub fn chain(&mut self, epoch: u64, branch: u32, target: Span) {
        if epoch == self.epoch
            && let Some(insn) = self.insns.get_mut(branch as usize)
        {
            insn.disp = target.start as i32;
        }
    }

    /// Keeps more from now on.
    pub fn keep_for_translations(&mut self) {
        self.limit = MAX_WITH_TRANSLATIONS;
    }

    /// The block is found again, until it is forgotten.
    pub fn is_kept(&self, span: Span) -> bool {
        self.counts.get(span.start as usize).is_some_and(|count| *count != 0)
    }

    pub fn heat(&mut self, span: Span) -> Option<&mut Heat> {
        self.heat.get_mut(span.start as usize)
    }

    pub fn translations(&mut self, span: Span) -> Option<&mut Translations> {
        match *self.heat.get(span.start as usize)? {
            Heat::Translated(index) => self.translations.get_mut(index as usize),
            _ => None,
        }
    }

    /// Gives a block, which is still known, a place for translations.
    pub fn set_translated(&mut self, span: Span) {
        let index = self.translations.len() as u32;
        if let Some(heat) = self.heat.get_mut(span.start as usize) {
            *heat = Heat::Translated(index);
            self.translations.push(Translations::default());
        }
    }

    /// Translations that must not run any more, since the last call: all, or these.
    #[inline]
    pub fn take_dropped(&mut self) -> Option<(bool, Vec<Code>)> {
        if !self.cleared && self.dropped.is_empty() {
            return None;
        }
        Some((std::mem::take(&mut self.cleared), std::mem::take(&mut self.dropped)))
    }

    /// Keeps a block; without a key, only until the next one is added.
    pub fn add(
        &mut self,
        key: Option<Key>,
        insns: Vec<Insn>,
        gpa: Range<u64>,
        rest: Range<u64>,
    ) -> Span {
        if self.insns.len() + insns.len() > self.limit {
            self.clear();
        }
        let span = Span {
            start: self.insns.len() as u32,
            count: insns.len() as u16,
            len: insns.last().map_or(0, |i| i.end),
        };
        self.insns.extend(insns);
        self.counts.resize(self.insns.len(), 0);
        self.heat.resize(self.insns.len(), Heat::Runs(0));
        let Some(key) = key else { return span };
        if let Some(count) = self.counts.get_mut(span.start as usize) {
            *count = span.count;
        }
        let block = Block { span, gpa, rest };
        for page in block.pages().into_iter().flatten() {
            let list = self.by_page.entry(page).or_default();
            if !list.contains(&key) {
                list.push(key);
            }
        }
        self.by_key.insert(key, block);
        span
    }

    /// Forgets everything decoded from these guest-physical bytes.
    pub fn invalidate(&mut self, range: &Range<u64>) {
        if range.end.saturating_sub(range.start) > 64 * PAGE {
            return self.clear();
        }
        let mut gone = Vec::new();
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            let Some(list) = self.by_page.get(&page) else { continue };
            let hit = |key: &&Key| self.by_key.get(key).is_some_and(|b| b.overlaps(range));
            gone.extend(list.iter().filter(hit).copied());
        }
        for key in &gone {
            self.remove(key);
        }
        if !gone.is_empty() {
            self.jumps.fill(NOWHERE);
        }
    }

    fn remove(&mut self, key: &Key) {
        // An instruction across pages may be named twice.
        let Some(block) = self.by_key.remove(key) else { return };
        if let Some(count) = self.counts.get_mut(block.span.start as usize) {
            *count = 0;
        }
        if let Some(translations) = self.translations(block.span) {
            let gone = std::mem::take(translations);
            self.dropped.extend(gone.into_iter().flatten());
        }
        for page in block.pages().into_iter().flatten() {
            if let Some(list) = self.by_page.get_mut(&page) {
                list.retain(|k| k != key);
                if list.is_empty() {
                    self.by_page.remove(&page);
                }
            }
        }
    }

    pub fn clear(&mut self) {
        self.insns.clear();
        // Index zero stands for nothing.
        self.insns.push(semantics::insn::too_long());
        self.counts.clear();
        self.counts.push(0);
        self.heat.clear();
        self.heat.push(Heat::Never);
        self.translations.clear();
        self.dropped.clear();
        self.cleared = true;
        self.by_key.clear();
        self.by_page.clear();
        self.jumps.fill(NOWHERE);
        self.epoch += 1;
    }
}

impl Block {
    fn pages(&self) -> [Option<u64>; 2] {
        [&self.gpa, &self.rest].map(|r| (!r.is_empty()).then_some(r.start / PAGE))
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(cache: &mut Cache, key: Key, gpa: Range<u64>, rest: Range<u64>) -> Span {
        cache.add(Some(key), vec![semantics::insn::too_long()], gpa, rest)
    }

    fn key(start: u64) -> Key {
        Key { start, mode: 2, second: None }
    }

    #[test]
    fn only_what_was_written_is_forgotten() {
        let mut cache = Cache::default();
        let (a, b) = (key(0x1000), key(0x1010));
        let first = add(&mut cache, a, 0x1000..0x1010, 0..0);
        let second = add(&mut cache, b, 0x1010..0x1020, 0..0);
        cache.set_jump(0x5000, 7, first);
        assert_eq!(cache.jump(0x5000, [7, 3]), Some((first, false)));
        assert_eq!(cache.jump(0x5000, [6, 7]), Some((first, true)));
        assert_eq!(cache.jump(0x5000, [6, 8]), None);
        cache.invalidate(&(0x100f..0x1010));
        assert_eq!((cache.find(&a), cache.find(&b)), (None, Some(second)));
        assert_eq!(cache.jump(0x5000, [7, 3]), None);
        cache.invalidate(&(0..u64::MAX));
        assert_eq!(cache.find(&b), None);
    }

    #[test]
    fn a_chain_ends_with_its_target() {
        let mut cache = Cache::default();
        let from = add(&mut cache, key(0x1000), 0x1000..0x1010, 0..0);
        let to = add(&mut cache, key(0x1010), 0x1010..0x1020, 0..0);
        assert_eq!(cache.chained(&cache.insns(from)[0]), None);
        cache.chain(cache.epoch(), from.start, to);
        let found = cache.chained(&cache.insns(from)[0]).unwrap();
        assert_eq!((found.start, found.count), (to.start, to.count));
        cache.invalidate(&(0x1018..0x1019));
        assert_eq!(cache.chained(&cache.insns(from)[0]), None);
        let epoch = cache.epoch();
        cache.clear();
        cache.chain(epoch, from.start, to);
        assert!(cache.insns(from).is_empty());
    }

    #[test]
    fn an_instruction_across_pages_depends_on_both() {
        for write in [0x1fff..0x2000, 0x7000..0x7001] {
            let mut cache = Cache::default();
            let key = Key { start: 0x1ffe, mode: 2, second: Some(0x7000) };
            add(&mut cache, key, 0x1ffe..0x2000, 0x7000..0x7003);
            cache.invalidate(&(0x7003..0x7008));
            assert!(cache.find(&key).is_some());
            cache.invalidate(&write);
            assert!(cache.find(&key).is_none());
            assert!(cache.by_page.is_empty());
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = Cache::default();
        let many: Vec<_> = (0..64).map(|_| semantics::insn::too_long()).collect();
        let add = |cache: &mut Cache, n: u64| {
            let insns = many.iter().map(|_| semantics::insn::too_long()).collect();
            cache.add(Some(key(n * 64)), insns, n * 64..n * 64 + 64, 0..0)
        };
        for n in 0..MAX_INSNS as u64 / 64 + 2 {
            let span = add(&mut cache, n);
            assert_eq!(cache.insns(span).len(), 64);
        }
        assert!(cache.insns.len() < 256);
        assert!(cache.find(&key(0)).is_none());
    }
}
