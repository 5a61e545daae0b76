//! How the kernel is entered and left: bounce frames and IRET (`arch-x86/xen-x86_64.h`, and
//! `create_bounce_frame` of Xen's documentation of its PV interface).

use crate::{
    guest,
    memory::Memory,
    vcpus::{Callback, Vcpu},
};
use engine::CpuView;
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    gpr::{R11, RAX, RCX, RSP},
    rflags,
    segment::{
        ATTR_ACCESSED, ATTR_CODE, ATTR_DB, ATTR_DPL, ATTR_G, ATTR_L, ATTR_P, ATTR_RW, ATTR_S,
    },
};
use xen_abi::{
    errno::Errno,
    trap::{IN_SYSCALL, IretContext, selector},
};
use zerocopy::IntoBytes;

/// What the kernel is entered for.
#[derive(Clone, Copy, Debug)]
pub struct Bounce {
    pub to: Callback,
    pub error: Option<u32>,
}

const FLAT: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_S | ATTR_DPL | ATTR_P | ATTR_G;
const CODE64: u16 = FLAT | ATTR_CODE | ATTR_L;
const CODE32: u16 = FLAT | ATTR_CODE | ATTR_DB;
const DATA: u16 = FLAT | ATTR_DB;

/// One of the hypervisor's flat segments.
pub fn flat(selector: u16) -> Segment {
    let attr = match selector {
        selector::CS64 => CODE64,
        selector::CS32 => CODE32,
        _ => DATA,
    };
    Segment { selector, base: 0, limit: u32::MAX, attr }
}

/// What the processor would not let a program have in RFLAGS.
pub const PRIVILEGED: u64 = rflags::IOPL | rflags::NT | rflags::VM | rflags::VIF | rflags::VIP;

/// What is a vCPU's own while it runs: neither needs the domain.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    pub memory: &'a Memory,
    /// Where its information is.
    pub info: u64,
}

impl Vcpu {
    pub fn is_masked(&self, own: Own<'_>) -> bool {
        own.memory.load(own.info) >> 8 & 0xff != 0
    }

    pub fn set_mask(&self, own: Own<'_>, masked: bool) {
        // The mask is a byte behind the pending one.
        own.memory.store_byte(own.info + 1, u8::from(masked));
    }

    /// From a program to the kernel, or back: tables and the base of GS.
    fn toggle(&mut self, cpu: &mut dyn CpuView) {
        self.in_kernel = !self.in_kernel;
        cpu.enter(self.in_kernel);
        let gs = cpu.segment(SegReg::Gs);
        std::mem::swap(&mut gs.base, &mut self.other_gs);
    }

    /// Enters the kernel. `Err` where it cannot be: the domain ends.
    pub fn bounce(
        &mut self,
        own: Own<'_>,
        cpu: &mut dyn CpuView,
        bounce: Bounce,
    ) -> Result<(), Errno> {
        let from_kernel = self.in_kernel;
        if bounce.to.address == 0 {
            return Err(Errno::Inval);
        }
        let cs = cpu.segment(SegReg::Cs).selector;
        let ss = cpu.segment(SegReg::Ss).selector;
        let regs = *cpu.regs();
        if !from_kernel {
            self.toggle(cpu);
        }
        let masked = self.is_masked(own);
        let stack = if from_kernel { regs.gpr[RSP] } else { self.kernel_sp };
        let shown_cs = if from_kernel { cs & !3 } else { cs };
        let flags = regs.rflags & !rflags::IF | if masked { 0 } else { rflags::IF };
        let shown_cs = u64::from(shown_cs) | u64::from(masked) << 32;
        let (rcx, r11, rsp) = (regs.gpr[RCX], regs.gpr[R11], regs.gpr[RSP]);
        let frame = [rcx, r11, regs.rip, shown_cs, flags, rsp, u64::from(ss)];
        let Some(error) = bounce.error else {
            return self.push(own, cpu, bounce.to, stack, &frame);
        };
        let [rcx, r11, rest @ ..] = frame;
        let [rip, cs, flags, rsp, ss] = rest;
        let frame = [rcx, r11, u64::from(error), rip, cs, flags, rsp, ss];
        self.push(own, cpu, bounce.to, stack, &frame)
    }

