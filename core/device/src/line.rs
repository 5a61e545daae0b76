//! Interrupt lines and messages.

use std::sync::Arc;
use x86_defs::Msi;

/// A wire with a level. The sink decides what an edge means.
pub trait Line: Send + Sync {
    fn set(&self, level: bool);

    /// A short high pulse, for sources that are edge-triggered.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }

    /// Drives the wire to a level without producing an edge: for restoring.
    fn restore(&self, level: bool) {
        self.set(level);
    }

    /// Another source of the same wire, whose level is high while any source's is. `None`
    /// where the wire has one source only.
    fn share(&self) -> Option<LineRef> {
        None
    }
}

pub type LineRef = Arc<dyn Line>;

/// A wire that leads nowhere.
#[derive(Debug, Default)]
pub struct NoLine;

impl Line for NoLine {
    fn set(&self, _: bool) {}
}

/// Where messages go: the local APICs.
pub trait MsiSink: Send + Sync {
    fn send(&self, msi: Msi);
}
