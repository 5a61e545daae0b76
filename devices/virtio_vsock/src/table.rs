//! All connections, and which of them have something for the guest.

use crate::{
    connection::{Connection, Fate, Key},
    host,
    packet::{HEADER, HOST_CID, Header, Op, STREAM},
};
use std::{
    collections::{HashMap, VecDeque},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
};
use virtio::{Chain, GuestError, Span};

/// Connections that there are at most, of both sides; each is a file.
pub const CONNECTIONS_MAX: usize = 512;
/// Refusals that wait for the guest; then its packets wait instead.
const REFUSALS_MAX: usize = 256;
/// The first port that a host's end is given.
const FIRST_PORT: u32 = 1 << 30;
/// VMADDR_PORT_ANY: nobody's.
pub const ANY_PORT: u32 = u32::MAX;
/// Bytes of data that are moved in one piece; the most that a packet for the guest has.
pub const PIECE: usize = 64 << 10;

#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub by_host: u64,
    pub by_guest: u64,
    pub refused: u64,
    pub sent: u64,
    pub received: u64,
    pub misfits: u64,
}

#[derive(Debug)]
pub struct Table {
    cid: u64,
    /// What a socket of a host's program is called, but for its port.
    base: PathBuf,
    poller: Arc<host::Poller>,
    all: HashMap<Key, Connection>,
    /// Those that may have something for the guest; each is here once.
    queue: VecDeque<Key>,
    refusals: VecDeque<Header>,
    next_port: u32,
    pub counters: Counters,
}

impl Table {
    pub fn new(cid: u64, base: PathBuf, poller: Arc<host::Poller>) -> Self {
        Self {
            cid,
            base,
            poller,
            all: HashMap::new(),
            queue: VecDeque::new(),
            refusals: VecDeque::new(),
            next_port: FIRST_PORT,
            counters: Counters::default(),
        }
    }

    /// Every connection ends; the guest is not told.
    pub fn clear(&mut self) {
        self.all.clear();
        self.queue.clear();
        self.refusals.clear();
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Nothing is to be said to the guest.
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.refusals.is_empty()
    }

    /// So much is to be said that the guest has to listen first.
    pub fn is_full(&self) -> bool {
        self.refusals.len() >= REFUSALS_MAX
    }

    /// Does something with a connection, and what follows from it.
    fn with(&mut self, key: Key, work: impl FnOnce(&mut Connection) -> Fate) {
        let Some(connection) = self.all.get_mut(&key) else { return };
        if work(connection) == Fate::Ends {
            self.all.remove(&key);
        } else if connection.wants() && !std::mem::replace(&mut connection.queued, true) {
            self.queue.push_back(key);
        }
    }

    /// A program of the host wants to talk to this port of the guest. `None`: there are too many,
    /// and the stream is closed.
    pub fn ask(&mut self, stream: UnixStream, port: u32) -> Option<()> {
        let key = (self.all.len() < CONNECTIONS_MAX).then(|| self.free_key(port)).flatten();
        let Some(key) = key.filter(|key| self.poller.watch_stream(&stream, *key).is_ok()) else {
            self.counters.refused += 1;
            return None;
        };
        self.counters.by_host += 1;
        self.insert(Connection::asked_by_host(key, stream), key);
        Some(())
    }

    fn free_key(&mut self, guest: u32) -> Option<Key> {
        for _ in 0..=CONNECTIONS_MAX {
            let host = self.next_port;
            self.next_port = if host + 1 == ANY_PORT { FIRST_PORT } else { host + 1 };
            let key = Key { host, guest };
            if !self.all.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    fn insert(&mut self, connection: Connection, key: Key) {
        self.all.insert(key, connection);
        self.with(key, |_| Fate::Stays);
    }

    /// A socket has changed.
    pub fn socket(&mut self, key: Key, ready: host::Ready) {
        self.with(key, |connection| {
            connection.socket(ready.readable, ready.writable, ready.hung_up)
        });
    }

    /// A packet of the guest.
    ///
    /// # Errors
    /// If it is shorter than it says.
    pub fn receive(&mut self, chain: &mut Chain, piece: &mut [u8]) -> Result<(), GuestError> {
        let mut bytes = [0; HEADER];
        if chain.readable.read(&mut bytes) < bytes.len() {
            return Err(GuestError("a packet has no header"));
        }
        let header = Header::decode(&bytes);
        if u64::from(header.len) > chain.readable.len() {
            return Err(GuestError("a packet is shorter than it says"));
        }
        if header.src_cid != self.cid {
            // Nobody who could be told.
            self.counters.misfits += 1;
            return Ok(());
        }
        let key = Key { host: header.dst_port, guest: header.src_port };
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            self.refuse(&header);
        } else if header.op == Op::Request {
            self.let_in(key, &header);
        } else if self.all.get(&key).is_none_or(Connection::is_orphan) {
            self.refuse(&header);
        } else if header.op == Op::Data {
            let data = chain.readable.split_front(header.len.into());
            self.take(key, &header, data, piece);
        } else {
            self.with(key, |connection| connection.hear(&header));
        }
        Ok(())
    }

    /// Data for the host.
    fn take(&mut self, key: Key, header: &Header, mut data: Span, piece: &mut [u8]) {
        let (mut taken, mut misfits) = (0, 0);
        self.with(key, |connection| {
            if !connection.admits(header) {
                misfits = 1;
                return connection.refuse();
            }
            loop {
                let len = data.read(piece);
                let Some(part) = piece.get(..len).filter(|part| !part.is_empty()) else {
                    return Fate::Stays;
                };
                taken += len as u64;
                connection.take(part);
            }
        });
        self.counters.received += taken;
        self.counters.misfits += misfits;
    }

    fn refuse(&mut self, header: &Header) {
        // A reset is not answered (5.10.6.6).
        if header.op != Op::Reset {
            self.counters.misfits += 1;
            self.refusals.push_back(header.refusal());
        }
    }

    /// A program of the guest wants to talk to a host's.
    fn let_in(&mut self, key: Key, header: &Header) {
        if self.all.get(&key).is_some_and(Connection::is_orphan) {
            self.all.remove(&key);
        }
        if self.all.contains_key(&key) {
            // There is one between these ports: one of both is wrong.
            self.counters.misfits += 1;
            self.with(key, Connection::refuse);
            return;
        }
        let room = self.all.len() < CONNECTIONS_MAX && key.host != ANY_PORT;
        let stream = room.then(|| host::connect(&self.base, key.host)).flatten();
        let watched = stream.filter(|stream| self.poller.watch_stream(stream, key).is_ok());
        let Some(stream) = watched else {
            self.counters.refused += 1;
            self.refusals.push_back(header.refusal());
            return;
        };
        self.counters.by_guest += 1;
        self.insert(Connection::asked_by_guest(key, stream, header), key);
    }

    /// The next packet for the guest, with its data in `bytes`, which is not empty.
    pub fn next(&mut self, bytes: &mut [u8]) -> Option<Header> {
        if let Some(header) = self.refusals.pop_front() {
            return Some(header);
        }
        // Each in turn; one that has nothing after all leaves the queue.
        while let Some(key) = self.queue.pop_front() {
            let Some(connection) = self.all.get_mut(&key) else { continue };
            connection.queued = false;
            let Some((header, fate)) = connection.next(self.cid, bytes) else { continue };
            self.counters.sent += u64::from(header.len);
            self.with(key, |_| fate);
            return Some(header);
        }
        None
    }
}
