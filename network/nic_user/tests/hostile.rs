//! What a hostile guest and hostile peers send, and what becomes of a saved guest.
//!
//! `SARANG_LONG` makes the runs long.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use common::{
    ADDRESS, CARD, Card, GATEWAY, Guest, Options, PATIENCE, config, echo, noise, plug, server,
    wire::{ROUTER, ethernet, ipv4, pseudo, sum, udp, v4, wait},
};
use device::Device;
use nic::{Checksum, Mac, Meta, Network, NoRoom, Offloads, Port, SegmentKind, Segmentation, Taken};
use nic_user::{Config, UserNet};
use proptest::{prelude::*, test_runner::TestRunner};
use saved_state::{Reader, Writer};
use smoltcp::socket::tcp;

fn cases(short: u32) -> ProptestConfig {
    let long = std::env::var_os("SARANG_LONG").is_some();
    ProptestConfig {
        cases: if long { short * 100 } else { short },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Fields {
    port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
}

fn segment(to: SocketAddr, fields: Fields, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = fields.port.to_be_bytes().to_vec();
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(fields.seq.to_be_bytes());
    bytes.extend(fields.ack.to_be_bytes());
    bytes.extend([((20 + options.len()) * 4) as u8, fields.flags]);
    bytes.extend(fields.window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes.extend(payload);
    let check = sum(&[&pseudo(v4(to), 6, bytes.len()), &bytes]);
    bytes[16..18].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// The next TCP segment for the guest: flags, sequence number, acknowledgement, payload.
fn next_segment(card: &Card) -> (u8, u32, u32, Vec<u8>) {
    wait("a segment", || {
        let (frame, _) = card.receive()?;
        if frame[12..14] != [8, 0] || frame[23] != 6 {
            return None;
        }
        let tcp = &frame[34..];
        let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let len = usize::from(tcp[12] >> 4) * 4;
        Some((tcp[13], number(4), number(8), tcp[len..].to_vec()))
    })
}

/// Whether the network still does what it is for.
fn is_alive(card: &Card) {
    while card.receive().is_some() {}
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(CARD.0);
    arp.extend(ADDRESS.octets());
    arp.extend([0; 6]);
    arp.extend(GATEWAY.octets());
    card.send(ethernet(0x0806, &arp), Meta::default());
    wait("the network", || {
        let (frame, _) = card.receive()?;
        (frame[12..14] == [8, 6] && frame[22..28] == ROUTER).then_some(())
    });
}

fn send_ip(card: &Card, to: SocketAddr, protocol: u8, payload: &[u8]) {
    card.send(ipv4(v4(to), protocol, 0, 0x4000, payload), Meta::default());
}

/// Opens a connection by hand; the sequence numbers that follow the handshake.
fn handshake(card: &Card, to: SocketAddr, port: u16, window: u16) -> (u32, u32) {
    let syn = Fields { port, seq: 1000, ack: 0, flags: 2, window };
    send_ip(card, to, 6, &segment(to, syn, &[2, 4, 5, 0xb4, 3, 3, 2, 0], b""));
    let (flags, seq, ack, _) = next_segment(card);
    assert_eq!((flags, ack), (0x12, 1001));
    let fields = Fields { port, seq: 1001, ack: seq.wrapping_add(1), flags: 0x10, window };
    send_ip(card, to, 6, &segment(to, fields, &[], b""));
    (1001, fields.ack)
}

#[test]
fn a_guest_may_leave_the_cutting_and_the_sums_to_us() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let to = server(move |mut stream| {
        let mut all = vec![0; 60_000];
        stream.read_exact(&mut all).unwrap();
        tell.lock().unwrap().send(all).unwrap();
        stream.write_all(&noise(100_000, 2)).unwrap();
    });
    let net = UserNet::start(config(), 0).unwrap();
    let card = plug(net, Options { offloads: true, ..Options::default() });
    let (seq, ack) = handshake(&card, to, 7, 0xffff);
    let bytes = noise(60_000, 1);
    let fields = Fields { port: 7, seq, ack, flags: 0x18, window: 0xffff };
    let mut large = segment(to, fields, &[], &bytes);
    large[16] ^= 0xff;
    let header_len = 54;
    let meta = Meta {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460, header_len }),
    };
    card.send(ipv4(GATEWAY, 6, 0, 0x4000, &large), meta);
    assert!(told.recv_timeout(PATIENCE).unwrap() == bytes);
    // And it gets such frames: fewer than there are segments.
    let (mut got, mut frames) = (Vec::new(), 0);
    while got.len() < 100_000 {
        let (_, _, _, payload) = next_segment(&card);
        frames += 1;
        got.extend(payload);
        let fields = Fields {
            seq: seq + 60_000,
            ack: ack.wrapping_add(got.len() as u32),
            flags: 0x10,
            ..fields
        };
        send_ip(&card, to, 6, &segment(to, fields, &[], b""));
    }
    assert!(got == noise(100_000, 2));
    assert!(frames < 40, "{frames}");
}

#[test]
fn a_flood_of_calls_is_bounded() {
    let to = server(|mut stream| drop(stream.read(&mut [0; 1])));
    let net = UserNet::start(config(), 0).unwrap();
    let card = plug(net.clone(), Options::default());
    for port in 1..3000u16 {
        let syn = Fields { port, seq: 5, ack: 0, flags: 2, window: 1000 };
        send_ip(&card, to, 6, &segment(to, syn, &[], b""));
        card.send(ipv4(GATEWAY, 17, 0, 0, &udp(port, to, b"x")), Meta::default());
        while card.receive().is_some() {}
    }
    wait("the flood", || card.is_drained().then_some(()));
    let report = net.report();
    assert!(report.tcp <= 512 && report.tcp > 100, "{report:?}");
    assert!(report.udp <= 256, "{report:?}");
    assert!(report.counters.too_many > 0);
    is_alive(&card);
    net.reset();
    wait("the reset", || (net.report().tcp + net.report().udp == 0).then_some(()));
}

#[test]
fn any_frame_is_survived() {
    let net = UserNet::start(Config { tftp: Some("/etc/hostname".into()), ..config() }, 0).unwrap();
    let card = plug(net.clone(), Options::default());
    let to = SocketAddr::from((GATEWAY, 69));
    let payloads = [
        ipv4(GATEWAY, 1, 0, 0, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        ipv4(GATEWAY, 17, 0, 0, &udp(9, to, b"\0\x01hostname\0octet\0blksize\08\0")),
        ipv4(GATEWAY, 17, 0, 0, &udp(9, (Ipv4Addr::new(10, 0, 2, 3), 53).into(), &[1; 40])),
        ipv4(Ipv4Addr::BROADCAST, 17, 0, 0, &udp(68, (Ipv4Addr::BROADCAST, 67).into(), &dhcp())),
        ipv4(GATEWAY, 6, 0, 0, &segment((GATEWAY, 1).into(), SYN, &[2, 4, 5, 0xb4], b"")),
        ethernet(
            0x0806,
            &[
                0, 1, 8, 0, 6, 4, 0, 1, 82, 84, 0, 1, 2, 3, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0,
                2, 2,
            ],
        ),
        ethernet(0x86dd, &router_solicitation()),
    ];
    let mutated = (
        0..payloads.len(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        0usize..40,
    )
        .prop_map(move |(which, changes, cut)| {
            let mut frame = payloads[which].clone();
            for (at, value) in changes {
                // Behind the addresses, so that the frame is looked at.
                let len = frame.len() - 12;
                frame[12 + at.index(len)] = value;
            }
            let len = frame.len().saturating_sub(if cut < 20 { 0 } else { cut });
            frame.truncate(len);
            frame
        });
    let random = (
        prop::sample::select(vec![0x0800u16, 0x0806, 0x86dd]),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(kind, payload)| ethernet(kind, &payload));
    let frames = prop::collection::vec(
        (prop_oneof![mutated, random, prop::collection::vec(any::<u8>(), 0..30)], any::<bool>()),
        1..200,
    );
    let mut runner = TestRunner::new(cases(30));
    runner
        .run(&frames, |frames| {
            for (frame, verified) in frames {
                let checksum = if verified { Checksum::Verified } else { Checksum::Unknown };
                card.send(frame, Meta { checksum, segmentation: None });
                while card.receive().is_some() {}
            }
            is_alive(&card);
            Ok(())
        })
        .unwrap();
    let counters = net.report().counters;
    assert!(counters.ignored > 0 && counters.ignored < counters.frames_from_guest);
}

const SYN: Fields = Fields { port: 99, seq: 7, ack: 0, flags: 2, window: 100 };

fn dhcp() -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0, 1, 2, 3, 4];
    bytes.resize(28, 0);
    bytes.extend(CARD.0);
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 60, 3, 65, 66, 67, 55, 2, 1, 26, 255]);
    bytes
}

