//! What the guest sends, taken apart. Everything here is hostile.

use std::net::{IpAddr, SocketAddr};

use nic::{Checksum, Mac, Meta};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv6Message, Icmpv6Packet, IpAddress,
    IpProtocol, Ipv4Packet, Ipv6ExtHeader, Ipv6FragmentHeader, Ipv6Packet, NdiscRepr, TcpOption,
    TcpPacket, UdpPacket,
};

use crate::{
    checksum,
    config::GATEWAY_MAC,
    context::Context,
    dhcp, icmp, neighbour,
    reassembly::{Fragment, Key},
    stack::Stack,
    tcp::{flow::Segment, seq::Seq},
    tftp::Tftp,
};

/// A frame did not go to us, or is malformed.
#[derive(Debug)]
pub(crate) struct Ignored;

/// IPv6 extension headers that are skipped; real packets have none or one.
const EXTENSIONS: usize = 8;

/// An IP packet's payload.
#[derive(Clone, Copy)]
struct Payload<'a> {
    from: Mac,
    src: IpAddr,
    dst: IpAddr,
    protocol: IpProtocol,
    bytes: &'a [u8],
    /// The checksum of the transport is still to be looked at.
    verify: bool,
}

impl Stack {
    pub(crate) fn frame(
        &mut self,
        frame: &[u8],
        meta: &Meta,
        cx: &mut Context,
    ) -> Result<(), Ignored> {
        let frame = EthernetFrame::new_checked(frame).map_err(|_| Ignored)?;
        let EthernetAddress(to) = frame.dst_addr();
        let EthernetAddress(from) = frame.src_addr();
        let (to, from) = (Mac(to), Mac(from));
        if !from.is_unicast() || !(to == GATEWAY_MAC || to.is_multicast()) {
            return Err(Ignored);
        }
        let verify = meta.checksum == Checksum::Unknown;
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                neighbour::arp(from, frame.payload(), cx);
                Ok(())
            }
            EthernetProtocol::Ipv4 => self.ipv4(from, frame.payload(), verify, cx),
            EthernetProtocol::Ipv6 => self.ipv6(from, frame.payload(), verify, cx),
            EthernetProtocol::Unknown(_) => Err(Ignored),
        }
    }

    fn ipv4(
        &mut self,
        from: Mac,
        bytes: &[u8],
        verify: bool,
        cx: &mut Context,
    ) -> Result<(), Ignored> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Ignored)?;
        if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
            return Err(Ignored);
        }
        let (src, dst) = (IpAddr::V4(packet.src_addr()), IpAddr::V4(packet.dst_addr()));
        let protocol = packet.next_header();
        let payload = Payload { from, src, dst, protocol, bytes: packet.payload(), verify };
        if !packet.more_frags() && packet.frag_offset() == 0 {
            return self.payload(&payload, cx);
        }
        let ident = packet.ident().into();
        let piece = Fragment {
            offset: packet.frag_offset().into(),
            more: packet.more_frags(),
            payload: packet.payload(),
        };
        self.fragment(&payload, ident, &piece, cx)
    }

    fn ipv6(
        &mut self,
        from: Mac,
        bytes: &[u8],
        verify: bool,
        cx: &mut Context,
    ) -> Result<(), Ignored> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Ignored)?;
        if packet.version() != 6 {
            return Err(Ignored);
        }
        let (src, dst) = (IpAddr::V6(packet.src_addr()), IpAddr::V6(packet.dst_addr()));
        let mut payload = Payload {
            from,
            src,
            dst,
            protocol: packet.next_header(),
            bytes: packet.payload(),
            verify,
        };
        for _ in 0..EXTENSIONS {
            let bytes = payload.bytes;
            match payload.protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                    let header = Ipv6ExtHeader::new_checked(bytes).map_err(|_| Ignored)?;
                    let len = 8 * (usize::from(header.header_len()) + 1);
                    payload.protocol = header.next_header();
                    payload.bytes = bytes.get(len..).ok_or(Ignored)?;
                }
                IpProtocol::Ipv6Frag => {
                    let (&[next, _, ..], Some(rest)) = (bytes, bytes.get(8..)) else {
                        return Err(Ignored);
                    };
                    let body = bytes.get(2..8).ok_or(Ignored)?;
                    let header = Ipv6FragmentHeader::new_checked(body).map_err(|_| Ignored)?;
                    payload.protocol = IpProtocol::from(next);
                    let piece = Fragment {
                        offset: usize::from(header.frag_offset()) * 8,
                        more: header.more_frags(),
                        payload: rest,
                    };
                    return self.fragment(&payload, header.ident(), &piece, cx);
                }
                _ => return self.payload(&payload, cx),
            }
        }
        Err(Ignored)
    }

    fn fragment(
        &mut self,
        of: &Payload<'_>,
        ident: u32,
        piece: &Fragment<'_>,
        cx: &mut Context,
    ) -> Result<(), Ignored> {
        let key = Key { src: of.src, dst: of.dst, protocol: of.protocol.into(), ident };
        match self.reassembly.add(key, piece, cx.now) {
            Some(whole) => self.payload(&Payload { bytes: &whole, ..*of }, cx),
            None => Ok(()),
        }
    }

    fn payload(&mut self, payload: &Payload<'_>, cx: &mut Context) -> Result<(), Ignored> {
        // Before it has an address, a guest may ask for one.
        let asks = matches!(payload.protocol, IpProtocol::Udp | IpProtocol::Icmpv6)
            && payload.src.is_unspecified();
        if cx.config.is_guest(payload.src) {
            cx.link.learn(payload.src, payload.from);
        } else if !asks {
            return Err(Ignored);
        }
        match (payload.protocol, payload.dst) {
            (IpProtocol::Udp, _) => self.udp_payload(payload, cx),
            (IpProtocol::Tcp, _) => self.tcp_payload(payload, cx),
            (IpProtocol::Icmp, IpAddr::V4(_)) => self.icmp_payload(payload, cx),
            (IpProtocol::Icmpv6, IpAddr::V6(_)) => self.icmpv6_payload(payload, cx),
            _ => Err(Ignored),
        }
    }

    fn udp_payload(&mut self, payload: &Payload<'_>, cx: &mut Context) -> Result<(), Ignored> {
        let packet = UdpPacket::new_checked(payload.bytes).map_err(|_| Ignored)?;
        let none = packet.checksum() == 0 && payload.src.is_ipv4();
        let (src, dst) = (IpAddress::from(payload.src), IpAddress::from(payload.dst));
        if payload.verify && !none && !packet.verify_checksum(&src, &dst) {
            return Err(Ignored);
        }
        let guest = SocketAddr::new(payload.src, packet.src_port());
        let remote = SocketAddr::new(payload.dst, packet.dst_port());
        let body = packet.payload();
        let for_all =
            payload.dst == IpAddr::from([255; 4]) || payload.dst == cx.config.broadcast4();
        if remote.port() == dhcp::SERVER_PORT && (for_all || payload.dst == cx.config.gateway4()) {
            let domain = cx.resolv().domain.clone();
            dhcp::input(&mut self.leases, domain.as_deref(), payload.from, body, cx);
        } else if payload.src.is_unspecified() || for_all || payload.dst.is_multicast() {
            return Err(Ignored);
        } else if remote.port() == 53 && cx.config.is_dns(payload.dst) {
            self.dns.input(guest, remote, body, cx);
        } else if Tftp::has_port(remote.port())
            && cx.config.is_gateway(payload.dst)
            && cx.config.tftp.is_some()
        {
            self.tftp.input(guest, remote, body, cx);
        } else {
            self.udp.input(guest, remote, body, cx);
        }
        Ok(())
    }

    fn tcp_payload(&mut self, payload: &Payload<'_>, cx: &mut Context) -> Result<(), Ignored> {
        let packet = TcpPacket::new_checked(payload.bytes).map_err(|_| Ignored)?;
        let (src, dst) = (IpAddress::from(payload.src), IpAddress::from(payload.dst));
        let ports = packet.src_port() != 0 && packet.dst_port() != 0;
        if !ports || payload.verify && !packet.verify_checksum(&src, &dst) {
            return Err(Ignored);
        }
        if payload.dst.is_multicast() || payload.dst == cx.config.broadcast4() {
            return Err(Ignored);
        }
        let mut seg = Segment {
            guest: SocketAddr::new(payload.src, packet.src_port()),
            remote: SocketAddr::new(payload.dst, packet.dst_port()),
            seq: Seq(packet.seq_number().0 as u32),
            ack: packet.ack().then(|| Seq(packet.ack_number().0 as u32)),
            window: packet.window_len(),
            syn: packet.syn(),
            fin: packet.fin(),
            rst: packet.rst(),
            mss: None,
            scale: None,
            payload: packet.payload(),
        };
        if seg.syn {
            // No more than a SYN's options fit 40 bytes; a malformed one ends the list.
            let mut options = packet.options();
            while let Ok((rest, option)) = TcpOption::parse(options) {
                match option {
                    TcpOption::EndOfList => break,
                    TcpOption::MaxSegmentSize(mss) => seg.mss = Some(mss),
                    TcpOption::WindowScale(scale) => seg.scale = Some(scale.min(14)),
                    _ => {}
                }
                if rest.is_empty() || rest.len() >= options.len() {
                    break;
                }
                options = rest;
            }
        }
        self.tcp.input(&seg, cx);
        Ok(())
    }

    fn icmp_payload(&mut self, payload: &Payload<'_>, cx: &mut Context) -> Result<(), Ignored> {
        if checksum::sum(payload.bytes) != 0xffff || payload.bytes.len() < 8 {
            return Err(Ignored);
        }
        // Echo requests; what a guest says of errors concerns nobody here.
        if !payload.bytes.starts_with(&[8, 0]) {
            return Ok(());
        }
        self.echo(payload, cx);
        Ok(())
    }

    fn echo(&mut self, payload: &Payload<'_>, cx: &mut Context) {
        let (guest, remote) = (payload.src, payload.dst);
        self.echoes.request(&icmp::Request { guest, remote, message: payload.bytes }, cx);
    }

    fn icmpv6_payload(&mut self, payload: &Payload<'_>, cx: &mut Context) -> Result<(), Ignored> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (payload.src, payload.dst) else {
            return Err(Ignored);
        };
        let packet = Icmpv6Packet::new_checked(payload.bytes).map_err(|_| Ignored)?;
        if payload.bytes.len() < 8 || !packet.verify_checksum(&src, &dst) {
            return Err(Ignored);
        }
        match packet.msg_type() {
            Icmpv6Message::EchoRequest if !src.is_unspecified() && !dst.is_multicast() => {
                self.echo(payload, cx);
            }
            Icmpv6Message::RouterSolicit
            | Icmpv6Message::NeighborSolicit
            | Icmpv6Message::NeighborAdvert => {
                let message = NdiscRepr::parse(&packet).map_err(|_| Ignored)?;
                neighbour::discovery(payload.from, src, &message, cx);
            }
            _ => {}
        }
        Ok(())
    }
}
