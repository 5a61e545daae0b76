//! The domain's memory by machine frame.

use guest_mem::{GuestMem, Layout, PAGE, Region};
use std::sync::Arc;

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

    /// Nothing where there is no memory.
    pub fn store(&self, address: u64, value: u64) {
        self.write(address & !7, &value.to_le_bytes());
    }

    /// Tells of code and of dirty pages. Nothing where there is no memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.all.write(address, bytes);
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

    /// All of a page becomes zero.
    pub fn clear(&self, frame: u64) {
        self.write(frame.wrapping_mul(PAGE), &[0; PAGE as usize]);
    }
}
