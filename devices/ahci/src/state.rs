//! Saved state.

use crate::PORTS;
/// A CD drive's; a disk has none.
pub use scsi::CdState as DriveState;

use saved_state::{Error, Schema, malformed};
use serde::{Deserialize, Serialize};

/// Its instance is the PCI slot's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AhciState {
    /// GHC and IS (AHCI, 3.1.2, 3.1.3).
    pub control: u32,
    pub pending: u32,
    pub ports: Vec<PortState>,
    /// Those that are plugged in, in the order of ports.
    pub drives: Vec<DriveState>,
}

/// A port's registers, by their names without "Px" (AHCI, 3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    pub clb: u64,
    pub fb: u64,
    pub is: u32,
    pub ie: u32,
    pub cmd: u32,
    pub tfd: u32,
    pub sig: u32,
    pub sctl: u32,
    pub serr: u32,
    pub sact: u32,
    pub ci: u32,
    /// The slot that last had its turn.
    pub last: u8,
    /// Of the last queued command that failed, for the drive's log of it.
    pub queue_error: Option<QueueError>,
    /// A command failed, and the port waits for its restart.
    pub failed: bool,
}

/// What the drive says in its log of a queued command that failed (ACS, 9.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueError {
    pub tag: u8,
    pub status: u8,
    pub error: u8,
    pub device: u8,
    pub lba: u64,
    pub count: u16,
}

impl Schema for AhciState {
    const KIND: &'static str = "ahci";
    /// 2: a drive's attention is sense data. 3: commands are queued.
    const VERSION: u16 = 3;
}

impl AhciState {
    pub(crate) fn check(&self, drives: usize) -> Result<(), Error> {
        if self.ports.len() != PORTS || self.drives.len() != drives {
            return Err(malformed::<Self>("the adapter has other ports or drives"));
        }
        let aligned =
            |port: &PortState| port.clb.is_multiple_of(1024) && port.fb.is_multiple_of(256);
        if !self.ports.iter().all(aligned) {
            return Err(malformed::<Self>("a command list is where none can be"));
        }
        let in_range = |port: &PortState| {
            port.last < 32 && port.queue_error.is_none_or(|error| error.tag < 32)
        };
        if !self.ports.iter().all(in_range) {
            return Err(malformed::<Self>("there are 32 slots"));
        }
        Ok(())
    }
}
