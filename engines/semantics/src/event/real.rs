//! Delivery through the interrupt vector table of real mode (SDM volume 3, 20.1.4).

use super::Event;
use crate::{Ctx, Stop};
use vcpu_state::SegReg;
use x86_defs::{gpr::RSP, rflags};

impl Ctx<'_> {
    pub(super) fn deliver_real(&mut self, event: Event) -> Result<(), Stop> {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > self.cpu.idtr.limit.into() {
            return Err(self.gp(event.gate_error()));
        }
        let entry: u32 = self.load_linear(self.cpu.idtr.base.wrapping_add(offset))?;
        let (flags, cs) = (self.cpu.rflags(), *self.cpu.segment(SegReg::Cs));
        let frame = [flags & 0xffff, cs.selector.into(), self.cpu.rip & 0xffff];
        let ss = *self.cpu.segment(SegReg::Ss);
        let sp = self.push_frame(&ss, true, self.cpu.gpr[RSP], &frame, 2, 0, 0)?;
        self.cpu.gpr[RSP] = sp;
        self.cpu.set_rflags(flags & !(rflags::IF | rflags::TF | rflags::AC | rflags::RF));
        self.load_paragraph(SegReg::Cs, (entry >> 16) as u16);
        self.cpu.rip = (entry & 0xffff).into();
        Ok(())
    }
}
