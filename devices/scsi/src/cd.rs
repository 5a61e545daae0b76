//! A CD drive: the commands of MMC-6 and SPC-4 that BIOSes, boot loaders and kernels use on a
//! drive that reads discs with one data track.

mod pages;

use crate::{Identity, Outcome, Sense, lock, number};
use disk::{Disk, Shape};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 2048;

mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP: u8 = 0x1b;
    pub const PREVENT_REMOVAL: u8 = 0x1e;
    pub const READ_CAPACITY: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const SEEK: u8 = 0x2b;
    pub const SYNCHRONIZE: u8 = 0x35;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_12: u8 = 0xa8;
    pub const SET_SPEED: u8 = 0xbb;
    pub const MECHANISM_STATUS: u8 = 0xbd;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdState {
    /// Of the last command.
    pub sense: Sense,
    /// What the next command is to be told.
    pub attention: Sense,
    /// The tray is open.
    pub ejected: bool,
    /// The guest forbade opening it.
    pub locked: bool,
}

type Disc = (Arc<dyn Disk>, Shape);

/// With what the host relies on.
fn measured(disc: Arc<dyn Disk>) -> Disc {
    let shape = disc.shape();
    (disc, shape)
}

pub struct Cd {
    /// For vital product data, which are optional (SPC-4, 6.4).
    identity: Option<Identity>,
    disc: Mutex<Option<Disc>>,
    state: Mutex<CdState>,
}

