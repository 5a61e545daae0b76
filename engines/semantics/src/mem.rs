//! Guest memory by virtual address: segmentation, the TLB, RAM and MMIO.
//!
//! First form, without paging: linear addresses are physical.

use crate::{Cpu, Ctx, Stop};
use guest_mem::{Arena, ArenaOffset, GuestMem, Layout, Plain};
use std::sync::Arc;
use vcpu_state::SegReg;

/// What the vCPU knows of memory.
#[derive(Debug)]
pub struct Mmu {
    arena: Arc<Arena>,
    layout: Arc<Layout>,
    /// Differs whenever a linear address may translate otherwise than before.
    pub tag: u64,
}

/// Where instructions are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPage {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Its RAM; `None` where instructions come from a device.
    pub ram: Option<ArenaOffset>,
}

impl Mmu {
    pub fn new(mem: &Arc<GuestMem>) -> Self {
        Self { arena: mem.arena().clone(), layout: mem.layout(), tag: 0 }
    }

    /// The page, which holds code from now on, is not to be written without asking.
    pub fn revoke_write(&mut self, _page: ArenaOffset) {}

    /// No page is to be written without asking.
    pub fn revoke_writes(&mut self) {}
}

impl Cpu {
    /// CPL, code size or protection mode have changed: called by `update_mode`.
    pub fn mode_changed(&mut self) {}

    /// All of the state was replaced.
    pub fn state_replaced(&mut self) {
        self.mmu.tag = self.mmu.tag.wrapping_add(1);
    }

    /// Takes the layout anew and forgets all translations.
    pub fn layout_changed(&mut self) {
        self.mmu.layout = self.mem.layout();
        self.mmu.tag = self.mmu.tag.wrapping_add(1);
    }
}

impl Ctx<'_> {
    /// Translates the page of a linear address for fetching. Raises the page fault.
    pub fn fetch_page(&mut self, linear: u64) -> Result<FetchPage, Stop> {
        let gpa = linear & !0xfff;
        let ram = self.cpu.mmu.layout.find(gpa).map(|(r, at)| r.arena_at(at));
        Ok(FetchPage { gpa, ram })
    }

    fn at(&mut self, linear: u64) -> Result<ArenaOffset, Stop> {
        let found = self.cpu.mmu.layout.find(linear).map(|(r, at)| r.arena_at(at));
        found.ok_or_else(|| self.cpu.page_fault(linear, 0))
    }

    fn linear(&self, seg: SegReg, ea: u64) -> u64 {
        if self.cpu.mode.is64() && (seg as u8) < SegReg::Fs as u8 {
            return ea;
        }
        self.cpu.segment(seg).base.wrapping_add(ea)
    }

    /// Loads in 64-bit mode from a segment whose base is not used; `seg` tells #SS from #GP.
    #[inline(always)]
    pub fn load_flat<T: Plain>(&mut self, _seg: SegReg, ea: u64) -> Result<T, Stop> {
        let at = self.at(ea)?;
        Ok(self.cpu.mmu.arena.load(at))
    }

    #[inline(always)]
    pub fn store_flat<T: Plain>(&mut self, _seg: SegReg, ea: u64, v: T) -> Result<(), Stop> {
        let at = self.at(ea)?;
        self.cpu.mmu.arena.store(at, v);
        Ok(())
    }

    /// Stores `f` of what is there; returns what was there. `locked`: atomically.
    #[inline(always)]
    pub fn rmw_flat<T: Plain>(
        &mut self,
        _seg: SegReg,
        ea: u64,
        locked: bool,
        mut f: impl FnMut(T) -> T,
    ) -> Result<T, Stop> {
        let at = self.at(ea)?;
        let arena = &self.cpu.mmu.arena;
        loop {
            let old = arena.load(at);
            let new = f(old);
            if !locked {
                arena.store(at, new);
                return Ok(old);
            }
            if arena.compare_exchange(at, old, new) == old {
                return Ok(old);
            }
        }
    }

    pub fn load<T: Plain>(&mut self, seg: SegReg, ea: u64) -> Result<T, Stop> {
        let linear = self.linear(seg, ea);
        self.load_flat(seg, linear)
    }

    pub fn store<T: Plain>(&mut self, seg: SegReg, ea: u64, v: T) -> Result<(), Stop> {
        let linear = self.linear(seg, ea);
        self.store_flat(seg, linear, v)
    }

    pub fn rmw<T: Plain>(
        &mut self,
        seg: SegReg,
        ea: u64,
        locked: bool,
        f: impl FnMut(T) -> T,
    ) -> Result<T, Stop> {
        let linear = self.linear(seg, ea);
        self.rmw_flat(seg, linear, locked, f)
    }

    /// Up to 64 bytes, all or nothing.
    pub fn load_bytes(&mut self, seg: SegReg, ea: u64, out: &mut [u8]) -> Result<(), Stop> {
        for (i, b) in out.iter_mut().enumerate() {
            *b = self.load(seg, ea.wrapping_add(i as u64))?;
        }
        Ok(())
    }

    pub fn store_bytes(&mut self, seg: SegReg, ea: u64, data: &[u8]) -> Result<(), Stop> {
        for (i, b) in data.iter().enumerate() {
            self.store(seg, ea.wrapping_add(i as u64), *b)?;
        }
        Ok(())
    }

    /// Compare-and-exchange of 16 aligned bytes; returns what was there.
    pub fn cmpxchg16(&mut self, seg: SegReg, ea: u64, old: u128, new: u128) -> Result<u128, Stop> {
        let linear = self.linear(seg, ea);
        let at = self.at(linear)?;
        Ok(self.cpu.mmu.arena.compare_exchange_16(at, old, new))
    }

    /// The RAM of `ea..ea+len`, if it lies in one page, segment checks pass, and `write` (or
    /// reading) needs nothing but the access itself: no device, no code, nothing to log.
    /// Never faults: on `None`, take the slow path.
    pub fn host_span(
        &mut self,
        seg: SegReg,
        ea: u64,
        len: u64,
        write: bool,
    ) -> Option<ArenaOffset> {
        let _ = write;
        let linear = self.linear(seg, ea);
        if linear & 0xfff.min(len) != 0 && (linear & 0xfff) + len > 0x1000 {
            return None;
        }
        self.cpu.mmu.layout.find(linear).map(|(r, at)| r.arena_at(at))
    }

    /// Pushes `size` bytes (2, 4, 8).
    pub fn push(&mut self, value: u64, size: u8) -> Result<(), Stop> {
        let mask = self.cpu.mode.stack_mask();
        let sp = self.cpu.gpr[4];
        let new = sp.wrapping_sub(u64::from(size)) & mask;
        match size {
            2 => self.store(SegReg::Ss, new, value as u16)?,
            4 => self.store(SegReg::Ss, new, value as u32)?,
            _ => self.store(SegReg::Ss, new, value)?,
        }
        self.cpu.gpr[4] = sp & !mask | new;
        Ok(())
    }

    /// Pops `size` bytes (2, 4, 8).
    pub fn pop(&mut self, size: u8) -> Result<u64, Stop> {
        let mask = self.cpu.mode.stack_mask();
        let sp = self.cpu.gpr[4];
        let at = sp & mask;
        let value = match size {
            2 => u64::from(self.load::<u16>(SegReg::Ss, at)?),
            4 => u64::from(self.load::<u32>(SegReg::Ss, at)?),
            _ => self.load::<u64>(SegReg::Ss, at)?,
        };
        self.cpu.gpr[4] = sp & !mask | at.wrapping_add(u64::from(size)) & mask;
        Ok(value)
    }
}
