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

    /// The bus that the function is on was reset: it is as after power-on.
    fn bus_reset(&self) {}

    /// The guest lets the function access memory, which it may not have been allowed to when it
    /// was last asked for something.
    fn became_master(&self) {}

    /// Registers of the function's own (see [`Registers`](crate::Registers)) were written, or a
    /// reset or a restore made them what they are. `config` is the whole configuration space; the
    /// calls come in the order of the changes.
    fn configured(&self, _config: &[u8; 256]) {}

    /// The guest forbids the function to access memory: when this returns, it does so no more.
    fn lost_master(&self) {}

    /// The guest reads a capability's window (see [`Capability`](crate::Capability)).
    /// `capability` is all of it, from its ID on; `data` are the bytes of the window, four.
    fn read_window(&self, _capability: &[u8], _data: &mut [u8; 4]) {}

    /// The guest writes the first bytes of the window.
    fn write_window(&self, _capability: &[u8], _data: &[u8]) {}
}

/// A function of which nothing is to be known but its configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Function for Nothing {
    fn read(&self, _: usize, _: u64, _: &mut [u8]) {}
    fn write(&self, _: usize, _: u64, _: &[u8]) {}
}
