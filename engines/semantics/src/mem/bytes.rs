//! Accesses of more bytes than one integer: vectors, XSAVE areas, descriptors.

use super::slow::Pieces;
use crate::{Ctx, Stop};
use guest_mem::{Arena, ArenaOffset, PAGE};
use soft_mmu::{Access, Place};
use vcpu_state::SegReg;
use x86_defs::exception::GP;

/// Longest access by [`Ctx::load_bytes`] and [`Ctx::store_bytes`]: two pages at most.
pub const LONGEST: usize = PAGE as usize;

/// Copies out of RAM, eight bytes an instruction where that fits.
#[inline]
pub(super) fn copy_out(arena: &Arena, at: ArenaOffset, out: &mut [u8]) {
    let mut from = at.0;
    let (words, rest) = out.as_chunks_mut::<8>();
    for word in words {
        *word = arena.load::<u64>(ArenaOffset(from)).to_le_bytes();
        from = from.wrapping_add(8);
    }
    for byte in rest {
        *byte = arena.load(ArenaOffset(from));
        from = from.wrapping_add(1);
    }
}

#[inline]
pub(super) fn copy_in(arena: &Arena, at: ArenaOffset, data: &[u8]) {
    let mut to = at.0;
    let (words, rest) = data.as_chunks::<8>();
    for word in words {
        arena.store(ArenaOffset(to), u64::from_le_bytes(*word));
        to = to.wrapping_add(8);
    }
    for byte in rest {
        arena.store(ArenaOffset(to), *byte);
        to = to.wrapping_add(1);
    }
}