impl fmt::Debug for Cd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cd").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Cd {
    /// A drive, with a disc in it or without.
    pub fn new(disc: Option<Arc<dyn Disk>>, identity: Option<Identity>) -> Self {
        let state = CdState { attention: Sense::POWER_ON, ..CdState::default() };
        let disc = Mutex::new(disc.map(measured));
        Self { identity, disc, state: Mutex::new(state) }
    }

    /// Puts another disc in, of which the host hears by its next command, or takes out what there is.
    /// False if the host has locked the drive.
    pub fn insert(&self, disc: Option<Arc<dyn Disk>>) -> bool {
        let mut state = self.lock();
        if state.locked {
            return false;
        }
        state.ejected = false;
        // A reset that the host has not heard of is more than that.
        if disc.is_some() && state.attention == Sense::NONE {
            state.attention = Sense::DISC_CHANGED;
        }
        *lock(&self.disc) = disc.map(measured);
        true
    }

    fn disc(&self) -> Option<Disc> {
        lock(&self.disc).clone()
    }

    fn lock(&self) -> MutexGuard<'_, CdState> {
        lock(&self.state)
    }

    pub fn state(&self) -> CdState {
        *self.lock()
    }

    /// The host has been told of the last failure.
    pub fn take_sense(&self) -> Sense {
        std::mem::take(&mut self.lock().sense)
    }

    pub fn set_state(&self, state: CdState) {
        *self.lock() = state;
    }

    /// The tray stays as it is; the host is told why by its next command.
    pub fn reset(&self, why: Sense) {
        let mut state = self.lock();
        *state = CdState { attention: why, ejected: state.ejected, ..CdState::default() };
    }

    fn fail(state: &mut CdState, why: Sense) -> Outcome {
        state.sense = why;
        Outcome::Failed(why)
    }

    /// The host asked for data in the wrong direction.
    pub fn refuse_field(&self) -> Outcome {
        Self::fail(&mut self.lock(), Sense::BAD_FIELD)
    }

    /// Blocks of the disc, if there is one to be read.
    fn blocks(&self, state: &CdState) -> Result<u64, Sense> {
        match self.disc() {
            _ if state.ejected => Err(Sense::TRAY_OPEN),
            None => Err(Sense::NO_DISC),
            Some((_, shape)) => Ok(shape.bytes.div_ceil(BLOCK)),
        }
    }

    /// Executes a packet; what comes of it is never more than reading.
    pub fn command(&self, packet: &[u8; 12]) -> Outcome {
        let mut state = self.lock();
        let code = packet[0];
        // These report, and do not clear, what there is to be attended to (SPC-4, 5.14).
        let quiet = [op::INQUIRY, op::REQUEST_SENSE, op::GET_CONFIGURATION, op::GET_EVENT_STATUS];
        if state.attention != Sense::NONE && !quiet.contains(&code) {
            let why = std::mem::take(&mut state.attention);
            return Self::fail(&mut state, why);
        }
        if code == op::REQUEST_SENSE {
            let mut now = std::mem::take(&mut state.sense);
            if now == Sense::NONE {
                now = std::mem::take(&mut state.attention);
            }
            return cut(now.fixed().to_vec(), number(packet, 4, 1));
        }
        state.sense = Sense::NONE;
        match self.execute(packet, &mut state) {
            Ok(outcome) => outcome,
            Err(why) => Self::fail(&mut state, why),
        }
    }

    fn execute(&self, packet: &[u8; 12], state: &mut CdState) -> Result<Outcome, Sense> {
        let (short, long) = (number(packet, 4, 1), number(packet, 7, 2));
        Ok(match packet[0] {
            op::TEST_UNIT_READY | op::SEEK => {
                self.blocks(state)?;
                Outcome::Good
            }
            op::SET_SPEED | op::SYNCHRONIZE => Outcome::Good,
            op::INQUIRY => cut(self.inquiry(packet)?, number(packet, 3, 2)),
            op::START_STOP => self.start_stop(packet[4] & 3, state)?,
            op::PREVENT_REMOVAL => {
                state.locked = packet[4] & 1 != 0;
                Outcome::Good
            }
            op::READ_CAPACITY => Outcome::Data(pages::capacity(self.blocks(state)?)),
            op::READ_10 => self.find(number(packet, 2, 4), long, state)?,
            op::READ_12 => self.find(number(packet, 2, 4), number(packet, 6, 4), state)?,
            op::READ_TOC => {
                let blocks = self.blocks(state)?;
                // The format was in the last byte once.
                let format = if packet[2] & 0xf != 0 { packet[2] & 0xf } else { packet[9] >> 6 };
                let minutes = packet[1] & 2 != 0;
                let toc = pages::toc(format, minutes, packet[6], blocks);
                cut(toc.ok_or(Sense::BAD_FIELD)?, long)
            }
            op::GET_CONFIGURATION => {
                let disc = self.blocks(state).is_ok();
                cut(pages::configuration(packet[1] & 3, number(packet, 2, 2) as u16, disc), long)
            }
            // Only an answer at once; there is nothing that waits (MMC, 6.6).
            op::GET_EVENT_STATUS if packet[1] & 1 != 0 => {
                let disc = self.blocks(state).is_ok();
                cut(pages::event_status(packet[4], disc, state.ejected), long)
            }
            op::READ_DISC_INFORMATION => {
                self.blocks(state)?;
                cut(pages::disc_information(), long)
            }
            op::MODE_SENSE_6 => {
                let page = pages::mode(packet[2], state.locked, false);
                cut(page.ok_or(Sense::BAD_FIELD)?, short)
            }
            op::MODE_SENSE_10 => {
                let page = pages::mode(packet[2], state.locked, true);
                cut(page.ok_or(Sense::BAD_FIELD)?, long)
            }
            op::MECHANISM_STATUS => cut(pages::mechanism(state.ejected), number(packet, 8, 2)),
            op::GET_EVENT_STATUS => return Err(Sense::BAD_FIELD),
            _ => return Err(Sense::NO_SUCH_COMMAND),
        })
    }

    fn inquiry(&self, packet: &[u8; 12]) -> Result<Vec<u8>, Sense> {
        match (packet[1] & 1, packet[2]) {
            (0, 0) => Ok(pages::inquiry()),
            (1, page) => {
                let identity = self.identity.as_ref().ok_or(Sense::BAD_FIELD)?;
                identity.page(pages::KIND, page, pages::PRODUCT, &[]).ok_or(Sense::BAD_FIELD)
            }
            _ => Err(Sense::BAD_FIELD),
        }
    }

    /// Bits 0 and 1: start, and whether that means the tray (MMC, 6.42).
    fn start_stop(&self, what: u8, state: &mut CdState) -> Result<Outcome, Sense> {
        match what {
            2 if state.locked => return Err(Sense::LOCKED),
            2 => state.ejected = true,
            3 => {
                // A reset that the host has not heard of is more than that.
                if state.ejected && self.disc().is_some() && state.attention == Sense::NONE {
                    state.attention = Sense::DISC_CHANGED;
                }
                state.ejected = false;
            }
            _ => {}
        }
        Ok(Outcome::Good)
    }

    fn find(&self, first: u64, count: u64, state: &CdState) -> Result<Outcome, Sense> {
        let blocks = self.blocks(state)?;
        let end = first.checked_add(count).filter(|end| *end <= blocks);
        end.ok_or(Sense::NO_SUCH_ADDRESS)?;
        Ok(if count == 0 {
            Outcome::Good
        } else {
            Outcome::Read { at: first * BLOCK, len: count * BLOCK }
        })
    }

    /// Bytes of the disc that a command asked for; why not, if that fails. Behind the end of the last
    /// block's file there are zeroes.
    pub fn read(&self, at: u64, data: &mut [u8]) -> Result<(), Sense> {
        let failed = |why| {
            self.lock().sense = why;
            why
        };
        // No command is let through while there is something to be told: it came after this one.
        let news = self.lock().attention;
        if news != Sense::NONE {
            return Err(failed(news));
        }
        let (disc, shape) = self.disc().ok_or(Sense::NO_DISC).map_err(failed)?;
        let there = shape.bytes.saturating_sub(at).min(data.len() as u64) as usize;
        let (file, rest) = data.split_at_mut(there);
        rest.fill(0);
        disc.read(at, file).map_err(|_| failed(Sense::READ_ERROR))
    }
}

/// The host says how much it takes.
fn cut(mut data: Vec<u8>, allowed: u64) -> Outcome {
    data.truncate(allowed as usize);
    Outcome::Data(data)
}

#[cfg(test)]
mod tests;
