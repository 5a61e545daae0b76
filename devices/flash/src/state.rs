//! Saved state.

use saved_state::Schema;
use serde::{Deserialize, Serialize};

/// What a read is, and what the next write means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    Array,
    Status,
    Identification,
    /// A byte to program.
    Program,
    /// The confirmation of an erasure.
    Erase,
    /// How many bytes a buffer is to hold, less one.
    Count,
    /// So many bytes for the buffer, then the confirmation.
    Fill {
        left: u16,
    },
}

impl Mode {
    pub(crate) fn left(self) -> u16 {
        match self {
            Self::Fill { left } => left,
            _ => 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashState {
    pub bytes: Vec<u8>,
    pub mode: Mode,
    pub status: u8,
    /// Addresses in the chip, and what is to be programmed there.
    pub buffer: Vec<(u32, u8)>,
}

impl Schema for FlashState {
    const KIND: &'static str = "flash";
    const VERSION: u16 = 1;
}
