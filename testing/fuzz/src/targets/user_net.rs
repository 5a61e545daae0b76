//! The user-mode network, from both sides: frames of a guest, and what peers of the host do. All that the
//! guest reaches is one port of the host's loopback address.

use crate::input::Input;
use nic::{Checksum, FRAME_MAX, Mac, Meta, NoRoom, Offloads, Port, Taken};
use nic_user::{Config, Forward, Transport, by_hand::Network};
use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
};

const CARD: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
const GATEWAY: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];
/// Things that are done with one input.
const STEPS: usize = 200;
const GUEST_PORT: u16 = 1000;

#[derive(Default)]
struct Queues {
    to_net: VecDeque<(Vec<u8>, Meta)>,
    /// Sequence and acknowledgement numbers of the last TCP segment for the guest, and its ports.
    seen: [u32; 2],
    ports: [u16; 2],
    room: usize,
}

/// A card whose rings are queues.
#[derive(Default)]
struct Card(Mutex<Queues>, bool);

impl Port for Card {
    fn mac(&self) -> Mac {
        CARD
    }
    fn offloads(&self) -> Offloads {
        Offloads { checksum: self.1, tso4: self.1, tso6: self.1 }
    }
    fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        let (frame, meta) = self.0.lock().expect("no panic").to_net.pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some(Taken { len: frame.len(), meta })
    }
    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let mut queues = self.0.lock().expect("no panic");
        if queues.room == 0 {
            return Err(NoRoom);
        }
        queues.room -= 1;
        let frame = parts.concat();
        assert!(self.1 || meta.segmentation.is_none(), "nobody cuts it");
        assert!(meta.segmentation.is_some() || frame.len() <= 1514, "{} bytes", frame.len());
        let long =
            |at: usize| frame.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        if frame.get(23) == Some(&6) && frame.get(12..14) == Some(&[8, 0]) {
            queues.seen = [long(38).unwrap_or(0), long(42).unwrap_or(0)];
            let ports = long(34).unwrap_or(0);
            queues.ports = [(ports >> 16) as u16, ports as u16];
        }
        Ok(())
    }
    fn flush(&self) {}
    fn set_link(&self, _: bool) {}
}

/// The host's side.
struct Peers {
    listener: TcpListener,
    datagrams: UdpSocket,
    streams: Vec<TcpStream>,
    forward: SocketAddr,
}

struct World {
    net: Network,
    card: Arc<Card>,
    peers: Peers,
}

/// A folder with something to be read by TFTP, made once.
fn folder() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            // Another user has another one; that of the last run serves again.
            let user = std::fs::metadata("/proc/self").expect("a process").uid();
            let folder = std::env::temp_dir().join(format!("sarang-fuzz-tftp-{user}"));
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join("a"), [7; 3000]).expect("a file");
            folder
        })
        .clone()
}

