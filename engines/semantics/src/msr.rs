//! RDMSR and WRMSR (SDM volume 4). What is the local APIC's or a personality's is the host's;
//! what nobody has is #GP(0).

use crate::{Cpu, Ctx, Insn, Stop};
use cpu_model::TRANSLATE_FEATURE_MSRS;
use vcpu_state::SegReg;
use x86_defs::{
    cr::{cr0, efer},
    gpr::{RAX, RCX, RDX},
    is_canonical_48, msr,
};

/// Machine-check banks that IA32_MCG_CAP names.
const MC_BANKS: u32 = 10;
/// AMD's SYSCFG, HWCR (with the TSC at a fixed frequency) and DE_CFG (with LFENCE dispatch
/// serializing), as its processors come out of reset and firmware (APM volume 2, appendix A).
const AMD: &[(u32, u64)] = &[(0xc001_0010, 0), (0xc001_0015, 1 << 24), (0xc001_1029, 2)];
/// Variable-range MTRRs that IA32_MTRRCAP names.
const MTRR_RANGES: u32 = 8;

pub fn rdmsr(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    let index = ctx.cpu.gpr[RCX] as u32;
    let value = ctx.read_msr(index)?;
    ctx.cpu.gpr[RAX] = value & 0xffff_ffff;
    ctx.cpu.gpr[RDX] = value >> 32;
    Ok(())
}

pub fn wrmsr(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    let cpu = &ctx.cpu;
    let index = cpu.gpr[RCX] as u32;
    let value = cpu.gpr[RDX] << 32 | cpu.gpr[RAX] & 0xffff_ffff;
    ctx.write_msr(index, value)?;
    ctx.cpu.serialize();
    Ok(())
}

impl Ctx<'_> {
    pub(crate) fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        let cpu = &mut *self.cpu;
        if let Some(value) = cpu.hot.get_mut(index) {
            return Ok(*value);
        }
        Ok(match index {
            msr::EFER => cpu.efer,
            msr::FS_BASE => cpu.segment(SegReg::Fs).base,
            msr::GS_BASE => cpu.segment(SegReg::Gs).base,
            msr::IA32_TSC => self.tsc(),
            msr::IA32_TSC_ADJUST => cpu.tsc_adjust,
            msr::IA32_MTRRCAP => 0x500 | u64::from(MTRR_RANGES),
            msr::IA32_MCG_CAP => 0x100 | u64::from(MC_BANKS),
            msr::IA32_FEATURE_CONTROL => 1,
            msr::IA32_PRED_CMD => return Err(self.gp(0)),
            _ => match cpu.stored(index) {
                Some(value) => value,
                None => return self.host_rdmsr(index),
            },
        })
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        match index {
            msr::EFER => return self.set_efer(value),
            msr::FS_BASE | msr::GS_BASE if !is_canonical_48(value) => return Err(self.gp(0)),
            msr::FS_BASE => cpu.segment_mut(SegReg::Fs).base = value,
            msr::GS_BASE => cpu.segment_mut(SegReg::Gs).base = value,
            msr::IA32_TSC => {
                let offset = value.wrapping_sub(self.tsc());
                self.shift_tsc(offset);
            }
            msr::IA32_TSC_ADJUST => {
                let shift = value.wrapping_sub(cpu.tsc_adjust);
                self.shift_tsc(shift);
            }
            msr::IA32_PRED_CMD => {
                if value & !1 != 0 || !cpu.has_spec_ctrl() {
                    return Err(self.gp(0));
                }
            }
            msr::IA32_FEATURE_CONTROL | msr::IA32_MTRRCAP | msr::IA32_MCG_CAP => {
                return Err(self.gp(0));
            }
            // The trigger's value is an address; there is no microcode to load.
            msr::IA32_BIOS_UPDT_TRIG => {}
            _ => return self.write_plain(index, value),
        }
        Ok(())
    }

    /// MSRs whose writes only store, after a check.
    fn write_plain(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        let fine = match index {
            msr::LSTAR
            | msr::CSTAR
            | msr::KERNEL_GS_BASE
            | msr::IA32_SYSENTER_ESP
            | msr::IA32_SYSENTER_EIP => is_canonical_48(value),
            msr::SFMASK | msr::TSC_AUX => value >> 32 == 0,
            msr::IA32_PAT => value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
            msr::IA32_SPEC_CTRL => value & !cpu.spec_ctrl_offered() == 0,
            msr::IA32_MTRR_DEF_TYPE => value & !0xcff == 0 && memory_type(value as u8),
            msr::IA32_ARCH_CAPABILITIES | msr::IA32_PLATFORM_ID => false,
            // Writing zero, then CPUID, is how the revision is asked for.
            msr::IA32_BIOS_SIGN_ID => return Ok(()),
            _ => true,
        };
        if !fine {
            return Err(self.gp(0));
        }
        if let Some(at) = cpu.hot.get_mut(index) {
            *at = value;
        } else if cpu.stored(index).is_some() {
            cpu.msrs.set(index, value);
        } else {
            return self.host_wrmsr(index, value);
        }
        Ok(())
    }

    fn host_rdmsr(&mut self, index: u32) -> Result<u64, Stop> {
        let mut value = 0;
        match self.call(|host| host.rdmsr(index, &mut value)) {
            Ok(flow) => {
                self.call_flow(|_| flow);
                Ok(value)
            }
            Err(_) => Err(self.gp(0)),
        }
    }

    fn host_wrmsr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        self.cpu.look = true;
        match self.call(|host| host.wrmsr(index, value)) {
            Ok(flow) => {
                self.call_flow(|_| flow);
                Ok(())
            }
            Err(_) => Err(self.gp(0)),
        }
    }

    /// IA32_TSC and IA32_TSC_ADJUST move together (SDM volume 3, 18.17.3).
    fn shift_tsc(&mut self, by: u64) {
        let cpu = &mut *self.cpu;
        cpu.tsc_adjust = cpu.tsc_adjust.wrapping_add(by);
        cpu.tsc_offset = cpu.tsc_offset.wrapping_add(by);
        let offset = cpu.tsc_offset;
        self.call(|host| host.set_tsc_offset(offset));
    }

    /// SDM volume 3, 2.2.1 and 10.8.5: LMA follows from CR0.PG, and LME is fixed under paging.
    fn set_efer(&mut self, value: u64) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        let [_, _, _, edx] = cpu.cpuid.lookup(0x8000_0001, 0);
        let mut offered = efer::LMA;
        for (bit, flag) in [(11, efer::SCE), (29, efer::LME), (20, efer::NXE)] {
            if edx >> bit & 1 != 0 {
                offered |= flag;
            }
        }
        let new = value & !efer::LMA | cpu.efer & efer::LMA;
        let changed = new ^ cpu.efer;
        if value & !offered != 0 || changed & efer::LME != 0 && cpu.cr0 & cr0::PG != 0 {
            return Err(self.gp(0));
        }
        cpu.efer = new;
        if changed & efer::NXE != 0 {
            cpu.paging_changed();
        }
        cpu.leave = true;
        Ok(())
    }
}

