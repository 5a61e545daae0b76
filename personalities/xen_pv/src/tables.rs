//! Page tables of the domain: every entry is checked when it comes, and let go when it goes.

use crate::{
    frames::{Forget, Frames, Use},
    memory::{ENTRIES, Memory},
};
use engine::TableChanges;
use guest_mem::PAGE;
use x86_defs::paging::{A, ADDRESS, D, G, NX, P, PCD, PS, PWT, RW, US};
use xen_abi::{errno::Errno, xen::HYPERVISOR_SLOTS};

/// Of a table: 1 maps pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    L1 = 1,
    L2,
    L3,
    L4,
}

impl Level {
    pub fn below(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// The lowest bit of a linear address that indexes such a table.
    pub fn shift(self) -> u32 {
        3 + 9 * self as u32
    }
}

/// Bits that software has for itself.
const AVAILABLE: u64 = 7 << 9 | 0x7f << 52;
/// PAT in an entry that maps a page.
const PAT: u64 = PS;
/// What the domain may say of a page.
const PAGE_BITS: u64 = P | RW | US | PWT | PCD | A | D | PAT | G | AVAILABLE | NX | ADDRESS;
/// What it may say of a table.
const TABLE_BITS: u64 = P | RW | US | A | D | AVAILABLE | NX | ADDRESS;

/// The hypervisor's entries of each L4 table.
pub type Slots = [u64; 16];

/// The table that an entry is in.
#[derive(Clone, Copy, Debug)]
struct Parent {
    level: Level,
    /// The entry may be part of the upper half of an address space.
    upper: bool,
}

/// Page tables, and what is known of all frames.
#[derive(Debug)]
pub struct Tables {
    pub frames: Frames,
    pub memory: Memory,
    pub slots: Slots,
    /// Entries that were looked at.
    pub work: u64,
    pub changes: TableChanges,
}

fn frame_of(entry: u64) -> u64 {
    (entry & ADDRESS) / PAGE
}

/// The entry as it is put into the table: the domain's kernel, too, runs in ring 3.
fn adjusted(level: Level, entry: u64) -> u64 {
    if entry & P == 0 {
        return entry;
    }
    let entry = entry | US;
    if level == Level::L1 { entry & !G } else { entry }
}

/// Those that are not zero, as most are, with their places.
fn used(entries: [u64; ENTRIES]) -> impl Iterator<Item = (usize, u64)> {
    entries.into_iter().enumerate().filter(|(_, entry)| *entry != 0)
}

fn is_hypervisors(level: Level, index: usize) -> bool {
    level == Level::L4 && HYPERVISOR_SLOTS.contains(&index)
}

impl Tables {
    /// Uses a frame as a table of this level, and holds it.
    pub fn start_table(
        &mut self,
        frame: u64,
        level: Level,
        forget: Forget<'_>,
    ) -> Result<(), Errno> {
        self.frames.hold(frame)?;
        let started = self.frames.start(frame, Use::Table(level), forget);
        let result = match started {
            Ok(true) => self.look_through(frame, level, forget).inspect_err(|_| {
                self.frames.end(frame);
            }),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.frames.let_go(frame);
        }
        result
    }

    /// The opposite of [`Tables::start_table`].
    pub fn end_table(&mut self, frame: u64, level: Level) {
        if self.frames.end(frame) {
            self.work += ENTRIES as u64;
            self.changes.any += 1;
            for (index, entry) in used(self.memory.entries(frame)) {
                if !is_hypervisors(level, index) {
                    self.let_go(level, entry);
                }
            }
        }
        self.frames.let_go(frame);
    }

    /// Pins a table of a domain that is restored.
    pub fn pin_again(&mut self, frame: u64, level: Level) -> Result<(), Errno> {
        if frame >= self.frames.ram() || self.frames.get(frame).is_some_and(|found| found.pinned) {
            return Err(Errno::Inval);
        }
        self.start_table(frame, level, &mut |_| {})?;
        self.frames.set_pinned(frame, true);
        Ok(())
    }

    /// Holds a page that the hypervisor writes: it becomes no table.
    pub fn hold_written(&mut self, frame: u64, forget: Forget<'_>) -> Result<(), Errno> {
        self.frames.hold(frame)?;
        self.frames.start(frame, Use::Writable, forget).inspect_err(|_| {
            self.frames.let_go(frame);
        })?;
        Ok(())
    }

    /// The opposite of [`Tables::hold_written`].
    pub fn release_written(&mut self, frame: u64) {
        self.frames.end(frame);
        self.frames.let_go(frame);
    }

    /// One word is written to a page of the domain's that is not used otherwise.
    pub fn write_word(&mut self, at: u64, value: u64, forget: Forget<'_>) -> Result<(), Errno> {
        let frame = at / PAGE;
        self.hold_written(frame, forget)?;
        self.memory.store(at, value);
        self.release_written(frame);
        Ok(())
    }

