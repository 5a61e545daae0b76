//! The supervisor's instructions that only move a flag or a base: they are executed in place.
//!
//! RFLAGS is spread over [`crate::state::State`]: the status flags are the host's, IF and AC
//! have words of their own, and the rest is a third. Code of the supervisor's planes runs at
//! level 0 only, or in all of a guest at level 3.

use super::{BASE, Done, Lowerer, Untranslated};
use crate::{
    asm::Mem,
    jumps,
    regs::{GUEST_RSP, SA, SB, SC},
    state::field,
};
use iced_x86::{Code, Instruction, Mnemonic, Register};
use x86_defs::rflags;

/// The TLB's planes.
const SUPERVISOR: usize = 0;
const SUPERVISOR_AC: usize = 1;

/// No instruction that follows belongs to the same block: its rights are others.
pub fn ends(insn: &Instruction, plane: usize) -> bool {
    match insn.mnemonic() {
        Mnemonic::Stac => plane == SUPERVISOR,
        Mnemonic::Clac => plane == SUPERVISOR_AC,
        _ => false,
    }
}

impl Lowerer<'_> {
    pub(super) fn needs_supervisor(&self) -> Done {
        if self.supervisor { Ok(()) } else { Err(Untranslated) }
    }

    pub(super) fn cli(&mut self) -> Done {
        self.needs_supervisor()?;
        self.asm.store_imm(field!(intf), 0, true);
        Ok(())
    }

    /// The instruction that follows is executed before an interrupt is taken (SDM volume 2,
    /// STI): requests are looked at between blocks only, and there is one that follows in this
    /// block.
    pub(super) fn sti(&mut self) -> Done {
        self.needs_supervisor()?;
        if self.last {
            return Err(Untranslated);
        }
        self.asm.load(SC, field!(held));
        let mut patch = None;
        self.asm.unless_rcx_zero(|asm| patch = Some(asm.jmp_forward()));
        self.handler_from(patch);
        self.asm.store_imm(field!(intf), rflags::IF as i32, true);
        Ok(())
    }

    /// MOV from CR0, CR2, CR3 or CR4, which only handlers change. CR8 is the host's to know.
    pub(super) fn mov_from_control(&mut self, insn: &Instruction) -> Done {
        self.needs_supervisor()?;
        if insn.code() != Code::Mov_r64_cr || self.narrow {
            return Err(Untranslated);
        }
        let from = match insn.op1_register() {
            Register::CR0 => field!(cr0),
            Register::CR2 => field!(cr2),
            Register::CR3 => field!(cr3),
            Register::CR4 => field!(cr4),
            _ => return Err(Untranslated),
        };
        self.load_register(insn.op0_register(), from, true)
    }

    pub(super) fn swapgs(&mut self) -> Done {
        self.needs_supervisor()?;
        self.asm.load(SA, field!(gs));
        self.asm.load(SB, field!(kernel_gs));
        self.asm.store(field!(gs), SB);
        self.asm.store(field!(kernel_gs), SA);
        Ok(())
    }

    /// SIDT, SGDT: only handlers change the registers. (EDK II keeps a pointer beside its IDT,
    /// and looks for it in each of its functions.)
    pub(super) fn store_table(&mut self, insn: &Instruction) -> Done {
        self.needs_supervisor()?;
        if self.short.is_some() {
            return Err(Untranslated);
        }
        let idt = [field!(idt_limit), field!(idt_base)];
        let gdt = [field!(gdt_limit), field!(gdt_base)];
        let ([limit, base], len) = match insn.code() {
            Code::Sidt_m1664 if !self.narrow => (idt, 10),
            Code::Sgdt_m1664 if !self.narrow => (gdt, 10),
            Code::Sidt_m1632 if self.narrow => (idt, 6),
            Code::Sgdt_m1632 if self.narrow => (gdt, 6),
            _ => return Err(Untranslated),
        };
        let place = self.operand(insn, true, len)?;
        let to = place.host();
        let behind = to.disp.checked_add(2).ok_or(Untranslated)?;
        self.asm.load(SC, limit);
        self.asm.store16(to, SC);
        self.asm.load(SC, base);
        match self.narrow {
            true => self.asm.store32(Mem { disp: behind, ..to }, SC),
            false => self.asm.store(Mem { disp: behind, ..to }, SC),
        }
        Ok(())
    }

    pub(super) fn pushf(&mut self, insn: &Instruction) -> Done {
        if insn.code() != Code::Pushfq {
            return Err(Untranslated);
        }
        let place = self.stack(GUEST_RSP, -8, true);
        self.asm.lea(SB, place.host(), true);
        self.flags_image();
        self.asm.store(Mem::at(SB, 0), SC);
        self.asm.lea(GUEST_RSP, Mem::at(GUEST_RSP, -8), true);
        Ok(())
    }

    /// RFLAGS in [`SC`]; [`SA`] is lost.
    pub(super) fn flags_image(&mut self) {
        self.asm.pushfq();
        self.asm.pop(SC);
        self.asm.pext(SC, SC, field!(status_mask));
        self.asm.pdep(SC, SC, field!(status_mask));
        for part in [field!(intf), field!(ac), field!(rest)] {
            self.asm.load(SA, part);
            self.asm.lea(SC, Mem::indexed(SC, SA, 0, 0), true);
        }
    }

    /// STAC, CLAC: what follows has other rights to memory.
    pub(super) fn set_ac(&mut self, insn: &Instruction) -> Done {
        self.needs_supervisor()?;
        let set = insn.mnemonic() == Mnemonic::Stac;
        self.asm.store_imm(field!(ac), if set { rflags::AC as i32 } else { 0 }, true);
        if !ends(insn, self.plane) {
            return Ok(());
        }
        self.asm.load(SC, field!(space));
        self.asm.lea(SC, Mem::at(SC, if set { 1 } else { -1 }), true);
        self.asm.store(field!(space), SC);
        self.exit_plane = if set { SUPERVISOR_AC } else { SUPERVISOR };
        self.asm.load(SC, jumps::table_of(self.exit_plane));
        self.asm.store(field!(table), SC);
        self.exit(insn.next_ip().wrapping_sub(BASE) as i64);
        self.exit_plane = self.plane;
        Ok(())
    }
}
