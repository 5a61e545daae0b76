//! Direct branches to other pages.
//!
//! Where such a branch goes depends on the linear address of the page that it is in, and on what
//! the address space has there. The table of jumps knows; a branch keeps a copy of its entry,
//! and goes there if it is in the same page and space as when it was copied. Both are told by
//! the sum of the page and of the table's address: tables are not a multiple of a page apart. A
//! copy is taken back when its entry is.

use crate::{
    asm::Mem,
    jumps::Tables,
    state::{BIAS, State},
};
use std::{collections::HashMap, mem::offset_of};

/// Such branches at most; others look the table up.
pub const FARS: usize = 1 << 15;
/// A branch that comes from different places by turns is left to the table after so many.
const MOST: u8 = 4;
/// No sum of a page and a table, which are aligned.
const NOWHERE: u64 = 1;

/// Where a branch goes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Far {
    /// The negated sum of the page and of the address of the table.
    pub key: u64,
    /// Linear address of the target's page.
    pub page: u64,
    pub host: u64,
    /// Host address of what is done elsewhere.
    pub miss: u64,
}

/// The field at an offset in the record of a branch.
pub fn far(number: u32, at: usize) -> Mem {
    let record = offset_of!(State, fars) + number as usize % FARS * size_of::<Far>();
    Mem::at(crate::asm::RSP, (record + at) as i32 - BIAS as i32)
}

/// Which entries were copied.
#[derive(Debug, Default)]
pub struct Copies {
    /// By the number of the entry, those of branches.
    of: HashMap<u32, Vec<u32>>,
    /// How often each branch has copied, and the last entry.
    times: Vec<(u8, u32)>,
    /// Those that do not any more.
    settled: Vec<u32>,
}

impl Copies {
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What was copied of an entry holds no more.
    pub fn forget(&mut self, state: &mut State, entry: u32) {
        let host = state.jump(entry).host;
        for number in self.of.remove(&entry).unwrap_or_default() {
            // It may be a copy of another by now.
            if let Some(far) = state.fars.get_mut(number as usize).filter(|far| far.host == host) {
                far.key = NOWHERE;
            }
        }
    }

    /// There is another address space: those that went to many may settle in it.
    pub fn unsettle(&mut self, state: &mut State, relink: u64) {
        for number in self.settled.drain(..) {
            if let Some((times, _)) = self.times.get_mut(number as usize) {
                *times = MOST - 1;
            }
            if let Some(far) = state.fars.get_mut(number as usize) {
                far.miss = relink;
            }
        }
    }

    /// The branch, in the present page and space, goes where the entry does, whose page it is
    /// that is jumped to. `settled`: what it does from now on if it has copied too often.
    fn copy(&mut self, state: &mut State, number: u32, entry: u32, settled: u64) {
        let jump = state.jump(entry);
        let sum = state.page.wrapping_add(state.table);
        let Some(far) = state.fars.get_mut(number as usize) else { return };
        if self.times.len() <= number as usize {
            self.times.resize(number as usize + 1, (0, entry));
        }
        let (times, last) = &mut self.times[number as usize];
        *times += 1;
        // In one list at most: otherwise these would grow with each alias of a page.
        if *last != entry
            && let Some(copies) = self.of.get_mut(last)
        {
            copies.retain(|copy| *copy != number);
        }
        *last = entry;
        let miss = if *times < MOST { far.miss } else { settled };
        if *times >= MOST {
            if self.settled.len() >= 2 * FARS {
                // Numbers whose branches were evicted, and that others have got.
                self.settled.sort_unstable();
                self.settled.dedup();
            }
            self.settled.push(number);
        }
        *far = Far { key: sum.wrapping_neg(), page: jump.page, host: jump.host, miss };
        let copies = self.of.entry(entry).or_default();
        if !copies.contains(&number) {
            copies.push(number);
        }
    }
}

impl Tables {
    /// A new branch, which goes nowhere yet.
    pub fn set_far(&mut self, state: &mut State, number: u32) {
        let record = Far { key: NOWHERE, page: 0, host: 0, miss: self.relink };
        state.fars[number as usize % FARS] = record;
        if let Some(times) = self.copies.times.get_mut(number as usize) {
            times.0 = 0;
        }
    }

