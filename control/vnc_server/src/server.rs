//! The server's threads, and what they share.

use crate::{
    auth::Password,
    client,
    picture::{Generation, Picture},
    pixel::PixelFormat,
    wire::{Encodings, Rect},
};
use display::{Frame, Seat};
use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// Clients at a time.
pub const CLIENTS_MAX: usize = 16;
/// Of those who have not introduced themselves.
const NEWCOMERS_MAX: usize = 8;

/// Between two drawings of a screen that changes, and of one that has not for [`QUIET`].
const FRAME: Duration = Duration::from_millis(33);
const QUIET_FRAME: Duration = Duration::from_millis(80);
const QUIET: u32 = 30;

/// Where clients come to, and who may.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port 0 lets the host choose one.
    pub listen: SocketAddr,
    pub password: Option<Password>,
    /// What clients show as the title.
    pub name: String,
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

pub(crate) struct Shared {
    pub(crate) seat: Seat,
    pub(crate) password: Option<Password>,
    pub(crate) name: String,
    state: Mutex<State>,
    /// The picture changed, a client wants something, or it is over.
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("seat", &self.seat).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) picture: Picture,
    pub(crate) stop: bool,
    pub(crate) clients: BTreeMap<u64, Client>,
    last_id: u64,
}

/// A client as both of its threads see it.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    /// It introduced itself.
    pub(crate) known: bool,
    pub(crate) wishes: Wishes,
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) format: PixelFormat,
    pub(crate) encodings: Encodings,
    /// The part that it waits for.
    pub(crate) request: Option<Rect>,
    /// The part that it wants whether or not it changed.
    pub(crate) anew: Option<Rect>,
    /// It has not been sent the colours of its format.
    pub(crate) map: bool,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Draws the screen; whether it changed.
    fn draw(&self, frame: &mut Frame) -> bool {
        self.seat.render(frame);
        let changed = self.lock().picture.update(frame);
        if changed {
            self.notify();
        }
        changed
    }

    /// The picture's size, which is not known before it was drawn once.
    pub(crate) fn size(&self) -> (u16, u16) {
        let never: Generation = 0;
        if self.lock().picture.generation() == never {
            self.draw(&mut Frame::default());
        }
        self.lock().picture.size()
    }

    /// Draws as long as somebody waits for a picture.
    fn capture(&self) {
        let mut frame = Frame::default();
        let mut unchanged = 0u32;
        loop {
            let mut state = self.lock();
            while !state.stop && !state.clients.values().any(|c| c.wishes.request.is_some()) {
                state = self.wait(state);
            }
            if state.stop {
                return;
            }
            drop(state);
            let changed = self.draw(&mut frame);
            unchanged = if changed { 0 } else { unchanged.saturating_add(1) };
            thread::sleep(if unchanged < QUIET { FRAME } else { QUIET_FRAME });
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.lock().stop {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                // A client that was gone at once, or no descriptor left: not for ever.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) {
        let Ok(kept) = stream.try_clone() else { return };
        let mut state = self.lock();
        let newcomers = state.clients.values().filter(|client| !client.known).count();
        if newcomers >= NEWCOMERS_MAX || state.clients.len() >= CLIENTS_MAX {
            return;
        }
        state.last_id += 1;
        let id = state.last_id;
        let wishes = Wishes::default();
        state.clients.insert(id, Client { stream: kept, known: false, wishes });
        drop(state);
        let shared = self.clone();
        let begun = thread::Builder::new().name("vnc client".into()).spawn(move || {
            // How a client ends concerns nobody but itself.
            drop(client::serve(&shared, id, stream));
            shared.remove(id);
        });
        if begun.is_err() {
            self.remove(id);
        }
    }

    pub(crate) fn remove(&self, id: u64) {
        if let Some(client) = self.lock().clients.remove(&id) {
            // Gone already, perhaps.
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        self.notify();
    }
}

/// Starts a server for this guest.
///
/// # Errors
/// If it cannot listen there, or the host has no threads for it.
pub fn serve(config: Config, seat: Seat) -> io::Result<Server> {
    let listener = TcpListener::bind(config.listen)?;
    let address = listener.local_addr()?;
    let shared = Arc::new(Shared {
        seat,
        password: config.password,
        name: config.name,
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let mut server = Server { shared: shared.clone(), address, threads: Vec::new() };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.into()).spawn(work)
    };
    let drawing = shared.clone();
    server.threads.push(spawn("vnc capture", Box::new(move || drawing.capture()))?);
    server.threads.push(spawn("vnc", Box::new(move || shared.accept(&listener)))?);
    Ok(server)
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Clients that introduced themselves.
    pub fn clients(&self) -> usize {
        self.shared.lock().clients.values().filter(|client| client.known).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stop = true;
        for client in state.clients.values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.notify();
        // Whoever accepts is woken by one more.
        let woken = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        for thread in self.threads.drain(..) {
            if woken.is_ok() || thread.thread().name() != Some("vnc") {
                // A panic of the thread has been reported by the panic hook.
                drop(thread.join());
            }
        }
    }
}
