//! The card's side to the network: frames out of the guest's rings, and into them, on the network's
//! own thread.

use crate::{QUEUE_SIZE, RECEIVE, TRANSMIT, VirtioNet, feature, header, lock};
use nic::{Mac, Meta, NoRoom, Offloads, Port, Taken};
use std::sync::{
    Mutex,
    atomic::Ordering::{Relaxed, SeqCst},
};
use virtio::{Chain, GuestError, Owed, Queue};

/// What is owed to the driver after a batch, and whether it was told not to ring.
#[derive(Debug, Default)]
pub(crate) struct Side {
    owed: Owed,
    silent: bool,
}

impl VirtioNet {
    /// The next frame. One that is none is handed back and counts as empty, so that a driver that
    /// makes such without end does not keep the network here.
    fn next_frame(
        &self,
        queue: &mut Queue<'_>,
        side: &mut Side,
        buffer: &mut [u8],
    ) -> Result<Option<Taken>, GuestError> {
        loop {
            if let Some(mut chain) = queue.pop()? {
                if !side.silent {
                    side.silent = true;
                    queue.silence()?;
                }
                let taken = read_frame(&mut chain, buffer);
                queue.complete(chain, 0)?;
                let counter = match taken {
                    Some(_) => &self.counters.sent,
                    None => &self.counters.dropped,
                };
                counter.fetch_add(1, Relaxed);
                return Ok(Some(taken.unwrap_or(Taken { len: 0, meta: Meta::default() })));
            }
            side.silent = false;
            if !queue.listen()? || queue.interrupted() {
                return Ok(None);
            }
        }
    }

    /// Whether there was room for the frame.
    fn put_frame(
        &self,
        queue: &mut Queue<'_>,
        side: &mut Side,
        mut header: [u8; header::LEN],
        parts: &[&[u8]],
    ) -> Result<bool, GuestError> {
        let len = header.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        let Some(mut chains) = self.buffers(queue, side, len as u64)? else { return Ok(false) };
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        header[header::NUM_BUFFERS..].copy_from_slice(&count.to_le_bytes());
        let mut filled = chains.iter_mut();
        let mut now = filled.next();
        for mut part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
            while let (false, Some((chain, written))) = (part.is_empty(), now.as_mut()) {
                let n = chain.writable.write(part);
                *written += n as u32;
                part = part.get(n..).unwrap_or_default();
                if !part.is_empty() {
                    now = filled.next();
                }
            }
        }
        queue.complete_all(&chains)?;
        Ok(true)
    }

    /// Buffers for `len` bytes; `None` if there are not enough.
    fn buffers(
        &self,
        queue: &mut Queue<'_>,
        side: &mut Side,
        len: u64,
    ) -> Result<Option<Vec<(Chain, u32)>>, GuestError> {
        let most = if self.has(feature::MRG_RXBUF) { usize::from(QUEUE_SIZE) } else { 1 };
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < len {
            if let Some(chain) = queue.pop()? {
                if !side.silent {
                    side.silent = true;
                    queue.silence()?;
                }
                room += chain.writable.len();
                chains.push((chain, 0));
                if chains.len() >= most && room < len {
                    return Err(GuestError("receive buffers are too small"));
                }
                continue;
            }
            side.silent = false;
            // Before they are given back, since what came meanwhile is counted from here.
            if queue.listen()? && !queue.interrupted() {
                continue;
            }
            chains.into_iter().rev().for_each(|(chain, _)| queue.put_back(chain));
            return Ok(None);
        }
        Ok(Some(chains))
    }

    /// Pairs of queues that the driver uses.
    fn pairs(&self) -> u16 {
        self.pairs.load(SeqCst).max(1)
    }

    /// All of them, from one on.
    fn pairs_from(&self, first: u16) -> impl Iterator<Item = u16> + use<> {
        let pairs = self.pairs();
        (0..pairs).map(move |next| first.wrapping_add(next) % pairs)
    }

    /// The next frame of a pair's queue.
    fn take_from(&self, pair: u16, buffer: &mut [u8]) -> Option<Taken> {
        let mut side = lock(self.transmit.get(usize::from(pair))?);
        self.lend(2 * pair + TRANSMIT, |queue| {
            // The driver may have given it up meanwhile.
            if pair >= self.pairs() {
                return Ok(None);
            }
            let taken = self.next_frame(queue, &mut side, buffer);
            side.owed = side.owed.and(queue.unsignalled());
            taken
        })
        .flatten()
    }

    /// Whether a pair's queue had room for the frame.
    fn give_to(&self, pair: u16, header: [u8; header::LEN], parts: &[&[u8]]) -> bool {
        let Some(side) = self.receive.get(usize::from(pair)) else { return false };
        let mut side = lock(side);
        let given = self.lend(2 * pair + RECEIVE, |queue| {
            if pair >= self.pairs() {
                return Ok(false);
            }
            let given = self.put_frame(queue, &mut side, header, parts);
            side.owed = side.owed.and(queue.unsignalled());
            given
        });
        given == Some(true)
    }

    pub(crate) fn lend<T>(
        &self,
        index: u16,
        work: impl FnOnce(&mut Queue<'_>) -> Result<T, GuestError>,
    ) -> Option<T> {
        self.handle.get()?.lend(index, work)
    }

    fn signal(&self, index: u16, side: &Mutex<Side>) {
        let mut side = lock(side);
        let owed = std::mem::take(&mut side.owed);
        if !owed.is_nothing() {
            // What has to rest is told when the driver asks again: its rings are as they are.
            let told = self.lend(index, |queue| {
                queue.owe(owed);
                queue.signal()
            });
            if told.is_none() {
                side.owed = owed;
            }
        }
    }
}

