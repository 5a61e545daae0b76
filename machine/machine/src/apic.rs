//! The local APIC of one vCPU where the board has it, and KVM's paravirtual MSRs beside it.

use crate::clock::GuestClock;
use chipset::Pic;
use engine::{GeneralProtection, Pending};
use local_apic::{LocalApic, TscClock};
use pv_kvm::PvKvm;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// What the vCPUs' own TSCs are ahead of the common one.
#[derive(Debug)]
pub(crate) struct TscOffsets {
    clock: Arc<GuestClock>,
    offsets: Box<[AtomicU64]>,
}

impl TscOffsets {
    pub(crate) fn new(clock: Arc<GuestClock>, vcpus: u32) -> Arc<Self> {
        Arc::new(Self { clock, offsets: (0..vcpus).map(|_| AtomicU64::new(0)).collect() })
    }

    pub(crate) fn set(&self, vcpu: u32, offset: u64) {
        if let Some(slot) = self.offsets.get(vcpu as usize) {
            slot.store(offset, Relaxed);
        }
    }

    pub(crate) fn get(&self, vcpu: u32) -> u64 {
        self.offsets.get(vcpu as usize).map_or(0, |slot| slot.load(Relaxed))
    }
}

impl TscClock for TscOffsets {
    fn tsc_to_ns(&self, vcpu: u32, tsc: u64) -> u64 {
        let offset = self.get(vcpu);
        let common = tsc.wrapping_sub(offset);
        // A deadline before the common TSC's beginning has passed.
        if common as i64 <= 0 && tsc < offset { 0 } else { self.clock.tsc_to_ns(common) }
    }
}

pub(crate) struct VcpuApic {
    pub(crate) apic: Arc<LocalApic>,
    pub(crate) offsets: Arc<TscOffsets>,
    pub(crate) pv: Arc<PvKvm>,
}

impl fmt::Debug for VcpuApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.apic.fmt(f)
    }
}

impl VcpuApic {
    /// True if the access was the APIC's.
    pub(crate) fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let offset = self.apic.mmio_offset(gpa);
        offset.map(|offset| self.apic.mmio_read(offset, data)).is_some()
    }

    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        let offset = self.apic.mmio_offset(gpa);
        offset.map(|offset| self.apic.mmio_write(offset, data)).is_some()
    }

    pub(crate) fn rdmsr(&self, index: u32) -> Result<u64, GeneralProtection> {
        match self.pv.rdmsr(self.apic.id(), index) {
            Some(result) => result,
            None => self.apic.rdmsr(index).map_err(|_| GeneralProtection),
        }
    }

    pub(crate) fn wrmsr(&self, index: u32, value: u64) -> Result<(), GeneralProtection> {
        match self.pv.wrmsr(self.apic.id(), index, value) {
            Some(result) => result,
            None => self.apic.wrmsr(index, value).map_err(|_| GeneralProtection),
        }
    }

    /// The guest wrote its TSC.
    pub(crate) fn set_tsc_offset(&self, offset: u64) {
        let id = self.apic.id();
        self.offsets.set(id, offset);
        self.pv.set_tsc_offset(id, offset);
        self.apic.tsc_changed();
    }

    /// On the vCPU's own thread.
    pub(crate) fn update_steal(&self) {
        if self.pv.counts_steal(self.apic.id())
            && let Some(delay) = pv_kvm::run_delay_ns()
        {
            self.pv.update_steal(self.apic.id(), delay);
        }
    }

    #[inline]
    pub(crate) fn pending(&self, pic: &Pic) -> Option<Pending> {
        self.apic.pending(self.apic.id() == 0 && pic.pending()).map(|pending| match pending {
            local_apic::Pending::Init => Pending::Init,
            local_apic::Pending::Sipi => Pending::Sipi,
            local_apic::Pending::Nmi => Pending::Nmi,
            local_apic::Pending::Interrupt => Pending::Interrupt,
        })
    }

    pub(crate) fn ack(&self, what: Pending, pic: &Pic) -> Option<u8> {
        let what = match what {
            Pending::Init => local_apic::Pending::Init,
            Pending::Sipi => local_apic::Pending::Sipi,
            Pending::Nmi => local_apic::Pending::Nmi,
            Pending::Interrupt => local_apic::Pending::Interrupt,
            Pending::Personality => return None,
        };
        self.apic.ack(what, || if self.apic.id() == 0 { pic.ack() } else { None })
    }
}
