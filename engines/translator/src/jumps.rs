//! Where jumps go whose target is not known: tables of linear addresses, one for each address
//! space that was used lately.
//!
//! A look-up compares one address: what else a target depends on has chosen the table. That an
//! address is canonical need not be asked before, since only such ones are in the tables.

use crate::{
    asm::{Asm, Mem},
    far::Copies,
    regs::{SA, SB, SC},
    spaces::Shorts,
    state::{PLANES, State, field},
};
use std::mem::offset_of;

/// Tables, and entries in each at most: `State::jump_mask` tells how many are used.
pub const TABLES: usize = 8;
pub const ENTRIES: usize = 1 << 14;
/// From one table to the next: an address may be in its entry or in the one behind.
pub const STRIDE: usize = ENTRIES + 1;

/// As many entries as suit so many bytes of memory for code, and what all tables take then.
pub fn entries(bytes: usize) -> (usize, usize) {
    let each = TABLES * size_of::<Jump>();
    let entries = (bytes / 8 / each).clamp(512, ENTRIES);
    let entries = 1 << entries.ilog2();
    (entries, entries * each)
}

/// Where a linear address continues.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Jump {
    /// The address, with all bits inverted.
    pub inverted: u64,
    pub host: u64,
    /// Linear address of the page.
    pub page: u64,
}

impl Jump {
    /// What is found by no address, at this index: those that it names are looked for elsewhere.
    fn none(index: usize, mask: u64) -> Self {
        let last = hash(!0, mask);
        let inverted = if index == last || index == last + 1 { !0 } else { 0 };
        Self { inverted, host: 0, page: 0 }
    }
}

/// Which address space has which table.
#[derive(Debug, Default)]
pub struct Tables {
    owners: [Owner; TABLES],
    time: u64,
    pub copies: Copies,
    /// Those of 16-bit code.
    pub shorts: Shorts,
    /// Host address of what copies an entry.
    pub relink: u64,
}

#[derive(Debug, Default)]
struct Owner {
    space: Option<u64>,
    last_use: u64,
    /// Entries that were set.
    set: Vec<u32>,
}

impl Tables {
    /// From now on jumps and returns are those of this space, which is one of the plane; code
    /// itself changes between a supervisor's two, whose spaces differ in the last bit.
    pub fn enter(&mut self, state: &mut State, plane: usize, space: u64, elsewhere: u64) {
        self.prepare(state, plane, space, elsewhere);
        (state.space, state.table) = (space, state.tables[plane % PLANES]);
    }

    /// Code may change to this plane, and is in this space then. With a supervisor's, it may
    /// change to the other one, too.
    pub fn prepare(&mut self, state: &mut State, plane: usize, space: u64, elsewhere: u64) {
        let other = (plane < 2).then_some((plane ^ 1, space ^ 1));
        for (plane, space) in [Some((plane % PLANES, space)), other].into_iter().flatten() {
            if state.spaces[plane] != space {
                state.spaces[plane] = space;
                state.tables[plane] = self.select(state, space);
                state.forget_returns(plane, space, elsewhere);
            }
        }
    }

    /// The host address of the space's table.
    fn select(&mut self, state: &mut State, space: u64) -> u64 {
        self.time += 1;
        let found = self.owners.iter().position(|o| o.space == Some(space));
        // Those in use may have been so for long.
        let free = |n: &usize| !self.owners[*n].space.is_some_and(|s| state.spaces.contains(&s));
        let age = |n: &usize| self.owners[*n].last_use;
        let oldest = || (0..TABLES).filter(free).min_by_key(age).unwrap_or(0);
        let table = found.unwrap_or_else(oldest);
        if found.is_none() {
            self.empty(state, table);
            self.copies.unsettle(state, self.relink);
            self.owners[table].space = Some(space);
        }
        self.owners[table].last_use = self.time;
        std::ptr::from_ref(&state.jumps[table * STRIDE]) as u64
    }

    fn empty(&mut self, state: &mut State, table: usize) {
        let mut set = std::mem::take(&mut self.owners[table].set);
        if set.len() as u64 > state.jump_mask {
            set = (0..state.jump_mask as u32 + 2).collect();
        }
        for n in set {
            self.forget(state, (table * STRIDE) as u32 + n);
        }
    }

    /// The entry is no more, nor its copies.
    pub fn forget(&mut self, state: &mut State, number: u32) {
        self.copies.forget(state, number);
        state.forget_jump(number);
    }

