//! The virtio console (virtio 1.2, section 5.3): ports, each a stream of bytes in both directions.
//!
//! ```text
//!   carrier --Input--> Port { bytes that wait } --receive queue--> driver
//!   carrier <--Output-- Port <--transmit queue-- driver
//! ```
//!
//! A device of one console and nothing else has no control queue, so that any driver has a
//! terminal from it, and tells its size in the configuration. With several ports, or named ones,
//! the control queue says which there are, what they are called, and whether both ends are open.
//!
//! Nothing is lost on the way: a guest that does not read holds its carrier back by the bounded
//! buffer of a port, and a carrier that takes nothing leaves the guest's buffer in its queue, with
//! a note of how much of it has gone.

mod control;
mod port;
mod state;

pub use port::{PortConfig, PortInput};
pub use state::{ConsoleState, PortState};

use control::{Control, Message};
use port::Port;
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::*},
    },
};
use virtio::{GuestError, Handle, Queue, Served, VirtioDevice};

/// Feature bits (5.3.3).
pub mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const MULTIPORT: u64 = 1 << 1;
    pub const EMERG_WRITE: u64 = 1 << 2;
}

const DEVICE_TYPE: u16 = 3;
/// PCI's class: simple communications controller, other.
const CLASS: u32 = 0x07_80_00;
const QUEUE_SIZE: u16 = 64;
/// Ports of a device: two queues for each, and two of control.
pub const PORTS_MAX: usize = 31;
/// The control queues, from the device's side (5.3.2).
pub const TO_DRIVER: u16 = 2;
pub const FROM_DRIVER: u16 = 3;
/// The emergency write register (5.3.4).
const EMERGENCY: u64 = 8;
/// Bytes that are moved in one piece.
const PIECE: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
    held_back: AtomicU64,
    unknown: AtomicU64,
}

pub struct VirtioConsole {
    ports: Vec<Port>,
    multiport: bool,
    control: Mutex<Control>,
    handle: OnceLock<Handle>,
    counters: Counters,
}

impl fmt::Debug for VirtioConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioConsole").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    ToDriver,
    FromDriver,
}

impl VirtioConsole {
    /// One console and nothing else.
    pub fn terminal(config: PortConfig) -> Arc<Self> {
        Self::build(vec![config], false)
    }

    /// Several ports, which the driver is told of; those beyond [`PORTS_MAX`] are left out.
    pub fn multiport(mut configs: Vec<PortConfig>) -> Arc<Self> {
        configs.truncate(PORTS_MAX);
        Self::build(configs, true)
    }

    fn build(configs: Vec<PortConfig>, multiport: bool) -> Arc<Self> {
        let console = Arc::new(Self {
            ports: configs.into_iter().map(Port::new).collect(),
            multiport,
            control: Mutex::default(),
            handle: OnceLock::new(),
            counters: Counters::default(),
        });
        for index in 0..console.ports.len() {
            let weak = Arc::downgrade(&console);
            console.ports[index].output.on_space(Box::new(move || {
                if let Some(console) = weak.upgrade() {
                    console.kick(Role::Transmit(index));
                }
            }));
        }
        console
    }

    /// Where the carrier of a port puts its bytes.
    pub fn input(self: &Arc<Self>, port: usize) -> Arc<PortInput> {
        Arc::new(PortInput::new(self.clone(), port))
    }

