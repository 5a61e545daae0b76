//! 16-bit code.
//!
//! Segments have bases, and offsets end at 64 KiB. An offset is computed by a 32-bit LEA, of
//! which the low half is taken; a word of the state tells whether the operand is in its segment
//! ([`crate::segments`]), the base is added, and what follows is the check of the TLB as
//! elsewhere. RIP, what is pushed of it, and tables of jumps are of offsets in the code segment;
//! tables belong to a base. A block is made for one distance between the two: so what wraps at
//! 64 KiB is known when it is made.
//!
//! Operands and addresses of 32 bits, which compilers for real mode use most of the time, are
//! as in 32-bit code, but for the segments.

use super::{BASE, Done, Lowerer, Untranslated, copy, narrow};
use crate::{
    asm::Mem,
    probe::Place,
    regs::{self, GUEST_RCX, SA, SB, SC},
    segments::{COUNT, Words, word},
    state::field,
};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

/// What 16-bit code is made for.
#[derive(Clone, Copy, Debug)]
pub struct Short {
    /// Selectors are paragraphs.
    pub real: bool,
}

/// The instructions that begin at an offset in their page, addressed as [`BASE`] says. `page` is
/// the offset in the code segment of the page's beginning, which may be below it.
pub fn decode(bytes: &[u8], start: u16, page: i64, count: usize) -> Vec<Instruction> {
    let ip = page.wrapping_add(start.into()) as u64;
    let mut decoder = Decoder::with_ip(16, bytes, ip, DecoderOptions::NONE);
    let mut at = BASE.wrapping_add(start.into());
    let mut next = || {
        let mut insn = decoder.decode();
        insn.set_ip(at);
        at = at.wrapping_add(insn.len() as u64);
        near(&mut insn, page);
        widened(insn)
    };
    (0..count).map(|_| next()).collect()
}

/// A relative branch goes to a place relative to the page.
fn near(insn: &mut Instruction, page: i64) {
    let target = match insn.op0_kind() {
        OpKind::NearBranch16 => u32::from(insn.near_branch16()),
        // Beyond 64 KiB its handler knows more.
        OpKind::NearBranch32 if insn.near_branch32() < 1 << 16 => insn.near_branch32(),
        _ => return,
    };
    insn.set_op0_kind(OpKind::NearBranch64);
    insn.set_near_branch64(BASE.wrapping_add_signed(i64::from(target).wrapping_sub(page)));
}

/// The same instruction as in 64-bit code, as far as there is one.
fn widened(mut insn: Instruction) -> Instruction {
    let code = match insn.code() {
        Code::Jmp_rel8_16 | Code::Jmp_rel8_32 => Code::Jmp_rel8_64,
        Code::Jmp_rel16 | Code::Jmp_rel32_32 => Code::Jmp_rel32_64,
        code => narrow::with_modrm(code),
    };
    insn.set_code(code);
    insn
}

/// The number of a segment register.
pub(super) fn segment(register: Register) -> Result<u8, Untranslated> {
    Ok(match register {
        Register::ES => ES,
        Register::CS => 1,
        Register::SS => SS,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => GS,
        _ => return Err(Untranslated),
    })
}

pub(super) const ES: u8 = 0;
pub(super) const SS: u8 = 2;
const GS: u8 = 5;
const _: () = assert!(GS as usize == COUNT - 1);

/// General registers beyond the eighth, and the prefixes that encode them, are not there in real
/// mode, where they raise #UD (SDM volume 2, 2.3.1).
fn is_vex(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Andn | Bextr | Blsi | Blsr | Blsmsk | Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx
    )
}