fn router_solicitation() -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    bytes.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    let mut body = vec![133, 0, 0, 0, 0, 0, 0, 0];
    let mut pseudo = bytes[8..40].to_vec();
    pseudo.extend([0, 0, 0, 8, 0, 0, 0, 58]);
    let check = sum(&[&pseudo, &body]);
    body[2..4].copy_from_slice(&check.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Segments of an open connection with numbers near those that are right.
#[test]
fn any_segment_is_survived() {
    let to = server(echo);
    let net = UserNet::start(config(), 0).unwrap();
    let card = plug(net.clone(), Options::default());
    let near = prop_oneof![
        Just(0u32),
        1u32..2000,
        (0u32..2000).prop_map(|n| n.wrapping_neg()),
        any::<u32>(),
    ];
    let one = (near.clone(), near, any::<u8>(), any::<u16>(), 0usize..1500);
    let many = (1u16..65535, prop::collection::vec(one, 1..60));
    let mut runner = TestRunner::new(cases(30));
    runner
        .run(&many, |(port, segments)| {
            // The reset is an order to the network's thread, which may still be answering the
            // last connection: once it is paused it has obeyed.
            net.reset();
            Device::pause(&*net);
            while card.receive().is_some() {}
            Device::resume(&*net);
            let (mut seq, mut ack) = handshake(&card, to, port, 1000);
            for (ds, da, flags, window, len) in segments {
                let fields = Fields {
                    port,
                    seq: seq.wrapping_add(ds),
                    ack: ack.wrapping_add(da),
                    // Mostly what is looked at further: neither SYN nor RST, with ACK.
                    flags: if len % 4 == 0 { flags } else { 0x10 | flags & 0x09 },
                    window,
                };
                send_ip(&card, to, 6, &segment(to, fields, &[], &vec![1; len]));
                while let Some((frame, _)) = card.receive() {
                    if frame[23] == 6 && frame[12..14] == [8, 0] {
                        let number = |at| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
                        (seq, ack) = (number(42), number(38));
                    }
                }
            }
            is_alive(&card);
            prop_assert!(net.report().tcp <= 1);
            Ok(())
        })
        .unwrap();
}

/// Peers that stop, reset and stall where they like: the guest gets what they sent, from the
/// first byte on and in order.
#[test]
fn any_peer_is_survived() {
    static SEED: AtomicU64 = AtomicU64::new(1);
    let to = server(|mut stream| {
        let plan = noise(64, SEED.fetch_add(1, Relaxed));
        let bytes = noise(300_000, 77);
        let mut at = 0;
        for step in plan {
            let len = usize::from(step) * 97;
            match step % 16 {
                0 => return drop(stream.shutdown(Shutdown::Both)),
                1 => drop(stream.shutdown(Shutdown::Read)),
                2 => {
                    // Unread bytes make this a reset.
                    let _ = stream.peek(&mut [0; 1]);
                    return;
                }
                3 => thread::sleep(Duration::from_millis(3)),
                4..8 => drop(stream.read(&mut vec![0; 1 + len.min(2000)])),
                _ => {
                    let end = bytes.len().min(at + len);
                    if stream.write_all(&bytes[at..end]).is_err() {
                        return;
                    }
                    at = end;
                }
            }
        }
    });
    let all = noise(300_000, 77);
    let rounds = if std::env::var_os("SARANG_LONG").is_some() { 200 } else { 12 };
    let mut guest = Guest::new(config());
    for _ in 0..rounds {
        let handles: Vec<_> = (0..10).map(|_| guest.connect(to, 1 << 14)).collect();
        let mut got = vec![Vec::new(); handles.len()];
        guest.until("ten peers", |g| {
            let mut open = 0;
            for (handle, got) in handles.iter().zip(&mut got) {
                let socket = g.socket(*handle);
                if socket.can_send() {
                    socket.send_slice(&[7; 3000]).unwrap();
                }
                while socket.can_recv() {
                    socket.recv(|part| (part.len(), got.extend_from_slice(part))).unwrap();
                }
                open += usize::from(socket.state() != tcp::State::Closed && socket.may_recv());
                open += usize::from(socket.state() == tcp::State::SynSent);
                if socket.state() == tcp::State::CloseWait {
                    socket.close();
                }
            }
            (open == 0).then_some(())
        });
        for (handle, got) in handles.into_iter().zip(&got) {
            assert!(got[..] == all[..got.len()]);
            guest.socket(handle).abort();
            guest.poll();
            guest.sockets.remove(handle);
        }
    }
    guest.until("the end of all flows", |g| (g.net.report().tcp == 0).then_some(()));
}

/// What a peer sent before it reset is delivered, and then the reset, not an end.
#[test]
fn a_reset_behind_bytes_that_wait_is_a_reset() {
    let (go, wait_for) = std::sync::mpsc::channel::<()>();
    let wait_for = std::sync::Mutex::new(wait_for);
    let to = server(move |mut stream| {
        stream.write_all(b"last words").unwrap();
        wait_for.lock().unwrap().recv().unwrap();
        // Unread bytes make closing a reset.
        while stream.peek(&mut [0; 2]).unwrap() < 2 {}
    });
    let card = plug(UserNet::start(config(), 0).unwrap(), Options::default());
    let (seq, ack) = handshake(&card, to, 7, 0xffff);
    let (_, at, _, words) = next_segment(&card);
    assert_eq!((at, &words[..]), (ack, &b"last words"[..]));
    let fields = Fields { port: 7, seq, ack, flags: 0x18, window: 0xffff };
    send_ip(&card, to, 6, &segment(to, fields, &[], b"unread"));
    go.send(()).unwrap();
    // The words are not acknowledged: they still wait in the socket.
    let (flags, at) = wait("a reset", || {
        let (flags, at, ..) = next_segment(&card);
        (flags & 0x05 != 0).then_some((flags, at))
    });
    assert_eq!((flags & 0x05, at), (0x04, ack.wrapping_add(10)));
}

/// RFC 5961 section 3: a reset of the guest counts with the exact number, and one near it is
/// answered.
#[test]
fn a_reset_of_the_guest_has_the_exact_number() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let to = server(move |mut stream| {
        let error = stream.read(&mut [0; 1]).unwrap_err();
        tell.lock().unwrap().send(error.kind()).unwrap();
    });
    let net = UserNet::start(config(), 0).unwrap();
    let card = plug(net.clone(), Options::default());
    let (seq, ack) = handshake(&card, to, 7, 0xffff);
    let reset = |seq| {
        let fields = Fields { port: 7, seq, ack, flags: 0x04, window: 0 };
        send_ip(&card, to, 6, &segment(to, fields, &[], b""));
    };
    reset(seq - 1);
    reset(seq + 1);
    let (flags, _, at, _) = next_segment(&card);
    assert_eq!((flags, at), (0x10, seq));
    assert_eq!(net.report().tcp, 1);
    reset(seq);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(ErrorKind::ConnectionReset));
    wait("the end", || (net.report().tcp == 0).then_some(()));
}

