//! A device's running part: its queues, who may touch them, and how the driver hears of it.

use crate::{
    QUEUES_MAX, Served, VirtioDevice, bus::Bus, chain::GuestError, lock, queue::Queue, regs::Regs,
    worker::Worker,
};
use guest_mem::GuestMem;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{
        AtomicBool, AtomicU16, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};
use virtio_queue::Queue as Ring;

/// VIRTIO_MSI_NO_VECTOR (4.1.4.3).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (4.1.4.5).
pub(crate) mod isr {
    pub const QUEUE: u8 = 1;
    pub const CONFIG: u8 = 2;
}

pub(crate) struct QueueSlot {
    /// There is none until the driver enables the queue. Held while the queue is served.
    pub(crate) ring: Mutex<Option<Ring>>,
    pub(crate) vector: AtomicU16,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) doorbells: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) guest_errors: AtomicU64,
    /// Panics of the device's threads.
    pub(crate) failures: AtomicU64,
}

pub(crate) struct Core {
    pub(crate) device: Arc<dyn VirtioDevice>,
    pub(crate) memory: Arc<GuestMem>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) regs: Mutex<Regs>,
    pub(crate) queues: Vec<QueueSlot>,
    pub(crate) config_vector: AtomicU16,
    /// ISR status; the wire follows it under this lock.
    pub(crate) isr: Mutex<u8>,
    /// The driver is ready, and has made no mistake.
    pub(crate) live: AtomicBool,
    /// Counts resets: an error of before one does not concern what comes after it.
    pub(crate) epoch: AtomicU64,
    pub(crate) paused: AtomicBool,
    pub(crate) ending: AtomicBool,
    /// Threads that let go of a queue and have yet to report an error.
    reporting: Mutex<usize>,
    reported: Condvar,
    pub(crate) workers: Vec<Worker>,
    pub(crate) counters: Counters,
}

impl Core {
    /// # Panics
    /// If the device has no queues, or too many: that is the programmer's.
    pub(crate) fn new(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMem>,
        bus: Arc<dyn Bus>,
    ) -> Arc<Self> {
        let sizes = device.queue_sizes();
        assert!((1..=QUEUES_MAX).contains(&sizes.len()), "{} queues", sizes.len());
        let slot =
            |_: &u16| QueueSlot { ring: Mutex::default(), vector: AtomicU16::new(NO_VECTOR) };
        Arc::new(Self {
            queues: sizes.iter().map(slot).collect(),
            regs: Mutex::new(Regs::new(&sizes)),
            workers: (0..device.threads().max(1)).map(|_| Worker::default()).collect(),
            device,
            memory,
            bus,
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: Mutex::default(),
            live: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            // Until the machine runs.
            paused: AtomicBool::new(true),
            ending: AtomicBool::new(false),
            reporting: Mutex::default(),
            reported: Condvar::new(),
            counters: Counters::default(),
        })
    }

    /// Queues may be served. A device that is not master of the bus must not touch memory.
    pub(crate) fn may_run(&self) -> bool {
        self.live.load(SeqCst)
            && !self.paused.load(SeqCst)
            && !self.ending.load(SeqCst)
            && self.bus.is_master()
    }

    /// Asks for a queue to be served.
    pub(crate) fn kick(&self, queue: u16) {
        let index = usize::from(queue);
        if index < self.queues.len()
            && !self.device.doorbell(queue)
            && let Some(worker) = self.workers.get(index % self.workers.len())
        {
            worker.kick(1 << queue);
        }
    }

    pub(crate) fn kick_all(&self) {
        (0..self.queues.len() as u16).for_each(|queue| self.kick(queue));
    }

    /// On a thread of the device.
    pub(crate) fn serve(&self, index: u16) {
        let Some(slot) = self.queues.get(usize::from(index)) else { return };
        let mut ring = lock(&slot.ring);
        let epoch = self.epoch.load(SeqCst);
        if !self.may_run() {
            return;
        }
        let Some(ring_now) = ring.as_mut() else { return };
        let mut queue = Queue::new(self, index, ring_now);
        let result = self.drain(index, &mut queue).and_then(|()| queue.signal());
        self.conclude(ring, result, epoch);
    }

    /// On whatever thread the device chose. `None`: the queue has to rest, or the driver broke a
    /// rule.
    fn lend<T>(
        &self,
        index: u16,
        work: impl FnOnce(&mut Queue<'_>) -> Result<T, GuestError>,
    ) -> Option<T> {
        let mut ring = lock(&self.queues.get(usize::from(index))?.ring);
        let epoch = self.epoch.load(SeqCst);
        if !self.may_run() {
            return None;
        }
        let result = work(&mut Queue::new(self, index, ring.as_mut()?));
        self.conclude(ring, result, epoch)
    }

    /// Lets go of a queue and then reports an error, for which a pause waits: otherwise the
    /// saved state could lack both the request and the error.
    fn conclude<T>(
        &self,
        ring: MutexGuard<'_, Option<Ring>>,
        result: Result<T, GuestError>,
        epoch: u64,
    ) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        *lock(&self.reporting) += 1;
        drop(ring);
        self.guest_error(error, epoch);
        *lock(&self.reporting) -= 1;
        self.reported.notify_all();
        None
    }

