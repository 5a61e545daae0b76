//! A disk: a direct access block device (SBC-3).

mod mode;
mod parameters;
mod vital;

use crate::{CDB, Identity, Outcome, Sense, inquiry, lock, number};
use disk::{Disk, Error, Shape};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex},
};

/// Bytes that one command may discard or fill: longer ones would keep a reset waiting.
pub const UNMAP_BYTES_MAX: u64 = 1 << 30;

/// The peripheral device type (SPC-4, 6.4.2).
const KIND: u8 = 0x00;
const PRODUCT: &inquiry::Product = b"HARDDISK        ";

mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP: u8 = 0x1b;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const VERIFY_12: u8 = 0xaf;
}

/// Service action of [`op::SERVICE_ACTION_IN_16`].
const READ_CAPACITY_16: u8 = 0x10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskState {
    /// Its capacity in bytes: the host relies on it.
    pub capacity: u64,
    /// Of the last command.
    pub sense: Sense,
    /// What the next command is to be told.
    pub attention: Sense,
    /// Writes wait for SYNCHRONIZE CACHE, as the host chose.
    pub write_cache: bool,
    /// By START STOP UNIT.
    pub stopped: bool,
}

/// A disk of fixed size.
pub struct DiskUnit {
    disk: Arc<dyn Disk>,
    shape: Shape,
    identity: Identity,
    state: Mutex<DiskState>,
}

impl fmt::Debug for DiskUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskUnit").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// What a storage's error is to the host.
fn sense_of(error: &Error, otherwise: Sense) -> Sense {
    match error {
        Error::OutOfRange { .. } => Sense::NO_SUCH_ADDRESS,
        Error::ReadOnly => Sense::WRITE_PROTECTED,
        Error::Unsupported(_) => Sense::NO_SUCH_COMMAND,
        Error::Io { .. } => otherwise,
    }
}

/// Address and number of blocks of a command, by its length (SBC-3, 4.2.2).
fn blocks(cdb: &[u8; CDB]) -> (u64, u64) {
    match cdb[0] >> 5 {
        // 21 bits of address; no blocks are 256.
        0 => {
            let count = number(cdb, 4, 1);
            (number(cdb, 1, 3) & 0x1f_ffff, if count == 0 { 256 } else { count })
        }
        4 => (number(cdb, 2, 8), number(cdb, 10, 4)),
        5 => (number(cdb, 2, 4), number(cdb, 6, 4)),
        _ => (number(cdb, 2, 4), number(cdb, 7, 2)),
    }
}

/// Protection information is not stored (SBC-3, 5.11).
fn unprotected(cdb: &[u8; CDB]) -> Result<(), Sense> {
    if cdb[0] >> 5 != 0 && cdb[1] & 0xe0 != 0 { Err(Sense::BAD_FIELD) } else { Ok(()) }
}

fn cut(mut data: Vec<u8>, allowed: u64) -> Outcome {
    data.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
    Outcome::Data(data)
}

impl DiskUnit {
    pub fn new(disk: Arc<dyn Disk>, identity: Identity) -> Self {
        let shape = disk.shape();
        let state = DiskState {
            capacity: shape.bytes,
            sense: Sense::NONE,
            attention: Sense::POWER_ON,
            write_cache: true,
            stopped: false,
        };
        Self { disk, shape, identity, state: Mutex::new(state) }
    }

    pub(crate) fn state(&self) -> DiskState {
        *lock(&self.state)
    }

    pub(crate) fn accepts(&self, state: &DiskState) -> bool {
        state.capacity == self.shape.bytes
    }

    pub(crate) fn set_state(&self, state: DiskState) {
        *lock(&self.state) = state;
    }

    pub(crate) fn take_sense(&self) -> Sense {
        std::mem::take(&mut lock(&self.state).sense)
    }

    pub(crate) fn reset(&self, why: Sense) {
        *lock(&self.state) = DiskState {
            capacity: self.shape.bytes,
            sense: Sense::NONE,
            attention: why,
            write_cache: true,
            stopped: false,
        };
    }

