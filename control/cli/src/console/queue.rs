//! Output between a device, which may not wait, and a sink, which may make one wait.

use std::{
    io::Write,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use byte_stream::Output;

/// What waits at most for a slow sink; beyond it output is lost.
const LIMIT: usize = 4 << 20;

/// The same of a device that holds its guest back.
const HELD_BACK: usize = 64 << 10;

/// Bytes on their way out.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    space: OnceLock<SpaceCallback>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("state", &self.state).finish_non_exhaustive()
    }
}

type SpaceCallback = Box<dyn Fn() + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The operator reads something else now.
    held: bool,
    writing: bool,
    broken: bool,
    /// Nothing more comes.
    ended: bool,
    /// Somebody was refused and is to hear of room.
    refused: bool,
    dropped: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes, to the end; when the sink fails, throws away what comes.
    pub fn serve(&self, mut sink: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            state.writing = false;
            self.changed.notify_all();
            while !state.ended && (state.waiting.is_empty() || state.held) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.waiting.is_empty() {
                return;
            }
            batch.clear();
            std::mem::swap(&mut batch, &mut state.waiting);
            state.writing = true;
            let refused = std::mem::take(&mut state.refused);
            drop(state);
            if let (true, Some(callback)) = (refused, self.space.get()) {
                callback();
            }
            if sink.write_all(&batch).and_then(|()| sink.flush()).is_err() {
                self.lock().broken = true;
            }
        }
    }

    /// Stops writing, once the batch being written is out; or begins again.
    pub fn hold(&self, held: bool) {
        let mut state = self.lock();
        state.held = held;
        self.changed.notify_all();
        let end = Instant::now() + Duration::from_secs(1);
        while held && state.writing && Instant::now() < end {
            let wait = end.saturating_duration_since(Instant::now());
            (state, _) =
                self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until everything is written, or the time is over.
    pub fn drain(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = self.lock();
        state.held = false;
        self.changed.notify_all();
        while (state.writing || !state.waiting.is_empty()) && !state.broken {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (state, _) =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread that writes ends once it has written what there is.
    pub fn end(&self) {
        let mut state = self.lock();
        (state.ended, state.held) = (true, false);
        self.changed.notify_all();
    }

    /// Bytes that were lost because the sink was too slow.
    #[cfg(test)]
    fn dropped(&self) -> u64 {
        self.lock().dropped
    }
}

impl Output for Queue {
    fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.broken || state.ended {
            return;
        }
        let room = LIMIT.saturating_sub(state.waiting.len()).min(bytes.len());
        let (taken, lost) = bytes.split_at(room);
        state.waiting.extend_from_slice(taken);
        state.dropped = state.dropped.saturating_add(lost.len() as u64);
        self.changed.notify_all();
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        if state.broken || state.ended {
            return bytes.len();
        }
        let room = HELD_BACK.saturating_sub(state.waiting.len()).min(bytes.len());
        state.waiting.extend(bytes.iter().take(room));
        state.refused |= room < bytes.len();
        self.changed.notify_all();
        room
    }

    /// The first callback stays: a carrier has one device that waits for it.
    fn on_space(&self, callback: SpaceCallback) {
        let _ = self.space.set(callback);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn served(sink: impl Write + Send + 'static) -> Arc<Queue> {
        let queue = Arc::new(Queue::default());
        let server = queue.clone();
        std::thread::spawn(move || server.serve(sink));
        queue
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn everything_arrives_in_order() {
        let sink = Sink::default();
        let queue = served(sink.clone());
        let mut want = Vec::new();
        for n in 0..1000u32 {
            queue.write(&n.to_le_bytes());
            want.extend_from_slice(&n.to_le_bytes());
        }
        queue.drain(LONG);
        assert_eq!(*sink.0.lock().unwrap(), want);
    }

    #[test]
    fn held_output_comes_later() {
        let sink = Sink::default();
        let queue = served(sink.clone());
        queue.hold(true);
        queue.write(b"later");
        assert_eq!(*sink.0.lock().unwrap(), b"");
        queue.drain(LONG);
        assert_eq!(*sink.0.lock().unwrap(), b"later");
    }

    #[test]
    fn at_the_end_what_there_is_is_written() {
        let sink = Sink::default();
        let queue = Arc::new(Queue::default());
        let (server, to) = (queue.clone(), sink.clone());
        queue.write(b"last");
        queue.hold(true);
        let thread = std::thread::spawn(move || server.serve(to));
        queue.end();
        thread.join().unwrap();
        queue.write(b"late");
        assert_eq!((queue.offer(b"late"), &**sink.0.lock().unwrap()), (4, &b"last"[..]));
    }

    #[test]
    fn a_stuck_sink_loses_and_does_not_block() {
        let queue = Queue::default();
        queue.write(&vec![0; LIMIT]);
        queue.write(b"lost");
        assert_eq!(queue.dropped(), 4);
    }

    #[test]
    fn who_holds_its_guest_back_loses_nothing() {
        let sink = Sink::default();
        let queue = served(sink.clone());
        queue.hold(true);
        let (told, hears) = std::sync::mpsc::channel();
        let told = Mutex::new(told);
        queue.on_space(Box::new(move || told.lock().unwrap().send(()).unwrap()));
        let all: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let mut at = queue.offer(&all);
        assert_eq!((at, queue.offer(&all[at..])), (HELD_BACK, 0));
        queue.hold(false);
        while at < all.len() {
            match queue.offer(&all[at..]) {
                0 => hears.recv_timeout(LONG).unwrap(),
                taken => at += taken,
            }
        }
        queue.drain(LONG);
        assert!(*sink.0.lock().unwrap() == all && queue.dropped() == 0);
    }

    #[test]
    fn a_broken_sink_ends_the_waiting() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let queue = served(Broken);
        queue.write(b"x");
        queue.drain(LONG);
        queue.write(b"y");
        queue.drain(LONG);
    }
}