    fn drain(&self, index: u16, queue: &mut Queue<'_>) -> Result<(), GuestError> {
        loop {
            queue.silence()?;
            let served = self.device.serve(index, queue)?;
            if served == Served::Left {
                return Ok(());
            }
            if !queue.listen()? || queue.interrupted() {
                return Ok(());
            }
        }
    }

    /// DEVICE_NEEDS_RESET, and nothing more until then.
    pub(crate) fn guest_error(&self, _: GuestError, epoch: u64) {
        let mut regs = lock(&self.regs);
        if self.epoch.load(SeqCst) == epoch {
            self.needs_reset(&mut regs);
        }
    }

    pub(crate) fn needs_reset(&self, regs: &mut Regs) {
        self.live.store(false, SeqCst);
        self.counters.guest_errors.fetch_add(1, Relaxed);
        if regs.set_needs_reset() {
            self.interrupt_config();
        }
    }

    pub(crate) fn interrupt_queue(&self, index: u16) {
        let Some(slot) = self.queues.get(usize::from(index)) else { return };
        self.interrupt(isr::QUEUE, slot.vector.load(SeqCst));
    }

    pub(crate) fn interrupt_config(&self) {
        self.interrupt(isr::CONFIG, self.config_vector.load(SeqCst));
    }

    fn interrupt(&self, bit: u8, vector: u16) {
        self.counters.interrupts.fetch_add(1, Relaxed);
        if self.bus.uses_messages() {
            if vector != NO_VECTOR {
                self.bus.notify(vector);
            }
            return;
        }
        let mut isr = lock(&self.isr);
        *isr |= bit;
        self.bus.set_wire(true);
    }

    /// The driver reads the ISR status, which clears it (4.1.4.5).
    pub(crate) fn take_isr(&self) -> u8 {
        let mut isr = lock(&self.isr);
        self.bus.set_wire(false);
        std::mem::take(&mut *isr)
    }

    /// The driver has handled what these bits stand for.
    pub(crate) fn acknowledge(&self, bits: u8) {
        let mut isr = lock(&self.isr);
        *isr &= !bits;
        self.bus.set_wire(*isr != 0);
    }

    /// Of the transport and of the device.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let own = &self.counters;
        let mut all = vec![
            ("doorbells", own.doorbells.load(Relaxed)),
            ("requests", own.requests.load(Relaxed)),
            ("interrupts", own.interrupts.load(Relaxed)),
            ("guest errors", own.guest_errors.load(Relaxed)),
            ("failures", own.failures.load(Relaxed)),
        ];
        all.extend(self.device.counters());
        all
    }

    /// Everything back to where it was at power-on. When this returns no queue is being served.
    pub(crate) fn reset(&self, regs: &mut Regs) {
        self.live.store(false, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        for slot in &self.queues {
            *lock(&slot.ring) = None;
            slot.vector.store(NO_VECTOR, SeqCst);
        }
        self.config_vector.store(NO_VECTOR, SeqCst);
        *regs = Regs::new(&self.device.queue_sizes());
        self.take_isr();
        self.device.reset();
    }

    /// When this returns no queue is being served, and no error is to be reported.
    pub(crate) fn pause(&self) {
        self.paused.store(true, SeqCst);
        self.rest();
        let waited = self.reported.wait_while(lock(&self.reporting), |count| *count > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until no queue is being served, by those who began before they had to rest.
    pub(crate) fn rest(&self) {
        for slot in &self.queues {
            drop(lock(&slot.ring));
        }
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, SeqCst);
        self.kick_all();
    }

    pub(crate) fn end(&self) {
        self.ending.store(true, SeqCst);
        self.workers.iter().for_each(Worker::stop);
    }
}

/// What a device does to its own transport, from any thread. It does not keep the transport
/// alive.
#[derive(Clone)]
pub struct Handle(pub(crate) Weak<Core>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    /// Asks for a queue to be served: there is something for the driver.
    pub fn kick(&self, queue: u16) {
        if let Some(core) = self.0.upgrade() {
            core.kick(queue);
        }
    }

    /// Whether the driver has set a queue up, so that its thread serves it.
    pub fn is_set_up(&self, queue: u16) -> bool {
        let Some(core) = self.0.upgrade() else { return false };
        let slot = core.queues.get(usize::from(queue));
        // One that is locked is being served.
        slot.is_some_and(|slot| slot.ring.try_lock().map_or(true, |ring| ring.is_some()))
    }

    /// Gives `work` a queue on the caller's thread, for a device whose
    /// [`doorbell`](VirtioDevice::doorbell) sees to it. The driver hears of what `work` completes
    /// by [`Queue::signal`] only, in this turn or, after [`Queue::owe`], in another. `None`: the
    /// queue has to rest, or `work` found that the driver broke a rule.
    pub fn lend<T>(
        &self,
        queue: u16,
        work: impl FnOnce(&mut Queue<'_>) -> Result<T, GuestError>,
    ) -> Option<T> {
        self.0.upgrade()?.lend(queue, work)
    }

    /// The device-specific configuration is another one; the driver is told.
    pub fn config_changed(&self) {
        if let Some(core) = self.0.upgrade() {
            let mut regs = lock(&core.regs);
            regs.next_generation();
            if core.live.load(SeqCst) {
                core.interrupt_config();
            }
        }
    }
}
