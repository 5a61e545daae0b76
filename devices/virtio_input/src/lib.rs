//! The virtio input device (virtio 1.2, section 5.8): a keyboard, or a tablet that tells the place
//! of a pointer.
//!
//! Events are Linux input events. They wait, up to a bound, for a driver that has no buffer free;
//! what comes beyond it is dropped a whole group at a time, so that no group is torn, but for keys
//! and buttons that go up, which are sent when there is room, since one that stays down is worse
//! than one that was never seen.

mod events;

use display::{Buttons, Key, Keyboard, Pointer, PointerEvent};
use events::{Event, code, kind};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
};
use virtio::{GuestError, Handle, Queue, Served, VirtioDevice};

const DEVICE_TYPE: u16 = 18;
/// PCI's class: an input device, keyboard and other.
const CLASS_KEYBOARD: u32 = 0x09_00_00;
const CLASS_TABLET: u32 = 0x09_80_00;
/// The queues (5.8.2).
pub const EVENTS: u16 = 0;
pub const STATUS: u16 = 1;
const QUEUE_SIZE: u16 = 64;
/// Events that wait at most.
const PENDING_MAX: usize = 512;
/// Events of a group at most: a place, the wheel, three buttons, and the end.
const GROUP_MAX: usize = 7;

/// Where the parts of the configuration are (5.8.5).
mod config {
    pub const SELECT: u64 = 0;
    pub const SUBSEL: u64 = 1;
    pub const SIZE: u64 = 2;
    pub const DATA: u64 = 8;
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Keyboard,
    Tablet,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputState {
    pub kind: Kind,
    pub select: u8,
    pub subsel: u8,
    /// Events that the driver has no buffer for yet, and at the end those that there was no room
    /// for.
    pub pending: Vec<Event>,
    /// Keys and buttons that the driver was told are down.
    pub down: Vec<u16>,
}

impl Schema for InputState {
    const KIND: &'static str = "virtio-input";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Inner {
    select: u8,
    subsel: u8,
    pending: VecDeque<Event>,
    down: BTreeSet<u16>,
    /// Went up while there was no room.
    late: BTreeSet<u16>,
}

pub struct VirtioInput {
    kind: Kind,
    inner: Mutex<Inner>,
    handle: OnceLock<Handle>,
    active: AtomicBool,
    sent: AtomicU64,
    dropped: AtomicU64,
    status: AtomicU64,
}

impl fmt::Debug for VirtioInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioInput").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl VirtioInput {
    pub fn new(kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            kind,
            inner: Mutex::default(),
            handle: OnceLock::new(),
            active: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            status: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        if let Some(handle) = self.handle.get() {
            handle.kick(EVENTS);
        }
    }

    /// Queues a group of events. Without a driver they are nobody's.
    fn send(&self, inner: &mut Inner, mut group: Vec<Event>) {
        if group.is_empty() || !self.active.load(SeqCst) {
            return;
        }
        group.push(Event::SYNC);
        if inner.pending.len() + group.len() > PENDING_MAX {
            self.dropped.fetch_add(group.len() as u64, Relaxed);
            return;
        }
        inner.pending.extend(group);
    }

    /// A key or button went down or up, as an event if that is news and its group has room.
    fn press(inner: &mut Inner, code: u16, down: bool) -> Option<Event> {
        let news = inner.down.contains(&code) != down;
        let full = inner.pending.len() + GROUP_MAX > PENDING_MAX;
        if !news {
            // Held again before the driver heard that it went up.
            if down {
                inner.late.remove(&code);
            }
            return None;
        }
        if full {
            if !down {
                inner.late.insert(code);
            }
            return None;
        }
        inner.late.remove(&code);
        if down {
            inner.down.insert(code)
        } else {
            inner.down.remove(&code)
        };
        Some(Event { kind: kind::KEY, code, value: down.into() })
    }
}

impl Keyboard for VirtioInput {
    fn listens(&self) -> bool {
        self.active.load(SeqCst)
    }

    /// The driver repeats keys itself.
    fn key(&self, key: Key, down: bool) {
        if !self.active.load(SeqCst) {
            return;
        }
        let mut inner = self.lock();
        let group = Self::press(&mut inner, key.code(), down).into_iter().collect();
        self.send(&mut inner, group);
        drop(inner);
        self.kick();
    }
}

impl Pointer for VirtioInput {
    fn listens(&self) -> bool {
        self.active.load(SeqCst)
    }

    fn is_absolute(&self) -> bool {
        true
    }

