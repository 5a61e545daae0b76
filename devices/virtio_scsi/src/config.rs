//! The device's configuration structure (5.6.4).

use crate::{LUN_MAX, QUEUE_SIZE, TARGET_MAX};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Bytes of an event.
pub(crate) const EVENT: u32 = 16;
/// What the driver finds, and may change (5.6.4).
pub(crate) const SENSE_DEFAULT: u32 = 96;
pub(crate) const CDB_DEFAULT: u32 = 32;
/// Longer ones would be for nothing: sense data have 252 bytes at most, commands 260 (SPC-4).
pub(crate) const SENSE_MAX: u32 = 252;
pub(crate) const CDB_MAX: u32 = 260;

const SENSE_AT: u64 = 20;
const CDB_AT: u64 = 24;

/// The two sizes that the driver chooses.
#[derive(Debug)]
pub(crate) struct Sizes {
    pub(crate) sense: AtomicU32,
    pub(crate) cdb: AtomicU32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { sense: SENSE_DEFAULT.into(), cdb: CDB_DEFAULT.into() }
    }
}

impl Sizes {
    pub(crate) fn reset(&self) {
        self.set(SENSE_DEFAULT, CDB_DEFAULT);
    }

    pub(crate) fn set(&self, sense: u32, cdb: u32) {
        self.sense.store(sense, SeqCst);
        self.cdb.store(cdb, SeqCst);
    }

    pub(crate) fn get(&self) -> (u32, u32) {
        (self.sense.load(SeqCst), self.cdb.load(SeqCst))
    }

    /// Whether a driver may choose these.
    pub(crate) fn sound(sense: u32, cdb: u32) -> bool {
        sense <= SENSE_MAX && (1..=CDB_MAX).contains(&cdb)
    }

    pub(crate) fn read(&self, queues: u16, offset: u64, data: &mut [u8]) {
        let (sense, cdb) = self.get();
        // num_queues, seg_max (a header and an answer go with the data), max_sectors, cmd_per_lun,
        // event_info_size, sense_size, cdb_size; then max_channel, max_target, max_lun.
        let words = [queues.into(), u32::from(QUEUE_SIZE) - 2, 0xffff, 128, EVENT, sense, cdb];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend([0, 0, TARGET_MAX, 0]);
        bytes.extend(u32::from(LUN_MAX).to_le_bytes());
        virtio::read_config_bytes(&bytes, offset, data);
    }

    /// A size that nobody has is not taken.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        let (sense, cdb) = self.get();
        match offset {
            SENSE_AT if Self::sound(value, cdb) => self.sense.store(value, SeqCst),
            CDB_AT if Self::sound(sense, value) => self.cdb.store(value, SeqCst),
            _ => {}
        }
    }
}
