//! Sockets of the host, and the one place where they are waited for.

use std::{io, net::SocketAddr, time::Duration};

use rustix::{
    event::{Timespec, epoll},
    fd::{AsFd, OwnedFd},
    io::Errno,
    net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};

/// Who is told of a socket's readiness. Numbers of flows are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Wake,
    Tcp(u64),
    Udp(u64),
    Echo(u64),
    Dns(u64),
    /// The forward with this index.
    Forward(u64),
}

const SHIFT: u32 = 56;

impl Token {
    fn encode(self) -> u64 {
        let (kind, number): (u64, u64) = match self {
            Self::Wake => (0, 0),
            Self::Tcp(n) => (1, n),
            Self::Udp(n) => (2, n),
            Self::Echo(n) => (3, n),
            Self::Dns(n) => (4, n),
            Self::Forward(n) => (5, n),
        };
        (kind << SHIFT) | (number & ((1 << SHIFT) - 1))
    }

    fn decode(value: u64) -> Self {
        let number = value & ((1 << SHIFT) - 1);
        match value >> SHIFT {
            1 => Self::Tcp(number),
            2 => Self::Udp(number),
            3 => Self::Echo(number),
            4 => Self::Dns(number),
            5 => Self::Forward(number),
            _ => Self::Wake,
        }
    }
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer sends no more.
    pub(crate) hung_up: bool,
    /// There is urgent data, whose mark ends a read.
    pub(crate) urgent: bool,
    pub(crate) error: bool,
}

#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

/// Events of one wait.
const EVENTS: usize = 64;

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Tells changes in what `socket` is ready for; closing it ends that.
    pub(crate) fn watch(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        use epoll::EventFlags as E;
        let flags = E::IN | E::PRI | E::OUT | E::RDHUP | E::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token.encode()), flags)?)
    }

    /// Tells for as long as `socket` has something to read.
    pub(crate) fn watch_level(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.encode());
        Ok(epoll::add(&self.epoll, socket, data, epoll::EventFlags::IN)?)
    }

    /// Waits; `None` is for ever. Interrupted waits end early.
    pub(crate) fn wait(&self, time: Option<Duration>) -> Vec<(Token, Ready)> {
        use epoll::EventFlags as E;
        let time = time.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, time.as_ref()).is_err() {
            return Vec::new();
        }
        events
            .iter()
            .copied()
            .map(|event: epoll::Event| {
                let (flags, data) = (event.flags, event.data);
                let ready = Ready {
                    readable: flags.intersects(E::IN | E::RDHUP | E::HUP | E::ERR),
                    writable: flags.intersects(E::OUT | E::HUP | E::ERR),
                    hung_up: flags.intersects(E::RDHUP | E::HUP | E::ERR),
                    urgent: flags.contains(E::PRI),
                    error: flags.contains(E::ERR),
                };
                (Token::decode(data.u64()), ready)
            })
            .collect()
    }
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn family(of: SocketAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// A stream that is being connected, or is already.
pub(crate) fn connect_tcp(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = net::socket_with(family(to), SocketType::STREAM, FLAGS, None)?;
    prepare_stream(&socket);
    match net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Options without which a stream would only be worse.
fn prepare_stream(socket: &OwnedFd) {
    // The guest decides what makes a segment, and urgent data is data.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_socket_oobinline(socket, true);
}

/// Closes so that the peer gets a reset.
pub(crate) fn abort(socket: OwnedFd) {
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}

pub(crate) fn connect_udp(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = net::socket_with(family(to), SocketType::DGRAM, FLAGS, None)?;
    net::connect(&socket, &to)?;
    Ok(socket)
}

/// A socket that may send ICMP echo requests, icmp(7); refused where `ping_group_range` does
/// not have our group.
pub(crate) fn ping_socket(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let protocol = if to.is_ipv4() { net::ipproto::ICMP } else { net::ipproto::ICMPV6 };
    let socket =
        net::socket_with(family(to), SocketType::DGRAM, FLAGS, Some::<Protocol>(protocol))?;
    net::connect(&socket, &to)?;
    Ok(socket)
}

pub(crate) fn listen_tcp(at: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = net::socket_with(family(at), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    only_v6(&socket, at)?;
    net::bind(&socket, &at)?;
    net::listen(&socket, 128)?;
    Ok(socket)
}

pub(crate) fn bind_udp(at: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = net::socket_with(family(at), SocketType::DGRAM, FLAGS, None)?;
    only_v6(&socket, at)?;
    net::bind(&socket, &at)?;
    Ok(socket)
}

fn only_v6(socket: &OwnedFd, at: SocketAddr) -> Result<(), Errno> {
    if at.is_ipv6() { sockopt::set_ipv6_v6only(socket, true) } else { Ok(()) }
}

/// The next connection.
pub(crate) fn accept(listener: &OwnedFd) -> Result<(OwnedFd, SocketAddr), Errno> {
    let (socket, peer) = retry(|| net::acceptfrom_with(listener, FLAGS))?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::CONNABORTED)?;
    prepare_stream(&socket);
    Ok((socket, peer))
}

/// Tries again when a signal interrupts.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    retry(|| net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))
}

pub(crate) fn send_to(socket: &OwnedFd, bytes: &[u8], to: SocketAddr) -> Result<usize, Errno> {
    retry(|| net::sendto(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT, &to))
}

pub(crate) fn recv(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    retry(|| net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT)).map(|(_, len)| len)
}

pub(crate) fn recv_from(
    socket: &OwnedFd,
    buffer: &mut [u8],
) -> Result<(usize, Option<SocketAddr>), Errno> {
    let (_, len, from) = retry(|| net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT))?;
    Ok((len, from.and_then(|addr| SocketAddr::try_from(addr).ok())))
}

/// What is there, left where it is.
pub(crate) fn peek(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    retry(|| net::recv(socket, &mut *buffer, flags)).map(|(_, len)| len)
}

/// Throws away what `peek` has shown, at most `buffer.len()` bytes, without copying them: the
/// meaning of MSG_TRUNC for streams, tcp(7).
pub(crate) fn discard(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    retry(|| net::recv(socket, &mut *buffer, flags)).map(|(_, len)| len)
}

/// How the connecting of a stream came out, once it is writable; `None`: it goes on.
pub(crate) fn connected(socket: &OwnedFd) -> Option<Result<(), Errno>> {
    match sockopt::socket_error(socket) {
        Ok(Ok(())) => match net::getpeername(socket) {
            Ok(Some(_)) => Some(Ok(())),
            _ => None,
        },
        Ok(Err(error)) | Err(error) => Some(Err(error)),
    }
}

pub(crate) fn shut_write(socket: &OwnedFd) {
    // It fails only for a stream that the peer has reset, which the next read tells.
    let _ = net::shutdown(socket, net::Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_both_ways() {
        for token in [Token::Wake, Token::Tcp(7), Token::Udp(0), Token::Echo(1), Token::Dns(9)] {
            assert_eq!(Token::decode(token.encode()), token);
        }
        assert_eq!(Token::decode(u64::MAX), Token::Wake);
    }
}
