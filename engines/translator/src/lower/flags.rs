//! Where the guest's status flags are, while checks of the TLB have the host's.
//!
//! They are in the host's flags register wherever something outside the block, or an
//! instruction that reads them, may see them. Between, where nothing will read them before they
//! are overwritten, a check may use the register for itself: a check that compares and jumps is
//! much cheaper than one that must not change a flag. What is left to do is to bring them back
//! where a check misses, which is out of line, or where their turn comes after all:
//!
//! - by doing the last instruction again that wrote all of them, or one of the same effect on
//!   flags, as long as its operands are what they were ([`Redo`]);
//! - else from memory below the state, where PUSHFQ has put them before the first check. It is
//!   overwritten by the next thing that is pushed, but by no signal, since it is in the red zone
//!   of the System V ABI (3.2.2).
//!
//! In the plain part of a block, in 32-bit code and in blocks that compare their bytes, they
//! stay where they are.

use super::{
    Lowerer, Untranslated,
    liveness::{ALL, Note},
};
use crate::{
    asm::{Mem, RSP, Rm},
    regs::{self, SC},
    state::gpr,
};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Of [`crate::asm::Asm::group1`].
const ADD: u8 = 0;
const SUB: u8 = 5;
const CMP: u8 = 7;

/// How the guest's flags are had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Flags {
    /// They are in the host's register, as far as they are visible.
    #[default]
    Here,
    /// Only as the result of this.
    Redo(Redo),
    /// Only in memory.
    Saved,
}

/// An instruction that sets all flags as one before has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Redo {
    how: How,
    size: u8,
    /// Guest register.
    a: u8,
    b: Operand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Compare,
    Test,
    /// Comparison of what is equal.
    Equal,
    /// `a` is a sum, and `b` is what was added.
    Sum,
    /// `a` is a difference, and `b` is what was subtracted.
    Difference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    /// Guest register.
    Register(u8),
    Immediate(i32),
}

impl Redo {
    /// What does the same to the flags as an instruction, after it.
    pub fn of(insn: &Instruction) -> Option<Self> {
        use Mnemonic::{Add, And, Cmp, Or, Sub, Test, Xor};
        let (a, size) = register(insn, 0)?;
        let redo = |how, b| Some(Self { how, size, a, b });
        let second = || match insn.op1_kind() {
            OpKind::Register => register(insn, 1).map(|(b, _)| Operand::Register(b)),
            OpKind::Memory => None,
            // Sign-extended to eight bytes at most, it has 32 bits.
            _ => Some(Operand::Immediate(insn.immediate(1) as i32)),
        };
        match insn.mnemonic() {
            Cmp => redo(How::Compare, second()?),
            Test => redo(How::Test, second()?),
            Xor | Sub if second() == Some(Operand::Register(a)) => redo(How::Equal, second()?),
            And | Or | Xor => redo(How::Test, Operand::Register(a)),
            // The distance of the least number has no negative.
            Add | Sub if second() == Some(Operand::Immediate(i32::MIN)) => None,
            Add if size >= 4 && second()? != Operand::Register(a) => redo(How::Sum, second()?),
            Sub if size >= 4 => redo(How::Difference, second()?),
            _ => None,
        }
    }

    /// It depends on one of these guest registers.
    fn reads(&self, registers: u16) -> bool {
        let mut own = match self.how {
            How::Equal => 0,
            _ => 1_u16 << (self.a & 15),
        };
        if let (Operand::Register(b), true) = (self.b, self.how != How::Equal) {
            own |= 1 << (b & 15);
        }
        own & registers != 0
    }
}

/// A register operand that is no AH to BH: its number and size.
fn register(insn: &Instruction, n: u32) -> Option<(u8, u8)> {
    let register = insn.op_register(n);
    let is_register = insn.op_kind(n) == OpKind::Register;
    Some((regs::number(register).filter(|_| is_register)?, register.size() as u8))
}

/// Where a guest register is.
fn at_home(guest: u8) -> Rm {
    regs::home(guest).map_or(Rm::Memory(gpr(guest)), Rm::Register)
}

