//! Which accesses of a block go to the same place, as far as can be told before it runs.
//!
//! Registers have values by number: a move gives a register another's, an addition of a
//! constant the same at a distance, anything else a new one. Accesses whose addresses have the
//! same values in them are as far apart as their constants are.

use super::{BASE, copy::writes};
use crate::forms::{Facts, Forms, OPERANDS};
use iced_x86::{Code, Instruction, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register};

/// The value of a register that does not change: RIP's, of the page. Before it are the
/// general registers' values at the block's beginning, from 1 on.
const PAGE_VALUE: u32 = 17;
/// No register.
const NONE: u32 = 0;

/// An address but for a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    segment: Option<Register>,
    base: u32,
    index: u32,
    scale: u32,
}

/// Which of an instruction's accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Operand,
    Stack,
}

#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub key: Key,
    /// The constant.
    pub at: i64,
    pub len: i64,
    pub write: bool,
}

impl Access {
    /// About where it is, if its base depends on nothing but what registers had at the beginning
    /// of the block, which is in the page at `page`.
    pub fn address(&self, registers: &[u64; 16], page: u64) -> Option<u64> {
        let value = |number: u32| match number {
            NONE => Some(0),
            PAGE_VALUE => Some(page),
            _ => registers.get(number as usize - 1).copied(),
        };
        let Key { segment: None, base, index, scale } = self.key else { return None };
        // What is not known of a sum is mostly the small part.
        let index = match value(index) {
            None if base != NONE => Some(0),
            index => index,
        };
        let sum = value(base)?.wrapping_add(index?.wrapping_mul(scale.into()));
        Some(sum.wrapping_add(self.at as u64))
    }

    pub fn end(&self) -> i64 {
        self.at.wrapping_add(self.len)
    }
}

/// Each instruction's accesses, in their order, and the general registers that it may write.
pub fn accesses(
    insns: &[Instruction],
    forms: &mut Forms,
    all: &mut Vec<[Option<Access>; 2]>,
    written: &mut Vec<u16>,
) {
    let mut values = Values::new();
    for insn in insns {
        let (accesses, registers) = values.step(insn, forms);
        all.push(accesses);
        written.push(registers);
    }
}

/// A value, and a distance from it.
type Value = (u32, i64);

struct Values {
    registers: [Value; 16],
    last: u32,
}

const RSP: usize = 4;
const RBP: usize = 5;

impl Values {
    fn new() -> Self {
        let mut registers = [(0, 0); 16];
        for (n, value) in (1..).zip(&mut registers) {
            *value = (n, 0);
        }
        Self { registers, last: PAGE_VALUE }
    }

    fn fresh(&mut self) -> Value {
        self.last += 1;
        (self.last, 0)
    }

    fn get(&self, register: Register) -> Option<Value> {
        match register {
            Register::None => Some((NONE, 0)),
            _ if register.is_gpr64() => self.registers.get(register.number()).copied(),
            _ => None,
        }
    }

    fn step(&mut self, insn: &Instruction, forms: &mut Forms) -> ([Option<Access>; 2], u16) {
        let (accesses, written) = written(insn, forms);
        let memory = (0..insn.op_count()).find(|n| insn.op_kind(*n) == OpKind::Memory);
        let access = memory.and_then(|n| accesses.get(n as usize));
        let operand = access.and_then(|access| self.operand(insn, writes(*access)));
        let stack = self.stack(insn);
        if !self.moved(insn) {
            for register in (0..16).filter(|n| written >> n & 1 != 0) {
                self.registers[register] = self.fresh();
            }
        }
        ([operand, stack], written)
    }

    fn operand(&self, insn: &Instruction, write: bool) -> Option<Access> {
        use Mnemonic::{Bt, Btc, Btr, Bts, Lea, Nop};
        let len = insn.memory_size().size();
        if matches!(insn.mnemonic(), Lea | Nop | Bt | Bts | Btr | Btc) || !(1..=64).contains(&len) {
            return None;
        }
        let segment = insn.memory_segment();
        let segment = matches!(segment, Register::FS | Register::GS).then_some(segment);
        let disp = insn.memory_displacement64();
        let (base, at) = match insn.memory_base() {
            Register::RIP => ((PAGE_VALUE, 0), disp.wrapping_sub(BASE) as i64),
            base => (self.get(base)?, disp as i64),
        };
        let index = self.get(insn.memory_index())?;
        let scale = if index.0 == NONE { 0 } else { insn.memory_index_scale() };
        let at = at.wrapping_add(base.1).wrapping_add(index.1.wrapping_mul(scale.into()));
        let key = Key { segment, base: base.0, index: index.0, scale };
        // Sums of two constants stay in range.
        (at.unsigned_abs() < 1 << 48).then_some(Access { key, at, len: len as i64, write })
    }

    fn stack(&self, insn: &Instruction) -> Option<Access> {
        use Mnemonic::{Call, Leave, Pop, Push, Ret};
        let (register, by, write) = match insn.mnemonic() {
            Push | Call => (RSP, -8, true),
            Pop | Ret => (RSP, 0, false),
            Leave => (RBP, 0, false),
            _ => return None,
        };
        let (base, at) = self.registers[register];
        let key = Key { segment: None, base, index: NONE, scale: 0 };
        Some(Access { key, at: at.wrapping_add(by), len: 8, write })
    }

