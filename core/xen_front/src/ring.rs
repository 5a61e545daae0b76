//! The back end's side of a ring (`io/ring.h`).

use crate::Grant;
use guest_mem::PAGE;
use std::mem::offset_of;
use xen_abi::ring::{ENTRIES, Shared, entries};

const REQUEST_PRODUCER: usize = offset_of!(Shared, request_producer);
const REQUEST_EVENT: usize = offset_of!(Shared, request_event);
const RESPONSE_PRODUCER: usize = offset_of!(Shared, response_producer);
const RESPONSE_EVENT: usize = offset_of!(Shared, response_event);

/// The front end says that it has put more requests than the ring holds: nothing that it says is to
/// be believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the front end has put more requests than its ring holds")]
pub struct Overrun;

/// How far a ring was served, which the front end cannot change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Requests that were taken.
    pub taken: u32,
    /// Responses that were put: of no more requests than were taken.
    pub put: u32,
}

/// A ring whose pages are in use. What is taken from it is a copy, for the front end may write to it
/// at any time.
#[derive(Debug)]
pub struct Ring {
    pages: Vec<Grant>,
    /// Bytes.
    entry: usize,
    entries: u32,
    position: Position,
}

impl Ring {
    /// A ring of these pages, each of which can be written, with entries of so many bytes. `None` if
    /// it has no room for one, or if the position is not one of such a ring. Without a position it
    /// goes on where it says itself that it is, which is at 0 unless the front end knows better.
    pub fn new(pages: Vec<Grant>, entry: usize, at: Option<Position>) -> Option<Self> {
        let entries = entries(pages.len() * PAGE as usize, entry);
        let put = pages.first()?.index(RESPONSE_PRODUCER);
        let position = at.unwrap_or(Position { taken: put, put });
        let right = entries > 0 && position.taken.wrapping_sub(position.put) <= entries;
        right.then_some(Self { pages, entry, entries, position })
    }

    /// How many requests it holds.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    pub fn position(&self) -> Position {
        self.position
    }

    fn index(&self, offset: usize) -> u32 {
        self.pages.first().map_or(0, |page| page.index(offset))
    }

    fn set_index(&self, offset: usize, value: u32) {
        if let Some(page) = self.pages.first() {
            page.set_index(offset, value);
        }
    }

    /// Where the pieces of an entry are, which may lie in two pages: page, offset, and the bytes.
    fn pieces(&self, index: u32, len: usize) -> impl Iterator<Item = (&Grant, usize, usize)> {
        let at = ENTRIES + (index % self.entries) as usize * self.entry;
        let len = len.min(self.entry);
        let first = len.min(PAGE as usize - at % PAGE as usize);
        let split = [(at, first), (at + first, len - first)];
        split.into_iter().filter(|(_, len)| *len > 0).filter_map(|(at, len)| {
            Some((self.pages.get(at / PAGE as usize)?, at % PAGE as usize, len))
        })
    }

    /// Requests that wait.
    pub fn waiting(&self) -> Result<u32, Overrun> {
        let producer = self.index(REQUEST_PRODUCER);
        // `RING_REQUEST_PROD_OVERFLOW`: those that have no response yet have their place too.
        if producer.wrapping_sub(self.position.put) > self.entries {
            return Err(Overrun);
        }
        // One that went backwards has none.
        let waiting = producer.wrapping_sub(self.position.taken);
        Ok(if waiting > self.entries { 0 } else { waiting })
    }

    /// The next request that waits, or whatever is in its place.
    pub fn take(&mut self, request: &mut [u8]) {
        let mut rest = request;
        for (page, at, len) in self.pieces(self.position.taken, rest.len()) {
            let (here, next) = rest.split_at_mut(len);
            // It is inside of the page.
            let _ = page.read(at, here);
            rest = next;
        }
        self.position.taken = self.position.taken.wrapping_add(1);
    }

    /// The request that was taken last was not: it is to be taken again.
    pub fn put_back(&mut self) {
        if self.position.taken != self.position.put {
            self.position.taken = self.position.taken.wrapping_sub(1);
        }
    }

    /// Puts a response, if there was a request without one. The front end sees it when it is
    /// published.
    pub fn respond(&mut self, response: &[u8]) {
        if self.position.taken == self.position.put {
            return;
        }
        let mut rest = response;
        for (page, at, len) in self.pieces(self.position.put, rest.len()) {
            let (here, next) = rest.split_at(len);
            let _ = page.write(at, here);
            rest = next;
        }
        self.position.put = self.position.put.wrapping_add(1);
    }

    /// Lets the front end see the responses; whether it is to be notified
    /// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.index(RESPONSE_PRODUCER), self.position.put);
        self.set_index(RESPONSE_PRODUCER, new);
        let event = self.index(RESPONSE_EVENT);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Whether no request waits; if so, the front end notifies when it puts the next one
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    pub fn is_idle(&self) -> Result<bool, Overrun> {
        self.lacks(1)
    }

    /// Whether fewer requests wait than are wanted; if so, the front end notifies when it has put
    /// as many.
    pub fn lacks(&self, wanted: u32) -> Result<bool, Overrun> {
        if self.waiting()? >= wanted {
            return Ok(false);
        }
        self.set_index(REQUEST_EVENT, self.position.taken.wrapping_add(wanted));
        Ok(self.waiting()? < wanted)
    }
}
