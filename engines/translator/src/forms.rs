//! What each kind of instruction is made of, learnt once.
//!
//! A general encoder, and a general answer to what an instruction does to its operands, look
//! everything up that an instruction can be, which took most of a translation's time. Here they
//! are asked once for each code and shape (an operand in memory, or none): an instruction of that
//! kind is encoded with one register after another in its operands, which shows where the
//! encoding has them. From then on its parts are put together. What does not fit (other than
//! general and vector registers, prefixes with another meaning) is left to the general ones.

use crate::{
    lower::writes,
    regs::{self, HOST_RSP},
};
use iced_x86::{
    Encoder, IcedError, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess,
    OpKind, Register,
};

/// Operands at most.
pub const OPERANDS: usize = 5;
/// A register that no encoding has where it is not asked for.
const PROBE: u8 = 9;

/// Where an operand is encoded (SDM volume 2, 2.1 and 2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    /// Nowhere: the instruction has no such operand, or no choice.
    #[default]
    None,
    /// Nowhere: it is always this register.
    Always(Register),
    /// ModRM.reg.
    Reg,
    /// ModRM.rm, for a register or memory.
    Rm,
    /// The low bits of the opcode.
    Opcode,
    /// VEX.vvvv.
    Vvvv,
    /// In so many bytes.
    Immediate(u8),
}

/// VEX.L and VEX.pp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vex {
    l: u8,
    pp: u8,
}

/// An encoding but for memory and immediate operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    /// 66, F2 and F3 as far as it has them; else zero.
    prefixes: [u8; 2],
    wide: bool,
    /// Bit 3 of the registers in ModRM.reg, of the index, and in ModRM.rm or the opcode.
    r: u8,
    x: u8,
    b: u8,
    vex: Option<Vex>,
    vvvv: u8,
    /// 1 for 0F, 2 for 0F38, 3 for 0F3A.
    map: u8,
    opcode: u8,
    modrm: Option<u8>,
}

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

/// An encoded instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bytes {
    bytes: [u8; 24],
    len: usize,
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
        let end = bytes.len - at.immediate_size();
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

