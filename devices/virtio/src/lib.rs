//! virtio 1.2: queues, feature negotiation, the transports PCI and MMIO.
//!
//! ```text
//!   guest's driver --registers--> VirtioPci --> Core --> Regs       (status, features, set-up)
//!          |                  or VirtioMmio   |
//!          |                          |           |
//!          | rings in guest memory    | doorbell  +----> Ring, one for each queue
//!          v                          v           |
//!        Queue <--- VirtioDevice::serve <--- thread of the queue
//! ```
//!
//! A device implements [`VirtioDevice`]; [`build`] puts it on the PCI bus, and [`MmioWindow::build`]
//! into memory. All work on a queue
//! happens in [`VirtioDevice::serve`], on a thread of the device and never on a vCPU's: the
//! guest's doorbell and the device's own [`Handle::kick`] only ask for it. (A device that moves data
//! on a thread which it shares with others, as a network card does, borrows the queue there
//! instead, by [`Handle::lend`].) A queue is locked while
//! it is served, so that once a reset, a pause or a save has taken that lock nothing of the
//! device touches guest memory.
//!
//! **Guest errors.** What a driver puts into a ring is hostile. A chain that is malformed, or
//! names what is not memory, is a [`GuestError`]: the device then sets DEVICE_NEEDS_RESET and
//! touches nothing more until the driver resets it (2.1.2).
//!
//! Rings are walked by the crate `virtio-queue`; data is moved by [`Span`]. Sections cited are
//! those of "Virtual I/O Device (VIRTIO) Version 1.2".
//!
//! Locks, in the order in which they are taken: registers, a queue, then those of the PCI
//! function or of the interrupt controllers. A queue's thread lets go of its queue before it reports an error.
//! A lock of a device's own that is held while a queue is lent comes before the registers: `serve`,
//! which has a queue, must not take it.

mod bus;
mod chain;
mod core;
pub mod fake;
mod mmio_transport;
mod pci_transport;
mod queue;
mod regs;
mod state;
mod worker;

pub use chain::{Chain, GuestError, Span};
pub use core::Handle;
pub use mmio_transport::{MmioPlace, MmioWindow, VirtioMmio};
pub use pci_transport::{PlugError, VirtioPci, build, plug};
pub use queue::{Owed, Queue};
pub use state::{QueueState, VirtioState};

use saved_state::{Error, Reader, Writer};

/// Feature bits that every device has (6).
pub mod feature {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    /// What this crate sees to itself, beside the device's own.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Queues that a device may have: a set of them is a 64-bit mask.
pub const QUEUES_MAX: usize = 64;

/// Why [`VirtioDevice::serve`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// [`Queue::pop`] had nothing left: the driver's next doorbell is wanted.
    Drained,
    /// The device has no use for more now, and kicks itself when it has.
    Left,
}

/// A device type: block, network, and so on. It is called on vCPU threads, on its own threads
/// and by whoever controls the machine. From [`Self::activate`] and [`Self::reset`] it may kick
/// queues, but not report that its configuration changed: the registers are locked.
pub trait VirtioDevice: Send + Sync {
    /// For threads and messages: `virtio_blk`.
    fn name(&self) -> &'static str;
    /// The device ID (5).
    fn device_type(&self) -> u16;
    /// PCI's class code, three bytes.
    fn class(&self) -> u32;
    /// The largest size of each queue: powers of two up to 32768. At most [`QUEUES_MAX`] queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Offered beside [`feature::TRANSPORT`].
    fn features(&self) -> u64 {
        0
    }

    /// Queue `n` is served by thread `n % threads()`.
    fn threads(&self) -> usize {
        1
    }

    /// Called once, when the device is on its bus.
    fn attach(&self, _handle: Handle) {}

    /// The device-specific configuration; `data` arrives zeroed, 1 to 8 bytes.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready and has accepted these features; or such a state was restored. No
    /// queue is served before.
    fn activate(&self, _features: u64) {}

    /// Back to the power-on state. No queue is being served, and none will be until
    /// [`Self::activate`].
    fn reset(&self) {}

    /// A queue is to be served: the driver has rung, on a vCPU's thread, or it may be served
    /// again. `true`: the device sees to it itself, on a thread of its own by
    /// [`Handle::lend`]; otherwise the queue's thread calls [`Self::serve`].
    fn doorbell(&self, _index: u16) -> bool {
        false
    }

    /// Does what there is to do on a queue.
    ///
    /// # Errors
    /// If the driver broke a rule from which the device cannot go on.
    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError>;

    /// What the type itself has to save; `instance` is for its parts. No queue is being served.
    fn save(&self, _to: &mut Writer, _instance: u32) {}

    /// Takes its parts, validates them, and only then changes.
    ///
    /// # Errors
    /// If a part is missing or not sound.
    fn restore(&self, _from: &mut Reader, _instance: u32) -> Result<(), Error> {
        Ok(())
    }

    /// What was counted since the device was built, by name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Reads a device-specific configuration structure; behind its end there are zeroes.
pub fn read_config_bytes(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let there = bytes.get(from..).unwrap_or_default();
    let (known, rest) = data.split_at_mut(there.len().min(data.len()));
    known.copy_from_slice(there.get(..known.len()).unwrap_or_default());
    rest.fill(0);
}

/// A poisoned lock is taken all the same: a panic elsewhere is reported there.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_configuration_ends_in_zeroes() {
        let read = |offset| {
            let mut data = [0xee; 4];
            super::read_config_bytes(&[1, 2, 3, 4, 5, 6], offset, &mut data);
            data
        };
        assert_eq!((read(0), read(3)), ([1, 2, 3, 4], [4, 5, 6, 0]));
        assert_eq!((read(6), read(7), read(u64::MAX)), ([0; 4], [0; 4], [0; 4]));
    }
}
