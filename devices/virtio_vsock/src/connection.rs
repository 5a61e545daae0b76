//! One connection: a stream socket of the host, and the guest's end of it.
//!
//! Each side has room for so many bytes and says how many it has taken out of it, so that the other
//! knows how many it may send (5.10.6.3). Bytes from the host stay in its socket until the guest
//! has room for them; bytes from the guest are written to the socket at once, and what it does not
//! take waits here, at most [`ROOM`].

use crate::packet::{HOST_CID, Header, Op, STREAM};
use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

/// Bytes of the guest's that may wait for the host.
pub const ROOM: u32 = 64 << 10;
/// The guest is told of so much new room if nothing else goes to it.
const NEWS: u32 = ROOM / 4;

/// Flags of a shutdown (5.10.6.5): the sender receives no more, sends no more.
pub mod side {
    pub const RECEIVE: u32 = 1;
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// Who is at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub host: u32,
    pub guest: u32,
}

/// What is still to be said to the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
    /// The guest is to say how much room it has; asked once for each time it has none.
    question: bool,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked for it, and the guest has yet to answer.
    Asked,
    Open,
    /// The guest knows it no more, and bytes still go to the host.
    Orphan,
}

/// What follows for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    Ends,
}

#[derive(Debug)]
pub struct Connection {
    key: Key,
    stream: UnixStream,
    phase: Phase,
    owed: Owed,
    /// The guest's room, what it has taken out of it, what it was sent.
    guest_room: u32,
    guest_taken: u32,
    sent: u32,
    /// For the host.
    waiting: VecDeque<u8>,
    /// What went to the host, and how much of that the guest knows of.
    taken: u32,
    told: u32,
    /// The socket may have something, may take something; all other ends of it are closed.
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// Sides that the guest has shut, that the host has, and that the guest was told of.
    guest_shut: u32,
    host_shut: u32,
    told_shut: u32,
    /// It is among those that have something for the guest.
    pub queued: bool,
}

impl Connection {
    fn new(key: Key, stream: UnixStream, phase: Phase) -> Self {
        Self {
            key,
            stream,
            phase,
            owed: Owed::default(),
            guest_room: 0,
            guest_taken: 0,
            sent: 0,
            waiting: VecDeque::new(),
            taken: 0,
            told: 0,
            readable: true,
            writable: true,
            hung_up: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            queued: false,
        }
    }

    /// A program of the host wants to talk to the guest.
    pub fn asked_by_host(key: Key, stream: UnixStream) -> Self {
        let mut new = Self::new(key, stream, Phase::Asked);
        new.owed.request = true;
        new
    }

    /// A program of the guest was let in.
    pub fn asked_by_guest(key: Key, stream: UnixStream, header: &Header) -> Self {
        let mut new = Self::new(key, stream, Phase::Open);
        new.owed.response = true;
        new.learn(header);
        new
    }

    pub fn is_orphan(&self) -> bool {
        self.phase == Phase::Orphan
    }

    fn learn(&mut self, header: &Header) {
        if (self.guest_room, self.guest_taken) != (header.buf_alloc, header.fwd_cnt) {
            self.owed.question = false;
        }
        (self.guest_room, self.guest_taken) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// Bytes that the guest may send.
    pub fn room(&self) -> u32 {
        ROOM.saturating_sub(u32::try_from(self.waiting.len()).unwrap_or(ROOM))
    }

    /// The guest says something that carries no data.
    pub fn hear(&mut self, header: &Header) -> Fate {
        if header.op == Op::Reset {
            return self.guest_left();
        }
        self.learn(header);
        match (header.op, self.phase) {
            (Op::Response, Phase::Asked) => {
                self.phase = Phase::Open;
                let line = format!("OK {}\n", self.key.host);
                // A socket that has not taken anything yet takes a line, or is closed.
                let said = self.stream.write(line.as_bytes());
                if said.ok() != Some(line.len()) {
                    self.host_left();
                }
            }
            (Op::Shutdown, Phase::Open) => self.shut(header.flags),
            (Op::CreditUpdate, _) => {}
            (Op::CreditRequest, _) => self.owed.credit = true,
            _ => return self.refuse(),
        }
        Fate::Stays
    }

    /// The guest has closed its end, or gives it up. What it had sent before it said that it
    /// would send no more still goes to the host.
    fn guest_left(&mut self) -> Fate {
        self.flush();
        if self.waiting.is_empty() || self.guest_shut & side::SEND == 0 {
            return Fate::Ends;
        }
        self.phase = Phase::Orphan;
        self.owed = Owed::default();
        Fate::Stays
    }

    /// Ends it from here, as soon as the guest was told.
    pub fn refuse(&mut self) -> Fate {
        self.owed.reset = true;
        Fate::Stays
    }

    fn shut(&mut self, flags: u32) {
        let news = flags & side::BOTH & !self.guest_shut;
        self.guest_shut |= news;
        if news & side::RECEIVE != 0 {
            // The host's next write to it fails. A socket that is closed already needs nothing.
            let _ = self.stream.shutdown(Shutdown::Read);
            self.readable = false;
        }
        if news & side::SEND != 0 {
            self.flush();
            self.end_if_drained();
        }
        self.close_if_done();
    }

    /// Passes on that the guest sends no more, once all that it sent is through.
    fn end_if_drained(&mut self) {
        if self.guest_shut & side::SEND != 0 && self.waiting.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Both sides are shut, and nothing waits (5.10.6.5).
    fn close_if_done(&mut self) {
        if self.guest_shut == side::BOTH && self.waiting.is_empty() {
            self.owed.reset = true;
        }
    }

    /// Takes a piece of what the guest sent, of which there was [`Self::room`] for all.
    pub fn take(&mut self, mut piece: &[u8]) {
        if self.waiting.is_empty() && self.writable {
            let written = self.write_some(piece);
            piece = piece.get(written..).unwrap_or_default();
        }
        if self.host_shut & side::RECEIVE != 0 {
            // Nobody is there to read it.
            self.count_taken(piece.len());
            return;
        }
        self.waiting.extend(piece);
    }

    /// May take what a packet with data carries.
    pub fn admits(&mut self, header: &Header) -> bool {
        let open = self.phase == Phase::Open && self.guest_shut & side::SEND == 0;
        if !open || header.len > self.room() {
            return false;
        }
        self.learn(header);
        true
    }

    fn count_taken(&mut self, len: usize) {
        self.taken = self.taken.wrapping_add(len as u32);
        if self.taken.wrapping_sub(self.told) >= NEWS {
            self.owed.credit = true;
        }
    }

    fn write_some(&mut self, piece: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = piece.get(done..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.writable = false;
                    break;
                }
                Err(_) => {
                    self.host_shut |= side::RECEIVE;
                    break;
                }
            }
        }
        self.count_taken(done);
        done
    }