/// What is known of the flags at some place of a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub now: Flags,
    /// What would bring them back.
    redo: Option<Redo>,
    /// Those that are not visible are not right.
    hole: bool,
}

/// Follows the flags through a block.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// Of each instruction, if checks may use the flags at all.
    pub notes: Vec<Note>,
    /// The general registers that each may write.
    pub written: Vec<u16>,
    pub known: Known,
    /// They were wanted where that had been excluded: the block cannot be made so.
    pub failed: bool,
    /// After each instruction.
    pub after: Vec<Flags>,
}

impl Tracker {
    /// Of no block.
    pub fn emptied(mut self) -> Self {
        self.notes.clear();
        self.written.clear();
        self.after.clear();
        Self { notes: self.notes, written: self.written, after: self.after, ..Self::default() }
    }

    fn note(&self, index: usize) -> Option<&Note> {
        self.notes.get(index)
    }

    fn written(&self, index: usize) -> u16 {
        self.written.get(index).copied().unwrap_or(!0)
    }

    /// The flags that are visible after an instruction.
    fn visible_after(&self, index: usize) -> u32 {
        self.note(index + 1).map_or(ALL, |next| next.visible)
    }

    /// Whether the flags must be back before the effect of an instruction.
    fn wanted(&self, index: usize) -> bool {
        let Some(note) = self.note(index) else { return true };
        if !note.simple || note.reads != 0 {
            return true;
        }
        let kept = match self.known.now {
            Flags::Here => return false,
            Flags::Saved => !note.touches,
            Flags::Redo(redo) => !note.touches && !redo.reads(self.written(index)),
        };
        !kept && self.visible_after(index) & !note.kills != 0
    }
}

