//! Exception vectors and error codes (SDM volume 3, 6.15).

pub const DE: u8 = 0;
pub const DB: u8 = 1;
pub const NMI: u8 = 2;
pub const BP: u8 = 3;
pub const OF: u8 = 4;
pub const BR: u8 = 5;
pub const UD: u8 = 6;
pub const NM: u8 = 7;
pub const DF: u8 = 8;
pub const TS: u8 = 10;
pub const NP: u8 = 11;
pub const SS: u8 = 12;
pub const GP: u8 = 13;
pub const PF: u8 = 14;
pub const MF: u8 = 16;
pub const AC: u8 = 17;
pub const MC: u8 = 18;
pub const XM: u8 = 19;
pub const VE: u8 = 20;
pub const CP: u8 = 21;

/// True for the vectors that push an error code (SDM volume 3, table 6-1).
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, DF | TS | NP | SS | GP | PF | AC | CP)
}

/// Error code of a selector-related fault (SDM volume 3, 6.13).
pub mod selector_error {
    /// The event was external to the program.
    pub const EXT: u32 = 1 << 0;
    /// The index names a gate of the IDT.
    pub const IDT: u32 = 1 << 1;
    /// The index names the LDT.
    pub const TI: u32 = 1 << 2;
}

/// Error code of a page fault (SDM volume 3, 4.7).
pub mod pf {
    /// A protection violation, not an absent page.
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    /// Instruction fetch.
    pub const I: u32 = 1 << 4;
}
