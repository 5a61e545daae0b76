//! One port: what waits in it, and who is at its ends.

use crate::{VirtioConsole, lock, state::PortState};
use byte_stream::{Input, Output};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

/// Bytes that wait at most for the guest to read them.
pub(crate) const INPUT_MAX: usize = 64 << 10;

/// What a port is.
pub struct PortConfig {
    /// A console has none; by another port's name the guest finds it, in Linux as
    /// `/dev/virtio-ports/NAME`.
    pub name: Option<String>,
    pub output: Arc<dyn Output>,
    /// Whether somebody is at the other end, until the carrier says otherwise.
    pub peer: bool,
}

impl fmt::Debug for PortConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

type RoomCallback = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Port {
    pub(crate) name: Option<String>,
    pub(crate) output: Arc<dyn Output>,
    state: Mutex<Waiting>,
    room: OnceLock<RoomCallback>,
}

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) input: VecDeque<u8>,
    /// A carrier was refused and is to hear of room.
    pub(crate) refused: bool,
    /// Somebody is at the carrier's end, and what the driver was told of that.
    pub(crate) peer: bool,
    pub(crate) told: bool,
    /// The driver knows the port, and a program has it open.
    pub(crate) ready: bool,
    pub(crate) open: bool,
    /// Bytes of the first buffer in the transmit queue that have left.
    pub(crate) sent: u64,
}

impl Port {
    pub(crate) fn new(config: PortConfig) -> Self {
        let state = Waiting { peer: config.peer, ..Waiting::default() };
        Self {
            name: config.name,
            output: config.output,
            state: Mutex::new(state),
            room: OnceLock::new(),
        }
    }

    pub(crate) fn is_console(&self) -> bool {
        self.name.is_none()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.state)
    }

    pub(crate) fn tell_room(&self) {
        if let Some(callback) = self.room.get() {
            callback();
        }
    }
}

impl Waiting {
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = INPUT_MAX.saturating_sub(self.input.len()).min(bytes.len());
        self.input.extend(bytes.iter().take(room));
        self.refused |= room < bytes.len();
        room
    }

    pub(crate) fn save(&self) -> PortState {
        PortState {
            input: self.input.iter().copied().collect(),
            ready: self.ready,
            open: self.open,
            told_open: self.told,
            sent: self.sent,
        }
    }

    pub(crate) fn restore(&mut self, saved: PortState) {
        self.input = saved.input.into();
        (self.ready, self.open) = (saved.ready, saved.open);
        (self.told, self.sent) = (saved.told_open, saved.sent);
    }
}

/// The carrier's way to a port.
pub struct PortInput {
    console: Arc<VirtioConsole>,
    port: usize,
}

impl PortInput {
    pub(crate) fn new(console: Arc<VirtioConsole>, port: usize) -> Self {
        Self { console, port }
    }
}

impl fmt::Debug for PortInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortInput({})", self.port)
    }
}

impl Input for PortInput {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.console.receive(self.port, bytes)
    }

    /// The first callback stays: a port has one carrier.
    fn on_room(&self, callback: RoomCallback) {
        if let Some(port) = self.console.ports.get(self.port) {
            let _ = port.room.set(callback);
        }
    }

    fn peer(&self, present: bool) {
        self.console.peer(self.port, present);
    }
}
