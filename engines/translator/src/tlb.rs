//! Translated code's own TLB, filled from the vCPU's.
//!
//! It knows no address spaces: with a change to another one, all entries go but those of global
//! pages, which are mostly the kernel's. What else goes, the vCPU's TLB tells page by page.

use crate::{
    counters::Counters,
    kept::Entry,
    state::{PLANES, Plane, State, TLB, none},
    windows::Windows,
};
use semantics::mem::{Mmu, Privilege};

const PAGE: u64 = 4096;

/// Bits of `Plane::kind`: the entry's position is in the list of all, or of those that may not
/// be global; its page is global.
const LISTED: u8 = 1;
const LISTED_LOCAL: u8 = 2;
const GLOBAL: u8 = 4;

/// Which entries there may be, as plane and index, each once.
#[derive(Debug)]
#[repr(C)]
pub struct Filled {
    all: List,
    /// Of pages that are not global.
    local: List,
}

#[derive(Debug)]
#[repr(C)]
struct List {
    count: usize,
    /// There is room for all.
    positions: [u16; PLANES * TLB],
}

impl Filled {
    pub fn local(&self) -> &[u16] {
        self.local.positions.get(..self.local.count).unwrap_or_default()
    }
}

impl List {
    fn push(&mut self, position: usize) {
        if let Some(place) = self.positions.get_mut(self.count) {
            *place = position as u16;
            self.count += 1;
        }
    }
}

pub fn index(linear: u64) -> usize {
    (linear / PAGE) as usize % TLB
}

/// The bits of an address that [`index`] is made of.
pub const INDEX_MASK: u64 = (TLB as u64 - 1) * PAGE;

/// Of a state whose fields are zero: nothing hits.
pub fn init(state: &mut State) {
    for plane in &mut state.tlb {
        for index in (0..TLB).filter(|index| none(*index) != 0) {
            plane.read[index] = none(index);
            plane.write[index] = none(index);
        }
    }
}

/// Before translated code runs on: what the vCPU's TLB has forgotten, it does not know either.
#[inline]
pub fn refresh(state: &mut State, mmu: &mut Mmu, counters: &mut Counters, windows: &mut Windows) {
    if !mmu.tlb_changes().is_empty() {
        windows.forget(state, mmu);
        forget(state, mmu, counters);
    }
}

fn forget(state: &mut State, mmu: &mut Mmu, counters: &mut Counters) {
    let (changes, number) = (mmu.tlb_changes(), mmu.tags_of(Privilege::Supervisor).all);
    if changes.all {
        counters.tlb_clears += 1;
        clear(state);
        state.kept.rename(number);
    } else {
        let gone = changes.pages().iter().chain(changes.evicted());
        gone.for_each(|page| drop_page(state, *page));
        for page in changes.pages() {
            state.kept.retain(|entry| entry.tag != page.wrapping_neg());
        }
        for page in changes.revoked() {
            drop_writes(state, mmu.host_address(*page));
        }
        if changes.local {
            leave(state);
            counters.tlb_kept += come_back(state, number);
        } else {
            state.kept.rename(number);
        }
    }
    mmu.forget_tlb_changes();
}

fn clear(state: &mut State) {
    let all = &mut state.filled.all;
    for position in all.positions.iter().take(all.count).map(|p| usize::from(*p)) {
        let (plane, index) = (&mut state.tlb[position / TLB % PLANES], position % TLB);
        (plane.read[index], plane.write[index]) = (none(index), none(index));
        plane.kind[index] = 0;
    }
    all.count = 0;
    state.filled.local.count = 0;
    state.kept.clear();
}

fn drop_page(state: &mut State, linear: u64) {
    let (index, tag) = (index(linear), (linear & !(PAGE - 1)).wrapping_neg());
    for plane in &mut state.tlb {
        if plane.read[index] == tag || plane.write[index] == tag {
            (plane.read[index], plane.write[index]) = (none(index), none(index));
        }
    }
}

/// Drops the right to write the page of the arena that is at this host address, of entries that
/// the vCPU's TLB may not have.
fn drop_writes(state: &mut State, host: u64) {
    let State { filled, tlb, kept, .. } = state;
    kept.retain(|entry| !entry.writes(host));
    for position in filled.local.positions.iter().take(filled.local.count) {
        let entry = entry(tlb, (*position).into());
        if let Some(entry) = entry.filter(|entry| entry.writes(host)) {
            tlb[entry.plane()].write[entry.index()] = none(entry.index());
        }
    }
}