    /// No jump goes anywhere.
    pub fn clear(&mut self, state: &mut State) {
        for table in 0..TABLES {
            self.empty(state, table);
            // In memory of zeros, the only ones that may not be.
            let last = hash(!0, state.jump_mask);
            for last in [last, last + 1] {
                state.jumps[table * STRIDE + last] = Jump::none(last, state.jump_mask);
            }
        }
        self.copies.clear();
    }

    /// The number of the entry of a linear address, in the present space.
    pub fn find(&self, state: &State, linear: u64) -> Option<u32> {
        let table = self.owners.iter().position(|o| o.space == Some(state.space))?;
        let first = table * STRIDE + hash(linear, state.jump_mask);
        let found = (first..first + 2).find(|n| state.jumps[*n].inverted == !linear)?;
        Some(found as u32)
    }

    #[cfg(test)]
    pub fn set(&mut self, state: &mut State, linear: u64, host: u64) -> Option<u32> {
        self.set_in(state, linear, linear & !0xfff, host)
    }

    /// In the space that was entered, jumps to `linear`, in a page that begins at `page`, go to
    /// `host`. Returns the entry's number.
    pub fn set_in(&mut self, state: &mut State, linear: u64, page: u64, host: u64) -> Option<u32> {
        let table = self.owners.iter().position(|o| o.space == Some(state.space))?;
        let mask = state.jump_mask;
        let first = table * STRIDE + hash(linear, mask);
        // What was there before is found behind, in place of what is there.
        let before = state.jumps[first].inverted;
        let mine = before == !linear || hash(!before, mask) + table * STRIDE != first;
        let index = hash(linear, mask) + usize::from(!mine);
        let set = &mut self.owners[table].set;
        if set.len() as u64 <= mask {
            set.push(index as u32);
        }
        let number = table * STRIDE + index;
        self.copies.forget(state, number as u32);
        state.jumps[number] = Jump { inverted: !linear, host, page };
        Some(number as u32)
    }
}

impl State {
    /// The entry goes to that place.
    pub fn jump_goes(&self, number: u32, host: u64) -> bool {
        self.jumps[number as usize % (TABLES * STRIDE)].host == host
    }

    fn forget_jump(&mut self, number: u32) {
        let number = number as usize % (TABLES * STRIDE);
        self.jumps[number] = Jump::none(number % STRIDE, self.jump_mask);
    }
}

/// Where the host address of the plane's table is.
pub fn table_of(plane: usize) -> Mem {
    let tables = field!(tables);
    Mem { disp: tables.disp + 8 * (plane % PLANES) as i32, ..tables }
}

/// Where the plane's space is.
pub fn space_of(plane: usize) -> Mem {
    let spaces = field!(spaces);
    Mem { disp: spaces.disp + 8 * (plane % PLANES) as i32, ..spaces }
}

/// Goes to the address in [`SA`], or does what `missed` emits, which is short and does not
/// return. [`look_behind`] is for later then, as long as [`SB`] is as it was left.
pub fn look_up(asm: &mut Asm, missed: impl FnOnce(&mut Asm)) {
    asm.mov_imm(SB, 0);
    asm.crc32(SB, SA);
    asm.pext(SB, SB, field!(jump_mask));
    asm.lea(SB, Mem { base: None, index: Some((SB, 3)), disp: 0 }, true);
    asm.load(SC, field!(table));
    asm.lea(SB, Mem::indexed(SC, SB, 2, 0), true);
    probe(asm, 0, missed);
}

/// Looks at the entry behind.
pub fn look_behind(asm: &mut Asm, missed: impl FnOnce(&mut Asm)) {
    probe(asm, size_of::<Jump>(), missed);
}

fn probe(asm: &mut Asm, offset: usize, missed: impl FnOnce(&mut Asm)) {
    let entry = |at: usize| Mem::at(SB, (offset + at) as i32);
    asm.load(SC, entry(offset_of!(Jump, inverted)));
    // a + !b + 1 = a - b
    asm.lea(SC, Mem::indexed(SC, SA, 0, 1), true);
    asm.unless_rcx_zero(missed);
    asm.load(SC, entry(offset_of!(Jump, page)));
    asm.store(field!(page), SC);
    asm.jmp_mem(entry(offset_of!(Jump, host)));
}

/// As translated code computes it.
fn hash(linear: u64, mask: u64) -> usize {
    (u64::from(crc32(linear)) & mask) as usize % ENTRIES
}

