//! One connection: the guest's TCP on one side, a socket of the host on the other.
//!
//! The bytes of the two directions wait where they already are. What the guest is to get stays
//! in the socket's receive queue, peeked at, until the guest acknowledges it. What the guest
//! sends goes to the socket at once; only the part of the window that the socket turns out not
//! to take is kept here, and no window is offered for what could not be kept.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::{fd::OwnedFd, io::Errno};

use super::seq::Seq;
use crate::{
    context::Context,
    host,
    packet::{self, TcpFields},
};

/// A segment of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
    pub(crate) payload: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest calls; the host's socket is being connected.
    Connecting,
    /// The guest's call was answered; it has to confirm.
    Answered,
    /// A peer calls; the guest has to answer.
    Calling,
    Open,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// Both sides have ended, or the guest has reset it.
    Ended,
    /// The guest is to be told that it is over.
    Reset,
    /// The host's socket failed to connect.
    Failed(Errno),
}

pub(crate) struct Flow {
    pub(crate) guest: SocketAddr,
    /// As the guest sees it.
    pub(crate) remote: SocketAddr,
    pub(crate) socket: OwnedFd,
    pub(crate) phase: Phase,

    // To the guest.
    /// The oldest byte that the guest has not acknowledged.
    pub(super) una: Seq,
    /// What is sent next.
    pub(super) nxt: Seq,
    /// The end of what has ever been sent.
    pub(super) max: Seq,
    pub(super) window: u32,
    /// The segment and the acknowledgement that `window` came with.
    pub(super) window_at: (Seq, Seq),
    pub(super) guest_scale: u8,
    pub(super) mss: usize,
    pub(super) repeats: u8,
    /// Where the FIN is, once the peer has ended.
    pub(super) fin: Option<Seq>,

    // From the guest.
    pub(super) rcv: Seq,
    /// The end of the window that the guest was offered.
    pub(super) edge: Seq,
    pub(super) capacity: usize,
    pub(super) scale: u8,
    pub(super) scaled: bool,
    pub(super) pending: VecDeque<u8>,
    pub(super) ack_due: bool,
    pub(super) guest_ended: bool,
    pub(super) shut: bool,

    // The socket.
    pub(super) readable: bool,
    pub(super) hung_up: bool,
    /// The peer has sent urgent data: a read may end at its mark, before the stream does.
    pub(super) urgent: bool,
    /// The peer is gone, and with it the rest of what the guest sends.
    pub(super) failed: bool,

    pub(super) deadline: Option<Instant>,
    pub(super) tries: u32,
    pub(super) active: Instant,
    /// It is in the list of those to be served.
    pub(super) queued: bool,
}

/// The scale that we offer: 256 KiB in 16 bits.
pub(super) const SCALE: u8 = 4;

/// The first time to wait for an acknowledgement; it doubles.
const RTO: Duration = Duration::from_secs(1);
const RTO_MAX: Duration = Duration::from_secs(30);
/// So often is anything sent again before the guest is given up.
const TRIES: u32 = 8;
/// A connection over which nothing goes is kept for so long, RFC 5382 REQ-5.
const IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
const CONNECT: Duration = Duration::from_secs(75);

impl Flow {
    fn new(
        socket: OwnedFd,
        phase: Phase,
        guest: SocketAddr,
        remote: SocketAddr,
        capacity: usize,
        cx: &Context,
    ) -> Self {
        let iss = Seq(crate::context::random());
        Self {
            guest,
            remote,
            socket,
            phase,
            una: iss,
            nxt: iss,
            max: iss,
            window: 0,
            window_at: (Seq(0), iss),
            guest_scale: 0,
            mss: default_mss(guest),
            repeats: 0,
            fin: None,
            rcv: Seq(0),
            edge: Seq(0),
            capacity,
            scale: 0,
            scaled: false,
            pending: VecDeque::new(),
            ack_due: false,
            guest_ended: false,
            shut: false,
            readable: true,
            hung_up: false,
            urgent: false,
            failed: false,
            deadline: None,
            tries: 0,
            active: cx.now,
            queued: false,
        }
    }

    /// The guest calls.
    pub(crate) fn called(
        socket: OwnedFd,
        syn: &Segment<'_>,
        capacity: usize,
        cx: &Context,
    ) -> Self {
        let mut flow = Self::new(socket, Phase::Connecting, syn.guest, syn.remote, capacity, cx);
        flow.take_syn(syn, cx);
        flow.deadline = cx.now.checked_add(CONNECT);
        flow
    }

