//! Registers of the protocol from and to a vCPU's state.

use crate::arch::{RegId, Registers};
use vcpu_state::{MpState, SegReg, VcpuState};
use x86_defs::{cr::cr0, msr, rflags, xsave};

/// XSTATE_BV: which components of the XSAVE area are not in their initial state.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

pub(crate) fn all(state: &VcpuState) -> Registers {
    let mut bytes = Vec::new();
    for reg in RegId::all() {
        bytes.extend(get(state, reg).to_le_bytes().iter().take(reg.len()));
    }
    Registers { rip: state.regs.rip, bytes }
}

/// `None` if a value is not valid.
pub(crate) fn set_all(state: &mut VcpuState, regs: &Registers) -> Option<()> {
    let mut rest = regs.bytes.as_slice();
    for reg in RegId::all() {
        let (mine, others) = rest.split_at_checked(reg.len())?;
        let mut bytes = [0; 16];
        bytes.get_mut(..reg.len())?.copy_from_slice(mine);
        let value = u128::from_le_bytes(bytes);
        // What stays as it is need not be writable.
        if get(state, reg) != value {
            set(state, reg, value)?;
        }
        rest = others;
    }
    Some(())
}

pub(crate) fn get(state: &VcpuState, reg: RegId) -> u128 {
    let (regs, control, fpu) = (&state.regs, &state.control, &state.fpu);
    match reg {
        RegId::Gpr(n) => regs.gpr.get(n).copied().unwrap_or_default().into(),
        RegId::Rip => regs.rip.into(),
        RegId::Rflags => u128::from(regs.rflags as u32),
        RegId::Selector(which) => state.segment(which).selector.into(),
        RegId::St(n) => st(state, n),
        RegId::Fctrl => fpu.u16(xsave::FCW).into(),
        RegId::Fstat => fpu.u16(xsave::FSW).into(),
        RegId::Ftag => tag_word(state).into(),
        RegId::Fioff => fpu.u32(xsave::FIP).into(),
        RegId::Fiseg => fpu.u16(xsave::FIP + 4).into(),
        RegId::Fooff => fpu.u32(xsave::FDP).into(),
        RegId::Foseg => fpu.u16(xsave::FDP + 4).into(),
        RegId::Fop => fpu.u16(xsave::FOP).into(),
        RegId::Xmm(n) => fpu.xmm(n),
        RegId::Mxcsr => fpu.mxcsr().into(),
        RegId::Base(which) => state.segment(which).base.into(),
        RegId::YmmHigh(n) => fpu.ymm_hi(n),
        RegId::KernelGsBase => state.msrs.get(msr::KERNEL_GS_BASE).unwrap_or_default().into(),
        RegId::Cr0 => control.cr0.into(),
        RegId::Cr2 => control.cr2.into(),
        RegId::Cr3 => control.cr3.into(),
        RegId::Cr4 => control.cr4.into(),
        RegId::Cr8 => control.cr8.into(),
        RegId::Efer => control.efer.into(),
    }
}

/// `None` if the register cannot have this value. A selector is only the visible part of a
/// segment register, except in real and virtual-8086 mode, where it is the base, too.
pub(crate) fn set(state: &mut VcpuState, reg: RegId, value: u128) -> Option<()> {
    let low = value as u64;
    match reg {
        RegId::Gpr(n) => *state.regs.gpr.get_mut(n)? = low,
        RegId::Rip => {
            state.regs.rip = low;
            // Who moves a halted vCPU wants it to execute there.
            if state.mp == MpState::Halted {
                state.mp = MpState::Running;
            }
        }
        RegId::Rflags => state.regs.rflags = low & rflags::DEFINED | rflags::FIXED,
        RegId::Selector(which) => {
            let real = state.control.cr0 & cr0::PE == 0 || state.regs.rflags & rflags::VM != 0;
            let segment = state.segment_mut(which);
            segment.selector = u16::try_from(low).ok()?;
            if real {
                segment.base = low << 4;
            }
        }
        RegId::Base(which @ (SegReg::Fs | SegReg::Gs)) => state.segment_mut(which).base = low,
        RegId::Base(_) => return None,
        RegId::KernelGsBase => {
            state.msrs.set(msr::KERNEL_GS_BASE, low);
        }
        RegId::Cr0 => state.control.cr0 = low,
        RegId::Cr2 => state.control.cr2 = low,
        RegId::Cr3 => state.control.cr3 = low,
        RegId::Cr4 => state.control.cr4 = low,
        RegId::Cr8 => state.control.cr8 = u8::try_from(low).ok().filter(|&v| v < 16)?,
        RegId::Efer => state.control.efer = low,
        RegId::Xmm(n) => touch(state, SSE).set_xmm(n, value),
        RegId::YmmHigh(n) => touch(state, AVX).set_ymm_hi(n, value),
        RegId::Mxcsr => {
            let mxcsr = low as u32;
            if mxcsr & !xsave::MXCSR_MASK_VALUE != 0 {
                return None;
            }
            touch(state, SSE).set_u32(xsave::MXCSR, mxcsr);
        }
        _ => return set_x87(state, reg, value),
    }
    Some(())
}

fn touch(state: &mut VcpuState, component: u64) -> &mut vcpu_state::FpuState {
    let present = state.fpu.u64(xsave::XSTATE_BV);
    state.fpu.set_u64(xsave::XSTATE_BV, present | component);
    &mut state.fpu
}