    fn point(&self, event: PointerEvent) {
        if !self.active.load(SeqCst) {
            return;
        }
        let mut inner = self.lock();
        let mut group = vec![
            Event {
                kind: kind::ABS,
                code: code::ABS_X,
                value: event.x.min(PointerEvent::END).into(),
            },
            Event {
                kind: kind::ABS,
                code: code::ABS_Y,
                value: event.y.min(PointerEvent::END).into(),
            },
        ];
        if event.wheel != 0 {
            let value = event.wheel as u32;
            group.push(Event { kind: kind::REL, code: code::REL_WHEEL, value });
        }
        let Buttons { left, middle, right } = event.buttons;
        let buttons =
            [(code::BTN_LEFT, left), (code::BTN_RIGHT, right), (code::BTN_MIDDLE, middle)];
        for (code, down) in buttons {
            group.extend(Self::press(&mut inner, code, down));
        }
        self.send(&mut inner, group);
        drop(inner);
        self.kick();
    }
}

impl VirtioDevice for VirtioInput {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Keyboard => "virtio_keyboard",
            Kind::Tablet => "virtio_tablet",
        }
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        match self.kind {
            Kind::Keyboard => CLASS_KEYBOARD,
            Kind::Tablet => CLASS_TABLET,
        }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        let answer = events::describe(self.kind, inner.select, inner.subsel);
        for (at, byte) in (offset..).zip(data) {
            *byte = match at {
                config::SELECT => inner.select,
                config::SUBSEL => inner.subsel,
                config::SIZE => answer.len() as u8,
                _ => {
                    let index =
                        at.checked_sub(config::DATA).and_then(|at| usize::try_from(at).ok());
                    index.and_then(|index| answer.get(index)).copied().unwrap_or(0)
                }
            };
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        for (at, byte) in (offset..).zip(data) {
            match at {
                config::SELECT => inner.select = *byte,
                config::SUBSEL => inner.subsel = *byte,
                _ => {}
            }
        }
    }

    fn activate(&self, _: u64) {
        self.active.store(true, SeqCst);
    }

    fn reset(&self) {
        self.active.store(false, SeqCst);
        *self.lock() = Inner::default();
    }

    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        if index == STATUS {
            while let Some(mut chain) = queue.pop()? {
                // Lights of the keyboard, of which nobody here looks at any.
                drop(chain.readable.split_front(u64::MAX));
                self.status.fetch_add(1, Relaxed);
                queue.complete(chain, 0)?;
            }
            return Ok(Served::Drained);
        }
        let mut inner = self.lock();
        loop {
            if inner.pending.len() + 2 <= PENDING_MAX
                && let Some(code) = inner.late.pop_first()
                && inner.down.remove(&code)
            {
                inner.pending.push_back(Event { kind: kind::KEY, code, value: 0 });
                inner.pending.push_back(Event::SYNC);
            }
            let Some(event) = inner.pending.front() else { return Ok(Served::Left) };
            let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
            if chain.writable.len() < Event::LEN as u64 {
                return Err(GuestError("a buffer is too small for an event"));
            }
            let written = chain.writable.write(&event.bytes());
            inner.pending.pop_front();
            self.sent.fetch_add(1, Relaxed);
            queue.complete(chain, written as u32)?;
        }
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let inner = self.lock();
        let up = |code: &u16| [Event { kind: kind::KEY, code: *code, value: 0 }, Event::SYNC];
        let late = inner.late.intersection(&inner.down).flat_map(up);
        let state = InputState {
            kind: self.kind,
            select: inner.select,
            subsel: inner.subsel,
            pending: inner.pending.iter().copied().chain(late).collect(),
            down: inner.down.difference(&inner.late).copied().collect(),
        };
        to.put(instance, &state);
    }

    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: InputState = from.take(instance)?;
        if state.kind != self.kind {
            return Err(malformed::<InputState>("it is of another kind of device"));
        }
        let codes = usize::from(code::MAX);
        // What went up without room comes on top.
        if state.pending.len() > PENDING_MAX + 2 * codes || state.down.len() > codes {
            return Err(malformed::<InputState>("more events wait than can"));
        }
        let mut inner = self.lock();
        *inner = Inner {
            select: state.select,
            subsel: state.subsel,
            pending: state.pending.into(),
            down: state.down.into_iter().collect(),
            late: BTreeSet::new(),
        };
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("events sent", self.sent.load(Relaxed)),
            ("events dropped", self.dropped.load(Relaxed)),
            ("status events", self.status.load(Relaxed)),
        ]
    }
}
