//! String instructions of 16-bit code, element by element.
//!
//! A REP is a loop: before each iteration registers are exact, so that the handler, or a second
//! attempt after a miss of the TLB, goes on from there. The word of requests is looked at each
//! time.

use super::{
    Done, Lowerer, Untranslated,
    short::{ES, segment},
};
use crate::{
    asm::{Mem, RAX, RDI},
    probe::Place,
    regs::{self, GUEST_RCX, SA, SC},
    state::field,
};
use iced_x86::{Code, Instruction, OpKind};

const RSI: u8 = 6;
/// Condition codes (SDM volume 1, appendix B).
const EQUAL: u8 = 4;
const NOT_EQUAL: u8 = 5;

/// What one iteration does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
}

/// With the size of an element.
fn kind(insn: &Instruction) -> Result<(Kind, u8), Untranslated> {
    Ok(match insn.code() {
        Code::Movsb_m8_m8 => (Kind::Movs, 1),
        Code::Movsw_m16_m16 => (Kind::Movs, 2),
        Code::Movsd_m32_m32 => (Kind::Movs, 4),
        Code::Cmpsb_m8_m8 => (Kind::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Kind::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Kind::Cmps, 4),
        Code::Stosb_m8_AL => (Kind::Stos, 1),
        Code::Stosw_m16_AX => (Kind::Stos, 2),
        Code::Stosd_m32_EAX => (Kind::Stos, 4),
        Code::Lodsb_AL_m8 => (Kind::Lods, 1),
        Code::Lodsw_AX_m16 => (Kind::Lods, 2),
        Code::Lodsd_EAX_m32 => (Kind::Lods, 4),
        Code::Scasb_AL_m8 => (Kind::Scas, 1),
        Code::Scasw_AX_m16 => (Kind::Scas, 2),
        Code::Scasd_EAX_m32 => (Kind::Scas, 4),
        _ => return Err(Untranslated),
    })
}

/// All addresses have 16 bits.
fn addresses(insn: &Instruction) -> bool {
    insn.op_kinds()
        .all(|kind| matches!(kind, OpKind::Register | OpKind::MemorySegSI | OpKind::MemoryESDI))
}

impl Lowerer<'_> {
    pub(super) fn short_string(&mut self, insn: &Instruction) -> Done {
        let (kind, size) = kind(insn)?;
        let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
        let homes = [RAX, RSI, RDI].iter().all(|r| regs::home(*r) == Some(*r));
        // An iteration would be an instruction of its own.
        if !addresses(insn) || !homes || repeated && self.counted {
            return Err(Untranslated);
        }
        self.handler_unless_zero(|asm| asm.load(SC, field!(backward)));
        if !repeated {
            return self.element(insn, kind, size);
        }
        let begin = self.asm.here();
        self.asm.movzx16(SC, GUEST_RCX);
        let some = self.asm.branch_rcx_zero();
        let over = self.asm.jmp_forward_short();
        self.asm.land(some);
        let none = self.asm.jmp_forward();
        self.asm.land(over);
        self.element(insn, kind, size)?;
        self.asm.lea(SC, Mem::at(GUEST_RCX, -1), false);
        self.asm.mov16(GUEST_RCX, SC);
        let mut ends = vec![none];
        if matches!(kind, Kind::Cmps | Kind::Scas) {
            let goes_on = if insn.has_repne_prefix() { NOT_EQUAL } else { EQUAL };
            self.asm.unless(goes_on, |asm| ends.push(asm.jmp_forward()));
        }
        // The last one is not followed by the handler, which would count it again.
        self.asm.movzx16(SC, GUEST_RCX);
        let last = self.asm.branch_rcx_zero();
        self.asm.load(SC, field!(poll));
        self.asm.load32(SC, Mem::at(SC, 0));
        let mut asked = None;
        self.asm.unless_rcx_zero(|asm| asked = Some(asm.jmp_forward()));
        self.handler_from(asked);
        self.asm.jmp(begin);
        self.asm.land(last);
        ends.into_iter().for_each(|end| self.asm.patch(end));
        Ok(())
    }

    fn element(&mut self, insn: &Instruction, kind: Kind, size: u8) -> Done {
        use Kind::{Cmps, Lods, Movs, Scas, Stos};
        let len = usize::from(size);
        if matches!(kind, Movs | Cmps | Lods) {
            self.asm.movzx16(SA, RSI);
            self.in_segment(segment(insn.memory_segment())?, false, len);
            let place = self.probe_at(Place::SA, false, len);
            if kind == Lods {
                self.asm.load_low(size, RAX, place.host());
            } else {
                self.asm.load_low(size, SC, place.host());
                self.asm.store(field!(temp), SC);
            }
        }
        if kind != Lods {
            self.asm.movzx16(SA, RDI);
            let write = matches!(kind, Movs | Stos);
            self.in_segment(ES, write, len);
            let place = self.probe_at(Place::SA, write, len);
            let own = if matches!(kind, Movs | Cmps) { SC } else { RAX };
            if own == SC {
                self.asm.load(SC, field!(temp));
            }
            match kind {
                Cmps | Scas => self.asm.cmp_low(size, own, place.host()),
                _ => self.asm.store_low(size, place.host(), own),
            }
        }
        let moved = [(RSI, matches!(kind, Movs | Cmps | Lods)), (RDI, kind != Lods)];
        for (register, _) in moved.into_iter().filter(|(_, moved)| *moved) {
            self.asm.lea(SC, Mem::at(register, size.into()), false);
            self.asm.mov16(register, SC);
        }
        Ok(())
    }
}
