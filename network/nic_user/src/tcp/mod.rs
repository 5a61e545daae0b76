//! NAT for TCP: each connection of the guest ends here and is spliced to a socket of the host.
//!
//! The two TCPs are apart, so that loss and congestion outside are the host's matter, and the
//! link to the guest, which loses nothing, needs no more than windows. See [`flow`] for where
//! bytes wait. Hostile guests are bounded by [`FLOWS`] and [`capacity`].

pub(crate) mod flow;
mod pump;
pub(crate) mod seq;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::{fd::OwnedFd, io::Errno};

use crate::{
    config::Target,
    context::{Context, earlier},
    host::{self, Ready, Token},
    icmp,
    packet::{self, TcpFields},
};
use flow::{Fate, Flow, Phase, Segment};
use pump::Left;
use seq::Seq;

/// Connections at a time.
pub(crate) const FLOWS: usize = 512;
/// Callers of forwards are taken up to here: the rest of the connections is the guest's.
const FOR_CALLERS: usize = FLOWS / 4 * 3;
/// Bytes on the way to the guest, for each connection.
pub(crate) const IN_FLIGHT: usize = 128 << 10;
/// Bytes in one packet, which the guest may have to cut.
pub(crate) const CHUNK: usize = 60 << 10;
/// An idle connection may be given up for a new one after so long.
const EVICTABLE: Duration = Duration::from_secs(300);

/// What a new connection may send ahead of the host's socket, when there are `flows` others.
/// Together they never hold more than 11 MiB: at most 16 of the largest exist at a time, at
/// most 64 of the two larger kinds, and 512 of all.
fn capacity(flows: usize) -> usize {
    match flows {
        0..16 => 256 << 10,
        16..64 => 64 << 10,
        _ => 8 << 10,
    }
}

type Key = (SocketAddr, SocketAddr);

/// A connection that ended without the guest's knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
}

#[derive(Default)]
pub(crate) struct Table {
    flows: HashMap<u64, Flow>,
    ids: HashMap<Key, u64>,
    /// Those that may have something to do.
    queue: VecDeque<u64>,
    /// Those that wait for room in the guest.
    blocked: Vec<u64>,
    due: Option<Instant>,
    orphans: Vec<Orphan>,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A segment of the guest.
    pub(crate) fn input(&mut self, seg: &Segment<'_>, cx: &mut Context) {
        match self.ids.get(&(seg.guest, seg.remote)).copied() {
            Some(id) => {
                let Some(flow) = self.flows.get_mut(&id) else { return };
                let fate = flow.input(seg, cx);
                self.settle(id, fate, cx);
            }
            None if seg.rst => {}
            None if seg.syn && seg.ack.is_none() => self.open(seg, cx),
            None => reject(seg, cx),
        }
    }

    /// The guest calls.
    fn open(&mut self, syn: &Segment<'_>, cx: &mut Context) {
        let to = match cx.config.target(syn.remote) {
            Target::Host(to) => Ok(to),
            Target::Resolver => crate::dns::first_resolver(cx).ok_or(Errno::CONNREFUSED),
            Target::Refused => {
                cx.link.counters.refused += 1;
                Err(Errno::CONNREFUSED)
            }
        };
        if to.is_ok() && !self.has_room(FLOWS, cx) {
            return reject(syn, cx);
        }
        match to.and_then(host::connect_tcp) {
            Ok(socket) => {
                let flow = Flow::called(socket, syn, capacity(self.flows.len()), cx);
                self.add(flow, cx);
            }
            Err(error) => refuse(syn.guest, syn.remote, syn.seq.plus(1), error, cx),
        }
    }

