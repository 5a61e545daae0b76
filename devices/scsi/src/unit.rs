//! A logical unit, whatever it is.

use crate::{CDB, Cd, CdState, DiskState, DiskUnit, Sense};
use serde::{Deserialize, Serialize};

/// What comes of a command. Places and lengths are bytes of the medium, and are inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    /// For the host, cut to what it allows.
    Data(Vec<u8>),
    Read {
        at: u64,
        len: u64,
    },
    /// The host's data are to be written; `sync`: and to be on stable storage then.
    Write {
        at: u64,
        len: u64,
        sync: bool,
    },
    Change {
        changes: Vec<Change>,
        sync: bool,
    },
    Flush,
    /// So many bytes of the host's are needed, for [`Unit::parameters`].
    Parameters(usize),
    Failed(Sense),
}

/// A change of the medium that needs no more data of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nobody needs these bytes any more.
    Discard { at: u64, len: u64 },
    /// `unmap`: their storage may be given back.
    Zero { at: u64, len: u64, unmap: bool },
    /// The same bytes again and again; as many times as go into the length.
    Fill { at: u64, len: u64, pattern: Vec<u8> },
}

/// A logical unit.
#[derive(Debug)]
pub enum Unit {
    Disk(DiskUnit),
    Cd(Cd),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum UnitState {
    Disk(DiskState),
    Cd(CdState),
}

impl Unit {
    /// What a command means. REPORT LUNS is the target's, not a unit's.
    pub fn command(&self, cdb: &[u8; CDB]) -> Outcome {
        match self {
            Self::Disk(disk) => disk.command(cdb),
            Self::Cd(cd) => match cdb.first_chunk() {
                Some(packet) => cd.command(packet),
                None => Outcome::Failed(Sense::BAD_FIELD),
            },
        }
    }

    /// The same, once the parameters are there that the command needs.
    pub fn parameters(&self, cdb: &[u8; CDB], data: &[u8]) -> Outcome {
        match self {
            Self::Disk(disk) => disk.parameters(cdb, data),
            Self::Cd(_) => Outcome::Failed(Sense::NO_SUCH_COMMAND),
        }
    }

    /// # Errors
    /// What is wrong, which REQUEST SENSE will tell, too; so it is with all that follow.
    pub fn read(&self, at: u64, data: &mut [u8]) -> Result<(), Sense> {
        match self {
            Self::Disk(disk) => disk.read(at, data),
            Self::Cd(cd) => cd.read(at, data),
        }
    }

    /// # Errors
    /// As for [`Self::read`].
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), Sense> {
        self.disk()?.write(at, data)
    }

    /// # Errors
    /// As for [`Self::read`].
    pub fn flush(&self) -> Result<(), Sense> {
        self.disk()?.flush()
    }

    /// # Errors
    /// As for [`Self::read`].
    pub fn zero(&self, at: u64, len: u64, unmap: bool) -> Result<(), Sense> {
        self.disk()?.zero(at, len, unmap)
    }

    /// # Errors
    /// As for [`Self::read`].
    pub fn discard(&self, at: u64, len: u64) -> Result<(), Sense> {
        self.disk()?.discard(at, len)
    }

    fn disk(&self) -> Result<&DiskUnit, Sense> {
        match self {
            Self::Disk(disk) => Ok(disk),
            Self::Cd(_) => Err(Sense::WRITE_PROTECTED),
        }
    }

    /// Back to where it was at power-on; the host is told why by its next command.
    pub fn reset(&self, why: Sense) {
        match self {
            Self::Disk(disk) => disk.reset(why),
            Self::Cd(cd) => cd.reset(why),
        }
    }

    /// The host has been told of the last failure.
    pub fn take_sense(&self) -> Sense {
        match self {
            Self::Disk(disk) => disk.take_sense(),
            Self::Cd(cd) => cd.take_sense(),
        }
    }

    pub fn state(&self) -> UnitState {
        match self {
            Self::Disk(disk) => UnitState::Disk(disk.state()),
            Self::Cd(cd) => UnitState::Cd(cd.state()),
        }
    }

    /// Whether such a unit can have been in this state.
    pub fn accepts(&self, state: &UnitState) -> bool {
        match (self, state) {
            (Self::Disk(disk), UnitState::Disk(state)) => disk.accepts(state),
            (Self::Cd(_), UnitState::Cd(_)) => true,
            _ => false,
        }
    }

    /// What [`Self::accepts`] refuses changes nothing.
    pub fn set_state(&self, state: &UnitState) {
        match (self, state) {
            (Self::Disk(disk), UnitState::Disk(state)) if disk.accepts(state) => {
                disk.set_state(*state);
            }
            (Self::Cd(cd), UnitState::Cd(state)) => cd.set_state(*state),
            _ => {}
        }
    }
}
