//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, and the KVM hypercall (SDM volume 2).

use crate::{Cpu, Ctx, Insn, Stop};
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    cr::efer,
    exception::UD,
    gpr::{R11, RAX, RCX, RDX, RSP},
    is_canonical_48, rflags,
};

/// Flat 64-bit code at level 0; level 3 with [`USER`].
const CODE64: u16 = 0xa09b;
/// Flat 32-bit code.
const CODE32: u16 = 0xc09b;
/// Flat data.
const DATA: u16 = 0xc093;
const USER: u16 = 3 << 5;

fn flat(selector: u16, attr: u16) -> Segment {
    Segment { selector, base: 0, limit: !0, attr }
}

/// SYSCALL. In compatibility mode only AMD's processors have it.
pub fn syscall(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let cpu = &mut *ctx.cpu;
    let long = cpu.mode.is64();
    if cpu.efer & efer::SCE == 0 || !(long || cpu.mode.protected && cpu.is_amd()) {
        return Err(cpu.fault(UD));
    }
    let flags = cpu.rflags() & !rflags::RF;
    cpu.gpr[RCX] = cpu.rip;
    let kept = if cpu.mode.long {
        cpu.gpr[R11] = flags;
        cpu.rip = if long { cpu.hot.lstar } else { cpu.hot.cstar };
        flags & !cpu.hot.sfmask
    } else {
        cpu.rip = cpu.hot.star & 0xffff_ffff;
        flags & !(rflags::VM | rflags::IF)
    };
    load_syscall_segments(cpu);
    cpu.set_rflags(kept & !rflags::RF);
    Ok(())
}

/// CS and SS as SYSCALL loads them. The mode does not follow yet.
pub fn load_syscall_segments(cpu: &mut Cpu) {
    let [[cs, ss], _] = selectors(cpu);
    let code = if cpu.mode.long { CODE64 } else { CODE32 };
    *cpu.segment_mut(SegReg::Cs) = flat(cs, code);
    *cpu.segment_mut(SegReg::Ss) = flat(ss, DATA);
}

/// The selectors in CS and SS after SYSCALL, and after SYSRET to 64-bit mode.
#[inline]
pub fn selectors(cpu: &Cpu) -> [[u16; 2]; 2] {
    let (to, back) = ((cpu.hot.star >> 32) as u16 & !3, (cpu.hot.star >> 48) as u16);
    [[to, to.wrapping_add(8)], [back.wrapping_add(16) | 3, back.wrapping_add(8) | 3]]
}

/// CS and SS as SYSRET loads them. The mode does not follow yet.
pub fn load_sysret_segments<const LONG: bool>(cpu: &mut Cpu) {
    let base = (cpu.hot.star >> 48) as u16;
    let (selector, attr) = if LONG { (base.wrapping_add(16), CODE64) } else { (base, CODE32) };
    *cpu.segment_mut(SegReg::Cs) = flat(selector | 3, attr | USER);
    *cpu.segment_mut(SegReg::Ss) = flat(base.wrapping_add(8) | 3, DATA | USER);
}

/// SYSRET to compatibility or protected mode, and with `LONG` to 64-bit mode.
pub fn sysret<const LONG: bool>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let cpu = &mut *ctx.cpu;
    if cpu.efer & efer::SCE == 0 || !(cpu.mode.is64() || cpu.mode.protected && cpu.is_amd()) {
        return Err(cpu.fault(UD));
    }
    ctx.need_cpl0()?;
    let cpu = &mut *ctx.cpu;
    let target = cpu.gpr[RCX];
    // AMD's processors fault later, in the new mode; nothing distinguishes that safely.
    if LONG && !is_canonical_48(target) {
        return Err(ctx.gp(0));
    }
    load_sysret_segments::<LONG>(cpu);
    cpu.rip = if LONG { target } else { target & 0xffff_ffff };
    let flags = match cpu.mode.long {
        true => cpu.gpr[R11] & 0x3c_7fd7,
        false => cpu.rflags() | rflags::IF,
    };
    cpu.set_rflags(flags);
    Ok(())
}

