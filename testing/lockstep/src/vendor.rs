//! What AMD's processors do otherwise than Intel's, by whose manual the engine goes where the two
//! differ. On a host of AMD's such cases are not judged when they differ.

use crate::{
    case::{Case, Mode, Outcome},
    defined::instruction_at,
    generate::encode::decode,
};
use iced_x86::{CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::sync::LazyLock;
use x86_defs::rflags;

/// The host's processor is AMD's, or made after one.
pub fn is_amd() -> bool {
    static AMD: LazyLock<bool> = LazyLock::new(|| cpu_model::is_amd(&cpu_model::host_table()));
    *AMD
}

/// One of a case's instructions, or the one at which it ended, is one of those that differ.
pub fn differs(mode: Mode, case: &Case, native: &Outcome) -> bool {
    let bytes = case.bytes();
    let one = |insn: &Instruction, bytes: &[u8]| of(mode, case, insn, bytes);
    let mut offset = 0;
    while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
        let insn = decode(rest, mode, case.rip(mode) + offset as u64);
        if one(&insn, rest) {
            return true;
        }
        offset += insn.len().max(1);
    }
    let ended = usize::try_from(native.rip.wrapping_sub(case.rip(mode))).ok();
    let rest = ended.and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    instruction_at(mode, case, native.rip).is_some_and(|insn| one(&insn, rest))
}

fn of(mode: Mode, case: &Case, insn: &Instruction, bytes: &[u8]) -> bool {
    let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    // A near branch with an operand-size prefix has an IP of 16 bits in 64-bit mode, too (APM volume 3,
    // 1.2.2 and the instructions' pages); Intel ignores the prefix (SDM volume 2, Jcc).
    let prefixes = bytes.iter().take_while(|byte| is_prefix(**byte, mode));
    let branch = insn.flow_control() != FlowControl::Next;
    let short_branch = mode == Mode::Long && branch && prefixes.clone().any(|byte| *byte == 0x66);
    // Alignment is checked of vectors, too, where RFLAGS.AC asks for it (APM volume 1, 4.3.2).
    let vectors = insn.encoding() == EncodingKind::VEX
        || (0..insn.op_count()).any(|n| insn.op_register(n).is_vector_register());
    let aligned = case.rflags & rflags::AC != 0 && memory && vectors;
    // An unmasked fault of the stack does not keep a store from being looked at first.
    let x87 = memory && is_x87(insn);
    // The alignment of what is not there.
    let sha = memory && insn.cpuid_features().contains(&CpuidFeature::SHA);
    // Which of the two it is goes by a prefix that means nothing to Intel's.
    let looped = matches!(insn.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne)
        && prefixes.clone().any(|byte| matches!(byte, 0xf2 | 0xf3));
    // MXCSR's flags before a store that faults.
    let half = memory && insn.mnemonic() == Mnemonic::Vcvtps2ph;
    // VEX.W, of which Intel's take no notice outside of 64-bit mode (SDM volume 2, PINSRB).
    let wide = mode != Mode::Long
        && matches!(insn.mnemonic(), Mnemonic::Vpextrd | Mnemonic::Vpinsrd)
        && bytes.iter().skip_while(|byte| **byte != 0xc4).nth(2).is_some_and(|byte| byte >> 7 != 0);
    // Whether their operand is fetched, which may be beyond the segment.
    let undefined = matches!(insn.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1);
    // Into 16 bits come 16 or 32 of memory (SDM and APM, MOVSXD).
    let extended = memory && insn.mnemonic() == Mnemonic::Movsxd && insn.op0_register().is_gpr16();
    // MXCSR may have MM, which Intel's has not (APM volume 1, 4.2.2).
    use Mnemonic::{Fxrstor, Fxrstor64, Ldmxcsr, Vldmxcsr, Xrstor, Xrstor64};
    let mxcsr =
        matches!(insn.mnemonic(), Fxrstor | Fxrstor64 | Ldmxcsr | Vldmxcsr | Xrstor | Xrstor64);
    // Which sums of a base and an offset that is not canonical are.
    let far = mode == Mode::Long
        && memory
        && matches!(insn.memory_segment(), Register::FS | Register::GS);
    // With LOCK it is CR8 (APM volume 3, MOV CRn).
    let control = (0..insn.op_count()).any(|n| insn.op_register(n).is_cr())
        && prefixes.clone().any(|byte| *byte == 0xf0);
    let others = [far, control, sha, looped, half, wide, undefined, extended, mxcsr];
    short_branch || aligned || x87 || others.contains(&true) || insn.is_vsib()
}

fn is_prefix(byte: u8, mode: Mode) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
        || mode == Mode::Long && byte & 0xf0 == 0x40
}

fn is_x87(insn: &Instruction) -> bool {
    use CpuidFeature::{FPU, FPU287, FPU387};
    insn.cpuid_features().iter().any(|feature| matches!(feature, FPU | FPU287 | FPU387))
}
