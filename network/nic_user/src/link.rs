//! The way to the guest: who has which address, and what leaves for it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use nic::{Checksum, Mac, Meta, NoRoom, Offloads, Port, SegmentKind, Segmentation};
use smoltcp::wire::IpProtocol;

use crate::{
    checksum,
    config::GATEWAY_MAC,
    counters::Counters,
    packet::{self, Head, Piece, TcpFields},
};

/// Guests behind one card that are remembered; more replace the oldest.
const NEIGHBOURS: usize = 64;

pub(crate) struct Link {
    /// There while a batch is worked on, so that the card can be dropped in between.
    port: Option<Arc<dyn Port>>,
    offloads: Offloads,
    mtu: usize,
    /// The latest last.
    neighbours: Vec<(IpAddr, Mac)>,
    ident: u32,
    /// In this batch the guest has had no room for something.
    full: bool,
    pub(crate) counters: Counters,
}

impl Link {
    pub(crate) fn new(mtu: u16) -> Self {
        Self {
            port: None,
            offloads: Offloads::default(),
            mtu: mtu.into(),
            neighbours: Vec::new(),
            ident: 0,
            full: false,
            counters: Counters::default(),
        }
    }

    /// A batch begins.
    pub(crate) fn begin(&mut self, port: Option<Arc<dyn Port>>) {
        self.offloads = port.as_ref().map(|p| p.offloads()).unwrap_or_default();
        self.port = port;
        self.full = false;
    }

    /// Whether more is not worth a try before the next batch.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    pub(crate) fn end(&mut self) {
        if let Some(port) = self.port.take() {
            port.flush();
        }
    }

    pub(crate) fn port(&self) -> Option<Arc<dyn Port>> {
        self.port.clone()
    }

    pub(crate) fn mtu(&self) -> usize {
        self.mtu
    }

    /// The guest has sent from this address.
    pub(crate) fn learn(&mut self, addr: IpAddr, mac: Mac) {
        if !mac.is_unicast() || self.neighbours.last() == Some(&(addr, mac)) {
            return;
        }
        self.neighbours.retain(|(known, _)| *known != addr);
        if self.neighbours.len() >= NEIGHBOURS {
            self.neighbours.remove(0);
        }
        self.neighbours.push((addr, mac));
    }

    pub(crate) fn forget(&mut self) {
        self.neighbours.clear();
    }

    /// Where frames for the address go: to who has used it, else to the card.
    fn mac_of(&self, addr: IpAddr) -> Mac {
        let known = self.neighbours.iter().rev().find(|(known, _)| *known == addr);
        known
            .map_or_else(|| self.port.as_ref().map_or(Mac::BROADCAST, |p| p.mac()), |(_, mac)| *mac)
    }

    fn give(&mut self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let port = self.port.as_ref().ok_or(NoRoom)?;
        let given = port.give(meta, parts);
        match given {
            Ok(()) => {
                self.counters.frames_to_guest += 1;
                self.counters.bytes_to_guest += parts.iter().map(|p| p.len() as u64).sum::<u64>();
            }
            Err(NoRoom) => {
                self.counters.no_room += 1;
                self.full = true;
            }
        }
        given
    }

    /// A frame that is no IP packet, or goes to a given station.
    pub(crate) fn frame(&mut self, to: Mac, kind: u16, payload: &[u8]) {
        let mut head = Head::new();
        head.ethernet(GATEWAY_MAC, to, kind);
        let _ = self.give(&Meta::default(), &[head.bytes(), payload]);
    }

    fn ip_head(&self, src: IpAddr, dst: IpAddr, to: Option<Mac>) -> Head {
        let mut head = Head::new();
        let to = to.unwrap_or_else(|| self.mac_of(dst));
        head.ethernet(GATEWAY_MAC, to, packet::ethertype(dst));
        debug_assert_eq!(src.is_ipv4(), dst.is_ipv4());
        head
    }

    /// A packet of another protocol, complete with its checksum, in fragments if it is longer than
    /// the MTU.
    pub(crate) fn ip(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        to: Option<Mac>,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        let _ = self.pieces((src, dst), to, protocol, &[], payload);
    }

    /// A UDP datagram, in fragments if it is longer than the MTU.
    pub(crate) fn datagram(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        to: Option<Mac>,
        payload: &[u8],
    ) -> Result<(), NoRoom> {
        let mut udp = Head::new();
        packet::udp(&mut udp, src, dst, payload);
        self.pieces((src.ip(), dst.ip()), to, IpProtocol::Udp, udp.bytes(), payload)
    }

    /// A header and what follows it, in one packet or as many as it takes.
    fn pieces(
        &mut self,
        (src, dst): (IpAddr, IpAddr),
        to: Option<Mac>,
        protocol: IpProtocol,
        header: &[u8],
        payload: &[u8],
    ) -> Result<(), NoRoom> {
        let len = header.len() + payload.len();
        let ip_len = packet::ip_len(dst);
        if len + ip_len <= self.mtu {
            let mut head = self.ip_head(src, dst, to);
            packet::ip(&mut head, src, dst, protocol, len, None);
            head.push(header);
            return self.give(&Meta::default(), &[head.bytes(), payload]);
        }
        self.ident = self.ident.wrapping_add(1);
        let room = (self.mtu - ip_len - packet::FRAGMENT6) & !7;
        let mut offset = 0;
        while offset < len {
            let end = len.min(offset + room);
            let piece = Piece {
                ident: self.ident,
                offset: u16::try_from(offset).unwrap_or(u16::MAX),
                more: end < len,
            };
            let mut head = self.ip_head(src, dst, to);
            packet::ip(&mut head, src, dst, protocol, end - offset, Some(piece));
            let body = if offset == 0 {
                head.push(header);
                payload.get(..end - header.len())
            } else {
                payload.get(offset - header.len()..end - header.len())
            };
            self.give(&Meta::default(), &[head.bytes(), body.unwrap_or_default()])?;
            offset = end;
        }
        Ok(())
    }

    /// Whether a TCP segment may be longer than the MSS.
    pub(crate) fn segments(&self, to: IpAddr) -> bool {
        self.offloads.checksum && if to.is_ipv4() { self.offloads.tso4 } else { self.offloads.tso6 }
    }

    /// A TCP segment. One longer than `mss` is for the guest to cut, if [`Link::segments`].
    pub(crate) fn segment(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        fields: &TcpFields,
        payload: &[u8],
        mss: usize,
    ) -> Result<(), NoRoom> {
        let (from, dest) = (src.ip(), dst.ip());
        let mut tcp = Head::new();
        packet::tcp(&mut tcp, src, dst, fields);
        let len = tcp.len() + payload.len();
        let mut head = self.ip_head(from, dest, None);
        packet::ip(&mut head, from, dest, IpProtocol::Tcp, len, None);
        let start = head.len();
        head.push(tcp.bytes());
        let pseudo = checksum::pseudo(from, dest, IpProtocol::Tcp, len);
        let mut meta = Meta::default();
        if self.offloads.checksum {
            head.set16(start + 16, pseudo);
            meta.checksum = Checksum::Partial { start: start as u16, offset: 16 };
        } else {
            let sum = packet::transport(pseudo, tcp.bytes(), payload);
            head.set16(start + 16, sum);
        }
        if payload.len() > mss {
            let kind = if dest.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
            let size = u16::try_from(mss).unwrap_or(u16::MAX);
            let header_len = head.len() as u16;
            meta.segmentation = Some(Segmentation { kind, size, header_len });
        }
        self.give(&meta, &[head.bytes(), payload])
    }
}
