//! Entries of the TLB of address spaces that do not run.
//!
//! Where a kernel tells address spaces apart by PCIDs, a space that runs again finds the
//! processor's TLB as it left it (SDM volume 3, 4.10.1). So of the last few spaces, whose numbers
//! say that they have not been flushed since, the entries that were dropped with the loads of CR3
//! are entered again.
//!
//! The vCPU's TLB may not have such an entry any more, and then does not name it when a page
//! becomes one of code: what it says of the arena's page itself has to be looked for.

use crate::state::{PLANES, TLB};

/// Spaces, and entries of each, at most.
const SPACES: usize = 4;
const ENTRIES: usize = 64;

/// What is kept. All zeros: nothing.
#[derive(Debug)]
#[repr(C)]
pub struct Kept {
    spaces: [Space; SPACES],
    /// Whose entries the TLB has, and where they will go.
    current: u64,
    next: usize,
}

#[derive(Debug)]
#[repr(C)]
struct Space {
    /// The number of its lifetime, and one; zero if there is none.
    number: u64,
    count: usize,
    entries: [Entry; ENTRIES],
}

/// Of the page at a place in one of the TLB's planes, as [`crate::state::Plane`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    pub position: usize,
    /// Minus the page's address.
    pub tag: u64,
    pub read: bool,
    pub write: bool,
    pub delta: u64,
}

impl Entry {
    pub fn plane(&self) -> usize {
        self.position / TLB % PLANES
    }

    pub fn index(&self) -> usize {
        self.position % TLB
    }

    /// It allows to write the page of the arena that is at this host address.
    pub fn writes(&self, host: u64) -> bool {
        self.write && self.delta.wrapping_sub(self.tag) == host
    }
}

impl Space {
    fn entries(&self) -> &[Entry] {
        self.entries.get(..self.count).unwrap_or_default()
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let mut kept = 0;
        for n in 0..self.count.min(ENTRIES) {
            if keep(&self.entries[n]) {
                self.entries[kept] = self.entries[n];
                kept += 1;
            }
        }
        self.count = kept;
    }
}

impl Kept {
    /// Nothing is kept.
    pub fn clear(&mut self) {
        self.spaces.iter_mut().for_each(|space| (space.number, space.count) = (0, 0));
    }

    /// Keeps only such entries.
    pub fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.spaces.iter_mut().for_each(|space| space.retain(&keep));
    }

    /// These, which are the last ones that were filled, belong to the space that has run.
    pub fn put(&mut self, entries: impl Iterator<Item = Entry>) {
        let number = self.current;
        let known = self.spaces.iter().position(|space| space.number == number);
        let place = known.unwrap_or(self.next % SPACES);
        if known.is_none() {
            self.next = (place + 1) % SPACES;
        }
        let space = &mut self.spaces[place];
        (space.number, space.count) = (number, 0);
        for (to, entry) in space.entries.iter_mut().zip(entries) {
            *to = entry;
            space.count += 1;
        }
    }

    /// Of the space that runs from now on.
    pub fn switch(&mut self, number: u64) -> &[Entry] {
        self.current = number.wrapping_add(1);
        let current = self.current;
        let known = self.spaces.iter().find(|space| space.number == current && current != 0);
        known.map(Space::entries).unwrap_or_default()
    }

    /// The number of the space that runs has changed, and nothing else.
    pub fn rename(&mut self, number: u64) {
        self.current = number.wrapping_add(1);
    }
}