    /// A peer calls the guest.
    pub(crate) fn calling(
        socket: OwnedFd,
        guest: SocketAddr,
        remote: SocketAddr,
        capacity: usize,
        cx: &mut Context,
    ) -> Self {
        let mut flow = Self::new(socket, Phase::Calling, guest, remote, capacity, cx);
        flow.scaled = true;
        flow.scale = SCALE;
        flow.send_syn(cx);
        flow
    }

    /// What the guest's SYN says.
    fn take_syn(&mut self, syn: &Segment<'_>, cx: &Context) {
        self.rcv = syn.seq.plus(1);
        self.scaled = syn.scale.is_some();
        self.guest_scale = syn.scale.unwrap_or(0);
        self.scale = if self.scaled { SCALE } else { 0 };
        if !self.scaled {
            self.capacity = self.capacity.min(0xffff);
        }
        // Never scaled in a SYN, RFC 7323 section 2.2.
        self.edge = self.rcv.plus(self.capacity.min(0xffff));
        self.window = syn.window.into();
        self.window_at = (syn.seq, self.una);
        let limit = cx.link.mtu() - packet::ip_len(self.guest.ip()) - packet::TCP;
        let mss = syn.mss.map_or(default_mss(self.guest), usize::from);
        // Below this, RFC 9293 lets nobody be, and a hostile guest would cost us dearly.
        self.mss = mss.clamp(64, limit.max(64));
    }

    fn our_mss(&self, cx: &Context) -> u16 {
        let mss = cx.link.mtu() - packet::ip_len(self.guest.ip()) - packet::TCP;
        u16::try_from(mss).unwrap_or(u16::MAX)
    }

    /// The SYN of a call, or the SYN-ACK of an answer; both are sent again until confirmed.
    fn send_syn(&mut self, cx: &mut Context) {
        let answer = self.phase == Phase::Answered;
        let fields = TcpFields {
            seq: self.una.0,
            ack: if answer { self.rcv.0 } else { 0 },
            flags: if answer { packet::SYN | packet::ACK } else { packet::SYN },
            window: u16::try_from(self.capacity).unwrap_or(u16::MAX),
            mss: Some(self.our_mss(cx)),
            scale: self.scaled.then_some(SCALE),
        };
        let _ = cx.link.segment(self.remote, self.guest, &fields, &[], self.mss);
        self.nxt = self.una.plus(1);
        self.max = self.nxt;
        self.arm(cx.now);
    }

    pub(super) fn arm(&mut self, now: Instant) {
        let wait = RTO.saturating_mul(1 << self.tries.min(5)).min(RTO_MAX);
        self.deadline = now.checked_add(wait);
    }

    /// The host's socket has changed its state.
    pub(crate) fn event(&mut self, ready: host::Ready, cx: &mut Context) -> Fate {
        self.readable |= ready.readable;
        self.hung_up |= ready.hung_up;
        self.urgent |= ready.urgent;
        if self.phase != Phase::Connecting {
            self.failed |= ready.error;
            return Fate::Lives;
        }
        if !ready.writable && !ready.error {
            return Fate::Lives;
        }
        match host::connected(&self.socket) {
            None => Fate::Lives,
            Some(Ok(())) => {
                self.phase = Phase::Answered;
                self.hung_up = ready.hung_up;
                self.send_syn(cx);
                Fate::Lives
            }
            Some(Err(error)) => Fate::Failed(error),
        }
    }

    /// A segment of the guest.
    pub(crate) fn input(&mut self, seg: &Segment<'_>, cx: &mut Context) -> Fate {
        self.active = cx.now;
        match self.phase {
            Phase::Connecting if seg.rst => Fate::Ended,
            Phase::Connecting => Fate::Lives,
            Phase::Answered => self.input_answered(seg, cx),
            Phase::Calling => self.input_calling(seg, cx),
            Phase::Open => self.input_open(seg, cx),
        }
    }

    fn input_answered(&mut self, seg: &Segment<'_>, cx: &mut Context) -> Fate {
        if seg.rst {
            return if seg.seq == self.rcv { Fate::Ended } else { Fate::Lives };
        }
        if seg.syn {
            if seg.ack.is_none() && seg.seq.plus(1) == self.rcv {
                self.send_syn(cx);
            }
            return Fate::Lives;
        }
        if seg.ack != Some(self.nxt) {
            return Fate::Lives;
        }
        self.open(seg);
        self.input_open(seg, cx)
    }

