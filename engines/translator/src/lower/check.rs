//! Blocks whose bytes may change unnoticed.
//!
//! Such a block begins by comparing what it was made from with what memory has now. Immediate
//! operands that were seen to change are left out of that: they are loaded from the code each
//! time.

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::{Mem, Patch},
    regs::{self, SA, SB, SC},
};
use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions, Instruction, OpKind};
use std::ops::Range;

const PAGE: usize = 4096;

/// Where a block's bytes are, and what they were.
#[derive(Clone, Copy, Debug)]
pub struct Check<'s> {
    /// Host address of the block's first byte.
    pub host: u64,
    /// Bits of the instructions whose immediate operands are to be loaded.
    pub soft: u64,
    pub bytes: &'s [u8],
}

impl Check<'_> {
    /// Bytes of an instruction's immediate operand that are to be loaded.
    fn operand(&self, index: usize, insn: &Instruction, start: usize) -> Option<Range<usize>> {
        if self.soft.checked_shr(index as u32).unwrap_or(0) & 1 == 0 {
            return None;
        }
        let own = self.bytes.get(start..start + insn.len())?;
        let found = immediate(own)?;
        Some(start + found.start..start + found.end)
    }
}

/// Bytes of the immediate operand of an instruction of 64-bit code, if it is of those that
/// translations can load from the code. These have no operand in memory.
pub fn immediate(bytes: &[u8]) -> Option<Range<usize>> {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let insn = decoder.decode();
    if insn.len() != bytes.len() || form(&insn).is_none() {
        return None;
    }
    let at: ConstantOffsets = decoder.get_constant_offsets(&insn);
    let start = at.immediate_offset();
    at.has_immediate().then_some(start..start + at.immediate_size())
}

/// What is done with the operand that is loaded.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Move: 32 bits, 64, or 32 sign-extended.
    Load32,
    Load64,
    Extend,
    /// The opcode of the operation on a register, whether it has 64 bits, and whether it writes.
    Operation(u8, bool, bool),
}

fn form(insn: &Instruction) -> Option<Form> {
    use Code::*;
    if insn.op0_kind() != OpKind::Register || regs::number(insn.op0_register()).is_none() {
        return None;
    }
    Some(match insn.code() {
        Mov_r32_imm32 | Mov_rm32_imm32 => Form::Load32,
        Mov_r64_imm64 => Form::Load64,
        Mov_rm64_imm32 => Form::Extend,
        Add_EAX_imm32 | Add_rm32_imm32 => Form::Operation(0x01, false, true),
        Add_RAX_imm32 | Add_rm64_imm32 => Form::Operation(0x01, true, true),
        Or_EAX_imm32 | Or_rm32_imm32 => Form::Operation(0x09, false, true),
        Or_RAX_imm32 | Or_rm64_imm32 => Form::Operation(0x09, true, true),
        And_EAX_imm32 | And_rm32_imm32 => Form::Operation(0x21, false, true),
        And_RAX_imm32 | And_rm64_imm32 => Form::Operation(0x21, true, true),
        Sub_EAX_imm32 | Sub_rm32_imm32 => Form::Operation(0x29, false, true),
        Sub_RAX_imm32 | Sub_rm64_imm32 => Form::Operation(0x29, true, true),
        Xor_EAX_imm32 | Xor_rm32_imm32 => Form::Operation(0x31, false, true),
        Xor_RAX_imm32 | Xor_rm64_imm32 => Form::Operation(0x31, true, true),
        Cmp_EAX_imm32 | Cmp_rm32_imm32 => Form::Operation(0x39, false, false),
        Cmp_RAX_imm32 | Cmp_rm64_imm32 => Form::Operation(0x39, true, false),
        Test_EAX_imm32 | Test_rm32_imm32 => Form::Operation(0x85, false, false),
        Test_RAX_imm32 | Test_rm64_imm32 => Form::Operation(0x85, true, false),
        _ => return None,
    })
}

impl Lowerer<'_> {
    /// Compares; what is returned is where control goes if anything differs.
    pub(super) fn compare(&mut self, check: &Check<'_>, insns: &[Instruction]) -> Vec<Patch> {
        let mut wanted = vec![true; check.bytes.len()];
        let mut start = 0;
        for (index, insn) in insns.iter().enumerate() {
            if let Some(soft) = check.operand(index, insn, start) {
                wanted.get_mut(soft).unwrap_or_default().fill(false);
            }
            start += insn.len();
        }
        let offset = check.host as usize % PAGE;
        self.asm.mov_imm64(SA, check.host - offset as u64);
        let mut patches = Vec::new();
        let mut next = 0;
        while next < wanted.len() {
            // Eight bytes in the page, of which those are asked that were not before.
            let at = (offset + next).min(PAGE - 8);
            let (mut mask, mut value) = (0_u64, 0_u64);
            for bit in 0..8 {
                let Some(byte) = (at + bit).checked_sub(offset) else { continue };
                if byte >= next && wanted.get(byte).is_some_and(|wanted| *wanted) {
                    mask |= 0xff << (8 * bit);
                    value |= u64::from(check.bytes.get(byte).copied().unwrap_or(0)) << (8 * bit);
                }
            }
            next = (at + 8).saturating_sub(offset).max(next + 1);
            patches.extend(self.compare_word(at, mask, value));
        }
        patches
    }

    /// Of the word at an offset from [`SA`], the bytes that `mask` selects.
    fn compare_word(&mut self, at: usize, mask: u64, value: u64) -> Option<Patch> {
        if mask == 0 {
            return None;
        }
        self.asm.load(SC, Mem::at(SA, at as i32));
        let mut value = value;
        if mask != !0 {
            self.asm.mov_imm64(SB, mask);
            self.asm.pext_register(SC, SC, SB);
            value = extract(value, mask);
        }
        self.asm.mov_imm64(SB, value.wrapping_neg());
        self.asm.lea(SC, Mem::indexed(SC, SB, 0, 0), true);
        let mut patch = None;
        self.asm.unless_rcx_zero(|asm| patch = Some(asm.jmp_forward()));
        patch
    }

    /// The instruction with its immediate operand as memory has it.
    pub(super) fn soft(&mut self, check: &Check<'_>, index: usize, insn: &Instruction) -> Done {
        let ip = insn.ip().wrapping_sub(super::BASE) as usize;
        let start = (ip % PAGE).checked_sub(check.host as usize % PAGE).ok_or(Untranslated)?;
        let operand = check.operand(index, insn, start).ok_or(Untranslated)?;
        let form = form(insn).ok_or(Untranslated)?;
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        let to = regs::home(number).unwrap_or(SB);
        self.asm.mov_imm64(SA, check.host + operand.start as u64);
        let mut written = true;
        match form {
            Form::Load32 => self.asm.load32(to, Mem::at(SA, 0)),
            Form::Load64 => self.asm.load(to, Mem::at(SA, 0)),
            Form::Extend => self.asm.movsxd(to, Mem::at(SA, 0)),
            Form::Operation(opcode, wide, writes) => {
                self.asm.movsxd(SC, Mem::at(SA, 0));
                let to = self.value(number, SB);
                self.asm.registers(opcode, SC, to, wide);
                written = writes;
            }
        }
        if written {
            self.set(number, to);
        }
        Ok(())
    }
}

/// The bits of `value` that `mask` selects, one after another (SDM volume 2, PEXT).
fn extract(value: u64, mut mask: u64) -> u64 {
    let (mut result, mut at) = (0, 0);
    while mask != 0 {
        result |= (value >> mask.trailing_zeros() & 1) << at;
        mask &= mask - 1;
        at += 1;
    }
    result
}