    fn block(&self) -> u64 {
        u64::from(self.shape.logical_block).max(1)
    }

    fn fail(&self, why: Sense) -> Sense {
        lock(&self.state).sense = why;
        why
    }

    fn settle(&self, result: Result<Outcome, Sense>) -> Outcome {
        result.unwrap_or_else(|why| Outcome::Failed(self.fail(why)))
    }

    pub(crate) fn command(&self, cdb: &[u8; CDB]) -> Outcome {
        let mut state = lock(&self.state);
        if cdb[0] == op::REQUEST_SENSE {
            // The other format is not there (SPC-4, 6.39).
            if cdb[1] & 1 != 0 {
                drop(state);
                return Outcome::Failed(self.fail(Sense::BAD_FIELD));
            }
            let mut now = std::mem::take(&mut state.sense);
            if now == Sense::NONE {
                now = std::mem::take(&mut state.attention);
            }
            return cut(now.fixed().to_vec(), number(cdb, 4, 1));
        }
        // It reports, and does not clear, what there is to be attended to (SAM-5, 5.14).
        if cdb[0] != op::INQUIRY && state.attention != Sense::NONE {
            state.sense = std::mem::take(&mut state.attention);
            return Outcome::Failed(state.sense);
        }
        state.sense = Sense::NONE;
        let result = self.execute(cdb, &mut state);
        drop(state);
        self.settle(result)
    }

    pub(crate) fn parameters(&self, cdb: &[u8; CDB], data: &[u8]) -> Outcome {
        let mut state = lock(&self.state);
        let result = match cdb[0] {
            op::UNMAP => self.unmap(data, !state.write_cache),
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => self.same(cdb, data, !state.write_cache),
            op::MODE_SELECT_6 => self.mode_select(data, false, &mut state),
            op::MODE_SELECT_10 => self.mode_select(data, true, &mut state),
            _ => Err(Sense::NO_SUCH_COMMAND),
        };
        drop(state);
        self.settle(result)
    }

    fn execute(&self, cdb: &[u8; CDB], state: &mut DiskState) -> Result<Outcome, Sense> {
        let (short, long) = (number(cdb, 4, 1), number(cdb, 7, 2));
        // These need no medium.
        let outcome = match cdb[0] {
            op::INQUIRY => cut(self.inquiry(cdb)?, number(cdb, 3, 2)),
            op::START_STOP => Self::start_stop(cdb, state),
            op::MODE_SENSE_6 => cut(self.mode_sense(cdb, false, state)?, short),
            op::MODE_SENSE_10 => cut(self.mode_sense(cdb, true, state)?, long),
            op::MODE_SELECT_6 => mode::select(cdb, short)?,
            op::MODE_SELECT_10 => mode::select(cdb, long)?,
            _ if state.stopped => return Err(Sense::STOPPED),
            _ => return self.on_medium(cdb, state),
        };
        Ok(outcome)
    }

    fn on_medium(&self, cdb: &[u8; CDB], state: &DiskState) -> Result<Outcome, Sense> {
        Ok(match cdb[0] {
            op::TEST_UNIT_READY => Outcome::Good,
            op::READ_CAPACITY_10 => Outcome::Data(self.capacity_10()),
            op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == READ_CAPACITY_16 => {
                cut(self.capacity_16(), number(cdb, 10, 4))
            }
            op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => {
                let (at, len) = self.place(cdb)?;
                Outcome::Read { at, len }
            }
            op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => {
                let (at, len) = self.place(cdb)?;
                self.writable()?;
                // Force unit access (SBC-3, 5.29).
                let sync = !state.write_cache || cdb[0] != op::WRITE_6 && cdb[1] & 8 != 0;
                Outcome::Write { at, len, sync }
            }
            // Nothing to compare with; what is there can be read, or reading will say so.
            op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 if cdb[1] & 6 == 0 => {
                self.place(cdb)?;
                Outcome::Good
            }
            op::SYNCHRONIZE_10 | op::SYNCHRONIZE_16 => {
                let (first, count) = blocks(cdb);
                self.range(first, count)?;
                Outcome::Flush
            }
            op::UNMAP if self.shape.discard => {
                self.writable()?;
                // ANCHOR: nothing can be reserved.
                if cdb[1] & 1 != 0 {
                    return Err(Sense::BAD_FIELD);
                }
                match number(cdb, 7, 2) {
                    0 => Outcome::Good,
                    len => Outcome::Parameters(len as usize),
                }
            }
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => self.write_same(cdb, !state.write_cache)?,
            op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 | op::SERVICE_ACTION_IN_16 => {
                return Err(Sense::BAD_FIELD);
            }
            _ => return Err(Sense::NO_SUCH_COMMAND),
        })
    }

