//! The side to the network: frames out of the domain's rings, and into them, on the network's own
//! thread.

use crate::{
    XenNet, count,
    front::Front,
    lock,
    offload::{self, Todo},
    rx::{self, Frame, Put},
    tx,
};
use nic::{Mac, Meta, NoRoom, Offloads, Port, Taken};
use std::sync::atomic::Ordering::SeqCst;

impl XenNet {
    /// Does something with the front end, if there is one that is served now.
    fn with<T>(&self, work: impl FnOnce(&mut Front) -> T) -> Option<T> {
        let mut link = lock(&self.link);
        let front = link.front.as_mut().filter(|front| !front.broken);
        front.filter(|_| !self.paused.load(SeqCst)).map(work)
    }

    /// The front end wrote what it cannot have meant.
    fn give_up(&self, front: &mut Front) {
        front.broken = true;
        count(&self.counters.broken);
    }

    /// The queues take turns: one stays at it until it has no more, or the batch ends.
    fn take_next(&self, front: &mut Front, buffer: &mut [u8]) -> Option<Taken> {
        for index in front.from(front.turn) {
            let side = &mut front.queues.get_mut(index)?.transmit;
            match tx::next(&mut side.ring, &front.domain, buffer) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    side.owed = true;
                    front.turn = index;
                    count(match taken {
                        Some(_) => &self.counters.sent,
                        None => &self.counters.dropped,
                    });
                    // What is none counts as empty, so that a driver that makes such without end
                    // does not keep the network here.
                    let taken = taken.unwrap_or(Taken { len: 0, meta: Meta::default() });
                    if front.queues.len() > 1 {
                        let frame = buffer.get(..taken.len).unwrap_or_default();
                        self.steering.sent(frame, index as u16);
                    }
                    return Some(taken);
                }
                Err(_) => {
                    self.give_up(front);
                    return None;
                }
            }
        }
        None
    }

    /// Into the queue of the conversation, or, where that has no room, into another.
    fn put(&self, front: &mut Front, frame: &Frame<'_>) -> Result<(), NoRoom> {
        if rx::pages(frame.len) > 1 && !front.wants.scatter {
            count(&self.counters.dropped);
            return Ok(());
        }
        let first = self.steering.pair(frame.parts, front.queues.len() as u16);
        for index in front.from(first.into()) {
            let Some(queue) = front.queues.get_mut(index) else { continue };
            let side = &mut queue.receive;
            let counter = match rx::put(&mut side.ring, &front.domain, frame) {
                Ok(Put::NoRoom) => continue,
                Ok(Put::Done) => &self.counters.received,
                Ok(Put::Lost) => &self.counters.dropped,
                Err(_) => {
                    self.give_up(front);
                    break;
                }
            };
            side.owed = true;
            count(counter);
            return Ok(());
        }
        count(&self.counters.refused);
        Err(NoRoom)
    }
}

impl Port for XenNet {
    fn mac(&self) -> Mac {
        *lock(&self.mac)
    }

    fn offloads(&self) -> Offloads {
        lock(&self.link).front.as_ref().map(|front| front.wants.offloads).unwrap_or_default()
    }

    fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        self.with(|front| self.take_next(front, buffer)).flatten()
    }

    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let len = parts.iter().map(|part| part.len()).sum();
        let cut = meta.segmentation.as_ref().map(offload::cut);
        let given = self.with(|front| match Todo::of(meta, parts, len, &front.wants) {
            Todo::Nothing { flags } => self.put(front, &Frame { flags, cut, parts, len }),
            Todo::Finish { start, field } => {
                let mut whole = parts.concat();
                if !offload::finish(&mut whole, start, field) {
                    count(&self.counters.dropped);
                    return Ok(());
                }
                let flags = xen_abi::netif::rx::DATA_VALIDATED;
                self.put(front, &Frame { flags, cut, parts: &[&whole], len })
            }
            Todo::Drop => {
                count(&self.counters.dropped);
                Ok(())
            }
        });
        given.unwrap_or(Err(NoRoom))
    }

    fn flush(&self) {
        self.with(|front| {
            front.queues.iter_mut().for_each(crate::front::Queue::flush);
            front.turn = front.turn.wrapping_add(1) % front.queues.len().max(1);
        });
    }

    /// The protocol has no word for it.
    fn set_link(&self, _up: bool) {}
}
