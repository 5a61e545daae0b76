//! A page of the domain's memory.

use crate::Error;
use guest_mem::{GuestMem, PAGE, Region};
use std::sync::{
    Arc,
    atomic::{Ordering::SeqCst, fence},
};

/// A page that is shared with the domain, which may write to it at any time.
#[derive(Clone, Debug)]
pub struct Page {
    memory: Arc<GuestMem>,
    /// Where it is: a domain's memory is in the same place from its start to its end.
    region: Arc<Region>,
    at: u64,
    read_only: bool,
}

impl Page {
    /// The page at this guest-physical address, if there is writable memory.
    pub fn new(memory: Arc<GuestMem>, gpa: u64) -> Option<Self> {
        let layout = memory.layout();
        let (region, at) = layout.find(gpa)?;
        let there =
            gpa.is_multiple_of(PAGE) && region.slot.writable && region.slot.len - at >= PAGE;
        let region = region.clone();
        there.then_some(Self { memory, region, at, read_only: false })
    }

    /// The same page, to which a back end writes nothing.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// The guest-physical address, for what moves bytes of several pages at once.
    pub fn gpa(&self) -> u64 {
        self.region.slot.gpa + self.at
    }

    pub fn memory(&self) -> &Arc<GuestMem> {
        &self.memory
    }

    /// Where these bytes are in the region.
    fn place(&self, offset: usize, len: usize) -> Result<u64, Error> {
        let end = offset.checked_add(len).filter(|end| *end <= PAGE as usize);
        end.map(|_| self.at + offset as u64).ok_or(Error::Range(len, offset))
    }

    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        let at = self.place(offset, out.len())?;
        self.memory.arena().read(self.region.arena_at(at), out);
        Ok(())
    }

    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), Error> {
        let at = self.place(offset, data.len())?;
        if self.read_only {
            return Err(Error::Range(data.len(), offset));
        }
        self.memory.write_within(&self.region, at, data);
        Ok(())
    }

    /// An index of a ring, which is read whole; what is read after it is not older. Zero outside of
    /// the page, or where it would not be aligned.
    pub fn index(&self, offset: usize) -> u32 {
        let place = self.place(offset, 4).ok().filter(|_| offset.is_multiple_of(4));
        let load = |at| self.memory.arena().load::<u32>(self.region.arena_at(at));
        let value = place.map_or(0, load);
        fence(SeqCst);
        value
    }

    /// Writes an index of a ring whole, after all that was written before, and before what is read
    /// next. Nothing outside of the page, where it would not be aligned, or to a page for reading.
    pub fn set_index(&self, offset: usize, value: u32) {
        let writable = offset.is_multiple_of(4) && !self.read_only;
        let Some(at) = self.place(offset, 4).ok().filter(|_| writable) else { return };
        fence(SeqCst);
        self.memory.arena().store::<u32>(self.region.arena_at(at), value);
        self.memory.written(&self.region, at, 4);
        fence(SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::{Change, Memfd, Slot};

    fn memory() -> Arc<GuestMem> {
        let memory = GuestMem::new(1 << 20).unwrap();
        let (mem, len) = (Memfd::new(3 * PAGE).unwrap(), 3 * PAGE);
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        memory
    }

    #[test]
    fn a_page_ends_where_it_ends() {
        let page = Page::new(memory(), PAGE).unwrap();
        page.write(4092, &[1, 2, 3, 4]).unwrap();
        assert_eq!(page.index(4092), 0x0403_0201);
        assert_eq!(page.write(4093, &[0; 4]), Err(Error::Range(4, 4093)));
        assert_eq!(page.read(usize::MAX, &mut [0; 4]), Err(Error::Range(4, usize::MAX)));
        page.set_index(4096, 7);
        page.set_index(4094, 7);
        let mut next = [9; 4];
        page.memory().read(2 * PAGE, &mut next).unwrap();
        assert_eq!((next, page.index(4092)), ([0; 4], 0x0403_0201));
        assert!(Page::new(memory(), 3 * PAGE).is_none() && Page::new(memory(), 8).is_none());
    }

    #[test]
    fn an_index_that_is_written_is_dirty() {
        let memory = memory();
        memory.set_log_dirty(true);
        Page::new(memory.clone(), PAGE).unwrap().set_index(8, 7);
        let layout = memory.layout();
        let (region, _) = layout.find(PAGE).unwrap();
        assert!(region.dirty().get(1) && !region.dirty().get(2));
    }
}
