//! Translated code's own TLB, filled from the vCPU's.
//!
//! It knows no address spaces: whenever the vCPU's TLB forgets anything or turns to another
//! address space, all of this one goes. `State::temp` and its like are not concerned.

use crate::{
    counters::Counters,
    state::{PLANES, State, TLB, none},
};
use semantics::mem::Mmu;

const PAGE: u64 = 4096;

/// Which entries there are, and of which generation of the vCPU's TLB.
#[derive(Debug)]
#[repr(C)]
pub struct Filled {
    generation: u64,
    count: u64,
    /// Plane and index.
    entries: [u16; PLANES * TLB],
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

/// Before translated code runs on.
pub fn refresh(state: &mut State, mmu: &Mmu, counters: &mut Counters) {
    let generation = mmu.tlb_generation();
    if state.filled.generation != generation {
        counters.tlb_clears += 1;
        clear(state);
        state.filled.generation = generation;
    }
}

fn clear(state: &mut State) {
    let filled = &mut state.filled;
    let count = std::mem::take(&mut filled.count) as usize;
    for entry in filled.entries.iter().take(count) {
        let entry = usize::from(*entry);
        let (plane, index) = (&mut state.tlb[entry / TLB % PLANES], entry % TLB);
        plane.read[index] = none(index);
        plane.write[index] = none(index);
    }
}

/// Takes over what the vCPU's TLB knows of a page.
pub fn enter(state: &mut State, mmu: &Mmu, linear: u64, counters: &mut Counters) {
    let Some(number) = mmu.plane() else { return };
    let (read, write) = (mmu.known(linear, false), mmu.known(linear, true));
    let Some(host) = read.or(write) else { return };
    let (index, page) = (index(linear), linear & !(PAGE - 1));
    let Some(plane) = state.tlb.get_mut(number) else { return };
    counters.tlb_fills[number % PLANES] += 1;
    let fresh = (plane.read[index], plane.write[index]) == (none(index), none(index));
    let tag = |known: Option<u64>| known.map_or(none(index), |_| page.wrapping_neg());
    (plane.read[index], plane.write[index]) = (tag(read), tag(write));
    plane.delta[index] = host.wrapping_sub(linear);
    if fresh {
        let filled = &mut state.filled;
        // There is room for all that can be fresh.
        if let Some(entry) = filled.entries.get_mut(filled.count as usize) {
            *entry = (number * TLB + index) as u16;
            filled.count += 1;
        }
    }
}
