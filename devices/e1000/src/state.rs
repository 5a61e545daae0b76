//! Saved state.

use crate::{eeprom::Wires, tx::Context};
use nic::Mac;
use saved_state::Schema;
use serde::{Deserialize, Serialize};

/// Its instance is the PCI slot's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct E1000State {
    /// The one in the EEPROM.
    pub mac: Mac,
    /// Offsets and values of registers that are not zero.
    pub registers: Vec<(u32, u32)>,
    /// From offset 0x4000 on.
    pub statistics: Vec<u32>,
    /// Of the EEPROM.
    pub wires: Wires,
    pub phy: Vec<u16>,
    pub icr: u32,
    pub ims: u32,
    /// Causes of which the guest is told at the end of a batch.
    pub owed: u32,
    pub link: bool,
    pub context: Context,
    /// Which register the port for data stands for.
    pub io_address: u32,
    pub asserted: bool,
    /// Guest time before which the interrupt is not asserted again.
    pub next_interrupt_ns: u64,
}

impl Schema for E1000State {
    const KIND: &'static str = "e1000";
    const VERSION: u16 = 1;
}
