//! The processor's own accesses: descriptor tables, TSS, interrupt stacks. They have
//! supervisor rights, and SMAP applies to them whatever RFLAGS.AC says (SDM volume 3, 4.6).

use super::slow::Pieces;
use crate::{Ctx, Stop};
use guest_mem::Plain;
use soft_mmu::{Access, Privilege};
use vcpu_state::SegReg;

impl Ctx<'_> {
    /// Loads from a linear address with supervisor rights.
    pub fn load_linear<T: Plain>(&mut self, linear: u64) -> Result<T, Stop> {
        let len = size_of::<T>();
        if let Some(at) = self.cpu.mmu.tlb.supervisor_read(linear, len) {
            return Ok(self.cpu.mmu.arena.load(at));
        }
        let mut bytes = [0; 8];
        self.load_linear_bytes(linear, &mut bytes[..len])?;
        Ok(T::truncate(u64::from_le_bytes(bytes)))
    }

    pub fn store_linear<T: Plain>(&mut self, linear: u64, value: T) -> Result<(), Stop> {
        let len = size_of::<T>();
        if let Some(at) = self.cpu.mmu.tlb.supervisor_write(linear, len) {
            self.cpu.mmu.arena.store(at, value);
            return Ok(());
        }
        self.store_linear_bytes(linear, &value.into().to_le_bytes()[..len])
    }

    /// Up to 4096 bytes, all or nothing.
    pub fn load_linear_bytes(&mut self, linear: u64, out: &mut [u8]) -> Result<(), Stop> {
        if out.is_empty() {
            return Ok(());
        }
        let pieces = self.cpu.probe_linear(
            SegReg::Ds,
            linear,
            out.len(),
            Access::Read,
            Privilege::Supervisor,
        )?;
        self.read_pieces(&pieces, out);
        Ok(())
    }

    /// Like [`Self::load_linear_bytes`] with a user's rights.
    pub(crate) fn load_user_bytes(&mut self, linear: u64, out: &mut [u8]) -> Result<(), Stop> {
        let (read, user) = (Access::Read, Privilege::User);
        let pieces = self.cpu.probe_linear(SegReg::Ds, linear, out.len().max(1), read, user)?;
        self.read_pieces(&pieces, out);
        Ok(())
    }

    /// Up to 4096 bytes, all or nothing.
    pub fn store_linear_bytes(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        if data.is_empty() {
            return Ok(());
        }
        let pieces = self.cpu.probe_linear(
            SegReg::Ds,
            linear,
            data.len(),
            Access::Write,
            Privilege::Supervisor,
        )?;
        self.write_pieces(&pieces, data);
        Ok(())
    }

    /// Writes a new stack's words, which begin at `linear`, with the rights of level `cpl`.
    pub(crate) fn store_frame(&mut self, linear: u64, data: &[u8], cpl: u8) -> Result<(), Stop> {
        let pieces = self.probe_frame(linear, data.len(), cpl)?;
        self.write_pieces(&pieces, data);
        Ok(())
    }

    pub(crate) fn probe_frame(&mut self, linear: u64, len: usize, cpl: u8) -> Result<Pieces, Stop> {
        let privilege = if cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        self.cpu.probe_linear(SegReg::Ss, linear, len.clamp(1, 4096), Access::Write, privilege)
    }
}
