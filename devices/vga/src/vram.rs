//! The memory of the linear framebuffer.

use guest_mem::{GuestMem, Memfd};
use std::{io, sync::Arc};

/// Bytes of it.
pub const SIZE: u32 = 16 << 20;
const PAGE: usize = 4096;

/// The framebuffer's memory, which the guest sees as RAM while its BAR is decoded.
#[derive(Debug)]
pub(crate) struct Vram {
    pub(crate) mem: Arc<Memfd>,
    space: Arc<GuestMem>,
}

impl Vram {
    pub(crate) fn new(space: Arc<GuestMem>) -> io::Result<Self> {
        Ok(Self { mem: Memfd::new(SIZE.into())?, space })
    }

    /// Copies out; what is not there stays as it was.
    pub(crate) fn read(&self, at: u64, out: &mut [u8]) {
        // It is a file of the host's memory, whose reads fail where it ends only.
        let _ = self.mem.read_at(at, out);
    }

    /// Copies in as far as it fits. Whoever executes from there, or logs it, hears of it.
    pub(crate) fn write(&self, at: u64, data: &[u8]) {
        let room = usize::try_from(u64::from(SIZE).saturating_sub(at)).unwrap_or(0);
        let data = data.get(..room.min(data.len())).unwrap_or_default();
        let layout = self.space.layout();
        let seen = layout.regions().iter().find(|region| Arc::ptr_eq(&region.slot.mem, &self.mem));
        let through = seen.map(|region| self.space.write(region.slot.gpa.saturating_add(at), data));
        if !matches!(through, Some(Ok(()))) {
            let _ = self.mem.write_at(at, data);
        }
    }

    /// Zeroes the bytes from 0 to `end`; pages that are zero stay untouched.
    pub(crate) fn clear(&self, end: u32) {
        for (at, page) in self.used_before(end) {
            let len = page.len().min((end - at) as usize);
            self.write(at.into(), &vec![0; len]);
        }
    }

    /// Pages that are not all zero, each with its offset.
    pub(crate) fn used(&self) -> impl Iterator<Item = (u32, Vec<u8>)> + '_ {
        self.used_before(SIZE)
    }

    /// Those that begin before `end`.
    fn used_before(&self, end: u32) -> impl Iterator<Item = (u32, Vec<u8>)> + '_ {
        (0..end.min(SIZE)).step_by(PAGE).filter_map(|at| {
            let mut page = vec![0; PAGE];
            self.read(at.into(), &mut page);
            page.iter().any(|byte| *byte != 0).then_some((at, page))
        })
    }

    /// Takes over saved pages; all others become zero. False, and nothing changes, if they do not
    /// fit.
    pub(crate) fn restore(&self, pages: &[(u32, Vec<u8>)]) -> bool {
        let fits =
            |(at, page): &(u32, Vec<u8>)| at % PAGE as u32 == 0 && *at < SIZE && page.len() == PAGE;
        let sorted = pages.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
        if !sorted || !pages.iter().all(fits) {
            return false;
        }
        self.clear(SIZE);
        pages.iter().for_each(|(at, page)| self.write((*at).into(), page));
        true
    }
}
