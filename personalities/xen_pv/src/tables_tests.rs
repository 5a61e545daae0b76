//! What a domain may not do with its page tables.

use crate::{
    frames::{Forget, Frames, Use},
    memory::Memory,
    tables::{Level, Tables},
};
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use proptest::prelude::*;
use x86_defs::paging::{A, ADDRESS, D, NX, P, PS, RW, US};
use xen_abi::errno::Errno;

/// Frames of RAM; behind it one that is shared and one that is the hypervisor's own.
const RAM: u64 = 32;
const SHARED: u64 = RAM;
const OWN: u64 = RAM + 1;
/// Tables of the test's domain, by level.
const L4: u64 = 4;
const L3: u64 = 3;
const L2: u64 = 2;
const L1: u64 = 1;

fn none<'a>(forget: &'a mut dyn FnMut(u64)) -> Forget<'a> {
    forget
}

/// A frame's address.
fn page(frame: u64) -> u64 {
    frame * PAGE
}

/// A domain with one table of each level, none of them in use.
fn tables() -> Tables {
    let memory = GuestMem::new((RAM + 2) * PAGE).unwrap();
    let len = (RAM + 2) * PAGE;
    let mem = Memfd::new(len).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
    memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
    let frames = Frames::new(RAM, RAM + 2, |frame| frame == SHARED);
    let slots = [page(OWN) | P; 16];
    let tables = Tables {
        frames,
        memory: Memory::new(memory),
        slots,
        work: 0,
        changes: engine::TableChanges::default(),
    };
    for (table, below) in [(L4, L3), (L3, L2), (L2, L1)] {
        tables.memory.store(table * PAGE, page(below) | P | RW | US);
    }
    tables
}

fn start(tables: &mut Tables, frame: u64, level: Level) -> Result<(), Errno> {
    tables.start_table(frame, level, none(&mut |_| {}))
}

fn set(tables: &mut Tables, index: u64, value: u64) -> Result<(), Errno> {
    tables.update(L1 * PAGE + index * 8, Level::L1, value, false, none(&mut |_| {}))
}

#[test]
fn tables_are_taken_with_all_below_and_let_go_again() {
    let mut tables = tables();
    tables.memory.store(L1 * PAGE + 8, page(9) | P | RW);
    start(&mut tables, L4, Level::L4).unwrap();
    for (frame, level) in [(L4, Level::L4), (L3, Level::L3), (L2, Level::L2), (L1, Level::L1)] {
        assert!(tables.frames.is(frame, Use::Table(level)), "{frame}");
    }
    assert!(tables.frames.is(9, Use::Writable));
    // The kernel's pages are ring 3's, and the hypervisor's entries are there.
    assert_eq!(tables.memory.load(L1 * PAGE + 8) & US, US);
    assert_eq!(tables.memory.load(L4 * PAGE + 256 * 8), page(OWN) | P);
    assert_eq!(tables.l1_entry(L4 * PAGE, PAGE), Some(L1 * PAGE + 8));
    tables.end_table(L4, Level::L4);
    for frame in 0..RAM {
        let found = tables.frames.get(frame).unwrap();
        assert_eq!((found.uses, found.holds), (0, 0), "{frame}");
    }
}

#[test]
fn no_table_is_ever_writable() {
    let mut tables = tables();
    start(&mut tables, L4, Level::L4).unwrap();
    for table in [L1, L2, L3, L4] {
        assert_eq!(set(&mut tables, 5, page(table) | P | RW), Err(Errno::Busy));
        set(&mut tables, 5, page(table) | P).unwrap();
    }
    set(&mut tables, 5, 0).unwrap();
    // A page that is mapped for writing is no table, until it is not any more.
    set(&mut tables, 6, page(20) | P | RW).unwrap();
    assert_eq!(start(&mut tables, 20, Level::L1), Err(Errno::Busy));
    set(&mut tables, 6, page(20) | P).unwrap();
    let mut forgotten = Vec::new();
    tables.start_table(20, Level::L1, none(&mut |frame| forgotten.push(frame))).unwrap();
    assert_eq!(forgotten, [20], "TLBs may have had it as writable");
}

