//! Sockets of the host on which the guest is reached.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{fd::OwnedFd, io::Errno};

use crate::{
    config::{Config, Forward, Transport},
    context::{Context, earlier},
    dhcp::Leases,
    host::{self, Token},
    tcp, udp,
};

/// Connections, or datagrams, that are taken before others have their turn.
const BURST: usize = 16;

/// One that was opened before the network's thread begins.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) forward: Forward,
    pub(crate) socket: OwnedFd,
}

/// Opens the sockets, so that an address that is taken is told at start.
pub(crate) fn open(config: &Config) -> Result<Vec<Opened>, (SocketAddr, io::Error)> {
    let open = |forward: &Forward| {
        let socket = match forward.transport {
            Transport::Tcp => host::listen_tcp(forward.listen),
            Transport::Udp => host::bind_udp(forward.listen),
        };
        let socket = socket.map_err(|error| (forward.listen, error.into()))?;
        Ok(Opened { forward: forward.clone(), socket })
    };
    config.forwards.iter().map(open).collect()
}

/// After the host has run out of something, it is asked again after so long.
const PATIENCE: Duration = Duration::from_millis(200);

pub(crate) struct Forwards {
    all: Vec<(Forward, Arc<OwnedFd>)>,
    /// When to look at all of them again, because not everything was taken.
    again: Option<Instant>,
}

impl Forwards {
    pub(crate) fn new(opened: Vec<Opened>, cx: &Context) -> io::Result<Self> {
        let mut all = Vec::new();
        for (index, Opened { forward, socket }) in (0..).zip(opened) {
            cx.poller.watch(&socket, Token::Forward(index))?;
            all.push((forward, Arc::new(socket)));
        }
        Ok(Self { all, again: None })
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.again
    }

    pub(crate) fn timers(
        &mut self,
        leases: &Leases,
        tcp: &mut tcp::Table,
        udp: &mut udp::Table,
        cx: &mut Context,
    ) {
        if self.again.is_some_and(|at| at <= cx.now) {
            self.again = None;
            (0..self.all.len() as u64).for_each(|index| self.event(index, leases, tcp, udp, cx));
        }
    }

    /// Someone calls.
    pub(crate) fn event(
        &mut self,
        index: u64,
        leases: &Leases,
        tcp: &mut tcp::Table,
        udp: &mut udp::Table,
        cx: &mut Context,
    ) {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let Some((forward, socket)) = self.all.get(at) else { return };
        let card = cx.link.port().map(|port| port.mac());
        let lease = card.map_or(0, |mac| leases.first(mac));
        let first = cx.config.lease4(lease).unwrap_or(cx.config.gateway4());
        let guest = SocketAddr::new(forward.guest.unwrap_or(first.into()), forward.port);
        for _ in 0..BURST {
            let taken = match forward.transport {
                Transport::Tcp => host::accept(socket).map(|(stream, peer)| {
                    let remote = cx.config.seen(peer, guest.ip());
                    tcp.accepted(stream, guest, remote, cx);
                }),
                Transport::Udp => host::recv_from(socket, &mut cx.scratch).map(|(len, peer)| {
                    if let Some(peer) = peer {
                        udp.forwarded((index, socket), peer, guest, len, cx);
                    }
                }),
            };
            match taken {
                Ok(()) => {}
                Err(Errno::AGAIN) => return,
                // The caller has gone, or an earlier datagram got nowhere.
                Err(Errno::CONNABORTED | Errno::CONNREFUSED) => {}
                Err(_) => {
                    self.again = earlier(self.again, cx.now.checked_add(PATIENCE));
                    return;
                }
            }
        }
        self.again = Some(cx.now);
    }
}