    /// A peer of the outer world has connected to a forward. One that cannot be taken is reset.
    pub(crate) fn accepted(
        &mut self,
        socket: OwnedFd,
        guest: SocketAddr,
        mut remote: SocketAddr,
        cx: &mut Context,
    ) {
        if !self.has_room(FOR_CALLERS, cx) {
            return host::abort(socket);
        }
        // Two peers may look the same to the guest.
        let mut tries = 0;
        while self.ids.contains_key(&(guest, remote)) {
            tries += 1;
            if tries > 1000 {
                return host::abort(socket);
            }
            remote.set_port(remote.port().checked_add(1).unwrap_or(1024));
        }
        let flow = Flow::calling(socket, guest, remote, capacity(self.flows.len()), cx);
        self.add(flow, cx);
    }

    fn add(&mut self, flow: Flow, cx: &mut Context) {
        let id = cx.id();
        if cx.poller.watch(&flow.socket, Token::Tcp(id)).is_err() {
            return refuse(flow.guest, flow.remote, flow.rcv, Errno::NOBUFS, cx);
        }
        cx.link.counters.tcp_flows += 1;
        self.due = earlier(self.due, flow.due());
        self.ids.insert((flow.guest, flow.remote), id);
        self.flows.insert(id, flow);
    }

    /// Whether one more fits among so many, if need be instead of one that has long been idle.
    fn has_room(&mut self, most: usize, cx: &mut Context) -> bool {
        if self.flows.len() < most {
            return true;
        }
        cx.link.counters.too_many += 1;
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.active);
        let Some((&id, flow)) = oldest else { return true };
        if cx.now.saturating_duration_since(flow.active) < EVICTABLE {
            return false;
        }
        self.settle(id, Fate::Reset, cx);
        true
    }

    /// The host's socket has changed its state.
    pub(crate) fn event(&mut self, id: u64, ready: Ready, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let fate = flow.event(ready, cx);
        self.settle(id, fate, cx);
    }

    fn settle(&mut self, id: u64, fate: Fate, cx: &mut Context) {
        match fate {
            Fate::Lives => self.enqueue(id),
            Fate::Ended => {
                if let Some(flow) = self.remove(id) {
                    // Reset by the guest: so is the peer. Ended by both: nothing is left.
                    if flow.is_done() { drop(flow.socket) } else { host::abort(flow.socket) }
                }
            }
            Fate::Reset => {
                if let Some(flow) = self.remove(id) {
                    // Without room the guest finds out when it sends something.
                    let _ = reset(&orphan(&flow), cx);
                    host::abort(flow.socket);
                }
            }
            Fate::Failed(error) => {
                if let Some(flow) = self.remove(id) {
                    refuse(flow.guest, flow.remote, flow.rcv, error, cx);
                }
            }
        }
    }

    fn enqueue(&mut self, id: u64) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        self.due = earlier(self.due, flow.due());
        if !flow.queued {
            flow.queued = true;
            self.queue.push_back(id);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        self.ids.remove(&(flow.guest, flow.remote));
        Some(flow)
    }

    /// The guest may have room again.
    pub(crate) fn unblock(&mut self, cx: &mut Context) {
        // A guest that was just restored may have no room before it runs.
        while let Some(orphan) = self.orphans.last() {
            if reset(orphan, cx).is_err() {
                break;
            }
            self.orphans.pop();
        }
        for id in std::mem::take(&mut self.blocked) {
            self.enqueue(id);
        }
    }

    /// One turn for each connection that wants one. Whether some want another.
    pub(crate) fn serve(&mut self, cx: &mut Context) -> bool {
        for _ in 0..self.queue.len() {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.queued = false;
            match flow.serve(cx) {
                Ok(Left::Nothing) => self.due = earlier(self.due, flow.due()),
                Ok(Left::More) => self.enqueue(id),
                Ok(Left::Blocked) => {
                    self.due = earlier(self.due, flow.due());
                    if !self.blocked.contains(&id) {
                        self.blocked.push(id);
                    }
                }
                Err(fate) => self.settle(id, fate, cx),
            }
        }
        !self.queue.is_empty()
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What waited for a time that has come.
    pub(crate) fn timers(&mut self, cx: &mut Context) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        self.due = None;
        let ids: Vec<u64> = self.flows.keys().copied().collect();
        for id in ids {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            if flow.due().is_some_and(|at| at <= cx.now) {
                let fate = flow.timer(cx);
                self.settle(id, fate, cx);
            } else {
                self.due = earlier(self.due, flow.due());
            }
        }
    }

    /// Everything ends; the peers get resets.
    pub(crate) fn clear(&mut self) {
        for (_, flow) in self.flows.drain() {
            host::abort(flow.socket);
        }
        *self = Self::default();
    }

    /// What a saved guest would have to be told when it goes on elsewhere.
    pub(crate) fn orphans(&self) -> Vec<Orphan> {
        let open = self.flows.values().filter(|flow| flow.phase != Phase::Calling);
        open.map(orphan).chain(self.orphans.iter().copied()).take(FLOWS).collect()
    }

    pub(crate) fn adopt(&mut self, orphans: Vec<Orphan>) {
        self.orphans = orphans;
    }
}

