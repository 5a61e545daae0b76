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
    /// What the driver asked for does not count.
    forced: bool,
}

/// Whether the driver is still to be told of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    completed: bool,
    forced: bool,
}

impl Owed {
    /// This and that.
    pub fn and(self, other: Self) -> Self {
        Self { completed: self.completed || other.completed, forced: self.forced || other.forced }
    }

    pub fn is_nothing(self) -> bool {
        !self.completed
    }
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
        Self { core, index, ring, rings: core.memory.rings(), completed: false, forced: false }
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

    /// Hands several requests back so that the driver sees all of them or none: the parts of one
    /// frame (5.1.6.4). The driver is interrupted for them even if it could have been spared.
    ///
    /// # Errors
    /// If the used ring is no longer memory.
    pub fn complete_all(&mut self, chains: &[(Chain, u32)]) -> Result<(), GuestError> {
        let Some(((last, written), before)) = chains.split_last() else { return Ok(()) };
        let (start, size) = (self.ring.next_used(), self.ring.size());
        for (index, (chain, written)) in (0..).zip(before) {
            let place = u64::from(start.wrapping_add(index) % size);
            let at = self.ring.used_ring().checked_add(4 + 8 * place);
            let element = u64::from(chain.head) | u64::from(*written) << 32;
            let at = GuestAddress(at.ok_or(GuestError("a ring is not memory"))?);
            let put = self.rings.write_slice(&element.to_le_bytes(), at);
            put.map_err(|_| GuestError("a ring is not memory"))?;
        }
        // Nothing of it is visible before the index is, which goes past all of them at once.
        self.ring.set_next_used(start.wrapping_add(before.len() as u16));
        self.ring.add_used(&self.rings, last.head, *written).map_err(refused)?;
        self.completed = true;
        self.forced |= !before.is_empty();
        Ok(())
    }

    /// Something was completed in an earlier turn, and the driver was not told. Returned by
    /// [`Self::unsignalled`] there.
    pub fn owe(&mut self, owed: Owed) {
        self.completed |= owed.completed;
        self.forced |= owed.forced;
    }

    /// What [`Self::signal`] would tell, for another turn.
    pub fn unsignalled(&mut self) -> Owed {
        Owed {
            completed: std::mem::take(&mut self.completed),
            forced: std::mem::take(&mut self.forced),
        }
    }

    /// Interrupts the driver, if something was completed and it wants to know.
    ///
    /// # Errors
    /// If a ring is no longer memory.
    pub fn signal(&mut self) -> Result<(), GuestError> {
        let Owed { completed, forced } = self.unsignalled();
        // Asked in any case: it counts from here.
        if completed && (self.wants_interrupt()? || forced) {
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
    ///
    /// # Errors
    /// If a ring is no longer memory.
    pub fn silence(&mut self) -> Result<(), GuestError> {
        self.ring.disable_notification(&self.rings).map_err(refused)
    }

    /// Asks for doorbells again; true if something came meanwhile.
    ///
    /// # Errors
    /// If a ring is no longer memory.
    pub fn listen(&mut self) -> Result<bool, GuestError> {
        self.ring.enable_notification(&self.rings).map_err(refused)
    }
}
