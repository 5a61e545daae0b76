//! Task switches (SDM volume 3, chapter 7).

use crate::{Ctx, Stop};

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Jump,
    Call,
    /// IRET with NT set.
    Return,
    /// An exception or interrupt, with the image of RFLAGS to save.
    Event {
        flags: u64,
    },
}

impl Ctx<'_> {
    pub(crate) fn switch_task(&mut self, _selector: u16, _how: Switch) -> Result<(), Stop> {
        Err(self.cpu.unhandled("a task switch"))
    }
}