    /// The terminal's size has changed.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut control = lock(&self.control);
        if control.size == Some((columns, rows)) {
            return;
        }
        control.size = Some((columns, rows));
        if !self.multiport {
            drop(control);
            if let Some(handle) = self.handle.get() {
                handle.config_changed();
            }
            return;
        }
        for (id, port) in (0..).zip(&self.ports) {
            if port.is_console() && port.lock().ready {
                control.push(Message::resize(id, columns, rows));
            }
        }
        drop(control);
        self.kick(Role::ToDriver);
    }

    fn role(&self, queue: u16) -> Role {
        let pair = usize::from(queue / 2);
        match (pair, queue & 1, self.multiport) {
            (1, 0, true) => Role::ToDriver,
            (1, _, true) => Role::FromDriver,
            (_, side, _) => {
                let port = pair.saturating_sub(usize::from(pair > 1));
                if side == 0 { Role::Receive(port) } else { Role::Transmit(port) }
            }
        }
    }

    fn queue(&self, role: Role) -> u16 {
        let pair = |port: usize| 2 * (port + usize::from(port > 0)) as u16;
        match role {
            Role::Receive(port) => pair(port),
            Role::Transmit(port) => pair(port) + 1,
            Role::ToDriver => TO_DRIVER,
            Role::FromDriver => FROM_DRIVER,
        }
    }

    fn kick(&self, role: Role) {
        if let Some(handle) = self.handle.get() {
            handle.kick(self.queue(role));
        }
    }

    /// Bytes for the guest, as far as there is room.
    fn receive(&self, index: usize, bytes: &[u8]) -> usize {
        let Some(port) = self.ports.get(index) else { return bytes.len() };
        let taken = port.lock().receive(bytes);
        if taken > 0 {
            self.kick(Role::Receive(index));
        }
        taken
    }

    /// Somebody came to the other end of a port, or left it.
    fn peer(&self, index: usize, present: bool) {
        let Some(port) = self.ports.get(index) else { return };
        let mut control = lock(&self.control);
        port.lock().peer = present;
        self.tell_peer(&mut control, index, port);
        drop(control);
        self.kick(Role::ToDriver);
    }

    /// Tells the driver of the other end, if that is news.
    fn tell_peer(&self, control: &mut Control, id: usize, port: &Port) {
        let mut state = port.lock();
        if self.multiport && state.ready && state.told != state.peer {
            state.told = state.peer;
            control.push(Message::open(id as u32, state.peer));
        }
    }

    fn serve_receive(&self, index: usize, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let Some(port) = self.ports.get(index) else { return Ok(Served::Left) };
        loop {
            let mut state = port.lock();
            if state.input.is_empty() || !state.open && self.multiport {
                return Ok(Served::Left);
            }
            let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
            let len = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
            let bytes: Vec<u8> = {
                let count = len.min(state.input.len()).min(PIECE);
                state.input.drain(..count).collect()
            };
            let refused = std::mem::take(&mut state.refused);
            drop(state);
            let written = chain.writable.write(&bytes);
            self.counters.received.fetch_add(written as u64, Relaxed);
            queue.complete(chain, written as u32)?;
            if refused {
                port.tell_room();
            }
        }
    }

    fn serve_transmit(&self, index: usize, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let Some(port) = self.ports.get(index) else { return Ok(Served::Left) };
        let mut bytes = vec![0; PIECE];
        while let Some(mut chain) = queue.pop()? {
            let whole = chain.clone();
            let mut sent = port.lock().sent;
            drop(chain.readable.split_front(sent));
            while !chain.readable.is_empty() {
                let len = chain.readable.read(&mut bytes);
                let piece = bytes.get(..len).unwrap_or_default();
                let taken = port.output.offer(piece).min(len);
                sent += taken as u64;
                self.counters.sent.fetch_add(taken as u64, Relaxed);
                if taken < len || queue.interrupted() {
                    self.counters.held_back.fetch_add(1, Relaxed);
                    port.lock().sent = sent;
                    queue.put_back(whole);
                    return Ok(Served::Left);
                }
            }
            port.lock().sent = 0;
            queue.complete(whole, 0)?;
        }
        Ok(Served::Drained)
    }

    fn serve_to_driver(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let mut control = lock(&self.control);
        while let Some(message) = control.messages.front() {
            let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
            if (chain.writable.len() as usize) < message.0.len() {
                return Err(GuestError("a buffer is too small for a control message"));
            }
            let written = chain.writable.write(&message.0);
            control.messages.pop_front();
            queue.complete(chain, written as u32)?;
        }
        Ok(Served::Left)
    }

    fn serve_from_driver(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(mut chain) = queue.pop()? {
            let mut bytes = [0; control::HEAD];
            if chain.readable.read(&mut bytes) < bytes.len() {
                return Err(GuestError("a control message is too short"));
            }
            self.obey(control::decode(bytes));
            queue.complete(chain, 0)?;
        }
        Ok(Served::Drained)
    }

    /// What the driver says (5.3.6.2).
    fn obey(&self, (id, event, value): (u32, u16, u16)) {
        let mut control = lock(&self.control);
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        match (event, self.ports.get(index)) {
            (control::DEVICE_READY, _) => {
                control.messages.clear();
                if value != 0 {
                    (0..self.ports.len() as u32).for_each(|id| control.push(Message::add(id)));
                }
            }
            (control::PORT_READY, Some(port)) if value != 0 => {
                {
                    let mut state = port.lock();
                    (state.ready, state.told) = (true, false);
                }
                if port.is_console() {
                    control.push(Message::console(id));
                    if let Some((columns, rows)) = control.size {
                        control.push(Message::resize(id, columns, rows));
                    }
                }
                if let Some(name) = &port.name {
                    control.push(Message::name(id, name));
                }
                self.tell_peer(&mut control, index, port);
            }
            (control::PORT_OPEN, Some(port)) => {
                port.lock().open = value != 0;
                self.kick(Role::Receive(index));
            }
            _ => {
                self.counters.unknown.fetch_add(1, Relaxed);
            }
        }
        drop(control);
        self.kick(Role::ToDriver);
    }
}

