//! A guest's driver for the device, and programs of the host beside it.

use std::{
    cell::Cell,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use virtio::{
    VirtioDevice,
    fake::{Board, buffer},
    feature::VERSION_1,
};
use virtio_vsock::{
    Config, EVENT, RECEIVE, TRANSMIT, VirtioVsock,
    packet::{HEADER, HOST_CID, Header, Op, STREAM},
};

pub const CID: u32 = 42;
/// Room that this guest says it has, until a test says otherwise.
pub const ROOM: u32 = 16 << 10;
const LONG: Duration = Duration::from_secs(60);
const BUFFERS: u16 = 4;
const BUFFER: u32 = 0x1000;

pub struct World {
    pub board: Board,
    pub device: Arc<VirtioVsock>,
    pub base: PathBuf,
    seen: Cell<u16>,
}

/// A connection as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub guest: u32,
    pub host: u32,
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sarang-vsock-{name}-{}", std::process::id()))
}

impl World {
    pub fn new(name: &str) -> Self {
        let world = Self::stopped(name);
        world.start();
        world
    }

    pub fn stopped(name: &str) -> Self {
        let base = path(name);
        let _ = std::fs::remove_file(&base);
        let listener = UnixListener::bind(&base).unwrap();
        let config = Config { cid: CID, listener, base: base.clone() };
        let device = VirtioVsock::new(config).unwrap();
        let board = Board::new(device.clone());
        Self { board, device, base, seen: Cell::new(0) }
    }

    pub fn start(&self) {
        self.board.clear_rings();
        self.board.start(VERSION_1 | virtio_vsock::STREAM, true);
        self.seen.set(0);
        for index in 0..BUFFERS {
            self.offer(index);
        }
        self.board.ring(RECEIVE);
    }

    fn offer(&self, index: u16) {
        let at = buffer(RECEIVE) + u64::from(index) * u64::from(BUFFER);
        self.board.describe(RECEIVE, index, at, BUFFER, 2, 0);
        self.board.offer(RECEIVE, index);
    }

    /// A buffer for an event.
    pub fn await_event(&self) {
        self.board.describe(EVENT, 0, buffer(EVENT), 4, 2, 0);
        self.board.offer(EVENT, 0);
        self.board.ring(EVENT);
    }

    pub fn heard(&self) -> bool {
        self.board.used(RECEIVE) != self.seen.get()
    }

    /// The next packet for the guest.
    pub fn receive(&self) -> (Header, Vec<u8>) {
        self.board.until("a packet", || self.heard());
        let (head, len) = self.board.used_entry(RECEIVE, self.seen.get());
        self.seen.set(self.seen.get().wrapping_add(1));
        let mut bytes = vec![0; len as usize];
        let at = buffer(RECEIVE) + u64::from(head) * u64::from(BUFFER);
        self.board.memory.read(at, &mut bytes).unwrap();
        self.offer(head as u16);
        self.board.ring(RECEIVE);
        let data = bytes.split_off(HEADER);
        let header = Header::decode(&bytes.try_into().unwrap());
        assert_eq!(header.len as usize, data.len());
        assert_eq!(header.dst_cid, u64::from(CID));
        (header, data)
    }

    /// The next packet that is not about credit.
    pub fn hear(&self) -> (Header, Vec<u8>) {
        loop {
            let (header, data) = self.receive();
            if !matches!(header.op, Op::CreditUpdate | Op::CreditRequest) {
                return (header, data);
            }
        }
    }

    /// The device has looked at it when this returns; false if it wants a reset.
    pub fn send(&self, header: &Header, data: &[u8]) -> bool {
        let packet = [&header.encode()[..], data].concat();
        self.board.call(TRANSMIT, &packet, 0).is_some()
    }

    pub fn say(&self, ports: Ports, op: Op, flags: u32, taken: u32, data: &[u8]) {
        let header = Header { len: data.len() as u32, flags, fwd_cnt: taken, ..header(ports, op) };
        assert!(self.send(&header, data));
    }

    /// A program of the host that listens.
    pub fn listen(&self, port: u32) -> UnixListener {
        let path = virtio_vsock_path(&self.base, port);
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// The guest connects to a port of the host where somebody listens.
    pub fn connect(&self, ports: Ports) -> UnixStream {
        let listener = self.listen(ports.host);
        self.say(ports, Op::Request, 0, 0, &[]);
        // A program of the host may have come and gone meanwhile, which is told first.
        let answer = loop {
            let (answer, _) = self.hear();
            if (answer.src_port, answer.dst_port) == (ports.host, ports.guest) {
                break answer;
            }
        };
        assert_eq!(answer.op, Op::Response);
        // Which was connected before it answered.
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        std::fs::remove_file(virtio_vsock_path(&self.base, ports.host)).unwrap();
        stream
    }

    /// A program of the host comes and says this.
    pub fn client(&self, says: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.base).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(says.as_bytes()).unwrap();
        stream
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.device.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.base);
    }
}

pub fn virtio_vsock_path(base: &std::path::Path, port: u32) -> PathBuf {
    format!("{}_{port}", base.display()).into()
}

pub fn header(ports: Ports, op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        len: 0,
        kind: STREAM,
        op,
        flags: 0,
        buf_alloc: ROOM,
        fwd_cnt: 0,
    }
}

pub fn read_exact(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// What comes until the other end closes.
pub fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