/// A frame of the driver behind its header; `None` if it is none.
fn read_frame(chain: &mut Chain, buffer: &mut [u8]) -> Option<Taken> {
    let mut head = [0; header::LEN];
    if chain.readable.read(&mut head) < head.len() {
        return None;
    }
    let meta = header::decode(&head)?;
    let len = usize::try_from(chain.readable.len()).ok()?;
    let place = buffer.get_mut(..len)?;
    chain.readable.read(place);
    Some(Taken { len, meta })
}

impl Port for VirtioNet {
    fn mac(&self) -> Mac {
        *lock(&self.mac)
    }

    fn offloads(&self) -> Offloads {
        let checksum = self.has(feature::GUEST_CSUM);
        Offloads {
            checksum,
            tso4: checksum && self.has(feature::GUEST_TSO4),
            tso6: checksum && self.has(feature::GUEST_TSO6),
        }
    }

    /// The pairs take turns: one stays at it until it has no more, or the batch ends.
    fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        let turn = self.turn.load(Relaxed);
        for pair in self.pairs_from(turn) {
            if let Some(taken) = self.take_from(pair, buffer) {
                self.turn.store(pair, Relaxed);
                if self.pairs() > 1 {
                    self.steering.sent(buffer.get(..taken.len).unwrap_or_default(), pair);
                }
                return Some(taken);
            }
        }
        None
    }

    /// Into the pair of the conversation, or, where that has no buffer, into another.
    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        if !lock(&self.filter).passes(self.mac(), self.has(feature::CTRL_VLAN), parts) {
            self.counters.filtered.fetch_add(1, Relaxed);
            return Ok(());
        }
        let header = header::encode(meta);
        let first = self.steering.pair(parts, self.pairs());
        if self.pairs_from(first).any(|pair| self.give_to(pair, header, parts)) {
            self.counters.received.fetch_add(1, Relaxed);
            Ok(())
        } else {
            self.counters.refused.fetch_add(1, Relaxed);
            Err(NoRoom)
        }
    }

    fn flush(&self) {
        for (pair, (receive, transmit)) in (0..).zip(self.receive.iter().zip(&self.transmit)) {
            self.signal(2 * pair + RECEIVE, receive);
            self.signal(2 * pair + TRANSMIT, transmit);
        }
        self.turn.store(self.turn.load(Relaxed).wrapping_add(1) % self.pairs(), Relaxed);
        if self.tell.swap(false, SeqCst)
            && let Some(handle) = self.handle.get()
        {
            handle.config_changed();
        }
    }

    fn set_link(&self, up: bool) {
        if self.link.swap(up, SeqCst) != up
            && let Some(handle) = self.handle.get()
        {
            handle.config_changed();
        }
    }
}

#[cfg(test)]
mod tests;
