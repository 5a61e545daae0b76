//! ICMP: echo requests by ping sockets of the host, and what cannot be reached.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rustix::{fd::OwnedFd, io::Errno};
use smoltcp::wire::IpProtocol;

use crate::{
    checksum,
    config::Target,
    context::{Context, earlier},
    host::{self, Token},
    packet::{self, Head},
};

/// Programs that ping at a time; more replace the one that has been silent longest.
const ECHOES: usize = 16;
const IDLE: Duration = Duration::from_secs(30);
/// Replies that are handed on before others have their turn.
const BURST: usize = 32;
/// Bytes of an IP packet with its header.
const LONGEST: usize = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// Type and code: RFC 792 and RFC 1812 section 5.2.7.1; RFC 4443 section 3.1.
    fn code(self, family: IpAddr) -> [u8; 2] {
        match (family.is_ipv4(), self) {
            (true, Self::Network) => [3, 0],
            (true, Self::Host) => [3, 1],
            (true, Self::Port) => [3, 3],
            (true, Self::Prohibited) => [3, 13],
            (false, Self::Network) => [1, 0],
            (false, Self::Prohibited) => [1, 1],
            (false, Self::Host) => [1, 3],
            (false, Self::Port) => [1, 4],
        }
    }

    pub(crate) fn of(error: Errno) -> Option<Self> {
        match error {
            Errno::CONNREFUSED => Some(Self::Port),
            Errno::NETUNREACH => Some(Self::Network),
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Self::Host),
            Errno::ACCESS | Errno::PERM => Some(Self::Prohibited),
            _ => None,
        }
    }
}

/// Tells the guest that a packet to `remote` got nowhere; `start` is how its payload began.
pub(crate) fn unreachable(
    guest: IpAddr,
    remote: IpAddr,
    protocol: IpProtocol,
    start: &[u8; 8],
    why: Unreachable,
    cx: &mut Context,
) {
    if guest.is_ipv4() != remote.is_ipv4() {
        return;
    }
    let mut message = Head::new();
    message.push(&why.code(guest));
    message.push(&[0; 6]);
    packet::ip(&mut message, guest, remote, protocol, start.len(), None);
    message.push(start);
    let from = cx.config.gateway_of(guest);
    send(from, guest, message.bytes().to_vec(), cx);
}

/// Too long a packet: the guest is told how long it may be, RFC 1191 and RFC 4443 section 3.2.
pub(crate) fn too_big(guest: SocketAddr, remote: SocketAddr, mtu: u32, cx: &mut Context) {
    let mut message = Head::new();
    match guest {
        SocketAddr::V4(_) => {
            message.push(&[3, 4, 0, 0, 0, 0]);
            message.push(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
        }
        SocketAddr::V6(_) => {
            message.push(&[2, 0, 0, 0]);
            message.push(&mtu.to_be_bytes());
        }
    }
    let (from, to) = (guest.ip(), remote.ip());
    packet::ip(&mut message, from, to, IpProtocol::Udp, 8, None);
    message.push(&guest.port().to_be_bytes());
    message.push(&remote.port().to_be_bytes());
    message.push(&[0; 4]);
    let gateway = cx.config.gateway_of(from);
    send(gateway, from, message.bytes().to_vec(), cx);
}

/// A message whose checksum is still to be filled in.
fn send(from: IpAddr, to: IpAddr, mut message: Vec<u8>, cx: &mut Context) {
    let protocol = if to.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    // Only that of IPv6 has a pseudo-header.
    let pseudo = if to.is_ipv4() { 0 } else { checksum::pseudo(from, to, protocol, message.len()) };
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let sum = !checksum::combine(&[pseudo, checksum::sum(&message)]);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    cx.link.ip(from, to, None, protocol, &message);
}

/// An echo request of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) guest: IpAddr,
    pub(crate) remote: IpAddr,
    /// The whole ICMP message, at least eight bytes.
    pub(crate) message: &'a [u8],
}

type Key = (IpAddr, IpAddr, u16);

struct Echo {
    key: Key,
    socket: OwnedFd,
    active: Instant,
}

/// The programs of the guest that ping.
#[derive(Default)]
pub(crate) struct Echoes {
    echoes: HashMap<u64, Echo>,
    ids: HashMap<Key, u64>,
    due: Option<Instant>,
}

