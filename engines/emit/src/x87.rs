//! The x87 unit's status: pending exceptions, and the pointers to the last instruction.

use vcpu_state::FpuState;
use x86_defs::xsave;

/// Exception flags in FSW and masks in FCW: IE, DE, ZE, OE, UE, PE.
pub(crate) const EXCEPTIONS: u16 = 0x3f;
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

/// FCW as FLDCW, FLDENV and FXRSTOR load it: bit 6 is always one, the other reserved bits zero.
pub fn load_control(fpu: &mut FpuState, fcw: u16) {
    fpu.set_u16(xsave::FCW, fcw & 0x1f3f | 0x40);
    make_consistent(fpu);
}

/// FNINIT's values (SDM volume 3, table 10-1); the registers keep their contents.
pub fn initialise(fpu: &mut FpuState) {
    set_top(fpu, 0);
    fpu.set_u16(xsave::FCW, xsave::FCW_RESET);
    fpu.set_u16(xsave::FSW, 0);
    fpu.area[xsave::FTW] = 0;
    fpu.set_u16(xsave::FOP, 0);
    fpu.set_u64(xsave::FIP, 0);
    fpu.set_u64(xsave::FDP, 0);
}

/// The physical register that ST(0) is.
pub(crate) fn top(fpu: &FpuState) -> usize {
    usize::from(fpu.u16(xsave::FSW) >> 11 & 7)
}

/// Changes TOP while the physical registers keep their contents: the area holds them in stack
/// order.
pub(crate) fn set_top(fpu: &mut FpuState, top_after: usize) {
    let turn = (top_after & 7) + 8 - top(fpu);
    fpu.area[xsave::ST..xsave::XMM].rotate_left(16 * (turn & 7));
    let fsw = fpu.u16(xsave::FSW) & !(7 << 11) | ((top_after & 7) as u16) << 11;
    fpu.set_u16(xsave::FSW, fsw);
}

/// What every MMX instruction but EMMS does (SDM volume 1, 9.5.1): TOP becomes 0 and no
/// register is empty.
pub(crate) fn enter_mmx(fpu: &mut FpuState) {
    set_top(fpu, 0);
    fpu.area[xsave::FTW] = 0xff;
}

/// FSW and the full tag word; ES and B follow from the flags.
pub(crate) fn load_status_and_tags(fpu: &mut FpuState, fsw: u16, tags: u16) {
    set_top(fpu, usize::from(fsw >> 11 & 7));
    fpu.set_u16(xsave::FSW, fsw);
    fpu.area[xsave::FTW] =
        (0..8).fold(0, |all, n| all | u8::from(tags >> (2 * n) & 3 != EMPTY) << n);
    make_consistent(fpu);
}

const VALID: u16 = 0;
const ZERO: u16 = 1;
const SPECIAL: u16 = 2;
const EMPTY: u16 = 3;

/// The 16-bit tag word of FNSTENV (SDM volume 1, 8.1.7), which the area holds abridged.
pub(crate) fn full_tags(fpu: &FpuState) -> u16 {
    let top = top(fpu);
    (0..8).fold(0, |all, physical| {
        let tag = if fpu.area[xsave::FTW] >> physical & 1 == 0 {
            EMPTY
        } else {
            let at = xsave::ST + 16 * ((physical + 8 - top) & 7);
            class(fpu.u64(at), fpu.u16(at + 8))
        };
        all | tag << (2 * physical)
    })
}

/// The tag of a register's contents.
fn class(significand: u64, sign_and_exponent: u16) -> u16 {
    match (sign_and_exponent & 0x7fff, significand) {
        (0, 0) => ZERO,
        (0 | 0x7fff, _) => SPECIAL,
        // Without the integer bit it is no supported number.
        _ if significand >> 63 == 0 => SPECIAL,
        _ => VALID,
    }
}
