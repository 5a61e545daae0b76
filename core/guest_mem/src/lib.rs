//! The guest-physical space: slots on memfds, volatile access, dirty and code planes.
//!
//! This is the only crate that maps guest RAM. RAM is reachable in two ways:
//!
//! * by guest-physical address through [`Layout`] and [`GuestMem`]: devices, loaders;
//! * by [`ArenaOffset`], a validated offset into one reservation that holds every slot: the
//!   software TLB keeps these, so that a hit costs a bounds check and the access itself.
//!
//! The other side (vCPUs, the kernel, devices) may write any byte at any time. Memory is
//! therefore never lent as a reference: it is loaded and stored by single instructions
//! ([`Arena`]), and a race yields a value, never undefined behaviour.
//!
//! Two planes say what was written, and share nothing. *Dirty* pages are for migration and
//! snapshots. *Code* pages are those from which an engine holds translations or decoded
//! instructions: it must hear of writes by others even while nobody logs dirty pages.

mod arena;
mod bitmap;
mod layout;
mod memfd;
mod rings;

pub use arena::{Arena, ArenaOffset, Plain};
pub use bitmap::{AtomicBitmap, PageBitmap};
pub use layout::{Change, Generation, Layout, Region, Slot, SlotId};
pub use memfd::Memfd;
pub use rings::{RingMemory, RingRegion};

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

pub const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("memory slot {0} overlaps another")]
    Overlap(SlotId),
    #[error("memory slot {0} does not exist")]
    NoSlot(SlotId),
    #[error("memory slot {0} is not a range of whole pages of its memory")]
    BadRange(SlotId),
    #[error("the guest-physical space has no room for memory slot {0}")]
    NoRoom(SlotId),
    #[error("guest-physical {0:#x} is not memory")]
    NotMemory(u64),
    #[error("{call} failed")]
    Os { call: &'static str, source: std::io::Error },
    #[error("{0}")]
    Engine(String),
}

/// Hears of writes by others than the vCPU itself to pages that carry its code mark.
pub trait CodeWatch: Send + Sync {
    /// The bytes at `gpa` have changed. Returns when no vCPU executes from the old ones
    /// beyond what the architecture allows.
    fn invalidate(&self, gpa: Range<u64>);
}

/// Guest memory as engines and devices share it.
#[derive(Debug)]
pub struct GuestMem {
    arena: Arc<Arena>,
    layout: RwLock<Arc<Layout>>,
    log: AtomicBool,
    watches: Mutex<Vec<Watch>>,
}

struct Watch(Weak<dyn CodeWatch>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CodeWatch")
    }
}

impl GuestMem {
    /// `capacity` bounds the sum of all slots' lengths; it reserves addresses, not memory.
    pub fn new(capacity: u64) -> Result<Arc<Self>, Error> {
        let len = usize::try_from(capacity).map_err(|_| Error::NoRoom(0))?;
        let arena = Arena::reserve(len).map_err(|source| Error::Os { call: "mmap", source })?;
        Ok(Arc::new(Self {
            arena: Arc::new(arena),
            layout: RwLock::default(),
            log: AtomicBool::new(false),
            watches: Mutex::default(),
        }))
    }