impl Parts {
    /// Of an encoding that ends with the opcode or ModRM.
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut parts = Self::default();
        let (mut bytes, mut count) = (bytes, 0);
        while let [prefix @ (0x66 | 0xf2 | 0xf3), rest @ ..] = bytes {
            *parts.prefixes.get_mut(count)? = *prefix;
            (bytes, count) = (rest, count + 1);
        }
        let rest = match bytes {
            [0xc5, a, rest @ ..] => {
                parts.map = 1;
                parts.vex_fields(*a, *a & 0x7f, rest)
            }
            [0xc4, a, b, rest @ ..] => {
                (parts.x, parts.b) = (!a >> 6 & 1, !a >> 5 & 1);
                parts.map = a & 31;
                parts.vex_fields(*a, *b, rest)
            }
            [0x62 | 0x8f, ..] => return None,
            [rex @ 0x40..=0x4f, rest @ ..] => {
                (parts.wide, parts.r, parts.x, parts.b) =
                    (rex & 8 != 0, rex >> 2 & 1, rex >> 1 & 1, rex & 1);
                parts.legacy_map(rest)
            }
            rest => parts.legacy_map(rest),
        };
        let [opcode, rest @ ..] = rest else { return None };
        parts.opcode = *opcode;
        match rest {
            [] => {}
            [modrm] => parts.modrm = Some(*modrm),
            _ => return None,
        }
        (parts.map <= 3).then_some(parts)
    }

    fn vex_fields<'b>(&mut self, r: u8, last: u8, rest: &'b [u8]) -> &'b [u8] {
        self.r = !r >> 7;
        self.wide = last & 0x80 != 0;
        self.vvvv = !last >> 3 & 15;
        self.vex = Some(Vex { l: last >> 2 & 1, pp: last & 3 });
        rest
    }

    fn legacy_map<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (map, rest) = match bytes {
            [0x0f, 0x38, rest @ ..] => (2, rest),
            [0x0f, 0x3a, rest @ ..] => (3, rest),
            [0x0f, rest @ ..] => (1, rest),
            rest => (0, rest),
        };
        self.map = map;
        rest
    }

    /// With a register in the place of an operand, where the first one was.
    #[inline]
    fn put(&mut self, role: Role, number: u8) {
        let (low, high) = (number & 7, number >> 3 & 1);
        match role {
            Role::Reg => {
                self.r = high;
                self.modrm = self.modrm.map(|modrm| modrm | low << 3);
            }
            Role::Rm => {
                self.b = high;
                self.modrm = self.modrm.map(|modrm| modrm | low);
            }
            Role::Opcode => {
                self.b = high;
                self.opcode |= low;
            }
            Role::Vvvv => self.vvvv = number & 15,
            Role::None | Role::Always(_) | Role::Immediate(_) => {}
        }
    }

    /// The operand that made `other` of this: [`PROBE`] instead of the first register.
    fn role(&self, other: &Self) -> Option<Role> {
        [Role::Reg, Role::Rm, Role::Opcode, Role::Vvvv].into_iter().find(|role| {
            let mut expected = *self;
            expected.put(*role, PROBE);
            expected == *other
        })
    }

    /// All that comes before ModRM; `rex` if there has to be one.
    #[inline]
    fn write(&self, to: &mut Bytes, rex: bool) {
        for prefix in self.prefixes.into_iter().filter(|prefix| *prefix != 0) {
            to.push(prefix);
        }
        let (w, r, x, b) = (u8::from(self.wide), self.r, self.x, self.b);
        if let Some(Vex { l, pp }) = self.vex {
            let last = (!self.vvvv & 15) << 3 | l << 2 | pp;
            if self.map == 1 && w | x | b == 0 {
                to.push(0xc5);
                to.push((r ^ 1) << 7 | last);
            } else {
                to.push(0xc4);
                to.push((r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | self.map);
                to.push(w << 7 | last);
            }
        } else {
            let bits = w << 3 | r << 2 | x << 1 | b;
            if bits != 0 || rex {
                to.push(0x40 | bits);
            }
            if self.map > 0 {
                to.push(0x0f);
            }
            match self.map {
                2 => to.push(0x38),
                3 => to.push(0x3a),
                _ => {}
            }
        }
        to.push(self.opcode);
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

/// A memory operand with a base.
#[derive(Clone, Copy, Debug)]
struct Operand {
    base: u8,
    /// And its scale as a shift count.
    index: Option<(u8, u8)>,
    disp: i32,
}

impl Operand {
    fn of(insn: &Instruction) -> Option<Self> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let disp = i32::try_from(insn.memory_displacement64() as i64).ok()?;
        let index = match index {
            Register::None => None,
            _ if index.is_gpr64() && index.number() as u8 != HOST_RSP => {
                Some((index.number() as u8, insn.memory_index_scale().trailing_zeros() as u8))
            }
            _ => return None,
        };
        base.is_gpr64().then(|| Self { base: base.number() as u8, index, disp })
    }

    /// ModRM, SIB and displacement.
    #[inline]
    fn write(self, to: &mut Bytes, modrm: u8) {
        let (base, small) = (self.base & 7, i8::try_from(self.disp));
        let mode = match (self.disp, small) {
            (0, _) if base != 5 => 0,
            (_, Ok(_)) => 0x40,
            _ => 0x80,
        };
        match self.index {
            Some((index, shift)) => {
                to.push(modrm & 0x38 | mode | 4);
                to.push(shift << 6 | (index & 7) << 3 | base);
            }
            None if base == HOST_RSP => {
                to.push(modrm & 0x38 | mode | 4);
                to.push(0x24);
            }
            None => to.push(modrm & 0x38 | mode | base),
        }
        let [first, rest @ ..] = self.disp.to_le_bytes();
        if mode != 0 {
            to.push(first);
        }
        if mode == 0x80 {
            rest.into_iter().for_each(|byte| to.push(byte));
        }
    }
}

impl Bytes {
    #[inline]
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    pub fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};
    use std::collections::HashSet;

    struct Rng(u64);

    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
        }

        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }
    }

    /// A random instruction, in one of the general and vector maps.
    fn random(rng: &mut Rng) -> Instruction {
        loop {
            let mut bytes = Vec::new();
            match rng.below(8) {
                0 => bytes.push([0x66, 0xf0, 0xf2, 0xf3, 0x65][rng.below(5) as usize]),
                1 => bytes.extend([0x66, 0x0f]),
                2 => bytes.extend([0xf2, 0x0f]),
                3 => bytes.extend([0xc5, rng.next() as u8]),
                4 => bytes.extend([0xc4, rng.next() as u8 & 0xe0 | (1 + rng.below(3) as u8)]),
                5 => bytes.extend([0x40 | rng.below(16) as u8, 0x0f]),
                _ => bytes.push(0x40 | rng.below(16) as u8),
            }
            bytes.extend((0..14).map(|_| rng.next() as u8));
            let insn = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
            if !insn.is_invalid() {
                return insn;
            }
        }
    }

    fn numbered_at_random(rng: &mut Rng, register: Register) -> Register {
        let number = rng.below(16) as u8;
        match rng.below(8) {
            0 if register.is_gpr8() => Register::AH + u32::from(number & 3),
            _ => numbered(register, number).unwrap_or(register),
        }
    }

    /// With other registers, and memory where translated code has it.
    fn changed(rng: &mut Rng, insn: &Instruction) -> Instruction {
        let mut insn = *insn;
        for n in 0..insn.op_count() {
            if insn.op_kind(n) == OpKind::Register && rng.below(4) != 0 {
                let other = numbered_at_random(rng, insn.op_register(n));
                insn.set_op_register(n, other);
            }
        }
        if has_memory(&insn) {
            insn.set_segment_prefix(Register::None);
            insn.set_memory_base(regs::name(rng.below(16) as u8, 8));
            insn.set_memory_index_scale(1);
            insn.set_memory_index(match rng.below(3) {
                0 => Register::None,
                _ => regs::name(5 + rng.below(11) as u8, 8),
            });
            if insn.memory_index() != Register::None {
                insn.set_memory_index_scale(1 << rng.below(4));
            }
            let disp = [0, 5, -128, 128, 0x1234_5678][rng.below(5) as usize];
            insn.set_memory_displacement64(disp as u64);
            insn.set_memory_displ_size((disp != 0).into());
        }
        insn
    }

    #[test]
    fn encodes_as_the_general_encoder_does() {
        let (mut rng, mut forms) = (Rng(88), Forms::default());
        let (mut same, mut refused) = (HashSet::new(), 0);
        for _ in 0..400_000 {
            let insn = random(&mut rng);
            let insn = changed(&mut rng, &insn);
            let expected = forms.general(&insn, 0).ok();
            let Some(form) = forms.form(&insn).copied().filter(|_| plain(&insn)) else { continue };
            let Some(got) = form.encode(&insn) else { continue };
            let got = got.ok();
            assert_eq!(
                got.as_ref().map(Bytes::get),
                expected.as_ref().map(Bytes::get),
                "{:?} {insn}",
                insn.code()
            );
            refused += usize::from(got.is_none());
            same.insert((insn.code(), has_memory(&insn)));
        }
        assert!(same.len() > 1000 && refused > 100, "{} {refused}", same.len());
        let common = [Code::Add_rm64_r64, Code::Mov_r32_rm32, Code::Movaps_xmm_xmmm128];
        assert!(common.iter().all(|code| same.contains(&(*code, true))));
        assert!(common.iter().all(|code| same.contains(&(*code, false))));
    }

    #[test]
    fn facts_are_the_general_ones() {
        let (mut rng, mut forms) = (Rng(89), Forms::default());
        let mut known = HashSet::new();
        for _ in 0..400_000 {
            let insn = random(&mut rng);
            let Some(facts) = forms.facts(&insn) else { continue };
            let info = forms.factory.info(&insn);
            let (mut written, mut named) = (0, facts.written);
            for used in info.used_registers().iter().filter(|used| writes(used.access())) {
                let register = used.register();
                if register.is_gpr() {
                    written |= 1 << (register.full_register().number() & 15);
                }
            }
            for (n, access) in (0..insn.op_count()).zip(facts.accesses) {
                let register = insn.op_register(n);
                if insn.op_kind(n) == OpKind::Register && writes(access) && register.is_gpr() {
                    named |= 1 << (register.full_register().number() & 15);
                }
            }
            let text = format!("{:?} {insn}", insn.code());
            assert_eq!(named, written, "{text}");
            let accesses: Vec<_> = (0..insn.op_count()).map(|n| info.op_access(n)).collect();
            // Of a difference with itself, the general facts say that it depends on nothing.
            let same = |(a, b)| insn.op_register(a) == insn.op_register(b);
            let idiom = [(0, 1), (1, 2)].into_iter().any(same);
            if accesses[..] != facts.accesses[..accesses.len()] {
                assert!(idiom, "{text}");
            }
            known.insert(insn.mnemonic());
        }
        let wanted = [Mnemonic::Add, Mnemonic::Mul, Mnemonic::Cmpxchg, Mnemonic::Mulx];
        assert!(wanted.iter().all(|mnemonic| known.contains(mnemonic)));
    }
}
