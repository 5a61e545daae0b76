//! Where jumps go whose target is not known: tables of linear addresses, one for each address
//! space that was used lately.
//!
//! A look-up compares one address: what else a target depends on has chosen the table. That an
//! address is canonical need not be asked before, since only such ones are in the tables.

use crate::{
    asm::{Asm, Mem, RSP},
    far::Copies,
    regs::{SA, SB, SC},
    spaces::Shorts,
    state::{PLANES, State, field},
};
use std::mem::offset_of;

/// Tables, and places in each at most: `State::jump_mask` tells how many are used.
pub const TABLES: usize = 8;
pub const ENTRIES: usize = 1 << 14;
/// Entries for each place: two addresses of one hash are known at once.
const WAYS: usize = 2;
/// Bits of an address that do not count in its hash: targets are seldom so near to each other.
const NEAR: u32 = 4;
/// Entries of a table, by number.
pub const NUMBERS: usize = WAYS * ENTRIES;
/// The same places of different arrays are in different sets of the processor's cache, and
/// tables are no multiple of a page apart.
const PADDING: usize = 8;
/// Places whose addresses, and whatever else belongs to them, take a page of memory.
const PIECE: usize = 4096 / size_of::<u64>();
const _: () = assert!(ENTRIES / PIECE <= 64);

/// As many places as suit so many bytes of memory for code, and what all tables take then.
pub fn entries(bytes: usize) -> (usize, usize) {
    let each = TABLES * WAYS * 3 * size_of::<u64>();
    let entries = (bytes / 8 / each).clamp(512, ENTRIES);
    let entries = 1 << entries.ilog2();
    (entries, entries * each)
}

/// Bits of an address that select its place, where there are so many.
pub const fn mask(entries: usize) -> u64 {
    (entries as u64 - 1) << NEAR
}

/// Where linear addresses continue. An index serves in each array without more.
#[derive(Debug)]
#[repr(C)]
pub struct Jumps {
    ways: [Way; WAYS],
}

#[derive(Debug)]
#[repr(C)]
struct Way {
    /// The addresses, with all bits inverted.
    inverted: [u64; ENTRIES + PADDING],
    host: [u64; ENTRIES + PADDING],
    /// Linear addresses of the pages, which are what the addresses say but in 16-bit code.
    page: [u64; ENTRIES + PADDING],
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    pub inverted: u64,
    pub host: u64,
    pub page: u64,
}

impl Jump {
    /// What is found by no address, at this place: the address that it names belongs elsewhere.
    fn none(place: usize, mask: u64) -> Self {
        let inverted = if place == hash(!0, mask) { !0 } else { 0 };
        Self { inverted, host: 0, page: 0 }
    }
}

/// Which address space has which table.
#[derive(Debug, Default)]
pub struct Tables {
    owners: [Owner; TABLES],
    time: u64,
    /// Of each table and way, a bit for each piece that entries were set in.
    touched: [[u64; WAYS]; TABLES],
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

    /// As [`Self::enter`], of code that changes to no other plane by itself.
    pub fn enter_alone(&mut self, state: &mut State, plane: usize, space: u64, elsewhere: u64) {
        self.prepare_alone(state, plane, space, elsewhere);
        (state.space, state.table) = (space, state.tables[plane % PLANES]);
    }

    /// Code may change to this plane, and is in this space then. With a supervisor's, it may
    /// change to the other one, too.
    pub fn prepare(&mut self, state: &mut State, plane: usize, space: u64, elsewhere: u64) {
        self.prepare_alone(state, plane, space, elsewhere);
        if plane < 2 {
            self.prepare_alone(state, plane ^ 1, space ^ 1, elsewhere);
        }
    }

    fn prepare_alone(&mut self, state: &mut State, plane: usize, space: u64, elsewhere: u64) {
        let plane = plane % PLANES;
        if state.spaces[plane] != space {
            self.leave(state, plane);
            state.spaces[plane] = space;
            state.tables[plane] = self.select(state, space);
            state.forget_returns(plane, space, elsewhere);
        }
    }

