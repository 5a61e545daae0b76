//! The saved state.

use crate::{dispi::Dispi, regs::Regs};
use saved_state::Schema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VgaState {
    pub regs: Regs,
    pub dispi: Dispi,
    /// The byte of each plane that was read last.
    pub latch: u32,
    /// The planes, a cell of all four after the other, without the zeroes at the end.
    pub planes: Vec<u32>,
    /// Pages of the framebuffer that are not zero, with their offsets, in order.
    pub framebuffer: Vec<(u32, Vec<u8>)>,
}

impl Schema for VgaState {
    const KIND: &'static str = "vga";
    const VERSION: u16 = 1;
}
