//! Running instructions that may raise SIMD floating-point exceptions (SDM volume 1, 11.5).

use vcpu_state::FpuState;
use x86_defs::xsave;

use super::{Operand, Outcome, Stub};
use crate::stub_code::SimdControl;

impl Stub {
    pub(super) fn run_simd_fp(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
    ) -> Outcome {
        let before = fpu.mxcsr();
        let mut control = simd_control(before);
        let mut flags = *rflags;
        if before & MXCSR_UM == 0 {
            self.detect_tiny(fpu, gpr, &mut flags, operand, &mut control);
        } else {
            self.call(fpu, gpr, &mut flags, operand, &mut control);
        }
        let outcome = finish_simd_fp(fpu, before, &control);
        if outcome == Outcome::Done {
            *rflags = flags;
        }
        outcome
    }

    /// Runs with the underflow exception unmasked in effect.
    ///
    /// A tiny result then is an exception even if it is exact, which sets no flag while the
    /// exception is masked, unless flush-to-zero is on; and that has no effect on other results
    /// (SDM volume 1, 4.9.1.5 and 10.2.3.3).
    #[cold]
    fn detect_tiny(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
        control: &mut SimdControl,
    ) {
        if self.0.properties.to_half {
            return self.detect_tiny_half(fpu, gpr, operand, control);
        }
        let plain = control.wanted & !MXCSR_FTZ;
        control.wanted |= MXCSR_FTZ;
        self.call(fpu, gpr, rflags, operand, control);
        if control.result & MXCSR_UE != 0 {
            // Nothing was stored. Flushing sets PE: see if that is due, on copies.
            control.wanted = plain;
            let (mut fpu, mut gpr, mut rflags) = (fpu.clone(), *gpr, *rflags);
            self.call(&mut fpu, &mut gpr, &mut rflags, operand, control);
            control.result |= MXCSR_UE;
        }
    }

    /// The same for VCVTPS2PH, which ignores flush-to-zero: looks at the results.
    fn detect_tiny_half(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        operand: &mut Operand,
        control: &mut SimdControl,
    ) {
        let mut result = fpu.clone();
        // The results are stored, on a copy, whatever other exceptions there are.
        let unmasked = std::mem::take(&mut control.unmasked);
        self.call(&mut result, gpr, &mut 0, operand, control);
        control.unmasked = unmasked;
        let properties = &self.0.properties;
        let stored;
        let halves = match properties.memory {
            Some(memory) => &operand.0[..usize::from(memory.size)],
            None => {
                stored = result.xmm(properties.vector_written.trailing_zeros() as usize);
                &stored.to_le_bytes()[..]
            }
        };
        let tiny = halves.chunks_exact(2).any(|half| {
            let half = u16::from_le_bytes([half[0], half[1]]);
            half & 0x7c00 == 0 && half & 0x3ff != 0
        });
        if tiny {
            control.result |= MXCSR_UE;
        }
        if control.result & control.unmasked == 0 {
            *fpu = result;
        }
    }
}

/// Exceptions are masked while the instruction runs, and judged afterwards by the guest's masks.
pub(super) fn simd_control(mxcsr: u32) -> SimdControl {
    SimdControl {
        wanted: mxcsr & MXCSR_CONTROL | MXCSR_MASKS,
        result: 0,
        unmasked: !(mxcsr >> 7) & MXCSR_FLAGS,
        host: xsave::MXCSR_RESET,
    }
}

/// MXCSR's exception flags; the masks are the same bits seven higher.
pub(super) const MXCSR_FLAGS: u32 = 0x3f;
pub(super) const MXCSR_MASKS: u32 = MXCSR_FLAGS << 7;
/// FTZ, rounding control and DAZ.
const MXCSR_CONTROL: u32 = 0xe040;
pub(super) const MXCSR_UE: u32 = 1 << 4;
const MXCSR_UM: u32 = 1 << 11;
const MXCSR_FTZ: u32 = 1 << 15;
/// Invalid, denormal and divide-by-zero are found before the operation.
const PRE_COMPUTATION: u32 = 0x7;

/// Adds the new exception flags to the guest's MXCSR.
pub(super) fn finish_simd_fp(fpu: &mut FpuState, before: u32, control: &SimdControl) -> Outcome {
    let mut raised = control.result & MXCSR_FLAGS;
    let outcome = if raised & control.unmasked == 0 {
        Outcome::Done
    } else {
        // Then the operation does not take place, and nothing is known about its result
        // (SDM volume 1, 11.5.2).
        if raised & control.unmasked & PRE_COMPUTATION != 0 {
            raised &= PRE_COMPUTATION;
        }
        Outcome::SimdException
    };
    if before & raised != raised {
        fpu.set_u32(xsave::MXCSR, before | raised);
    }
    outcome
}