impl VirtioDevice for VirtioConsole {
    fn name(&self) -> &'static str {
        "virtio_console"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let pairs = if self.multiport { self.ports.len().max(1) + 1 } else { 1 };
        vec![QUEUE_SIZE; 2 * pairs]
    }

    fn features(&self) -> u64 {
        let kind = if self.multiport { feature::MULTIPORT } else { feature::SIZE };
        feature::EMERG_WRITE | kind
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = lock(&self.control).size.unwrap_or_default();
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&columns.to_le_bytes());
        bytes[2..4].copy_from_slice(&rows.to_le_bytes());
        bytes[4..].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        virtio::read_config_bytes(&bytes, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, [byte, ..], Some(port)) = (offset, data, self.ports.first()) {
            port.output.write(&[*byte]);
        }
    }

    /// What waits for the guest stays: the one that boots again reads it.
    fn reset(&self) {
        lock(&self.control).messages.clear();
        for port in &self.ports {
            let mut state = port.lock();
            (state.ready, state.open, state.told, state.sent) = (false, false, false, 0);
        }
    }

    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        match self.role(index) {
            Role::Receive(port) => self.serve_receive(port, queue),
            Role::Transmit(port) => self.serve_transmit(port, queue),
            Role::ToDriver => self.serve_to_driver(queue),
            Role::FromDriver => self.serve_from_driver(queue),
        }
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let messages = lock(&self.control).messages.iter().map(|m| m.0.clone()).collect();
        let ports = self.ports.iter().map(|port| port.lock().save()).collect();
        to.put(instance, &ConsoleState { messages, ports });
    }

    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: ConsoleState = from.take(instance)?;
        let fault = |reason: &str| Err(malformed::<ConsoleState>(reason));
        if state.ports.len() != self.ports.len() {
            return fault("the device has another number of ports");
        }
        let sound = |message: &Vec<u8>| (control::HEAD..=control::LEN_MAX).contains(&message.len());
        if state.messages.len() > control::PENDING_MAX || !state.messages.iter().all(sound) {
            return fault("a control message is impossible");
        }
        if state.ports.iter().any(|port| port.input.len() > port::INPUT_MAX) {
            return fault("more bytes wait than a port holds");
        }
        let mut control = lock(&self.control);
        control.messages = state.messages.into_iter().map(Message).collect();
        for (id, (port, saved)) in self.ports.iter().zip(state.ports).enumerate() {
            port.lock().restore(saved);
            self.tell_peer(&mut control, id, port);
            port.tell_room();
        }
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { received, sent, held_back, unknown } = &self.counters;
        vec![
            ("bytes to the guest", received.load(Relaxed)),
            ("bytes from the guest", sent.load(Relaxed)),
            ("times the guest was held back", held_back.load(Relaxed)),
            ("control messages not understood", unknown.load(Relaxed)),
        ]
    }
}
