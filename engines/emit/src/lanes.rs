//! Elements of YMM registers in the XSAVE area.

use vcpu_state::FpuState;
use x86_defs::xsave;

/// Where element `n` of `size` bytes of YMM`register` is.
fn place(register: usize, size: usize, n: usize) -> usize {
    let byte = (size * n) & 31;
    let half = if byte < 16 { xsave::XMM } else { xsave::YMM_HI };
    half + 16 * (register & 15) + (byte & 15)
}

/// An element of 1 to 8 bytes, zero-extended.
pub(crate) fn get(fpu: &FpuState, register: usize, size: usize, n: usize) -> u64 {
    let at = place(register, size, n);
    fpu.area[at..at + size].iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte))
}

pub(crate) fn set(fpu: &mut FpuState, register: usize, size: usize, n: usize, value: u64) {
    let at = place(register, size, n);
    fpu.area[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// The element's highest bit.
pub(crate) fn sign(fpu: &FpuState, register: usize, size: usize, n: usize) -> bool {
    fpu.area[place(register, size, n) + size - 1] & 0x80 != 0
}
