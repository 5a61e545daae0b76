//! Debug registers (SDM volume 3, 18.2).

/// DR6 after reset; the bits that always read as one.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 after reset; bit 10 always reads as one.
pub const DR7_RESET: u64 = 0x400;

pub const DR6_BD: u64 = 1 << 13;
pub const DR6_BS: u64 = 1 << 14;
pub const DR6_BT: u64 = 1 << 15;
/// Active low.
pub const DR6_RTM: u64 = 1 << 16;
/// The four breakpoint bits.
pub const DR6_B: u64 = 0xf;

pub const DR7_GD: u64 = 1 << 13;
/// Any of L0 to G3.
pub const DR7_ENABLED: u64 = 0xff;
