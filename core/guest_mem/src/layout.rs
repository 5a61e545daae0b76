//! Which memory is where.

use crate::{Arena, ArenaOffset, AtomicBitmap, Error, Memfd, PAGE, PageBitmap};
use std::sync::Arc;

pub type SlotId = u32;
/// Counts layouts.
pub type Generation = u64;

/// Memory at a guest-physical address. Slots never overlap; what no slot covers is MMIO, and
/// so are writes to a slot that is not writable.
#[derive(Clone, Debug)]
pub struct Slot {
    pub id: SlotId,
    pub gpa: u64,
    pub mem: Arc<Memfd>,
    /// Where in `mem` the slot begins.
    pub offset: u64,
    pub len: u64,
    pub writable: bool,
}

#[derive(Clone, Debug)]
pub enum Change {
    Map(Slot),
    Unmap(SlotId),
}

/// A slot with its place in the arena, which it holds until its last user is gone.
#[derive(Debug)]
pub struct Region {
    pub slot: Slot,
    base: usize,
    arena: Arc<Arena>,
    dirty: AtomicBitmap,
    code: AtomicBitmap,
}

impl Region {
    fn new(slot: &Slot, arena: &Arc<Arena>) -> Result<Self, Error> {
        let bad = || Error::BadRange(slot.id);
        let whole = slot.len > 0 && (slot.gpa | slot.offset | slot.len).is_multiple_of(PAGE);
        let end = slot.offset.checked_add(slot.len);
        let size = slot.mem.size().map_err(|source| Error::Os { call: "fstat", source })?;
        if !whole || end.is_none_or(|e| e > size) || slot.gpa.checked_add(slot.len).is_none() {
            return Err(bad());
        }
        let len = usize::try_from(slot.len).map_err(|_| bad())?;
        let base = arena.map(&slot.mem, slot.offset, len).map_err(|e| match e {
            None => Error::NoRoom(slot.id),
            Some(source) => Error::Os { call: "mmap", source },
        })?;
        Ok(Self {
            slot: slot.clone(),
            base,
            arena: arena.clone(),
            dirty: AtomicBitmap::for_len(slot.len),
            code: AtomicBitmap::for_len(slot.len),
        })
    }

    /// The arena offset of a byte of the slot.
    #[inline]
    pub fn arena_at(&self, offset: u64) -> ArenaOffset {
        debug_assert!(offset < self.slot.len);
        ArenaOffset(self.base + offset as usize)
    }

    /// Address of the slot's first byte in this process, for KVM and for window mappings.
    pub fn host_address(&self) -> u64 {
        self.arena.host_address(ArenaOffset(self.base))
    }

    pub fn dirty(&self) -> &AtomicBitmap {
        &self.dirty
    }

    /// Pages from which an engine holds decoded or translated code.
    pub fn code(&self) -> &AtomicBitmap {
        &self.code
    }

    pub fn mark_dirty(&self, at: u64, len: u64) {
        for page in pages(at, len) {
            self.dirty.set(page);
        }
    }

    pub fn has_code(&self, at: u64, len: u64) -> bool {
        pages(at, len).any(|page| self.code.get(page))
    }

    /// Adds to `out`, and forgets, the dirty pages.
    pub fn take_dirty(&self, out: &mut PageBitmap) {
        self.dirty.take(out);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.arena.unmap(self.base, self.slot.len as usize);
    }
}

fn pages(at: u64, len: u64) -> std::ops::Range<usize> {
    (at / PAGE) as usize..(at + len).div_ceil(PAGE) as usize
}

/// One consistent view of the space, sorted by address.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub generation: Generation,
    regions: Vec<Arc<Region>>,
}

impl Layout {
    /// The region at `gpa`, and where in it.
    #[inline]
    pub fn find(&self, gpa: u64) -> Option<(&Arc<Region>, u64)> {
        let after = self.regions.partition_point(|r| r.slot.gpa <= gpa);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = gpa - region.slot.gpa;
        (offset < region.slot.len).then_some((region, offset))
    }

    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    pub fn by_id(&self, id: SlotId) -> Option<&Arc<Region>> {
        self.regions.iter().find(|r| r.slot.id == id)
    }

    pub(crate) fn with(&self, changes: &[Change], arena: &Arc<Arena>) -> Result<Self, Error> {
        let mut new = Self { generation: self.generation + 1, regions: self.regions.clone() };
        for change in changes {
            match change {
                Change::Unmap(id) => {
                    let at = new.regions.iter().position(|r| r.slot.id == *id);
                    drop(new.regions.remove(at.ok_or(Error::NoSlot(*id))?));
                }
                Change::Map(slot) => {
                    let end = slot.gpa.checked_add(slot.len).ok_or(Error::BadRange(slot.id))?;
                    let overlaps = |r: &Arc<Region>| {
                        let s = &r.slot;
                        s.id == slot.id || slot.gpa < s.gpa + s.len && s.gpa < end
                    };
                    if new.regions.iter().any(overlaps) {
                        return Err(Error::Overlap(slot.id));
                    }
                    let at = new.regions.partition_point(|r| r.slot.gpa < slot.gpa);
                    new.regions.insert(at, Arc::new(Region::new(slot, arena)?));
                }
            }
        }
        Ok(new)
    }
}