/// CRC32 of eight bytes, with the Castagnoli polynomial (SDM volume 2, CRC32).
fn crc32(value: u64) -> u32 {
    let step = |sum: u32, byte: &u8| sum >> 8 ^ CRC[usize::from(sum as u8 ^ byte)];
    value.to_le_bytes().iter().fold(0, step)
}

/// Of each byte.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut sum, mut bit) = (n as u32, 0);
        while bit < 8 {
            sum = sum >> 1 ^ if sum & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[n] = sum;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    const MASK: u64 = ENTRIES as u64 - 1;

    #[test]
    fn small_caches_have_small_tables() {
        assert_eq!(entries(96 << 20), (ENTRIES, 4 << 20));
        assert_eq!(entries(3 << 20), (1024, 256 << 10));
        assert_eq!(entries(1 << 20), (512, 128 << 10));
    }

    #[test]
    fn an_empty_entry_is_found_by_no_address() {
        for mask in [511, MASK] {
            for index in 0..mask as usize + 2 {
                let looked_for = hash(!Jump::none(index, mask).inverted, mask);
                assert!(looked_for != index && looked_for + 1 != index);
            }
        }
    }

    #[test]
    fn spaces_have_their_own_tables_and_lose_the_oldest() {
        let mut state = Region::new().unwrap();
        state.jump_mask = MASK;
        let mut tables = Tables::default();
        tables.clear(&mut state);
        let enter = |tables: &mut Tables, state: &mut State, space| {
            tables.enter(state, 2, space, 0);
        };
        let goes = |state: &State, linear: u64| {
            let first = std::ptr::from_ref(&state.jumps[0]) as u64;
            let table = (state.table - first) as usize / size_of::<Jump>();
            let entries = &state.jumps[table + hash(linear, MASK)..][..2];
            let entry = entries.iter().find(|e| e.inverted == !linear);
            entry.map(|entry| (entry.host, entry.page))
        };
        enter(&mut tables, &mut state, 1);
        let first = tables.set(&mut state, 0x1234, 77).unwrap();
        assert!(state.jump_goes(first, 77));
        for space in 2..=TABLES as u64 {
            enter(&mut tables, &mut state, space);
            assert_eq!(goes(&state, 0x1234), None, "{space}");
            tables.set(&mut state, 0x1234, 100 + space);
        }
        enter(&mut tables, &mut state, 1);
        assert_eq!(goes(&state, 0x1234), Some((77, 0x1000)));
        // One too many: the second goes.
        enter(&mut tables, &mut state, 99);
        assert_eq!(goes(&state, 0x1234), None);
        enter(&mut tables, &mut state, 3);
        assert_eq!(goes(&state, 0x1234), Some((103, 0x1000)));
        enter(&mut tables, &mut state, 2);
        assert_eq!(goes(&state, 0x1234), None);
        tables.clear(&mut state);
        assert_eq!(goes(&state, 0x1234), None);
        enter(&mut tables, &mut state, 3);
        assert_eq!(goes(&state, 0x1234), None);
        // A supervisor's two planes.
        tables.enter(&mut state, 0, 1 << 20, 0);
        tables.set(&mut state, 0x1234, 5).unwrap();
        (state.space, state.table) = (1 << 20 | 1, state.tables[1]);
        assert_eq!(goes(&state, 0x1234), None);
        tables.set(&mut state, 0x1234, 6).unwrap();
        assert_eq!(goes(&state, 0x1234).map(|g| g.0), Some(6));
        tables.enter(&mut state, 0, 1 << 20, 0);
        assert_eq!(goes(&state, 0x1234).map(|g| g.0), Some(5));
        // Two of one hash are known at once, as are two that follow each other.
        let same = |n: &u64| hash(*n, MASK) == hash(0x1234, MASK) && *n != 0x1234;
        let other = (0x10_0000..).find(same).unwrap();
        let behind = (0x10_0000..).find(|n| hash(*n, MASK) == hash(0x1234, MASK) + 1).unwrap();
        enter(&mut tables, &mut state, 3);
        tables.set(&mut state, 0x1234, 1);
        tables.set(&mut state, other, 2);
        assert_eq!(goes(&state, 0x1234).map(|g| g.0), Some(1));
        assert_eq!(goes(&state, other).map(|g| g.0), Some(2));
        let third = tables.set(&mut state, behind, 3).unwrap();
        assert_eq!(goes(&state, behind).map(|g| g.0), Some(3));
        assert_eq!(goes(&state, 0x1234).map(|g| g.0), Some(1));
        tables.forget(&mut state, third);
        assert_eq!(goes(&state, behind), None);
    }
}
