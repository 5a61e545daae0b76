//! One request: its header, what it asks for, its status (5.2.6).

use crate::{
    SERIAL, VirtioBlk,
    config::{RANGE_SECTORS_MAX, RANGES_MAX},
};
use disk::{Error, SECTOR};
use std::sync::atomic::Ordering::Relaxed;
use virtio::{Chain, GuestError, Span};

/// Bytes that are moved at once.
pub const REQUEST_BUFFER: usize = 128 << 10;

/// Request types.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes that are discarded or zeroed at once, from a multiple of it on.
pub(crate) const RANGE_PIECE: u64 = 16 << 20;
/// Flag of a segment of WRITE_ZEROES.
const UNMAP: u32 = 1;
/// Header, and each segment of a discard.
const HEADER: usize = 16;

/// What the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why a request ends early.
enum Fault {
    Status(Status),
    Interrupted,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Status(match error {
            Error::Unsupported(_) => Status::Unsupported,
            _ => Status::IoError,
        })
    }
}

pub(crate) enum Outcome {
    /// All that the driver gave room for is written.
    Done,
    /// The device is to rest: nothing was reported, and the request may be begun anew.
    Interrupted,
}

pub(crate) struct Request {
    kind: u32,
    sector: u64,
    given: Span,
    wanted: Span,
    status: Span,
}

impl Request {
    pub(crate) fn parse(chain: Chain) -> Result<Self, GuestError> {
        let Chain { readable: mut given, writable: mut status, .. } = chain;
        let mut header = [0; HEADER];
        if given.read(&mut header) < HEADER {
            return Err(GuestError("a request has no header"));
        }
        let Some(data) = status.len().checked_sub(1) else {
            return Err(GuestError("a request has no room for its status"));
        };
        let wanted = status.split_front(data);
        let (kind, sector) = (word(&header, 0), long(&header, 8));
        Ok(Self { kind, sector, given, wanted, status })
    }
}

fn word(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn long(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

type Interrupted<'a> = &'a dyn Fn() -> bool;

impl VirtioBlk {
    pub(crate) fn execute(
        &self,
        mut request: Request,
        buffer: &mut Vec<u8>,
        interrupted: Interrupted<'_>,
    ) -> Outcome {
        buffer.resize(REQUEST_BUFFER, 0);
        let status = match self.perform(&mut request, buffer, interrupted) {
            Ok(()) => Status::Ok,
            Err(Fault::Status(status)) => {
                self.counters.errors.fetch_add(1, Relaxed);
                status
            }
            Err(Fault::Interrupted) => return Outcome::Interrupted,
        };
        // What is reported as written begins at the front and includes the status at the end
        // (2.7.8.2), so that there must be something in between.
        if !request.wanted.is_empty() {
            buffer.fill(0);
        }
        while !request.wanted.is_empty() {
            if interrupted() {
                return Outcome::Interrupted;
            }
            let here = piece(request.wanted.len(), buffer);
            request.wanted.write(&buffer[..here]);
        }
        request.status.write(&[status as u8]);
        Outcome::Done
    }

    fn perform(
        &self,
        request: &mut Request,
        buffer: &mut [u8],
        interrupted: Interrupted<'_>,
    ) -> Result<(), Fault> {
        match request.kind {
            kind::IN => self.read(request, buffer, interrupted),
            kind::OUT => self.write(request, buffer, interrupted),
            kind::FLUSH => self.flush(),
            kind::GET_ID if request.wanted.len() < SERIAL as u64 => {
                Err(Fault::Status(Status::IoError))
            }
            kind::GET_ID => {
                request.wanted.write(&self.serial);
                Ok(())
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(request, interrupted),
            _ => Err(Fault::Status(Status::Unsupported)),
        }
    }

    /// The byte at which a transfer begins, if all of it is inside the disk and whole blocks.
    fn place(&self, request: &Request, len: u64) -> Result<u64, Fault> {
        let shape = self.disk.shape();
        let offset = request.sector.checked_mul(SECTOR);
        let offset = offset.ok_or(Fault::Status(Status::IoError))?;
        shape.check(offset, len)?;
        if !(offset | len).is_multiple_of(shape.logical_block.into()) {
            return Err(Fault::Status(Status::IoError));
        }
        Ok(offset)
    }

    fn read(
        &self,
        request: &mut Request,
        buffer: &mut [u8],
        interrupted: Interrupted<'_>,
    ) -> Result<(), Fault> {
        let mut offset = self.place(request, request.wanted.len())?;
        while !request.wanted.is_empty() {
            if interrupted() {
                return Err(Fault::Interrupted);
            }
            let here = piece(request.wanted.len(), buffer);
            self.disk.read(offset, &mut buffer[..here])?;
            request.wanted.write(&buffer[..here]);
            self.counters.read.fetch_add(here as u64, Relaxed);
            offset += here as u64;
        }
        Ok(())
    }

    fn write(
        &self,
        request: &mut Request,
        buffer: &mut [u8],
        interrupted: Interrupted<'_>,
    ) -> Result<(), Fault> {
        let mut offset = self.place(request, request.given.len())?;
        self.disk.shape().check_write(offset, request.given.len())?;
        while !request.given.is_empty() {
            if interrupted() {
                return Err(Fault::Interrupted);
            }
            let here = piece(request.given.len(), buffer);
            request.given.read(&mut buffer[..here]);
            self.disk.write(offset, &buffer[..here])?;
            self.counters.written.fetch_add(here as u64, Relaxed);
            offset += here as u64;
        }
        if self.writes_through() { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Fault> {
        self.counters.flushes.fetch_add(1, Relaxed);
        Ok(self.disk.flush()?)
    }

    /// DISCARD and WRITE_ZEROES: a list of ranges.
    fn ranges(&self, request: &mut Request, interrupted: Interrupted<'_>) -> Result<(), Fault> {
        let zeroes = request.kind == kind::WRITE_ZEROES;
        let count = request.given.len() / HEADER as u64;
        let whole = request.given.len().is_multiple_of(HEADER as u64);
        if !whole || !(1..=u64::from(RANGES_MAX)).contains(&count) {
            return Err(Fault::Status(Status::IoError));
        }
        let mut segment = [0; HEADER];
        while request.given.read(&mut segment) == HEADER {
            if interrupted() {
                return Err(Fault::Interrupted);
            }
            let (sectors, flags) = (word(&segment, 8), word(&segment, 12));
            // 5.2.6.2: other flags, and unmap where it means nothing, are not supported.
            if flags & !UNMAP != 0 || (flags != 0 && !zeroes) {
                return Err(Fault::Status(Status::Unsupported));
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(Fault::Status(Status::IoError));
            }
            request.sector = long(&segment, 0);
            let len = u64::from(sectors) * SECTOR;
            let mut offset = self.place(request, len)?;
            let end = offset + len;
            while offset < end {
                // What stores the blocks may have to write them all.
                if interrupted() {
                    return Err(Fault::Interrupted);
                }
                let here = (RANGE_PIECE - offset % RANGE_PIECE).min(end - offset);
                if zeroes {
                    self.disk.write_zeroes(offset, here, flags & UNMAP != 0)?;
                } else {
                    self.disk.discard(offset, here)?;
                }
                self.counters.discarded.fetch_add(here, Relaxed);
                offset += here;
            }
        }
        if self.writes_through() { self.flush() } else { Ok(()) }
    }
}

fn piece(left: u64, buffer: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len())
}