    /// The plane's space was used until now.
    fn leave(&mut self, state: &State, plane: usize) {
        self.time += 1;
        let left = Some(state.spaces[plane]);
        if let Some(owner) = self.owners.iter_mut().find(|owner| owner.space == left) {
            owner.last_use = self.time;
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
        std::ptr::from_ref(&state.jumps[table]) as u64
    }

    fn empty(&mut self, state: &mut State, table: usize) {
        let mut set = std::mem::take(&mut self.owners[table].set);
        let places = hash(!0, state.jump_mask) + 1;
        if set.len() >= places {
            set = (0..WAYS * places).map(|n| entry(n % places, n / places)).collect();
        }
        for n in set {
            self.forget(state, (table * NUMBERS) as u32 + n);
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
            for way in 0..WAYS {
                state.forget_jump((table * NUMBERS) as u32 + entry(last, way));
            }
        }
        self.copies.clear();
    }

    /// Bytes of the tables that were written, about.
    pub fn resident(&self) -> usize {
        let pieces: u32 = self.touched.iter().flatten().map(|bits| bits.count_ones()).sum();
        pieces as usize * PIECE * 3 * size_of::<u64>()
    }

    fn table(&self, state: &State) -> Option<usize> {
        self.owners.iter().position(|o| o.space == Some(state.space))
    }

    /// The number of the entry of a linear address, in the present space.
    pub fn find(&self, state: &State, linear: u64) -> Option<u32> {
        let table = self.table(state)?;
        let place = hash(linear, state.jump_mask);
        let number = |way| (table * NUMBERS) as u32 + entry(place, way);
        (0..WAYS).map(number).find(|n| state.jump(*n).inverted == !linear)
    }

    #[cfg(test)]
    pub fn set(&mut self, state: &mut State, linear: u64, host: u64) -> Option<u32> {
        self.set_in(state, linear, linear & !0xfff, host)
    }

    /// In the space that was entered, jumps to `linear`, in a page that begins at `page`, go to
    /// `host`. Returns the entry's number.
    pub fn set_in(&mut self, state: &mut State, linear: u64, page: u64, host: u64) -> Option<u32> {
        let table = self.table(state)?;
        let (mask, first) = (state.jump_mask, (table * NUMBERS) as u32);
        let place = hash(linear, mask);
        // What was there before is found behind, in place of what is there.
        let before = state.jump(first + entry(place, 0)).inverted;
        let mine = before == !linear || hash(!before, mask) != place;
        let way = usize::from(!mine);
        self.touched[table][way] |= 1 << (place / PIECE);
        let entry = entry(place, way);
        let set = &mut self.owners[table].set;
        if set.len() <= hash(!0, mask) {
            set.push(entry);
        }
        let number = first + entry;
        self.copies.forget(state, number);
        state.set_jump(number, Jump { inverted: !linear, host, page });
        Some(number)
    }
}

/// The number in its table of one of a place's entries.
fn entry(place: usize, way: usize) -> u32 {
    (way * ENTRIES + place) as u32
}

impl State {
    fn way(&self, number: u32) -> (&Way, usize) {
        let (table, entry) = (number as usize / NUMBERS % TABLES, number as usize % NUMBERS);
        (&self.jumps[table].ways[entry / ENTRIES % WAYS], entry % ENTRIES)
    }

    pub fn jump(&self, number: u32) -> Jump {
        let (way, n) = self.way(number);
        Jump { inverted: way.inverted[n], host: way.host[n], page: way.page[n] }
    }

    fn set_jump(&mut self, number: u32, jump: Jump) {
        let (table, entry) = (number as usize / NUMBERS % TABLES, number as usize % NUMBERS);
        let (way, n) = (&mut self.jumps[table].ways[entry / ENTRIES % WAYS], entry % ENTRIES);
        (way.inverted[n], way.host[n], way.page[n]) = (jump.inverted, jump.host, jump.page);
    }

    /// The entry goes to that place.
    pub fn jump_goes(&self, number: u32, host: u64) -> bool {
        let (way, n) = self.way(number);
        way.host[n] == host
    }