pub fn sysenter(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let cpu = &mut *ctx.cpu;
    if cpu.mode.long && cpu.is_amd() {
        return Err(cpu.fault(UD));
    }
    let selector = cpu.hot.sysenter_cs as u16 & !3;
    if !cpu.mode.protected || selector == 0 {
        return Err(ctx.gp(0));
    }
    let mask = if cpu.mode.long { !0 } else { 0xffff_ffff };
    cpu.gpr[RSP] = cpu.hot.sysenter_esp & mask;
    cpu.rip = cpu.hot.sysenter_eip & mask;
    let code = if cpu.mode.long { CODE64 } else { CODE32 };
    *cpu.segment_mut(SegReg::Cs) = flat(selector, code);
    *cpu.segment_mut(SegReg::Ss) = flat(selector.wrapping_add(8), DATA);
    let flags = cpu.rflags() & !(rflags::VM | rflags::IF);
    cpu.set_rflags(flags);
    Ok(())
}

/// SYSEXIT, and with `LONG` to 64-bit mode.
pub fn sysexit<const LONG: bool>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let cpu = &mut *ctx.cpu;
    if cpu.mode.long && cpu.is_amd() {
        return Err(cpu.fault(UD));
    }
    let base = cpu.hot.sysenter_cs as u16 & !3;
    if !cpu.mode.protected || cpu.mode.cpl != 0 || base == 0 {
        return Err(ctx.gp(0));
    }
    let (rip, rsp) = (cpu.gpr[RDX], cpu.gpr[RCX]);
    if LONG && !(is_canonical_48(rip) && is_canonical_48(rsp)) {
        return Err(ctx.gp(0));
    }
    let (code, data, attr) = if LONG { (32, 40, CODE64) } else { (16, 24, CODE32) };
    *cpu.segment_mut(SegReg::Cs) = flat(base.wrapping_add(code) | 3, attr | USER);
    *cpu.segment_mut(SegReg::Ss) = flat(base.wrapping_add(data) | 3, DATA | USER);
    let mask = if LONG { !0 } else { 0xffff_ffff };
    (cpu.rip, cpu.gpr[RSP]) = (rip & mask, rsp & mask);
    cpu.leave = true;
    cpu.update_mode();
    Ok(())
}

pub fn swapgs(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    if !ctx.cpu.mode.is64() {
        return Err(ctx.cpu.fault(UD));
    }
    ctx.need_cpl0()?;
    let cpu = &mut *ctx.cpu;
    std::mem::swap(&mut cpu.seg[SegReg::Gs as usize].base, &mut cpu.hot.kernel_gs_base);
    Ok(())
}

/// VMCALL and VMMCALL: no hypercall is offered, which KVM's interface says with -KVM_ENOSYS,
/// or -KVM_EPERM to user mode. Without KVM's CPUID leaves the instructions do not exist.
pub fn hypercall(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let [_, ebx, ecx, edx] = ctx.cpu.cpuid.lookup(0x4000_0000, 0);
    if [ebx, ecx, edx] != [0x4b4d_564b, 0x564b_4d56, 0x4d] {
        return Err(ctx.cpu.fault(UD));
    }
    let result: i64 = if ctx.cpu.mode.cpl == 0 { -1000 } else { -1 };
    let mask = if ctx.cpu.mode.is64() { !0 } else { 0xffff_ffff };
    ctx.cpu.gpr[RAX] = result as u64 & mask;
    Ok(())
}

impl crate::Cpu {
    /// The guest's processor calls itself AMD's or Hygon's.
    pub(crate) fn is_amd(&self) -> bool {
        // "Auth" and "Hygo".
        matches!(self.cpuid.lookup(0, 0)[1], 0x6874_7541 | 0x6f67_7948)
    }
}
