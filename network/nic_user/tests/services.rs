//! What the network itself answers: addresses, names, files, pings, datagrams.

mod common;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::unix::fs::symlink,
    path::PathBuf,
    thread,
    time::Duration,
};

use common::{ADDRESS, GATEWAY, Guest, Options, config, noise};
use nic_user::{Config, Forward, Transport, UserNet};
use rustix::fs::{FileType, Mode};
use smoltcp::{
    phy::ChecksumCapabilities,
    socket::{dhcpv4, icmp},
    wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr},
};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nic_user-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn dhcp_leases_an_address() {
    let mut guest = Guest::new(config());
    guest.iface.update_ip_addrs(|addrs| addrs.clear());
    guest.iface.routes_mut().remove_default_ipv4_route();
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let found =
        guest.until("a lease", |g| match g.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(found)) => {
                Some((found.address, found.router, found.dns_servers.to_vec()))
            }
            _ => None,
        });
    assert_eq!(found.0, smoltcp::wire::Ipv4Cidr::new(ADDRESS, 24));
    assert_eq!(found.1, Some(GATEWAY));
    assert_eq!(found.2, [DNS]);
}

#[test]
fn router_advertisements_give_ipv6() {
    // Over IPv6 the gateway's address is ::1 of this host.
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        println!("skipped: this host has no IPv6 loopback");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || common::echo(stream.unwrap()));
        }
    });
    let net = UserNet::start(config(), 0).unwrap();
    let gateway = net.config().gateway6();
    let mut guest = Guest::with(net, Options { slaac: true, ..Options::default() });
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe01, 0x0203);
    guest.iface.update_ip_addrs(|addrs| {
        addrs.push(IpCidr::new(IpAddress::from(link_local), 64)).unwrap();
    });
    let addr = guest.until("an address", |g| {
        g.iface.ip_addrs().iter().find_map(|cidr| match cidr.address() {
            IpAddress::Ipv6(a) if a.segments()[0] == 0xfd53 => Some(a),
            _ => None,
        })
    });
    assert_eq!(addr.segments()[..4], gateway.segments()[..4]);
    let handle = guest.connect((gateway, port).into(), 1 << 14);
    guest.established(handle);
    let bytes = noise(5_000, 3);
    guest.socket(handle).send_slice(&bytes).unwrap();
    let mut got = Vec::new();
    guest.until("an echo", |g| {
        let socket = g.socket(handle);
        if socket.can_recv() {
            socket.recv(|part| (part.len(), got.extend_from_slice(part))).unwrap();
        }
        (got.len() == bytes.len()).then_some(())
    });
    assert!(got == bytes);
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// A resolver that answers every query with itself and one address; its port.
fn resolver() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        loop {
            let (n, from) = socket.recv_from(&mut buffer).unwrap();
            let mut answer = buffer[..n].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            // Something that is no answer, first.
            socket.send_to(&[0xff; 20], from).unwrap();
            socket.send_to(&answer, from).unwrap();
        }
    });
    port
}

#[test]
fn names_are_resolved_by_the_hosts_resolvers() {
    let folder = Folder::new("dns");
    let resolv_conf = folder.0.join("resolv.conf");
    // Nobody listens at the first, so the second is asked.
    fs::write(&resolv_conf, "nameserver 127.0.0.77\nnameserver 127.0.0.1\n").unwrap();
    let config = Config { resolv_conf: resolv_conf.clone(), ..config() };
    let net = UserNet::start_with(config, 0, Some(resolver())).unwrap();
    let mut guest = Guest::with(net, Options::default());
    let handle = guest.udp(5353);
    for id in [7u16, 8] {
        let question = query(id, "deb.debian.org");
        guest.udp_send(handle, (DNS, 53).into(), &question);
        let (answer, from) = guest.udp_receive(handle);
        assert_eq!(from, (DNS, 53).into());
        assert_eq!(answer[..2], id.to_be_bytes());
        assert_eq!(answer[answer.len() - 4..], [192, 0, 2, 7]);
    }
    // Without any that answers, the guest is told so.
    fs::write(&resolv_conf, "nameserver 127.0.0.78\n").unwrap();
    thread::sleep(Duration::from_millis(2100));
    guest.udp_send(handle, (DNS, 53).into(), &query(9, "a"));
    let (answer, _) = guest.udp_receive(handle);
    assert_eq!((answer[2] & 0x80, answer[3] & 15), (0x80, 2), "SERVFAIL");
}

