//! Packets that are made by hand, which no stack would send.

use super::{ADDRESS, CARD, PATIENCE};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

pub const ROUTER: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];

pub fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut total: u32 = 0;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&ROUTER[..], &CARD.0, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet; `flags` are those of the fragment field.
pub fn ipv4(dst: Ipv4Addr, protocol: u8, ident: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut head = vec![0x45, 0];
    head.extend((20 + payload.len() as u16).to_be_bytes());
    head.extend(ident.to_be_bytes());
    head.extend(flags.to_be_bytes());
    head.extend([64, protocol, 0, 0]);
    head.extend(ADDRESS.octets());
    head.extend(dst.octets());
    let check = sum(&[&head]);
    head[10..12].copy_from_slice(&check.to_be_bytes());
    ethernet(0x0800, &[&head[..], payload].concat())
}

pub fn pseudo(dst: Ipv4Addr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = ADDRESS.octets().to_vec();
    bytes.extend(dst.octets());
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
}

pub fn udp(from: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = from.to_be_bytes().to_vec();
    bytes.extend(to.port().to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

pub fn v4(addr: SocketAddr) -> Ipv4Addr {
    match addr.ip() {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(_) => panic!("IPv4 is meant"),
    }
}

pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(start.elapsed() < PATIENCE, "{what} takes too long");
        thread::sleep(Duration::from_micros(200));
    }
}