impl World {
    fn new(offloads: bool) -> Self {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = TcpListener::bind(any).expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let datagrams =
            UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).or_else(|_| UdpSocket::bind(any));
        let datagrams = datagrams.expect("a port");
        listener.set_nonblocking(true).expect("an option");
        datagrams.set_nonblocking(true).expect("an option");
        // A port that was free a moment ago.
        let free = TcpListener::bind(any).and_then(|l| l.local_addr()).expect("a port");
        let forward =
            Forward { transport: Transport::Tcp, listen: free, guest: None, port: GUEST_PORT };
        let config = Config {
            host_loopback: true,
            tftp: Some(folder()),
            boot_file: Some("a".into()),
            resolv_conf: "/nonexistent".into(),
            only: Some(port),
            ..Config::default()
        };
        let dns = datagrams.local_addr().expect("a port").port();
        let with = Config { forwards: vec![forward], ..config.clone() };
        let net = Network::new(with, dns).or_else(|_| Network::new(config, dns));
        let card = Arc::new(Card(Mutex::default(), offloads));
        card.0.lock().expect("no panic").room = usize::MAX;
        let peers = Peers { listener, datagrams, streams: Vec::new(), forward: free };
        Self { net: net.expect("sockets"), card, peers }
    }

    fn send(&self, frame: Vec<u8>, checked: bool) {
        let checksum = if checked { Checksum::Verified } else { Checksum::Unknown };
        let meta = Meta { checksum, segmentation: None };
        if frame.len() <= FRAME_MAX {
            self.card.0.lock().expect("no panic").to_net.push_back((frame, meta));
        }
    }

    /// A packet of IPv4 with a good header.
    fn ip(&self, input: &mut Input<'_>, to: [u8; 4], protocol: u8, payload: &[u8]) {
        let mut frame = GATEWAY.to_vec();
        frame.extend(CARD.0);
        frame.extend([8, 0]);
        let len = (20 + payload.len()) as u16;
        let fragment = if input.u8() < 0xe0 { 0 } else { input.u16() & 0x3fff };
        let mut header = vec![0x45, 0];
        header.extend(len.to_be_bytes());
        header.extend([0, 7]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0, 10, 0, 2, 15]);
        header.extend(to);
        let sum: u32 = header.chunks(2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend(payload);
        self.send(frame, true);
    }

    /// A segment that belongs to the last one of the network's, or nearly.
    fn tcp(&self, input: &mut Input<'_>) {
        let flags = input.pick(&[0x02, 0x10, 0x18, 0x11, 0x04, 0x12, 0x38, 0]);
        let flags = if flags == 0 { input.u8() } else { flags };
        let queues = self.card.0.lock().expect("no panic");
        let ([their, our], [from, to]) = (queues.seen, queues.ports);
        drop(queues);
        let begins = flags == 2 || from == 0 || input.u8() > 0xf0;
        let (source, target) =
            if begins { (0x1000 + u16::from(input.u8() & 3), 80) } else { (to, from) };
        let near = |input: &mut Input<'_>, number: u32| match input.u8() {
            0..=0xbf => number,
            0xc0..=0xef => number.wrapping_add(input.number() as u32),
            _ => number.wrapping_sub(input.number() as u32),
        };
        let step = u32::from(flags & 0x10 != 0 && their != 0);
        let (seq, ack) = (near(input, our), near(input, their.wrapping_add(step)));
        let mut options = if begins { vec![2, 4, 5, 0xb4] } else { Vec::new() };
        options.extend(input.some(8));
        options.resize(options.len().next_multiple_of(4), 0);
        let words = 5 + options.len() as u16 / 4;
        let window = if input.u8() < 0xc0 { 0xffff } else { input.u16() };
        let mut segment = source.to_be_bytes().to_vec();
        segment.extend(target.to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend((words << 12 | u16::from(flags)).to_be_bytes());
        segment.extend(window.to_be_bytes());
        segment.extend([0; 2]);
        segment.extend((input.number() as u16).to_be_bytes());
        segment.extend(options);
        if !begins {
            segment.extend(vec![1; input.number() as usize % 1400]);
        }
        let to = input.pick(&[[10, 0, 2, 2], [192, 0, 2, 1], [10, 0, 2, 3]]);
        self.ip(input, to, 6, &segment);
    }

    /// A datagram to a service, or out of the network.
    fn udp(&self, input: &mut Input<'_>) {
        let (to, port) = input.pick(&[
            ([10, 0, 2, 3], 53),
            ([10, 0, 2, 2], 69),
            ([255, 255, 255, 255], 67),
            ([10, 0, 2, 2], 67),
            ([192, 0, 2, 1], 7),
            ([10, 0, 2, 2], 30_000),
        ]);
        let payload = match port {
            53 => question(input),
            67 => dhcp(input),
            69 => tftp(input),
            _ => input.some(40).to_vec(),
        };
        let from = if port == 67 { 68 } else { 0x2000 + u16::from(input.u8() & 3) };
        let mut datagram = from.to_be_bytes().to_vec();
        datagram.extend((port as u16).to_be_bytes());
        let len = if input.u8() < 0xf0 { 8 + payload.len() as u16 } else { input.u16() };
        datagram.extend(len.to_be_bytes());
        datagram.extend([0; 2]);
        datagram.extend(payload);
        self.ip(input, to, 17, &datagram);
    }

    /// IPv6: neighbours and routers, or anything.
    fn six(&self, input: &mut Input<'_>) {
        let mut frame = if input.flag() { vec![0x33, 0x33, 0, 0, 0, 2] } else { GATEWAY.to_vec() };
        frame.extend(CARD.0);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        let mut payload = vec![input.pick(&[133, 135, 136, 128, 1]), 0, 0, 0];
        payload.extend(input.some(40));
        let next = input.pick(&[58, 58, 58, 17, 6, 0, 44, 43, 60]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([next, 255]);
        frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        let prefix = [0xfd, 0x53, 0x61, 0x72, 0x61, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        frame.extend(prefix);
        frame.push(input.pick(&[2, 3, 9]));
        frame.extend(payload);
        self.send(frame, true);
    }

    /// Something that a peer does.
    fn peer(&mut self, input: &mut Input<'_>) {
        let peers = &mut self.peers;
        while let Ok((stream, _)) = peers.listener.accept() {
            let _ = stream.set_nonblocking(true);
            peers.streams.push(stream);
        }
        let index = input.below(peers.streams.len().max(1) as u64) as usize;
        let count = peers.streams.len();
        let stream = peers.streams.get_mut(index);
        match (input.u8() & 7, stream) {
            (0 | 1, Some(stream)) => {
                drop(stream.write(&vec![7; input.number() as usize % 0x1_0000]))
            }
            (2, Some(stream)) => {
                drop(stream.read(&mut vec![0; input.number() as usize % 0x1_0000]))
            }
            (3, Some(stream)) => drop(stream.shutdown(Shutdown::Write)),
            (4, Some(_)) => drop(peers.streams.swap_remove(index)),
            (5, _) if count < 8 => {
                if let Ok(stream) = TcpStream::connect(peers.forward) {
                    let _ = stream.set_nonblocking(true);
                    peers.streams.push(stream);
                }
            }
            // An answer to whoever asked: of a name server, or of any peer.
            _ => {
                let mut asked = [0; 2048];
                while let Ok((len, from)) = peers.datagrams.recv_from(&mut asked) {
                    let mut answer = asked.get(..len.min(2)).unwrap_or_default().to_vec();
                    answer.extend(input.some(60));
                    let _ = peers.datagrams.send_to(&answer, from);
                }
            }
        }
    }
}

/// A message of DNS with a question, or nearly.
fn question(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0, input.u8(), input.u8(), 0, 0, 1, 0, 0, 0, 0, 0, 0];
    if input.u8() < 0xe0 {
        bytes.extend([1, b'a', 0, 0, 1, 0, 1]);
    }
    bytes.extend(input.some(30));
    bytes
}