fn set_x87(state: &mut VcpuState, reg: RegId, value: u128) -> Option<()> {
    let (low, word) = (value as u32, value as u16);
    let fpu = touch(state, X87);
    match reg {
        RegId::St(n) => {
            let at = xsave::ST + 16 * (n & 7);
            fpu.set_u64(at, value as u64);
            fpu.set_u16(at + 8, (value >> 64) as u16);
        }
        RegId::Fctrl => fpu.set_u16(xsave::FCW, word),
        RegId::Fstat => fpu.set_u16(xsave::FSW, word),
        RegId::Ftag => {
            let full = |n: u16| u16::from(word >> (2 * n) & 3 != 3) << n;
            fpu.set_u16(xsave::FTW, (0..8).map(full).sum());
        }
        RegId::Fioff => fpu.set_u32(xsave::FIP, low),
        RegId::Fiseg => fpu.set_u16(xsave::FIP + 4, word),
        RegId::Fooff => fpu.set_u32(xsave::FDP, low),
        RegId::Foseg => fpu.set_u16(xsave::FDP + 4, word),
        RegId::Fop => fpu.set_u16(xsave::FOP, word & 0x7ff),
        _ => return None,
    }
    Some(())
}

fn st(state: &VcpuState, n: usize) -> u128 {
    let at = xsave::ST + 16 * (n & 7);
    u128::from(state.fpu.u64(at)) | u128::from(state.fpu.u16(at + 8)) << 64
}

/// The full tag word (SDM volume 1, 8.1.7), of which the XSAVE area has only which registers
/// are empty. Tags belong to physical registers, ST(i) to the top of the stack.
fn tag_word(state: &VcpuState) -> u16 {
    const EMPTY: u16 = 3;
    let full = state.fpu.u16(xsave::FTW);
    let top = usize::from(state.fpu.u16(xsave::FSW) >> 11 & 7);
    let tag = |physical: usize| {
        if full >> physical & 1 == 0 {
            return EMPTY;
        }
        let value = st(state, (physical + 8 - top) & 7);
        let (exponent, significand) = ((value >> 64) as u16 & 0x7fff, value as u64);
        match (exponent, significand) {
            (0, 0) => 1,
            (0 | 0x7fff, _) => 2,
            (_, significand) if significand >> 63 == 0 => 2,
            _ => 0,
        }
    };
    (0..8).map(|physical| tag(physical) << (2 * physical)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each register takes a value and gives it back, and changes no other.
    #[test]
    fn registers_are_independent() {
        let mut state = VcpuState::reset(0);
        state.control.cr0 |= cr0::PE;
        state.fpu = vcpu_state::FpuState::init();
        for reg in RegId::all() {
            let value: u128 = match reg {
                RegId::Rflags => 0x246,
                RegId::Selector(_) => 0x10,
                RegId::Mxcsr => 0x1fa0,
                // The first register holds zero, the others are empty.
                RegId::Ftag => 0xfffd,
                RegId::Fop => 0x123,
                RegId::Cr8 => 9,
                RegId::St(_) => 0x4000_8123_4567_89ab_cdef,
                _ => {
                    (0x1122_3344_5566_7788_99aa_bbcc_ddee_ff01_u128)
                        & (u128::MAX >> (128 - 8 * reg.len().min(reg_bits(reg) / 8)))
                }
            };
            let mut changed = state.clone();
            set(&mut changed, reg, value).unwrap();
            assert_eq!(get(&changed, reg), value, "{reg:?}");
            for other in RegId::all().filter(|&other| other != reg) {
                let coupled = matches!((reg, other), (RegId::St(_) | RegId::Fstat, RegId::Ftag));
                if !coupled {
                    assert_eq!(get(&changed, other), get(&state, other), "{reg:?} {other:?}");
                }
            }
            let mut again = state.clone();
            set_all(&mut again, &all(&changed)).unwrap();
            assert_eq!(get(&again, reg), value, "{reg:?}");
        }
    }

    fn reg_bits(reg: RegId) -> usize {
        match reg {
            RegId::Fctrl | RegId::Fstat | RegId::Fiseg | RegId::Foseg => 16,
            _ => 8 * reg.len(),
        }
    }

    #[test]
    fn what_a_register_cannot_hold_is_refused() {
        let mut state = VcpuState::reset(0);
        assert_eq!(set(&mut state, RegId::Mxcsr, 0x1_0000), None);
        assert_eq!(set(&mut state, RegId::Selector(SegReg::Cs), 0x1_0000), None);
        assert_eq!(set(&mut state, RegId::Cr8, 16), None);
        set(&mut state, RegId::Selector(SegReg::Ds), 0x1234).unwrap();
        assert_eq!(state.segment(SegReg::Ds).base, 0x12340);
    }

    #[test]
    fn tags_say_what_the_registers_hold() {
        let mut state = VcpuState::reset(0);
        state.fpu = vcpu_state::FpuState::init();
        assert_eq!(tag_word(&state), 0xffff);
        // Two loaded: 1.0 on top (physical 6), 0.0 below it (physical 7).
        state.fpu.set_u16(xsave::FSW, 6 << 11);
        state.fpu.set_u16(xsave::FTW, 0xc0);
        set(&mut state, RegId::St(0), 0x3fff_8000_0000_0000_0000).unwrap();
        assert_eq!(tag_word(&state), 0x4fff);
        set(&mut state, RegId::St(0), 0x7fff_8000_0000_0000_0000).unwrap();
        assert_eq!(tag_word(&state), 0x6fff);
    }
}
