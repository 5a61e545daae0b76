//! Translated code's own TLB, filled from the vCPU's.
//!
//! It knows no address spaces: with a change to another one, all entries go but those of global
//! pages, which are mostly the kernel's. What else goes, the vCPU's TLB tells page by page.

use crate::{
    counters::Counters,
    state::{PLANES, State, TLB, none},
    windows::Windows,
};
use semantics::mem::Mmu;

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
    let changes = mmu.tlb_changes();
    if changes.all {
        counters.tlb_clears += 1;
        clear(state);
    } else {
        let gone = changes.pages().iter().chain(changes.evicted());
        gone.for_each(|page| drop_page(state, *page));
        if changes.local {
            drop_local(state);
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
}

fn drop_page(state: &mut State, linear: u64) {
    let (index, tag) = (index(linear), (linear & !(PAGE - 1)).wrapping_neg());
    for plane in &mut state.tlb {
        if plane.read[index] == tag || plane.write[index] == tag {
            (plane.read[index], plane.write[index]) = (none(index), none(index));
        }
    }
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
