//! SYSCALL from user mode, and SYSRET to it, of 64-bit code: executed in place (SDM volume 2).
//!
//! What they do to general registers and to RFLAGS is done here, and the other level's tables
//! become the present ones. CS, SS and the level itself are only noted in
//! [`State::level`](crate::state::State::level): translated code does not look at them, since
//! blocks are made for one level, and whatever leaves it makes them true first; see
//! [`crate::levels`], which also says when neither may be executed so.

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::{Alu, Mem},
    jumps,
    levels::{SYSCALL, SYSRET},
    regs::{GUEST_RCX, SA, SB, SC},
    state::{field, gpr, level_selector, selector},
};
use iced_x86::{Code, Instruction};
use vcpu_state::SegReg;
use x86_defs::{gpr::R11, rflags};

/// The TLB's planes.
const SUPERVISOR: usize = 0;
const USER: usize = 2;

/// Bits of R11 that SYSRET takes, and that [`State::rest`](crate::state::State::rest) holds; the
/// others have places of their own, or lead to the handler.
const REST: u64 = 0x3c_7fd7 & !(rflags::STATUS | rflags::IF | rflags::AC | rflags::TF);

impl Lowerer<'_> {
    /// To its handler if the word is not zero.
    pub(super) fn unless_zero(&mut self, word: Mem) {
        self.asm.load(SC, word);
        let mut patch = None;
        self.asm.unless_rcx_zero(|asm| patch = Some(asm.jmp_forward()));
        self.handler_from(patch);
    }

    pub(super) fn syscall(&mut self, insn: &Instruction) -> Done {
        if self.narrow || self.plane != USER {
            return Err(Untranslated);
        }
        self.unless_zero(field!(syscall_bad));
        let asm = &mut self.asm;
        asm.pushfq();
        asm.pop(SC);
        asm.alu_imm(Alu::And, SC, rflags::STATUS as i32);
        for part in [field!(intf), field!(ac), field!(rest)] {
            asm.alu_mem(Alu::Or, SC, part);
        }
        asm.store(gpr(R11 as u8), SC);
        for part in [field!(intf), field!(rest)] {
            asm.load(SB, part);
            asm.alu_mem(Alu::And, SB, field!(syscall_keeps));
            asm.store(part, SB);
        }
        // The last one's.
        asm.alu_imm(Alu::And, SB, rflags::DF as i32);
        asm.store(field!(backward), SB);
        // The mask has it, or this was not reached.
        asm.store_imm(field!(ac), 0, true);
        asm.alu_mem(Alu::And, SC, field!(syscall_keeps));
        self.set_status();
        let next = insn.next_ip().wrapping_sub(super::BASE) as i64;
        self.page_relative(GUEST_RCX, next);
        self.asm.load(SA, field!(lstar));
        self.enter_level(SUPERVISOR, SYSCALL);
        Ok(())
    }

    pub(super) fn sysret(&mut self, insn: &Instruction) -> Done {
        if insn.code() != Code::Sysretq || self.narrow || !self.supervisor {
            return Err(Untranslated);
        }
        self.unless_zero(field!(sysret_bad));
        // An interrupt that waits for its window might be taken.
        self.unless_zero(field!(held));
        // TF and AC: what follows is not, or not always, for translated code.
        self.asm.load(SC, gpr(R11 as u8));
        self.asm.pext(SC, SC, field!(sysret_odd));
        let mut patch = None;
        self.asm.unless_rcx_zero(|asm| patch = Some(asm.jmp_forward()));
        self.handler_from(patch);
        self.asm.mov(SA, GUEST_RCX, true);
        self.canonical();
        let asm = &mut self.asm;
        asm.load(SC, gpr(R11 as u8));
        for (part, mask, fixed) in [
            (field!(rest), REST, rflags::FIXED as i32),
            (field!(intf), rflags::IF, 0),
            (field!(backward), rflags::DF, 0),
        ] {
            asm.mov(SB, SC, true);
            asm.alu_imm(Alu::And, SB, mask as i32);
            if fixed != 0 {
                asm.alu_imm(Alu::Or, SB, fixed);
            }
            asm.store(part, SB);
        }
        asm.store_imm(field!(ac), 0, true);
        self.set_status();
        self.enter_level(USER, SYSRET);
        Ok(())
    }

    /// The status flags become those in [`SC`], which is lost. POPF takes many times as long as
    /// what sets none of them, which is what most kernels want of SYSCALL.
    fn set_status(&mut self) {
        let asm = &mut self.asm;
        asm.alu_imm(Alu::And, SC, rflags::STATUS as i32);
        let none = asm.branch(4);
        asm.push(SC);
        asm.popfq();
        let done = asm.jmp_forward();
        asm.land(none);
        // 1: not zero, not negative, of odd parity, without any carry.
        asm.mov_imm32(SC, 0);
        asm.alu_imm(Alu::Add, SC, 1);
        asm.patch(done);
    }

    /// Control goes to the linear address in [`SA`] with the rights of another level. No flag
    /// changes.
    fn enter_level(&mut self, plane: usize, level: u64) {
        let asm = &mut self.asm;
        asm.store_imm(field!(level), level as i32, true);
        for (segment, stack) in [(SegReg::Cs, false), (SegReg::Ss, true)] {
            asm.load(SC, level_selector(plane == USER, stack));
            asm.store(selector(segment as u8), SC);
        }
        asm.load(SC, jumps::space_of(plane));
        asm.store(field!(space), SC);
        asm.load(SC, jumps::table_of(plane));
        asm.store(field!(table), SC);
        self.retire();
        let missed = self.thunks.jump_missed;
        jumps::look_up(&mut self.asm, |asm| asm.jmp(missed));
    }
}
