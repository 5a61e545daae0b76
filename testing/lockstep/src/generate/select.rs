//! Which instructions the oracle can judge: what user code may execute natively, and whose
//! result is the instruction's own and not the host kernel's, clock's or configuration's.

use crate::case::Mode;
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, Register};
use std::arch::is_x86_feature_detected as detected;

/// The host has it, and user code may use it.
fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | FPU | FPU287
        | FPU387 | MMX | FXSR | SSE | SSE2 | CLFSH | MULTIBYTENOP | PAUSE | PREFETCHW | CET_IBT => {
            true
        }
        // Privileged or #UD in user mode, if they do not fault earlier.
        MSR | SYSCALL | MONITOR => true,
        SSE3 => detected!("sse3"),
        SSSE3 => detected!("ssse3"),
        SSE4_1 => detected!("sse4.1"),
        SSE4_2 => detected!("sse4.2"),
        POPCNT => detected!("popcnt"),
        CMPXCHG16B => detected!("cmpxchg16b"),
        MOVBE => detected!("movbe"),
        AES => detected!("aes"),
        PCLMULQDQ => detected!("pclmulqdq"),
        CLFLUSHOPT | CLWB => flush_kinds(feature),
        XSAVE => detected!("xsave"),
        SHA => detected!("sha"),
        AVX => detected!("avx"),
        AVX2 => detected!("avx2"),
        FMA => detected!("fma"),
        F16C => detected!("f16c"),
        BMI1 => detected!("bmi1"),
        BMI2 => detected!("bmi2"),
        LZCNT => detected!("lzcnt"),
        ADX => detected!("adx"),
        FSGSBASE => crate::native::host_has_fsgsbase(),
        _ => false,
    }
}

/// CPUID leaf 7, EBX bits 23 and 24.
fn flush_kinds(feature: CpuidFeature) -> bool {
    let bit = if feature == CpuidFeature::CLWB { 24 } else { 23 };
    std::arch::x86_64::__cpuid_count(7, 0).ebx >> bit & 1 != 0
}

/// Instructions that tell or change what belongs to the host or its kernel, not to the case:
/// identification, time, randomness, descriptor tables, selectors of the host's GDT, shadow
/// stacks, and (by hypervisor or kernel) emulated ones.
fn foreign(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cpuid
            | Rdtsc
            | Rdtscp
            | Rdpmc
            | Rdpid
            | Rdrand
            | Rdseed
            | Xgetbv
            | Pause
            | Syscall
            | Sysenter
            | Int1
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Lar
            | Lsl
            | Verr
            | Verw
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | Arpl
            | Xabort
            | Xbegin
            | Xend
            | Xtest
            | Monitor
            | Mwait
            | Vmcall
            | Vmmcall
            | Rsm
            | Xsetbv
            | Xrstor
            | Xrstor64
            | Xsaveopt
            | Xsaveopt64
            | Xsavec
            | Xsavec64
            | Xsaves
            | Xsaves64
            | Xrstors
            | Xrstors64
            | Loadall
            | Umov
            | Reservednop
    )
}

/// The case may contain the instruction.
pub fn allowed(insn: &Instruction, mode: Mode) -> bool {
    if insn.is_invalid() || !code_allowed(insn.code(), mode) {
        return false;
    }
    // Loading a segment register needs the host's GDT.
    let foreign = match insn.mnemonic() {
        // EDX:EAX selects components, and must not be an address that selects the host's own.
        Mnemonic::Xsave | Mnemonic::Xsave64 => {
            let used = [insn.memory_base(), insn.memory_index()].map(|r| r.full_register());
            used.contains(&Register::RAX) || used.contains(&Register::RDX)
        }
        // A system call of the host.
        Mnemonic::Int => insn.immediate8() == 0x80,
        Mnemonic::Mov | Mnemonic::Pop => insn.op0_register().is_segment_register(),
        Mnemonic::Jmp | Mnemonic::Call => {
            insn.is_jmp_far()
                || insn.is_call_far()
                || insn.is_jmp_far_indirect()
                || insn.is_call_far_indirect()
        }
        _ => false,
    };
    !foreign
}

pub fn code_allowed(code: Code, mode: Mode) -> bool {
    let info = code.op_code();
    let in_mode = match mode {
        // Near branches of 16 bits are AMD's alone.
        Mode::Long => info.mode64() && info.intel_decoder64(),
        Mode::Compat | Mode::Seg32 => info.mode32(),
        Mode::Seg16 => info.mode16(),
    };
    in_mode
        && info.is_instruction()
        && !info.fwait()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|&f| host_has(f))
        && !foreign(info.mnemonic())
}

/// Every code that [`code_allowed`] lets in.
pub fn codes(mode: Mode) -> Vec<Code> {
    Code::values().filter(|&code| code_allowed(code, mode)).collect()
}
