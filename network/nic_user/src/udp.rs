//! NAT for UDP: a socket of the host for each pair of ends, connected, so that only who was
//! asked can answer, and the errors of ICMP reach the guest.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{fd::OwnedFd, io::Errno};
use smoltcp::wire::IpProtocol;

use crate::{
    config::Target,
    context::{Context, earlier},
    host::{self, Token},
    icmp::{self, Unreachable},
};

/// Flows at a time; more replace the one that has been silent longest.
pub(crate) const FLOWS: usize = 256;
/// Peers of forwards among them: these replace one another, not the guest's own flows.
const FOR_CALLERS: usize = FLOWS / 4;
/// Two minutes at least, RFC 4787 REQ-5.
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams that are handed on before others have their turn.
const BURST: usize = 32;

type Key = (SocketAddr, SocketAddr);

enum Way {
    Connected(OwnedFd),
    /// Through the socket of a forward, to this peer.
    Forward(Arc<OwnedFd>, SocketAddr),
}

struct Flow {
    key: Key,
    way: Way,
    active: Instant,
}

#[derive(Default)]
pub(crate) struct Table {
    flows: HashMap<u64, Flow>,
    ids: HashMap<Key, u64>,
    /// Flows of forwards, by the forward's index and the peer.
    peers: HashMap<(u64, SocketAddr), u64>,
    due: Option<Instant>,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A datagram of the guest.
    pub(crate) fn input(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
        cx: &mut Context,
    ) {
        let id = match self.ids.get(&(guest, remote)) {
            Some(id) => Ok(*id),
            None => self.open(guest, remote, cx),
        };
        let sent = id.and_then(|id| {
            let Some(flow) = self.flows.get_mut(&id) else { return Ok(0) };
            flow.active = cx.now;
            match &flow.way {
                Way::Connected(socket) => host::send(socket, payload),
                Way::Forward(socket, peer) => host::send_to(socket, payload, *peer),
            }
        });
        if let Err(error) = sent {
            self.fail(guest, remote, error, cx);
        }
    }

    fn open(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        cx: &mut Context,
    ) -> Result<u64, Errno> {
        let Target::Host(to) = cx.config.target(remote) else {
            cx.link.counters.refused += 1;
            return Err(Errno::ACCESS);
        };
        self.make_room(false, cx);
        let socket = host::connect_udp(to)?;
        let id = cx.id();
        cx.poller.watch_level(&socket, Token::Udp(id)).map_err(|_| Errno::NOBUFS)?;
        self.add(
            id,
            Flow { key: (guest, remote), way: Way::Connected(socket), active: cx.now },
            cx,
        );
        Ok(id)
    }

    fn add(&mut self, id: u64, flow: Flow, cx: &mut Context) {
        cx.link.counters.udp_flows += 1;
        self.due = earlier(self.due, cx.now.checked_add(IDLE));
        self.ids.insert(flow.key, id);
        self.flows.insert(id, flow);
    }

    /// For one more of a forward, or of the guest.
    fn make_room(&mut self, called: bool, cx: &mut Context) {
        let calling = self.peers.len();
        let (have, most) = match called {
            true => (calling, FOR_CALLERS),
            false => (self.flows.len() - calling, FLOWS - FOR_CALLERS),
        };
        if have < most {
            return;
        }
        cx.link.counters.too_many += 1;
        let same = |flow: &Flow| matches!(flow.way, Way::Forward(..)) == called;
        let oldest = self.flows.iter().filter(|(_, flow)| same(flow));
        let oldest = oldest.min_by_key(|(_, flow)| flow.active).map(|(id, _)| *id);
        self.remove(oldest.unwrap_or_default());
    }

    fn remove(&mut self, id: u64) {
        if let Some(flow) = self.flows.remove(&id) {
            self.ids.remove(&flow.key);
            if let Way::Forward(..) = flow.way {
                self.peers.retain(|_, known| *known != id);
            }
        }
    }