    /// Follows what keeps a value; false if that is not known of the instruction.
    fn moved(&mut self, insn: &Instruction) -> bool {
        let source = |n| (insn.op_kind(n) == OpKind::Register).then(|| insn.op_register(n));
        let to = source(0);
        let (to, value) = match insn.code() {
            Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Push_rm64 => {
                self.registers[RSP].1 = self.registers[RSP].1.wrapping_sub(8);
                return true;
            }
            Code::Pop_r64 | Code::Pop_rm64 if to.is_some() => {
                self.registers[RSP].1 = self.registers[RSP].1.wrapping_add(8);
                (to, Some(self.fresh()))
            }
            Code::Leaveq => {
                let (value, at) = self.registers[RBP];
                self.registers[RSP] = (value, at.wrapping_add(8));
                self.registers[RBP] = self.fresh();
                return true;
            }
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => {
                (to, source(1).and_then(|from| self.get(from)))
            }
            Code::Lea_r64_m if insn.memory_index() == Register::None => {
                let base = self.get(insn.memory_base()).filter(|base| base.0 != NONE);
                let by = insn.memory_displacement64() as i64;
                (to, base.map(|(value, at)| (value, at.wrapping_add(by))))
            }
            Code::Inc_rm64 => (to, self.shifted(to, 1)),
            Code::Dec_rm64 => (to, self.shifted(to, -1)),
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32 => {
                (to, self.shifted(to, insn.immediate(1) as i64))
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32 => {
                (to, self.shifted(to, (insn.immediate(1) as i64).wrapping_neg()))
            }
            _ => return false,
        };
        match (to, value) {
            (Some(to), Some(value)) => {
                self.registers[to.number() & 15] = value;
                true
            }
            _ => false,
        }
    }

    fn shifted(&self, register: Option<Register>, by: i64) -> Option<Value> {
        let (value, at) = self.get(register?)?;
        Some((value, at.wrapping_add(by)))
    }
}

/// What the instruction does to each operand, and the general registers that it writes.
fn written(insn: &Instruction, forms: &mut Forms) -> ([OpAccess; OPERANDS], u16) {
    let bit = |register: Register| match register.is_gpr() {
        true => 1 << (register.full_register().number() & 15),
        false => 0,
    };
    if let Some(Facts { accesses, mut written }) = forms.facts(insn) {
        for (n, access) in (0..insn.op_count()).zip(accesses) {
            if writes(access) && insn.op_kind(n) == OpKind::Register {
                written |= bit(insn.op_register(n));
            }
        }
        return (accesses, written);
    }
    let info = forms.factory.info_options(insn, InstructionInfoOptions::NO_MEMORY_USAGE);
    let mut accesses = [OpAccess::None; OPERANDS];
    (0..insn.op_count()).zip(&mut accesses).for_each(|(n, a)| *a = info.op_access(n));
    let used = info.used_registers().iter().filter(|used| writes(used.access()));
    (accesses, used.fold(0, |sum, used| sum | bit(used.register())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    /// Decoded where blocks are.
    fn of(bytes: &[u8]) -> Vec<[Option<Access>; 2]> {
        let insns: Vec<_> =
            Decoder::with_ip(64, bytes, BASE, DecoderOptions::NONE).iter().collect();
        let mut all = Vec::new();
        accesses(&insns, &mut Forms::default(), &mut all, &mut Vec::new());
        all
    }

    fn constants(bytes: &[u8]) -> Vec<(u32, i64, bool)> {
        let known = of(bytes).into_iter().flatten().flatten();
        known.map(|a| (a.key.base, a.at, a.write)).collect()
    }

    #[test]
    fn the_stack_moves_by_constants() {
        // push rbx; mov rbp, rsp; sub rsp, 16; mov [rsp+4], eax; pop rcx; mov rdx, [rbp]; leave
        let code = [
            0x53, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x89, 0x44, 0x24, 0x04, 0x59, 0x48,
            0x8b, 0x55, 0x00, 0xc9,
        ];
        let expected =
            [(5, -8, true), (5, -20, true), (5, -24, false), (5, -8, false), (5, -8, false)];
        assert_eq!(constants(&code), expected);
    }

    #[test]
    fn other_writes_make_new_values() {
        // mov rax, [rdi]; add rdi, rax; mov rax, [rdi]; mov edi, edi; mov rax, [rdi+8]
        let code = [
            0x48, 0x8b, 0x07, 0x48, 0x01, 0xc7, 0x48, 0x8b, 0x07, 0x89, 0xff, 0x48, 0x8b, 0x47,
            0x08,
        ];
        let known = constants(&code);
        assert_eq!(known.len(), 3);
        assert_eq!(known[0].0, 8);
        assert!(known[1].0 != 8 && known[2].0 != known[1].0 && known[2].0 != 8);
        // pop rsp; push rax
        let known = constants(&[0x5c, 0x50]);
        assert!(known[0].0 == 5 && known[1].0 != 5);
        // xchg rdi, rsi; mov rax, [rdi]
        assert_ne!(constants(&[0x48, 0x87, 0xfe, 0x48, 0x8b, 0x07])[0].0, 8);
    }

    #[test]
    fn an_index_counts_by_its_scale() {
        // mov eax, [rdi+rcx*4+3]; inc rcx; mov eax, fs:[rdi+rcx*4]; mov eax, [rdi+rcx*4]
        let code =
            [0x8b, 0x44, 0x8f, 0x03, 0x48, 0xff, 0xc1, 0x64, 0x8b, 0x04, 0x8f, 0x8b, 0x04, 0x8f];
        let known: Vec<Access> = of(&code).into_iter().flatten().flatten().collect();
        assert_eq!(known.iter().map(|a| a.at).collect::<Vec<_>>(), [3, 4, 4]);
        assert_eq!(known[0].key, known[2].key);
        assert_ne!(known[0].key, known[1].key);
    }
}
