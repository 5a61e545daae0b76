//! Moves a command's data between the driver's buffers and the unit, in pieces of bounded size.

use crate::{Response, VirtioScsi};
use scsi::{CDB, Change, Outcome, Sense, Unit};
use std::sync::atomic::Ordering::Relaxed;
use virtio::Span;

/// Bytes that are discarded or zeroed at once, from a multiple of it on.
const RANGE_PIECE: u64 = 16 << 20;

/// Why a command ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Sense(Sense),
    Response(Response),
    Interrupted,
}

impl From<Sense> for Fault {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

/// What the driver gives and wants, of which one is empty.
pub(crate) struct Transfer<'a> {
    pub(crate) given: &'a mut Span,
    pub(crate) wanted: &'a mut Span,
    pub(crate) buffer: &'a mut [u8],
    /// Asked between pieces.
    pub(crate) stop: &'a dyn Fn() -> Option<Fault>,
    /// Bytes so far.
    pub(crate) moved: u64,
}

impl Transfer<'_> {
    fn go_on(&self) -> Result<(), Fault> {
        (self.stop)().map_or(Ok(()), Err)
    }

    pub(crate) fn carry_out(
        &mut self,
        adapter: &VirtioScsi,
        unit: Option<&Unit>,
        cdb: &[u8; CDB],
        outcome: Outcome,
    ) -> Result<(), Fault> {
        let overrun = Err(Fault::Response(Response::Overrun));
        let outcome = match (outcome, unit) {
            (Outcome::Parameters(len), Some(unit)) => {
                let list = self.buffer.get_mut(..len);
                let list = list.ok_or(Fault::Sense(Sense::PARAMETER_LENGTH))?;
                if self.given.len() < len as u64 {
                    return overrun;
                }
                self.moved += self.given.read(list) as u64;
                unit.parameters(cdb, list)
            }
            (outcome, _) => outcome,
        };
        match (outcome, unit) {
            (Outcome::Good, _) => Ok(()),
            (Outcome::Failed(sense), _) => Err(sense.into()),
            (Outcome::Data(data), _) => {
                let written = self.wanted.write(&data);
                self.moved += written as u64;
                if written < data.len() { overrun } else { Ok(()) }
            }
            (Outcome::Read { len, .. }, _) if len > self.wanted.len() => overrun,
            (Outcome::Write { len, .. }, _) if len > self.given.len() => overrun,
            (Outcome::Read { at, len }, Some(unit)) => self.read(adapter, unit, at, len),
            (Outcome::Write { at, len, sync }, Some(unit)) => {
                self.write(adapter, unit, at, len)?;
                sync_if(sync, adapter, unit)
            }
            (Outcome::Change { changes, sync }, Some(unit)) => {
                for change in changes {
                    self.change(adapter, unit, &change)?;
                }
                sync_if(sync, adapter, unit)
            }
            (Outcome::Flush, Some(unit)) => sync_if(true, adapter, unit),
            // A target's own commands come to none of these, and parameters need no parameters.
            _ => Err(Fault::Response(Response::Failure)),
        }
    }

    fn read(&mut self, adapter: &VirtioScsi, unit: &Unit, at: u64, len: u64) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            self.go_on()?;
            let here = piece(len - done, self.buffer);
            let data = self.buffer.get_mut(..here).unwrap_or_default();
            unit.read(at + done, data)?;
            self.wanted.write(data);
            done += here as u64;
            self.moved += here as u64;
            adapter.counters.read.fetch_add(here as u64, Relaxed);
        }
        Ok(())
    }

    fn write(&mut self, adapter: &VirtioScsi, unit: &Unit, at: u64, len: u64) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            self.go_on()?;
            let here = piece(len - done, self.buffer);
            let data = self.buffer.get_mut(..here).unwrap_or_default();
            self.given.read(data);
            unit.write(at + done, data)?;
            done += here as u64;
            self.moved += here as u64;
            adapter.counters.written.fetch_add(here as u64, Relaxed);
        }
        Ok(())
    }

    fn change(&self, adapter: &VirtioScsi, unit: &Unit, change: &Change) -> Result<(), Fault> {
        let (&(Change::Discard { at, len } | Change::Zero { at, len, .. })
        | &Change::Fill { at, len, .. }) = change;
        let mut offset = at;
        let end = at.saturating_add(len);
        while offset < end {
            // What stores the blocks may have to write them all.
            self.go_on()?;
            let here = match change {
                Change::Fill { pattern, .. } => {
                    let here = piece(end - offset, pattern);
                    unit.write(offset, pattern.get(..here).unwrap_or_default())?;
                    adapter.counters.written.fetch_add(here as u64, Relaxed);
                    (here as u64).max(1)
                }
                Change::Discard { .. } | Change::Zero { .. } => {
                    let here = (RANGE_PIECE - offset % RANGE_PIECE).min(end - offset);
                    match change {
                        Change::Zero { unmap, .. } => unit.zero(offset, here, *unmap)?,
                        _ => unit.discard(offset, here)?,
                    }
                    adapter.counters.discarded.fetch_add(here, Relaxed);
                    here
                }
            };
            offset += here;
        }
        Ok(())
    }
}

fn sync_if(sync: bool, adapter: &VirtioScsi, unit: &Unit) -> Result<(), Fault> {
    if sync {
        adapter.counters.flushes.fetch_add(1, Relaxed);
        unit.flush()?;
    }
    Ok(())
}

fn piece(left: u64, buffer: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len())
}