    fn input_calling(&mut self, seg: &Segment<'_>, cx: &mut Context) -> Fate {
        if seg.ack != Some(self.nxt) {
            return Fate::Lives;
        }
        if seg.rst {
            return Fate::Ended;
        }
        if !seg.syn {
            return Fate::Lives;
        }
        self.take_syn(seg, cx);
        let window = seg.window;
        self.open(seg);
        self.window = window.into();
        self.ack_due = true;
        Fate::Lives
    }

    fn open(&mut self, seg: &Segment<'_>) {
        self.phase = Phase::Open;
        self.una = self.nxt;
        self.window = u32::from(seg.window) << self.guest_scale;
        self.window_at = (seg.seq, self.una);
        self.tries = 0;
        self.deadline = None;
    }

    /// RFC 9293 section 3.10.7.4, with the defences of RFC 5961: what could be forged, or is
    /// left over, is answered by an acknowledgement that says where the connection is.
    fn input_open(&mut self, seg: &Segment<'_>, cx: &mut Context) -> Fate {
        let ahead = seg.seq.after(self.rcv);
        if seg.rst {
            if ahead == 0 {
                return Fate::Ended;
            }
            self.ack_due |= ahead > 0 && seg.seq.since(self.rcv) <= self.capacity;
            return Fate::Lives;
        }
        let Some(ack) = seg.ack else { return Fate::Lives };
        if seg.syn || ack.after(self.max) > 0 {
            self.ack_due = true;
            return Fate::Lives;
        }
        let fate = self.take_ack(seg, ack, cx);
        if fate != Fate::Lives {
            return fate;
        }
        if seg.payload.is_empty() && !seg.fin {
            // A probe of a keep-alive lies before the window.
            self.ack_due |= ahead < 0;
            return Fate::Lives;
        }
        self.take_data(seg)
    }

    /// What of the guest's bytes is new and inside the window.
    fn take_data(&mut self, seg: &Segment<'_>) -> Fate {
        self.ack_due = true;
        let skip = self.rcv.since(seg.seq);
        if seg.seq.after(self.rcv) > 0 || self.guest_ended {
            return Fate::Lives;
        }
        let new = seg.payload.get(skip..).unwrap_or_default();
        let room = self.edge.since(self.rcv);
        let taken = new.get(..room).unwrap_or(new);
        self.push(taken);
        self.rcv = self.rcv.plus(taken.len());
        if seg.fin && taken.len() == new.len() && seg.seq.plus(seg.payload.len()) == self.rcv {
            self.rcv = self.rcv.plus(1);
            self.guest_ended = true;
        }
        Fate::Lives
    }

    /// To the host, and what it does not take to the store.
    fn push(&mut self, bytes: &[u8]) {
        let mut sent = 0;
        if self.pending.is_empty() && !bytes.is_empty() {
            sent = match host::send(&self.socket, bytes) {
                Ok(n) => n,
                Err(Errno::AGAIN) => 0,
                Err(_) => {
                    self.fail();
                    bytes.len()
                }
            };
        }
        self.pending.extend(bytes.get(sent..).unwrap_or_default());
    }

    /// The connection to the peer is gone. What it sent before that is still delivered, as it
    /// would be without us between.
    pub(super) fn fail(&mut self) {
        self.failed = true;
        self.readable = true;
        self.pending = VecDeque::new();
    }

    /// What the guest has got.
    fn take_ack(&mut self, seg: &Segment<'_>, ack: Seq, cx: &mut Context) -> Fate {
        let new = ack.after(self.una);
        if new < 0 {
            return Fate::Lives;
        }
        let (at_seq, at_ack) = self.window_at;
        let window = u32::from(seg.window) << self.guest_scale;
        let fresh = seg.seq.after(at_seq) > 0 || (seg.seq == at_seq && ack.after(at_ack) >= 0);
        let same = window == self.window;
        if fresh {
            self.window = window;
            self.window_at = (seg.seq, ack);
        }
        if window == 0 {
            // A guest that answers with a closed window is not dead.
            self.tries = self.tries.min(3);
        }
        if new == 0 {
            let waiting = self.max.after(self.una) > 0;
            if waiting && same && seg.payload.is_empty() && !seg.fin {
                self.repeat(cx);
            }
            return Fate::Lives;
        }
        self.acknowledge(ack, cx)
    }

