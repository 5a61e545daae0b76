//! One guest.

use crate::{TranslateVcpu, Translation, clock::VmClock};
use emit::StubCache;
use engine::{ClockSample, Error, Intercepts, Vcpu, Vm, VmConfig};
use guest_mem::{Change, CodeWatch, Generation, GuestMem, PageBitmap, SlotId};
use semantics::{
    features::IsaFeatures,
    sync::{Request, Slot, Slots},
};
use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};
use translator::PerfMap;

/// A layout that vCPUs may not all have seen.
type Unsettled = (Generation, Vec<(Arc<Slot>, u64)>);

pub struct TranslateVm {
    pub(crate) mem: Arc<GuestMem>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) stubs: StubCache,
    pub(crate) features: IsaFeatures,
    pub(crate) cpuid: Arc<cpu_model::CpuidTable>,
    pub(crate) intercepts: Intercepts,
    pub(crate) trace: bool,
    pub(crate) counted: bool,
    pub(crate) khz: u32,
    pub(crate) translation: Option<Translation>,
    pub(crate) perf_map: Option<Arc<PerfMap>>,
    clock: VmClock,
    unsettled: Mutex<Vec<Unsettled>>,
    ids: Mutex<BTreeSet<u32>>,
    /// Keeps the watch alive: the memory has a weak reference only.
    _watch: Arc<dyn CodeWatch>,
}

impl std::fmt::Debug for TranslateVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TranslateVm").field("mem", &self.mem).finish_non_exhaustive()
    }
}

/// Devices' writes to code.
struct Watch {
    mem: std::sync::Weak<GuestMem>,
    slots: Arc<Slots>,
}

impl CodeWatch for Watch {
    /// Blocks end before an interrupt is taken, and requests are served first: it is enough to
    /// have asked when the device raises its interrupt.
    fn invalidate(&self, gpa: Range<u64>) {
        if let Some(mem) = self.mem.upgrade() {
            drop(self.slots.code_written(&mem.layout(), gpa, None));
        }
    }
}

impl TranslateVm {
    pub(crate) fn new(
        config: &VmConfig,
        khz: u32,
        stubs: &StubCache,
        translation: Option<Translation>,
    ) -> Result<Self, Error> {
        let perf_map = match translation {
            Some(Translation { perf_map: true, .. }) => Some(Arc::new(create_perf_map()?)),
            _ => None,
        };
        let mem = GuestMem::new(config.memory)?;
        let slots = Arc::<Slots>::default();
        let watch: Arc<dyn CodeWatch> =
            Arc::new(Watch { mem: Arc::downgrade(&mem), slots: slots.clone() });
        mem.watch_code(&watch);
        Ok(Self {
            mem,
            slots,
            stubs: stubs.clone(),
            features: IsaFeatures::of(&config.cpuid),
            cpuid: Arc::new(config.cpuid.clone()),
            intercepts: config.intercepts,
            trace: config.trace,
            counted: config.counted,
            khz,
            translation,
            perf_map,
            clock: VmClock::new(khz),
            unsettled: Mutex::default(),
            ids: Mutex::default(),
            _watch: watch,
        })
    }

    /// [`Vm::create_vcpu`], with what only this engine's vCPUs have.
    pub fn vcpu(&self, id: u32) -> Result<TranslateVcpu, Error> {
        if id >= 255 {
            return Err(Error::Unsupported("a vCPU of this number"));
        }
        if !self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return Err(Error::Unsupported("two vCPUs of one number"));
        }
        TranslateVcpu::new(self, id)
    }

    /// No vCPU writes to a page unnoticed that it has not asked for after this.
    fn revoke_writes(&self) {
        for (slot, number) in self.slots.ask_others(&Request::RevokeWrites, None) {
            while !slot.has_served(number) {
                std::thread::yield_now();
            }
        }
    }
}

fn create_perf_map() -> Result<PerfMap, Error> {
    PerfMap::create().map_err(|source| Error::Os { call: "creating the map for perf", source })
}

impl Vm for TranslateVm {
    fn memory(&self) -> &Arc<GuestMem> {
        &self.mem
    }

    fn set_layout(&self, changes: &[Change]) -> Result<Generation, Error> {
        let generation = self.mem.update(changes, |_, _| Ok(()))?;
        let asked = self.slots.ask_others(&Request::Layout, None);
        let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        unsettled.push((generation, asked));
        Ok(generation)
    }

    fn settled(&self, generation: Generation) -> bool {
        let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        unsettled.retain(|(_, asked)| asked.iter().any(|(slot, n)| !slot.has_served(*n)));
        unsettled.iter().all(|(g, _)| *g > generation)
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(self.vcpu(id)?))
    }

    fn log_dirty(&self, on: bool) -> Result<(), Error> {
        self.mem.set_log_dirty(on);
        self.revoke_writes();
        Ok(())
    }

    fn take_dirty(&self, slot: SlotId, out: &mut PageBitmap) -> Result<(), Error> {
        let layout = self.mem.layout();
        let region = layout.by_id(slot).ok_or(guest_mem::Error::NoSlot(slot))?;
        // What is written until the vCPUs have forgotten their rights is written before this
        // returns, and its pages are in `out`.
        region.take_dirty(out);
        self.revoke_writes();
        Ok(())
    }

    fn clock(&self) -> Result<ClockSample, Error> {
        Ok(self.clock.sample())
    }

    fn set_clock(&self, at: &ClockSample) -> Result<(), Error> {
        self.clock.set(at);
        Ok(())
    }
}
