//! MSRs: which the kernel keeps, their reset values, and the filter.

use crate::{os, refused};
use engine::Error;
use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vcpu_state::{Msrs, Tsc};
use x86_defs::msr::*;

/// What a vCPU's MSR section has under KVM, where the kernel and the guest's CPUID have it.
const CANDIDATES: &[u32] = &[
    IA32_SYSENTER_CS,
    IA32_SYSENTER_ESP,
    IA32_SYSENTER_EIP,
    IA32_MISC_ENABLE,
    IA32_PAT,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
    IA32_SPEC_CTRL,
    IA32_XSS,
    IA32_DEBUGCTL,
    IA32_MCG_STATUS,
    IA32_MCG_CTL,
    IA32_MTRR_FIX64K_00000,
    IA32_MTRR_FIX16K_80000,
    IA32_MTRR_FIX16K_A0000,
    IA32_MTRR_DEF_TYPE,
    KVM_WALL_CLOCK_NEW,
    KVM_SYSTEM_TIME_NEW,
    KVM_STEAL_TIME,
    KVM_PV_EOI_EN,
    KVM_POLL_CONTROL,
];

/// Machine-check banks: those of every engine, instead of the kernel's 32.
const MC_BANKS: u32 = 10;
/// With IA32_MCG_CTL, and nothing else that is optional.
pub(crate) const MCG_CAP: u64 = 0x100 | MC_BANKS as u64;
/// Four for each bank.
const MC_REGISTERS: std::ops::Range<u32> = IA32_MC0_CTL..IA32_MC0_CTL + 4 * MC_BANKS;

/// Base and mask of the eight variable-range MTRRs (SDM volume 3, 12.11.2.3).
const VARIABLE_MTRRS: std::ops::Range<u32> = IA32_MTRR_PHYSBASE0..IA32_MTRR_PHYSBASE0 + 16;
const FIXED_4K_MTRRS: std::ops::RangeInclusive<u32> = IA32_MTRR_FIX4K_C0000..=IA32_MTRR_FIX4K_F8000;

/// Those that a reset state lists even though they have their reset values.
const ALWAYS: &[u32] = &[IA32_PAT, IA32_MISC_ENABLE];

fn reset_value(index: u32) -> u64 {
    match index {
        IA32_PAT => PAT_RESET,
        IA32_MISC_ENABLE => MISC_ENABLE_FAST_STRINGS,
        IA32_MCG_CTL => !0,
        KVM_POLL_CONTROL => 1,
        _ => 0,
    }
}

fn entries(list: impl IntoIterator<Item = (u32, u64)>) -> Result<KvmMsrs, Error> {
    let entries: Vec<_> = list
        .into_iter()
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    KvmMsrs::from_entries(&entries).map_err(|_| Error::Unsupported("so many MSRs"))
}

fn read(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut list = entries([(index, 0)]).ok()?;
    let got = fd.get_msrs(&mut list).ok()?;
    (got == 1).then(|| list.as_slice().first().map_or(0, |e| e.data))
}

fn write(fd: &VcpuFd, list: &[(u32, u64)]) -> Result<(), Error> {
    let set = fd.set_msrs(&entries(list.iter().copied())?).map_err(refused("KVM_SET_MSRS"))?;
    match list.get(set) {
        None => Ok(()),
        Some((index, value)) => {
            Err(Error::State(format!("MSR {index:#x} cannot be {value:#x} here")))
        }
    }
}

/// The candidates that this kernel keeps for a vCPU whose CPUID is set: those that can be read
/// and given their reset values. Some can be read although the guest has not the feature.
pub(crate) fn kept(fd: &VcpuFd) -> Vec<u32> {
    let mtrrs = VARIABLE_MTRRS.chain(FIXED_4K_MTRRS);
    let all = CANDIDATES.iter().copied().chain(mtrrs).chain(MC_REGISTERS);
    let works =
        |index: u32| read(fd, index).is_some() && write(fd, &[(index, reset_value(index))]).is_ok();
    all.filter(|index| works(*index)).collect()
}

