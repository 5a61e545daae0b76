//! One check of the TLB for several accesses of a block.
//!
//! Where several accesses are near each other (see [`super::access`]), the first one checks the
//! whole range, and leaves the distance to the host address in a slot of the state for the
//! others. This holds until a handler runs, which may change anything. So a block that has such
//! accesses exists twice from the first to the last of them: once so, and once plain, with a
//! check for each. Control goes on in the plain one if the check of a range fails or a handler
//! has run. Checks come before any effect of their instruction, which can thus be begun again.

use super::{
    Lowerer, Untranslated, Why,
    access::{Access, Key, Which},
};
use crate::{
    asm::Patch,
    probe::Place,
    regs::{SA, SB, SC},
    state::{SLOTS, field, slot},
};

use iced_x86::Instruction;

/// What a range spans at most: the larger it is, the likelier it crosses a page.
const SPAN: i64 = 512;
/// The same of what is checked by a window: around that is more than this of nothing.
const WINDOW_SPAN: i64 = 1 << 16;

/// A range that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fact {
    key: Key,
    from: i64,
    to: i64,
    write: bool,
    slot: usize,
    /// Where it is aligned, to so much.
    aligned: (i64, u8),
    /// The last instruction that makes use of it.
    last: usize,
}

/// What is known where the next instruction is made.
#[derive(Debug, Default)]
pub(super) struct Reuse {
    pub accesses: Vec<[Option<Access>; 2]>,
    facts: Vec<Fact>,
    /// The slot whose distance is still in [`SB`]: before the instruction, and after it.
    pub held: Option<usize>,
    holds: Option<usize>,
    /// Where the doubled part began that is not yet over.
    open: Option<usize>,
    /// First and last instruction of doubled parts.
    pub doubled: Vec<(usize, usize)>,
    /// The plain part is being made.
    pub plain: bool,
}

impl Reuse {
    /// For another block.
    pub fn emptied(self) -> Self {
        let Self { mut accesses, mut facts, mut doubled, .. } = self;
        accesses.clear();
        facts.clear();
        doubled.clear();
        Self { accesses, facts, doubled, ..Self::default() }
    }

    pub fn accesses(&self) -> &[[Option<Access>; 2]] {
        &self.accesses
    }

    /// Before an instruction.
    pub fn begin(&mut self) {
        self.held = self.holds.take();
    }

    /// The instruction leaves [`SB`] alone.
    pub fn keep(&mut self) {
        self.holds = self.held;
    }

    /// [`SB`] is used otherwise.
    pub fn lost(&mut self) {
        self.held = None;
    }

    /// After an instruction; if `handled`, its handler has run, and what was made for it is
    /// not there any more.
    pub fn end(&mut self, index: usize, handled: bool) {
        if self.plain {
            return;
        }
        if handled {
            self.facts.clear();
            self.holds = None;
        }
        self.facts.retain(|fact| fact.last > index);
        if !self.facts.is_empty() {
            return;
        }
        let last = if handled { index.checked_sub(1) } else { Some(index) };
        if let (Some(first), Some(last)) = (self.open.take(), last)
            && first <= last
        {
            self.doubled.push((first, last));
        }
    }

    /// The instruction is in a doubled part, and so is the next.
    pub fn inside(&self, index: usize) -> bool {
        self.doubled.iter().any(|(first, last)| (*first..*last).contains(&index))
    }

    fn access(&self, index: usize, which: Which) -> Option<Access> {
        if self.plain {
            return None;
        }
        *self.accesses.get(index)?.get(which as usize)?
    }

    fn fact(&self, access: &Access, len: usize, write: bool) -> Option<usize> {
        let end = access.at.checked_add(len as i64)?;
        let covers = |fact: &&Fact| {
            fact.key == access.key
                && fact.from <= access.at
                && end <= fact.to
                && (fact.write || !write)
        };
        self.facts.iter().find(covers).map(|fact| fact.slot)
    }

