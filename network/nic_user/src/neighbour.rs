//! Who is on the link: ARP (RFC 826), and neighbour and router discovery (RFC 4861).

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use nic::Mac;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol,
        NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
        NdiscRouterFlags, RawHardwareAddress,
    },
};

use crate::{
    config::{GATEWAY_MAC, LINK_LOCAL},
    context::Context,
};

pub(crate) const TYPE_ARP: u16 = 0x0806;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Routers say that they are there so often, unasked, and are believed for thrice that.
const ADVERTISE: Duration = Duration::from_secs(600);
const LIFETIME: Duration = Duration::from_secs(1800);
const PREFIX_LIFETIME: Duration = Duration::from_secs(86_400);

/// An ARP packet of the guest.
pub(crate) fn arp(from: Mac, packet: &[u8], cx: &mut Context) {
    let Ok(packet) = ArpPacket::new_checked(packet) else { return };
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return;
    };
    let sender = Mac(source_hardware_addr.0);
    if cx.config.is_guest(source_protocol_addr.into()) {
        cx.link.learn(source_protocol_addr.into(), sender);
    }
    if operation != ArpOperation::Request || !cx.config.is_ours(target_protocol_addr.into()) {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
    cx.link.frame(from, TYPE_ARP, &bytes);
}

/// A message of neighbour discovery.
pub(crate) fn discovery(from: Mac, src: Ipv6Addr, message: &NdiscRepr<'_>, cx: &mut Context) {
    match message {
        NdiscRepr::RouterSolicit { .. } => advertise(Some(from), cx),
        NdiscRepr::NeighborSolicit { target_addr, .. } => {
            let target = *target_addr;
            if cx.config.is_ours(target.into()) {
                answer(from, src, target, cx);
            }
        }
        NdiscRepr::NeighborAdvert { target_addr, .. }
            if cx.config.is_guest((*target_addr).into()) =>
        {
            cx.link.learn((*target_addr).into(), from);
        }
        _ => {}
    }
}

fn our_station() -> Option<RawHardwareAddress> {
    Some(EthernetAddress(GATEWAY_MAC.0).into())
}

fn answer(from: Mac, src: Ipv6Addr, target: Ipv6Addr, cx: &mut Context) {
    // Who looks whether an address is taken has none yet, RFC 4862 section 5.4.3.
    let solicited = !src.is_unspecified();
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, solicited);
    flags.set(NdiscNeighborFlags::ROUTER, !cx.config.is_dns(target.into()));
    let advert = NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr: our_station() };
    let to = if solicited { src } else { ALL_NODES };
    send(target, to, Some(from), &Icmpv6Repr::Ndisc(advert), &[], cx);
}

/// A router advertisement: to who asked, or to all.
fn advertise(to: Option<Mac>, cx: &mut Context) {
    let config = cx.config.clone();
    let seconds = |time: Duration| smoltcp::time::Duration::from_secs(time.as_secs());
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: crate::packet::TTL,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: seconds(LIFETIME),
        reachable_time: seconds(Duration::ZERO),
        retrans_time: seconds(Duration::ZERO),
        lladdr: our_station(),
        mtu: Some(config.mtu.into()),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: seconds(PREFIX_LIFETIME),
            preferred_lifetime: seconds(PREFIX_LIFETIME),
            prefix: config.prefix,
        }),
    };
    // The recursive DNS server option, RFC 8106 section 5.1.
    let mut dns = vec![25, 3, 0, 0];
    dns.extend((LIFETIME.as_secs() as u32).to_be_bytes());
    dns.extend(config.dns6().octets());
    let to = to.unwrap_or(Mac([0x33, 0x33, 0, 0, 0, 1]));
    send(LINK_LOCAL, ALL_NODES, Some(to), &Icmpv6Repr::Ndisc(advert), &dns, cx);
}

fn send(
    src: Ipv6Addr,
    dst: Ipv6Addr,
    to: Option<Mac>,
    message: &Icmpv6Repr<'_>,
    options: &[u8],
    cx: &mut Context,
) {
    let len = message.buffer_len();
    let mut bytes = vec![0; len + options.len()];
    let (Some(start), later) = (bytes.get_mut(..len), ChecksumCapabilities::ignored()) else {
        return;
    };
    message.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(start), &later);
    if let Some(end) = bytes.get_mut(len..) {
        end.copy_from_slice(options);
    }
    Icmpv6Packet::new_unchecked(&mut bytes[..]).fill_checksum(&src, &dst);
    cx.link.ip(IpAddr::V6(src), IpAddr::V6(dst), to, IpProtocol::Icmpv6, &bytes);
}

/// When the next unasked advertisement is due.
#[derive(Debug, Default)]
pub(crate) struct Router {
    due: Option<Instant>,
}

impl Router {
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn timers(&mut self, cx: &mut Context) {
        match self.due {
            Some(at) if at > cx.now => return,
            Some(_) => advertise(None, cx),
            None => {}
        }
        self.due = cx.now.checked_add(ADVERTISE);
    }
}
