//! The domain's memory by machine frame.

use crate::tables::Level;
use guest_mem::{GuestMem, Layout, PAGE, Region};
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
        let (region, at) = self.layout.find(address & !7)?;
        Some((region, at))
    }

    pub fn is_there(&self, address: u64) -> bool {
        self.place(address).is_some()
    }

    /// An entry; 0 where there is no memory.
    pub fn load(&self, address: u64) -> u64 {
        self.place(address)
            .map_or(0, |(region, at)| self.all.arena().load::<u64>(region.arena_at(at)))
    }

    /// A word of 4 bytes at a multiple of 4; 0 where there is no memory.
    pub fn load_32(&self, address: u64) -> u32 {
        self.layout
            .find(address & !3)
            .map_or(0, |(region, at)| self.all.arena().load::<u32>(region.arena_at(at)))
    }

    /// Nothing where there is no memory.
    pub fn store_32(&self, address: u64, value: u32) {
        self.write(address & !3, &value.to_le_bytes());
    }

    /// As [`Memory::exchange`], of a word of 4 bytes.
    pub fn exchange_32(&self, address: u64, old: u32, new: u32) -> bool {
        let Some((region, at)) = self.layout.find(address & !3) else { return false };
        let there = region.arena_at(at);
        let done = self.all.arena().compare_exchange::<u32>(there, old, new) == old;
        if done {
            region.mark_dirty(at, 4);
        }
        done
    }

    /// Nothing where there is no memory.
    pub fn store(&self, address: u64, value: u64) {
        self.write(address & !7, &value.to_le_bytes());
    }

    /// Tells of code and of dirty pages. Nothing where there is no memory, or not for all of it.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        if let Some((region, at)) = self.layout.find(address) {
            self.all.write_within(region, at, bytes);
        }
    }

    /// Nothing where there is no memory, or not for all of it.
    pub fn read(&self, address: u64, out: &mut [u8]) {
        if let Some((region, at)) = self.layout.find(address)
            && out.len() as u64 <= region.slot.len - at
        {
            self.all.arena().read(region.arena_at(at), out);
        }
    }

    /// All entries of a table; zeros where there is no memory.
    pub fn entries(&self, frame: u64) -> [u64; ENTRIES] {
        let mut bytes = [0; PAGE as usize];
        if let Some((region, at)) = self.layout.find(frame.wrapping_mul(PAGE)) {
            self.all.arena().read(region.arena_at(at), &mut bytes);
        }
        let (words, _) = bytes.as_chunks();
        std::array::from_fn(|index| words.get(index).map_or(0, |word| u64::from_le_bytes(*word)))
    }

    /// True if the entry was `old`, and is `new` now.
    pub fn exchange(&self, address: u64, old: u64, new: u64) -> bool {
        let Some((region, at)) = self.place(address) else { return false };
        let there = region.arena_at(at);
        let done = self.all.arena().compare_exchange::<u64>(there, old, new) == old;
        if done {
            region.mark_dirty(at, 8);
        }
        done
    }

    /// One byte of a word that the domain may change at any time.
    pub fn store_byte(&self, address: u64, value: u8) {
        match self.layout.find(address) {
            Some((region, at)) if region.slot.writable && !region.has_code(at, 1) => {
                self.all.arena().store::<u8>(region.arena_at(at), value);
                region.mark_dirty(at, 1);
            }
            _ => self.write(address, &[value]),
        }
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
