//! Intercepts of a personality.

use crate::Interp;
use engine::Exit;
use semantics::Ctx;

impl Interp {
    /// Offers the exception in `Cpu::raised` to the host, if it asked for its vector. `None`:
    /// it goes to the guest.
    pub(crate) fn intercepted(&mut self, _ctx: &mut Ctx<'_>) -> Option<Option<Exit>> {
        None
    }
}
