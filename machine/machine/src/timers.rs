//! One thread that fires every timer of the board, by guest time.

use crate::{clock::GuestClock, obituary::Obituary, owner::Request};
use device::{Clock, Fire, Timer, Timers};
use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread::JoinHandle,
    time::Duration,
};

/// Creates timers, and owns their thread.
pub struct TimerThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Arc<GuestClock>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// A timer has done what it does.
    fired: Condvar,
}

#[derive(Default)]
struct Queue {
    /// By time, then timer.
    armed: BTreeSet<(u64, usize)>,
    timers: Vec<Slot>,
    /// One of them is at it.
    firing: bool,
    ended: bool,
}

struct Slot {
    fire: Fire,
    at: Option<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        while !queue.ended {
            let now = self.clock.now_ns();
            match queue.armed.first().copied() {
                // What is due when the clock stops waits until it goes on: it is in the saved state.
                Some((at, id)) if at <= now && self.clock.is_running() => {
                    queue.armed.pop_first();
                    let Some(slot) = queue.timers.get_mut(id) else { continue };
                    slot.at = None;
                    let fire = slot.fire.clone();
                    queue.firing = true;
                    drop(queue);
                    let done = Fired(self);
                    fire(now);
                    drop(done);
                    queue = self.lock();
                }
                Some((at, _)) if self.clock.is_running() => {
                    let left = Duration::from_nanos(at - now);
                    let waited = self.changed.wait_timeout(queue, left);
                    queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                _ => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Tells that a timer has fired, even if it panicked.
struct Fired<'a>(&'a Shared);

impl Drop for Fired<'_> {
    fn drop(&mut self) {
        self.0.lock().firing = false;
        self.0.fired.notify_all();
    }
}

/// The kernel may wake a thread 50 us late, to spare itself a wake-up (proc(5),
/// `/proc/pid/timerslack_ns`). This one asks to be woken in time. Where it may not ask, timers
/// are late, and nothing else.
fn be_punctual() {
    let name = std::fs::read_link("/proc/thread-self").ok();
    if let Some(tid) = name.as_deref().and_then(Path::file_name) {
        drop(std::fs::write(Path::new("/proc").join(tid).join("timerslack_ns"), "1"));
    }
}

impl TimerThread {
    pub(crate) fn start(clock: Arc<GuestClock>, owner: Sender<Request>) -> std::io::Result<Self> {
        let shared = Shared {
            clock,
            queue: Mutex::default(),
            changed: Condvar::new(),
            fired: Condvar::new(),
        };
        let shared = Arc::new(shared);
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("timers".into()).spawn(move || {
            let text = Request::Failed("the timers' thread panicked".into());
            let _obituary = Obituary::new(owner, text);
            be_punctual();
            of_thread.run();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The clock was paused. When this returns no timer does anything until it goes on.
    pub fn rest(&self) {
        let firing = |queue: &mut Queue| queue.firing;
        drop(self.shared.fired.wait_while(self.shared.lock(), firing));
    }

    /// The clock was resumed or set.
    pub fn clock_changed(&self) {
        drop(self.shared.lock());
        self.shared.changed.notify_one();
    }

    pub fn handle(&self) -> Arc<dyn Timers> {
        Arc::new(Handle(self.shared.clone()))
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for TimerThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimerThread({} timers)", self.shared.lock().timers.len())
    }
}

struct Handle(Arc<Shared>);

impl Timers for Handle {
    fn create(&self, fire: Fire) -> Arc<dyn Timer> {
        let mut queue = self.0.lock();
        let id = queue.timers.len();
        queue.timers.push(Slot { fire, at: None });
        Arc::new(One { shared: self.0.clone(), id })
    }
}

struct One {
    shared: Arc<Shared>,
    id: usize,
}

impl Timer for One {
    fn arm(&self, at: Option<u64>) {
        let mut queue = self.shared.lock();
        let first = queue.armed.first().copied();
        let Some(slot) = queue.timers.get_mut(self.id) else { return };
        let old = std::mem::replace(&mut slot.at, at);
        if let Some(old) = old {
            queue.armed.remove(&(old, self.id));
        }
        if let Some(at) = at {
            queue.armed.insert((at, self.id));
        }
        let sooner = match (queue.armed.first(), first) {
            (Some(new), Some(old)) => *new < old,
            (new, _) => new.is_some(),
        };
        drop(queue);
        // A later first only makes the thread wake once for nothing.
        if sooner {
            self.shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_thread_asks_to_be_woken_in_time() {
        let slack = std::thread::spawn(|| {
            be_punctual();
            let own = std::fs::read_link("/proc/thread-self").unwrap();
            let own = Path::new("/proc").join(own.file_name().unwrap());
            std::fs::read_to_string(own.join("timerslack_ns")).unwrap()
        });
        assert_eq!(slack.join().unwrap().trim(), "1");
    }

    #[test]
    fn fires_in_order_of_time_once_and_not_when_disarmed() {
        let clock = Arc::new(GuestClock::new(1_000_000));
        let thread = TimerThread::start(clock.clone(), mpsc::channel().0).unwrap();
        let (tx, rx) = mpsc::channel();
        let timers = thread.handle();
        let make = |name: &'static str| {
            let tx = tx.clone();
            timers.create(Arc::new(move |_| tx.send(name).unwrap()))
        };
        let (a, b, c) = (make("a"), make("b"), make("c"));
        a.arm(Some(3_000_000));
        b.arm(Some(1_000_000));
        c.arm(Some(2_000_000));
        c.arm(None);
        assert!(rx.recv_timeout(Duration::from_millis(20)).is_err(), "the clock is paused");
        clock.resume();
        thread.clock_changed();
        assert_eq!((rx.recv().unwrap(), rx.recv().unwrap()), ("b", "a"));
        assert!(rx.recv_timeout(Duration::from_millis(20)).is_err());
        b.arm(Some(0));
        assert_eq!(rx.recv().unwrap(), "b");
    }

    #[test]
    fn a_rest_waits_for_a_timer_and_keeps_others_away() {
        let clock = Arc::new(GuestClock::new(1_000_000));
        let thread = TimerThread::start(clock.clone(), mpsc::channel().0).unwrap();
        let (began, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Mutex::new(ends);
        let timers = thread.handle();
        let slow = timers.create(Arc::new(move |_| {
            began.send(()).unwrap();
            ends.lock().unwrap().recv().unwrap();
        }));
        let (tx, rx) = mpsc::channel();
        let next = timers.create(Arc::new(move |_| tx.send(()).unwrap()));
        clock.resume();
        slow.arm(Some(0));
        begins.recv().unwrap();
        next.arm(Some(0));
        clock.pause();
        std::thread::scope(|scope| {
            let rest = scope.spawn(|| thread.rest());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!rest.is_finished(), "the slow one has not fired");
            end.send(()).unwrap();
        });
        assert!(rx.recv_timeout(Duration::from_millis(20)).is_err(), "the clock is paused");
        clock.resume();
        thread.clock_changed();
        rx.recv().unwrap();
    }

    #[test]
    fn the_owner_hears_of_a_timer_that_panics() {
        let clock = Arc::new(GuestClock::new(1_000_000));
        let (owner, inbox) = mpsc::channel();
        let thread = TimerThread::start(clock.clone(), owner).unwrap();
        let timers = thread.handle();
        let bad = timers.create(Arc::new(|_| panic!("a device's bug, for the test")));
        clock.resume();
        bad.arm(Some(0));
        let heard = inbox.recv().unwrap();
        assert!(matches!(heard, Request::Failed(text) if text.contains("timers")));
        // Its end is no other matter.
        drop(thread);
        assert!(inbox.recv().is_err());
    }
}
