//! All local APICs of a machine, and messages among them.

use crate::{
    LocalApic, TscClock,
    ipi::{self, Message},
    regs::{Regs, mode},
    vectors::VectorSet,
};
use device::{Clock, Device, Msi, MsiSink, Timers};
use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};
use x86_defs::msr::apic_base;

/// What the APICs are built from.
pub struct Parts {
    /// One APIC each; the number of a vCPU is its APIC ID.
    pub vcpus: u32,
    pub clock: Arc<dyn Clock>,
    pub timers: Arc<dyn Timers>,
    pub tsc: Arc<dyn TscClock>,
    /// Makes vCPU n ask what is pending. Called from any thread, maybe with the lock of an
    /// interrupt controller held: it must not call devices.
    pub wake: Box<dyn Fn(u32) + Send + Sync>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

type EoiHook = Box<dyn Fn(u8) + Send + Sync>;

pub struct ApicBus {
    apics: Vec<Arc<LocalApic>>,
    wake: Box<dyn Fn(u32) + Send + Sync>,
    eoi: OnceLock<EoiHook>,
    /// Whose turn it is among equals at lowest priority.
    turn: AtomicUsize,
}

impl fmt::Debug for ApicBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.apics).finish()
    }
}

impl ApicBus {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { vcpus, clock, timers, tsc, wake } = parts;
        let bus = Arc::new_cyclic(|bus| {
            let apic = |id| {
                Arc::new(LocalApic {
                    id,
                    bus: bus.clone(),
                    clock: clock.clone(),
                    tsc: tsc.clone(),
                    timer: OnceLock::new(),
                    flags: AtomicU32::new(0),
                    sipi: AtomicU8::new(0),
                    irr: VectorSet::default(),
                    tmr: VectorSet::default(),
                    tpr: AtomicU32::new(0),
                    ppr: AtomicU32::new(0),
                    accepts: AtomicU32::new(0),
                    address: AtomicU64::new(0),
                    base: AtomicU64::new(apic_base::DEFAULT | apic_base::ENABLE),
                    errors: AtomicU32::new(0),
                    regs: Mutex::new(Regs::default()),
                })
            };
            Self {
                apics: (0..vcpus).map(apic).collect(),
                wake,
                eoi: OnceLock::new(),
                turn: AtomicUsize::new(0),
            }
        });
        for apic in &bus.apics {
            let weak = Arc::downgrade(apic);
            let timer = timers.create(Arc::new(move |now| {
                if let Some(apic) = weak.upgrade() {
                    apic.timer_fired(now);
                }
            }));
            let _ = apic.timer.set(timer);
            apic.reset();
        }
        bus
    }

    /// The APIC of one vCPU.
    pub fn apic(&self, id: u32) -> Option<&Arc<LocalApic>> {
        self.apics.get(usize::try_from(id).ok()?)
    }

    pub fn apics(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    /// What hears of the end of level-triggered interrupts: the IOAPIC. Set once; called on
    /// the vCPU's thread without a lock.
    pub fn on_eoi(&self, hook: EoiHook) {
        let _ = self.eoi.set(hook);
    }

    pub(crate) fn wake(&self, id: u32) {
        (self.wake)(id);
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        if let Some(hook) = self.eoi.get() {
            hook(vector);
        }
    }

    pub(crate) fn deliver(&self, message: &Message) {
        let Message { target, mode, vector, level } = *message;
        let meant = |apic: &&Arc<LocalApic>| target.includes(apic.id, apic.address());
        if mode == mode::LOWEST {
            if let Some(apic) = self.lowest(meant) {
                apic.receive(mode, vector, level);
            }
            return;
        }
        self.apics.iter().filter(meant).for_each(|apic| apic.receive(mode, vector, level));
    }

    /// The one with the lowest processor priority among those that accept; equals take turns.
    fn lowest(&self, meant: impl Fn(&&Arc<LocalApic>) -> bool) -> Option<&Arc<LocalApic>> {
        const BOTH: u32 = 3;
        let count = self.apics.len().max(1);
        let start = self.turn.fetch_add(1, SeqCst) % count;
        let ring = self.apics.iter().cycle().skip(start).take(self.apics.len());
        ring.filter(meant)
            .filter(|apic| apic.accepts.load(SeqCst) == BOTH)
            .min_by_key(|apic| apic.ppr.load(SeqCst) >> 4)
    }
}

impl MsiSink for ApicBus {
    fn send(&self, msi: Msi) {
        if let Some(message) = ipi::from_msi(msi) {
            self.deliver(&message);
        }
    }
}

/// Resets every APIC. Their state is saved with the vCPUs.
impl Device for ApicBus {
    fn name(&self) -> String {
        "local_apics".into()
    }
    fn reset(&self) {
        self.apics.iter().for_each(|apic| apic.reset());
    }
    fn save(&self, _: &mut saved_state::Writer) {}
    fn restore(&self, _: &mut saved_state::Reader) -> Result<(), saved_state::Error> {
        Ok(())
    }
}
