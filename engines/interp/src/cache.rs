//! Decoded blocks, and how they are found.
//!
//! Blocks, their instructions and the bytes that these were decoded from are kept in rings: when
//! one is full, the oldest blocks go, one by one. A block has a number that is never used again;
//! whoever keeps one asks whether the block is still there.
//!
//! Of a block that was translated, instructions and bytes go alone: the translator has the bytes,
//! and the instructions are seldom needed. Such a block is *bare* (`bare.rs`).

mod bare;
mod block;
mod ring;
#[cfg(test)]
mod tests;

pub use block::{Heat, Key, Trust};

use block::Block;
use ring::Ring;
use semantics::{Cold, Insn};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};
use translator::Code;

/// Instructions kept, unless [`Cache::resize`] says otherwise.
const INSNS: usize = 120_000;
/// Instructions for each block, on average, and bytes for each instruction, that there is
/// room for, about: blocks that are bare have none.
const PER_BLOCK: usize = 2;
const BYTES: usize = 5;
const JUMPS: usize = 16384;
/// Blocks that were forgotten are looked for in the lists of pages when there are more of them
/// than there are blocks, and so many.
const FORGOTTEN: usize = 1024;
const PAGE: u64 = 4096;
/// What an instruction's [`Cold`] takes, on average: there is room for so many.
const COLD: usize = 24;
/// What one takes, with the allocation.
const ONE_COLD: usize = size_of::<Cold>() + 24;
/// What a block takes beside its [`Block`]: in the lists of its hash and its pages.
const LISTS: usize = 4 + 16;

/// The number that no block has, nor asks for.
const NOBODY: u32 = u32::MAX;
/// Blocks that get another number when one is wanted, at most.
const MOVES: u32 = 8;

/// A block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Begins at one.
    pub id: u32,
    start: u32,
    pub count: u16,
    /// Length in bytes.
    pub len: u16,
}

/// What is known of a linear address under a tag of the MMU.
#[derive(Clone, Copy, Debug)]
struct Jump {
    linear: u64,
    /// The MMU's tag and the mode.
    tag: u64,
    id: u32,
}

const NOWHERE: Jump = Jump { linear: 0, tag: !0, id: 0 };

#[derive(Debug)]
pub struct Cache {
    insns: Ring<Insn>,
    bytes: Ring<u8>,
    /// Instructions of blocks that have a [`Cold`], and how many there may be.
    colds: usize,
    most_colds: usize,
    /// By number, modulo their capacity, which is a power of two.
    blocks: Vec<Block>,
    block_mask: u32,
    /// Numbers of the oldest block, of the oldest that may have instructions, and of the next.
    oldest: u32,
    oldest_whole: u32,
    next: u32,
    /// Numbers of the first block with each hash.
    heads: Vec<u32>,
    /// Of each page, those of blocks that were forgotten among them.
    by_page: HashMap<u64, Vec<u32>, BuildHasherDefault<Mix>>,
    /// How many of these there are at most.
    forgotten: usize,
    jumps: Box<[Jump]>,
    /// How often everything was dropped.
    epoch: u64,
    dropped: Dropped,
}

/// Translations that must not run any more.
#[derive(Debug, Default)]
pub struct Dropped {
    pub all: bool,
    /// For good.
    pub gone: Vec<Code>,
    /// Unless their block is found again.
    pub suspended: Vec<Code>,
}

/// Of one block, by version: see `translator::Source::version`.
pub type Translations = [Option<Code>; 4];

/// A block to be added.
#[derive(Debug)]
pub struct New<'n> {
    /// Without, it is not found again.
    pub key: Option<Key>,
    /// They are taken out.
    pub insns: &'n mut Vec<Insn>,
    /// From the beginning of the block.
    pub bytes: &'n [u8],
    /// Writes to its page are not noticed.
    pub checked: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Self::with_room(INSNS, (INSNS / PER_BLOCK).next_power_of_two())
    }
}

