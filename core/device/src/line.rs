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