    /// Takes all that a new table maps; nothing if one entry is not allowed.
    fn look_through(&mut self, frame: u64, level: Level, forget: Forget<'_>) -> Result<(), Errno> {
        self.work += ENTRIES as u64;
        // Nobody else writes to it any more.
        for (index, entry) in used(self.memory.entries(frame)) {
            if is_hypervisors(level, index) {
                continue;
            }
            let at = address(frame, index);
            match self.take(self.parent(level, at), entry, forget) {
                Ok(()) => {
                    let right = adjusted(level, entry);
                    if right != entry {
                        self.memory.store(at, right);
                    }
                }
                Err(error) => {
                    for index in (0..index).filter(|index| !is_hypervisors(level, *index)) {
                        let entry = self.memory.load(address(frame, index));
                        self.let_go(level, entry);
                    }
                    return Err(error);
                }
            }
        }
        if level == Level::L4 {
            for (index, entry) in HYPERVISOR_SLOTS.zip(self.slots) {
                self.memory.store(address(frame, index), entry);
            }
        }
        Ok(())
    }

    /// A table, and all below it, may be part of the upper half from now on.
    fn reach_from_above(&mut self, frame: u64, level: Level) {
        if !self.frames.reach_from_above(frame) {
            return;
        }
        let Some(below) = level.below() else { return };
        self.work += ENTRIES as u64;
        for (_, entry) in used(self.memory.entries(frame)) {
            if entry & P != 0 {
                self.reach_from_above(frame_of(entry), below);
            }
        }
    }

    /// Where the entry at `at` is.
    fn parent(&self, level: Level, at: u64) -> Parent {
        let upper = match level {
            Level::L4 => at % PAGE / 8 >= ENTRIES as u64 / 2,
            _ => self.frames.get(at / PAGE).is_none_or(|found| found.upper),
        };
        Parent { level, upper }
    }

    /// What an entry names is used by it from now on.
    fn take(&mut self, from: Parent, entry: u64, forget: Forget<'_>) -> Result<(), Errno> {
        if entry & P == 0 {
            return Ok(());
        }
        let frame = frame_of(entry);
        match from.level.below() {
            Some(below) if entry & !TABLE_BITS == 0 => {
                self.start_table(frame, below, forget)?;
                if from.upper {
                    self.reach_from_above(frame, below);
                }
                Ok(())
            }
            None if entry & !PAGE_BITS == 0 => {
                self.frames.hold(frame)?;
                if entry & RW != 0
                    && let Err(error) = self.frames.start(frame, Use::Writable, forget)
                {
                    self.frames.let_go(frame);
                    return Err(error);
                }
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// The opposite of [`Tables::take`].
    fn let_go(&mut self, level: Level, entry: u64) {
        if entry & P == 0 {
            return;
        }
        let frame = frame_of(entry);
        match level.below() {
            Some(below) => self.end_table(frame, below),
            None => {
                if entry & RW != 0 {
                    self.frames.end(frame);
                }
                self.frames.let_go(frame);
            }
        }
    }

    /// Changes an entry of a table that is in use as one. `keep` keeps the bits A and D.
    pub fn update(
        &mut self,
        at: u64,
        level: Level,
        value: u64,
        keep: bool,
        forget: Forget<'_>,
    ) -> Result<(), Errno> {
        if is_hypervisors(level, (at % PAGE / 8) as usize) {
            return Err(Errno::Inval);
        }
        let from = self.parent(level, at);
        self.take(from, value, forget)?;
        let value = adjusted(level, value);
        loop {
            let old = self.memory.load(at);
            let kept = if keep && value & old & P != 0 { old & (A | D) } else { 0 };
            if self.memory.exchange(at, old, value | kept) {
                self.note(from, old, value | kept);
                self.let_go(level, old);
                return Ok(());
            }
        }
    }

    /// An entry has become another: TLBs may still have it as it was. What only gives a right that
    /// it did not give is none: without it, an access looks at the entry again.
    fn note(&mut self, from: Parent, old: u64, new: u64) {
        let page = |entry: u64| entry & (P | ADDRESS | PS | PWT | PCD);
        let same = page(old) == page(new);
        // What was accessed or written is said again only by who looks at the entry.
        let taken = old & !new & (RW | A | D) != 0 || new & NX & !old != 0;
        if old & P == 0 || from.level == Level::L1 && same && !taken {
            return;
        }
        self.changes.any += 1;
        if from.upper {
            self.changes.upper += 1;
            let code = from.level != Level::L1 || old & NX == 0 && (!same || new & NX != 0);
            self.changes.code += u64::from(code);
        }
    }

    /// As [`Tables::update`], if the entry is `old` (but for bits A and D if it is not asked for
    /// them); what it is otherwise.
    pub fn compare_exchange(
        &mut self,
        at: u64,
        level: Level,
        old: u64,
        value: u64,
        forget: Forget<'_>,
    ) -> Result<Result<(), u64>, Errno> {
        if is_hypervisors(level, (at % PAGE / 8) as usize) {
            return Err(Errno::Inval);
        }
        let from = self.parent(level, at);
        self.take(from, value, forget)?;
        if self.memory.exchange(at, old, adjusted(level, value)) {
            self.note(from, old, value);
            self.let_go(level, old);
            return Ok(Ok(()));
        }
        self.let_go(level, value);
        Ok(Err(self.memory.load(at)))
    }

    /// See [`Memory::l1_entry`].
    pub fn l1_entry(&self, root: u64, linear: u64) -> Option<u64> {
        self.memory.l1_entry(root, linear)
    }
}

fn address(frame: u64, index: usize) -> u64 {
    frame * PAGE + index as u64 * 8
}