    /// Power conditions make no difference; stopping flushes first (SBC-3, 5.25).
    fn start_stop(cdb: &[u8; CDB], state: &mut DiskState) -> Outcome {
        if cdb[4] & 0xf0 != 0 {
            return Outcome::Good;
        }
        state.stopped = cdb[4] & 1 == 0;
        if state.stopped { Outcome::Flush } else { Outcome::Good }
    }

    fn writable(&self) -> Result<(), Sense> {
        if self.shape.read_only { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
    }

    /// Bytes of blocks that are there.
    fn range(&self, first: u64, count: u64) -> Result<(u64, u64), Sense> {
        let bytes = |blocks: u64| blocks.checked_mul(self.block()).ok_or(Sense::NO_SUCH_ADDRESS);
        let (at, len) = (bytes(first)?, bytes(count)?);
        self.shape.check(at, len).map_err(|_| Sense::NO_SUCH_ADDRESS)?;
        Ok((at, len))
    }

    fn place(&self, cdb: &[u8; CDB]) -> Result<(u64, u64), Sense> {
        unprotected(cdb)?;
        let (first, count) = blocks(cdb);
        self.range(first, count)
    }

    /// The last block, or all ones where 32 bits do not do (SBC-3, 5.16).
    fn capacity_10(&self) -> Vec<u8> {
        let last = (self.shape.bytes / self.block()).saturating_sub(1);
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        [last.to_be_bytes(), self.shape.logical_block.to_be_bytes()].concat()
    }

    /// The same, and the physical blocks, and whether there is thin provisioning (SBC-3, 5.17).
    fn capacity_16(&self) -> Vec<u8> {
        let last = (self.shape.bytes / self.block()).saturating_sub(1);
        let mut data = last.to_be_bytes().to_vec();
        data.extend(self.shape.logical_block.to_be_bytes());
        let ratio = u64::from(self.shape.physical_block) / self.block();
        data.extend([0, ratio.max(1).ilog2() as u8, u8::from(self.thin()) << 7]);
        data.resize(32, 0);
        data
    }

    /// Blocks can be given back.
    fn thin(&self) -> bool {
        self.shape.discard && !self.shape.read_only
    }

    pub(crate) fn read(&self, at: u64, data: &mut [u8]) -> Result<(), Sense> {
        let result = self.disk.read(at, data);
        result.map_err(|error| self.fail(sense_of(&error, Sense::READ_ERROR)))
    }

    fn change(&self, work: impl FnOnce(&dyn Disk) -> Result<(), Error>) -> Result<(), Sense> {
        work(&*self.disk).map_err(|error| self.fail(sense_of(&error, Sense::WRITE_ERROR)))
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<(), Sense> {
        self.change(|disk| disk.write(at, data))
    }

    pub(crate) fn flush(&self) -> Result<(), Sense> {
        self.change(|disk| disk.flush())
    }

    pub(crate) fn zero(&self, at: u64, len: u64, unmap: bool) -> Result<(), Sense> {
        self.change(|disk| disk.write_zeroes(at, len, unmap))
    }

    pub(crate) fn discard(&self, at: u64, len: u64) -> Result<(), Sense> {
        self.change(|disk| disk.discard(at, len))
    }
}

#[cfg(test)]
mod tests;