#[test]
fn datagrams_come_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        loop {
            let (n, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..n], from).unwrap();
        }
    });
    let mut guest = Guest::new(config());
    let handles = [guest.udp(1000), guest.udp(1001)];
    for (i, handle) in handles.into_iter().enumerate() {
        for len in [0, 1, 1472] {
            let bytes = noise(len, i as u64 + 1);
            guest.udp_send(handle, (GATEWAY, port).into(), &bytes);
            assert_eq!(guest.udp_receive(handle), (bytes, (GATEWAY, port).into()));
        }
    }
    assert_eq!(guest.net.report().udp, 2);
}

#[test]
fn a_udp_forward_goes_both_ways() {
    let at = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let forward = Forward { transport: Transport::Udp, listen: at, guest: None, port: 69 };
    let mut guest = Guest::new(Config { forwards: vec![forward], ..config() });
    let handle = guest.udp(69);
    let clients = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    for (i, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(common::PATIENCE)).unwrap();
        client.connect(at).unwrap();
        client.send(&[i as u8; 100]).unwrap();
        let (bytes, from) = guest.udp_receive(handle);
        assert_eq!((bytes, from.ip()), (vec![i as u8; 100], IpAddr::V4(GATEWAY)));
        guest.udp_send(handle, from, b"answer");
        let mut buffer = [0; 100];
        guest.until("the answer", |_| {
            client.set_nonblocking(true).unwrap();
            client.recv(&mut buffer).ok()
        });
        assert!(buffer.starts_with(b"answer"));
    }
}

/// Pings `to`; what comes back is a reply's sequence number.
fn ping(guest: &mut Guest, to: Ipv4Addr) -> u16 {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(0x5a)).unwrap();
    let request = Icmpv4Repr::EchoRequest { ident: 0x5a, seq_no: 3, data: &[9; 56] };
    let caps = ChecksumCapabilities::default();
    let room = socket.send(request.buffer_len(), to.into()).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(room), &caps);
    let handle = guest.sockets.add(socket);
    let seq = guest.until("a reply", |g| {
        let (message, from) = g.sockets.get_mut::<icmp::Socket<'_>>(handle).recv().ok()?;
        let packet = Icmpv4Packet::new_checked(message).unwrap();
        match Icmpv4Repr::parse(&packet, &caps).unwrap() {
            Icmpv4Repr::EchoReply { ident: 0x5a, seq_no, data } => {
                assert_eq!((data, from), (&[9; 56][..], to.into()));
                Some(seq_no)
            }
            other => panic!("{other:?}"),
        }
    });
    guest.sockets.remove(handle);
    seq
}

#[test]
fn pings_are_answered() {
    let mut guest = Guest::new(config());
    assert_eq!(ping(&mut guest, GATEWAY), 3);
    assert_eq!(ping(&mut guest, DNS), 3);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
    let mut range = range.split_whitespace().map(|n| n.parse::<u64>().unwrap());
    let (first, last) = (range.next().unwrap(), range.next().unwrap());
    let own = UdpSocket::bind("0.0.0.0:0").unwrap();
    let outer = own.connect("192.0.2.1:9").and_then(|()| own.local_addr());
    match outer.map(|a| a.ip()) {
        Ok(IpAddr::V4(outer)) if first == 0 && last > 0 && !outer.is_loopback() => {
            assert_eq!(ping(&mut guest, outer), 3);
        }
        _ => println!("skipped: no ping sockets here, or no address to ping"),
    }
}

