//! The virtio socket device (virtio 1.2, section 5.10): streams between programs of the guest and
//! Unix sockets of the host.
//!
//! ```text
//!   host's program --CONNECT 52--> PATH     --+          +-- port 52 of the guest
//!                                              +-- Table --+
//!   host's program listening at PATH_1024   --+          +-- connect to CID 2, port 1024
//! ```
//!
//! A program of the host that connects to the socket `PATH` and says `CONNECT 52` and a newline is
//! connected to port 52 of the guest, and is told `OK` and its own port; it is closed without a
//! word if the guest refuses. A program of the guest that connects to port 1024 of the host
//! (CID 2) is connected to whoever listens at the socket `PATH_1024`. Other addresses, and other
//! types than streams, are answered with a reset.
//!
//! One thread waits for sockets of the host; packets are moved on the device's thread. Both
//! directions are bounded by credit ([`connection`]), and there are at most
//! [`CONNECTIONS_MAX`] connections. None of them outlives a reset of the device or a move to
//! another machine, where the driver is told to reset its own (5.10.6.7).

mod clients;
pub mod connection;
mod host;
pub mod packet;
mod table;

pub use table::CONNECTIONS_MAX;

use clients::Clients;
use host::{Poller, Token};
use packet::HEADER;
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};
use saved_state::{Error, Reader, Schema, Writer};
use serde::{Deserialize, Serialize};
use std::{
    fmt, io,
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use table::{PIECE, Table};
use virtio::{GuestError, Handle, Queue, Served, VirtioDevice};

/// VIRTIO_VSOCK_F_STREAM (5.10.3).
pub const STREAM: u64 = 1 << 0;

const DEVICE_TYPE: u16 = 19;
/// PCI's class: communications controller, other.
const CLASS: u32 = 0x07_80_00;
/// The queues (5.10.2), from the driver's side.
pub const RECEIVE: u16 = 0;
pub const TRANSMIT: u16 = 1;
pub const EVENT: u16 = 2;
const QUEUE_SIZE: u16 = 256;
const EVENT_SIZE: u16 = 16;
/// After which time a client is taken whom the process had no file descriptor for.
const AGAIN: Duration = Duration::from_millis(100);
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;

/// What the device is made of.
#[derive(Debug)]
pub struct Config {
    /// The guest's address: 3 or more.
    pub cid: u32,
    /// Where programs of the host come to.
    pub listener: UnixListener,
    /// What sockets of programs that listen in the host are called, before `_` and the port.
    pub base: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// Of the guest then; it is told the one that it has now.
    pub cid: u32,
}

impl Schema for VsockState {
    const KIND: &'static str = "virtio-vsock";
    const VERSION: u16 = 1;
}

/// Shared with the thread that waits.
struct Shared {
    table: Mutex<Table>,
    poller: Arc<Poller>,
    bell: OwnedFd,
    stop: AtomicBool,
    /// The driver is ready.
    live: AtomicBool,
    handle: OnceLock<Handle>,
}

pub struct VirtioVsock {
    shared: Arc<Shared>,
    cid: u32,
    /// The driver is to be told that all connections are gone.
    moved: AtomicBool,
    resets: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for VirtioVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioVsock").field("cid", &self.cid).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioVsock {
    /// Begins to listen.
    ///
    /// # Errors
    /// If the host has no thread or no file for it.
    pub fn new(config: Config) -> io::Result<Arc<Self>> {
        let Config { cid, listener, base } = config;
        let poller = Arc::new(Poller::new()?);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        listener.set_nonblocking(true)?;
        poller.watch(&listener, Token::Listener)?;
        poller.watch(&bell, Token::Bell)?;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(cid.into(), base, poller.clone())),
            poller,
            bell,
            stop: AtomicBool::new(false),
            live: AtomicBool::new(false),
            handle: OnceLock::new(),
        });
        let thread = {
            let shared = shared.clone();
            let builder = thread::Builder::new().name("vsock sockets".into());
            builder.spawn(move || shared.wait(&listener))?
        };
        Ok(Arc::new(Self {
            shared,
            cid,
            moved: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            thread: Some(thread),
        }))
    }

    fn serve_receive(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let mut bytes = vec![0; PIECE];
        let mut table = lock(&self.shared.table);
        while !table.is_quiet() {
            let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
            let room = chain.writable.len().saturating_sub(HEADER as u64);
            let room = usize::try_from(room).unwrap_or(PIECE).min(PIECE);
            let Some(bytes) = bytes.get_mut(..room).filter(|bytes| !bytes.is_empty()) else {
                return Err(GuestError("a buffer has no room for a packet"));
            };
            let full = table.is_full();
            let Some(header) = table.next(bytes) else {
                queue.put_back(chain);
                break;
            };
            if full {
                self.shared.kick(TRANSMIT);
            }
            let mut written = chain.writable.write(&header.encode());
            written += chain.writable.write(bytes.get(..header.len as usize).unwrap_or_default());
            queue.complete(chain, written as u32)?;
        }
        Ok(Served::Left)
    }

    fn serve_transmit(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let mut piece = vec![0; PIECE];
        let mut table = lock(&self.shared.table);
        let served = loop {
            if table.is_full() {
                break Served::Left;
            }
            let Some(mut chain) = queue.pop()? else { break Served::Drained };
            table.receive(&mut chain, &mut piece)?;
            queue.complete(chain, 0)?;
        };
        if !table.is_quiet() {
            self.shared.kick(RECEIVE);
        }
        Ok(served)
    }

    fn serve_event(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while self.moved.load(SeqCst) {
            let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
            let event = TRANSPORT_RESET.to_le_bytes();
            if chain.writable.len() < event.len() as u64 {
                return Err(GuestError("a buffer is too small for an event"));
            }
            let written = chain.writable.write(&event);
            self.moved.store(false, SeqCst);
            self.resets.fetch_add(1, Relaxed);
            queue.complete(chain, written as u32)?;
        }
        Ok(Served::Left)
    }
}

