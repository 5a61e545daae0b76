//! What each kind of instruction is made of, learnt once.
//!
//! A general encoder, and a general answer to what an instruction does to its operands, look
//! everything up that an instruction can be, which took most of a translation's time. Here they
//! are asked once for each code and shape (an operand in memory, or none): an instruction of that
//! kind is encoded with one register after another in its operands, which shows where the
//! encoding has them. From then on its parts are put together. What does not fit (other than
//! general and vector registers, prefixes with another meaning) is left to the general ones.

mod encoding;

use crate::{lower::writes, regs};
pub use encoding::Bytes;
use encoding::{Operand, Parts, Role};
use iced_x86::{
    Encoder, IcedError, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess,
    OpKind, Register,
};

/// Operands at most.
pub const OPERANDS: usize = 5;
/// A register that no encoding has where it is not asked for.
const PROBE: u8 = 9;

/// What an instruction does to registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// To each operand; as if no register were in two of them.
    pub accesses: [OpAccess; OPERANDS],
    /// General registers that it writes without being told which.
    pub written: u16,
}

/// One kind of instruction.
#[derive(Clone, Copy, Debug)]
struct Form {
    parts: Parts,
    roles: [Role; OPERANDS],
    facts: Facts,
}

pub struct Forms {
    encoder: Encoder,
    pub factory: InstructionInfoFactory,
    /// By code and shape, numbers in `forms`; [`NOT_ASKED`] and [`NONE`].
    numbers: Vec<u16>,
    forms: Vec<Form>,
}

const NOT_ASKED: u16 = u16::MAX;
const NONE: u16 = u16::MAX - 1;

impl Default for Forms {
    fn default() -> Self {
        Self {
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
            numbers: Vec::new(),
            forms: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Forms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forms").field("forms", &self.forms).finish_non_exhaustive()
    }
}

impl Forms {
    /// Encodes an instruction whose operands are the host's. Addresses relative to RIP are not.
    pub fn encode(&mut self, insn: &Instruction, ip: u64) -> Option<Bytes> {
        if let Some(form) = self.form(insn).filter(|_| plain(insn))
            && let Some(known) = form.encode(insn)
        {
            return known.ok();
        }
        self.general(insn, ip).ok()
    }

    /// What the instruction does to registers, if it is of a known kind.
    pub fn facts(&mut self, insn: &Instruction) -> Option<Facts> {
        self.form(insn).filter(|_| plain(insn)).map(|form| form.facts)
    }

    fn general(&mut self, insn: &Instruction, ip: u64) -> Result<Bytes, IcedError> {
        let result = self.encoder.encode(insn, ip);
        let mut buffer = self.encoder.take_buffer();
        let mut bytes = Bytes::default();
        buffer.iter().for_each(|byte| bytes.push(*byte));
        buffer.clear();
        self.encoder.set_buffer(buffer);
        result.map(|_| bytes)
    }

    fn form(&mut self, insn: &Instruction) -> Option<&Form> {
        let at = 2 * insn.code() as usize + usize::from(has_memory(insn));
        if self.numbers.len() <= at {
            self.numbers.resize(at + 1, NOT_ASKED);
        }
        if self.numbers[at] == NOT_ASKED {
            self.numbers[at] = NONE;
            if let Some(form) = self.learn(insn)
                && self.forms.len() < usize::from(NONE)
            {
                self.numbers[at] = self.forms.len() as u16;
                self.forms.push(form);
            }
        }
        self.forms.get(usize::from(self.numbers[at]))
    }

    fn learn(&mut self, insn: &Instruction) -> Option<Form> {
        let (mut bare, mut free) = bare(insn)?;
        if self.general(&bare, 0).is_err() {
            // One is always the same: a count in CL.
            let mut with = |n: u32| {
                let mut other = bare;
                other.set_op_register(n, insn.op_register(n));
                self.general(&other, 0).is_ok().then_some((n, other))
            };
            let (n, found) =
                (0..insn.op_count()).filter(|n| free >> n & 1 != 0).find_map(&mut with)?;
            bare = found;
            free &= !(1 << n);
        }
        let (parts, immediate) = self.parts(&bare)?;
        let mut roles = [Role::None; OPERANDS];
        for (n, role) in (0..insn.op_count()).zip(&mut roles) {
            match insn.op_kind(n) {
                OpKind::Memory => *role = Role::Rm,
                OpKind::Register if free >> n & 1 != 0 => {
                    let mut other = bare;
                    other.set_op_register(n, numbered(insn.op_register(n), PROBE)?);
                    // Or it is always the same after all.
                    if self.general(&other, 0).is_ok() {
                        *role = parts.role(&self.parts(&other)?.0)?;
                    } else {
                        *role = Role::Always(bare.op_register(n));
                        free &= !(1 << n);
                    }
                }
                OpKind::Register => *role = Role::Always(bare.op_register(n)),
                _ if immediate > 0 => *role = Role::Immediate(immediate),
                _ => {}
            }
        }
        let facts = self.learn_facts(&bare, free)?;
        Some(Form { parts, roles, facts })
    }

    /// The parts of an instruction's encoding, and the length of its immediate operand.
    fn parts(&mut self, insn: &Instruction) -> Option<(Parts, u8)> {
        let bytes = self.general(insn, 0).ok()?;
        let at = self.encoder.get_constant_offsets();
        if at.has_immediate2() {
            return None;
        }
        let end = bytes.get().len().checked_sub(at.immediate_size())?;
        if at.has_immediate() && at.immediate_offset() != end {
            return None;
        }
        Some((Parts::of(bytes.get().get(..end)?)?, at.immediate_size() as u8))
    }

