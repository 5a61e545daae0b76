//! Holds vCPUs outside KVM_RUN while the layout changes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Callbacks run outside the gate, so a callback may close it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closed: bool,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(
        &'g self,
        state: MutexGuard<'g, State>,
        busy: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'g, State> {
        self.moved.wait_while(state, busy).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self) -> Inside<'_> {
        self.wait(self.lock(), |s| s.closed).inside += 1;
        Inside(self)
    }

    /// Closing comes before kicking, so that who is kicked out cannot slip back in.
    pub(crate) fn close(&self, kick_all: impl FnOnce()) -> Closed<'_> {
        self.wait(self.lock(), |s| s.closed).closed = true;
        kick_all();
        drop(self.wait(self.lock(), |s| s.inside > 0));
        Closed(self)
    }
}

#[must_use]
pub(crate) struct Inside<'g>(&'g Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.inside -= 1;
        // Nobody waits for the last to leave but a closer.
        if state.closed {
            self.0.moved.notify_all();
        }
    }
}

#[must_use]
pub(crate) struct Closed<'g>(&'g Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = false;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    #[test]
    fn nobody_enters_while_it_is_closed() {
        let gate = Gate::default();
        let (entered, opened) = (AtomicBool::new(false), AtomicBool::new(false));
        let closed = gate.close(|| ());
        std::thread::scope(|s| {
            s.spawn(|| {
                let _inside = gate.enter();
                assert!(opened.load(SeqCst));
                entered.store(true, SeqCst);
            });
            std::thread::yield_now();
            assert!(!entered.load(SeqCst));
            opened.store(true, SeqCst);
            drop(closed);
        });
        assert!(entered.load(SeqCst));
    }

    #[test]
    fn closing_waits_until_all_have_left() {
        let gate = Gate::default();
        let left = AtomicBool::new(false);
        let inside = gate.enter();
        std::thread::scope(|s| {
            let closer = s.spawn(|| {
                let _closed = gate.close(|| ());
                assert!(left.load(SeqCst));
            });
            left.store(true, SeqCst);
            drop(inside);
            closer.join().unwrap();
        });
    }
}
