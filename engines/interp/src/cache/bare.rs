//! Blocks of which only what leads to their translations is left.
//!
//! They live as long as the translations do: when a number is wanted, the oldest block goes, or
//! gets another number if it has a translation.

use super::{Block, Cache, Heat, MOVES, NOBODY, New, Span, Trust};
use translator::Code;

impl Cache {
    /// Where the block's instructions are now.
    pub fn current(&self, span: Span) -> Span {
        self.block(span.id).map_or(Span::default(), |b| b.span)
    }

    /// Makes room for one more block.
    pub(super) fn make_number(&mut self, lives: &dyn Fn(Code) -> bool) {
        let mut moves = MOVES;
        while self.next - self.oldest > self.block_mask {
            let id = self.oldest;
            if self.oldest_whole == id {
                self.strip_oldest();
            }
            let living = |b: &&Block| {
                moves > 0
                    && b.trust != Trust::Gone
                    && b.translations.iter().flatten().any(|c| lives(*c))
            };
            if let Some(block) = self.block(id).filter(living) {
                moves -= 1;
                let block = Block { span: Span { id: self.next, ..block.span }, ..block.clone() };
                self.remove_oldest(true);
                self.next += 1;
                self.insert(block);
            } else {
                self.remove_oldest(false);
            }
        }
    }

    /// The oldest block's number is nobody's. If it is `moved`, its translations live on.
    fn remove_oldest(&mut self, moved: bool) {
        let id = self.oldest;
        match moved {
            true => drop(self.take_out(id)),
            false => self.forget(id),
        }
        if let Some(block) = self.block_mut(id) {
            block.span.id = NOBODY;
        }
        self.oldest = id.wrapping_add(1).min(self.next);
    }

    /// Goes to the oldest block that has instructions.
    pub(super) fn skip_bare(&mut self) {
        let bare = |b: &Block| b.span.is_bare();
        while self.oldest_whole < self.next && self.block(self.oldest_whole).is_none_or(bare) {
            self.oldest_whole += 1;
        }
    }

    /// Instructions and bytes make room that were there longest; with them their block does, if
    /// it was not translated.
    pub(super) fn strip_oldest(&mut self) {
        let id = self.oldest_whole;
        self.oldest_whole = id.wrapping_add(1).min(self.next);
        let Some(block) = self.block_mut(id) else { return };
        let Span { start, count, .. } = block.span;
        block.span.count = 0;
        // Checked blocks change too often.
        let keeps =
            block.trust != Trust::Checked && !block.checked && block.heat == Heat::Translated;
        let insns = self.insns.get_mut(start as usize, count.into());
        let dropped = insns.iter_mut().filter_map(|insn| insn.cold.take()).count();
        self.colds = self.colds.saturating_sub(dropped);
        if !keeps {
            self.forget(id);
        }
    }

    /// Gives a bare block instructions again, decoded from these bytes. It has another number
    /// then.
    pub fn clothe(
        &mut self,
        span: Span,
        new: New<'_>,
        lives: &dyn Fn(Code) -> bool,
    ) -> Option<Span> {
        let old = self.block(span.id).filter(|b| b.trust != Trust::Gone)?.clone();
        self.take_out(span.id);
        let span = self.add(new, lives);
        let block = self.block_mut(span.id)?;
        block.translations = old.translations;
        (block.trust, block.heat) = (old.trust, old.heat);
        (block.soft, block.changes) = (old.soft, old.changes);
        Some(span)
    }

    /// A translation of a block.
    pub fn translation(&self, span: Span, lives: &dyn Fn(Code) -> bool) -> Option<Code> {
        let block = self.block(span.id)?;
        block.translations.iter().flatten().copied().find(|code| lives(*code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Key;
    use semantics::Insn;

    fn key(start: u64) -> Key {
        Key { start, mode: 2, second: None }
    }

    fn add(cache: &mut Cache, n: u64, lives: &dyn Fn(Code) -> bool) -> Span {
        let insns = (0..8).map(|i| Insn { end: i + 1, ..semantics::insn::too_long() });
        let (key, bytes) = (Some(key(n * 8)), [n as u8; 8]);
        cache.add(New { key, insns: &mut insns.collect(), bytes: &bytes, checked: false }, lives)
    }

    fn translate(cache: &mut Cache, span: Span) -> Code {
        let code = Code::default();
        cache.set_translated(span);
        cache.translations(span).unwrap()[2] = Some(code);
        code
    }

    #[test]
    fn what_was_translated_outlives_its_instructions() {
        let mut cache = Cache::with_room(512, 256);
        let (kept, other) = (add(&mut cache, 0, &|_| true), add(&mut cache, 1, &|_| true));
        let code = translate(&mut cache, kept);
        for n in 2..2000 {
            add(&mut cache, n, &|_| true);
        }
        assert!(cache.find(&key(8)).is_none() && !cache.is_kept(other));
        let (span, trust) = cache.find(&key(0)).unwrap();
        assert!(span.is_bare() && span.len == 8 && trust == Trust::Live);
        assert!(cache.insns(span).is_empty() && cache.bytes(span).is_empty());
        assert_eq!(cache.translations(span).unwrap()[2], Some(code));
        assert!(cache.dropped.gone.is_empty());
        // Its instructions are wanted again.
        let insns = (0..8).map(|i| Insn { end: i + 1, ..semantics::insn::too_long() });
        let (mut insns, key) = (insns.collect(), key(0));
        let new = New { key: Some(key), insns: &mut insns, bytes: &[0; 8], checked: false };
        let whole = cache.clothe(span, new, &|_| true).unwrap();
        assert_eq!(cache.find(&key), Some((whole, Trust::Live)));
        assert_eq!((cache.insns(whole).len(), cache.bytes(whole)), (8, &[0; 8][..]));
        assert_eq!(cache.translations(whole).unwrap()[2], Some(code));
        assert!(cache.dropped.gone.is_empty() && !cache.is_kept(span));
    }

    #[test]
    fn without_translations_nothing_is_left() {
        let mut cache = Cache::with_room(512, 256);
        let span = add(&mut cache, 0, &|_| true);
        translate(&mut cache, span);
        for n in 1..200 {
            add(&mut cache, n, &|_| true);
        }
        assert!(cache.find(&key(0)).unwrap().0.is_bare());
        for n in 200..600 {
            add(&mut cache, n, &|_| false);
        }
        assert_eq!(cache.find(&key(0)), None);
    }

    /// More than there are numbers for: the oldest go although they live.
    #[test]
    fn numbers_are_bounded() {
        let mut cache = Cache::with_room(512, 256);
        for n in 0..5000 {
            let span = add(&mut cache, n, &|_| true);
            assert_eq!((cache.insns(span).len(), cache.bytes(span)), (8, &[n as u8; 8][..]));
            translate(&mut cache, span);
            let whole = (cache.oldest..cache.next).filter_map(|id| cache.block(id));
            let mut pieces: Vec<u32> =
                whole.filter(|b| !b.span.is_bare()).map(|b| b.span.start).collect();
            pieces.sort_unstable();
            assert!(pieces.windows(2).all(|two| two[0] + 8 <= two[1]));
        }
        assert!(cache.blocks.len() <= 256 && cache.next - cache.oldest <= 256);
        let live = (0..5000).filter(|n| cache.find(&key(n * 8)).is_some()).count();
        assert!(live > 200, "{live}");
    }
}