fn slot(linear: u64) -> usize {
    (linear.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % JUMPS
}

impl Span {
    /// It has no instructions: they have to be decoded once more.
    #[inline(always)]
    pub fn is_bare(&self) -> bool {
        self.count == 0
    }
}

impl Cache {
    /// Room for so many instructions, and blocks, which are a power of two.
    fn with_room(insns: usize, blocks: usize) -> Self {
        Self {
            insns: Ring::new(insns),
            bytes: Ring::new(insns * BYTES),
            colds: 0,
            most_colds: insns * COLD / ONE_COLD,
            blocks: Vec::with_capacity(blocks),
            block_mask: blocks as u32 - 1,
            oldest: 1,
            oldest_whole: 1,
            next: 1,
            heads: vec![0; blocks],
            by_page: HashMap::default(),
            forgotten: 0,
            jumps: vec![NOWHERE; JUMPS].into(),
            epoch: 0,
            dropped: Dropped { all: true, ..Dropped::default() },
        }
    }

    /// Forgets everything, and keeps at most so many bytes from now on; what can be kept at
    /// least is some 100 KiB.
    pub fn resize(&mut self, bytes: usize) {
        let (insn, block) = (size_of::<Insn>() + BYTES + COLD, size_of::<Block>() + LISTS);
        let wanted = (bytes / (PER_BLOCK * insn + block)).max(256);
        // The nearest power of two.
        let blocks = 1 << (wanted * 7 / 5).ilog2();
        let insns = (bytes.saturating_sub(blocks * block) / insn).max(1024);
        let epoch = self.epoch + 1;
        *self = Self { epoch, ..Self::with_room(insns, blocks) };
    }

    /// Bytes that blocks, their instructions and what belongs to these take now.
    pub fn in_use(&self) -> usize {
        let lists: usize = self.by_page.values().map(Vec::len).sum();
        self.insns.touched() * size_of::<Insn>()
            + self.bytes.touched()
            + self.colds * ONE_COLD
            + self.blocks.len() * size_of::<Block>()
            + lists * size_of::<u32>()
    }

    #[inline(always)]
    fn block(&self, id: u32) -> Option<&Block> {
        self.blocks.get((id & self.block_mask) as usize).filter(|b| b.span.id == id)
    }

    fn block_mut(&mut self, id: u32) -> Option<&mut Block> {
        self.blocks.get_mut((id & self.block_mask) as usize).filter(|b| b.span.id == id)
    }

    #[inline(always)]
    fn live(&self, id: u32) -> Option<Span> {
        self.block(id).filter(|b| b.trust == Trust::Live).map(|b| b.span)
    }

    /// What is known under one of two tags, and whether it is the second.
    #[inline(always)]
    pub fn jump(&self, linear: u64, tags: [u64; 2]) -> Option<(Span, bool)> {
        let jump = &self.jumps[slot(linear)];
        if jump.linear != linear || !tags.contains(&jump.tag) {
            return None;
        }
        Some((self.live(jump.id)?, jump.tag != tags[0]))
    }

    pub fn set_jump(&mut self, linear: u64, tag: u64, span: Span) {
        self.jumps[slot(linear)] = Jump { linear, tag, id: span.id };
    }

    pub fn find(&self, key: &Key) -> Option<(Span, Trust)> {
        let mut id = self.heads[self.bucket(key)];
        while let Some(block) = self.block(id) {
            if block.key == *key {
                return Some((block.span, block.trust));
            }
            id = block.next;
        }
        None
    }

    fn bucket(&self, key: &Key) -> usize {
        key.hash() as usize & self.block_mask as usize
    }

    #[inline(always)]
    pub fn insns(&self, span: Span) -> &[Insn] {
        self.insns.get(span.start as usize, usize::from(span.count))
    }

    /// What it was decoded from.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let whole = self.block(span.id).filter(|b| !b.span.is_bare());
        whole.map_or(&[], |b| self.bytes.get(b.bytes, usize::from(span.len)))
    }

    /// Where the branch's target was found before, if it is still there. Only of branches
    /// within a page, which lead to the same place in every address space.
    #[inline(always)]
    pub fn chained(&self, branch: &Insn) -> Option<Span> {
        self.live(branch.disp as u32)
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Notes the target of a block's branch, if nothing was dropped since `epoch`.
    pub fn chain(&mut self, epoch: u64, from: Span, branch: u32, target: Span) {
        if epoch == self.epoch
            // Where its instructions are now, if it has any.
            && let Some(from) = self.live(from.id)
            && let Some(insn) =
                self.insns.get_mut(from.start as usize, from.count.into()).get_mut(branch as usize)
        {
            insn.disp = target.id as i32;
        }
    }

    /// The block is found again, until it is forgotten.
    pub fn is_kept(&self, span: Span) -> bool {
        self.block(span.id).is_some_and(|b| matches!(b.trust, Trust::Live | Trust::Checked))
    }

    /// It was made for a page whose writes are not noticed.
    pub fn is_checked(&self, span: Span) -> bool {
        self.block(span.id).is_some_and(|b| b.checked)
    }

    pub fn heat(&mut self, span: Span) -> Option<&mut Heat> {
        self.block_mut(span.id).map(|b| &mut b.heat)
    }

    pub fn translations(&mut self, span: Span) -> Option<&mut Translations> {
        let block = self.block_mut(span.id)?;
        (block.heat == Heat::Translated).then_some(&mut block.translations)
    }

    /// Gives a block a place for translations.
    pub fn set_translated(&mut self, span: Span) {
        if let Some(block) = self.block_mut(span.id) {
            block.heat = Heat::Translated;
        }
    }

    /// Translations that must not run any more, since the last call.
    #[inline]
    pub fn take_dropped(&mut self) -> Option<Dropped> {
        let Dropped { all, gone, suspended } = &self.dropped;
        if !all && gone.is_empty() && suspended.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut self.dropped))
    }

    /// Keeps a block. `lives` tells which translations are still there.
    pub fn add(&mut self, new: New<'_>, lives: &dyn Fn(Code) -> bool) -> Span {
        new.insns.truncate(self.insns.capacity());
        let (count, len) = (new.insns.len(), new.insns.last().map_or(0, |i| i.end));
        let bytes = new.bytes.get(..len.into()).unwrap_or_default();
        let colds = count_colds(new.insns);
        if self.next >= u32::MAX - MOVES {
            self.clear();
        }
        self.make_number(lives);
        let (insns_at, bytes_at) = loop {
            self.skip_bare();
            let oldest = self.block(self.oldest_whole).map(|b| (b.span.start as usize, b.bytes));
            let places = (
                self.insns.place(count, oldest.map(|o| o.0)),
                self.bytes.place(bytes.len(), oldest.map(|o| o.1)),
            );
            let room = self.colds + colds <= self.most_colds || self.oldest_whole == self.next;
            match places {
                (Some(insns), Some(bytes)) if room => break (insns, bytes),
                _ => self.strip_oldest(),
            }
        };
        self.colds += colds;
        self.insns.put(insns_at, new.insns.drain(..));
        self.bytes.put_slice(bytes_at, bytes);
        let id = self.next;
        self.next += 1;
        let span = Span { id, start: insns_at as u32, count: count as u16, len };
        let (key, checked) = (new.key.unwrap_or_default(), new.checked);
        let trust = match new.key {
            None => Trust::Gone,
            Some(_) if checked => Trust::Checked,
            Some(_) => Trust::Live,
        };
        self.insert(Block {
            key,
            span,
            bytes: bytes_at,
            trust,
            checked,
            heat: Heat::Runs(0),
            translations: Translations::default(),
            soft: 0,
            changes: 0,
            turns: 0,
            next: 0,
        });
        span
    }

    /// Puts a block at its number.
    fn insert(&mut self, mut block: Block) {
        let id = block.span.id;
        if block.trust != Trust::Gone {
            let bucket = self.bucket(&block.key);
            block.next = std::mem::replace(&mut self.heads[bucket], id);
            for page in block.pages() {
                self.by_page.entry(page).or_default().push(id);
            }
        }
        match self.blocks.get_mut((id & self.block_mask) as usize) {
            Some(old) => *old = block,
            None => {
                // Numbers begin at one.
                while self.blocks.len() < (id & self.block_mask) as usize {
                    self.blocks.push(Block::none());
                }
                self.blocks.push(block);
            }
        }
    }

    /// The block is found no more.
    pub fn forget(&mut self, id: u32) {
        if let Some(translations) = self.take_out(id) {
            self.dropped.gone.extend(translations.into_iter().flatten());
        }
    }

    /// The same; its translations live on.
    fn take_out(&mut self, id: u32) -> Option<Translations> {
        let block = self.block_mut(id).filter(|b| b.trust != Trust::Gone)?;
        block.trust = Trust::Gone;
        let translations = std::mem::take(&mut block.translations);
        let (key, after) = (block.key, block.next);
        self.forgotten += block.pages().count();
        if self.forgotten > self.blocks.len() + FORGOTTEN {
            self.sweep();
        }
        let bucket = self.bucket(&key);
        if self.heads[bucket] == id {
            self.heads[bucket] = after;
            return Some(translations);
        }
        let mut before = self.heads[bucket];
        while let Some(block) = self.block_mut(before) {
            if block.next == id {
                block.next = after;
                break;
            }
            before = block.next;
        }
        Some(translations)
    }

    /// Takes what was forgotten out of the lists of the pages: not one by one, which takes a
    /// search.
    fn sweep(&mut self) {
        let (blocks, mask) = (&self.blocks, self.block_mask);
        let kept = |id: &u32| {
            let block = blocks.get((id & mask) as usize);
            block.is_some_and(|b| b.span.id == *id && b.trust != Trust::Gone)
        };
        self.by_page.retain(|_, list| {
            list.retain(kept);
            !list.is_empty()
        });
        self.forgotten = 0;
    }

    /// These guest-physical bytes were written: what was decoded from them is executed no more
    /// until it has been compared with what is there now.
    pub fn invalidate(&mut self, range: &Range<u64>) {
        if range.end.saturating_sub(range.start) > 64 * PAGE {
            return self.clear();
        }
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            let Some(list) = self.by_page.get_mut(&page) else { continue };
            let (blocks, mask, before) = (&mut self.blocks, self.block_mask, list.len());
            let suspended = &mut self.dropped.suspended;
            // What was forgotten goes from the list on the way.
            list.retain(|id| {
                let block = blocks.get_mut((id & mask) as usize).filter(|b| b.span.id == *id);
                let Some(block) = block.filter(|b| b.trust != Trust::Gone) else { return false };
                if block.trust != Trust::Suspect && block.overlaps(range) {
                    block.trust = Trust::Suspect;
                    suspended.extend(block.translations.iter().flatten());
                }
                true
            });
            self.forgotten = self.forgotten.saturating_sub(before - list.len());
            if list.is_empty() {
                self.by_page.remove(&page);
            }
        }
    }

    /// The block's bytes are what they were, and writes to them will be noticed.
    pub fn revive(&mut self, span: Span) {
        if let Some(block) = self.block_mut(span.id).filter(|b| b.trust == Trust::Suspect) {
            block.trust = if block.checked { Trust::Checked } else { Trust::Live };
        }
    }

    /// Of a checked block, only immediate operands have changed, of instructions with bits in
    /// `changed`: these were decoded anew. Translations stay if they load these operands.
    pub fn soften(&mut self, span: Span, insns: &mut Vec<Insn>, bytes: &[u8], changed: u64) {
        let Some(block) = self.block_mut(span.id) else { return };
        if changed & !block.soft != 0 {
            block.soft |= changed;
            let translations = std::mem::take(&mut block.translations);
            self.dropped.gone.extend(translations.into_iter().flatten());
        }
        let at = self.block(span.id).map_or(0, |b| b.bytes);
        let old = self.insns.get_mut(span.start as usize, span.count.into());
        let before = count_colds(old);
        old.iter_mut().zip(insns.drain(..)).for_each(|(old, new)| *old = new);
        self.colds = (self.colds + count_colds(old)).saturating_sub(before);
        let old = self.bytes.get_mut(at, span.len.into());
        old.iter_mut().zip(bytes).for_each(|(old, new)| *old = *new);
    }

    /// The block was written, and now has these instructions at these places; its bytes are all
    /// given.
    pub fn amend(&mut self, span: Span, changed: Vec<(usize, Insn)>, bytes: &[u8]) {
        let Some(block) = self.block_mut(span.id) else { return };
        let (translations, at) = (std::mem::take(&mut block.translations), block.bytes);
        // It has to become hot anew: that it ran before says little of what it is now, and a
        // translation would last until the next change only.
        (block.heat, block.turns) = (Heat::Runs(0), 0);
        self.dropped.gone.extend(translations.into_iter().flatten());
        let insns = self.insns.get_mut(span.start as usize, span.count.into());
        let before = count_colds(insns);
        for (index, insn) in changed {
            if let Some(old) = insns.get_mut(index) {
                *old = insn;
            }
        }
        self.colds = (self.colds + count_colds(insns)).saturating_sub(before);
        let old = self.bytes.get_mut(at, span.len.into());
        old.iter_mut().zip(bytes).for_each(|(old, new)| *old = *new);
    }

    /// Where a block is that is found.
    pub fn key(&self, span: Span) -> Option<Key> {
        self.block(span.id).filter(|b| b.trust != Trust::Gone).map(|b| b.key)
    }

    pub fn soft(&self, span: Span) -> u64 {
        self.block(span.id).map_or(0, |b| b.soft)
    }

    /// How often the block, or what was there before it, has changed otherwise.
    pub fn changes(&mut self, span: Span) -> Option<&mut u32> {
        self.block_mut(span.id).map(|b| &mut b.changes)
    }

    /// How often a branch of the block has led to another of its instructions; of blocks that
    /// need not be looked at before they are executed.
    pub fn turns(&mut self, span: Span) -> Option<&mut u32> {
        self.block_mut(span.id).filter(|b| b.trust == Trust::Live).map(|b| &mut b.turns)
    }

    pub fn clear(&mut self) {
        self.insns.clear();
        self.colds = 0;
        self.bytes.clear();
        self.blocks.clear();
        (self.oldest, self.oldest_whole, self.next) = (1, 1, 1);
        self.heads.fill(0);
        self.by_page.clear();
        self.forgotten = 0;
        self.jumps.fill(NOWHERE);
        self.dropped = Dropped { all: true, ..Dropped::default() };
        self.epoch += 1;
    }
}

fn count_colds(insns: &[Insn]) -> usize {
    insns.iter().filter(|insn| insn.cold.is_some()).count()
}

/// A multiplicative hash of page numbers.
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
