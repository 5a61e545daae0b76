//! One request: what it asks for, and what it is told.

use crate::{SEGMENTS_MAX, grants::Grants, queue::Shared};
use disk::Error;
use std::sync::{Arc, atomic::Ordering::Relaxed};
use xen_abi::blkif::{
    Discard, Indirect, Request, Response, SECTOR, SEGMENTS, SEGMENTS_PER_PAGE, Segment, op, status,
};
use xen_front::{Access, Grant};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes that are moved at once.
pub const REQUEST_BUFFER: usize = 128 << 10;
/// Segments whose bytes are moved at once: each has a page at most.
const AT_ONCE: usize = REQUEST_BUFFER / 4096;
/// Sectors of a page.
const PAGE_SECTORS: u8 = 8;
/// Bytes that are discarded at once, from a multiple of it on: longer would keep a pause waiting.
const DISCARD_PIECE: u64 = 16 << 20;

pub(crate) enum Outcome {
    Done(Response),
    /// The device is to rest: nothing was reported, and the request may be begun anew.
    Interrupted,
}

/// Why a request ends early.
enum Fault {
    Status(i16),
    Interrupted,
}

const WRONG: Fault = Fault::Status(status::ERROR);
const UNSUPPORTED: Fault = Fault::Status(status::EOPNOTSUPP);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Unsupported(_) => UNSUPPORTED,
            _ => WRONG,
        }
    }
}

impl From<xen_front::Error> for Fault {
    fn from(_: xen_front::Error) -> Self {
        WRONG
    }
}

/// What a request works with.
struct Work<'a> {
    shared: &'a Shared,
    grants: &'a mut Grants,
    buffer: &'a mut Vec<u8>,
    rests: &'a dyn Fn() -> bool,
}

/// A segment with its page.
struct Part {
    page: Arc<Grant>,
    /// In bytes, inside of the page.
    offset: usize,
    len: usize,
}

/// Carries out a request, which is a copy of what the driver wrote.
pub(crate) fn execute(
    shared: &Shared,
    request: &Request,
    grants: &mut Grants,
    buffer: &mut Vec<u8>,
    rests: &dyn Fn() -> bool,
) -> Outcome {
    let mut work = Work { shared, grants, buffer, rests };
    let indirect = as_other::<Indirect>(request);
    let (operation, done) = match request.operation {
        // The driver is told of what was to be done.
        op::INDIRECT => (indirect.inner, work.indirect(&indirect)),
        op::DISCARD => (op::DISCARD, work.discard(&as_other(request))),
        other => (other, work.plain(request)),
    };
    let status = match done {
        Ok(()) => status::OKAY,
        Err(Fault::Interrupted) => return Outcome::Interrupted,
        Err(Fault::Status(status)) => {
            shared.counters.errors.fetch_add(1, Relaxed);
            status
        }
    };
    shared.counters.requests.fetch_add(1, Relaxed);
    Outcome::Done(Response { id: request.id, operation, status, ..Response::default() })
}

/// The same bytes, of which all kinds have the same number for their id.
fn as_other<T: FromBytes>(request: &Request) -> T {
    T::read_from_prefix(request.as_bytes()).map_or_else(|_| T::new_zeroed(), |(other, _)| other)
}

