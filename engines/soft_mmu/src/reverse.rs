//! From what a TLB must forget to the entries that have it, without a search.

use guest_mem::PAGE;
use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

/// Pages of the arena that entries allow to write, by hash.
const WRITERS: usize = 16384;
/// Entries named for one hash: a page is mostly written through the kernel's map of all memory
/// and through a program's.
const NAMES: usize = 4;
const NONE: u16 = u16::MAX;
const SEVERAL: u16 = u16::MAX - 1;

/// Which entries allow to write a page of the arena. Entries that have gone since may still be
/// named; one that is there is named, unless there are too many.
pub struct Writers(Box<[[u16; NAMES]]>);

fn slot(page: u64) -> usize {
    ((page / PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % WRITERS
}

impl Writers {
    pub fn new() -> Self {
        Self(vec![[NONE; NAMES]; WRITERS].into())
    }

    /// The numbers of all entries that may allow to write the page; `None` if there are more
    /// than are named.
    pub fn of(&self, page: u64) -> Option<impl Iterator<Item = usize> + use<>> {
        let named = self.0[slot(page)];
        let number = |n: u16| (n != NONE).then_some(usize::from(n));
        (named[0] != SEVERAL).then(|| named.into_iter().filter_map(number))
    }

    /// Two pages are not told apart.
    pub fn collide(a: u64, b: u64) -> bool {
        slot(a) == slot(b)
    }

    /// The entry of this number, below 65,534, allows to write the page. `stale` says of others
    /// that are named whether they need not be any more.
    pub fn insert(&mut self, page: u64, number: usize, stale: impl Fn(usize) -> bool) {
        let (named, number) = (&mut self.0[slot(page)], number as u16);
        if named[0] == SEVERAL || named.contains(&number) {
            return;
        }
        let free = |n: &&mut u16| **n == NONE || stale(usize::from(**n));
        match named.iter_mut().find(free) {
            Some(place) => *place = number,
            None => named[0] = SEVERAL,
        }
    }

    /// No entry allows to write any page that is not told apart from this one.
    pub fn forget(&mut self, page: u64) {
        self.0[slot(page)] = [NONE; NAMES];
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
    fn writers_are_named_or_too_many() {
        let mut writers = Writers::new();
        let of = |writers: &Writers| writers.of(0x5000).map(|n| n.collect::<Vec<_>>());
        assert_eq!(of(&writers), Some(vec![]));
        for number in [7, 7, 8, 9, 10] {
            writers.insert(0x5000, number, |_| false);
        }
        assert_eq!(of(&writers), Some(vec![7, 8, 9, 10]));
        writers.insert(0x5000, 11, |n| n == 9);
        assert_eq!(of(&writers), Some(vec![7, 8, 11, 10]));
        writers.insert(0x5000, 12, |_| false);
        assert_eq!(of(&writers), None);
        writers.insert(0x5000, 13, |_| true);
        assert_eq!(of(&writers), None);
        writers.forget(0x5000);
        assert_eq!(of(&writers), Some(vec![]));
    }
}