/// The mark of urgent data ends a read of the socket, but not the stream.
#[test]
fn what_follows_urgent_data_arrives() {
    let to = server(|mut stream| {
        let mut order = [0; 1];
        stream.read_exact(&mut order).unwrap();
        stream.write_all(b"before").unwrap();
        rustix::net::send(&stream, b"!", rustix::net::SendFlags::OOB).unwrap();
        stream.write_all(b"behind").unwrap();
        if order == *b"w" {
            drop(stream.read(&mut order));
        }
    });
    let mut guest = Guest::new(config());
    for order in [b"w", b"e"] {
        let handle = guest.connect(to, 1000);
        guest.established(handle);
        guest.socket(handle).send_slice(order).unwrap();
        let mut all = Vec::new();
        guest.until("everything", |g| {
            let socket = g.socket(handle);
            if socket.can_recv() {
                socket.recv(|part| (part.len(), all.extend_from_slice(part))).unwrap();
            }
            (all.len() >= 13 || !socket.may_recv()).then_some(())
        });
        assert_eq!(all, b"before!behind");
        guest.socket(handle).abort();
        guest.poll();
    }
}

#[test]
fn a_restored_guest_learns_that_its_connections_are_gone() {
    let to = server(echo);
    let net = UserNet::start(config(), 0).unwrap();
    let mut guest = Guest::with(net.clone(), Options::default());
    let handle = guest.connect(to, 1000);
    guest.established(handle);
    guest.socket(handle).send_slice(b"hello").unwrap();
    guest.until("an echo", |g| {
        g.socket(handle).recv(|part| (part.len(), (part.len() == 5).then_some(()))).ok().flatten()
    });
    Network::pause(&*net);
    Device::pause(&*net);
    let mut writer = Writer::default();
    net.save(&mut writer);
    let parts = writer.finish();
    Network::resume(&*net);
    Device::resume(&*net);
    // The guest as it was, on another network: its card takes over where the other was.
    let mut reader = Reader::new(parts.clone()).unwrap();
    net.restore(&mut reader).unwrap();
    reader.finish().unwrap();
    guest.until("a reset", |g| (g.socket(handle).state() == tcp::State::Closed).then_some(()));
    assert_eq!(net.report().tcp, 0);
    // What is not possible is refused.
    for instance in [0, 1] {
        let other = UserNet::start(Config { network: [10, 9, 9, 0].into(), ..config() }, instance);
        let mut reader = Reader::new(parts.clone()).unwrap();
        let error = other.unwrap().restore(&mut reader).unwrap_err().to_string();
        assert!(error.contains("nic_user"), "{error}");
    }
}

