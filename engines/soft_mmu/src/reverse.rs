//! From what a TLB must forget to the entries that have it, without a search.

use guest_mem::PAGE;
use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

/// Pages of the arena that entries allow to write, by hash.
const WRITERS: usize = 4096;
const NONE: u16 = u16::MAX;
const SEVERAL: u16 = u16::MAX - 1;

/// Which entry allows to write a page of the arena. Entries that have gone since may still be
/// named; one that is there is named, or is one of several.
pub struct Writers(Box<[u16]>);

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// No entry allows it.
    None,
    /// If any, then the entry with this number.
    One(usize),
    Several,
}

fn slot(page: u64) -> usize {
    ((page / PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % WRITERS
}

impl Writers {
    pub fn new() -> Self {
        Self(vec![NONE; WRITERS].into())
    }

    pub fn of(&self, page: u64) -> Writer {
        match self.0[slot(page)] {
            NONE => Writer::None,
            SEVERAL => Writer::Several,
            one => Writer::One(one.into()),
        }
    }

    /// Two pages are not told apart.
    pub fn collide(a: u64, b: u64) -> bool {
        slot(a) == slot(b)
    }

    /// The entry of this number, below 65,534, allows to write the page.
    pub fn insert(&mut self, page: u64, number: usize) {
        let (at, number) = (&mut self.0[slot(page)], number as u16);
        *at = if *at == NONE || *at == number { number } else { SEVERAL };
    }

    /// The entries that collide with the page are these.
    pub fn replace(&mut self, page: u64, number: Option<usize>) {
        self.0[slot(page)] = number.map_or(NONE, |n| n as u16);
    }
}

/// Regions remembered at most.
const REGIONS: usize = 1 << 14;

/// The regions of the linear space where large pages were entered; all of them, once there were
/// too many.
#[derive(Debug)]
pub struct Regions {
    known: HashSet<u64, BuildHasherDefault<Mix>>,
    /// Also in `known`: consecutive pages of one are entered in turn.
    last: u64,
    all: bool,
    pub shift: u8,
}

impl Regions {
    /// Of so many bits of a linear address.
    pub fn new(shift: u8) -> Self {
        Self { known: HashSet::default(), last: u64::MAX, all: false, shift }
    }

    pub fn insert(&mut self, linear: u64) {
        let region = linear >> self.shift;
        if region == self.last || self.all {
            return;
        }
        self.last = region;
        self.all = self.known.len() >= REGIONS;
        self.known.insert(region);
    }

    pub fn contains(&self, linear: u64) -> bool {
        self.all || !self.known.is_empty() && self.known.contains(&(linear >> self.shift))
    }

    /// Nothing of the region is known any more.
    pub fn remove(&mut self, linear: u64) {
        self.known.remove(&(linear >> self.shift));
        self.last = u64::MAX;
    }

    pub fn clear(&mut self) {
        self.known.clear();
        (self.last, self.all) = (u64::MAX, false);
    }
}

/// A multiplicative hash. A guest may make its own regions collide.
#[derive(Debug, Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, value: u64) {
        let product = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_regions_are_all() {
        let mut regions = Regions::new(21);
        regions.insert(5 << 21);
        assert!(regions.contains((5 << 21) + 4096) && !regions.contains(6 << 21));
        regions.remove(5 << 21);
        assert!(!regions.contains(5 << 21));
        for n in 0..=REGIONS as u64 {
            regions.insert(n << 21);
        }
        assert!(regions.contains(u64::MAX) && regions.known.len() <= REGIONS + 1);
        regions.clear();
        assert!(!regions.contains(5 << 21));
    }

    #[test]
    fn a_writer_is_known_or_one_of_several() {
        let mut writers = Writers::new();
        assert_eq!(writers.of(0x5000), Writer::None);
        writers.insert(0x5000, 7);
        writers.insert(0x5000, 7);
        assert_eq!(writers.of(0x5000), Writer::One(7));
        writers.insert(0x5000, 8);
        assert_eq!(writers.of(0x5000), Writer::Several);
        writers.replace(0x5000, Some(8));
        assert_eq!(writers.of(0x5000), Writer::One(8));
    }
}