    /// A branch missed whose target is `State::missed`.
    pub fn copy(&mut self, state: &mut State, settled: u64) {
        let (number, linear) = (state.far, state.missed);
        if let Some(entry) = self.find(state, linear) {
            self.copies.copy(state, number, entry, settled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    #[test]
    fn a_copy_lives_as_long_as_its_entry() {
        let mut state = Region::new().unwrap();
        state.jump_mask = crate::jumps::mask(512);
        let mut tables = Tables::default();
        tables.clear(&mut state);
        let settled = 20;
        tables.relink = 10;
        tables.set_far(&mut state, 7);
        let goes = |state: &State| {
            let far = &state.fars[7];
            let here = state.page.wrapping_add(state.table);
            (far.key.wrapping_add(here) == 0).then_some((far.host, far.page))
        };
        tables.enter(&mut state, 2, 100, 0);
        let miss = |tables: &mut Tables, state: &mut State| {
            (state.far, state.missed) = (7, 0x5123);
            tables.copy(state, settled);
        };
        state.page = 0x4000;
        miss(&mut tables, &mut state);
        assert_eq!(goes(&state), None, "the table does not know it");
        let entry = tables.set(&mut state, 0x5123, 77).unwrap();
        miss(&mut tables, &mut state);
        assert_eq!(goes(&state), Some((77, 0x5000)));
        // In another page, and in another space.
        state.page = 0x8000;
        assert_eq!(goes(&state), None);
        state.page = 0x4000;
        tables.enter(&mut state, 2, 101, 0);
        assert_eq!(goes(&state), None);
        tables.enter(&mut state, 2, 100, 0);
        assert_eq!(goes(&state), Some((77, 0x5000)));
        // The block goes.
        tables.forget(&mut state, entry);
        assert_eq!((goes(&state), state.jump_goes(entry, 77)), (None, false));
        // Another one is there.
        tables.set(&mut state, 0x5123, 78).unwrap();
        miss(&mut tables, &mut state);
        assert_eq!(goes(&state), Some((78, 0x5000)));
        tables.set(&mut state, 0x5123, 79).unwrap();
        assert_eq!(goes(&state), None);
        // The space makes room for others.
        miss(&mut tables, &mut state);
        for space in 1..=crate::jumps::TABLES as u64 {
            tables.enter(&mut state, 2, 200 + space, 0);
            assert_eq!(goes(&state), None, "{space}");
        }
        tables.enter(&mut state, 2, 100, 0);
        assert_eq!(goes(&state), None);
    }

    #[test]
    fn who_comes_from_many_places_is_left_to_the_table() {
        let mut state = Region::new().unwrap();
        state.jump_mask = crate::jumps::mask(512);
        let mut tables = Tables::default();
        tables.clear(&mut state);
        tables.relink = 10;
        tables.set_far(&mut state, 3);
        tables.enter(&mut state, 2, 100, 0);
        tables.set(&mut state, 0x5123, 77).unwrap();
        for n in 1..=u64::from(MOST) {
            assert_eq!(state.fars[3].miss, 10);
            (state.page, state.far, state.missed) = (n << 12, 3, 0x5123);
            tables.copy(&mut state, 20);
        }
        assert_eq!(state.fars[3].miss, 20);
        tables.copies.unsettle(&mut state, 10);
        assert_eq!(state.fars[3].miss, 10);
        tables.copy(&mut state, 20);
        // To another target: it is in the list of that one only.
        tables.set(&mut state, 0x6123, 78).unwrap();
        state.missed = 0x6123;
        tables.copy(&mut state, 20);
        assert_eq!(tables.copies.of.values().map(Vec::len).sum::<usize>(), 1);
        state.missed = 0x5123;
        assert_eq!(state.fars[3].miss, 20);
        // Another one gets its number.
        tables.set_far(&mut state, 3);
        tables.copy(&mut state, 20);
        assert_eq!(state.fars[3].miss, 10);
        // What is kept of them does not grow with all that there ever were.
        for _ in 0..3 * FARS {
            tables.set_far(&mut state, 3);
            (0..MOST).for_each(|_| tables.copy(&mut state, 20));
        }
        assert_eq!(state.fars[3].miss, 20);
        assert!(tables.copies.settled.len() <= 2 * FARS);
        tables.copies.unsettle(&mut state, 10);
        assert_eq!(state.fars[3].miss, 10);
    }
}
