//! Headers of what goes to the guest.

use std::net::{IpAddr, SocketAddr};

use nic::Mac;
use smoltcp::wire::IpProtocol;

use crate::checksum::{self, pseudo};

const IPV4: usize = 20;
const IPV6: usize = 40;
pub(crate) const UDP: usize = 8;
/// A TCP header without options.
pub(crate) const TCP: usize = 20;
/// An IPv6 fragment header, RFC 8200 section 4.5.
pub(crate) const FRAGMENT6: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;

pub(crate) const TTL: u8 = 64;

/// Headers in a row. Their sizes are ours, so they fit.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    bytes: [u8; 160],
    len: usize,
}

impl Head {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 160], len: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// What has been written from `start` on.
    pub(crate) fn since(&self, start: usize) -> &[u8] {
        self.bytes.get(start..self.len).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        debug_assert!(end <= self.bytes.len());
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
            self.len = end;
        }
    }

    fn push16(&mut self, value: u16) {
        self.push(&value.to_be_bytes());
    }

    pub(crate) fn set16(&mut self, at: usize, value: u16) {
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }

    pub(crate) fn ethernet(&mut self, from: Mac, to: Mac, kind: u16) {
        self.push(&to.0);
        self.push(&from.0);
        self.push16(kind);
    }
}

/// What is special about an IP packet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Piece {
    /// Of the datagram that it is a piece of.
    pub(crate) ident: u32,
    /// In bytes, a multiple of 8.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

/// How long the IP header is, that of fragments not counted.
pub(crate) fn ip_len(family: IpAddr) -> usize {
    if family.is_ipv4() { IPV4 } else { IPV6 }
}

pub(crate) fn ethertype(family: IpAddr) -> u16 {
    if family.is_ipv4() { TYPE_IPV4 } else { TYPE_IPV6 }
}

/// Adds an IP header for `payload` bytes. Addresses of two families make no packet.
pub(crate) fn ip(
    head: &mut Head,
    src: IpAddr,
    dst: IpAddr,
    protocol: IpProtocol,
    payload: usize,
    piece: Option<Piece>,
) {
    let protocol = u8::from(protocol);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let start = head.len();
            head.push(&[0x45, 0]);
            head.push16(u16::try_from(payload + IPV4).unwrap_or(u16::MAX));
            match piece {
                Some(piece) => {
                    head.push16(piece.ident as u16);
                    head.push16(u16::from(piece.more) << 13 | piece.offset >> 3);
                }
                None => {
                    head.push16(0);
                    // Don't fragment: such a packet needs no identification, RFC 6864.
                    head.push16(0x4000);
                }
            }
            head.push(&[TTL, protocol, 0, 0]);
            head.push(&src.octets());
            head.push(&dst.octets());
            let sum = !checksum::sum(head.since(start));
            head.set16(start + 10, sum);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let extra = if piece.is_some() { FRAGMENT6 } else { 0 };
            head.push(&[0x60, 0, 0, 0]);
            head.push16(u16::try_from(payload + extra).unwrap_or(u16::MAX));
            let hops = if protocol == u8::from(IpProtocol::Icmpv6) { 255 } else { TTL };
            let next = if piece.is_some() { IpProtocol::Ipv6Frag.into() } else { protocol };
            head.push(&[next, hops]);
            head.push(&src.octets());
            head.push(&dst.octets());
            if let Some(piece) = piece {
                head.push(&[protocol, 0]);
                head.push16(piece.offset & !7 | u16::from(piece.more));
                head.push(&piece.ident.to_be_bytes());
            }
        }
        _ => {}
    }
}

/// The checksum of a UDP datagram or TCP segment whose header, of even length, has zero there.
pub(crate) fn transport(pseudo: u16, header: &[u8], payload: &[u8]) -> u16 {
    !checksum::combine(&[pseudo, checksum::sum(header), checksum::sum(payload)])
}

pub(crate) fn udp(head: &mut Head, src: SocketAddr, dst: SocketAddr, payload: &[u8]) {
    let start = head.len();
    let len = payload.len() + UDP;
    head.push16(src.port());
    head.push16(dst.port());
    head.push16(u16::try_from(len).unwrap_or(u16::MAX));
    head.push16(0);
    let pseudo = pseudo(src.ip(), dst.ip(), IpProtocol::Udp, len);
    let sum = transport(pseudo, head.since(start), payload);
    // Zero means that there is none, RFC 768.
    head.set16(start + 6, if sum == 0 { 0xffff } else { sum });
}

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// The fields of a TCP header that are not always the same.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpFields {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
}

/// Adds a TCP header; its checksum is left to the caller.
pub(crate) fn tcp(head: &mut Head, src: SocketAddr, dst: SocketAddr, fields: &TcpFields) {
    let options =
        if fields.mss.is_some() { 4 } else { 0 } + if fields.scale.is_some() { 4 } else { 0 };
    head.push16(src.port());
    head.push16(dst.port());
    head.push(&fields.seq.to_be_bytes());
    head.push(&fields.ack.to_be_bytes());
    head.push(&[((TCP + options) / 4 * 16) as u8, fields.flags]);
    head.push16(fields.window);
    head.push(&[0; 4]);
    if let Some(mss) = fields.mss {
        head.push(&[2, 4]);
        head.push16(mss);
    }
    if let Some(scale) = fields.scale {
        head.push(&[1, 3, 3, scale]);
    }
}