impl Lowerer<'_> {
    /// 16-bit code, or not.
    pub fn short(mut self, short: Option<Short>) -> Self {
        self.short = short;
        self
    }

    /// Instructions that are otherwise than in wider code. `None` for those that are not.
    pub(super) fn short_own(&mut self, insn: &Instruction) -> Option<Done> {
        use Mnemonic::*;
        let short = self.short?;
        let mnemonic = insn.mnemonic();
        Some(match mnemonic {
            Lea => self.short_lea(insn),
            Push | Pop | Leave | Call | Ret | Pushf => self.short_stack(insn, short),
            Jmp => self.short_jmp(insn),
            Loop | Loope | Loopne | Jcxz | Jecxz => self.short_loop(insn),
            Mov if is_segment(insn, 0) => self.mov_to_segment(insn, short),
            Mov if is_segment(insn, 1) => self.short_from_segment(insn),
            Lds | Les | Lfs | Lgs => self.load_far(insn, short),
            _ if insn.is_string_instruction() => self.short_string(insn),
            Nop | Cli | Sti | Cld | Cmpxchg8b | Div | Idiv => return None,
            Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw => return None,
            _ if is_vex(mnemonic) => Err(Untranslated),
            _ if insn.is_jcc_short_or_near() || copy::copied(mnemonic) => return None,
            _ => Err(Untranslated),
        })
    }

    /// The offset of an operand in its segment, in `to`; `None` if its address has 32 bits.
    pub(super) fn short_offset(&mut self, insn: &Instruction, to: u8) -> Option<Done> {
        self.short?;
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let disp = insn.memory_displacement64() as i16;
        match (base, index) {
            (Register::None, Register::None) if insn.memory_displ_size() == 2 => {
                self.asm.mov_imm32(to, u32::from(disp as u16));
                return Some(Ok(()));
            }
            (Register::None, Register::None) => return None,
            (Register::None, r) | (r, _) if r.size() != 2 => return None,
            _ => {}
        }
        let home = |register: Register| match register {
            Register::None => Ok(None),
            _ => regs::number(register).and_then(regs::home).map(Some).ok_or(Untranslated),
        };
        let (Ok(base), Ok(index)) = (home(base), home(index)) else {
            return Some(Err(Untranslated));
        };
        let (Some(first), second) = (base.or(index), index.filter(|_| base.is_some())) else {
            return Some(Err(Untranslated));
        };
        let from = if disp == 0 && second.is_none() {
            first
        } else {
            let index = second.map(|index| (index, 0));
            self.asm.lea(to, Mem { base: Some(first), index, disp: disp.into() }, false);
            to
        };
        self.asm.movzx16(to, from);
        Some(Ok(()))
    }

    /// The linear address of the memory operand, whose offset is in [`SA`], in there.
    pub(super) fn short_operand(&mut self, insn: &Instruction) -> Done {
        let len = insn.memory_size().size();
        if !(1..=64).contains(&len) {
            return Err(Untranslated);
        }
        let n = (0..insn.op_count()).find(|n| insn.op_kind(*n) == OpKind::Memory);
        let accesses = self.op_accesses(insn);
        let access = n.and_then(|n| accesses.get(n as usize)).ok_or(Untranslated)?;
        let number = segment(insn.memory_segment())?;
        self.in_segment(number, copy::writes(*access), len);
        Ok(())
    }

    /// The linear address of `len` bytes at the offset in [`SA`], there. What the segment does
    /// not allow is left to the handler.
    pub(super) fn in_segment(&mut self, number: u8, write: bool, len: usize) {
        for scratch in [SA, SB, SC] {
            self.scratch.lost(scratch);
        }
        let rights = if write { offset_of!(Words, write) } else { offset_of!(Words, read) };
        self.handler_unless_zero(|asm| {
            asm.load(SC, word(number, rights));
            asm.lea(SC, Mem::indexed(SC, SA, 0, len as i32 - 1), true);
            asm.rorx(SC, SC, 32);
            asm.mov(SC, SC, false);
        });
        self.asm.load(SB, word(number, offset_of!(Words, base)));
        self.asm.lea(SA, Mem::indexed(SA, SB, 0, 0), false);
    }

    /// The low half of a guest register becomes that of another.
    pub(super) fn set_low(&mut self, guest: u8, from: u8) -> Done {
        let home = regs::home(guest).ok_or(Untranslated)?;
        self.asm.mov16(home, from);
        Ok(())
    }

    fn short_lea(&mut self, insn: &Instruction) -> Done {
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        let to = regs::home(number).ok_or(Untranslated)?;
        match insn.code() {
            Code::Lea_r16_m => {
                self.offset(insn, SA, false)?;
                self.set_low(number, SA)
            }
            Code::Lea_r32_m => self.offset(insn, to, false),
            _ => Err(Untranslated),
        }
    }

    fn short_jmp(&mut self, insn: &Instruction) -> Done {
        match insn.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => {
                let target = Self::target(insn)?;
                self.exit(target);
            }
            Code::Jmp_rm16 | Code::Jmp_rm32 => {
                self.short_target(insn)?;
                self.jump();
            }
            _ => return Err(Untranslated),
        }
        Ok(())
    }

    /// The target of an indirect jump or call in [`SA`]; one beyond 64 KiB is its handler's.
    pub(super) fn short_target(&mut self, insn: &Instruction) -> Done {
        let wide = matches!(insn.code(), Code::Jmp_rm32 | Code::Call_rm32);
        if insn.op0_kind() == OpKind::Memory {
            let place = self.operand(insn, false, if wide { 4 } else { 2 })?;
            self.load_short(SA, place, wide);
        } else {
            let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
            let home = regs::home(number).ok_or(Untranslated)?;
            match wide {
                true => self.asm.mov(SA, home, false),
                false => self.asm.movzx16(SA, home),
            }
        }
        if wide {
            self.below_64k();
        }
        Ok(())
    }

    /// Leaves an offset in [`SA`] that does not fit in 16 bits to the handler.
    pub(super) fn below_64k(&mut self) {
        self.handler_unless_zero(|asm| {
            asm.rorx(SC, SA, 16);
            asm.mov(SC, SC, false);
        });
    }

    /// Two bytes, or four, zero-extended.
    pub(super) fn load_short(&mut self, to: u8, place: Place, wide: bool) {
        match wide {
            true => self.asm.load32(to, place.host()),
            false => self.asm.load16(to, place.host()),
        }
    }

    /// LOOP and JCXZ, which change no flag.
    fn short_loop(&mut self, insn: &Instruction) -> Done {
        let target = Self::target(insn)?;
        let code = insn.code();
        let wide = matches!(
            code,
            Code::Loop_rel8_16_ECX
                | Code::Loop_rel8_32_ECX
                | Code::Loope_rel8_16_ECX
                | Code::Loope_rel8_32_ECX
                | Code::Loopne_rel8_16_ECX
                | Code::Loopne_rel8_32_ECX
                | Code::Jecxz_rel8_16
                | Code::Jecxz_rel8_32
        );
        if matches!(insn.mnemonic(), Mnemonic::Jcxz | Mnemonic::Jecxz) {
            match wide {
                true => self.asm.mov(SC, GUEST_RCX, false),
                false => self.asm.movzx16(SC, GUEST_RCX),
            }
            let taken = self.asm.branch_rcx_zero();
            let over = self.asm.jmp_forward();
            self.asm.land(taken);
            self.exit(target);
            self.asm.patch(over);
            return Ok(());
        }
        self.asm.lea(SC, Mem::at(GUEST_RCX, -1), false);
        match wide {
            true => self.asm.mov(GUEST_RCX, SC, false),
            false => {
                self.asm.mov16(GUEST_RCX, SC);
                self.asm.movzx16(SC, SC);
            }
        }
        const EQUAL: u8 = 4;
        const NOT_EQUAL: u8 = 5;
        let done = self.asm.branch_rcx_zero();
        let otherwise = match insn.mnemonic() {
            Mnemonic::Loope => Some(self.asm.branch(NOT_EQUAL)),
            Mnemonic::Loopne => Some(self.asm.branch(EQUAL)),
            _ => None,
        };
        self.exit(target);
        otherwise.into_iter().for_each(|otherwise| self.asm.land(otherwise));
        self.asm.land(done);
        Ok(())
    }

    fn short_from_segment(&mut self, insn: &Instruction) -> Done {
        let selector = word(segment(insn.op1_register())?, offset_of!(Words, selector));
        if insn.op0_kind() == OpKind::Memory {
            let place = self.operand(insn, true, 2)?;
            self.asm.load(SC, selector);
            self.asm.store16(place.host(), SC);
            return Ok(());
        }
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        let home = regs::home(number).ok_or(Untranslated)?;
        self.asm.load(SC, selector);
        match insn.code() {
            Code::Mov_rm16_Sreg => self.asm.mov16(home, SC),
            Code::Mov_r32m16_Sreg => self.asm.mov(home, SC, false),
            _ => return Err(Untranslated),
        }
        Ok(())
    }

    fn mov_to_segment(&mut self, insn: &Instruction, short: Short) -> Done {
        let number = self.paragraph(insn.op0_register(), short)?;
        if insn.op1_kind() == OpKind::Memory {
            let place = self.operand(insn, false, 2)?;
            self.asm.load16(SA, place.host());
        } else {
            let from = regs::number(insn.op1_register()).and_then(regs::home);
            self.asm.movzx16(SA, from.ok_or(Untranslated)?);
        }
        self.load_paragraph(number);
        Ok(())
    }

    /// The number of a segment register that a selector can simply be written to.
    pub(super) fn paragraph(&self, register: Register, short: Short) -> Result<u8, Untranslated> {
        if !short.real || matches!(register, Register::CS | Register::SS) {
            return Err(Untranslated);
        }
        segment(register)
    }

    /// The selector in [`SA`] is loaded, and its paragraph is the base.
    pub(super) fn load_paragraph(&mut self, number: u8) {
        let asm = &mut self.asm;
        asm.store(word(number, offset_of!(Words, selector)), SA);
        for scale in [3, 1] {
            asm.lea(SA, Mem { base: None, index: Some((SA, scale)), disp: 0 }, true);
        }
        asm.store(word(number, offset_of!(Words, base)), SA);
        asm.store_imm(word(number, offset_of!(Words, loaded)), 1, true);
        asm.store_imm(field!(loaded), 1, true);
    }

    /// LDS and the like.
    fn load_far(&mut self, insn: &Instruction, short: Short) -> Done {
        let register = match insn.code() {
            Code::Lds_r16_m1616 => Register::DS,
            Code::Les_r16_m1616 => Register::ES,
            Code::Lfs_r16_m1616 => Register::FS,
            Code::Lgs_r16_m1616 => Register::GS,
            _ => return Err(Untranslated),
        };
        let number = self.paragraph(register, short)?;
        self.short_offset(insn, SA).ok_or(Untranslated)??;
        // The selector's offset wraps.
        self.handler_unless_zero(|asm| {
            asm.lea(SC, Mem::at(SA, 3), false);
            asm.rorx(SC, SC, 16);
            asm.mov(SC, SC, false);
        });
        self.in_segment(segment(insn.memory_segment())?, false, 4);
        let place = self.probe_at(Place::SA, false, 4);
        self.load_short(SA, place, true);
        let to = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        self.set_low(to, SA)?;
        self.asm.rorx(SA, SA, 16);
        self.asm.movzx16(SA, SA);
        self.load_paragraph(number);
        Ok(())
    }
}

fn is_segment(insn: &Instruction, n: u32) -> bool {
    insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_segment_register()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_wrap_at_64_kib_and_are_relative_to_the_page() {
        // jmp $+0x100 at 0xff80, in a page whose beginning is at 0xf800.
        let insns = decode(&[0xe9, 0xfd, 0x00], 0x780, 0xf800, 1);
        let target = insns[0].near_branch64().wrapping_sub(BASE) as i64;
        assert_eq!((insns[0].code(), target), (Code::Jmp_rel32_64, 0x80 - 0xf800));
        // jc $-0x10 at 8, in a page that begins before the segment.
        let insns = decode(&[0x72, 0xee], 0x408, -0x400, 1);
        assert_eq!(insns[0].near_branch64().wrapping_sub(BASE), 0xfff8 + 0x400);
        assert_eq!(insns[0].ip(), BASE + 0x408);
        // With a 32-bit target beyond 64 KiB.
        let insns = decode(&[0x66, 0xe9, 0, 0, 1, 0], 0, 0, 1);
        assert_eq!(insns[0].op0_kind(), OpKind::NearBranch32);
    }
}
