//! REP MOVS and REP STOS: the host's own, on pieces that lie in one page of each operand.
//!
//! RSI, RDI and RCX say what is left after each piece. Whatever a piece cannot do, and a request
//! between two of them, is left to the handler, which goes on from there: a page that the TLB
//! does not know, an element that crosses pages, addresses that go down.

use super::{Done, Lowerer, Untranslated, Why, narrow::string_operands};
use crate::{
    asm::{Mem, RDI},
    probe::Place,
    regs::{self, GUEST_RCX, SA, SB, SC},
    state::{Plane, field, tlb_field},
};
use iced_x86::{Code, IcedError, Instruction, OpKind, Register};
use std::mem::offset_of;

const RSI: u8 = 6;
const PAGE: i32 = 4096;
/// Condition codes (SDM volume 1, appendix B).
const NOT_BELOW: u8 = 3;
const NOT_EQUAL: u8 = 5;
const NOT_ABOVE: u8 = 6;

fn q(register: u8) -> Register {
    regs::name(register, 8)
}

impl Lowerer<'_> {
    pub(super) fn string(&mut self, insn: &Instruction) -> Done {
        let (moves, shift) = match insn.code() {
            Code::Movsb_m8_m8 => (true, 0),
            Code::Movsw_m16_m16 => (true, 1),
            Code::Movsd_m32_m32 => (true, 2),
            Code::Movsq_m64_m64 => (true, 3),
            Code::Stosb_m8_AL => (false, 0),
            Code::Stosw_m16_AX => (false, 1),
            Code::Stosd_m32_EAX => (false, 2),
            Code::Stosq_m64_RAX => (false, 3),
            _ => return Err(Untranslated),
        };
        let operands = match self.narrow {
            true => string_operands(insn, moves),
            false => {
                insn.op0_kind() == OpKind::MemoryESRDI
                    && (!moves || insn.op1_kind() == OpKind::MemorySegRSI)
                    && !matches!(insn.memory_segment(), Register::FS | Register::GS)
            }
        };
        let homes = [0, RSI, RDI].iter().all(|r| regs::home(*r) == Some(*r));
        let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
        if !operands || !homes || !repeated {
            return Err(Untranslated);
        }
        self.handler_unless_zero(|asm| asm.load(SC, field!(backward)));
        self.asm.bytes(&[0x9c]); // pushfq
        self.asm.pop_mem(field!(string_flags));
        self.emit(Instruction::with2(Code::Test_rm64_r64, q(GUEST_RCX), q(GUEST_RCX)))?;
        let mut none = None;
        self.asm.unless(NOT_EQUAL, |asm| none = Some(asm.jmp_forward()));
        self.want_iterations()?;
        let again = self.asm.here();
        self.piece(insn, moves, shift)?;
        let (mut done, mut asked) = (None, None);
        self.asm.unless(NOT_EQUAL, |asm| done = Some(asm.jmp_forward()));
        self.asm.load(SC, field!(poll));
        self.asm.load32(SC, Mem::at(SC, 0));
        self.asm.unless_rcx_zero(|asm| asked = Some(asm.jmp_forward()));
        self.asm.jmp(again);
        asked.into_iter().for_each(|asked| self.asm.patch(asked));
        self.flags_back();
        let asked = self.asm.jmp_forward();
        self.handler_from(Some(asked));
        done.into_iter().for_each(|end| self.asm.patch(end));
        self.one_is_the_instruction();
        none.into_iter().for_each(|end| self.asm.patch(end));
        self.flags_back();
        Ok(())
    }

    /// Where instructions are counted, each iteration is one: if not all of them fit, they are
    /// left to the handler, which knows where to stop. The block's other instructions fit.
    fn want_iterations(&mut self) -> Done {
        if !self.counted {
            return Ok(());
        }
        let others = self.length.saturating_sub(1) as i32;
        self.asm.load(SC, field!(budget));
        self.asm.lea(SC, Mem::at(SC, -others), true);
        self.emit(Instruction::with2(Code::Cmp_rm64_r64, q(SC), q(GUEST_RCX)))?;
        let mut short = None;
        self.asm.unless(NOT_BELOW, |asm| {
            asm.push_mem(field!(string_flags));
            asm.bytes(&[0x9d]); // popfq
            short = Some(asm.jmp_forward());
        });
        self.handler_from(short);
        Ok(())
    }

    /// So many iterations as [`SA`] says are retired.
    fn retire_iterations(&mut self) -> Done {
        if self.counted {
            self.asm.load(SC, field!(budget));
            self.emit(Instruction::with2(Code::Sub_rm64_r64, q(SC), q(SA)))?;
            self.asm.store(field!(budget), SC);
        }
        Ok(())
    }

    /// The block's end counts the instruction, whose first iteration is counted already.
    fn one_is_the_instruction(&mut self) {
        if self.counted {
            self.asm.load(SC, field!(budget));
            self.asm.lea(SC, Mem::at(SC, 1), true);
            self.asm.store(field!(budget), SC);
        }
    }

    /// At least one iteration; ZF says whether all of them are done.
    fn piece(&mut self, insn: &Instruction, moves: bool, shift: u8) -> Done {
        self.reach(RDI, SA, true, shift)?;
        self.least(GUEST_RCX)?;
        if moves {
            self.asm.store(field!(string_to), SB);
            self.reach(RSI, SC, false, shift)?;
            self.least(SC)?;
        }
        self.asm.mov(SC, SA, true);
        let own = if moves { RSI } else { RDI };
        self.emit(Instruction::with2(Code::Xchg_rm64_r64, q(own), q(SB)))?;
        if moves {
            self.asm.store(field!(string_rdi), RDI);
            self.asm.load(RDI, field!(string_to));
        }
        let mut host = *insn;
        host.set_segment_prefix(Register::None);
        host.set_op0_kind(OpKind::MemoryESRDI);
        if moves {
            host.set_op1_kind(OpKind::MemorySegRSI);
        }
        self.encode(&host)?;
        self.asm.lea(own, Mem::indexed(SB, SA, shift, 0), !self.narrow);
        if moves {
            self.asm.load(RDI, field!(string_rdi));
            self.asm.lea(RDI, Mem::indexed(RDI, SA, shift, 0), !self.narrow);
        }
        self.retire_iterations()?;
        self.emit(Instruction::with2(Code::Sub_rm64_r64, q(GUEST_RCX), q(SA)))
    }

    /// The host address of what an index register points to in [`SB`], and how many elements
    /// follow in its page in `count`; [`SC`] is lost.
    fn reach(&mut self, index: u8, count: u8, write: bool, shift: u8) -> Done {
        let tag = if write { offset_of!(Plane, write) } else { offset_of!(Plane, read) };
        self.asm.pext(SB, index, field!(index_mask));
        self.asm.load(SC, tlb_field(self.plane, SB, tag));
        self.asm.load(SB, tlb_field(self.plane, SB, offset_of!(Plane, delta)));
        self.asm.lea(count, Mem::indexed(SC, index, 0, 0), true);
        let last = PAGE - (1 << shift);
        self.emit(Instruction::with2(Code::Cmp_rm64_imm32, q(count), last))?;
        let mut missed = None;
        self.asm.unless(NOT_ABOVE, |asm| {
            asm.push_mem(field!(string_flags));
            asm.bytes(&[0x9d]); // popfq
            missed = Some(asm.jmp_forward());
        });
        self.miss(missed, Why::Tlb(Place { base: index, disp: 0 }, write));
        self.asm.lea(SB, Mem::indexed(SB, index, 0, 0), true);
        self.emit(Instruction::with1(Code::Neg_rm64, q(count)))?;
        self.asm.lea(count, Mem::at(count, PAGE), true);
        self.emit(Instruction::with2(Code::Shr_rm64_imm8, q(count), u32::from(shift)))
    }

    /// The lesser of [`SA`] and another register, in [`SA`].
    fn least(&mut self, other: u8) -> Done {
        self.emit(Instruction::with2(Code::Cmp_rm64_r64, q(SA), q(other)))?;
        self.emit(Instruction::with2(Code::Cmova_r64_rm64, q(SA), q(other)))
    }

    fn flags_back(&mut self) {
        self.asm.push_mem(field!(string_flags));
        self.asm.bytes(&[0x9d]); // popfq
    }

    fn emit(&mut self, insn: Result<Instruction, IcedError>) -> Done {
        let insn = insn.map_err(|_| Untranslated)?;
        self.encode(&insn)
    }

    /// CLD, which system software executes when nobody knows that DF is clear.
    pub(super) fn cld(&mut self) -> Done {
        self.handler_unless_zero(|asm| asm.load(SC, field!(backward)));
        Ok(())
    }
}
