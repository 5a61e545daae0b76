//! SCSI commands: what a disk and a CD drive answer, whatever adapter they are at.
//!
//! An adapter (a virtio SCSI host, a SATA one with ATAPI) gives a [`Unit`] the command descriptor
//! block. It is told by an [`Outcome`] what the command means, and moves the data itself, piece by
//! piece, by [`Unit::read`], [`Unit::write`] and the others. So a unit knows nothing of guest
//! memory, and never works long on one call.
//!
//! Each failure is a [`Sense`]. A unit keeps the last one for REQUEST SENSE; an adapter that hands
//! it over with the command's status takes it, by [`Unit::take_sense`].
//!
//! Documents: "SCSI Primary Commands" 4 (SPC-4), "SCSI Block Commands" 3 (SBC-3), "Multi-Media
//! Commands" 6 (MMC-6), "SCSI Architecture Model" 5 (SAM-5).

mod block;
mod cd;
mod inquiry;
mod sense;
pub mod target;
mod unit;

pub use block::{DiskState, DiskUnit, UNMAP_BYTES_MAX};
pub use cd::{Cd, CdState};
pub use inquiry::Identity;
pub use sense::{Sense, key};
pub use unit::{Change, Outcome, Unit, UnitState};

/// Bytes of the longest command descriptor block that is looked at.
pub const CDB: usize = 16;

/// A number with its most significant byte first; what is not there counts as zero.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    (at..at.saturating_add(len))
        .fold(0, |sum, at| sum << 8 | u64::from(bytes.get(at).copied().unwrap_or(0)))
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
