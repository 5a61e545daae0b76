//! The thread that serves what a domain notifies: its xenstore and its console.

use device::Device;
use saved_state::{Error, Reader, Writer};
use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

#[derive(Debug)]
struct Work {
    store: bool,
    console: bool,
    paused: bool,
    busy: bool,
    over: bool,
}

/// What the thread is to do.
#[derive(Debug)]
pub(crate) struct Service {
    work: Mutex<Work>,
    changed: Condvar,
}

/// What the thread calls.
pub(crate) trait Served: Send + Sync {
    /// Answers requests in xenstore; true if it is to be called again.
    fn serve_store(&self) -> bool;
    fn serve_console(&self);
}

impl Service {
    /// Paused.
    pub(crate) fn new() -> Arc<Self> {
        let (store, console, busy, over) = Default::default();
        let work = Mutex::new(Work { store, console, busy, over, paused: true });
        Arc::new(Self { work, changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ring_store(&self) {
        self.lock().store = true;
        self.changed.notify_all();
    }

    pub(crate) fn ring_console(&self) {
        self.lock().console = true;
        self.changed.notify_all();
    }

    fn finish(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    fn run(&self, served: &dyn Served) {
        let idle = |work: &mut Work| !work.over && (work.paused || !(work.store || work.console));
        loop {
            let work = self.changed.wait_while(self.lock(), idle);
            let mut work = work.unwrap_or_else(PoisonError::into_inner);
            if work.over {
                return;
            }
            let (store, console) = (work.store, work.console);
            (work.store, work.console, work.busy) = (false, false, true);
            drop(work);
            let done = Done(self);
            if console {
                served.serve_console();
            }
            let more = store && served.serve_store();
            drop(done);
            if more {
                self.ring_store();
            }
        }
    }
}

impl Device for Service {
    fn name(&self) -> String {
        "xenstore".into()
    }

    /// Whoever starts the next domain makes its tree.
    fn reset(&self) {}

    fn pause(&self) {
        let mut work = self.lock();
        work.paused = true;
        drop(self.changed.wait_while(work, |work| work.busy));
    }

    fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    fn save(&self, _: &mut Writer) {}

    fn restore(&self, _: &mut Reader) -> Result<(), Error> {
        // Whatever there was to do: it is looked for again.
        let mut work = self.lock();
        (work.store, work.console) = (true, true);
        Ok(())
    }
}

/// Whoever waits for a pause goes on even after a panic.
struct Done<'a>(&'a Service);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.lock().busy = false;
        self.0.changed.notify_all();
    }
}

/// The thread, until it is dropped.
#[derive(Debug)]
pub(crate) struct ServiceThread {
    service: Arc<Service>,
    thread: Option<JoinHandle<()>>,
}

impl ServiceThread {
    /// `obituary` is dropped when the thread ends, however it does.
    pub(crate) fn start(
        service: Arc<Service>,
        served: Arc<dyn Served>,
        obituary: impl Send + 'static,
    ) -> io::Result<Self> {
        let of_thread = service.clone();
        let thread = thread::Builder::new().name("xenstore".into()).spawn(move || {
            let _obituary = obituary;
            of_thread.run(&*served);
        })?;
        Ok(Self { service, thread: Some(thread) })
    }
}

impl Drop for ServiceThread {
    fn drop(&mut self) {
        self.service.finish();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}
