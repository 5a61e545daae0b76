//! Guest-physical memory as a page walk sees it.

use guest_mem::{Arena, ArenaOffset, Layout, PAGE, Plain, Region};

/// One layout with its memory.
#[derive(Clone, Copy, Debug)]
pub struct Phys<'a> {
    layout: &'a Layout,
    arena: &'a Arena,
}

impl<'a> Phys<'a> {
    pub const fn new(layout: &'a Layout, arena: &'a Arena) -> Self {
        Self { layout, arena }
    }

    /// The slot at `gpa`, and where in it.
    pub fn find(&self, gpa: u64) -> Option<(&'a Region, u64)> {
        self.layout.find(gpa).map(|(region, at)| (&**region, at))
    }

    /// A naturally aligned integer; `None` where there is no memory.
    pub fn load<T: Plain>(&self, gpa: u64) -> Option<T> {
        let (region, at) = self.find(gpa)?;
        Some(self.arena.load(region.arena_at(at)))
    }

    /// Replaces an aligned integer if it still is `old`. False only if it was not: read-only
    /// memory keeps what it has and counts as replaced.
    pub(crate) fn replace<T: Plain>(&self, gpa: u64, old: T, new: T) -> bool {
        let Some((region, at)) = self.find(gpa).filter(|(region, _)| region.slot.writable) else {
            return true;
        };
        let replaced = self.arena.compare_exchange(region.arena_at(at), old, new) == old;
        if replaced {
            region.dirty().set((at / PAGE) as usize);
        }
        replaced
    }

    /// Where the page of `gpa` is in the arena, with its slot and its number in the slot.
    pub fn page(&self, gpa: u64) -> Option<(&'a Region, usize, ArenaOffset)> {
        let (region, at) = self.find(gpa & !(PAGE - 1))?;
        Some((region, (at / PAGE) as usize, region.arena_at(at)))
    }
}