    /// The access of a PUSH or POP is in a range that was checked.
    pub fn knows_stack(&self, index: usize) -> bool {
        let access = self.access(index, Which::Stack);
        let slot = access.and_then(|access| self.fact(&access, 8, access.write));
        self.facts.iter().any(|fact| Some(fact.slot) == slot && fact.last >= index)
    }

    /// The range of an access and of those that follow; `None` if it is alone.
    fn range(
        &self,
        index: usize,
        which: Which,
        access: &Access,
        write: bool,
        most: i64,
    ) -> Option<Fact> {
        let slot = (0..SLOTS).find(|slot| self.facts.iter().all(|fact| fact.slot != *slot))?;
        let (from, to) = (access.at, access.end());
        let mut fact =
            Fact { key: access.key, from, to, write, slot, aligned: (0, 1), last: index };
        let mut alone = true;
        for (n, pair) in self.accesses.iter().enumerate().skip(index) {
            // Of the same instruction, what follows.
            let skip = if n == index { which as usize + 1 } else { 0 };
            for other in pair.iter().skip(skip).flatten().filter(|other| other.key == fact.key) {
                let (from, to) = (fact.from.min(other.at), fact.to.max(other.end()));
                if to.checked_sub(from).is_none_or(|span| span > most) {
                    continue;
                }
                (fact.from, fact.to, fact.last) = (from, to, n);
                fact.write |= other.write;
                alone = false;
            }
        }
        (!alone).then_some(fact)
    }
}