pub(crate) fn save(fd: &VcpuFd, kept: &[u32]) -> Result<Msrs, Error> {
    let mut list = entries(kept.iter().map(|index| (*index, 0)))?;
    let got = fd.get_msrs(&mut list).map_err(os("KVM_GET_MSRS"))?;
    if got != kept.len() {
        return Err(Error::Unsupported("an MSR that it had before"));
    }
    let mut out = Msrs::default();
    for e in list.as_slice() {
        if e.data != reset_value(e.index) || ALWAYS.contains(&e.index) {
            out.set(e.index, e.data);
        }
    }
    Ok(out)
}

/// What is absent gets its reset value. What the kernel does not keep must have it.
pub(crate) fn restore(fd: &VcpuFd, kept: &[u32], msrs: &Msrs) -> Result<(), Error> {
    for (index, value) in &msrs.0 {
        if !kept.contains(index) && *value != reset_value(*index) {
            return Err(Error::State(format!("MSR {index:#x} does not exist here")));
        }
    }
    let value = |index: &u32| (*index, msrs.get(*index).unwrap_or(reset_value(*index)));
    write(fd, &kept.iter().map(value).collect::<Vec<_>>())
}

pub(crate) fn save_tsc(fd: &VcpuFd, khz: u32) -> Tsc {
    let get = |index| read(fd, index).unwrap_or(0);
    Tsc {
        value: get(IA32_TSC),
        khz,
        adjust: get(IA32_TSC_ADJUST),
        deadline: get(IA32_TSC_DEADLINE),
    }
}

/// As [`restore_tsc`] says of what the kernel makes of it.
pub(crate) fn set_tsc(fd: &VcpuFd, value: u64) -> Result<(), Error> {
    write(fd, &[(IA32_TSC, value)])
}

/// All but the deadline, which the APIC's mode decides whether it can be set.
///
/// The kernel takes values that lie within a second of where another vCPU's TSC is by now
/// for one common TSC (and so 0 for that of the VM), which is what a restored machine wants.
pub(crate) fn restore_tsc(fd: &VcpuFd, tsc: &Tsc) -> Result<(), Error> {
    write(fd, &[(IA32_TSC, tsc.value)])?;
    if tsc.adjust != 0 || read(fd, IA32_TSC_ADJUST).is_some_and(|old| old != 0) {
        write(fd, &[(IA32_TSC_ADJUST, tsc.adjust)])?;
    }
    Ok(())
}

/// Also where it is 0, which disarms what was armed before.
pub(crate) fn restore_deadline(fd: &VcpuFd, tsc: &Tsc) -> Result<(), Error> {
    if tsc.deadline == 0 && read(fd, IA32_TSC_DEADLINE).unwrap_or(0) == 0 {
        return Ok(());
    }
    write(fd, &[(IA32_TSC_DEADLINE, tsc.deadline)])
}

/// MSRs of things that the machine does not have although the kernel would serve some of
/// them: Hyper-V's, performance counters, nested virtualization. They go to the host, which
/// refuses them.
const FILTERED: &[(u32, u32)] = &[
    (0x4000_0000, 0x200),
    (0x0c1, 8),    // IA32_PMC0 to 7
    (0x186, 8),    // IA32_PERFEVTSEL0 to 7
    (0x309, 8),    // fixed counters
    (0x38d, 4),    // fixed-counter and global control
    (0x480, 0x20), // VMX capabilities
];

pub(crate) fn set_filter(vm: &VmFd) -> Result<(), Error> {
    let deny = [0u8; 64];
    let ranges: Vec<_> = FILTERED
        .iter()
        .map(|(base, msr_count)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: *base,
            msr_count: *msr_count,
            bitmap: &deny,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges).map_err(os("KVM_X86_SET_MSR_FILTER"))
}
