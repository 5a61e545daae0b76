//! Datagrams and pings that are longer than the MTU, in pieces.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use common::{
    ADDRESS, Card, GATEWAY, Options, PATIENCE, config, noise, plug,
    wire::{ipv4, pseudo, sum, udp, wait},
};
use nic::Meta;
use nic_user::UserNet;

const UDP: u8 = 17;
const ICMP: u8 = 1;
/// What fits into one packet.
const PIECE: usize = 1480;

/// Sends it cut, the pieces in another order than theirs.
fn send(card: &Card, to: Ipv4Addr, protocol: u8, bytes: &[u8]) {
    let mut pieces: Vec<usize> = (0..bytes.len().div_ceil(PIECE)).collect();
    pieces.reverse();
    pieces.rotate_left(1);
    for i in pieces {
        let (start, end) = (i * PIECE, bytes.len().min((i + 1) * PIECE));
        let more = if end < bytes.len() { 0x2000 } else { 0 };
        let flags = more | (start / 8) as u16;
        card.send(ipv4(to, protocol, 77, flags, &bytes[start..end]), Meta::default());
    }
}

/// Takes so many bytes of such a protocol in, piece by piece.
fn receive(card: &Card, protocol: u8, len: usize) -> Vec<u8> {
    let mut whole = Vec::new();
    while whole.len() < len {
        let frame = wait("fragments", || card.receive()).0;
        if frame[23] == protocol && frame[12..14] == [8, 0] {
            let field = u16::from_be_bytes([frame[20], frame[21]]);
            assert_eq!(usize::from(field & 0x1fff) * 8, whole.len());
            whole.extend(&frame[34..]);
            assert_eq!(field & 0x2000 == 0, whole.len() == len);
        }
    }
    whole
}

#[test]
fn datagrams_are_put_together_and_long_answers_are_cut() {
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = SocketAddr::from((GATEWAY, host.local_addr().unwrap().port()));
    let card = plug(UserNet::start(config(), 0).unwrap(), Options::default());
    let bytes = noise(5000, 3);
    send(&card, GATEWAY, UDP, &udp(9, to, &bytes));
    let mut buffer = vec![0; 1 << 16];
    let (n, from) = host.recv_from(&mut buffer).unwrap();
    assert!(buffer[..n] == bytes);
    host.send_to(&bytes, from).unwrap();
    let whole = receive(&card, UDP, 5008);
    assert!(whole[8..] == bytes);
    assert_eq!(whole[2..4], 9u16.to_be_bytes());
    let mut pseudo = pseudo(GATEWAY, UDP, whole.len());
    pseudo[..4].copy_from_slice(&GATEWAY.octets());
    pseudo[4..8].copy_from_slice(&ADDRESS.octets());
    assert_eq!(sum(&[&pseudo, &whole]), 0, "the sum is that of the whole");
}

/// An echo request with so many bytes of data.
fn request(len: usize) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 0x5a, 0, 3];
    message.extend(noise(len, 5));
    let check = sum(&[&message]);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    message
}

/// Pings with that many bytes of data, and has them back.
fn ping(card: &Card, to: Ipv4Addr, len: usize) {
    let request = request(len);
    send(card, to, ICMP, &request);
    let reply = receive(card, ICMP, request.len());
    assert_eq!((reply[0], sum(&[&reply])), (0, 0), "a reply, and its sum");
    assert!(reply[4..] == request[4..]);
}

#[test]
fn long_pings_have_long_answers() {
    let card = plug(UserNet::start(config(), 0).unwrap(), Options::default());
    // In one piece, in two, and the longest that there are.
    for len in [1472, 1473, 5000, 65_507] {
        ping(&card, GATEWAY, len);
    }
    // No packet can be longer; what has no answer ends nothing.
    send(&card, GATEWAY, ICMP, &request(65_508));
    ping(&card, GATEWAY, 56);
    let outer = UdpSocket::bind("0.0.0.0:0").and_then(|own| {
        own.connect("192.0.2.1:9")?;
        own.local_addr()
    });
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
    let all = range.split_whitespace().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>();
    match outer.map(|addr| addr.ip()) {
        Ok(IpAddr::V4(outer)) if all[0] == 0 && all[1] > 0 && !outer.is_loopback() => {
            ping(&card, outer, 5000);
        }
        _ => println!("skipped: no ping sockets here, or no address to ping"),
    }
}
