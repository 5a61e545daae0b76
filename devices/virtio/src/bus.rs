//! How a device reaches its driver, whatever the transport is.

use device::LineRef;
use pci::Requester;

/// A transport, as what is behind the registers sees it.
pub(crate) trait Bus: Send + Sync {
    /// The device may touch memory.
    fn is_master(&self) -> bool;

    /// Interrupts are messages, and not the wire.
    fn uses_messages(&self) -> bool;

    fn notify(&self, vector: u16);

    fn set_wire(&self, level: bool);
}

impl Bus for Requester {
    fn is_master(&self) -> bool {
        Self::is_master(self)
    }

    fn uses_messages(&self) -> bool {
        Self::uses_messages(self)
    }

    fn notify(&self, vector: u16) {
        Self::notify(self, vector);
    }

    fn set_wire(&self, level: bool) {
        self.set_pin(level);
    }
}

/// A wire of the device's own, and memory for the asking.
pub(crate) struct Wire(pub(crate) LineRef);

impl Bus for Wire {
    fn is_master(&self) -> bool {
        true
    }

    fn uses_messages(&self) -> bool {
        false
    }

    fn notify(&self, _: u16) {}

    fn set_wire(&self, level: bool) {
        self.0.set(level);
    }
}