/// A card that is in the network's hands when everyone else has let go of both.
struct LastCard {
    network: Option<Arc<UserNet>>,
    entered: Sender<()>,
    go: Mutex<Receiver<()>>,
    /// Whether the network's end was a panic.
    ended: Sender<bool>,
}

impl Port for LastCard {
    fn mac(&self) -> Mac {
        CARD
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn take(&self, _: &mut [u8]) -> Option<Taken> {
        self.entered.send(()).unwrap();
        let _ = self.go.lock().unwrap().recv();
        None
    }

    fn give(&self, _: &Meta, _: &[&[u8]]) -> Result<(), NoRoom> {
        Ok(())
    }

    fn flush(&self) {}

    fn set_link(&self, _: bool) {}
}

impl Drop for LastCard {
    fn drop(&mut self) {
        let network = self.network.take();
        let outcome = panic::catch_unwind(AssertUnwindSafe(move || drop(network)));
        self.ended.send(outcome.is_err()).unwrap();
    }
}

#[test]
fn a_network_may_end_on_its_own_thread() {
    let network = UserNet::start(config(), 0).unwrap();
    let ((entered, entry), (go, going), (ended, end)) = (channel(), channel(), channel());
    let held = network.clone();
    let card = LastCard { network: Some(held), entered, go: Mutex::new(going), ended };
    let card: Arc<dyn Port> = Arc::new(card);
    network.attach(Arc::downgrade(&card));
    entry.recv_timeout(PATIENCE).unwrap();
    drop((network, card));
    go.send(()).unwrap();
    assert_eq!(end.recv_timeout(PATIENCE), Ok(false));
}

#[test]
fn a_paused_network_keeps_away() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let net = UserNet::start(config(), 0).unwrap();
    let card = plug(net.clone(), Options::default());
    is_alive(&card);
    Network::pause(&*net);
    card.send(ethernet(0x0806, &[0; 28]), Meta::default());
    thread::sleep(Duration::from_millis(50));
    assert!(!card.is_drained());
    Network::resume(&*net);
    wait("the frame", || card.is_drained().then_some(()));
    is_alive(&card);
    // Ends without the card, and with it paused.
    Network::pause(&*net);
    drop((listener, card, net));
    let net = Arc::new(UserNet::start(config(), 0).unwrap());
    net.wake();
}