    /// Writes what waits, as far as the host takes it.
    fn flush(&mut self) {
        while self.writable && self.host_shut & side::RECEIVE == 0 {
            let (front, _) = self.waiting.as_slices();
            if front.is_empty() {
                break;
            }
            let front = front.to_vec();
            let written = self.write_some(&front);
            self.waiting.drain(..written.min(front.len()));
        }
        if self.host_shut & side::RECEIVE != 0 {
            self.count_taken(self.waiting.len());
            self.waiting.clear();
        }
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }

    /// The host's socket has changed.
    pub fn socket(&mut self, readable: bool, writable: bool, hung_up: bool) -> Fate {
        self.readable |= readable;
        self.writable |= writable;
        self.hung_up |= hung_up;
        if hung_up && self.phase == Phase::Asked {
            // Who asked is gone.
            return self.refuse();
        }
        if self.hung_up && self.host_shut & side::SEND != 0 {
            self.host_left();
        }
        if writable && !self.waiting.is_empty() {
            self.flush();
            self.end_if_drained();
            self.close_if_done();
        }
        if self.phase == Phase::Orphan && self.waiting.is_empty() {
            return Fate::Ends;
        }
        Fate::Stays
    }

    fn host_left(&mut self) {
        self.host_shut = side::BOTH;
        self.readable = false;
        self.flush();
        self.close_if_done();
    }

    /// Something may be there for the guest.
    pub fn wants(&self) -> bool {
        let Owed { request, response, reset, credit, question: _ } = self.owed;
        if self.phase == Phase::Orphan {
            return false;
        }
        let shut = self.host_shut & !self.told_shut != 0 && self.phase == Phase::Open;
        let question = self.stalled() && !self.owed.question;
        request || response || reset || credit || shut || question || self.may_read()
    }

    fn reads(&self) -> bool {
        let closed = self.guest_shut & side::RECEIVE != 0 || self.host_shut & side::SEND != 0;
        self.phase == Phase::Open && self.readable && !closed
    }

    fn may_read(&self) -> bool {
        self.reads() && self.credit() > 0
    }

    fn stalled(&self) -> bool {
        self.reads() && self.credit() == 0
    }

    /// The next packet for the guest, with its data in `bytes`, which is not empty. After a reset
    /// the connection is no more.
    pub fn next(&mut self, guest_cid: u64, bytes: &mut [u8]) -> Option<(Header, Fate)> {
        let owed = &mut self.owed;
        let mut flags = 0;
        let mut len = 0;
        let op = if owed.reset {
            Op::Reset
        } else if std::mem::take(&mut owed.request) {
            Op::Request
        } else if std::mem::take(&mut owed.response) {
            Op::Response
        } else if std::mem::take(&mut owed.credit) {
            Op::CreditUpdate
        } else if let Some(count) = self.read(bytes) {
            len = count;
            Op::Data
        } else if self.host_shut & !self.told_shut != 0 && self.phase == Phase::Open {
            self.told_shut |= self.host_shut;
            flags = self.told_shut;
            Op::Shutdown
        } else if self.stalled() && !std::mem::replace(&mut self.owed.question, true) {
            Op::CreditRequest
        } else {
            return None;
        };
        self.sent = self.sent.wrapping_add(len);
        self.told = self.taken;
        let fate = if op == Op::Reset { Fate::Ends } else { Fate::Stays };
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host,
            dst_port: self.key.guest,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: ROOM,
            fwd_cnt: self.taken,
        };
        Some((header, fate))
    }

    /// From the host, as much as the guest has room for.
    fn read(&mut self, bytes: &mut [u8]) -> Option<u32> {
        while self.may_read() {
            let most = bytes.len().min(self.credit() as usize);
            match self.stream.read(bytes.get_mut(..most)?) {
                Ok(0) => {
                    // With the other side closed too nobody will read either.
                    self.host_shut |= if self.hung_up { side::BOTH } else { side::SEND };
                    self.readable = false;
                }
                Ok(count) => return Some(count as u32),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => self.host_left(),
            }
        }
        None
    }
}
