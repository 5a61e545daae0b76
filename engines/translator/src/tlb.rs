//! Translated code's own TLB, filled from the vCPU's.
//!
//! It knows no address spaces: whenever the vCPU's TLB forgets anything or turns to another
//! address space, all of this one goes. `State::temp` and its like are not concerned.

use crate::{
    counters::Counters,
    state::{PLANES, State, TLB, TlbEntry},
};
use semantics::mem::Mmu;

const PAGE: u64 = 4096;

/// Entries are dropped by groups.
const GROUP: usize = 64;

/// Which groups have entries, by plane, and of which generation of the vCPU's TLB they are.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Filled {
    groups: [u64; PLANES],
    generation: u64,
}

pub fn index(linear: u64) -> usize {
    (linear / PAGE) as usize % TLB
}

/// The bits of an address that [`index`] is made of.
pub const INDEX_MASK: u64 = (TLB as u64 - 1) * PAGE;

/// Nothing hits.
pub fn clear(state: &mut State) {
    for plane in &mut state.tlb {
        for (index, entry) in plane.iter_mut().enumerate() {
            *entry = TlbEntry::none(index);
        }
    }
    state.filled = Filled::default();
}

/// Before translated code runs on.
pub fn refresh(state: &mut State, mmu: &Mmu, counters: &mut Counters) {
    let generation = mmu.tlb_generation();
    if state.filled.generation == generation {
        return;
    }
    counters.tlb_clears += 1;
    for (plane, groups) in state.tlb.iter_mut().zip(&mut state.filled.groups) {
        while *groups != 0 {
            let first = groups.trailing_zeros() as usize * GROUP;
            *groups &= *groups - 1;
            for (n, entry) in plane.iter_mut().enumerate().skip(first).take(GROUP) {
                *entry = TlbEntry::none(n);
            }
        }
    }
    state.filled.generation = generation;
}

/// Takes over what the vCPU's TLB knows of a page.
pub fn enter(state: &mut State, mmu: &Mmu, linear: u64, counters: &mut Counters) {
    let Some(plane) = mmu.plane() else { return };
    let (read, write) = (mmu.known(linear, false), mmu.known(linear, true));
    let Some(host) = read.or(write) else { return };
    let (index, page) = (index(linear), linear & !(PAGE - 1));
    let none = TlbEntry::none(index);
    let tag = |known: Option<u64>, none: u64| known.map_or(none, |_| page.wrapping_neg());
    let entry = TlbEntry {
        read: tag(read, none.read),
        write: tag(write, none.write),
        delta: host.wrapping_sub(linear),
    };
    if let (Some(entries), Some(groups)) =
        (state.tlb.get_mut(plane), state.filled.groups.get_mut(plane))
    {
        counters.tlb_fills[plane % PLANES] += 1;
        entries[index] = entry;
        *groups |= 1 << (index / GROUP);
    }
}
