//! Pushes and pops by the stack's address size.

use crate::{Ctx, Stop};
use vcpu_state::SegReg;
use x86_defs::gpr::RSP;

impl Ctx<'_> {
    /// Pushes eight bytes in 64-bit mode.
    #[inline(always)]
    pub fn push64(&mut self, value: u64) -> Result<(), Stop> {
        let new = self.cpu.gpr[RSP].wrapping_sub(8);
        self.store_flat(SegReg::Ss, new, value)?;
        self.cpu.gpr[RSP] = new;
        Ok(())
    }

    /// Pops eight bytes in 64-bit mode.
    #[inline(always)]
    pub fn pop64(&mut self) -> Result<u64, Stop> {
        let at = self.cpu.gpr[RSP];
        let value = self.load_flat(SegReg::Ss, at)?;
        self.cpu.gpr[RSP] = at.wrapping_add(8);
        Ok(value)
    }

    /// Pushes `size` bytes (2, 4, 8).
    #[inline]
    pub fn push(&mut self, value: u64, size: u8) -> Result<(), Stop> {
        let mask = self.cpu.mode.stack_mask();
        let sp = self.cpu.gpr[RSP];
        let new = sp.wrapping_sub(u64::from(size)) & mask;
        match size {
            2 => self.store(SegReg::Ss, new, value as u16)?,
            4 => self.store(SegReg::Ss, new, value as u32)?,
            _ => self.store(SegReg::Ss, new, value)?,
        }
        self.cpu.gpr[RSP] = sp & !mask | new;
        Ok(())
    }

    /// Pops `size` bytes (2, 4, 8).
    #[inline]
    pub fn pop(&mut self, size: u8) -> Result<u64, Stop> {
        let value = self.peek(0, size)?;
        self.pop_bytes(u64::from(size));
        Ok(value)
    }

    /// What lies `offset` bytes above the top of the stack.
    #[inline]
    pub fn peek(&mut self, offset: u64, size: u8) -> Result<u64, Stop> {
        let at = self.cpu.gpr[RSP].wrapping_add(offset) & self.cpu.mode.stack_mask();
        Ok(match size {
            2 => u64::from(self.load::<u16>(SegReg::Ss, at)?),
            4 => u64::from(self.load::<u32>(SegReg::Ss, at)?),
            _ => self.load::<u64>(SegReg::Ss, at)?,
        })
    }

    /// Moves the stack pointer up.
    #[inline]
    pub fn pop_bytes(&mut self, count: u64) {
        let mask = self.cpu.mode.stack_mask();
        let sp = self.cpu.gpr[RSP];
        self.cpu.gpr[RSP] = sp & !mask | sp.wrapping_add(count) & mask;
    }
}
