//! The VM: its layout, its dirty log, its clock, its messages.

use crate::{
    clock::{self, VmTsc},
    dirty::{self, Rings},
    doorbell,
    gate::Gate,
    held::Standstill,
    kick::KvmKick,
    open::Features,
    os,
    routes::{self, Routes},
    shim::{Image, Shadows},
    sys,
    vcpu::KvmVcpu,
};
use cpu_model::CpuidTable;
use engine::{ClockSample, Doorbell, Error, Handle, IrqHandle, Kick, Msi, Vcpu, Vm};
use guest_mem::{Change, Generation, GuestMem, Layout, PageBitmap, Region, SlotId};
use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockWriteGuard, Weak,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

#[derive(Debug)]
pub(crate) struct KvmVm(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) fd: VmFd,
    pub(crate) mem: Arc<GuestMem>,
    pub(crate) gate: Gate,
    kicks: Mutex<Vec<Weak<KvmKick>>>,
    pub(crate) tsc: VmTsc,
    pub(crate) routes: Routes,
    pub(crate) rings: Rings,
    pub(crate) features: Features,
    pub(crate) cpuid: CpuidTable,
    /// The MSRs that this kernel keeps for this VM's vCPUs.
    pub(crate) msrs: OnceLock<Vec<u32>>,
    pub(crate) standstill: Standstill,
    /// Messages go in while it is read.
    messages: RwLock<()>,
    /// Where the shim is, in a VM that has one.
    pub(crate) image: Option<Image>,
    /// How often all vCPUs were to forget what they know of page tables.
    pub(crate) flushes: AtomicU64,
    pub(crate) shadows: Shadows,
}

impl Inner {
    pub(crate) fn new(
        fd: VmFd,
        mem: Arc<GuestMem>,
        features: Features,
        cpuid: CpuidTable,
        khz: u32,
        image: Option<Image>,
    ) -> Self {
        Self {
            fd,
            mem,
            gate: Gate::default(),
            kicks: Mutex::default(),
            // Ring 3 of such a kernel is the processor's.
            tsc: VmTsc::new(features.host_khz, khz)
                .unless_raw(features.software && image.is_some()),
            routes: Routes::default(),
            rings: Rings::default(),
            features,
            cpuid,
            msrs: OnceLock::new(),
            standstill: Standstill::default(),
            messages: RwLock::default(),
            image,
            flushes: AtomicU64::new(0),
            shadows: Shadows::default(),
        }
    }

    /// No message goes in while this is held.
    pub(crate) fn hold_messages(&self) -> RwLockWriteGuard<'_, ()> {
        self.messages.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_kick(&self, kick: &Arc<KvmKick>) {
        let mut kicks = self.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        kicks.retain(|k| k.strong_count() > 0);
        kicks.push(Arc::downgrade(kick));
    }

    fn kick_all(&self) {
        let kicks = self.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        kicks.iter().filter_map(Weak::upgrade).for_each(|k| k.notify());
    }

    /// No vCPU goes on with what it knew of the guest's page tables. The caller's own forgets when it
    /// is entered next.
    pub(crate) fn forget_translations(&self) {
        let alone = self.kicks.lock().unwrap_or_else(PoisonError::into_inner).len() <= 1;
        if !alone {
            let _outside = self.gate.close(|| self.kick_all());
            self.flushes.fetch_add(1, SeqCst);
        }
    }

    fn set_region(&self, region: &Region, len: u64) -> Result<(), Error> {
        sys::map_slot(&self.fd, region, len, self.mem.logs_dirty())
    }

    /// What the guest wrote to the slot, as far as the kernel tells.
    fn take_guests(&self, region: &Region, out: &mut PageBitmap) -> Result<(), Error> {
        if self.features.ring_entries == 0 {
            return dirty::take_log(&self.fd, region, out);
        }
        // A processor's own log goes into the ring when its vCPU leaves KVM_RUN.
        drop(self.gate.close(|| self.kick_all()));
        self.rings.collect(&self.fd)?;
        self.rings.take(region.slot.id, out);
        Ok(())
    }