fn orphan(flow: &Flow) -> Orphan {
    Orphan { guest: flow.guest, remote: flow.remote, seq: flow.nxt.0, ack: flow.rcv.0 }
}

fn reset(orphan: &Orphan, cx: &mut Context) -> Result<(), nic::NoRoom> {
    let fields = TcpFields {
        seq: orphan.seq,
        ack: orphan.ack,
        flags: packet::RST | packet::ACK,
        ..TcpFields::default()
    };
    cx.link.segment(orphan.remote, orphan.guest, &fields, &[], packet::TCP)
}

/// The answer to a segment of no connection, RFC 9293 section 3.10.7.1.
fn reject(seg: &Segment<'_>, cx: &mut Context) {
    let fields = match seg.ack {
        Some(ack) => TcpFields { seq: ack.0, flags: packet::RST, ..TcpFields::default() },
        None => {
            let end = seg.payload.len() + usize::from(seg.syn) + usize::from(seg.fin);
            TcpFields {
                ack: seg.seq.plus(end).0,
                flags: packet::RST | packet::ACK,
                ..TcpFields::default()
            }
        }
    };
    let _ = cx.link.segment(seg.remote, seg.guest, &fields, &[], packet::TCP);
}

/// The guest's call fails as it would without us between.
fn refuse(guest: SocketAddr, remote: SocketAddr, ack: Seq, error: Errno, cx: &mut Context) {
    let unreachable = match error {
        Errno::NETUNREACH => Some(icmp::Unreachable::Network),
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Some(icmp::Unreachable::Host),
        Errno::ACCESS | Errno::PERM => Some(icmp::Unreachable::Prohibited),
        _ => None,
    };
    if let Some(code) = unreachable {
        // The header that the error is about needs the ports and the sequence number only.
        let mut tcp = [0; 8];
        tcp[..2].copy_from_slice(&guest.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&remote.port().to_be_bytes());
        tcp[4..].copy_from_slice(&ack.0.wrapping_sub(1).to_be_bytes());
        let protocol = smoltcp::wire::IpProtocol::Tcp;
        icmp::unreachable(guest.ip(), remote.ip(), protocol, &tcp, code, cx);
        return;
    }
    let _ = reset(&Orphan { guest, remote, seq: 0, ack: ack.0 }, cx);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_leave_room_for_the_guest() {
        let poller = crate::host::Poller::new().unwrap();
        let mut cx = Context::new(std::sync::Arc::default(), poller);
        let mut table = Table::default();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in 1..600 {
            let copy = socket.try_clone().unwrap().into();
            table.accepted(
                copy,
                ([10, 0, 2, 15], 22).into(),
                ([192, 0, 2, 1], port).into(),
                &mut cx,
            );
        }
        assert_eq!(table.len(), FOR_CALLERS);
        assert!(table.has_room(FLOWS, &mut cx));
    }

    #[test]
    fn what_guests_may_store_is_bounded() {
        // The worst order: each kind is opened as often as its rule allows.
        let mut total = 0;
        for flows in 0..FLOWS {
            total += capacity(flows);
        }
        assert!(total <= 11 << 20, "{total}");
    }
}