impl Echoes {
    pub(crate) fn request(&mut self, request: &Request<'_>, cx: &mut Context) {
        let &[_, _, _, _, id0, id1, ..] = request.message else { return };
        if cx.config.is_ours(request.remote) {
            return reply(request.remote, request.guest, request.message.to_vec(), cx);
        }
        let key = (request.guest, request.remote, u16::from_be_bytes([id0, id1]));
        let id = match self.ids.get(&key) {
            Some(id) => *id,
            None => match self.open(key, cx) {
                Ok(id) => id,
                Err(error) => return fail(request, error, cx),
            },
        };
        let Some(echo) = self.echoes.get_mut(&id) else { return };
        echo.active = cx.now;
        // The socket puts its own identifier there.
        if let Err(error) = host::send(&echo.socket, request.message) {
            fail(request, error, cx);
        }
    }

    fn open(&mut self, key: Key, cx: &mut Context) -> Result<u64, Errno> {
        let (_, remote, _) = key;
        let Target::Host(to) = cx.config.target(SocketAddr::new(remote, 1)) else {
            cx.link.counters.refused += 1;
            return Err(Errno::ACCESS);
        };
        if self.echoes.len() >= ECHOES {
            let oldest = self.echoes.iter().min_by_key(|(_, echo)| echo.active).map(|(id, _)| *id);
            self.remove(oldest.unwrap_or_default());
        }
        let socket = host::ping_socket(SocketAddr::new(to.ip(), 0))?;
        let id = cx.id();
        cx.poller.watch_level(&socket, Token::Echo(id)).map_err(|_| Errno::NOBUFS)?;
        self.echoes.insert(id, Echo { key, socket, active: cx.now });
        self.ids.insert(key, id);
        self.due = earlier(self.due, cx.now.checked_add(IDLE));
        Ok(id)
    }

    fn remove(&mut self, id: u64) {
        if let Some(echo) = self.echoes.remove(&id) {
            self.ids.remove(&echo.key);
        }
    }

    /// Replies have arrived.
    pub(crate) fn event(&mut self, id: u64, cx: &mut Context) {
        let Some(echo) = self.echoes.get_mut(&id) else { return };
        let (guest, remote, ident) = echo.key;
        for _ in 0..BURST {
            match host::recv(&echo.socket, &mut cx.scratch) {
                Ok(len) => {
                    let Some(message) = cx.scratch.get(..len) else { return };
                    let mut message = message.to_vec();
                    let Some(field) = message.get_mut(4..6) else { return };
                    field.copy_from_slice(&ident.to_be_bytes());
                    echo.active = cx.now;
                    reply(remote, guest, message, cx);
                }
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    if let Some(why) = Unreachable::of(error) {
                        let [hi, lo] = ident.to_be_bytes();
                        let start = [request_type(guest), 0, 0, 0, hi, lo, 0, 0];
                        let protocol =
                            if guest.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
                        unreachable(guest, remote, protocol, &start, why, cx);
                    }
                    return self.remove(id);
                }
            }
        }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn timers(&mut self, cx: &Context) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        let idle = |echo: &Echo| cx.now.saturating_duration_since(echo.active) >= IDLE;
        let old: Vec<u64> =
            self.echoes.iter().filter(|(_, echo)| idle(echo)).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.remove(id));
        let next = self.echoes.values().filter_map(|echo| echo.active.checked_add(IDLE)).min();
        self.due = next;
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn request_type(family: IpAddr) -> u8 {
    if family.is_ipv4() { 8 } else { 128 }
}

/// Makes an echo message a reply, and sends it. To one that fits into no packet, which fragments
/// can make, there is no answer.
fn reply(from: IpAddr, to: IpAddr, mut message: Vec<u8>, cx: &mut Context) {
    if message.len() + packet::ip_len(to) > LONGEST {
        return;
    }
    let kind = if to.is_ipv4() { 0 } else { 129 };
    if let Some(head) = message.get_mut(..2) {
        head.copy_from_slice(&[kind, 0]);
    }
    send(from, to, message, cx);
}

/// A request that could not be sent.
fn fail(request: &Request<'_>, error: Errno, cx: &mut Context) {
    let Some(why) = Unreachable::of(error) else { return };
    let Some(start) = request.message.first_chunk::<8>() else { return };
    let protocol = if request.guest.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    unreachable(request.guest, request.remote, protocol, start, why, cx);
}