fn dhcp(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0];
    bytes.extend(input.u32().to_be_bytes());
    bytes.resize(28, 0);
    bytes.extend(CARD.0);
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, input.pick(&[1, 3, 4, 7, 8, 0])]);
    for _ in 0..input.below(6) {
        let body = input.some(12);
        bytes.extend([input.pick(&[50, 54, 55, 60, 61, 12, 93, 52]), body.len() as u8]);
        bytes.extend(body);
    }
    bytes.extend(input.some(4));
    bytes.push(255);
    bytes
}

fn tftp(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0, input.pick(&[1, 1, 4, 3, 5, 2])];
    if bytes[1] == 1 {
        bytes.extend(input.pick(&[&b"a\0octet\0"[..], b"../a\0octet\0", b"/a\0netascii\0"]));
        for _ in 0..input.below(3) {
            bytes.extend(input.pick(&[
                &b"blksize\0"[..],
                b"tsize\0",
                b"timeout\0",
                b"windowsize\0",
            ]));
            bytes.extend(input.number().to_string().as_bytes());
            bytes.push(0);
        }
    }
    bytes.extend(input.some(8));
    bytes
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.flag());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() & 0xf {
            0..=4 => world.tcp(&mut input),
            5 | 6 => world.udp(&mut input),
            7 => world.six(&mut input),
            8 => {
                // ARP, or an echo.
                let body = input.some(32);
                world.ip(&mut input, [192, 0, 2, 1], 1, &[&[8, 0, 0, 0][..], body].concat());
            }
            9 => {
                let kind = input.pick(&[[8, 6], [8, 0], [0x86, 0xdd]]);
                let frame = [&GATEWAY[..], &CARD.0, &kind, input.some(80)].concat();
                world.send(frame, false);
            }
            10..=13 => world.peer(&mut input),
            14 => {
                let room = if input.flag() { usize::MAX } else { input.below(4) as usize };
                world.card.0.lock().expect("no panic").room = room;
            }
            _ => world.net.renew(input.flag()),
        }
        for _ in 0..4 {
            if !world.net.round(world.card.clone()) {
                break;
            }
        }
    }
}