impl Drop for VirtioVsock {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        // It fails only when it has been rung 2^64 times.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
        // The thread itself may be the last that has the device, while it kicks a queue.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn kick(&self, queue: u16) {
        if let Some(handle) = self.handle.get() {
            handle.kick(queue);
        }
    }

    /// Waits for sockets of the host, until the device ends.
    fn wait(&self, listener: &UnixListener) {
        let mut clients = Clients::default();
        // Whether somebody has come, or stands there for whom the host has no file yet.
        let mut knocked = false;
        while !self.stop.load(SeqCst) {
            for (token, ready) in self.poller.wait(knocked.then_some(AGAIN)) {
                match token {
                    Token::Bell => {}
                    Token::Listener => knocked = true,
                    Token::Client(number) => {
                        if let Some((stream, port)) = clients.look(number) {
                            self.poller.forget(&stream);
                            // Without a driver there is nobody who could be asked.
                            if self.live.load(SeqCst) {
                                lock(&self.table).ask(stream, port);
                            }
                        }
                    }
                    Token::Connection(key) => lock(&self.table).socket(key, ready),
                }
            }
            if knocked {
                knocked = !clients.welcome(listener, &self.poller);
            }
            if !lock(&self.table).is_quiet() {
                self.kick(RECEIVE);
            }
        }
    }
}

impl VirtioDevice for VirtioVsock {
    fn name(&self) -> &'static str {
        "virtio_vsock"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_SIZE]
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn attach(&self, handle: Handle) {
        let _ = self.shared.handle.set(handle);
    }

    /// The guest's address (5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = u64::from(self.cid).to_le_bytes();
        virtio::read_config_bytes(&bytes, offset, data);
    }

    fn activate(&self, _: u64) {
        self.shared.live.store(true, SeqCst);
    }

    fn reset(&self) {
        self.shared.live.store(false, SeqCst);
        self.moved.store(false, SeqCst);
        lock(&self.shared.table).clear();
    }

    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        match index {
            RECEIVE => self.serve_receive(queue),
            TRANSMIT => self.serve_transmit(queue),
            _ => self.serve_event(queue),
        }
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        to.put(instance, &VsockState { cid: self.cid });
    }

    /// Connections do not move: the host's ends of them are in another process.
    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let _: VsockState = from.take(instance)?;
        self.shared.live.store(false, SeqCst);
        lock(&self.shared.table).clear();
        self.moved.store(true, SeqCst);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let table = lock(&self.shared.table);
        let now = table.counters;
        vec![
            ("connections now", table.len() as u64),
            ("connections by the host", now.by_host),
            ("connections by the guest", now.by_guest),
            ("connections refused", now.refused),
            ("bytes to the guest", now.sent),
            ("bytes from the guest", now.received),
            ("packets out of place", now.misfits),
            ("transport resets", self.resets.load(Relaxed)),
        ]
    }
}
