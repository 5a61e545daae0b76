//! A queue while it is served.

use crate::{
    chain::{Chain, GuestError},
    core::Core,
};
use guest_mem::RingMemory;
use std::sync::atomic::Ordering::{self, Relaxed};
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// A queue whose lock the caller holds.
pub struct Queue<'a> {
    core: &'a Core,
    index: u16,
    ring: &'a mut Ring,
    rings: RingMemory,
    /// Something was completed since the driver was last interrupted.
    completed: bool,
}

impl std::fmt::Debug for Queue<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Whatever `virtio-queue` refuses, the driver caused.
fn refused(_: virtio_queue::Error) -> GuestError {
    GuestError("a ring is malformed")
}

impl<'a> Queue<'a> {
    pub(crate) fn new(core: &'a Core, index: u16, ring: &'a mut Ring) -> Self {
        Self { core, index, ring, rings: core.memory.rings(), completed: false }
    }

    /// Someone wants the queue to rest: a reset, a pause, the end. [`Self::pop`] then gives
    /// nothing; a device that works on one request for long looks here in between.
    pub fn interrupted(&self) -> bool {
        !self.core.may_run()
    }

    /// The next request.
    ///
    /// # Errors
    /// If the ring or the chain is malformed.
    pub fn pop(&mut self) -> Result<Option<Chain>, GuestError> {
        if self.interrupted() {
            return Ok(None);
        }
        let next = self.ring.iter(&self.rings).map_err(refused)?.next();
        let Some(chain) = next else { return Ok(None) };
        self.core.counters.requests.fetch_add(1, Relaxed);
        Chain::collect(chain, &self.core.memory).map(Some)
    }

    /// Gives the last request back to the driver as if it had not been taken.
    pub fn put_back(&mut self, _: Chain) {
        self.ring.go_to_previous_position();
    }

    /// Hands a request back with so many bytes written to it. The driver hears of it by
    /// [`Self::signal`], or when the device has been served.
    ///
    /// # Errors
    /// If the used ring is no longer memory.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), GuestError> {
        self.ring.add_used(&self.rings, chain.head, written).map_err(refused)?;
        self.completed = true;
        Ok(())
    }

    /// Interrupts the driver, if something was completed and it wants to know.
    ///
    /// # Errors
    /// If a ring is no longer memory.
    pub fn signal(&mut self) -> Result<(), GuestError> {
        if std::mem::take(&mut self.completed) && self.wants_interrupt()? {
            self.core.interrupt_queue(self.index);
        }
        Ok(())
    }

    fn wants_interrupt(&mut self) -> Result<bool, GuestError> {
        let wants = self.ring.needs_notification(&self.rings).map_err(refused)?;
        if !wants || self.ring.event_idx_enabled() {
            return Ok(wants);
        }
        let at = GuestAddress(self.ring.avail_ring());
        let flags: u16 = self
            .rings
            .load(at, Ordering::SeqCst)
            .map_err(|_| GuestError("a ring is not memory"))?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }

    /// Tells the driver not to ring while the queue is being served.
    pub(crate) fn silence(&mut self) -> Result<(), GuestError> {
        self.ring.disable_notification(&self.rings).map_err(refused)
    }

    /// Asks for doorbells again; true if something came meanwhile.
    pub(crate) fn listen(&mut self) -> Result<bool, GuestError> {
        self.ring.enable_notification(&self.rings).map_err(refused)
    }
}
