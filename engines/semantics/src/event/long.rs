//! Delivery in long mode: 16-byte gates, the interrupt stack table (SDM volume 3, 6.14).

use super::{Event, Kind};
use crate::{
    Ctx, Stop,
    seg::{index, is_null, null_stack},
};
use vcpu_state::SegReg;
use x86_defs::{
    exception::{GP, NP, SS, TS},
    gpr::RSP,
    is_canonical_48, rflags,
    segment::{ATTR_DB, ATTR_L, system_type as ty},
};

/// A gate of the IDT.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    /// Leaves IF as it is.
    trap: bool,
}

impl Ctx<'_> {
    pub(super) fn deliver_long(&mut self, event: Event) -> Result<(), Stop> {
        let cpl = self.cpu.mode.cpl;
        let gate = self.long_gate(&event)?;
        if is_null(gate.selector) {
            return Err(self.gp(0));
        }
        let mut found = self.need_descriptor(gate.selector, GP)?;
        let (dpl, attr) = (found.desc.dpl(), found.desc.attr());
        let long = attr & (ATTR_L | ATTR_DB) == ATTR_L;
        if !found.code() || dpl > cpl || !long {
            return Err(self.gp(index(gate.selector)));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(NP, index(gate.selector)));
        }
        let new_cpl = if found.conforming() { cpl } else { dpl };
        let stack = match gate.ist {
            0 if new_cpl == cpl => self.cpu.gpr[RSP],
            0 => self.tss_long(4 + 8 * u32::from(new_cpl))?,
            ist => self.tss_long(0x1c + 8 * u32::from(ist))?,
        };
        if !is_canonical_48(gate.offset) {
            return Err(self.gp(0));
        }
        let flags = self.cpu.rflags();
        let frame = [
            event.error.unwrap_or(0).into(),
            self.cpu.rip,
            self.cpu.segment(SegReg::Cs).selector.into(),
            event.pushed_flags(flags),
            self.cpu.gpr[RSP],
            self.cpu.segment(SegReg::Ss).selector.into(),
        ];
        let skip = usize::from(event.error.is_none());
        let mut bytes = [0; 48];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(frame) {
            *to = word.to_le_bytes();
        }
        let bytes = &bytes[8 * skip..];
        let sp = (stack & !15).wrapping_sub(bytes.len() as u64);
        if !is_canonical_48(stack) || !is_canonical_48(sp) {
            return Err(self.cpu.fault_code(SS, 0));
        }
        self.mark_accessed(&mut found)?;
        self.store_frame(sp, bytes, new_cpl)?;

        let cpu = &mut *self.cpu;
        cpu.gpr[RSP] = sp;
        cpu.rip = gate.offset;
        let selector = gate.selector & !3 | u16::from(new_cpl);
        *cpu.segment_mut(SegReg::Cs) = found.segment(selector);
        if new_cpl != cpl {
            *cpu.segment_mut(SegReg::Ss) = null_stack(new_cpl.into(), new_cpl);
        }
        let cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        cpu.rflags &= !(cleared | if gate.trap { 0 } else { rflags::IF });
        cpu.update_mode();
        Ok(())
    }

    fn long_gate(&mut self, event: &Event) -> Result<Gate, Stop> {
        let offset = u64::from(event.vector) * 16;
        if offset + 15 > self.cpu.idtr.limit.into() {
            return Err(self.gp(event.gate_error()));
        }
        let at = self.cpu.idtr.base.wrapping_add(offset);
        let low: u64 = self.load_linear(at)?;
        let high: u64 = self.load_linear(at.wrapping_add(8))?;
        let kind = (low >> 40 & 0x1f) as u16;
        let dpl = (low >> 45 & 3) as u8;
        let usable = event.kind != Kind::Software || dpl >= self.cpu.mode.cpl;
        if !matches!(kind, ty::INTERRUPT_GATE | ty::TRAP_GATE) || !usable {
            return Err(self.gp(event.gate_error()));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.cpu.fault_code(NP, event.gate_error()));
        }
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            ist: (low >> 32 & 7) as u8,
            trap: kind == ty::TRAP_GATE,
        })
    }

    /// A stack pointer of the 64-bit TSS.
    pub(crate) fn tss_long(&mut self, offset: u32) -> Result<u64, Stop> {
        let tr = *self.cpu.segment(SegReg::Tr);
        if offset + 7 > tr.limit {
            return Err(self.cpu.fault_code(TS, index(tr.selector)));
        }
        self.load_linear(tr.base.wrapping_add(offset.into()))
    }
}
