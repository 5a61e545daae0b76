//! The network's thread, and what others tell it.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use nic::Port;
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};

use crate::{
    context::Context,
    counters::Counters,
    host::{Poller, Token},
    stack::{Memory, Stack},
};

/// What the thread has to know besides frames and sockets.
#[derive(Default)]
struct Orders {
    port: Option<Weak<dyn Port>>,
    pauses: u32,
    /// The thread keeps away from the port.
    parked: bool,
    stop: bool,
    reset: bool,
    restore: Option<Memory>,
    /// What was true when the thread parked last, or restored.
    memory: Memory,
    report: Report,
}

/// What is known of the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub counters: Counters,
    /// Flows that exist now.
    pub tcp: usize,
    pub udp: usize,
}

/// Shared by the thread and whoever gives it orders.
pub(crate) struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
    bell: OwnedFd,
    /// The thread is waiting, or about to, and needs the bell.
    waits: AtomicBool,
    /// There is something new since the thread looked last.
    rung: AtomicBool,
}

impl Shared {
    pub(crate) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            orders: Mutex::new(Orders::default()),
            changed: Condvar::new(),
            bell,
            waits: AtomicBool::new(false),
            rung: AtomicBool::new(false),
        })
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ring(&self) {
        self.rung.store(true, SeqCst);
        if self.waits.swap(false, SeqCst) {
            // It fails only when it has been rung 2^64 times.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn attach(&self, port: Weak<dyn Port>) {
        self.orders().port = Some(port);
        self.ring();
    }

    pub(crate) fn pause(&self) {
        let mut orders = self.orders();
        orders.pauses += 1;
        self.ring();
        while !orders.parked && !orders.stop {
            orders = self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn resume(&self) {
        let mut orders = self.orders();
        orders.pauses = orders.pauses.saturating_sub(1);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.orders().stop = true;
        self.changed.notify_all();
        self.ring();
    }

    pub(crate) fn reset(&self) {
        self.orders().reset = true;
        self.ring();
    }

    /// What is to be saved; the thread is paused for it.
    pub(crate) fn memory(&self) -> Memory {
        self.pause();
        let memory = self.orders().memory.clone();
        self.resume();
        memory
    }

    pub(crate) fn restore(&self, memory: Memory) {
        let mut orders = self.orders();
        orders.memory = memory.clone();
        orders.restore = Some(memory);
        drop(orders);
        self.ring();
    }

    pub(crate) fn report(&self) -> Report {
        self.pause();
        let report = self.orders().report;
        self.resume();
        report
    }

    /// The thread has ended, whatever the reason: nobody may wait for it.
    fn ended(&self) {
        let mut orders = self.orders();
        orders.stop = true;
        orders.parked = true;
        self.changed.notify_all();
    }
}

/// Tells that the thread has ended even if it panicked.
struct Obituary<'a>(&'a Shared);

impl Drop for Obituary<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

pub(crate) fn poller(shared: &Shared) -> io::Result<Poller> {
    let poller = Poller::new()?;
    poller.watch_level(&shared.bell, Token::Wake)?;
    Ok(poller)
}

/// Until it is told to stop.
pub(crate) fn run(shared: &Arc<Shared>, mut stack: Stack, mut cx: Context) {
    let _obituary = Obituary(shared);
    let mut more = false;
    loop {
        let time = if more { Some(Duration::ZERO) } else { until(stack.due()) };
        shared.waits.store(true, SeqCst);
        let rung = shared.rung.swap(false, SeqCst);
        let events = cx.poller.wait(if rung { Some(Duration::ZERO) } else { time });
        shared.waits.store(false, SeqCst);
        let belled = events.iter().any(|(token, _)| *token == Token::Wake);
        if belled {
            let mut count = [0; 8];
            let _ = rustix::io::read(&shared.bell, &mut count);
        }
        let Some(port) = obey(shared, &mut stack, &mut cx) else { return };
        more = stack.round(port, rung || belled, &events, &mut cx);
    }
}

fn until(due: Option<Instant>) -> Option<Duration> {
    due.map(|at| {
        // A little late rather than a little early, which would cost another round.
        at.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
    })
}

/// Does what it was told, waits while it is paused; `None` to stop. Returns the port.
fn obey(shared: &Shared, stack: &mut Stack, cx: &mut Context) -> Option<Option<Arc<dyn Port>>> {
    let mut orders = shared.orders();
    loop {
        if std::mem::take(&mut orders.reset) {
            stack.reset(cx);
        }
        if let Some(memory) = orders.restore.take() {
            stack.restore(memory, cx);
        }
        if orders.stop {
            return None;
        }
        if orders.pauses == 0 {
            orders.parked = false;
            return Some(orders.port.as_ref().and_then(Weak::upgrade));
        }
        orders.memory = stack.save();
        let (counters, tcp, udp) = stack.counters(cx);
        orders.report = Report { counters, tcp, udp };
        orders.parked = true;
        shared.changed.notify_all();
        orders = shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
    }
}
