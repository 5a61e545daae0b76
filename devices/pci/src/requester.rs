//! What a function may do towards the board: interrupt, and access memory.

use crate::{
    config::{ConfigSpace, command},
    lock,
    msix::Table,
    state::{FunctionState, VectorState},
};
use device::{LineRef, Msi, MsiSink};
use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

struct Lines {
    table: Table,
    /// The function asserts its pin.
    pin: bool,
    pin_disabled: bool,
    /// What is sent instead of the pin.
    message: Option<Msi>,
}

impl Lines {
    /// A function that uses messages does not drive its pin (PCI, 6.8.3.3).
    fn level(&self) -> bool {
        self.pin && !self.pin_disabled && !self.table.enabled() && self.message.is_none()
    }
}

/// A function's way to the board. Messages and lines are driven with its lock held, so that
/// once a guest has masked a vector none is under way.
pub struct Requester {
    lines: Mutex<Lines>,
    master: AtomicBool,
    line: LineRef,
    msi: Arc<dyn MsiSink>,
    slot: u8,
}

impl fmt::Debug for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requester").field("master", &self.master).finish_non_exhaustive()
    }
}

impl Requester {
    pub(crate) fn new(slot: u8, vectors: u16, line: LineRef, msi: Arc<dyn MsiSink>) -> Arc<Self> {
        let lines =
            Lines { table: Table::new(vectors), pin: false, pin_disabled: false, message: None };
        Arc::new(Self { lines: Mutex::new(lines), master: AtomicBool::new(false), line, msi, slot })
    }

    /// The slot that the function is in.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// The function may read and write memory: the guest set its bus master bit.
    pub fn is_master(&self) -> bool {
        self.master.load(SeqCst)
    }

    /// The guest chose messages, not the pin.
    pub fn uses_messages(&self) -> bool {
        lock(&self.lines).table.enabled()
    }

    /// Asks for a message; it is sent now, or when it is unmasked. Without effect while messages
    /// are not enabled, and for a vector that does not exist.
    pub fn notify(&self, vector: u16) {
        lock(&self.lines).table.notify(vector, &*self.msi);
    }

    /// Asserts or releases the pin; where it rises and the guest chose a message, that is sent.
    pub fn set_pin(&self, level: bool) {
        let mut lines = lock(&self.lines);
        let rises = level && !lines.pin;
        lines.pin = level;
        self.line.set(lines.level());
        if rises {
            self.send(&lines);
        }
    }

    /// Sends the message again if the pin is still asserted: for a function whose software has dealt
    /// with some of what it is asserted for.
    pub fn repeat(&self) {
        let lines = lock(&self.lines);
        if lines.pin {
            self.send(&lines);
        }
    }

    /// A message is a write to memory.
    fn send(&self, lines: &Lines) {
        if let Some(message) = lines.message.filter(|_| self.is_master()) {
            self.msi.send(message);
        }
    }

    pub(crate) fn pin(&self) -> bool {
        lock(&self.lines).pin
    }

    /// The guest changed the command register or message control.
    pub(crate) fn configure(&self, space: &ConfigSpace) {
        let master = space.command() & command::MASTER != 0;
        let mut lines = lock(&self.lines);
        let sent = self.master.swap(master, SeqCst) && lines.message.is_some();
        lines.pin_disabled = space.command() & command::INTX_DISABLE != 0;
        lines.message = space.message();
        if lines.pin && !sent {
            self.send(&lines);
        }
        lines.table.set_control(space.msix_control().unwrap_or(0), master, &*self.msi);
        self.line.set(lines.level());
    }

    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        lock(&self.lines).table.read(offset, data);
    }

    pub(crate) fn write_table(&self, offset: u64, data: &[u8]) {
        lock(&self.lines).table.write(offset, data, &*self.msi);
    }

    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        lock(&self.lines).table.read_pending(offset, data);
    }

    pub(crate) fn reset(&self) {
        let mut lines = lock(&self.lines);
        self.master.store(false, SeqCst);
        let vectors = lines.table.save().len() as u16;
        *lines =
            Lines { table: Table::new(vectors), pin: false, pin_disabled: false, message: None };
        self.line.set(false);
    }

    pub(crate) fn save(&self) -> (Vec<VectorState>, bool) {
        let lines = lock(&self.lines);
        (lines.table.save(), lines.pin)
    }

    /// `space` is restored already, and `state` checked against it.
    pub(crate) fn restore(&self, state: &FunctionState, space: &ConfigSpace) {
        let master = space.command() & command::MASTER != 0;
        self.master.store(master, SeqCst);
        let mut lines = lock(&self.lines);
        lines.pin = state.pin;
        lines.pin_disabled = space.command() & command::INTX_DISABLE != 0;
        lines.message = space.message();
        let control = space.msix_control().unwrap_or(0);
        lines.table.restore(&state.vectors, control, master);
        self.line.restore(lines.level());
    }
}