impl Lowerer<'_> {
    /// Checks the access to the memory operand.
    pub(super) fn operand(
        &mut self,
        insn: &Instruction,
        write: bool,
        len: usize,
    ) -> Result<Place, Untranslated> {
        self.aligned_operand(insn, write, len, 1)
    }

    /// The same, where what is not aligned to 16 or 32 bytes is left to the handler.
    pub(super) fn aligned_operand(
        &mut self,
        insn: &Instruction,
        write: bool,
        len: usize,
        alignment: u8,
    ) -> Result<Place, Untranslated> {
        let place = self.place(insn)?;
        Ok(self.access(Which::Operand, place, write, len, alignment))
    }

    /// Checks the access that moves the stack pointer.
    pub(super) fn stack(&mut self, base: u8, disp: i32, write: bool) -> Place {
        self.access(Which::Stack, Place { base, disp }, write, 8, 1)
    }

    /// Checks an access of the instruction under way, unless that was done; the operand is
    /// [`Place::host`] of the result. [`SA`] may be lost.
    fn access(
        &mut self,
        which: Which,
        place: Place,
        write: bool,
        len: usize,
        alignment: u8,
    ) -> Place {
        let place = self.check(which, place, write, len, alignment);
        self.flags_before_effect();
        place
    }

    fn check(
        &mut self,
        which: Which,
        place: Place,
        write: bool,
        len: usize,
        alignment: u8,
    ) -> Place {
        let Some(access) = self.reuse.access(self.index, which) else {
            let flags = self.spare_flags();
            return self.probe_aligned(place, write, len, alignment, flags);
        };
        if let Some(number) = self.reuse.fact(&access, len, write) {
            if self.reuse.held != Some(number) {
                self.asm.load(SB, slot(number));
                self.scratch.lost(SB);
            }
            self.reuse.holds = Some(number);
            self.reuse.held = None;
            // The distance may be that of a window, which has not all pages.
            self.used_window |= !self.expected_windows.is_empty() && !self.reuse.plain;
            self.align(number, &access, place, alignment);
            return place;
        }
        self.reuse.held = None;
        let most = if self.window(place).is_some() { WINDOW_SPAN } else { SPAN };
        let fact = self.reuse.range(self.index, which, &access, write, most);
        let first = fact.and_then(|fact| self.first(&access, &fact, place));
        if let (Some(fact), Some(place)) = (fact, first) {
            self.align(fact.slot, &access, place, alignment);
            return place;
        }
        let flags = self.spare_flags();
        self.probe_aligned(place, write, len, alignment, flags)
    }

    /// Leaves the instruction to the handler if its operand is not aligned, unless that is
    /// known from one before.
    fn align(&mut self, slot: usize, access: &Access, place: Place, alignment: u8) {
        if alignment <= 1 {
            return;
        }
        let Some(fact) = self.reuse.facts.iter_mut().find(|fact| fact.slot == slot) else { return };
        let apart = access.at.wrapping_sub(fact.aligned.0);
        if fact.aligned.1 >= alignment && apart % i64::from(alignment) == 0 {
            return;
        }
        fact.aligned = (access.at, alignment);
        let below = if alignment == 32 { field!(below_32) } else { field!(below_16) };
        self.scratch.lost(SC);
        self.handler_unless_zero(|asm| {
            let address = match place.disp {
                0 => place.base,
                _ => {
                    asm.lea(SC, place.linear(), true);
                    SC
                }
            };
            asm.pext(SC, address, below);
        });
    }

    /// The check of a range, at the first access.
    fn first(&mut self, access: &Access, fact: &Fact, place: Place) -> Option<Place> {
        let down = i32::try_from(access.at.checked_sub(fact.from)?).ok()?;
        let start = Place { base: place.base, disp: place.disp.checked_sub(down)? };
        let len = usize::try_from(fact.to.checked_sub(fact.from)?).ok()?;
        let flags = self.spare_flags();
        if let Some(window) = self.window(place) {
            let patch = self.look_by_window(window, place, start, fact.write, len, 1, flags);
            self.ranged(fact, patch);
            return Some(place);
        }
        let place = match start.disp {
            0 => place,
            _ => {
                self.asm.lea(SA, start.linear(), true);
                self.scratch.lost(SA);
                Place { base: SA, disp: down }
            }
        };
        let patch = self.look_up(place.base, fact.write, len, 1, flags);
        self.scratch.lost(SB);
        self.scratch.lost(SC);
        self.ranged(fact, patch);
        Some(place)
    }

    /// The range has been checked, or control has gone to `patch`.
    fn ranged(&mut self, fact: &Fact, patch: Option<Patch>) {
        self.asm.store(slot(fact.slot), SB);
        self.miss(patch, Why::Plain);
        self.reuse.facts.push(*fact);
        self.reuse.holds = Some(fact.slot);
        self.reuse.open.get_or_insert(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        forms::Forms,
        lower::{BASE, access::accesses},
    };
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn nothing_is_known_after_a_handler() {
        // mov rax, [rdi]; mov rcx, [rdi+8]; mov rdx, [rdi+16]
        let bytes = [0x48, 0x8b, 0x07, 0x48, 0x8b, 0x4f, 0x08, 0x48, 0x8b, 0x57, 0x10];
        let insns: Vec<_> =
            Decoder::with_ip(64, &bytes, BASE, DecoderOptions::NONE).iter().collect();
        let begun = || {
            let mut reuse = Reuse::default();
            accesses(&insns, &mut Forms::default(), &mut reuse.accesses, &mut Vec::new());
            reuse.begin();
            let first = reuse.access(0, Which::Operand).unwrap();
            let fact = reuse.range(0, Which::Operand, &first, false, SPAN).unwrap();
            assert_eq!((fact.from, fact.to, fact.last, fact.write), (0, 24, 2, false));
            reuse.facts.push(fact);
            (reuse.holds, reuse.open) = (Some(fact.slot), Some(0));
            reuse.end(0, false);
            reuse
        };
        for handled in [false, true] {
            let mut reuse = begun();
            reuse.begin();
            let second = reuse.access(1, Which::Operand).unwrap();
            assert!(reuse.fact(&second, 8, false).is_some() && reuse.held.is_some());
            assert!(reuse.fact(&second, 8, true).is_none());
            reuse.keep();
            reuse.end(1, handled);
            reuse.begin();
            let third = reuse.access(2, Which::Operand).unwrap();
            assert_eq!(reuse.fact(&third, 8, false).is_none(), handled);
            assert_eq!(reuse.held.is_none(), handled);
            reuse.end(2, false);
            assert_eq!(reuse.doubled, if handled { [(0, 0)] } else { [(0, 2)] });
            assert_eq!((reuse.inside(1), reuse.inside(2)), (!handled, false));
        }
    }
}
