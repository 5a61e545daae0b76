//! Packets of a virtio socket device, and programs of the host beside it.

use crate::{
    input::Input,
    rig::{Model, Request, Rig, drive},
};
use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};
use virtio_vsock::{Config, EVENT, RECEIVE, TRANSMIT, VirtioVsock};

const CID: u32 = 42;
const PORT: u32 = 1024;
/// Of the host's end of a connection that the host begins.
const FIRST: u32 = 1 << 30;

/// The host: a program that listens, and those that are connected.
struct Host {
    base: PathBuf,
    listener: UnixListener,
    streams: Mutex<Vec<UnixStream>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.base);
        let _ = std::fs::remove_file(format!("{}_{PORT}", self.base.display()));
    }
}

/// What the host says: no two pieces of it are the same.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at >> 8 ^ at) as u8).collect()
}

/// A packet without a fault, and a few bytes where they can be.
fn packet(from: u8, to: u32, op: u16) -> Vec<u8> {
    let data: &[u8] = if op == 5 { b"some bytes" } else { &[] };
    let mut bytes = u64::from(CID).to_le_bytes().to_vec();
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(u32::from(from).to_le_bytes());
    bytes.extend(to.to_le_bytes());
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    bytes.extend(if op == 4 { 3u32 } else { 0 }.to_le_bytes());
    bytes.extend(0x4_0000u32.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(data);
    bytes
}

impl Model for Host {
    /// virtio 1.2, 5.10.6: a header of 44 bytes, and data.
    fn request(&self, input: &mut Input<'_>) -> Request {
        match input.u8() {
            0..=0x3f => {
                let wanted = input.pick(&[0x1000, 0x1000, 44, 43, 64]);
                return Request { queue: RECEIVE, given: Vec::new(), wanted };
            }
            0x40..=0x47 => return Request { queue: EVENT, given: Vec::new(), wanted: 4 },
            // Packets of a connection that is in order: to the program that listens, or of one that
            // came from the host.
            0x48..=0x7f => {
                let (from, op) = (input.u8() & 3, input.pick(&[1u16, 1, 1, 5, 6, 3, 4]));
                return Request { queue: TRANSMIT, given: packet(from, PORT, op), wanted: 0 };
            }
            0x80..=0x9f => {
                let (from, to) = (input.u8() & 3, FIRST + u32::from(input.u8() & 3));
                let op = input.pick(&[2u16, 2, 2, 6, 3]);
                return Request { queue: TRANSMIT, given: packet(from, to, op), wanted: 0 };
            }
            _ => {}
        }
        let rare = |input: &mut Input<'_>, usual: u64| match input.u8() {
            0..=0xef => usual,
            _ => input.number(),
        };
        let data = vec![7; if input.flag() { input.number() as usize % 0x1000 } else { 0 }];
        let mut given = rare(input, CID.into()).to_le_bytes().to_vec();
        given.extend(rare(input, 2).to_le_bytes());
        given.extend(u32::from(input.u8() & 3).to_le_bytes());
        given.extend((rare(input, PORT.into()) as u32).to_le_bytes());
        given.extend((rare(input, data.len() as u64) as u32).to_le_bytes());
        given.extend((rare(input, 1) as u16).to_le_bytes());
        given.extend(u16::from(input.u8() % 9).to_le_bytes());
        given.extend(u32::from(input.u8() & 3).to_le_bytes());
        given.extend((rare(input, 0x4000) as u32).to_le_bytes());
        given.extend((rare(input, 0) as u32).to_le_bytes());
        given.extend(data);
        Request { queue: TRANSMIT, given, wanted: 0 }
    }

    fn host(&self, input: &mut Input<'_>) {
        let mut streams = self.streams.lock().expect("no panic");
        while let Ok((stream, _)) = self.listener.accept() {
            let _ = stream.set_nonblocking(true);
            streams.push(stream);
        }
        let index = input.below(streams.len().max(1) as u64) as usize;
        let (what, count) = (input.u8() & 7, streams.len());
        match streams.get_mut(index) {
            Some(stream) if what < 3 => {
                drop(stream.write(&pattern(input.number() as usize % 0x4000)))
            }
            Some(stream) if what == 3 => drop(stream.read(&mut vec![0; 0x1000])),
            Some(_) if what == 4 => drop(streams.swap_remove(index)),
            _ if count < 8 => {
                if let Ok(mut stream) = UnixStream::connect(&self.base) {
                    let _ = stream.set_nonblocking(true);
                    let says = if input.u8() < 0xe0 {
                        format!("CONNECT {}\n", input.u8() & 3).into_bytes()
                    } else {
                        input.some(40).to_vec()
                    };
                    let _ = stream.write(&says);
                    streams.push(stream);
                }
            }
            _ => {}
        }
        // The device's thread that waits for sockets has its turn.
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

pub(super) fn run(data: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    drive(data, || {
        let number = COUNT.fetch_add(1, SeqCst);
        let name = format!("sarang-fuzz-{}-{number}", std::process::id());
        let base = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&base).expect("a socket");
        let config = Config { cid: CID, listener, base: base.clone() };
        let device = VirtioVsock::new(config).expect("a thread");
        let listener = UnixListener::bind(format!("{}_{PORT}", base.display())).expect("a socket");
        listener.set_nonblocking(true).expect("an option");
        (Rig::new(device), Host { base, listener, streams: Mutex::default() })
    });
}
