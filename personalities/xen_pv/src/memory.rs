//! The domain's memory by machine frame.

use crate::tables::Level;
use guest_mem::{GuestMem, Layout, PAGE, Plain, Region};
use std::sync::Arc;
use x86_defs::paging::{ADDRESS, P, PS};

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// Entries of a page, by 8 bytes.
#[derive(Clone, Debug)]
pub struct Memory {
    all: Arc<GuestMem>,
    /// A domain has the same memory from its start to its end.
    layout: Arc<Layout>,
}

impl Memory {
    pub fn new(all: Arc<GuestMem>) -> Self {
        let layout = all.layout();
        Self { all, layout }
    }

    pub fn whole(&self) -> &Arc<GuestMem> {
        &self.all
    }

    fn place(&self, address: u64) -> Option<(&Region, u64)> {
        let (region, at) = self.layout.find(address)?;
        Some((region, at))
    }

    pub fn is_there(&self, address: u64) -> bool {
        self.place(address & !7).is_some()
    }

    fn load_one<T: Plain>(&self, address: u64) -> T {
        let (found, arena) = (self.place(address), self.all.arena());
        found.map_or(T::default(), |(region, at)| arena.load(region.arena_at(at)))
    }

    /// At once, as a processor does that other vCPUs look at; whoever has code or a log of it hears of it.
    fn store_one<T: Plain>(&self, address: u64, value: T) {
        if let Some((region, at)) = self.place(address) {
            self.all.arena().store(region.arena_at(at), value);
            self.all.written(region, at, size_of::<T>() as u64);
        }
    }

    fn exchange_one<T: Plain>(&self, address: u64, old: T, new: T) -> bool {
        let Some((region, at)) = self.place(address) else { return false };
        let done = self.all.arena().compare_exchange(region.arena_at(at), old, new) == old;
        if done {
            self.all.written(region, at, size_of::<T>() as u64);
        }
        done
    }

    /// An entry; 0 where there is no memory.
    pub fn load(&self, address: u64) -> u64 {
        self.load_one(address & !7)
    }

    /// A word of 4 bytes at a multiple of 4; 0 where there is no memory.
    pub fn load_32(&self, address: u64) -> u32 {
        self.load_one(address & !3)
    }

    /// Nothing where there is no memory.
    pub fn store(&self, address: u64, value: u64) {
        self.store_one(address & !7, value);
    }

    /// As [`Memory::store`], of a word of 4 bytes.
    pub fn store_32(&self, address: u64, value: u32) {
        self.store_one(address & !3, value);
    }

    /// One byte of a word that the domain may change at any time.
    pub fn store_byte(&self, address: u64, value: u8) {
        self.store_one(address, value);
    }

    /// True if the entry was `old`, and is `new` now.
    pub fn exchange(&self, address: u64, old: u64, new: u64) -> bool {
        self.exchange_one(address & !7, old, new)
    }

    /// As [`Memory::exchange`], of a word of 4 bytes.
    pub fn exchange_32(&self, address: u64, old: u32, new: u32) -> bool {
        self.exchange_one(address & !3, old, new)
    }

    /// Tells of code and of dirty pages. Nothing where there is no memory, or not for all of it.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        if let Some((region, at)) = self.place(address) {
            self.all.write_within(region, at, bytes);
        }
    }

    /// Nothing where there is no memory, or not for all of it.
    pub fn read(&self, address: u64, out: &mut [u8]) {
        if let Some((region, at)) = self.place(address)
            && out.len() as u64 <= region.slot.len - at
        {
            self.all.arena().read(region.arena_at(at), out);
        }
    }

    /// All entries of a table; zeros where there is no memory.
    pub fn entries(&self, frame: u64) -> [u64; ENTRIES] {
        let mut bytes = [0; PAGE as usize];
        self.read(frame.wrapping_mul(PAGE), &mut bytes);
        let (words, _) = bytes.as_chunks();
        std::array::from_fn(|index| words.get(index).map_or(0, |word| u64::from_le_bytes(*word)))
    }

    /// What a linear address, which is a multiple of 8, has below this L4 table.
    pub fn word(&self, root: u64, linear: u64) -> Option<u64> {
        let entry = self.load(self.l1_entry(root, linear)?);
        (entry & P != 0).then(|| self.load((entry & ADDRESS) + linear % PAGE))
    }

    /// The L1 entry of a linear address below this L4 table.
    pub fn l1_entry(&self, root: u64, linear: u64) -> Option<u64> {
        let mut table = root & ADDRESS;
        for level in [Level::L4, Level::L3, Level::L2] {
            let entry = self.load(table + (linear >> level.shift() & 511) * 8);
            if entry & P == 0 || entry & PS != 0 {
                return None;
            }
            table = entry & ADDRESS;
        }
        Some(table + (linear >> 12 & 511) * 8)
    }

    /// All of a page becomes zero.
    pub fn clear(&self, frame: u64) {
        self.write(frame.wrapping_mul(PAGE), &[0; PAGE as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::{Change, CodeWatch, Memfd, Slot};
    use std::{
        ops::Range,
        sync::{Mutex, PoisonError},
    };

    #[derive(Default)]
    struct Seen(Mutex<Vec<Range<u64>>>);

    impl CodeWatch for Seen {
        fn invalidate(&self, gpa: Range<u64>) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(gpa);
        }
    }

    #[test]
    fn whoever_has_code_or_a_log_hears_of_every_change() {
        let all = GuestMem::new(1 << 20).unwrap();
        let (mem, len) = (Memfd::new(2 * PAGE).unwrap(), 2 * PAGE);
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
        all.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let seen = Arc::new(Seen::default());
        let watch: Arc<dyn CodeWatch> = seen.clone();
        all.watch_code(&watch);
        let memory = Memory::new(all.clone());
        memory.store(PAGE, 0x1_0000_0002);
        assert!(seen.0.lock().unwrap().is_empty());
        let region = all.layout().regions()[0].clone();
        assert!(region.code().set(1) && !region.dirty().get(1));
        all.set_log_dirty(true);
        type Store = fn(&Memory);
        let changes: [(Store, u64); 6] = [
            (|memory| memory.store(PAGE, 2), 8),
            (|memory| memory.store_32(PAGE, 3), 4),
            (|memory| memory.store_byte(PAGE, 4), 1),
            (|memory| assert!(memory.exchange(PAGE, 4, 5)), 8),
            (|memory| assert!(memory.exchange_32(PAGE, 5, 6)), 4),
            (|memory| memory.write(PAGE, &[7; 3]), 3),
        ];
        for (change, len) in changes {
            change(&memory);
            let there = PAGE..PAGE + len;
            assert_eq!(std::mem::take(&mut *seen.0.lock().unwrap()), [there]);
        }
        assert!(!memory.exchange(PAGE, 1, 2) && seen.0.lock().unwrap().is_empty());
        assert!(region.dirty().get(1) && !region.dirty().get(0));
        assert_eq!((memory.load(PAGE), memory.load_32(PAGE)), (0x07_0707, 0x07_0707));
        assert_eq!(memory.entries(1)[0], 0x07_0707);
        assert_eq!(memory.load(2 * PAGE), 0);
    }
}