impl Lowerer<'_> {
    /// Before an instruction.
    pub(super) fn flags_begin(&mut self, index: usize) {
        let access = self.flags.note(index).is_some_and(|note| note.access);
        if self.flags.known.now != Flags::Here && !access && self.flags.wanted(index) {
            self.flags_here();
        }
    }

    /// After an instruction, which was copied or whose handler has run.
    pub(super) fn flags_end(&mut self, index: usize, insn: &Instruction, handled: bool) {
        let Some(note) = self.flags.note(index).copied() else { return };
        let (written, known) = (self.flags.written(index), &mut self.flags.known);
        if handled || !note.simple {
            let redo = known.redo.filter(|_| !handled && insn.is_jcc_short_or_near());
            *known = Known { redo, ..Known::default() };
        } else if note.kills == ALL {
            *known = Known { redo: Redo::of(insn), ..Known::default() };
        } else {
            known.redo = known.redo.filter(|redo| !note.touches && !redo.reads(written));
            let lost = match known.now {
                Flags::Here => false,
                Flags::Redo(_) => known.redo.is_none(),
                Flags::Saved => note.touches,
            };
            if lost {
                // Of those that are not overwritten nobody sees any: see `wanted`.
                (known.now, known.hole) = (Flags::Here, true);
            }
        }
        if !self.reuse.plain {
            self.flags.after.push(self.flags.known.now);
        }
    }

    /// The flags have come back if the instruction wanted that.
    pub(super) fn flags_seen(&self, index: usize) -> Result<(), Untranslated> {
        let lost = self.flags.known.now != Flags::Here && self.flags.wanted(index);
        if lost { Err(Untranslated) } else { Ok(()) }
    }

    /// Makes that true which the code after an instruction takes for granted.
    pub(super) fn flags_again(&mut self, index: usize) {
        self.flags_to(self.flags.after.get(index).copied().unwrap_or_default());
    }

    /// The instruction's effect is next, after its checks.
    pub(super) fn flags_before_effect(&mut self) {
        if self.flags.known.now != Flags::Here && self.flags.wanted(self.index) {
            self.flags_here();
        }
    }

    /// The check of an access may use the flags. If so, they are to be had otherwise from here.
    pub(super) fn spare_flags(&mut self) -> bool {
        if self.reuse.plain {
            return false;
        }
        let Some(note) = self.flags.note(self.index).copied() else { return false };
        if self.flags.known.now != Flags::Here {
            return true;
        }
        if self.flags.known.hole {
            self.flags.failed = true;
        }
        if let Some(redo) = self.flags.known.redo {
            self.flags.known.now = Flags::Redo(redo);
            return true;
        }
        // To save them for one check costs as much as it brings.
        if note.dead && note.checks > 1 {
            self.flags_to(Flags::Saved);
            self.flags.known.now = Flags::Saved;
            return true;
        }
        false
    }

    /// From here they are in the host's register. [`SC`] may be lost.
    pub(super) fn flags_here(&mut self) {
        if self.flags.known.hole {
            self.flags.failed = true;
        }
        if self.flags.known.now != Flags::Here {
            self.scratch.lost(SC);
        }
        let from = std::mem::take(&mut self.flags.known.now);
        self.flags_from(from);
    }

    /// Brings them into the host's register. [`SC`] may be lost.
    pub(super) fn flags_from(&mut self, from: Flags) {
        match from {
            Flags::Here => {}
            Flags::Redo(redo) => self.redo(redo),
            Flags::Saved => {
                self.asm.lea(RSP, Mem::at(RSP, -8), true);
                self.asm.popfq();
            }
        }
    }

    /// Makes that true which is to be had of them, where they are in the host's register.
    pub(super) fn flags_to(&mut self, to: Flags) {
        if to == Flags::Saved {
            self.asm.pushfq();
            self.asm.lea(RSP, Mem::at(RSP, 8), true);
        }
    }

    fn redo(&mut self, Redo { how, size, a, b }: Redo) {
        let wide = size == 8;
        match (how, b) {
            (How::Equal, _) => self.asm.group1(CMP, 8, Rm::Register(RSP), RSP),
            (How::Compare, Operand::Immediate(b)) => {
                self.asm.group1_imm(CMP, size, at_home(a), b);
            }
            (How::Compare, Operand::Register(b)) => self.redo_compare(size, at_home(a), b),
            (How::Test, Operand::Immediate(b)) => self.asm.test_imm(size, at_home(a), b),
            (How::Test, Operand::Register(b)) => {
                let a = self.loaded(a);
                self.asm.test(size, at_home(b), a);
            }
            (How::Sum, Operand::Immediate(b)) => {
                let a = self.loaded(a);
                self.asm.lea(SC, Mem::at(a, b.wrapping_neg()), wide);
                self.asm.group1_imm(ADD, size, Rm::Register(SC), b);
            }
            (How::Difference, Operand::Immediate(b)) => {
                let a = self.loaded(a);
                self.asm.lea(SC, Mem::at(a, b), wide);
                self.asm.group1_imm(CMP, size, Rm::Register(SC), b);
            }
            (How::Sum, Operand::Register(b)) => {
                self.copied(a);
                self.asm.group1_load(SUB, size, SC, at_home(b));
                self.asm.group1_load(ADD, size, SC, at_home(b));
            }
            (How::Difference, Operand::Register(b)) => {
                self.copied(a);
                self.asm.group1_load(ADD, size, SC, at_home(b));
                self.asm.group1_load(CMP, size, SC, at_home(b));
            }
        }
    }

    fn redo_compare(&mut self, size: u8, a: Rm, b: u8) {
        match (a, at_home(b)) {
            (a, Rm::Register(b)) => self.asm.group1(CMP, size, a, b),
            (Rm::Register(a), b) => self.asm.group1_load(CMP, size, a, b),
            (Rm::Memory(a), b) => {
                self.asm.load(SC, a);
                self.asm.group1_load(CMP, size, SC, b);
            }
        }
    }

    /// A guest register, in a host register.
    fn loaded(&mut self, guest: u8) -> u8 {
        match at_home(guest) {
            Rm::Register(host) => host,
            Rm::Memory(mem) => {
                self.asm.load(SC, mem);
                SC
            }
        }
    }

    /// A guest register, in [`SC`].
    fn copied(&mut self, guest: u8) {
        match at_home(guest) {
            Rm::Register(host) => self.asm.mov(SC, host, true),
            Rm::Memory(mem) => self.asm.load(SC, mem),
        }
    }
}
