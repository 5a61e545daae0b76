//! The gdb stub of a running machine: GDB's remote serial protocol on a loopback TCP port.
//!
//! ```text
//!   gdb ==TCP==> reader thread --bytes--+
//!                                       +--> server thread: protocol, target --> machine::Handle
//!   machine's owner ------------stops---+
//! ```
//!
//! Each vCPU is a thread: vCPU 0 is thread 1. Addresses are linear, translated by the paging of
//! the selected vCPU; `monitor xp` reads physical memory. Breakpoints of both kinds and
//! watchpoints are the engine's ([`engine::GuestDebug`]), so nothing is written into guest
//! memory, and an engine with few of them refuses more.
//!
//! The first byte of a debugger pauses the machine. Detaching removes all breakpoints and lets
//! the machine go on, and a connection that breaks counts as detaching; `kill` ends the machine.
//! The debugger may then connect again. One session is served at a time; others wait.
//!
//! What it cannot do: GDB takes every guest for 64-bit code, so that it disassembles 16- and
//! 32-bit code wrongly, and where CS has a base it does not recognise its breakpoints.

mod arch;
mod breakpoints;
mod inbox;
mod memory;
mod monitor;
mod registers;
mod resume;
mod session;
mod stream;
mod target;

use machine::Handle;
use std::{
    fmt, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// Listens at `address` and serves debuggers of the machine, until it is dropped. It neither
/// starts nor pauses the machine: who wants it to wait for the debugger does not resume it.
pub fn serve(address: SocketAddr, handle: Handle) -> io::Result<Server> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let text = format!("gdb cannot be served at {address}: {error}; give --gdb another port");
        io::Error::new(error.kind(), text)
    })?;
    let address = listener.local_addr()?;
    let waker = TcpStream::from(OwnedFd::from(listener.try_clone()?));
    let current = Arc::new(Current::default());
    let of_thread = current.clone();
    let thread = std::thread::Builder::new()
        .name("gdb".into())
        .spawn(move || accept(&listener, &handle, &of_thread))?;
    Ok(Server { address, waker, current, thread: Some(thread) })
}

/// A port on which debuggers are served. Dropping it ends a session as if gdb had detached.
pub struct Server {
    address: SocketAddr,
    /// The listening socket: shutting it down ends `accept`, on Linux.
    waker: TcpStream,
    current: Arc<Current>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// With the port that the host chose, if it was left to it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.current.end();
        // It fails only if nobody listens any more.
        drop(self.waker.shutdown(Shutdown::Both));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

/// The session that is served, for whoever ends the server.
#[derive(Default)]
struct Current(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    ended: bool,
    stream: Option<TcpStream>,
}

impl Current {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if the server has ended.
    fn begin(&self, stream: &TcpStream) -> bool {
        let mut slot = self.lock();
        slot.stream = stream.try_clone().ok();
        !slot.ended && slot.stream.is_some()
    }

    fn end(&self) {
        let mut slot = self.lock();
        slot.ended = true;
        if let Some(stream) = slot.stream.take() {
            // It may be closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

fn accept(listener: &TcpListener, handle: &Handle, current: &Current) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Of one connection, not of the socket that listens.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => return,
        };
        if !current.begin(&stream) {
            return;
        }
        // A peer must not end the server by a fault of the protocol library: the panic hook
        // reports, the machine goes on.
        let served = catch_unwind(AssertUnwindSafe(|| session::serve(&stream, handle)));
        if served.is_err() {
            let _ = handle.no_debugger();
            let _ = handle.resume();
        }
        current.lock().stream = None;
    }
}
