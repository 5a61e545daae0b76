//! Page-table entries (SDM volume 3, 4.3 to 4.5).

pub const P: u64 = 1 << 0;
pub const RW: u64 = 1 << 1;
pub const US: u64 = 1 << 2;
pub const PWT: u64 = 1 << 3;
pub const PCD: u64 = 1 << 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
/// In a directory entry: maps a large page.
pub const PS: u64 = 1 << 7;
pub const G: u64 = 1 << 8;
pub const NX: u64 = 1 << 63;
/// Physical address of an 8-byte entry, for the 52 bits that the architecture allows.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
