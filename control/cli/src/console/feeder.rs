//! Input between a reader and a device that takes a few bytes at a time.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use byte_stream::Input;

use crate::Failure;

/// What waits at most for the guest to read it.
const LIMIT: usize = 64 << 10;
/// When a device is asked again that had no room and has not called back since.
const RETRY: Duration = Duration::from_millis(20);

/// Bytes on their way in.
#[derive(Clone)]
pub struct Feeder(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<VecDeque<u8>>,
    /// Changed under the lock. Nobody is fed any more.
    ended: AtomicBool,
    changed: Condvar,
}

impl Feeder {
    /// Starts a thread that feeds the device.
    pub fn start(input: Arc<dyn Input>) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let on_room = shared.clone();
        input.on_room(Box::new(move || on_room.changed.notify_all()));
        let fed = shared.clone();
        super::spawn("console input", move || fed.feed(&*input))?;
        Ok(Self(shared))
    }

    /// Takes what there is room for; the rest is lost. For what a person types: a paused
    /// guest must not keep the escape sequence from being seen.
    pub fn offer(&self, bytes: &[u8]) {
        let mut waiting = self.0.lock();
        let room = LIMIT.saturating_sub(waiting.len()).min(bytes.len());
        waiting.extend(&bytes[..room]);
        self.0.changed.notify_all();
    }

    /// Takes all, and waits for room where there is none.
    pub fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut waiting = self.0.lock();
            while waiting.len() >= LIMIT && !self.0.has_ended() {
                waiting = self.0.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if self.0.has_ended() {
                return;
            }
            let room = (LIMIT - waiting.len()).min(bytes.len());
            waiting.extend(&bytes[..room]);
            bytes = &bytes[room..];
            self.0.changed.notify_all();
        }
    }

    /// Ends the thread, and whoever waits for room.
    pub fn end(&self) {
        let _waiting = self.0.lock();
        self.0.ended.store(true, SeqCst);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    fn feed(&self, input: &dyn Input) {
        let mut waiting = self.lock();
        loop {
            while waiting.is_empty() && !self.has_ended() {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if self.has_ended() {
                return;
            }
            let batch: Vec<u8> = waiting.iter().copied().take(4096).collect();
            // The device calls back when it has room, perhaps with a lock of its own held:
            // ours is not held while it is called.
            drop(waiting);
            let taken = input.receive(&batch).min(batch.len());
            waiting = self.lock();
            let taken_of_it = taken.min(waiting.len());
            waiting.drain(..taken_of_it);
            self.changed.notify_all();
            if taken < batch.len() {
                (waiting, _) = self
                    .changed
                    .wait_timeout(waiting, RETRY)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Takes three bytes at a time.
    struct Narrow(Mutex<Sender<Vec<u8>>>);

    impl Input for Narrow {
        fn receive(&self, bytes: &[u8]) -> usize {
            let n = bytes.len().min(3);
            self.0.lock().unwrap().send(bytes[..n].to_vec()).unwrap();
            n
        }
        fn on_room(&self, _: Box<dyn Fn() + Send + Sync>) {}
    }

    #[test]
    fn all_arrives_in_order() {
        let (sender, receiver) = channel();
        let feeder = Feeder::start(Arc::new(Narrow(Mutex::new(sender)))).unwrap();
        feeder.send(b"hello, ");
        feeder.offer(b"guest");
        let mut got = Vec::new();
        while got.len() < 12 {
            got.extend(receiver.recv().unwrap());
        }
        assert_eq!(got, b"hello, guest");
    }

    #[test]
    fn a_guest_that_reads_nothing_does_not_block_typing() {
        struct Deaf;
        impl Input for Deaf {
            fn receive(&self, _: &[u8]) -> usize {
                0
            }
            fn on_room(&self, _: Box<dyn Fn() + Send + Sync>) {}
        }
        let feeder = Feeder::start(Arc::new(Deaf)).unwrap();
        feeder.offer(&vec![b'x'; 2 * LIMIT]);
        assert_eq!(feeder.0.lock().len(), LIMIT);
        // At the end nobody waits for room, and the device is let go.
        let sender = feeder.clone();
        let thread = std::thread::spawn(move || sender.send(b"x"));
        std::thread::sleep(RETRY);
        feeder.end();
        thread.join().unwrap();
        super::super::until("the thread ends", || Arc::strong_count(&feeder.0) == 1);
    }
}