/// How often TLBs had to forget a page for this.
fn forgets(f: impl FnOnce(Forget<'_>)) -> u32 {
    let mut count = 0;
    f(&mut |_| count += 1);
    count
}

/// A TLB may have a page for writing since the domain mapped it so, although a back end was the last
/// that let it go.
#[test]
fn what_a_back_end_lets_go_last_may_be_in_a_tlb() {
    let mut tables = tables();
    start(&mut tables, L4, Level::L4).unwrap();
    set(&mut tables, 6, page(20) | P | RW).unwrap();
    tables.hold_written(20, none(&mut |_| {})).unwrap();
    set(&mut tables, 6, page(20) | P).unwrap();
    tables.frames.end_outside(20);
    tables.frames.let_go(20);
    assert_eq!(forgets(|forget| tables.start_table(20, Level::L1, forget).unwrap()), 1);
}

/// Another vCPU may be in the middle of a walk when a table becomes something else: it would take for
/// entries what the domain writes there.
#[test]
fn what_was_a_table_is_forgotten_before_it_is_written() {
    let mut tables = tables();
    start(&mut tables, L4, Level::L4).unwrap();
    for (n, again) in (0..4).zip([Level::L1, Level::L2, Level::L3, Level::L4]) {
        start(&mut tables, 20, Level::L1).unwrap();
        tables.end_table(20, Level::L1);
        assert!(tables.frames.is_walked(20));
        let count = forgets(|forget| match n {
            0 => {
                tables.update(L1 * PAGE + 48, Level::L1, page(20) | P | RW, false, forget).unwrap()
            }
            1 => tables.write_word(20 * PAGE, 0, forget).unwrap(),
            2 => tables.start_table(20, again, forget).unwrap(),
            _ => {
                tables.frames.give_back(20).unwrap();
                tables.frames.take(20, forget).unwrap();
            }
        });
        assert_eq!(count, 1, "{n}");
        assert!(!tables.frames.is_walked(20));
        match n {
            0 => set(&mut tables, 6, 0).unwrap(),
            2 => tables.end_table(20, again),
            _ => {}
        }
    }
}

#[test]
fn a_frame_is_a_table_of_one_level() {
    let mut tables = tables();
    start(&mut tables, L4, Level::L4).unwrap();
    assert_eq!(start(&mut tables, L1, Level::L2), Err(Errno::Busy));
    // As an entry of an L2, of itself, too.
    let at = L2 * PAGE + 8;
    for frame in [L2, L3, L4] {
        let value = page(frame) | P | RW;
        let result = tables.update(at, Level::L2, value, false, none(&mut |_| {}));
        assert_eq!(result, Err(Errno::Busy), "{frame}");
    }
    let large = page(8) | P | PS;
    let result = tables.update(at, Level::L2, large, false, none(&mut |_| {}));
    assert_eq!(result, Err(Errno::Inval));
}

#[test]
fn only_the_domains_frames_are_mapped() {
    let mut tables = tables();
    start(&mut tables, L4, Level::L4).unwrap();
    set(&mut tables, 1, page(SHARED) | P | RW).unwrap();
    for frame in [OWN, OWN + 1, 1 << 30, ADDRESS / PAGE] {
        assert_eq!(set(&mut tables, 2, page(frame) | P), Err(Errno::Inval), "{frame:#x}");
    }
    assert_eq!(start(&mut tables, SHARED, Level::L1), Err(Errno::Inval));
    assert_eq!(start(&mut tables, OWN, Level::L1), Err(Errno::Inval));
    // The hypervisor's entries.
    let at = L4 * PAGE + 256 * 8;
    let result = tables.update(at, Level::L4, 0, false, none(&mut |_| {}));
    assert_eq!(result, Err(Errno::Inval));
    // What was given back is nobody's, once nothing maps it.
    set(&mut tables, 3, page(21) | P | RW).unwrap();
    tables.frames.give_back(21).unwrap();
    assert_eq!(set(&mut tables, 4, page(21) | P), Err(Errno::Inval));
    assert_eq!(tables.frames.take(21, none(&mut |_| {})), Err(Errno::NoMem));
    set(&mut tables, 3, 0).unwrap();
    tables.frames.take(21, none(&mut |_| {})).unwrap();
}

#[test]
fn a_table_with_a_wrong_entry_changes_nothing() {
    let mut tables = tables();
    tables.memory.store(L1 * PAGE, page(9) | P | RW);
    tables.memory.store(L1 * PAGE + 511 * 8, page(OWN) | P);
    assert_eq!(start(&mut tables, L4, Level::L4), Err(Errno::Inval));
    for frame in 0..RAM {
        let found = tables.frames.get(frame).unwrap();
        assert_eq!((found.uses, found.holds), (0, 0), "{frame}");
    }
}

/// What the counts are to be, from the tables themselves.
fn check(tables: &Tables) {
    let mut writable = [0u32; RAM as usize];
    for frame in 0..RAM {
        if !tables.frames.is(frame, Use::Table(Level::L1)) {
            continue;
        }
        for index in 0..512 {
            let entry = tables.memory.load(frame * PAGE + index * 8);
            let to = (entry & ADDRESS) / PAGE;
            if entry & P == 0 || to >= RAM {
                continue;
            }
            if entry & RW != 0 {
                writable[to as usize] += 1;
                let found = tables.frames.get(to).unwrap();
                assert!(!matches!(found.used_as, Use::Table(_) | Use::Descriptors), "{to}");
            }
        }
    }
    for (frame, count) in (0..).zip(writable) {
        let found = tables.frames.get(frame).unwrap();
        if found.used_as == Use::Writable {
            assert_eq!(found.uses, count, "{frame}");
        }
    }
}

proptest! {
    /// Whatever a domain asks for, what is granted keeps the rule.
    #[test]
    fn counts_stay_true(
        acts in prop::collection::vec((0u8..5, 0..RAM + 2, 0u64..8, 0..RAM + 4, any::<bool>()), 1..60)
    ) {
        let mut tables = tables();
        let levels = [Level::L1, Level::L2, Level::L3, Level::L4];
        let mut pinned = Vec::new();
        for (act, frame, index, to, writable) in acts {
            let level = levels[index as usize % 4];
            match act {
                0 | 1 => {
                    let is = levels.into_iter().find(|l| tables.frames.is(frame, Use::Table(*l)));
                    let value = page(to) | P | if writable { RW } else { 0 };
                    let at = frame * PAGE + index * 8;
                    match is {
                        Some(level) => {
                            let _ = tables.update(at, level, value, act == 1, none(&mut |_| {}));
                        }
                        // As the domain would, where it can.
                        None if frame < RAM => tables.memory.store(at, value),
                        None => {}
                    }
                }
                2 => {
                    if start(&mut tables, frame, level).is_ok() {
                        pinned.push((frame, level));
                    }
                }
                3 => {
                    if !pinned.is_empty() {
                        let (frame, level) = pinned.swap_remove(to as usize % pinned.len());
                        tables.end_table(frame, level);
                    }
                }
                _ => {
                    let _ = tables.frames.give_back(frame);
                }
            }
            check(&tables);
        }
        for (frame, level) in pinned {
            tables.end_table(frame, level);
        }
        for frame in 0..RAM {
            let found = tables.frames.get(frame).unwrap();
            prop_assert_eq!((found.uses, found.holds), (0, 0));
        }
    }
}

/// What a TLB may have wrong is counted, by where it may be.
#[test]
fn changes_are_counted_by_what_they_make_wrong() {
    let mut tables = tables();
    start(&mut tables, L4, Level::L4).unwrap();
    let counts = |tables: &Tables| {
        let engine::TableChanges { any, upper, code } = tables.changes;
        [any, upper, code]
    };
    for (value, changed) in [
        (page(20) | P | NX, false),
        (page(20) | P | RW | NX, false),
        (page(20) | P | RW | A | D | NX, false),
        (page(20) | P | RW | A | NX, true),
        (page(20) | P | A | NX, true),
        (page(20) | P | A, false),
        (page(20) | P | A | NX, true),
        (page(21) | P | NX, true),
        (0, true),
        (page(21) | P, false),
        (0, true),
    ] {
        let before = counts(&tables);
        set(&mut tables, 7, value).unwrap();
        let after = counts(&tables);
        let expected = [before[0] + u64::from(changed), before[1], before[2]];
        assert_eq!(after, expected, "{value:#x}: a table of the lower half");
    }
    // All that is below an entry of the upper half belongs to it.
    let upper = page(L3) | P | RW;
    tables.update(L4 * PAGE + 300 * 8, Level::L4, upper, false, none(&mut |_| {})).unwrap();
    for (value, [any, upper, code]) in [
        (page(20) | P | NX, [0; 3]),
        (0, [1, 1, 0]),
        (page(20) | P, [0; 3]),
        (page(20) | P | NX, [1, 1, 1]),
    ] {
        let before = counts(&tables);
        set(&mut tables, 7, value).unwrap();
        let expected = [before[0] + any, before[1] + upper, before[2] + code];
        assert_eq!(counts(&tables), expected, "{value:#x}: a table of the upper half");
    }
}

#[test]
fn frames_that_are_nobodys_are_told_of_once_and_in_runs() {
    let mut frames = Frames::new(64, 64, |_| false);
    frames.hold(9).unwrap();
    for frame in [7, 3, 5, 4, 9, 8] {
        frames.give_back(frame).unwrap();
    }
    // Taken again before anybody asked, and again given back.
    frames.take(4, &mut |_| {}).unwrap();
    frames.take(7, &mut |_| {}).unwrap();
    frames.give_back(7).unwrap();
    assert_eq!(frames.take_left(), [(3, 1), (5, 1), (7, 2)]);
    assert_eq!(frames.take_left(), []);
    // It was mapped until now.
    frames.let_go(9);
    assert_eq!(frames.take_left(), [(9, 1)]);
}

#[test]
fn frames_that_linger_are_counted_until_all_is_forgotten() {
    let mut frames = Frames::new(64, 64, |_| false);
    for frame in [3, 4] {
        frames.start(frame, Use::Writable, &mut |_| {}).unwrap();
        frames.start(frame, Use::Writable, &mut |_| {}).unwrap();
    }
    frames.end(3);
    assert_eq!(frames.lingering(), 1, "others may have it, too, and it counts once");
    frames.end(3);
    frames.end(4);
    assert_eq!(frames.lingering(), 2);
    frames.flushed();
    assert_eq!(frames.lingering(), 0);
    frames.start(5, Use::Table(Level::L1), &mut |_| {}).unwrap();
    frames.end(5);
    assert_eq!(frames.lingering(), 1);
}
