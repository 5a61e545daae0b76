//! A command's data: the physical regions that its table lists (AHCI, 4.2.3.3).

use guest_mem::GuestMem;

/// An entry of the table.
const ENTRY: u64 = 16;
const LENGTH_BITS: u32 = 0x3f_ffff;

/// A region cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

/// Where in the regions the command is.
pub(crate) struct Transfer<'a> {
    memory: &'a GuestMem,
    /// The next entry, and how many are left.
    table: u64,
    entries: u32,
    /// What is left of the current region.
    at: u64,
    left: u64,
    /// Bytes moved.
    pub(crate) done: u32,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(memory: &'a GuestMem, table: u64, entries: u16) -> Self {
        Self { memory, table, entries: entries.into(), at: 0, left: 0, done: 0 }
    }

    /// The next piece of at most `len` bytes: its address and length; none at the end.
    fn next(&mut self, len: usize) -> Result<Option<(u64, usize)>, Fault> {
        if self.left == 0 {
            if self.entries == 0 {
                return Ok(None);
            }
            let mut entry = [0; ENTRY as usize];
            self.memory.read(self.table, &mut entry).map_err(|_| Fault)?;
            let (address, length) = entry.split_at(8);
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
            self.at = number(address) & !1;
            let length = length.get(4..).unwrap_or_default();
            self.left = (number(length) & u64::from(LENGTH_BITS) | 1) + 1;
            self.table = self.table.checked_add(ENTRY).ok_or(Fault)?;
            self.entries -= 1;
        }
        let here = self.left.min(len as u64);
        let piece = (self.at, here as usize);
        self.at = self.at.checked_add(here).ok_or(Fault)?;
        self.left -= here;
        Ok(Some(piece))
    }

    /// Data for the host's memory; how much of it there is room for.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<usize, Fault> {
        let mut written = 0;
        while !data.is_empty() {
            let Some((at, len)) = self.next(data.len())? else { break };
            let (now, later) = data.split_at(len);
            self.memory.write(at, now).map_err(|_| Fault)?;
            data = later;
            written += len;
        }
        self.done = self.done.saturating_add(written as u32);
        Ok(written)
    }

    /// Data from the host's memory: all of it, or it is a fault.
    pub(crate) fn read(&mut self, mut data: &mut [u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let (at, len) = self.next(data.len())?.ok_or(Fault)?;
            let (now, later) = data.split_at_mut(len);
            self.memory.read(at, now).map_err(|_| Fault)?;
            data = later;
            self.done = self.done.saturating_add(len as u32);
        }
        Ok(())
    }
}