    fn forget_jump(&mut self, number: u32) {
        self.set_jump(number, Jump::none(number as usize % ENTRIES, self.jump_mask));
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

/// Goes to the address in [`SA`], of code that is not 16-bit code, or does what `missed` emits,
/// which is short and does not return. [`look_further`] is for later then, as long as [`SB`] is
/// as it was left.
pub fn look_up(asm: &mut Asm, missed: impl FnOnce(&mut Asm)) {
    place(asm);
    tag(asm, 0);
    asm.unless_rcx_zero(missed);
    go_on(asm);
}

/// Finds where to go from the address in [`SA`]: [`SC`] is zero if there is an entry, which is
/// then in [`SB`] for [`go_on`]. The address is known to be canonical then.
pub fn look_ahead(asm: &mut Asm) {
    place(asm);
    tag(asm, 0);
}

/// [`SB`] for [`go_on`], if the address is to be looked for then.
pub fn not_found(asm: &mut Asm) {
    let field = field!(elsewhere);
    asm.lea(SB, Mem { disp: field.disp - offset_of!(Way, host) as i32, ..field }, true);
}

/// Goes to the address in [`SA`] by what [`look_ahead`] or [`not_found`] left in [`SB`].
pub fn go_on(asm: &mut Asm) {
    asm.shrx(SC, SA, RSP);
    asm.shlx(SC, SC, RSP);
    asm.store(field!(page), SC);
    asm.jmp_mem(in_entry(0, offset_of!(Way, host)));
}

/// The same of all code.
pub fn look_up_any(asm: &mut Asm, missed: impl FnOnce(&mut Asm)) {
    place(asm);
    tag(asm, 0);
    asm.unless_rcx_zero(missed);
    go(asm, 0);
}

/// Looks at the other entry.
pub fn look_further(asm: &mut Asm, missed: impl FnOnce(&mut Asm)) {
    tag(asm, 1);
    asm.unless_rcx_zero(missed);
    go(asm, 1);
}

/// The place of the address in [`SA`], in [`SB`].
fn place(asm: &mut Asm) {
    asm.pext(SB, SA, field!(jump_mask));
    asm.load(SC, field!(table));
    asm.lea(SB, Mem::indexed(SC, SB, 3, 0), true);
}

/// In the entry at [`SB`].
fn in_entry(way: usize, at: usize) -> Mem {
    Mem::at(SB, (way * size_of::<Way>() + at) as i32)
}

/// What an entry's address is away from that in [`SA`], in [`SC`].
fn tag(asm: &mut Asm, way: usize) {
    asm.load(SC, in_entry(way, offset_of!(Way, inverted)));
    // a + !b + 1 = a - b
    asm.lea(SC, Mem::indexed(SC, SA, 0, 1), true);
}

fn go(asm: &mut Asm, way: usize) {
    asm.load(SC, in_entry(way, offset_of!(Way, page)));
    asm.store(field!(page), SC);
    asm.jmp_mem(in_entry(way, offset_of!(Way, host)));
}

/// As translated code computes it.
fn hash(linear: u64, mask: u64) -> usize {
    ((linear & mask) >> NEAR) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    const MASK: u64 = mask(ENTRIES);

    #[test]
    fn small_caches_have_small_tables() {
        assert_eq!(entries(96 << 20), (ENTRIES, 6 << 20));
        assert_eq!(entries(3 << 20), (1024, 384 << 10));
        assert_eq!(entries(1 << 20), (512, 192 << 10));
    }

    #[test]
    fn what_was_written_of_the_tables_is_counted_once() {
        let mut state = Region::new().unwrap();
        state.jump_mask = MASK;
        let mut tables = Tables::default();
        tables.clear(&mut state);
        tables.enter(&mut state, 2, 1, 0);
        assert_eq!(tables.resident(), 0);
        let place = |n: u64| n << NEAR;
        let mut set = |n| {
            tables.set(&mut state, place(n), 5).unwrap();
            tables.resident()
        };
        let page = 3 * 4096;
        // In the first piece of the first way, there again, in the last, and in the second way.
        let last = ENTRIES as u64 - 1;
        let sizes = [0, 100, last, ENTRIES as u64].map(&mut set);
        assert_eq!(sizes, [page, page, 2 * page, 3 * page]);
        // What was forgotten stays where it was.
        tables.clear(&mut state);
        assert_eq!(tables.resident(), 3 * page);
    }

    #[test]
    fn a_space_that_was_used_until_now_is_the_last_to_go() {
        let mut state = Region::new().unwrap();
        state.jump_mask = MASK;
        let mut tables = Tables::default();
        tables.clear(&mut state);
        // A kernel, under which many programs begin and end.
        tables.enter(&mut state, 0, 4, 0);
        tables.set(&mut state, 0x1234, 77).unwrap();
        for program in 1..=2 * TABLES as u64 {
            tables.prepare(&mut state, 2, program << 4 | 2, 0);
        }
        // It runs code of another kind for a moment.
        tables.enter(&mut state, 0, 8, 0);
        tables.enter(&mut state, 0, 4, 0);
        let found = tables.find(&state, 0x1234).unwrap();
        assert!(state.jump_goes(found, 77));
    }

    #[test]
    fn an_empty_entry_is_found_by_no_address() {
        for entries in [512, ENTRIES] {
            for place in 0..entries {
                let mask = mask(entries);
                assert_ne!(hash(!Jump::none(place, mask).inverted, mask), place);
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
            let table = (state.table - first) as usize / size_of::<Jumps>();
            let number = |way| (table * NUMBERS) as u32 + entry(hash(linear, MASK), way);
            let entry =
                (0..WAYS).map(|way| state.jump(number(way))).find(|e| e.inverted == !linear);
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
        // Two of one hash are known at once, and the third takes the place of the second.
        let other = |n: u64| 0x1234 + n * (MASK + (1 << NEAR));
        enter(&mut tables, &mut state, 3);
        tables.set(&mut state, 0x1234, 1);
        tables.set(&mut state, other(1), 2);
        assert_eq!(goes(&state, 0x1234).map(|g| g.0), Some(1));
        assert_eq!(goes(&state, other(1)).map(|g| g.0), Some(2));
        let third = tables.set(&mut state, other(2), 3).unwrap();
        assert_eq!(goes(&state, other(1)), None);
        assert_eq!(goes(&state, other(2)).map(|g| g.0), Some(3));
        assert_eq!(goes(&state, 0x1234).map(|g| g.0), Some(1));
        tables.forget(&mut state, third);
        assert_eq!(goes(&state, other(2)), None);
    }
}
