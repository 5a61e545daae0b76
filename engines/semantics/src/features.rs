//! Which instruction-set extensions the guest's CPUID gives: others are #UD.

use cpu_model::CpuidTable;
use iced_x86::{Code, CpuidFeature};
use std::sync::LazyLock;

/// One bit per entry of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaFeatures(u64);

/// Leaf, register (EAX to EDX as 0 to 3), bit.
type Where = (u32, usize, u32);

const TABLE: &[(CpuidFeature, Where)] = &[
    (CpuidFeature::MMX, (1, 3, 23)),
    (CpuidFeature::FXSR, (1, 3, 24)),
    (CpuidFeature::SSE, (1, 3, 25)),
    (CpuidFeature::SSE2, (1, 3, 26)),
    (CpuidFeature::CLFSH, (1, 3, 19)),
    (CpuidFeature::CMOV, (1, 3, 15)),
    (CpuidFeature::CX8, (1, 3, 8)),
    (CpuidFeature::SEP, (1, 3, 11)),
    (CpuidFeature::SSE3, (1, 2, 0)),
    (CpuidFeature::PCLMULQDQ, (1, 2, 1)),
    (CpuidFeature::MONITOR, (1, 2, 3)),
    (CpuidFeature::SSSE3, (1, 2, 9)),
    (CpuidFeature::FMA, (1, 2, 12)),
    (CpuidFeature::CMPXCHG16B, (1, 2, 13)),
    (CpuidFeature::SSE4_1, (1, 2, 19)),
    (CpuidFeature::SSE4_2, (1, 2, 20)),
    (CpuidFeature::MOVBE, (1, 2, 22)),
    (CpuidFeature::POPCNT, (1, 2, 23)),
    (CpuidFeature::AES, (1, 2, 25)),
    (CpuidFeature::XSAVE, (1, 2, 26)),
    (CpuidFeature::AVX, (1, 2, 28)),
    (CpuidFeature::F16C, (1, 2, 29)),
    (CpuidFeature::RDRAND, (1, 2, 30)),
    (CpuidFeature::FSGSBASE, (7, 1, 0)),
    (CpuidFeature::BMI1, (7, 1, 3)),
    (CpuidFeature::AVX2, (7, 1, 5)),
    (CpuidFeature::BMI2, (7, 1, 8)),
    (CpuidFeature::INVPCID, (7, 1, 10)),
    (CpuidFeature::RTM, (7, 1, 11)),
    (CpuidFeature::RDSEED, (7, 1, 18)),
    (CpuidFeature::ADX, (7, 1, 19)),
    (CpuidFeature::SMAP, (7, 1, 20)),
    (CpuidFeature::CLFLUSHOPT, (7, 1, 23)),
    (CpuidFeature::CLWB, (7, 1, 24)),
    (CpuidFeature::SHA, (7, 1, 29)),
    (CpuidFeature::GFNI, (7, 2, 8)),
    (CpuidFeature::VAES, (7, 2, 9)),
    (CpuidFeature::VPCLMULQDQ, (7, 2, 10)),
    (CpuidFeature::RDPID, (7, 2, 22)),
    (CpuidFeature::XSAVEOPT, (0xd, 0, 0)),
    (CpuidFeature::XSAVEC, (0xd, 0, 1)),
    (CpuidFeature::XSAVES, (0xd, 0, 3)),
    (CpuidFeature::SYSCALL, (0x8000_0001, 3, 11)),
    (CpuidFeature::RDTSCP, (0x8000_0001, 3, 27)),
    (CpuidFeature::LZCNT, (0x8000_0001, 2, 5)),
];

impl IsaFeatures {
    pub fn all() -> Self {
        Self(!0)
    }

    /// Of a table without any leaf: everything.
    pub fn of(table: &CpuidTable) -> Self {
        if table.entries.is_empty() {
            return Self::all();
        }
        let has = |(leaf, register, bit): Where| {
            let subleaf = u32::from(leaf == 0xd);
            table
                .get(leaf, subleaf)
                .is_some_and(|e| [e.eax, e.ebx, e.ecx, e.edx][register] >> bit & 1 != 0)
        };
        let bits = TABLE.iter().enumerate().filter(|(_, (_, at))| has(*at));
        Self(bits.map(|(n, _)| 1 << n).sum())
    }

    /// True for what the table does not list: such instructions have no switch.
    pub fn has(self, feature: CpuidFeature) -> bool {
        bit(feature) & !self.0 == 0
    }

    pub fn allow(self, instruction: &iced_x86::Instruction) -> bool {
        let wanted = WANTED.get(instruction.code() as usize).copied().unwrap_or(!0);
        wanted & !self.0 == 0
    }
}

/// Of a feature that the table lists.
fn bit(feature: CpuidFeature) -> u64 {
    TABLE.iter().position(|(f, _)| *f == feature).map_or(0, |n| 1 << n)
}

/// What each instruction asks for, by [`Code`].
static WANTED: LazyLock<Box<[u64]>> = LazyLock::new(|| {
    let of = |code: Code| code.cpuid_features().iter().fold(0, |sum, f| sum | bit(*f));
    Code::values().map(of).collect()
});
