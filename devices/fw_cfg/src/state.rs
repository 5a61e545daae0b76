//! Saved state.

use saved_state::Schema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FwCfgState {
    /// What was written to the selector.
    pub item: u16,
    /// How many of the item's bytes have been read or skipped.
    pub offset: u32,
    /// The upper half of the next command's address.
    pub dma_high: u32,
}

impl Schema for FwCfgState {
    const KIND: &'static str = "fw-cfg";
    const VERSION: u16 = 1;
}
