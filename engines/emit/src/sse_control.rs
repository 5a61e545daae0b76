//! Instructions on the SSE and AVX state as a whole, in software.

use vcpu_state::FpuState;
use x86_defs::xsave;

/// LDMXCSR: false, and nothing changed, if reserved bits are set (#GP).
#[must_use]
pub fn load_mxcsr(fpu: &mut FpuState, value: u32) -> bool {
    let fits = value & !xsave::MXCSR_MASK_VALUE == 0;
    if fits {
        fpu.set_u32(xsave::MXCSR, value);
    }
    fits
}

/// VZEROUPPER: `registers` is 16 in 64-bit mode, else 8.
pub fn zero_upper(fpu: &mut FpuState, registers: usize) {
    for n in 0..registers.min(16) {
        fpu.set_ymm_hi(n, 0);
    }
}

/// VZEROALL: `registers` is 16 in 64-bit mode, else 8.
pub fn zero_all(fpu: &mut FpuState, registers: usize) {
    zero_upper(fpu, registers);
    for n in 0..registers.min(16) {
        fpu.set_xmm(n, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits_are_refused() {
        let mut fpu = FpuState::init();
        assert!(!load_mxcsr(&mut fpu, 0x1_1f80));
        assert_eq!(fpu.mxcsr(), 0x1f80);
        assert!(load_mxcsr(&mut fpu, 0xffff));
        assert_eq!(fpu.mxcsr(), 0xffff);
    }

    #[test]
    fn outside_64_bit_mode_eight_registers_are_zeroed() {
        let mut fpu = FpuState::init();
        for n in 0..16 {
            fpu.set_xmm(n, 1);
            fpu.set_ymm_hi(n, 2);
        }
        zero_upper(&mut fpu, 8);
        assert_eq!((fpu.xmm(7), fpu.ymm_hi(7), fpu.ymm_hi(8)), (1, 0, 2));
        zero_all(&mut fpu, 16);
        assert_eq!((fpu.xmm(7), fpu.xmm(15), fpu.ymm_hi(15)), (0, 0, 0));
    }
}
