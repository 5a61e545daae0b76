//! The event queue (5.6.6.3): units that come and go.

use crate::{Address, EVENTS, VirtioScsi, config, feature};
use scsi::Sense;
use std::sync::atomic::Ordering::SeqCst;
use virtio::{GuestError, Queue, Served};

const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
/// There were more than the driver had room for.
const MISSED: u32 = 1 << 31;

/// Events that wait for a buffer; of more the driver hears that it missed some.
const WAITING_MAX: usize = 64;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A unit is there.
    Rescan(Address),
    Removed(Address),
    /// A unit has changed, as its next command will be told.
    Changed(Address, Sense),
}

impl Event {
    /// What the driver has to know of to be told.
    fn feature(self) -> u64 {
        match self {
            Self::Rescan(_) | Self::Removed(_) => feature::HOTPLUG,
            Self::Changed(..) => feature::CHANGE,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    waiting: Vec<Event>,
    missed: bool,
}

impl Events {
    /// As they are when a saved state is restored.
    pub(crate) fn after(missed: bool) -> Self {
        Self { waiting: Vec::new(), missed }
    }

    fn push(&mut self, event: Event) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(event);
        } else {
            self.missed = true;
        }
    }

    /// Nothing is kept; whether there was something that the driver has not heard of.
    pub(crate) fn any(&self) -> bool {
        self.missed || !self.waiting.is_empty()
    }

    /// The next one as it goes to the driver: event, unit, reason.
    fn next(&self) -> Option<[u8; config::EVENT as usize]> {
        let (kind, address, reason) = match self.waiting.first() {
            _ if self.missed => (MISSED, None, 0),
            Some(Event::Rescan(address)) => (TRANSPORT_RESET, Some(address), 1u32),
            Some(Event::Removed(address)) => (TRANSPORT_RESET, Some(address), 2),
            // The additional code, and its qualifier in the upper byte.
            Some(Event::Changed(address, Sense(_, code, qualifier))) => {
                (PARAM_CHANGE, Some(address), u32::from_le_bytes([*code, *qualifier, 0, 0]))
            }
            None => return None,
        };
        let mut bytes = [0; config::EVENT as usize];
        let (event, rest) = bytes.split_at_mut(4);
        let (lun, why) = rest.split_at_mut(8);
        event.copy_from_slice(&kind.to_le_bytes());
        lun.copy_from_slice(&address.map_or([0; 8], |address| address.field()));
        why.copy_from_slice(&reason.to_le_bytes());
        Some(bytes)
    }

    fn told(&mut self) {
        if self.missed {
            // Whoever looks at all units sees what the others are about, too.
            *self = Self::default();
        } else {
            self.waiting.remove(0);
        }
    }
}

impl VirtioScsi {
    pub(crate) fn notify(&self, event: Event) {
        if self.features.load(SeqCst) & event.feature() == 0 {
            return;
        }
        crate::lock(&self.events).push(event);
        if let Some(handle) = self.handle.get() {
            handle.kick(EVENTS);
        }
    }

    /// Writes what happened into the driver's buffers.
    pub(crate) fn serve_events(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let mut events = crate::lock(&self.events);
        while let Some(bytes) = events.next() {
            let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
            if chain.writable.len() < bytes.len() as u64 {
                return Err(GuestError("an event has no room"));
            }
            let written = chain.writable.write(&bytes);
            queue.complete(chain, written as u32)?;
            events.told();
        }
        Ok(Served::Left)
    }
}
