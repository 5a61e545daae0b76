//! The XSAVE area's standard format (SDM volume 1, 13.4).

/// Offsets in the legacy region (SDM volume 1, table 10-2, 64-bit FXSAVE).
pub const FCW: usize = 0;
pub const FSW: usize = 2;
/// Abridged: one bit per physical register, set if not empty.
pub const FTW: usize = 4;
pub const FOP: usize = 6;
pub const FIP: usize = 8;
pub const FDP: usize = 16;
pub const MXCSR: usize = 24;
pub const MXCSR_MASK: usize = 28;
/// ST0 to ST7, 16 bytes each.
pub const ST: usize = 32;
/// XMM0 to XMM15, 16 bytes each.
pub const XMM: usize = 160;
pub const LEGACY_LEN: usize = 512;
pub const XSTATE_BV: usize = 512;
pub const XCOMP_BV: usize = 520;
pub const HEADER_LEN: usize = 64;
/// The high halves of YMM0 to YMM15 (CPUID leaf 0xd, sub-leaf 2, always 576 in practice).
pub const YMM_HI: usize = 576;
/// Length with x87, SSE and AVX.
pub const LEN: usize = 832;

pub const FCW_RESET: u16 = 0x37f;
pub const MXCSR_RESET: u32 = 0x1f80;
/// MXCSR bits that may be set: all that processors with DAZ have.
pub const MXCSR_MASK_VALUE: u32 = 0xffff;