    /// Every slot's memory, by [`ArenaOffset`].
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub fn layout(&self) -> Arc<Layout> {
        self.layout.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For engines: applies all changes or none. `commit` gets the old and the new layout; if
    /// it fails, nothing has changed.
    pub fn update(
        &self,
        changes: &[Change],
        commit: impl FnOnce(&Layout, &Layout) -> Result<(), Error>,
    ) -> Result<Generation, Error> {
        let mut current = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        let new = current.with(changes, &self.arena)?;
        commit(&current, &new)?;
        let generation = new.generation;
        *current = Arc::new(new);
        Ok(generation)
    }

    /// Dirty pages are being logged.
    pub fn logs_dirty(&self) -> bool {
        self.log.load(SeqCst)
    }

    /// For engines, which also make their vCPUs forget what they may write unlogged.
    pub fn set_log_dirty(&self, on: bool) {
        self.log.store(on, SeqCst);
    }

    pub fn watch_code(&self, watch: &Arc<dyn CodeWatch>) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|w| w.0.strong_count() > 0);
        watches.push(Watch(Arc::downgrade(watch)));
    }

    /// Copies memory out as a device or a debugger sees it; the range may span slots.
    pub fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Error> {
        let layout = self.layout();
        let mut at = gpa;
        let mut rest = out;
        while !rest.is_empty() {
            let (region, offset) = layout.find(at).ok_or(Error::NotMemory(at))?;
            let here = rest.len().min((region.slot.len - offset) as usize);
            let (now, later) = rest.split_at_mut(here);
            self.arena.read(region.arena_at(offset), now);
            at = at.wrapping_add(here as u64);
            rest = later;
        }
        Ok(())
    }

    /// Copies memory in as a loader or a debugger does, also where the guest may not write, and
    /// tells both planes. Nothing is written unless all of the range is memory.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Error> {
        let layout = self.layout();
        if let Some((region, offset)) = layout.find(gpa)
            && data.len() as u64 <= region.slot.len - offset
        {
            self.write_within(region, offset, data);
            return Ok(());
        }
        let (mut at, mut rest) = (gpa, data);
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (region, offset) = layout.find(at).ok_or(Error::NotMemory(at))?;
            let here = rest.len().min((region.slot.len - offset) as usize);
            let (now, later) = rest.split_at(here);
            parts.push((region, offset, now));
            at = at.wrapping_add(here as u64);
            rest = later;
        }
        for (region, offset, now) in parts {
            self.write_within(region, offset, now);
        }
        Ok(())
    }

    /// [`GuestMem::write`] to one region, by whoever has found it. Nothing is written unless all of
    /// it fits.
    pub fn write_within(&self, region: &Region, offset: u64, data: &[u8]) {
        if data.len() as u64 > region.slot.len.saturating_sub(offset) {
            return;
        }
        self.arena.write(region.arena_at(offset), data);
        self.written(region, offset, data.len() as u64);
    }

    /// Gives whole pages of this range back to the host, as far as they are writable memory: they
    /// are zero from now on, and both planes are told. Returns how many bytes those were; a host
    /// that cannot take them keeps their contents, and they do not count.
    pub fn discard(&self, gpa: u64, len: u64) -> u64 {
        let layout = self.layout();
        let Some(mut at) = gpa.checked_next_multiple_of(PAGE) else { return 0 };
        let end = gpa.saturating_add(len) & !(PAGE - 1);
        let mut done = 0;
        while at < end {
            let next = layout.regions().iter().find(|r| r.slot.gpa + r.slot.len > at);
            let Some(region) = next.filter(|r| r.slot.gpa < end) else { break };
            let start = at.max(region.slot.gpa);
            let stop = end.min(region.slot.gpa + region.slot.len);
            let (offset, here) = (start - region.slot.gpa, stop - start);
            let slot = &region.slot;
            if slot.writable && slot.mem.discard(slot.offset + offset, here).is_ok() {
                self.written(region, offset, here);
                done += here;
            }
            at = stop;
        }
        done
    }

    /// A buffer for device DMA, if `len` bytes at `gpa` are memory of one slot that may be
    /// written.
    pub fn dma(&self, gpa: u64, len: usize) -> Option<DmaBuf<'_>> {
        let layout = self.layout();
        let (region, at) = layout.find(gpa)?;
        let fits = len as u64 <= region.slot.len - at && region.slot.writable;
        fits.then(|| DmaBuf { mem: self, region: region.clone(), at, len })
    }

    /// Someone other than a vCPU wrote here: both planes learn of it.
    pub fn written(&self, region: &Region, at: u64, len: u64) {
        if len == 0 {
            return;
        }
        if self.logs_dirty() {
            region.mark_dirty(at, len);
        }
        if region.has_code(at, len) {
            let start = region.slot.gpa + at;
            let watches: Vec<_> = {
                let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
                watches.iter().filter_map(|w| w.0.upgrade()).collect()
            };
            for watch in watches {
                watch.invalidate(start..start + len);
            }
        }
    }
}

/// Dropping it completes the DMA: both planes learn of it. A device therefore drops its
/// buffers first and raises its interrupt after.
#[must_use]
#[derive(Debug)]
pub struct DmaBuf<'m> {
    mem: &'m GuestMem,
    region: Arc<Region>,
    at: u64,
    len: usize,
}

impl DmaBuf<'_> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies as much of `data` as fits.
    pub fn write(&mut self, data: &[u8]) {
        let len = data.len().min(self.len);
        self.mem.arena.write(self.region.arena_at(self.at), &data[..len]);
    }

    pub fn read(&self, out: &mut [u8]) {
        let len = out.len().min(self.len);
        self.mem.arena.read(self.region.arena_at(self.at), &mut out[..len]);
    }
}

impl Drop for DmaBuf<'_> {
    fn drop(&mut self) {
        self.mem.written(&self.region, self.at, self.len as u64);
    }
}

#[cfg(test)]
mod tests;
