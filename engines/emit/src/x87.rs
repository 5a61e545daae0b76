//! The x87 unit's status: pending exceptions, and the pointers to the last instruction.

use vcpu_state::FpuState;
use x86_defs::xsave;

/// Exception flags in FSW and masks in FCW: IE, DE, ZE, OE, UE, PE.
const EXCEPTIONS: u16 = 0x3f;
const IE: u16 = 1 << 0;
const OE: u16 = 1 << 3;
const UE: u16 = 1 << 4;
/// Error summary, and B, which mirrors it (SDM volume 1, 8.1.3.3).
const ES: u16 = 1 << 7;
const BUSY: u16 = 1 << 15;

/// Unmasked exceptions that are flagged.
fn unmasked(fpu: &FpuState) -> u16 {
    fpu.u16(xsave::FSW) & !fpu.u16(xsave::FCW) & EXCEPTIONS
}

/// True if the next waiting x87 or MMX instruction reports an exception (#MF).
pub fn pending(fpu: &FpuState) -> bool {
    unmasked(fpu) != 0
}

/// Makes ES and B follow from the flags and masks, after either was loaded.
pub fn make_consistent(fpu: &mut FpuState) {
    let summary = if pending(fpu) { ES | BUSY } else { 0 };
    let fsw = fpu.u16(xsave::FSW) & !(ES | BUSY) | summary;
    fpu.set_u16(xsave::FSW, fsw);
}

/// Invalid operation, overflow and underflow, unmasked, leave the destination of a store as it
/// was (SDM volume 1, 8.5); a precision exception does not.
pub(crate) fn suppresses_store(fpu: &FpuState) -> bool {
    unmasked(fpu) & (IE | OE | UE) != 0
}

/// Fields of the area that FXSAVE would fill with the host's.
pub(crate) struct Kept {
    fop: u16,
    fip: u64,
    fdp: u64,
}

impl Kept {
    pub(crate) fn of(fpu: &FpuState) -> Self {
        Self { fop: fpu.u16(xsave::FOP), fip: fpu.u64(xsave::FIP), fdp: fpu.u64(xsave::FDP) }
    }

    pub(crate) fn put_back(&self, fpu: &mut FpuState) {
        fpu.set_u16(xsave::FOP, self.fop);
        fpu.set_u64(xsave::FIP, self.fip);
        fpu.set_u64(xsave::FDP, self.fdp);
        fpu.set_u32(xsave::MXCSR_MASK, xsave::MXCSR_MASK_VALUE);
    }
}

/// Where the instruction stands that the x87 unit executed last (SDM volume 1, 8.1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastInstruction {
    /// The instruction's offset in its code segment, prefixes included.
    pub fip: u64,
    /// The memory operand's offset in its segment, if there is one.
    pub fdp: Option<u64>,
    /// See [`opcode`].
    pub fop: u16,
    /// Update FDP and FOP only if the instruction raised an unmasked exception, as processors
    /// with CPUID.(7,0):EBX\[6\] (FDP_EXCPTN_ONLY) do.
    pub exceptions_only: bool,
}

/// Records the last instruction, after a stub whose properties say `x87_pointers` ran.
pub fn record(fpu: &mut FpuState, last: &LastInstruction) {
    fpu.set_u64(xsave::FIP, last.fip);
    if last.exceptions_only && !pending(fpu) {
        return;
    }
    fpu.set_u16(xsave::FOP, last.fop & 0x7ff);
    if let Some(fdp) = last.fdp {
        fpu.set_u64(xsave::FDP, fdp);
    }
}

/// FOP of an x87 instruction: the low bits of its first opcode byte, and the second
/// (SDM volume 1, 8.1.9). Zero for what is no x87 instruction.
pub fn opcode(bytes: &[u8]) -> u16 {
    let Some(at) = bytes.iter().position(|byte| byte & 0xf8 == 0xd8) else { return 0 };
    let second = bytes.get(at + 1).copied().unwrap_or(0);
    u16::from(bytes[at] & 7) << 8 | u16::from(second)
}
