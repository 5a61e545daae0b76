//! The DHCP server, RFC 2131, with the options of RFC 2132.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nic::Mac;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::{
    config::{Config, LEASES},
    context::Context,
};

pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const LEASE_SECONDS: u32 = 86_400;

const OPT_DNS: u8 = 6;
const OPT_DOMAIN: u8 = 15;
const OPT_MTU: u8 = 26;
const OPT_VENDOR_CLASS: u8 = 60;
const OPT_TFTP_SERVER: u8 = 66;
const OPT_BOOT_FILE: u8 = 67;
/// What UEFI firmware calls itself that boots by HTTP, UEFI specification section 24.7.
const HTTP_CLIENT: &[u8] = b"HTTPClient";

/// Who has which address. The first client has the first one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases {
    /// The oldest first.
    pub(crate) leases: Vec<(Mac, u8)>,
}

impl Leases {
    /// The address of the client: the one that it has, else a free one, else the oldest.
    fn lease(&mut self, client: Mac) -> u8 {
        if let Some((_, index)) = self.leases.iter().find(|(mac, _)| *mac == client) {
            return *index;
        }
        let free = (0..LEASES).find(|i| self.leases.iter().all(|(_, index)| index != i));
        let index = free.unwrap_or_else(|| self.leases.remove(0).1);
        self.leases.push((client, index));
        index
    }

    fn release(&mut self, client: Mac) {
        self.leases.retain(|(mac, _)| *mac != client);
    }

    /// Where forwards go that do not say: to the card's own lease, or what it will be.
    pub(crate) fn first(&self, card: Mac) -> u8 {
        self.leases.iter().find(|(mac, _)| *mac == card).map_or(0, |(_, index)| *index)
    }
}

/// What of a request is not in smoltcp's representation.
struct Wants<'a> {
    http: bool,
    list: &'a [u8],
}

/// A message to port 67. `from` is the frame's sender.
pub(crate) fn input(
    leases: &mut Leases,
    domain: Option<&str>,
    from: Mac,
    message: &[u8],
    cx: &mut Context,
) {
    let Ok(packet) = DhcpPacket::new_checked(message) else { return };
    let Ok(request) = DhcpRepr::parse(&packet) else { return };
    let client = Mac(request.client_hardware_address.0);
    if !client.is_unicast() || packet.relay_agent_ip() != Ipv4Addr::UNSPECIFIED {
        return;
    }
    let is_http = |o: DhcpOption<'_>| o.kind == OPT_VENDOR_CLASS && o.data.starts_with(HTTP_CLIENT);
    let wants = Wants {
        http: packet.options().any(is_http),
        list: request.parameter_request_list.unwrap_or_default(),
    };
    let config = cx.config.clone();
    let Some((kind, addr)) = decide(leases, &config, &request, client) else { return };
    let Some(reply) = answer(&config, domain, &request, &wants, kind, addr) else { return };
    send(&config, &request, from, addr, kind, &reply, cx);
}

/// What is answered, and with which address, RFC 2131 section 4.3.
fn decide(
    leases: &mut Leases,
    config: &Config,
    request: &DhcpRepr<'_>,
    client: Mac,
) -> Option<(DhcpMessageType, Ipv4Addr)> {
    // A request for another server declines ours.
    let ours = request.server_identifier.is_none_or(|server| server == config.gateway4());
    match request.message_type {
        DhcpMessageType::Discover => {
            Some((DhcpMessageType::Offer, config.lease4(leases.lease(client))?))
        }
        DhcpMessageType::Request if ours => {
            let addr = config.lease4(leases.lease(client))?;
            let asked = request.requested_ip.unwrap_or(request.client_ip);
            if asked == addr {
                Some((DhcpMessageType::Ack, addr))
            } else {
                Some((DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED))
            }
        }
        DhcpMessageType::Inform => Some((DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED)),
        DhcpMessageType::Request | DhcpMessageType::Release | DhcpMessageType::Decline => {
            leases.release(client);
            None
        }
        _ => None,
    }
}

fn answer(
    config: &Config,
    domain: Option<&str>,
    request: &DhcpRepr<'_>,
    wants: &Wants<'_>,
    kind: DhcpMessageType,
    addr: Ipv4Addr,
) -> Option<Vec<u8>> {
    let refusal = kind == DhcpMessageType::Nak;
    let leased = !refusal && addr != Ipv4Addr::UNSPECIFIED;
    let (mtu, dns) = (config.mtu.to_be_bytes(), config.dns4().octets());
    let gateway = config.gateway4().to_string();
    let is_url = |file: &&String| file.contains("://");
    let boot = config.boot_file.as_ref().filter(|file| wants.http == is_url(file));
    let mut extra = Vec::new();
    let mut add = |kind, data| extra.push(DhcpOption { kind, data });
    if !refusal {
        add(OPT_DNS, &dns[..]);
        if wants.list.contains(&OPT_MTU) {
            add(OPT_MTU, &mtu[..]);
        }
        if let Some(domain) = domain {
            add(OPT_DOMAIN, domain.as_bytes());
        }
        if let Some(file) = boot.filter(|file| file.len() <= 255) {
            if wants.http {
                add(OPT_VENDOR_CLASS, HTTP_CLIENT);
            } else {
                add(OPT_TFTP_SERVER, gateway.as_bytes());
            }
            add(OPT_BOOT_FILE, file.as_bytes());
        }
    }
    let repr = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if refusal { Ipv4Addr::UNSPECIFIED } else { request.client_ip },
        your_ip: addr,
        server_ip: if boot.is_some() { config.gateway4() } else { Ipv4Addr::UNSPECIFIED },
        router: (!refusal).then(|| config.gateway4()),
        subnet_mask: (!refusal).then(|| config.mask4()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(config.gateway4()),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: leased.then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &extra,
    };
    let mut bytes = vec![0; repr.buffer_len().max(300)];
    let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
    repr.emit(&mut packet).ok()?;
    // The old field too, for firmware that looks nowhere else.
    if let Some(file) = boot
        && file.len() < 128
        && let Some(field) = bytes.get_mut(108..108 + file.len())
    {
        field.copy_from_slice(file.as_bytes());
    }
    Some(bytes)
}

/// To the client's address if it has one, else to its station, RFC 2131 section 4.1.
fn send(
    config: &Config,
    request: &DhcpRepr<'_>,
    from: Mac,
    addr: Ipv4Addr,
    kind: DhcpMessageType,
    reply: &[u8],
    cx: &mut Context,
) {
    let EthernetAddress(station) = request.client_hardware_address;
    let src = SocketAddr::new(config.gateway4().into(), SERVER_PORT);
    let broadcast = kind == DhcpMessageType::Nak || request.broadcast;
    let (to, mac) = if broadcast {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    } else if config.is_guest(request.client_ip.into()) {
        (request.client_ip, from)
    } else if addr == Ipv4Addr::UNSPECIFIED {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    } else {
        (addr, Mac(station))
    };
    let dst = SocketAddr::new(IpAddr::V4(to), CLIENT_PORT);
    let _ = cx.link.datagram(src, dst, Some(mac), reply);
}