    /// Tells the guest why a datagram got nowhere.
    fn fail(&mut self, guest: SocketAddr, remote: SocketAddr, error: Errno, cx: &mut Context) {
        if error == Errno::MSGSIZE {
            // What the path takes is known to the host only after it has tried once more.
            return icmp::too_big(guest, remote, crate::config::MTU_MIN.into(), cx);
        }
        let Some(why) = Unreachable::of(error) else { return };
        let mut start = [0; 8];
        start[..2].copy_from_slice(&guest.port().to_be_bytes());
        start[2..4].copy_from_slice(&remote.port().to_be_bytes());
        start[5] = 8;
        icmp::unreachable(guest.ip(), remote.ip(), IpProtocol::Udp, &start, why, cx);
    }

    /// Answers have arrived.
    pub(crate) fn event(&mut self, id: u64, cx: &mut Context) {
        for _ in 0..BURST {
            let Some(flow) = self.flows.get_mut(&id) else { return };
            let Way::Connected(socket) = &flow.way else { return };
            let (guest, remote) = flow.key;
            match host::recv(socket, &mut cx.scratch) {
                Ok(len) => {
                    flow.active = cx.now;
                    let payload = cx.scratch.get(..len).unwrap_or_default();
                    let _ = cx.link.datagram(remote, guest, None, payload);
                }
                Err(Errno::AGAIN) => return,
                Err(error) => return self.fail(guest, remote, error, cx),
            }
        }
    }

    /// A peer of the outer world has sent something to a forward.
    pub(crate) fn forwarded(
        &mut self,
        forward: (u64, &Arc<OwnedFd>),
        peer: SocketAddr,
        guest: SocketAddr,
        len: usize,
        cx: &mut Context,
    ) {
        let (index, socket) = forward;
        let id = match self.peers.get(&(index, peer)) {
            Some(id) => *id,
            None => {
                let mut remote = cx.config.seen(peer, guest.ip());
                // Two peers may look the same to the guest.
                for _ in 0..FLOWS {
                    if !self.ids.contains_key(&(guest, remote)) {
                        break;
                    }
                    remote.set_port(remote.port().checked_add(1).unwrap_or(1024));
                }
                if self.ids.contains_key(&(guest, remote)) {
                    return;
                }
                self.make_room(true, cx);
                let id = cx.id();
                let way = Way::Forward(socket.clone(), peer);
                self.add(id, Flow { key: (guest, remote), way, active: cx.now }, cx);
                self.peers.insert((index, peer), id);
                id
            }
        };
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.active = cx.now;
        let (guest, remote) = flow.key;
        let payload = cx.scratch.get(..len).unwrap_or_default();
        let _ = cx.link.datagram(remote, guest, None, payload);
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn timers(&mut self, cx: &Context) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        let idle = |flow: &Flow| cx.now.saturating_duration_since(flow.active) >= IDLE;
        let old: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| idle(flow)).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.remove(id));
        self.due = self.flows.values().filter_map(|flow| flow.active.checked_add(IDLE)).min();
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_do_not_push_out_what_the_guest_has_asked() {
        let poller = crate::host::Poller::new().unwrap();
        let mut cx = Context::new(Arc::default(), poller);
        let mut table = Table::default();
        let guest = SocketAddr::from(([10, 0, 2, 15], 5000));
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let key = (guest, SocketAddr::from(([192, 0, 2, 7], 53)));
        let own = Way::Connected(server.try_clone().unwrap().into());
        table.add(cx.id(), Flow { key, way: own, active: cx.now }, &mut cx);
        let forward = Arc::new(OwnedFd::from(server));
        for port in 1..=2 * FLOWS as u16 {
            cx.now += Duration::from_millis(1);
            let peer = SocketAddr::from(([192, 0, 2, 1], port));
            table.forwarded((0, &forward), peer, guest, 0, &mut cx);
        }
        assert!(table.ids.contains_key(&key), "the oldest of all is still there");
        assert_eq!((table.peers.len(), table.len()), (FOR_CALLERS, FOR_CALLERS + 1));
        let last = SocketAddr::from(([192, 0, 2, 1], 2 * FLOWS as u16));
        assert!(table.peers.contains_key(&(0, last)));
        (0..FLOWS).for_each(|_| table.make_room(false, &mut cx));
        assert_eq!(table.peers.len(), FOR_CALLERS, "nor the other way round");
    }
}
