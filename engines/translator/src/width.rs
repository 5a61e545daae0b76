//! Which code can be translated, and how wide it is.

use semantics::{CodeSize, Cpu};
use vcpu_state::{SegReg, Segment};
use x86_defs::segment::{ATTR_CODE, ATTR_EC, ATTR_P, ATTR_RW, ATTR_S};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 64-bit code.
    Wide,
    /// 32-bit code, of protected or compatibility mode, whose offsets are linear addresses.
    Narrow,
}

impl Width {
    /// Of what the vCPU executes now; `None` if that is not translated.
    #[inline]
    pub fn of(cpu: &Cpu) -> Option<Self> {
        if cpu.mode.is64() {
            return Some(Self::Wide);
        }
        narrow(cpu).then_some(Self::Narrow)
    }

    /// As decoders count.
    pub fn bits(self) -> u32 {
        match self {
            Self::Wide => 64,
            Self::Narrow => 32,
        }
    }

    pub fn is_narrow(self) -> bool {
        self == Self::Narrow
    }
}

/// Segments are flat, and registers have nothing in the halves that 32-bit code cannot see:
/// those of code that has just left 64-bit mode may (SDM volume 1, 3.4.1.1).
fn narrow(cpu: &Cpu) -> bool {
    let mode = &cpu.mode;
    if mode.code != CodeSize::Bits32 || mode.stack != 4 || mode.real_like() {
        return false;
    }
    let cs = cpu.segment(SegReg::Cs);
    let upper = cpu.gpr.iter().take(8).fold(0, |all, gpr| all | gpr) >> 32;
    cs.base == 0
        && cs.limit == !0
        && upper == 0
        && [SegReg::Ss, SegReg::Ds, SegReg::Es].iter().all(|which| {
            let segment = cpu.segment(*which);
            segment.base == 0 && covers(segment)
        })
}

/// Accesses by 32-bit offsets raise nothing, but for those that reach beyond 4 GiB: expand-up
/// writable data up to there (SDM volume 3, 3.4.5.1).
pub fn covers(segment: &Segment) -> bool {
    const KIND: u16 = ATTR_P | ATTR_S | ATTR_CODE | ATTR_EC | ATTR_RW;
    segment.limit == !0 && segment.attr & KIND == ATTR_P | ATTR_S | ATTR_RW
}
