//! What the thread of a queue waits for.

use crate::lock;
use std::sync::{
    Condvar, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering::SeqCst},
};

#[derive(Debug, Default)]
pub(crate) struct Worker {
    kicked: Mutex<bool>,
    changed: Condvar,
    ending: AtomicBool,
}

impl Worker {
    pub(crate) fn kick(&self) {
        *lock(&self.kicked) = true;
        self.changed.notify_one();
    }

    pub(crate) fn end(&self) {
        self.ending.store(true, SeqCst);
        self.kick();
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(SeqCst)
    }

    /// Waits for a kick; false when it is time to end.
    pub(crate) fn next(&self) -> bool {
        let kicked = self.changed.wait_while(lock(&self.kicked), |kicked| !*kicked);
        *kicked.unwrap_or_else(PoisonError::into_inner) = false;
        !self.is_ending()
    }
}
