//! Running instructions on the x87 register file.

use vcpu_state::FpuState;
use x86_defs::{gpr, xsave};

use super::simd_fp::{finish_simd_fp, simd_control};
use super::{Operand, Outcome, Stub};
use crate::properties::X87Control;
use crate::x87;

impl Stub {
    pub(super) fn run_x87(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
    ) -> Outcome {
        let properties = &self.0.properties;
        let was_pending = x87::pending(fpu);
        if properties.waiting && was_pending {
            return Outcome::X87Pending;
        }
        x87::make_consistent(fpu);
        let before = fpu.mxcsr() & xsave::MXCSR_MASK_VALUE;
        // FXRSTOR refuses reserved bits.
        fpu.set_u32(xsave::MXCSR, before);
        let fcw = fpu.u16(xsave::FCW);
        if was_pending {
            // It does not wait, by the manual; the host must not get a signal if it does.
            x87::load_control(fpu, fcw | x87::EXCEPTIONS);
        }
        let kept = x87::Kept::of(fpu);
        let mut control = simd_control(before);
        let mut flags = *rflags;
        self.call(fpu, gpr, &mut flags, operand, &mut control);
        kept.put_back(fpu);
        if was_pending {
            x87::load_control(fpu, fcw);
        }
        if properties.simd_fp {
            fpu.set_u32(xsave::MXCSR, before);
            if finish_simd_fp(fpu, before, &control) == Outcome::SimdException {
                return Outcome::SimdException;
            }
        }
        *rflags = flags;
        let stores = properties.memory.is_some_and(|memory| memory.write);
        if stores && properties.waiting && x87::suppresses_store(fpu) {
            return Outcome::NoStore;
        }
        Outcome::Done
    }

    /// The control instructions, which need no host unit.
    pub(super) fn run_x87_control(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        operand: &mut Operand,
    ) -> Outcome {
        let properties = &self.0.properties;
        if properties.waiting && x87::pending(fpu) {
            return Outcome::X87Pending;
        }
        let mut put = |word: u16| {
            if properties.memory.is_some() {
                operand.0[..2].copy_from_slice(&word.to_le_bytes());
            } else {
                gpr[gpr::RAX] = gpr[gpr::RAX] & !0xffff | u64::from(word);
            }
        };
        match properties.x87_control {
            Some(X87Control::Initialise) => x87::initialise(fpu),
            Some(X87Control::ClearExceptions) => {
                // Exception flags, SF, ES and B.
                let fsw = fpu.u16(xsave::FSW) & 0x7f00;
                fpu.set_u16(xsave::FSW, fsw);
            }
            Some(X87Control::LoadControl) => {
                x87::load_control(fpu, u16::from_le_bytes([operand.0[0], operand.0[1]]));
            }
            Some(X87Control::StoreControl) => put(fpu.u16(xsave::FCW)),
            Some(X87Control::StoreStatus) => {
                x87::make_consistent(fpu);
                put(fpu.u16(xsave::FSW));
            }
            Some(X87Control::Wait) | None => {}
        }
        Outcome::Done
    }
}
