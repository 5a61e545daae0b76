//! Power-on values, and what INIT and SIPI change (SDM volume 3, table 10-1).

use crate::*;
use x86_defs::{cr::cr0, dr, msr};

impl VcpuState {
    /// Power-on values of vCPU `id`; only 0, the bootstrap processor, runs.
    pub fn reset(id: u32) -> Self {
        let data = Segment { limit: 0xffff, attr: 0x93, ..Segment::default() };
        let mut reg = [data; 8];
        reg[SegReg::Cs as usize] =
            Segment { selector: 0xf000, base: 0xffff_0000, attr: 0x9b, ..data };
        reg[SegReg::Ldtr as usize].attr = 0x82;
        reg[SegReg::Tr as usize].attr = 0x8b;
        let table = Table { base: 0, limit: 0xffff };
        let mut msrs = Msrs::default();
        msrs.set(msr::IA32_PAT, msr::PAT_RESET);
        msrs.set(msr::IA32_MISC_ENABLE, msr::MISC_ENABLE_FAST_STRINGS);
        Self {
            regs: Regs { gpr: [0; 16], rip: 0xfff0, rflags: 2 },
            segments: Segments { reg, gdtr: table, idtr: table },
            control: Control { cr0: cr0::CD | cr0::NW | cr0::ET, xcr0: 1, ..Control::default() },
            debug: Debug { dr: [0; 4], dr6: dr::DR6_RESET, dr7: dr::DR7_RESET },
            fpu: FpuState::reset(),
            msrs,
            events: Events::default(),
            mp: if id == 0 { MpState::Running } else { MpState::WaitForSipi },
            tsc: Tsc::default(),
            apic: ApicState::reset(id),
        }
    }

    /// INIT: what reset does, but the FPU, MSRs, TSC, CR0's CD and NW, and the APIC's ID and
    /// base stay.
    pub fn init(&mut self, id: u32) {
        const CD_NW: u64 = cr0::CD | cr0::NW;
        let old = std::mem::replace(self, Self::reset(id));
        self.fpu = old.fpu;
        self.msrs = old.msrs;
        self.tsc = old.tsc;
        self.control.xcr0 = old.control.xcr0;
        self.control.cr0 = self.control.cr0 & !CD_NW | old.control.cr0 & CD_NW;
        self.apic.base = old.apic.base;
        self.apic.regs[2] = old.apic.regs[2];
        self.mp = if id == 0 { MpState::Running } else { MpState::WaitForSipi };
    }

    /// SIPI, if the vCPU waits for one; ignored otherwise.
    pub fn sipi(&mut self, vector: u8) {
        if self.mp == MpState::WaitForSipi {
            let cs = self.segment_mut(SegReg::Cs);
            (cs.selector, cs.base) = (u16::from(vector) << 8, u64::from(vector) << 12);
            self.regs.rip = 0;
            self.mp = MpState::Running;
        }
    }
}

impl Default for Debug {
    fn default() -> Self {
        Self { dr: [0; 4], dr6: dr::DR6_RESET, dr7: dr::DR7_RESET }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saved_state::{Reader, Writer};

    #[test]
    fn saved_sections_restore_the_same_state() {
        let mut state = VcpuState::reset(1);
        state.fpu.set_xmm(3, 7);
        state.msrs.set(msr::LSTAR, 1 << 47);
        state.events.exception =
            Raised::Pending(Exception { vector: 14, error: Some(2), payload: 5 });
        let mut writer = Writer::default();
        state.save(1, &mut writer);
        let mut reader = Reader::new(writer.finish()).unwrap();
        assert_eq!(VcpuState::restore(1, &mut reader).unwrap(), state);
        reader.finish().unwrap();
    }

    #[test]
    fn init_keeps_the_fpu_and_starts_at_the_sipi_vector() {
        let mut state = VcpuState::reset(1);
        state.fpu.set_xmm(0, 9);
        state.regs.gpr[0] = 5;
        state.init(1);
        assert_eq!((state.regs.gpr[0], state.fpu.xmm(0)), (0, 9));
        state.sipi(0x9a);
        assert_eq!((state.segment(SegReg::Cs).base, state.mp), (0x9a000, MpState::Running));
        state.sipi(0x11);
        assert_eq!(state.segment(SegReg::Cs).base, 0x9a000);
    }
}
