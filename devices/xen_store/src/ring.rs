//! The page by which requests come and replies go.

use crate::Store;
use xen_abi::xs_wire::{Header, PAYLOAD_MAX, RING, page};
use xen_front::Page;
use zerocopy::{FromZeros, IntoBytes};

/// Requests that are answered at once.
const AT_ONCE: u32 = 64;

/// What came of serving a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The guest is to be notified.
    pub moved: bool,
    /// There may be more requests: whoever serves comes again, after it has seen to other things.
    pub more: bool,
}

/// The host's end of a guest's ring.
#[derive(Debug)]
pub struct Ring {
    pub(crate) page: Page,
    /// Of a request, as far as it has come.
    pub(crate) incoming: Vec<u8>,
    /// Replies that have no room yet.
    pub(crate) outgoing: Vec<u8>,
    /// The guest said nonsense: nothing more is taken from it.
    pub(crate) broken: bool,
}

impl Ring {
    /// No more than one request is kept.
    pub(crate) const INCOMING_MAX: usize = size_of::<Header>() + PAYLOAD_MAX;

    pub fn new(page: Page) -> Self {
        let (incoming, outgoing, broken) = Default::default();
        Self { page, incoming, outgoing, broken }
    }

    /// The guest begins another conversation: of the last one nothing is left that had not been put
    /// into the page or taken from it.
    pub fn restart(&mut self) {
        self.incoming.clear();
        self.outgoing.clear();
        self.broken = false;
    }

    /// Takes what the guest has put there, and puts there what it is to have.
    pub fn serve(&mut self, store: &mut Store) -> Served {
        let mut moved = false;
        let mut left = AT_ONCE;
        loop {
            while self.send() {
                moved = true;
            }
            if !self.outgoing.is_empty() {
                // Requests wait until their replies have room. The guest says so if it finds the ring
                // full, as it was after the last byte was put there.
                return Served { moved, more: false };
            }
            if let Some(event) = store.next_event() {
                self.outgoing = event;
                continue;
            }
            if left == 0 {
                return Served { moved, more: true };
            }
            left -= 1;
            let took = self.receive();
            moved |= took;
            match self.request() {
                Some((header, payload)) => self.outgoing = store.answer(header, &payload),
                None if took => {}
                None => return Served { moved, more: false },
            }
        }
    }

    /// A whole request, if it has come.
    fn request(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = Header::new_zeroed();
        let length = size_of::<Header>();
        header.as_mut_bytes().copy_from_slice(self.incoming.get(..length)?);
        let payload = usize::try_from(header.length).ok().filter(|n| *n <= PAYLOAD_MAX);
        let Some(payload) = payload else {
            self.broken = true;
            self.incoming.clear();
            return None;
        };
        let bytes = self.incoming.get(length..length + payload)?.to_vec();
        drop(self.incoming.drain(..length + payload));
        Some((header, bytes))
    }

    fn receive(&mut self) -> bool {
        let (producer, consumer) =
            (self.page.index(page::REQUEST_PRODUCER), self.page.index(page::REQUEST_CONSUMER));
        let count = producer.wrapping_sub(consumer);
        if count == 0 || self.broken {
            return false;
        }
        if count > RING {
            self.broken = true;
            return false;
        }
        let most = Self::INCOMING_MAX - self.incoming.len();
        let take = count.min(most as u32);
        for index in 0..take {
            let mut byte = [0];
            let at = page::REQUESTS + (consumer.wrapping_add(index) % RING) as usize;
            let _ = self.page.read(at, &mut byte);
            self.incoming.extend(byte);
        }
        self.page.set_index(page::REQUEST_CONSUMER, consumer.wrapping_add(take));
        take > 0
    }

    fn send(&mut self) -> bool {
        let (producer, consumer) =
            (self.page.index(page::REPLY_PRODUCER), self.page.index(page::REPLY_CONSUMER));
        let used = producer.wrapping_sub(consumer);
        if used > RING {
            self.broken = true;
            return false;
        }
        let put = (RING - used).min(self.outgoing.len() as u32);
        for (index, byte) in (0..put).zip(self.outgoing.drain(..put as usize)) {
            let at = page::REPLIES + (producer.wrapping_add(index) % RING) as usize;
            let _ = self.page.write(at, &[byte]);
        }
        if put > 0 {
            // The guest sees this before what it has taken is looked at again.
            self.page.set_index(page::REPLY_PRODUCER, producer.wrapping_add(put));
        }
        put > 0
    }
}
