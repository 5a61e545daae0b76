//! The threads that serve queues.

use crate::{chain::GuestError, core::Core, lock};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    thread::{self, JoinHandle},
};

#[derive(Debug, Default)]
struct Wanted {
    /// One bit for each queue.
    kicked: u64,
    stop: bool,
}

/// What one thread is asked to do.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

impl Worker {
    pub(crate) fn kick(&self, queues: u64) {
        let mut wanted = lock(&self.wanted);
        let idle = wanted.kicked == 0;
        wanted.kicked |= queues;
        if idle {
            self.changed.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        lock(&self.wanted).stop = true;
        self.changed.notify_one();
    }

    /// The queues that were kicked, once there are some; `None` when it is time to end.
    fn next(&self) -> Option<u64> {
        let idle = |wanted: &mut Wanted| wanted.kicked == 0 && !wanted.stop;
        let wanted = self.changed.wait_while(lock(&self.wanted), idle);
        let mut wanted = wanted.unwrap_or_else(std::sync::PoisonError::into_inner);
        (!wanted.stop).then(|| std::mem::take(&mut wanted.kicked))
    }
}

/// Starts thread number `index` of a device.
pub(crate) fn start(core: &Arc<Core>, index: usize) -> io::Result<JoinHandle<()>> {
    let core = core.clone();
    let name = format!("{}.{index}", core.device.name());
    thread::Builder::new().name(name).spawn(move || {
        while let Some(mut kicked) = core.workers.get(index).and_then(Worker::next) {
            while kicked != 0 {
                serve(&core, kicked.trailing_zeros() as u16);
                kicked &= kicked - 1;
            }
        }
    })
}

/// A panic has been reported by the panic hook. The thread stays, and the driver hears that the
/// device needs a reset, where it would wait for ever otherwise.
fn serve(core: &Core, queue: u16) {
    if catch_unwind(AssertUnwindSafe(|| core.serve(queue))).is_err() {
        core.counters.failures.fetch_add(1, Relaxed);
        core.guest_error(GuestError("the device failed"), core.epoch.load(SeqCst));
    }
}
