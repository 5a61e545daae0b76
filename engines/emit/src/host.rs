//! Which instruction-set extensions the host has.

use std::sync::OnceLock;

use iced_x86::{CpuidFeature, Instruction};

/// True if the host executes the instruction: it has every extension that it belongs to.
pub(crate) fn executes(insn: &Instruction) -> bool {
    let features = insn.cpuid_features();
    !features.is_empty() && features.iter().all(|&feature| has(feature))
}

/// True if the host has AVX, and its operating system saves YMM registers.
pub(crate) fn has_avx() -> bool {
    static AVX: OnceLock<bool> = OnceLock::new();
    *AVX.get_or_init(|| std::is_x86_feature_detected!("avx"))
}

fn has(feature: CpuidFeature) -> bool {
    use std::is_x86_feature_detected as detected;
    match feature {
        CpuidFeature::INTEL8086
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::CMOV
        | CpuidFeature::MMX
        | CpuidFeature::SSE
        | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => detected!("sse3"),
        CpuidFeature::SSSE3 => detected!("ssse3"),
        CpuidFeature::SSE4_1 => detected!("sse4.1"),
        CpuidFeature::SSE4_2 => detected!("sse4.2"),
        CpuidFeature::POPCNT => detected!("popcnt"),
        CpuidFeature::LZCNT => detected!("lzcnt"),
        CpuidFeature::AES => detected!("aes"),
        CpuidFeature::PCLMULQDQ => detected!("pclmulqdq"),
        CpuidFeature::SHA => detected!("sha"),
        CpuidFeature::AVX => has_avx(),
        CpuidFeature::AVX2 => detected!("avx2"),
        CpuidFeature::FMA => detected!("fma"),
        CpuidFeature::F16C => detected!("f16c"),
        CpuidFeature::BMI1 => detected!("bmi1"),
        CpuidFeature::BMI2 => detected!("bmi2"),
        CpuidFeature::ADX => detected!("adx"),
        CpuidFeature::MOVBE => detected!("movbe"),
        CpuidFeature::GFNI => detected!("gfni"),
        CpuidFeature::VAES => detected!("vaes"),
        CpuidFeature::VPCLMULQDQ => detected!("vpclmulqdq"),
        _ => false,
    }
}
