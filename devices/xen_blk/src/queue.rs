//! A ring and the thread that serves it.

use crate::{
    Counters,
    choice::QueueChoice,
    grants::Grants,
    lock,
    request::{self, Outcome},
    worker::Worker,
};
use disk::Disk;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use xen_abi::blkif::{ENTRY, Request, op};
use xen_front::{Access, Channel, Domain, Overrun, Position, Ring};
use zerocopy::{FromZeros, IntoBytes};

/// Responses that the front end is told of at once, if more requests wait, and how long a request takes
/// at most after which others are waited for: of a disk whose contents are in memory, telling takes
/// longer than reading.
const TOGETHER: u32 = 8;
const QUICK: Duration = Duration::from_micros(40);

/// What all queues of a device have in common.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) counters: Counters,
    pub(crate) paused: AtomicBool,
}

impl Shared {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        // Paused until the machine runs.
        Self { disk, counters: Counters::default(), paused: AtomicBool::new(true) }
    }
}

struct Queue {
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    channel: Channel,
    serving: Mutex<Serving>,
}

struct Serving {
    ring: Ring,
    grants: Grants,
    buffer: Vec<u8>,
    /// Responses that the front end does not see yet.
    held: u32,
    /// Its ring makes no sense, or its thread failed: it is not served any more.
    halted: bool,
}

impl Queue {
    fn rests(&self) -> bool {
        self.shared.paused.load(SeqCst) || self.worker.is_ending()
    }

    /// Until no request waits, or it is to rest.
    fn serve(&self) {
        let mut serving = lock(&self.serving);
        while !self.rests() && !serving.halted {
            match self.serve_one(&mut serving) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Overrun) => {
                    serving.halted = true;
                    self.shared.counters.guest_errors.fetch_add(1, Relaxed);
                }
            }
        }
        self.publish(&mut serving);
    }

    fn publish(&self, serving: &mut Serving) {
        if std::mem::take(&mut serving.held) > 0 && serving.ring.publish() {
            self.shared.counters.events.fetch_add(1, Relaxed);
            self.channel.notify();
        }
    }

    /// False if there is none, or it is to be begun anew later.
    fn serve_one(&self, serving: &mut Serving) -> Result<bool, Overrun> {
        // Before it looks for the last time: the front end may put more at once.
        if serving.ring.waiting()? == 0 {
            self.publish(serving);
        }
        let ring = &mut serving.ring;
        if ring.is_idle()? {
            return Ok(false);
        }
        let began = Instant::now();
        let mut request = Request::new_zeroed();
        ring.take(request.as_mut_bytes());
        if !matches!(request.operation, op::READ | op::WRITE | op::INDIRECT) {
            // It may take long.
            self.publish(serving);
        }
        let Serving { ring, grants, buffer, held, .. } = serving;
        match request::execute(&self.shared, &request, grants, buffer, &|| self.rests()) {
            Outcome::Interrupted => {
                ring.put_back();
                Ok(false)
            }
            Outcome::Done(response) => {
                ring.respond(response.as_bytes());
                *held += 1;
                if *held >= TOGETHER || began.elapsed() > QUICK {
                    self.publish(serving);
                }
                Ok(true)
            }
        }
    }

    fn run(&self) {
        while self.worker.next() {
            // A panic has been reported by the panic hook.
            if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
                self.shared.counters.failures.fetch_add(1, Relaxed);
                lock(&self.serving).halted = true;
            }
        }
    }
}

/// A queue with its thread, which ends when this is dropped; nothing of the domain is in use then.
pub(crate) struct Running {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(
        shared: &Arc<Shared>,
        domain: &Arc<dyn Domain>,
        name: String,
        choice: &QueueChoice,
        persistent: bool,
        at: Option<Position>,
    ) -> Result<Self, String> {
        let grants = Grants::new(domain.clone(), persistent);
        let pages = choice.ring.iter().map(|page| grants.map_once(*page, Access::Write));
        let pages = pages.collect::<Result<_, _>>().map_err(|why| why.to_string())?;
        let ring = Ring::new(pages, ENTRY, at).ok_or("its ring was not served that far")?;
        let worker = Arc::new(Worker::default());
        let kicked = worker.clone();
        let channel = Channel::bind(domain, choice.port, Arc::new(move || kicked.kick()))
            .map_err(|why| why.to_string())?;
        let serving =
            Mutex::new(Serving { ring, grants, buffer: Vec::new(), held: 0, halted: false });
        let queue = Arc::new(Queue { shared: shared.clone(), worker, channel, serving });
        let of_thread = queue.clone();
        let thread = thread::Builder::new().name(name).spawn(move || of_thread.run());
        let thread = Some(thread.map_err(|why| format!("no thread: {why}"))?);
        // The driver may have put some before.
        queue.worker.kick();
        Ok(Self { queue, thread })
    }

    pub(crate) fn kick(&self) {
        self.queue.worker.kick();
    }

    /// Waits until it is not being served, by who began before it had to rest.
    pub(crate) fn rest(&self) {
        drop(lock(&self.queue.serving));
    }

    pub(crate) fn position(&self) -> Position {
        lock(&self.queue.serving).ring.position()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.worker.end();
        if let Some(thread) = self.thread.take() {
            // It catches panics of what it calls.
            drop(thread.join());
        }
    }
}
