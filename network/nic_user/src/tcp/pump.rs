//! What moves by itself: from the socket to the guest, and from the store to the socket.

use rustix::io::Errno;

use super::{
    CHUNK, IN_FLIGHT,
    flow::{Fate, Flow, Phase},
    seq::Seq,
};
use crate::{
    context::Context,
    host,
    packet::{self, TcpFields},
};

/// A flow gives way to others after so many bytes.
const TURN: usize = 4 * CHUNK;

/// What a turn has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// More can be done at once.
    More,
    /// More can be done when the guest has room.
    Blocked,
}

impl Flow {
    /// One turn: everything that is possible now.
    pub(crate) fn serve(&mut self, cx: &mut Context) -> Result<Left, Fate> {
        if self.phase != Phase::Open {
            return Ok(Left::Nothing);
        }
        self.drain();
        let left = self.pump(cx)?;
        if self.ack_due && left != Left::Blocked && self.send(cx, 0, self.nxt, 0..0).is_err() {
            return Ok(Left::Blocked);
        }
        if self.is_done() { Err(Fate::Ended) } else { Ok(left) }
    }

    /// From the store to the socket.
    fn drain(&mut self) {
        let before = self.offer();
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match host::send(&self.socket, front) {
                Ok(n) => drop(self.pending.drain(..n.min(front.len()))),
                Err(Errno::AGAIN) => break,
                Err(_) => self.fail(),
            }
        }
        if self.pending.is_empty() {
            if self.pending.capacity() > 0 {
                self.pending.shrink_to_fit();
            }
            if self.guest_ended && !self.shut {
                self.shut = true;
                host::shut_write(&self.socket);
            }
        }
        // A window is opened when that is worth a segment, RFC 9293 section 3.8.6.2.2.
        let opened = self.offer().saturating_sub(before);
        self.ack_due |= opened >= self.mss.min(self.capacity / 2).max(1);
    }

    /// How many bytes the guest may send beyond what has arrived, as it would be told now.
    fn offer(&self) -> usize {
        let free = self.capacity.saturating_sub(self.pending.len());
        let limit = 0xffff << self.scale;
        free.min(limit).max(self.edge.since(self.rcv).min(limit))
    }

    /// From the socket to the guest.
    fn pump(&mut self, cx: &mut Context) -> Result<Left, Fate> {
        let mut turn = 0;
        while self.readable || self.fin.is_some() {
            if self.fin.is_some_and(|fin| self.nxt.after(fin) > 0) {
                break;
            }
            if self.fin == Some(self.nxt) {
                return Ok(self.send_fin(cx));
            }
            if turn >= TURN {
                return Ok(Left::More);
            }
            let offset = self.nxt.since(self.una);
            let room = (self.window as usize).min(IN_FLIGHT).saturating_sub(offset);
            if room == 0 {
                self.persist(cx);
                break;
            }
            let chunk = if cx.link.segments(self.guest.ip()) { CHUNK } else { CHUNK / 4 };
            // Only whole segments, but for the last, unless the guest waits for less.
            if room < self.mss && offset > 0 {
                break;
            }
            // What would be read now has nowhere to go.
            if cx.link.is_full() {
                return Ok(Left::Blocked);
            }
            match self.peek(cx, offset, room.min(chunk))? {
                0 if self.fin == Some(self.nxt) => {}
                0 => break,
                n => match self.send_data(cx, offset, n) {
                    Ok(()) => turn += n,
                    Err(nic::NoRoom) => {
                        // What was peeked at and not sent is to be peeked at again.
                        self.readable = true;
                        return Ok(Left::Blocked);
                    }
                },
            }
        }
        Ok(Left::Nothing)
    }

    /// How many bytes lie behind `offset` in the socket, up to `len`; they are in the scratch
    /// buffer then. Notices the end of the stream.
    fn peek(&mut self, cx: &mut Context, offset: usize, len: usize) -> Result<usize, Fate> {
        let want = offset + len;
        let Some(buffer) = cx.scratch.get_mut(..want) else { return Err(Fate::Reset) };
        match host::peek(&self.socket, buffer) {
            Ok(n) if n > offset => {
                // A short read empties the socket; more comes with an event.
                if n < want && !self.hung_up {
                    self.readable = false;
                }
                Ok(n - offset)
            }
            // The mark of urgent data, or the end: that is told once this is acknowledged.
            Ok(n) if n == offset && n > 0 && self.urgent => {
                self.readable = false;
                Ok(0)
            }
            Ok(n) if n == offset => {
                if self.failed {
                    return Err(Fate::Reset);
                }
                self.readable = false;
                if self.hung_up || offset == 0 {
                    self.fin = Some(self.una.plus(n));
                }
                Ok(0)
            }
            // What was there is there still: nobody else reads this socket.
            Ok(_) => Err(Fate::Reset),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(0)
            }
            Err(_) => Err(Fate::Reset),
        }
    }

    fn send_fin(&mut self, cx: &mut Context) -> Left {
        let Some(fin) = self.fin else { return Left::Nothing };
        if self.send(cx, packet::FIN, fin, 0..0).is_err() {
            return Left::Blocked;
        }
        self.sent(fin.plus(1), cx);
        Left::Nothing
    }

    /// `n` bytes of the scratch buffer from `offset` on, or as many as there is room for.
    fn send_data(&mut self, cx: &mut Context, offset: usize, n: usize) -> Result<(), nic::NoRoom> {
        let large = cx.link.segments(self.guest.ip());
        let end = offset + n;
        let mut at = offset;
        while at < end {
            let len = if large { end - at } else { self.mss.min(end - at) };
            let flags = if at + len == end { packet::PSH } else { 0 };
            let seq = self.una.plus(at);
            self.send(cx, flags, seq, at..at + len)?;
            at += len;
            self.sent(seq.plus(len), cx);
        }
        Ok(())
    }

    /// Everything before `end` is on its way.
    fn sent(&mut self, end: Seq, cx: &Context) {
        self.nxt = end;
        if end.after(self.max) > 0 {
            self.max = end;
        }
        if self.deadline.is_none() {
            self.arm(cx.now);
        }
        self.active = cx.now;
    }

    /// One segment, which acknowledges everything that has come.
    fn send(
        &mut self,
        cx: &mut Context,
        flags: u8,
        seq: Seq,
        payload: std::ops::Range<usize>,
    ) -> Result<(), nic::NoRoom> {
        let offer = self.offer();
        let fields = TcpFields {
            seq: seq.0,
            ack: self.rcv.0,
            flags: flags | packet::ACK,
            window: u16::try_from(offer >> self.scale).unwrap_or(u16::MAX),
            ..TcpFields::default()
        };
        let payload = cx.scratch.get(payload).unwrap_or_default();
        cx.link.segment(self.remote, self.guest, &fields, payload, self.mss)?;
        self.ack_due = false;
        let edge = self.rcv.plus(offer);
        if edge.after(self.edge) > 0 {
            self.edge = edge;
        }
        Ok(())
    }

    /// The guest takes nothing now: whether it does later is asked from time to time.
    fn persist(&mut self, cx: &Context) {
        if self.max == self.una && self.deadline.is_none() {
            self.arm(cx.now);
        }
    }

    /// One byte beyond a closed window, RFC 9293 section 3.8.6.1.
    pub(super) fn probe(&mut self, cx: &mut Context) {
        if self.window > 0 || self.nxt != self.una || self.fin == Some(self.nxt) {
            return;
        }
        if matches!(self.peek(cx, 0, 1), Ok(1)) {
            self.readable = true;
            let _ = self.send_data(cx, 0, 1);
        }
    }
}
