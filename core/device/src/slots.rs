//! Memory of a device that the guest accesses as it does RAM: a framebuffer, a ROM.

use guest_mem::{Change, Error, GuestMem};

/// Whoever lays out the guest-physical space: the machine's VM.
pub trait SlotMap: Send + Sync {
    /// Applies all changes or none; legal while the guest runs, and from a device's callback.
    /// RAM of the board has the slot numbers below [`FIRST_SLOT`].
    fn change(&self, changes: &[Change]) -> Result<(), Error>;
}

/// The first slot number for memory of devices.
pub const FIRST_SLOT: u32 = 64;

/// A space without an engine: for tests.
impl SlotMap for GuestMem {
    fn change(&self, changes: &[Change]) -> Result<(), Error> {
        self.update(changes, |_, _| Ok(())).map(drop)
    }
}