/// Reads a file by TFTP with these options; the text of the error if there is one.
fn tftp(guest: &mut Guest, name: &str, options: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    let port = 3000 + guest.sockets.iter().count() as u16;
    let handle = guest.udp(port);
    let mut request = vec![0, 1];
    let words = [name, "octet"].into_iter();
    for word in words.chain(options.iter().flat_map(|(name, value)| [*name, *value])) {
        request.extend(word.bytes().chain([0]));
    }
    guest.udp_send(handle, (GATEWAY, 69).into(), &request);
    let (mut all, mut block_size, mut window, mut expected) = (Vec::new(), 512, 1, 1u16);
    loop {
        let (message, from) = guest.udp_receive(handle);
        let (head, body) = message.split_at(4.min(message.len()));
        match head[1] {
            6 => {
                let text = String::from_utf8(message[2..].to_vec()).unwrap();
                let words: Vec<&str> = text.split('\0').collect();
                for pair in words.chunks_exact(2) {
                    match pair[0] {
                        "blksize" => block_size = pair[1].parse().unwrap(),
                        "windowsize" => window = pair[1].parse().unwrap(),
                        _ => {}
                    }
                }
                guest.udp_send(handle, from, &[0, 4, 0, 0]);
            }
            5 => {
                return Err(String::from_utf8_lossy(body).trim_end_matches('\0').to_owned());
            }
            3 => {
                let block = u16::from_be_bytes([head[2], head[3]]);
                if block != expected {
                    continue;
                }
                all.extend(body);
                expected = expected.wrapping_add(1);
                let end = body.len() < block_size;
                if end || block % window == 0 {
                    guest.udp_send(handle, from, &[0, 4, head[2], head[3]]);
                }
                if end {
                    return Ok(all);
                }
            }
            other => panic!("opcode {other}"),
        }
    }
}

#[test]
fn files_are_read_by_tftp() {
    let folder = Folder::new("tftp");
    let served = folder.0.join("served");
    fs::create_dir(&served).unwrap();
    let bytes = noise(200_000, 4);
    fs::write(served.join("kernel"), &bytes).unwrap();
    fs::write(served.join("even"), &bytes[..1024]).unwrap();
    fs::create_dir(served.join("sub")).unwrap();
    fs::write(folder.0.join("secret"), "secret").unwrap();
    symlink("../secret", served.join("out")).unwrap();
    symlink("/etc/passwd", served.join("passwd")).unwrap();
    symlink("kernel", served.join("link")).unwrap();
    let mut guest = Guest::new(Config { tftp: Some(served.clone()), ..config() });
    assert!(tftp(&mut guest, "kernel", &[]).unwrap() == bytes);
    let options = [("blksize", "1428"), ("tsize", "0"), ("windowsize", "8"), ("x", "y")];
    assert!(tftp(&mut guest, "/kernel", &options).unwrap() == bytes);
    assert!(tftp(&mut guest, "link", &[("blksize", "65464")]).unwrap() == bytes);
    assert!(tftp(&mut guest, "even", &[]).unwrap() == bytes[..1024]);
    for name in ["../secret", "sub/../../secret", "out", "passwd", "sub", "/../secret"] {
        assert_eq!(tftp(&mut guest, name, &[]), Err("access violation".into()), "{name}");
    }
    for name in ["", "absent", "etc/passwd"] {
        assert_eq!(tftp(&mut guest, name, &[]), Err("file not found".into()), "{name}");
    }
    let mut guest = Guest::new(Config { tftp: Some(served.join("kernel")), ..config() });
    assert!(tftp(&mut guest, "/boot/kernel", &[]).unwrap() == bytes);
    assert_eq!(tftp(&mut guest, "even", &[]), Err("file not found".into()));
    // Nobody will ever write to this one, and the network goes on.
    let pipe = served.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut guest = Guest::new(Config { tftp: Some(pipe), ..config() });
    assert_eq!(tftp(&mut guest, "pipe", &[]), Err("access violation".into()));
}

#[test]
fn forwards_lead_into_the_guests_network() {
    for (guest, fits) in [
        ("10.0.2.15", true),
        ("fd53:6172:616e::99", true),
        ("10.0.2.2", false),
        ("10.0.3.15", false),
        ("127.0.0.1", false),
        ("2001:db8::1", false),
    ] {
        let forward = Forward {
            transport: Transport::Udp,
            listen: "127.0.0.1:0".parse().unwrap(),
            guest: Some(guest.parse().unwrap()),
            port: 22,
        };
        let started = UserNet::start(Config { forwards: vec![forward], ..config() }, 0);
        assert_eq!(started.is_ok(), fits, "{guest}");
    }
}

#[test]
fn strangers_are_not_heard() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(config());
    let handle = guest.udp(1000);
    guest.udp_send(handle, (GATEWAY, port).into(), b"hello");
    let mut buffer = [0; 16];
    let (_, from) = guest.until("hello", |_| {
        server.set_nonblocking(true).unwrap();
        server.recv_from(&mut buffer).ok()
    });
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"stranger", from).unwrap();
    server.send_to(b"friend", from).unwrap();
    assert_eq!(guest.udp_receive(handle).0, b"friend");
}
