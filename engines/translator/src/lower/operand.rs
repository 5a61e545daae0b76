//! Where operands in memory are: their linear addresses, and the check of the TLB.

use super::{BASE, Done, Lowerer, Miss, Untranslated, Why};
use crate::{
    asm::{Asm, Mem, Patch},
    probe::{self, Place},
    regs::{self, SA, SB, SC},
    state::field,
};
use iced_x86::{Instruction, Register};

impl Lowerer<'_> {
    /// Checks the TLB for the address in [`SA`].
    pub(super) fn probe(&mut self, write: bool, len: usize) {
        self.probe_at(Place::SA, write, len);
    }

    /// Checks the TLB; the operand is [`Place::host`] of the result. [`SA`] may be lost.
    pub(super) fn probe_at(&mut self, place: Place, write: bool, len: usize) -> Place {
        self.probe_aligned(place, write, len, 1, false)
    }

    /// The same, where what is not aligned to 16 or 32 bytes also misses, and the flags may be
    /// used.
    pub(super) fn probe_aligned(
        &mut self,
        place: Place,
        write: bool,
        len: usize,
        alignment: u8,
        flags: bool,
    ) -> Place {
        if let Some(window) = self.window(place) {
            let patch = self.look_by_window(window, place, place, write, len, alignment, flags);
            self.miss(patch, Why::Tlb(Place::SA, write));
            return place;
        }
        let place = match place.disp {
            0 => place,
            _ => {
                self.asm.lea(SA, place.linear(), true);
                self.scratch.lost(SA);
                Place::SA
            }
        };
        self.scratch.lost(SB);
        self.scratch.lost(SC);
        let patch = self.look_up(place.base, write, len, alignment, flags);
        self.miss(patch, Why::Tlb(place, write));
        place
    }

    /// The check itself, of the address in a register; control goes to the result on a miss.
    pub(super) fn look_up(
        &mut self,
        address: u8,
        write: bool,
        len: usize,
        alignment: u8,
        flags: bool,
    ) -> Option<Patch> {
        let (plane, mut patch) = (self.plane, None);
        if flags {
            return Some(probe::by_flags(&mut self.asm, plane, write, address, len, alignment));
        }
        let miss = |asm: &mut Asm| patch = Some(asm.jmp_forward());
        match alignment {
            1 => probe::probe(&mut self.asm, plane, write, address, len, miss),
            _ => probe::aligned(&mut self.asm, plane, write, address, alignment, miss),
        }
        patch
    }

    pub(super) fn miss(&mut self, patch: Option<Patch>, why: Why) {
        let (index, again, flags) = (self.index, self.again, self.flags.known.now);
        self.misses.extend(patch.map(|patch| Miss { index, patch, why, again, flags }));
    }

    /// The linear address of the memory operand: as it is, or in [`SA`]; [`SB`] is lost.
    pub(super) fn place(&mut self, insn: &Instruction) -> Result<Place, Untranslated> {
        self.narrow_operand(insn)?;
        if self.short.is_some() {
            self.address(insn)?;
            return Ok(Place::SA);
        }
        // What wraps at 4 GiB has to be computed.
        let plain = insn.memory_index() == Register::None
            && match self.narrow {
                true => insn.memory_base().is_gpr32() && insn.memory_displacement64() == 0,
                false => insn.memory_base().is_gpr64(),
            }
            && !matches!(insn.memory_segment(), Register::FS | Register::GS);
        if plain
            && let Some(guest) = regs::number(insn.memory_base())
            && let Ok(disp) = i32::try_from(insn.memory_displacement64() as i64)
        {
            let base = self.value(guest, SA);
            // Both others are lost by the check.
            if base != SB && base != SC {
                return Ok(Place { base, disp });
            }
        }
        self.address(insn)?;
        Ok(Place::SA)
    }

    /// The linear address of the memory operand, in [`SA`]; [`SB`] is lost.
    pub(super) fn address(&mut self, insn: &Instruction) -> Done {
        self.narrow_operand(insn)?;
        self.reuse.lost();
        self.offset(insn, SA, true)?;
        self.scratch.lost(SA);
        if self.short.is_some() {
            return self.short_operand(insn);
        }
        if self.narrow {
            return self.narrow_base(insn);
        }
        let base = match insn.memory_segment() {
            Register::FS => field!(fs),
            Register::GS => field!(gs),
            _ => return Ok(()),
        };
        self.asm.load(SB, base);
        self.scratch.lost(SB);
        self.asm.lea(SA, Mem::indexed(SA, SB, 0, 0), true);
        Ok(())
    }

    /// The offset of the memory operand in its segment, in `to`, as far as address size, and
    /// `wide`, let it.
    pub(super) fn offset(&mut self, insn: &Instruction, to: u8, wide: bool) -> Done {
        if let Some(done) = self.short_offset(insn, to) {
            return done;
        }
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        if base == Register::RIP {
            let offset = insn.memory_displacement64().wrapping_sub(BASE) as i64;
            i32::try_from(offset).map_err(|_| Untranslated)?;
            let wide_offset = Mem::at(to, offset as i32);
            self.asm.load(to, field!(page));
            self.asm.lea(to, wide_offset, wide);
            return Ok(());
        }
        let size = match (base, index) {
            (Register::None, Register::None) => return self.absolute(insn, to),
            (Register::None, r) | (r, _) => r.size(),
        };
        if size < 4 {
            return Err(Untranslated);
        }
        let disp = insn.memory_displacement64() as i64;
        let disp = i32::try_from(disp).unwrap_or(disp as u32 as i32);
        let mut mem = Mem { base: None, index: None, disp };
        if base != Register::None {
            let number = regs::number(base).ok_or(Untranslated)?;
            mem.base = Some(self.value(number, SA));
        }
        if index != Register::None {
            let number = regs::number(index).ok_or(Untranslated)?;
            let other = if mem.base == Some(SB) { SA } else { SB };
            mem.index = Some((self.value(number, other), scale));
        }
        self.asm.lea(to, mem, wide && size == 8);
        Ok(())
    }

    pub(super) fn absolute(&mut self, insn: &Instruction, to: u8) -> Done {
        let disp = insn.memory_displacement64() as i64;
        if self.narrow {
            self.asm.mov_imm32(to, disp as u32);
            return Ok(());
        }
        self.asm.mov_imm(to, i32::try_from(disp).map_err(|_| Untranslated)?);
        Ok(())
    }
}