impl Ctx<'_> {
    pub(super) fn read_pieces(&mut self, pieces: &Pieces, out: &mut [u8]) {
        let (first, second) = out.split_at_mut(pieces.split.min(out.len()));
        self.read_place(&pieces.first, first);
        if let Some(place) = &pieces.second {
            self.read_place(place, second);
        }
    }

    fn read_place(&mut self, place: &Place, out: &mut [u8]) {
        match place.ram {
            Some(at) => copy_out(&self.cpu.mmu.arena, at, out),
            None => {
                for (n, chunk) in out.chunks_mut(8).enumerate() {
                    let gpa = place.gpa + 8 * n as u64;
                    self.call_flow(|host| host.mmio_read(gpa, chunk));
                }
            }
        }
    }

    pub(super) fn write_pieces(&mut self, pieces: &Pieces, data: &[u8]) {
        let (first, second) = data.split_at(pieces.split.min(data.len()));
        self.write_place(&pieces.first, first);
        if let Some(place) = &pieces.second {
            self.write_place(place, second);
        }
    }

    fn write_place(&mut self, place: &Place, data: &[u8]) {
        match place.ram {
            Some(at) => {
                copy_in(&self.cpu.mmu.arena, at, data);
                if place.code {
                    self.cpu.code_written(place.gpa..place.gpa + data.len() as u64);
                }
            }
            None => {
                for (n, chunk) in data.chunks(8).enumerate() {
                    let gpa = place.gpa + 8 * n as u64;
                    self.call_flow(|host| host.mmio_write(gpa, chunk));
                }
            }
        }
    }

    /// Up to 4096 bytes, all or nothing.
    #[inline]
    pub fn load_bytes(&mut self, seg: SegReg, ea: u64, out: &mut [u8]) -> Result<(), Stop> {
        if out.is_empty() {
            return Ok(());
        }
        let linear = self.linear(seg, ea, out.len() as u64, Access::Read)?;
        if let Some(at) = self.cpu.mmu.tlb.read(linear, out.len()) {
            copy_out(&self.cpu.mmu.arena, at, out);
            return Ok(());
        }
        self.load_bytes_slow(linear, seg, natural_alignment(out.len()), out)
    }

    /// [`Self::load_bytes`] of an instruction that checks no alignment.
    pub fn load_unaligned(&mut self, seg: SegReg, ea: u64, out: &mut [u8]) -> Result<(), Stop> {
        let linear = self.linear(seg, ea, out.len().max(1) as u64, Access::Read)?;
        self.load_bytes_slow(linear, seg, 1, out)
    }

    /// [`Self::store_bytes`] of an instruction that checks no alignment.
    pub fn store_unaligned(&mut self, seg: SegReg, ea: u64, data: &[u8]) -> Result<(), Stop> {
        let linear = self.linear(seg, ea, data.len().max(1) as u64, Access::Write)?;
        self.store_bytes_slow(linear, seg, 1, data)
    }

    #[inline]
    pub fn store_bytes(&mut self, seg: SegReg, ea: u64, data: &[u8]) -> Result<(), Stop> {
        if data.is_empty() {
            return Ok(());
        }
        let linear = self.linear(seg, ea, data.len() as u64, Access::Write)?;
        if let Some(at) = self.cpu.mmu.tlb.write(linear, data.len()) {
            copy_in(&self.cpu.mmu.arena, at, data);
            return Ok(());
        }
        self.store_bytes_slow(linear, seg, natural_alignment(data.len()), data)
    }

    #[cold]
    fn load_bytes_slow(
        &mut self,
        linear: u64,
        seg: SegReg,
        aligned: usize,
        out: &mut [u8],
    ) -> Result<(), Stop> {
        let pieces = self.cpu.probe_explicit(seg, linear, out.len(), Access::Read, aligned)?;
        self.read_pieces(&pieces, out);
        Ok(())
    }

    #[cold]
    fn store_bytes_slow(
        &mut self,
        linear: u64,
        seg: SegReg,
        aligned: usize,
        data: &[u8],
    ) -> Result<(), Stop> {
        let pieces = self.cpu.probe_explicit(seg, linear, data.len(), Access::Write, aligned)?;
        self.write_pieces(&pieces, data);
        Ok(())
    }

    /// Does everything of an access that may fault, and nothing else: for instructions with
    /// several operands, before their first side effect. `len` is 1 to 4096.
    pub fn probe(&mut self, seg: SegReg, ea: u64, len: usize, write: bool) -> Result<(), Stop> {
        let access = if write { Access::Write } else { Access::Read };
        let len = len.clamp(1, LONGEST);
        let linear = self.linear(seg, ea, len as u64, access)?;
        let hit = match write {
            true => self.cpu.mmu.tlb.write(linear, len),
            false => self.cpu.mmu.tlb.read(linear, len),
        };
        if hit.is_none() {
            let aligned = natural_alignment(len);
            self.cpu.probe_explicit(seg, linear, len, access, aligned)?;
        }
        Ok(())
    }

    /// Compare-and-exchange of 16 bytes, #GP(0) if they are not aligned; returns what was
    /// there.
    pub fn cmpxchg16(&mut self, seg: SegReg, ea: u64, old: u128, new: u128) -> Result<u128, Stop> {
        let linear = self.linear(seg, ea, 16, Access::Write)?;
        if linear % 16 != 0 {
            return Err(self.cpu.fault_code(GP, 0));
        }
        if let Some(at) = self.cpu.mmu.tlb.write(linear, 16) {
            return Ok(self.cpu.mmu.arena.compare_exchange_16(at, old, new));
        }
        let pieces = self.cpu.probe_explicit(seg, linear, 16, Access::Write, 16)?;
        let Place { gpa, ram, code } = pieces.first;
        if let Some(at) = ram {
            let was = self.cpu.mmu.arena.compare_exchange_16(at, old, new);
            if code {
                self.cpu.code_written(gpa..gpa + 16);
            }
            return Ok(was);
        }
        let mut bytes = [0; 16];
        self.read_pieces(&pieces, &mut bytes);
        let was = u128::from_le_bytes(bytes);
        // The processor always writes (SDM volume 2, CMPXCHG8B/CMPXCHG16B).
        let written = if was == old { new } else { was };
        self.write_pieces(&pieces, &written.to_le_bytes());
        Ok(was)
    }
}

/// Alignment checks look at operands of up to 8 bytes by their size, at those of 10 by 8 (SDM
/// volume 3, table 6-7); larger ones have rules of their own, or none.
fn natural_alignment(len: usize) -> usize {
    match len {
        2 | 4 | 8 => len,
        10 => 8,
        _ => 1,
    }
}