    fn acknowledge(&mut self, ack: Seq, cx: &mut Context) -> Fate {
        let mut bytes = ack.since(self.una);
        if self.fin.is_some_and(|fin| ack.after(fin) > 0) {
            bytes -= 1;
        }
        while bytes > 0 {
            let len = bytes.min(cx.scratch.len());
            let Some(buffer) = cx.scratch.get_mut(..len) else { return Fate::Reset };
            match host::discard(&self.socket, buffer) {
                Ok(n) if n > 0 => bytes = bytes.saturating_sub(n),
                _ => return Fate::Reset,
            }
        }
        self.una = ack;
        if self.nxt.after(ack) < 0 {
            self.nxt = ack;
        }
        // Behind the mark more may wait, of which no event will tell.
        self.readable |= self.urgent;
        self.tries = 0;
        self.repeats = 0;
        if self.max == self.una {
            self.deadline = None;
        } else {
            self.arm(cx.now);
        }
        Fate::Lives
    }

    /// Three acknowledgements of the same byte mean that a segment was lost, RFC 5681.
    fn repeat(&mut self, cx: &mut Context) {
        self.repeats = self.repeats.saturating_add(1);
        if self.repeats == 3 {
            self.again(cx);
        }
    }

    /// Everything that is not acknowledged is sent again.
    fn again(&mut self, cx: &mut Context) {
        self.nxt = self.una;
        self.readable = true;
        cx.link.counters.retransmissions += 1;
    }

    /// A time has passed that something waited for.
    pub(crate) fn timer(&mut self, cx: &mut Context) -> Fate {
        if cx.now.saturating_duration_since(self.active) > IDLE {
            return Fate::Reset;
        }
        if self.deadline.is_none_or(|at| at > cx.now) {
            return Fate::Lives;
        }
        self.deadline = None;
        self.tries += 1;
        match self.phase {
            Phase::Connecting => Fate::Failed(Errno::TIMEDOUT),
            _ if self.tries > TRIES => Fate::Reset,
            Phase::Answered | Phase::Calling => {
                self.send_syn(cx);
                Fate::Lives
            }
            Phase::Open => {
                self.again(cx);
                self.arm(cx.now);
                self.probe(cx);
                Fate::Lives
            }
        }
    }

    /// When something must be done about it at the latest.
    pub(crate) fn due(&self) -> Option<Instant> {
        let idle = self.active.checked_add(IDLE + Duration::from_secs(1));
        crate::context::earlier(self.deadline, idle)
    }

    /// Whether both sides have ended and all is delivered.
    pub(super) fn is_done(&self) -> bool {
        self.shut && self.fin.is_some_and(|fin| self.una == fin.plus(1))
    }
}

/// For a guest that does not say, RFC 9293 section 3.7.1.
fn default_mss(guest: SocketAddr) -> usize {
    if guest.is_ipv4() { 536 } else { 1220 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, host::Poller};
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        sync::Arc,
    };

    /// What becomes of a flow with bytes for a guest whose window is closed.
    fn starved(answers: bool) -> Fate {
        let mut cx = Context::new(Arc::new(Config::default()), Poller::new().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        peer.write_all(b"bytes").unwrap();
        let (guest, remote) = (([10, 0, 2, 15], 1).into(), ([10, 0, 2, 2], 2).into());
        let mut flow = Flow::new(socket.into(), Phase::Open, guest, remote, 1 << 16, &cx);
        for _ in 0..20 {
            let _ = flow.serve(&mut cx);
            cx.now += RTO_MAX;
            let fate = flow.timer(&mut cx);
            if fate != Fate::Lives {
                return fate;
            }
            let (seq, ack) = (flow.rcv, Some(flow.una));
            let answer = Segment {
                guest,
                remote,
                seq,
                ack,
                window: 0,
                syn: false,
                fin: false,
                rst: false,
                mss: None,
                scale: None,
                payload: &[],
            };
            if answers {
                assert_eq!(flow.input(&answer, &mut cx), Fate::Lives);
            }
        }
        Fate::Lives
    }

    #[test]
    fn a_closed_window_is_waited_for_while_the_guest_answers() {
        assert_eq!((starved(true), starved(false)), (Fate::Lives, Fate::Reset));
    }
}