    /// `free` are the operands whose register may be any.
    fn learn_facts(&mut self, bare: &Instruction, free: u32) -> Option<Facts> {
        let (mut insn, mut named) = (*bare, 0_u32);
        for n in (0..insn.op_count()).filter(|n| free >> n & 1 != 0) {
            let number = PROBE + n as u8;
            insn.set_op_register(n, numbered(insn.op_register(n), number)?);
            named |= 1 << number;
        }
        let info = self.factory.info_options(&insn, InstructionInfoOptions::NO_MEMORY_USAGE);
        let mut accesses = [OpAccess::None; OPERANDS];
        for (n, access) in (0..insn.op_count()).zip(&mut accesses) {
            *access = info.op_access(n);
        }
        let mut written = 0;
        for used in info.used_registers() {
            let register = used.register();
            if writes(used.access()) && register.is_gpr() {
                written |= 1 << (register.full_register().number() & 15);
            }
        }
        Some(Facts { accesses, written: (written & !named) as u16 })
    }
}

fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory)
}

/// Without prefixes that are no part of what is learnt.
fn plain(insn: &Instruction) -> bool {
    !(insn.has_rep_prefix()
        || insn.has_repne_prefix()
        || insn.has_xacquire_prefix()
        || insn.has_xrelease_prefix()
        || insn.segment_prefix() != Register::None)
}

/// The instruction with the first register of its class in each operand, and whose bits are set
/// for those.
fn bare(insn: &Instruction) -> Option<(Instruction, u32)> {
    let (mut bare, mut free) = (*insn, 0);
    bare.set_has_lock_prefix(false);
    bare.set_has_rep_prefix(false);
    bare.set_has_repne_prefix(false);
    bare.set_segment_prefix(Register::None);
    for n in 0..insn.op_count() {
        use OpKind::*;
        match insn.op_kind(n) {
            Register => {
                bare.set_op_register(n, numbered(insn.op_register(n), 0)?);
                free |= 1 << n;
            }
            Memory => {
                bare.set_memory_base(iced_x86::Register::RAX);
                bare.set_memory_index(iced_x86::Register::None);
                bare.set_memory_index_scale(1);
                bare.set_memory_displacement64(0);
                bare.set_memory_displ_size(0);
            }
            Immediate8 | Immediate16 | Immediate32 | Immediate64 | Immediate8to16
            | Immediate8to32 | Immediate8to64 | Immediate32to64 => {}
            _ => return None,
        }
    }
    Some((bare, free))
}

/// The register of the same class with another number.
fn numbered(register: Register, number: u8) -> Option<Register> {
    if register.is_gpr() {
        Some(regs::name(number, register.size()))
    } else if register.is_xmm() {
        Some(Register::XMM0 + u32::from(number))
    } else if register.is_ymm() {
        Some(Register::YMM0 + u32::from(number))
    } else {
        None
    }
}

/// The number of a register; whether it is one of AH to BH; whether it asks for a REX prefix.
#[inline]
fn number(register: Register) -> (u8, bool, bool) {
    let number = register.number() as u8;
    match register.is_gpr8() {
        false => (number & 15, false, false),
        // In the order of their names, AH to BH come before SPL.
        true if number < 4 => (number, false, false),
        true if number < 8 => (number, true, false),
        true => (number.wrapping_sub(4) & 15, false, number < 12),
    }
}

/// There is no such encoding.
struct Impossible;

impl Form {
    /// `None` if the memory operand is of another kind than translated code has.
    fn encode(&self, insn: &Instruction) -> Option<Result<Bytes, Impossible>> {
        let (mut parts, mut high, mut rex) = (self.parts, false, false);
        let mut memory = None;
        let mut immediate = (0, 0);
        for (n, role) in (0..insn.op_count()).zip(self.roles) {
            match role {
                Role::None => {}
                Role::Always(register) if insn.op_register(n) == register => {}
                Role::Always(_) => return Some(Err(Impossible)),
                Role::Immediate(size) => immediate = (insn.immediate(n), size),
                Role::Rm if insn.op_kind(n) == OpKind::Memory => {
                    let operand = Operand::of(insn)?;
                    (parts.x, parts.b) =
                        (operand.index.map_or(0, |(n, _)| n >> 3), operand.base >> 3);
                    memory = Some(operand);
                }
                role => {
                    let (number, is_high, wants) = number(insn.op_register(n));
                    parts.put(role, number);
                    (high, rex) = (high | is_high, rex | wants);
                }
            }
        }
        // AH to BH are what SPL to DIL are with a REX prefix.
        if high && (rex || parts.wide || parts.r | parts.x | parts.b != 0) {
            return Some(Err(Impossible));
        }
        let mut bytes = Bytes::default();
        if insn.has_lock_prefix() {
            bytes.push(0xf0);
        }
        parts.write(&mut bytes, rex);
        match (memory, parts.modrm) {
            (Some(memory), Some(modrm)) => memory.write(&mut bytes, modrm),
            (None, Some(modrm)) => bytes.push(modrm),
            _ => {}
        }
        let (value, size) = immediate;
        value.to_le_bytes().iter().take(size.into()).for_each(|byte| bytes.push(*byte));
        Some(Ok(bytes))
    }
}

#[cfg(test)]
mod tests;