impl Cpu {
    fn has_spec_ctrl(&self) -> bool {
        self.cpuid.lookup(7, 0)[3] >> 26 & 1 != 0
    }

    /// Bits of IA32_SPEC_CTRL: IBRS, STIBP and SSBD, and BHI_DIS_S as CPUID.7.2:EDX.BHI_CTRL
    /// has it (SDM volume 4, table 2-2).
    fn spec_ctrl_offered(&self) -> u64 {
        let bhi = self.cpuid.get(7, 2).map_or(0, |e| u64::from(e.edx) >> 4 & 1);
        7 | bhi << 10
    }

    /// The value of an MSR that is only storage, if this processor has it.
    fn stored(&self, index: u32) -> Option<u64> {
        let reset = match index {
            msr::IA32_PAT => msr::PAT_RESET,
            msr::IA32_MISC_ENABLE => msr::MISC_ENABLE_FAST_STRINGS,
            msr::IA32_SPEC_CTRL if self.has_spec_ctrl() => 0,
            msr::IA32_MCG_STATUS | msr::IA32_DEBUGCTL | msr::IA32_MTRR_DEF_TYPE => 0,
            msr::IA32_MCG_CTL => u64::MAX,
            msr::IA32_XSS if self.cpuid.lookup(0xd, 1)[0] & 8 != 0 => 0,
            _ if mtrr(index) => 0,
            _ if index.wrapping_sub(msr::IA32_MC0_CTL) < 4 * MC_BANKS => 0,
            _ => {
                let amd = if self.is_amd() { AMD } else { &[] };
                let known = TRANSLATE_FEATURE_MSRS.iter().chain(amd).find(|(i, _)| *i == index);
                return known.map(|(_, value)| self.msrs.get(index).unwrap_or(*value));
            }
        };
        Some(self.msrs.get(index).unwrap_or(reset))
    }
}

/// An MTRR that is only stored: memory types have no effect here.
fn mtrr(index: u32) -> bool {
    use msr::*;
    index.wrapping_sub(IA32_MTRR_PHYSBASE0) < 2 * MTRR_RANGES
        || matches!(
            index,
            IA32_MTRR_FIX64K_00000
                | IA32_MTRR_FIX16K_80000
                | IA32_MTRR_FIX16K_A0000
                | IA32_MTRR_FIX4K_C0000..=IA32_MTRR_FIX4K_F8000
        )
}

/// A memory type of an MTRR (SDM volume 3, table 12-8).
fn memory_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}
