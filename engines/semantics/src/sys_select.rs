//! Handlers of system instructions.

use crate::Handler;
use iced_x86::Instruction;

pub fn select_system(_: &Instruction) -> Option<Handler> {
    None
}
