//! Saved state of the bridge and of each function, as far as it is the bus's.

use saved_state::Schema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostState {
    /// Port 0xcf8.
    pub address: u32,
}

impl Schema for HostState {
    const KIND: &'static str = "pci-host";
    const VERSION: u16 = 1;
}

/// Its instance is the slot's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionState {
    /// The 256 bytes of configuration space.
    pub config: Vec<u8>,
    /// The message table.
    pub vectors: Vec<VectorState>,
    /// The function asserts its interrupt pin.
    pub pin: bool,
}

impl Schema for FunctionState {
    const KIND: &'static str = "pci-function";
    const VERSION: u16 = 1;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorState {
    pub address: u64,
    pub data: u32,
    pub masked: bool,
    pub pending: bool,
}