    /// The kernel changes slots one by one, so vCPUs are held outside meanwhile.
    fn replace(&self, old: &Layout, new: &Layout) -> Result<(), Error> {
        let missing = |from: &Layout, other: &Layout| -> Vec<Arc<Region>> {
            let same = |r: &Arc<Region>| other.regions().iter().any(|o| Arc::ptr_eq(o, r));
            from.regions().iter().filter(|r| !same(r)).cloned().collect()
        };
        let (gone, come) = (missing(old, new), missing(new, old));
        let _held = self.gate.close(|| self.kick_all());
        // Entries of slots that go must not be taken for those of their successors.
        self.rings.collect(&self.fd)?;
        gone.iter().for_each(|r| self.rings.forget(r.slot.id));
        let set = gone.iter().try_for_each(|r| self.set_region(r, 0));
        let set = set.and_then(|()| come.iter().try_for_each(|r| self.set_region(r, r.slot.len)));
        if set.is_err() {
            // Undo; what was never set cannot be unset, which is fine.
            come.iter().for_each(|r| drop(self.set_region(r, 0)));
            gone.iter().for_each(|r| drop(self.set_region(r, r.slot.len)));
        }
        set
    }
}

/// [`GuestMem::update`] passes errors of its own type.
fn for_memory(error: Error) -> guest_mem::Error {
    match error {
        Error::Os { call, source } => guest_mem::Error::Os { call, source },
        other => guest_mem::Error::Engine(other.to_string()),
    }
}

impl Vm for KvmVm {
    fn memory(&self) -> &Arc<GuestMem> {
        &self.0.mem
    }

    fn set_layout(&self, changes: &[Change]) -> Result<Generation, Error> {
        let commit = |old: &Layout, new: &Layout| self.0.replace(old, new).map_err(for_memory);
        Ok(self.0.mem.update(changes, commit)?)
    }

    fn settled(&self, generation: Generation) -> bool {
        generation <= self.0.mem.layout().generation // the gate has waited
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        Ok(Box::new(KvmVcpu::new(&self.0, id)?))
    }

    fn log_dirty(&self, on: bool) -> Result<(), Error> {
        let was = self.0.mem.logs_dirty();
        self.0.mem.set_log_dirty(on);
        // No slot comes or goes meanwhile.
        let set_all = |_: &Layout, layout: &Layout| {
            let set = layout.regions().iter().try_for_each(|r| self.0.set_region(r, r.slot.len));
            set.map_err(for_memory)
        };
        let done = self.0.mem.update(&[], set_all);
        if done.is_err() {
            self.0.mem.set_log_dirty(was);
        }
        Ok(done.map(drop)?)
    }

    fn take_dirty(&self, slot: SlotId, out: &mut PageBitmap) -> Result<(), Error> {
        let layout = self.0.mem.layout();
        let region = layout.by_id(slot).ok_or(guest_mem::Error::NoSlot(slot))?;
        if self.0.mem.logs_dirty() {
            self.0.take_guests(region, out)?;
        }
        region.take_dirty(out);
        Ok(())
    }

    fn clock(&self) -> Result<ClockSample, Error> {
        clock::sample(&self.0.fd, &self.0.tsc)
    }

    fn set_clock(&self, at: &ClockSample) -> Result<(), Error> {
        clock::set(&self.0.fd, &self.0.tsc, at)
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), Error> {
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        let _goes_in = self.0.messages.read().unwrap_or_else(PoisonError::into_inner);
        match self.0.fd.signal_msi(message) {
            Ok(_) => Ok(()),
            // No APIC is where the message goes, as a real bus would have it.
            Err(e) if e.errno() == libc::EINVAL || e.errno() == -1 => Ok(()),
            Err(e) => Err(os("KVM_SIGNAL_MSI")(e)),
        }
    }

    fn set_pin_routes(&self, pins: &[Option<Msi>]) -> Result<(), Error> {
        self.0.routes.set_pins(&self.0.fd, pins)
    }

    fn doorbell(&self, at: &Doorbell, event: BorrowedFd<'_>) -> Result<Handle, Error> {
        doorbell::register(&self.0, at, event)
    }

    fn irqfd(&self, msi: Msi, event: BorrowedFd<'_>) -> Result<Box<dyn IrqHandle>, Error> {
        routes::bind(&self.0, msi, event)
    }
}