    /// Puts a frame on the kernel's stack and enters it.
    fn push(
        &self,
        own: Own<'_>,
        cpu: &mut dyn CpuView,
        to: Callback,
        stack: u64,
        frame: &[u64],
    ) -> Result<(), Errno> {
        let top = stack & !15;
        let at = top.wrapping_sub(frame.len() as u64 * 8);
        guest::write_bytes(cpu, at, frame.as_bytes())?;
        if to.masks_events {
            self.set_mask(own, true);
        }
        *cpu.segment(SegReg::Cs) = flat(selector::CS64);
        *cpu.segment(SegReg::Ss) = flat(selector::SS);
        let regs = cpu.regs();
        regs.gpr[RSP] = at;
        regs.rip = to.address;
        regs.rflags &= !(rflags::TF | rflags::AC | rflags::RF | PRIVILEGED);
        regs.rflags |= rflags::IF;
        Ok(())
    }

    /// The kernel returns: what it has put on its stack goes to the registers.
    pub fn iret(&mut self, own: Own<'_>, cpu: &mut dyn CpuView) -> Result<(), Errno> {
        let at = cpu.regs().gpr[RSP];
        let context: IretContext = guest::read(cpu, at)?;
        let to_user = context.cs & 3 == 3;
        if to_user && self.user_root == 0 {
            return Err(Errno::Inval);
        }
        let descriptors = self.descriptors(own.memory);
        let cs = descriptors.code_segment(cpu, context.cs as u16 | 3);
        let ss = descriptors.stack_segment(cpu, context.ss as u16 | 3);
        let (Ok(cs), Ok(ss)) = (cs, ss) else { return self.fail(own, cpu, &context) };
        if to_user {
            self.toggle(cpu);
        }
        self.nmi_masked = false;
        *cpu.segment(SegReg::Cs) = cs;
        *cpu.segment(SegReg::Ss) = ss;
        let regs = cpu.regs();
        regs.rip = context.rip;
        regs.gpr[RSP] = context.rsp;
        regs.gpr[RAX] = context.rax;
        regs.rflags = context.rflags & rflags::DEFINED & !PRIVILEGED | rflags::IF | rflags::FIXED;
        if context.flags & IN_SYSCALL == 0 {
            (regs.gpr[R11], regs.gpr[RCX]) = (context.r11, context.rcx);
        } else {
            // As SYSRET leaves them.
            (regs.gpr[R11], regs.gpr[RCX]) = (context.rflags, context.rip);
        }
        self.set_mask(own, context.rflags & rflags::IF == 0);
        Ok(())
    }

    /// What the kernel wants to return to is nowhere: its failsafe handler hears of that, with the
    /// data segments before the frame.
    fn fail(
        &self,
        own: Own<'_>,
        cpu: &mut dyn CpuView,
        context: &IretContext,
    ) -> Result<(), Errno> {
        if self.failsafe.address == 0 {
            return Err(Errno::Inval);
        }
        let mut data = [SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs].into_iter();
        let [ds, es, fs, gs] =
            [(); 4].map(|()| data.next().map_or(0, |which| u64::from(cpu.segment(which).selector)));
        let masked = self.is_masked(own);
        let frame = [
            context.rcx,
            context.r11,
            ds,
            es,
            fs,
            gs,
            context.rip,
            context.cs & 0xffff | u64::from(masked) << 32,
            context.rflags,
            context.rsp,
            context.ss & 0xffff,
        ];
        let stack = cpu.regs().gpr[RSP].wrapping_add(size_of::<IretContext>() as u64);
        self.push(own, cpu, self.failsafe, stack, &frame)
    }
}
