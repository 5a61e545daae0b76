//! One thread per vCPU.
//!
//! ```text
//!            Run                      why
//!   parked ------> running/idle -----------> parked, and the owner is told
//! ```
//!
//! While it is parked the thread serves the owner's commands, so that the vCPU is only ever
//! touched by its own thread, and only between two instructions.

use crate::{host::BoardHost, obituary::Obituary, owner::Request};
use engine::{DebugExit, Exit, Kick, Vcpu};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

/// Why a vCPU parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The owner asked, or the guest asked for something that the owner is about to do.
    Asked,
    TripleFault,
    Debug(DebugExit),
    Failed(String),
}

type Work = Box<dyn FnOnce(&mut dyn Vcpu, &mut BoardHost) + Send>;

enum Command {
    Run,
    With(Work),
}

/// What other threads may do to a vCPU at any time.
pub(crate) struct Waker {
    kick: Arc<dyn Kick>,
    stop: AtomicBool,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Waker {
    pub(crate) fn new(kick: Arc<dyn Kick>) -> Arc<Self> {
        let (stop, woken, changed) = Default::default();
        Arc::new(Self { kick, stop, woken, changed })
    }

    /// Something may be pending.
    pub(crate) fn wake(&self) {
        self.kick.notify();
        self.rouse();
    }

    fn rouse(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn stop(&self) {
        self.stop.store(true, SeqCst);
        self.kick.stop();
        self.rouse();
    }

    /// Until somebody wakes it; a wake since the last sleep counts.
    fn sleep(&self) {
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let awake = |woken: &mut bool| !*woken;
        let woken = self.changed.wait_while(woken, awake);
        *woken.unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// The owner's end of a vCPU's thread.
pub(crate) struct VcpuThread {
    commands: Option<Sender<Command>>,
    pub(crate) waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread, parked.
    pub(crate) fn start(
        id: u32,
        vcpu: Box<dyn Vcpu>,
        host: BoardHost,
        waker: Arc<Waker>,
        owner: Sender<Request>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let thread = Thread { id, vcpu, host, waker: waker.clone(), inbox, owner };
        let thread =
            std::thread::Builder::new().name(format!("vcpu{id}")).spawn(move || thread.serve())?;
        Ok(Self { commands: Some(commands), waker, thread: Some(thread) })
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A thread that died has told the owner so.
            drop(commands.send(command));
        }
    }

    pub(crate) fn run(&self) {
        self.waker.stop.store(false, SeqCst);
        self.send(Command::Run);
    }

    /// The thread parks soon, and says so unless it is parked already.
    pub(crate) fn stop(&self) {
        self.waker.stop();
    }

    /// Guest time stands, on a vCPU that is parked. One that cannot have it so lives with a jump.
    pub(crate) fn hold_time(&self) {
        drop(self.with(|vcpu, _| vcpu.hold_time()));
    }

    /// Guest time goes on.
    pub(crate) fn release_time(&self) {
        drop(self.with(|vcpu, _| vcpu.release_time()));
    }

    /// Does `work` on the vCPU, which must be parked; `None` if its thread died.
    pub(crate) fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Vcpu, &mut BoardHost) -> R + Send + 'static,
    ) -> Option<R> {
        let (tx, rx) = channel();
        self.send(Command::With(Box::new(move |vcpu, host| {
            // The asker waits below.
            drop(tx.send(work(vcpu, host)));
        })));
        rx.recv().ok()
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.commands = None;
        self.waker.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for VcpuThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VcpuThread")
    }
}

struct Thread {
    id: u32,
    vcpu: Box<dyn Vcpu>,
    host: BoardHost,
    waker: Arc<Waker>,
    inbox: Receiver<Command>,
    owner: Sender<Request>,
}

impl Thread {
    fn serve(mut self) {
        let why = Why::Failed(format!("the thread of vCPU {} panicked", self.id));
        let _obituary = Obituary::new(self.owner.clone(), Request::Parked(self.id, why));
        while let Ok(command) = self.inbox.recv() {
            match command {
                Command::With(work) => work(&mut *self.vcpu, &mut self.host),
                Command::Run => {
                    let why = self.run();
                    if self.owner.send(Request::Parked(self.id, why)).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn run(&mut self) -> Why {
        loop {
            self.host.update_steal();
            let exit = self.vcpu.run(&mut self.host);
            self.host.exits.runs += 1;
            let asked = self.waker.stop.load(SeqCst) || self.host.power_requested();
            if asked && matches!(exit, Ok(Exit::Idle | Exit::Stopped)) {
                return Why::Asked;
            }
            match exit {
                Ok(Exit::Idle) => {
                    self.host.exits.idle += 1;
                    self.waker.sleep();
                }
                Ok(Exit::Stopped | Exit::Retired) => {}
                Ok(Exit::Shutdown) => return Why::TripleFault,
                Ok(Exit::Debug(exit)) => return Why::Debug(exit),
                Ok(Exit::Unhandled(what)) => return Why::Failed(what.into()),
                Err(error) => return Why::Failed(with_source(&error)),
            }
        }
    }
}

/// An error and what caused it, on one line.
pub(crate) fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}
