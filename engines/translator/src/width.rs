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
    /// 16-bit code of real or virtual-8086 mode, on a 16-bit stack.
    Real,
    /// 16-bit code of protected or compatibility mode, on a 16-bit stack.
    Short,
}

impl Width {
    /// Of what the vCPU executes now; `None` if that is not translated.
    #[inline]
    pub fn of(cpu: &Cpu) -> Option<Self> {
        match cpu.mode.code {
            CodeSize::Bits64 => Some(Self::Wide),
            CodeSize::Bits32 => narrow(cpu).then_some(Self::Narrow),
            CodeSize::Bits16 => short(cpu),
        }
    }

    /// As decoders count.
    pub fn bits(self) -> u32 {
        match self {
            Self::Wide => 64,
            Self::Narrow => 32,
            Self::Real | Self::Short => 16,
        }
    }

    /// Not 64-bit code.
    pub fn is_narrow(self) -> bool {
        self != Self::Wide
    }

    /// 16-bit code.
    pub fn is_short(self) -> bool {
        matches!(self, Self::Real | Self::Short)
    }
}

/// Registers have nothing in the halves that only 64-bit code can see: those of code that has
/// just left 64-bit mode may (SDM volume 1, 3.4.1.1).
fn low(cpu: &Cpu) -> bool {
    cpu.gpr.iter().take(8).fold(0, |all, gpr| all | gpr) >> 32 == 0
}

/// Segments are flat.
fn narrow(cpu: &Cpu) -> bool {
    let mode = &cpu.mode;
    if mode.stack != 4 || mode.real_like() {
        return false;
    }
    let cs = cpu.segment(SegReg::Cs);
    cs.base == 0
        && cs.limit == !0
        && low(cpu)
        && [SegReg::Ss, SegReg::Ds, SegReg::Es].iter().all(|which| {
            let segment = cpu.segment(*which);
            segment.base == 0 && covers(segment)
        })
}

/// All offsets of 16 bits are in the code segment. Data segments may be any.
fn short(cpu: &Cpu) -> Option<Width> {
    let mode = &cpu.mode;
    if mode.stack != 2 || cpu.segment(SegReg::Cs).limit < 0xffff || !low(cpu) {
        return None;
    }
    if !mode.real_like() {
        return Some(Width::Short);
    }
    // In virtual-8086 mode a load of a segment register also sets the limit, to this.
    let usual = |which: &SegReg| cpu.segment(*which).limit == 0xffff;
    (!mode.v86 || DATA.iter().all(usual)).then_some(Width::Real)
}

/// Segment registers that code may load without more.
const DATA: [SegReg; 4] = [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs];

/// Accesses by 32-bit offsets raise nothing, but for those that reach beyond 4 GiB: expand-up
/// writable data up to there (SDM volume 3, 3.4.5.1).
pub fn covers(segment: &Segment) -> bool {
    const KIND: u16 = ATTR_P | ATTR_S | ATTR_CODE | ATTR_EC | ATTR_RW;
    segment.limit == !0 && segment.attr & KIND == ATTR_P | ATTR_S | ATTR_RW
}
