//! What carries the guest's console: the terminal, a pseudo-terminal, a socket, a file.
//!
//! A device is called on a vCPU's thread, so nothing here blocks it: output goes into a
//! [`queue::Queue`] that a thread writes out, input through a [`feeder::Feeder`].

mod feeder;
mod file;
mod panic_watch;
mod pty;
mod queue;
mod stdio;
mod unix;

use std::{
    io::Write,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use byte_stream::{Input, Null, Output};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use vm_spec::Console as Spec;

use crate::{Failure, monitor::Control};
pub use panic_watch::PanicWatch;
use queue::Queue;

/// How long the last output may take to be written when the machine has ended.
const DRAIN: Duration = Duration::from_secs(2);

/// An opened console. Its threads end when it is dropped, but for one that reads a terminal.
pub struct Console {
    /// `None` for no console at all.
    queue: Option<Arc<Queue>>,
    reader: Reader,
}

/// Where input comes from.
enum Reader {
    None,
    Stdin,
    Pty(pty::Pty),
    Unix(unix::Server),
}

impl Console {
    /// Opens what the VM's description names; `option` is how the operator said it.
    pub fn open(option: &str, spec: &Spec) -> Result<Self, Failure> {
        match spec {
            Spec::None => Ok(Self { queue: None, reader: Reader::None }),
            Spec::Stdio => Self::new(std::io::stdout(), Reader::Stdin),
            Spec::File(path) => Self::new(file::open(option, path)?, Reader::None),
            Spec::Pty => {
                let pty = pty::Pty::open(option)?;
                Self::new(pty.writer()?, Reader::Pty(pty))
            }
            Spec::Unix(path) => {
                let server = unix::Server::open(option, path)?;
                Self::new(server.writer(), Reader::Unix(server))
            }
        }
    }

    fn new(sink: impl Write + Send + 'static, reader: Reader) -> Result<Self, Failure> {
        let queue = Arc::new(Queue::default());
        let served = queue.clone();
        spawn("console output", move || served.serve(sink))?;
        Ok(Self { queue: Some(queue), reader })
    }

    /// Where the guest's device writes to.
    pub fn output(&self) -> Arc<dyn Output> {
        match &self.queue {
            Some(queue) => queue.clone(),
            None => Arc::new(Null),
        }
    }

    /// Begins to carry input to the guest's device.
    pub fn start(
        &mut self,
        input: Arc<dyn Input>,
        control: Arc<dyn Control>,
    ) -> Result<(), Failure> {
        match (&mut self.reader, &self.queue) {
            (Reader::Stdin, Some(queue)) => stdio::start(input, queue.clone(), control),
            (Reader::Pty(pty), _) => pty.start(input),
            (Reader::Unix(server), _) => server.start(input),
            _ => Ok(()),
        }
    }

    /// Begins to carry input to a device that no operator talks to.
    pub fn start_channel(&mut self, input: Arc<dyn Input>) -> Result<(), Failure> {
        match &mut self.reader {
            Reader::Pty(pty) => pty.start(input),
            Reader::Unix(server) => server.start(input),
            Reader::None | Reader::Stdin => Ok(()),
        }
    }

    /// Whether the other end is always there, as far as is known.
    pub fn is_always_there(&self) -> bool {
        !matches!(self.reader, Reader::Unix(_))
    }

    /// Lets the last output be written.
    pub fn drain(&self) {
        if let Some(queue) = &self.queue {
            queue.drain(DRAIN);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.end();
        }
    }
}

/// A stream that ends when the first is dropped.
fn ends() -> Result<(UnixStream, UnixStream), Failure> {
    UnixStream::pair().map_err(|error| {
        let why = crate::report::os_reason(&error);
        Failure::host(format!("console: {why}; raise `ulimit -n`"))
    })
}

/// Waits until something can be read; false if the stream has ended.
fn wait(from: &impl AsFd, ended: &UnixStream) -> bool {
    loop {
        let mut fds = [PollFd::new(from, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return fds[1].revents().is_empty(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Starts a thread, which may go on until the process ends.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    match thread::Builder::new().name(name.into()).spawn(work) {
        Ok(_) => Ok(()),
        Err(e) => Err(Failure::host(format!(
            "console: no thread can be started ({e}); lower the load of this host"
        ))),
    }
}

#[cfg(test)]
fn until(what: &str, done: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(std::time::Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}