/// The entry there, if it is of a page that is not global.
fn entry(tlb: &[Plane; PLANES], position: usize) -> Option<Entry> {
    let (plane, index) = (&tlb[position / TLB % PLANES], position % TLB);
    let (read, write) = (plane.read[index] != none(index), plane.write[index] != none(index));
    let tag = if read { plane.read[index] } else { plane.write[index] };
    let delta = plane.delta[index];
    let local = plane.kind[index] & GLOBAL == 0;
    (local && (read || write)).then_some(Entry { position, tag, read, write, delta })
}

/// The address space that has run does so no more.
fn leave(state: &mut State) {
    let State { filled, tlb, kept, .. } = state;
    let positions = filled.local.positions.iter().take(filled.local.count).rev();
    kept.put(positions.filter_map(|position| entry(tlb, (*position).into())));
    drop_local(state);
}

/// What is kept of the space that runs now is entered; how much that is.
fn come_back(state: &mut State, number: u64) -> u64 {
    let State { filled, tlb, kept, .. } = state;
    let mut count = 0;
    for entry in kept.switch(number) {
        let (plane, index) = (&mut tlb[entry.plane()], entry.index());
        if plane.read[index] != none(index) || plane.write[index] != none(index) {
            // A global page's.
            continue;
        }
        let tag = |known: bool| if known { entry.tag } else { none(index) };
        (plane.read[index], plane.write[index]) = (tag(entry.read), tag(entry.write));
        plane.delta[index] = entry.delta;
        let old = std::mem::replace(&mut plane.kind[index], LISTED | LISTED_LOCAL);
        if old & LISTED == 0 {
            filled.all.push(entry.position);
        }
        if old & LISTED_LOCAL == 0 {
            filled.local.push(entry.position);
        }
        count += 1;
    }
    count
}

/// Drops the entries of pages that are not global.
fn drop_local(state: &mut State) {
    let local = &mut state.filled.local;
    for position in local.positions.iter().take(local.count).map(|p| usize::from(*p)) {
        let (plane, index) = (&mut state.tlb[position / TLB % PLANES], position % TLB);
        if plane.kind[index] & GLOBAL == 0 {
            (plane.read[index], plane.write[index]) = (none(index), none(index));
        }
        plane.kind[index] &= !LISTED_LOCAL;
    }
    local.count = 0;
}

/// Only one of the two pages can be known.
pub fn contend(a: u64, b: u64) -> bool {
    index(a) == index(b) && (a ^ b) / PAGE != 0
}

/// Accesses to the page hit.
pub fn knows(state: &State, plane: Option<usize>, linear: u64, write: bool) -> bool {
    let (index, tag) = (index(linear), (linear & !(PAGE - 1)).wrapping_neg());
    let plane = plane.and_then(|plane| state.tlb.get(plane));
    plane.is_some_and(|plane| if write { &plane.write } else { &plane.read }[index] == tag)
}

/// Takes over what the vCPU's TLB knows of a page.
pub fn enter(state: &mut State, mmu: &Mmu, linear: u64, counters: &mut Counters) {
    let (Some(number), Some(held)) = (mmu.plane(), mmu.held(linear)) else { return };
    let (index, page) = (index(linear), linear & !(PAGE - 1));
    let Some(plane) = state.tlb.get_mut(number) else { return };
    counters.tlb_fills[number % PLANES] += 1;
    let tag = |known: bool| if known { page.wrapping_neg() } else { none(index) };
    (plane.read[index], plane.write[index]) = (tag(held.read), tag(held.write));
    plane.delta[index] = mmu.host_address(held.page).wrapping_sub(page);
    let old = plane.kind[index];
    let (local, kind) = if held.global { (0, GLOBAL) } else { (LISTED_LOCAL, 0) };
    plane.kind[index] = old & !GLOBAL | LISTED | local | kind;
    let position = number * TLB + index;
    if old & LISTED == 0 {
        state.filled.all.push(position);
    }
    if old & LISTED_LOCAL == 0 && !held.global {
        state.filled.local.push(position);
    }
}
