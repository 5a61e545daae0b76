//! Virtual-8086 mode extensions: INT n through the task's own vector table, and IRET with a
//! virtual interrupt flag (SDM volume 3, 21.3.3 and 21.3.4).

use crate::{Ctx, Stop};
use vcpu_state::SegReg;
use x86_defs::{cr::cr4, rflags};

impl Ctx<'_> {
    /// Virtual-8086 mode with its extensions.
    pub(crate) fn vme(&self) -> bool {
        self.cpu.mode.v86 && self.cpu.cr4 & cr4::VME != 0
    }

    /// The redirection bitmap, which precedes the I/O bitmap, leaves INT n to the task itself.
    pub(crate) fn redirects(&mut self, vector: u8) -> Result<bool, Stop> {
        let tr = *self.cpu.segment(SegReg::Tr);
        if !tr.usable() || tr.attr & 8 == 0 || tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let map: u16 = self.load_linear(tr.base.wrapping_add(0x66))?;
        let at = i64::from(map) - 32 + i64::from(vector / 8);
        let Some(at) = u64::try_from(at).ok().filter(|at| *at <= tr.limit.into()) else {
            return Err(self.gp(0));
        };
        let bits: u8 = self.load_linear(tr.base.wrapping_add(at))?;
        Ok(bits >> (vector % 8) & 1 == 0)
    }

    /// INT n as real mode does it, from the vector table at linear address 0.
    pub(crate) fn int_v86(&mut self, vector: u8) -> Result<(), Stop> {
        let offset = u64::from(vector) * 4;
        let mut entry = [0; 4];
        self.load_user_bytes(offset, &mut entry)?;
        let [ip0, ip1, cs0, cs1] = entry;
        let flags = self.cpu.rflags();
        let trusted = self.iopl() == 3;
        let image = if trusted { flags } else { virtual_image(flags) };
        let words = [image & 0xffff, self.cpu.segment(SegReg::Cs).selector.into(), self.cpu.rip];
        let ss = *self.cpu.segment(SegReg::Ss);
        let sp = self.push_frame(&ss, true, self.cpu.gpr[4], &words, 2, 3, 0)?;
        self.cpu.gpr[4] = sp;
        let cleared = if trusted { rflags::IF } else { rflags::VIF };
        self.cpu.set_rflags(flags & !(cleared | rflags::TF | rflags::NT));
        self.load_paragraph(SegReg::Cs, u16::from_le_bytes([cs0, cs1]));
        self.cpu.rip = u16::from_le_bytes([ip0, ip1]).into();
        Ok(())
    }

    /// RFLAGS after a 16-bit IRET or POPF below IOPL 3: IF goes to VIF. #GP(0) if that would
    /// let a pending virtual interrupt in, or sets TF.
    pub(crate) fn virtual_flags(&mut self, popped: u64) -> Result<u64, Stop> {
        let old = self.cpu.rflags();
        let wants = popped & rflags::IF != 0;
        if popped & rflags::TF != 0 || wants && old & rflags::VIP != 0 {
            return Err(self.gp(0));
        }
        let take = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
        let vif = if wants { rflags::VIF } else { 0 };
        Ok(old & !(take | rflags::VIF) | popped & take | vif)
    }
}

/// The 16-bit image of RFLAGS that a task below IOPL 3 sees.
pub(crate) fn virtual_image(flags: u64) -> u64 {
    let enabled = if flags & rflags::VIF != 0 { rflags::IF } else { 0 };
    flags & !rflags::IF | enabled | rflags::IOPL
}