impl Work<'_> {
    fn plain(&mut self, request: &Request) -> Result<(), Fault> {
        let count = usize::from(request.segments);
        let segments = request.segment.get(..count).ok_or(WRONG);
        match request.operation {
            op::READ | op::WRITE => {
                self.transfer(request.operation == op::WRITE, request.sector, segments?)
            }
            op::FLUSH_DISKCACHE => {
                self.shared.disk.flush()?;
                self.shared.counters.flushes.fetch_add(1, Relaxed);
                // What was written before is on the disk, and now this.
                match segments? {
                    [] => Ok(()),
                    segments => self.transfer(true, request.sector, segments),
                }
            }
            _ => Err(UNSUPPORTED),
        }
    }

    fn indirect(&mut self, request: &Indirect) -> Result<(), Fault> {
        let write = match request.inner {
            op::READ => false,
            op::WRITE => true,
            _ => return Err(UNSUPPORTED),
        };
        if request.segments > SEGMENTS_MAX {
            return Err(WRONG);
        }
        let mut segments = vec![Segment::default(); usize::from(request.segments)];
        for (grant, part) in request.pages.iter().zip(segments.chunks_mut(SEGMENTS_PER_PAGE)) {
            self.grants.map_once(*grant, Access::Read)?.read(0, part.as_mut_bytes())?;
        }
        self.transfer(write, request.sector, &segments)
    }

    /// The byte at which an access begins, if all of it is inside the disk and whole blocks.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Fault> {
        let shape = self.shared.disk.shape();
        let offset = sector.checked_mul(SECTOR).ok_or(WRONG)?;
        shape.check(offset, len)?;
        let whole = (offset | len).is_multiple_of(shape.logical_block.into());
        if whole { Ok(offset) } else { Err(WRONG) }
    }

    fn transfer(&mut self, write: bool, sector: u64, segments: &[Segment]) -> Result<(), Fault> {
        let sectors = |segment: &Segment| {
            let right = segment.first <= segment.last && segment.last < PAGE_SECTORS;
            if right { Ok(u64::from(segment.last - segment.first) + 1) } else { Err(WRONG) }
        };
        let len = segments.iter().map(sectors).sum::<Result<u64, Fault>>()? * SECTOR;
        if len == 0 {
            return Err(WRONG);
        }
        let mut offset = self.place(sector, len)?;
        if write {
            self.shared.disk.shape().check_write(offset, len)?;
        }
        // All of them, before the first byte moves.
        let access = if write { Access::Read } else { Access::Write };
        let part = |segment: &Segment| {
            let (first, last) = (usize::from(segment.first), usize::from(segment.last));
            let (offset, len) = (first * SECTOR as usize, (last - first + 1) * SECTOR as usize);
            Ok(Part { page: self.grants.map(segment.grant, access)?, offset, len })
        };
        let parts = segments.iter().map(part).collect::<Result<Vec<Part>, Fault>>()?;
        self.buffer.resize(REQUEST_BUFFER, 0);
        for parts in parts.chunks(AT_ONCE) {
            if (self.rests)() {
                return Err(Fault::Interrupted);
            }
            offset += if write { self.write(offset, parts)? } else { self.read(offset, parts)? };
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, parts: &[Part]) -> Result<u64, Fault> {
        let len = parts.iter().map(|part| part.len).sum();
        let mut rest = self.buffer.get_mut(..len).ok_or(WRONG)?;
        self.shared.disk.read(offset, rest)?;
        for part in parts {
            let (here, next) = rest.split_at_mut(part.len);
            part.page.write(part.offset, here)?;
            rest = next;
        }
        self.shared.counters.read.fetch_add(len as u64, Relaxed);
        Ok(len as u64)
    }

    fn write(&mut self, offset: u64, parts: &[Part]) -> Result<u64, Fault> {
        let len = parts.iter().map(|part| part.len).sum();
        let data = self.buffer.get_mut(..len).ok_or(WRONG)?;
        let mut rest = &mut *data;
        for part in parts {
            let (here, next) = rest.split_at_mut(part.len);
            part.page.read(part.offset, here)?;
            rest = next;
        }
        self.shared.disk.write(offset, data)?;
        self.shared.counters.written.fetch_add(len as u64, Relaxed);
        Ok(len as u64)
    }

    fn discard(&mut self, request: &Discard) -> Result<(), Fault> {
        let disk = &self.shared.disk;
        // Discarding for good is not offered: what stored the bytes may still have them.
        if !disk.shape().discard || request.flag != 0 {
            return Err(UNSUPPORTED);
        }
        let len = request.sectors.checked_mul(SECTOR).ok_or(WRONG)?;
        let mut offset = self.place(request.sector, len)?;
        disk.shape().check_write(offset, len)?;
        let end = offset + len;
        while offset < end {
            if (self.rests)() {
                return Err(Fault::Interrupted);
            }
            let here = (DISCARD_PIECE - offset % DISCARD_PIECE).min(end - offset);
            disk.discard(offset, here)?;
            self.shared.counters.discarded.fetch_add(here, Relaxed);
            offset += here;
        }
        Ok(())
    }
}

const _: () = assert!(SEGMENTS <= AT_ONCE && SEGMENTS_MAX as usize <= SEGMENTS_PER_PAGE);
