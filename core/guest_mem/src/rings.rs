//! Guest memory as the crate `vm-memory` sees it, for libraries that walk rings in it.
//!
//! Devices move data by [`GuestMem::read`] and [`GuestMem::dma`]; this is for what a library
//! reads and writes itself, a few bytes at a time. `vm-memory` accesses memory as volatile or by
//! atomic instructions, never by reference, and reports each write, which here tells both planes.
#![expect(unsafe_code, reason = "hands out volatile slices of the arena")]

use crate::{ArenaOffset, GuestMem, Region};
use std::sync::Arc;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryRegionBytes, MemoryRegionAddress, VolatileSlice,
    bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice},
};

/// The slots of one layout.
#[derive(Debug)]
pub struct RingMemory {
    regions: Vec<RingRegion>,
}

/// One slot.
#[derive(Debug)]
pub struct RingRegion {
    mem: Arc<GuestMem>,
    region: Arc<Region>,
}

impl GuestMem {
    /// Memory that may be written, as it is laid out now: rings are written, and where they
    /// are is the guest's choice.
    pub fn rings(self: &Arc<Self>) -> RingMemory {
        let layout = self.layout();
        let region =
            |region: &Arc<Region>| RingRegion { mem: self.clone(), region: region.clone() };
        let writable = layout.regions().iter().filter(|region| region.slot.writable);
        RingMemory { regions: writable.map(region).collect() }
    }
}

impl GuestMemoryBackend for RingMemory {
    type R = RingRegion;

    fn iter(&self) -> impl Iterator<Item = &RingRegion> {
        self.regions.iter()
    }
}

impl GuestMemoryRegionBytes for RingRegion {}

impl GuestMemoryRegion for RingRegion {
    type B = Self;

    fn len(&self) -> u64 {
        self.region.slot.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.region.slot.gpa)
    }

    fn bitmap(&self) -> Written<'_> {
        self.slice_at(0)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self>>, GuestMemoryError> {
        let at = offset.raw_value();
        let end = at.checked_add(count as u64);
        if at >= self.region.slot.len || end.is_none_or(|end| end > self.region.slot.len) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let ArenaOffset(start) = self.region.arena_at(at);
        let host = self.mem.arena().host_address(ArenaOffset(start)) as *mut u8;
        let written = self.slice_at(at as usize);
        // SAFETY: `count` bytes from `at` on are inside the slot, which `self.region` keeps mapped
        // in the arena, readable and writable, for the slice's lifetime. Others may write them
        // at any time, which volatile slices are made for.
        Ok(unsafe { VolatileSlice::with_bitmap(host, count, written, None) })
    }
}

impl<'a> WithBitmapSlice<'a> for RingRegion {
    type S = Written<'a>;
}

impl Bitmap for RingRegion {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(0).dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> Written<'_> {
        Written { mem: &self.mem, region: &self.region, from: offset }
    }
}

/// Hears of writes to a part of a slot.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    mem: &'a GuestMem,
    region: &'a Region,
    from: usize,
}

impl WithBitmapSlice<'_> for Written<'_> {
    type S = Self;
}

impl BitmapSlice for Written<'_> {}

impl Bitmap for Written<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let at = self.from.saturating_add(offset) as u64;
        // A write was inside its slice, and so inside the slot.
        let len = (len as u64).min(self.region.slot.len.saturating_sub(at));
        self.mem.written(self.region, at, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.region.dirty().get(self.from.saturating_add(offset) / crate::PAGE as usize)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { from: self.from.saturating_add(offset), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, CodeWatch, Memfd, PageBitmap, Slot};
    use std::{
        ops::Range,
        sync::atomic::{AtomicU64, Ordering},
    };
    use vm_memory::Bytes;

    fn space() -> Arc<GuestMem> {
        let ram = Memfd::new(0x4000).unwrap();
        let mem = GuestMem::new(0x10000).unwrap();
        let slot = |id, gpa, offset, len| {
            Change::Map(Slot { id, gpa, mem: ram.clone(), offset, len, writable: true })
        };
        let slots = [slot(0, 0x1000, 0, 0x2000), slot(1, 0x8000, 0x2000, 0x2000)];
        mem.update(&slots, |_, _| Ok(())).unwrap();
        mem
    }

    #[test]
    fn both_see_the_same_bytes() {
        let mem = space();
        let rings = mem.rings();
        rings.write_obj(0x1234_5678u32, GuestAddress(0x8ffc)).unwrap();
        let mut bytes = [0; 4];
        mem.read(0x8ffc, &mut bytes).unwrap();
        assert_eq!(bytes, [0x78, 0x56, 0x34, 0x12]);
        mem.write(0x1002, &[7, 0]).unwrap();
        let value: u16 = rings.load(GuestAddress(0x1002), Ordering::Acquire).unwrap();
        assert_eq!(value, 7);
        rings.store(9u16, GuestAddress(0x1002), Ordering::Release).unwrap();
        mem.read(0x1002, &mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [9, 0]);
    }

    #[test]
    fn only_memory_is_memory() {
        let rings = space().rings();
        for (at, len) in [(0x2ffe, 4), (0x9ffe, 4), (0, 4), (0xffe, 4), (u64::MAX - 1, 4)] {
            let mut bytes = vec![0; len];
            assert!(rings.read_slice(&mut bytes, GuestAddress(at)).is_err(), "{at:#x}");
            assert!(rings.write_slice(&bytes, GuestAddress(at)).is_err(), "{at:#x}");
        }
        assert!(rings.load::<u16>(GuestAddress(0x2fff), Ordering::Relaxed).is_err());
        assert!(rings.load::<u16>(GuestAddress(0x1001), Ordering::Relaxed).is_err(), "unaligned");
    }

    #[test]
    fn what_is_not_writable_has_no_rings() {
        let mem = space();
        let rom = Memfd::new(0x1000).unwrap();
        let slot = Slot { id: 2, gpa: 0x4000, mem: rom, offset: 0, len: 0x1000, writable: false };
        mem.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let rings = mem.rings();
        assert!(rings.write_obj(1u32, GuestAddress(0x4000)).is_err());
        assert!(rings.store(1u16, GuestAddress(0x4000), Ordering::Release).is_err());
        assert!(rings.write_obj(1u32, GuestAddress(0x1000)).is_ok());
    }

    #[test]
    fn writes_tell_the_planes() {
        #[derive(Default)]
        struct Seen(AtomicU64);
        impl CodeWatch for Seen {
            fn invalidate(&self, gpa: Range<u64>) {
                self.0.store(gpa.start, Ordering::SeqCst);
            }
        }
        let mem = space();
        let seen = Arc::new(Seen::default());
        let watch: Arc<dyn CodeWatch> = seen.clone();
        mem.watch_code(&watch);
        mem.set_log_dirty(true);
        let layout = mem.layout();
        let region = &layout.regions()[1];
        assert!(region.code().set(1));
        let rings = mem.rings();
        rings.write_obj(1u64, GuestAddress(0x8010)).unwrap();
        assert_eq!(seen.0.load(Ordering::SeqCst), 0, "no code there");
        rings.store(1u16, GuestAddress(0x9010), Ordering::Release).unwrap();
        assert_eq!(seen.0.load(Ordering::SeqCst), 0x9010);
        rings.write_slice(&[1; 3], GuestAddress(0x9020)).unwrap();
        assert_eq!(seen.0.load(Ordering::SeqCst), 0x9020);
        let mut dirty = PageBitmap::for_len(0x2000);
        region.take_dirty(&mut dirty);
        assert_eq!(dirty.pages().collect::<Vec<_>>(), [0, 1]);
    }
}
