//! Commands in flight, and those that a task management function ends (5.6.6.2; SAM-5, 7).
//!
//! A command is in its queue's ring until the queue's thread comes to it. So ending commands is a
//! [`Purge`]: each queue's thread answers those that it concerns instead of executing them, and says
//! when it has come past all that were in the ring when the purge began. The function is
//! complete when all queues have said so.

use crate::{Address, QUEUE_SIZE, Response, lock};
use std::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

/// How often whoever waits looks whether it is to rest, or a queue is gone.
const LOOK: Duration = Duration::from_millis(5);

/// A command: its unit, and the number that the driver gave it.
pub(crate) type Task = (Address, u64);

/// Which commands end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    One(Task),
    OfUnit(Address),
    OfTarget(u8),
}

impl Which {
    fn concerns(self, (address, id): Task) -> bool {
        match self {
            Self::One(task) => task == (address, id),
            Self::OfUnit(unit) => unit == address,
            Self::OfTarget(target) => target == address.target,
        }
    }
}

#[derive(Debug)]
struct Purge {
    number: u64,
    which: Which,
    response: Response,
    /// Request queues that are not past it, one bit for each.
    behind: u64,
}

/// Those of one adapter.
#[derive(Debug)]
pub(crate) struct Tasks {
    /// What each request queue is executing.
    current: Vec<Mutex<Option<Task>>>,
    purges: Mutex<Vec<Purge>>,
    /// Some queue is past one.
    passed: Condvar,
    /// Of the last purge.
    number: AtomicU64,
    /// How many there are.
    there: AtomicU64,
}

/// How far one queue's thread has come.
#[derive(Debug)]
pub(crate) struct Progress {
    seen: u64,
    left: u16,
}

impl Tasks {
    pub(crate) fn new(queues: u16) -> Self {
        Self {
            current: (0..queues).map(|_| Mutex::default()).collect(),
            purges: Mutex::default(),
            passed: Condvar::new(),
            number: 0.into(),
            there: 0.into(),
        }
    }

    pub(crate) fn set_current(&self, queue: u16, task: Option<Task>) {
        if let Some(current) = self.current.get(usize::from(queue)) {
            *lock(current) = task;
        }
    }

    /// Whether one of these is being executed.
    pub(crate) fn executing(&self, which: Which) -> bool {
        let concerns = |task: &Mutex<Option<Task>>| lock(task).is_some_and(|t| which.concerns(t));
        self.current.iter().any(concerns)
    }

    /// How a command of this queue is to be answered, if it is to end.
    pub(crate) fn ended(&self, queue: u16, task: Task) -> Option<Response> {
        if self.there.load(SeqCst) == 0 {
            return None;
        }
        let purges = lock(&self.purges);
        let of = |purge: &&Purge| purge.behind & 1 << queue != 0 && purge.which.concerns(task);
        purges.iter().find(of).map(|purge| purge.response)
    }

    /// Before a queue's ring is looked at.
    pub(crate) fn progress(&self) -> Progress {
        Progress { seen: self.number.load(SeqCst), left: QUEUE_SIZE }
    }

    /// A command was answered. Of more than go into a ring, the last came after the purge.
    pub(crate) fn answered(&self, queue: u16, progress: &mut Progress) {
        progress.left = progress.left.saturating_sub(1);
        if progress.left == 0 {
            self.drained(queue, progress);
            *progress = self.progress();
        }
    }

    /// The ring was empty after [`Self::progress`].
    pub(crate) fn drained(&self, queue: u16, progress: &Progress) {
        if self.there.load(SeqCst) == 0 {
            return;
        }
        let of = |purge: &&mut Purge| purge.number <= progress.seen;
        lock(&self.purges).iter_mut().filter(of).for_each(|purge| purge.behind &= !(1 << queue));
        self.passed.notify_all();
    }

    /// Ends commands. `kick` makes a queue's thread look at its ring, `gone` says that it has none;
    /// false if `interrupted` was true before all were past.
    pub(crate) fn end(
        &self,
        which: Which,
        response: Response,
        kick: impl Fn(u16),
        gone: impl Fn(u16) -> bool,
        interrupted: impl Fn() -> bool,
    ) -> bool {
        let queues = self.current.len() as u16;
        let mut purges = lock(&self.purges);
        let number = self.number.fetch_add(1, SeqCst) + 1;
        let behind = (0..queues).fold(0, |mask, queue| mask | 1 << queue);
        purges.push(Purge { number, which, response, behind });
        self.there.fetch_add(1, SeqCst);
        drop(purges);
        (0..queues).for_each(kick);
        let mut purges = lock(&self.purges);
        let done = loop {
            let Some(purge) = purges.iter_mut().find(|purge| purge.number == number) else {
                break true;
            };
            let behind = purge.behind;
            purge.behind = (0..queues)
                .filter(|queue| behind & 1 << queue != 0 && !gone(*queue))
                .fold(0, |mask, queue| mask | 1 << queue);
            if purge.behind == 0 || interrupted() {
                break purge.behind == 0;
            }
            let waited = self.passed.wait_timeout(purges, LOOK);
            purges = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        };
        purges.retain(|purge| purge.number != number);
        self.there.fetch_sub(1, SeqCst);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Address = Address { target: 1, lun: 2 };

    #[test]
    fn a_purge_waits_for_what_was_in_the_rings() {
        let tasks = Tasks::new(2);
        let early = tasks.progress();
        // Only a hang takes so long.
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        let too_long = || std::time::Instant::now() > limit;
        std::thread::scope(|scope| {
            let purge = scope.spawn(|| {
                tasks.end(Which::One((UNIT, 7)), Response::Aborted, |_| {}, |_| false, too_long)
            });
            while tasks.ended(0, (UNIT, 7)).is_none() {
                std::thread::yield_now();
            }
            assert_eq!(tasks.ended(1, (UNIT, 7)), Some(Response::Aborted));
            assert_eq!(tasks.ended(1, (UNIT, 8)), None);
            assert_eq!(tasks.ended(1, (Address { target: 1, lun: 3 }, 7)), None);
            // What was found empty before says nothing.
            tasks.drained(0, &early);
            assert!(tasks.ended(0, (UNIT, 7)).is_some());
            let mut progress = tasks.progress();
            tasks.drained(0, &progress);
            assert_eq!(tasks.ended(0, (UNIT, 7)), None, "a new command with the same number");
            (0..QUEUE_SIZE).for_each(|_| tasks.answered(1, &mut progress));
            assert!(purge.join().unwrap());
        });
        assert_eq!(tasks.ended(1, (UNIT, 7)), None);
    }

    #[test]
    fn queues_that_are_not_there_are_not_waited_for() {
        let tasks = Tasks::new(3);
        let which = Which::OfTarget(1);
        assert!(tasks.end(which, Response::Reset, |_| {}, |_| true, || false));
        assert!(!tasks.end(which, Response::Reset, |_| {}, |queue| queue != 1, || true));
    }

    #[test]
    fn what_is_executing_is_known() {
        let tasks = Tasks::new(2);
        tasks.set_current(1, Some((UNIT, 7)));
        assert!(tasks.executing(Which::One((UNIT, 7))) && tasks.executing(Which::OfUnit(UNIT)));
        assert!(!tasks.executing(Which::One((UNIT, 8))) && !tasks.executing(Which::OfTarget(2)));
        tasks.set_current(1, None);
        assert!(!tasks.executing(Which::OfTarget(1)));
    }
}
