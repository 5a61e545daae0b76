//! What is behind a function's BARs.

use guest_mem::Memfd;
use std::sync::Arc;

/// A function as the bus calls it, on vCPU threads, with no lock of the bus held.
pub trait Function: Send + Sync {
    /// The guest reads a BAR, 1 to 8 bytes at any offset inside it, never across its end;
    /// `data` arrives filled with ones. The message table is served by the bus.
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]);

    fn write(&self, bar: usize, offset: u64, data: &[u8]);

    /// The memory behind a BAR that the guest accesses as it does RAM, of the BAR's whole size and
    /// always the same. Where it cannot be made to appear, [`Self::read`] and [`Self::write`] are
    /// called as for any other BAR.
    fn memory(&self, _bar: usize) -> Option<Arc<Memfd>> {
        None
    }

    /// The guest lets the function access memory, which it may not have been allowed to when it
    /// was last asked for something.
    fn became_master(&self) {}

    /// The guest reads a capability's window (see [`Capability`](crate::Capability)).
    /// `capability` is all of it, from its ID on; `data` are the bytes of the window, four.
    fn read_window(&self, _capability: &[u8], _data: &mut [u8; 4]) {}

    /// The guest writes the first bytes of the window.
    fn write_window(&self, _capability: &[u8], _data: &[u8]) {}
}

/// A function without BARs: the host bridge.
pub(crate) struct Nothing;

impl Function for Nothing {
    fn read(&self, _: usize, _: u64, _: &mut [u8]) {}
    fn write(&self, _: usize, _: u64, _: &[u8]) {}
}
