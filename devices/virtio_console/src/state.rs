//! Saved state. The terminal's size and whether somebody is at the other end are the carrier's,
//! and told anew.

use saved_state::Schema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    /// Control messages that the driver has not taken.
    pub messages: Vec<Vec<u8>>,
    pub ports: Vec<PortState>,
}

impl Schema for ConsoleState {
    const KIND: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// Bytes that wait for the guest.
    pub input: Vec<u8>,
    /// The driver knows the port.
    pub ready: bool,
    /// A program of the guest has it open.
    pub open: bool,
    /// The driver was told that somebody is at the other end.
    pub told_open: bool,
    /// Bytes of the first buffer in the transmit queue that have left.
    pub sent: u64,
}
