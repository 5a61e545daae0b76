//! KVM's paravirtual interface for engines that are not KVM: its CPUID leaves, its clock, its
//! steal time (`linux/Documentation/virt/kvm/x86/{cpuid,msr}.rst`).
//!
//! Under engine `kvm` the kernel itself serves the MSRs; the same [`leaves`] are offered, so
//! that a guest sees one hypervisor and can move. The MSRs are saved in the vCPU's own MSR
//! section, where the kernel's are too: see [`PvKvm::save`].
//!
//! Not offered: asynchronous page faults and hypercalls (nobody needs them without a
//! hypervisor's page faults and exits), and PV EOI, which saves an exit that an engine with
//! the APIC in its own process does not have.

mod leaves;
mod pvclock;
mod steal;
mod vcpu;

pub use leaves::{Features, leaves};
pub use pvclock::{TimeInfo, WallClock, time_scale};
pub use steal::run_delay_ns;

use engine::{ClockSample, GeneralProtection};
use guest_mem::GuestMem;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use vcpu::PvVcpu;
use vcpu_state::Msrs;
use x86_defs::msr;

/// All of a VM's clocks, now.
pub type ClockSource = Arc<dyn Fn() -> ClockSample + Send + Sync>;

/// The interface of one VM.
pub struct PvKvm {
    memory: Arc<GuestMem>,
    clock: ClockSource,
    features: Features,
    /// What was last written to the wall clock's MSR, of which there is one.
    wall_clock: Mutex<u64>,
    vcpus: Vec<Mutex<PvVcpu>>,
}

impl fmt::Debug for PvKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PvKvm").field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PvKvm {
    /// `features` are those that the guest's leaves tell of: MSRs of others do not exist.
    pub fn new(
        memory: Arc<GuestMem>,
        clock: ClockSource,
        features: Features,
        vcpus: u32,
    ) -> Arc<Self> {
        let vcpus = (0..vcpus).map(|_| Mutex::default()).collect();
        Arc::new(Self { memory, clock, features, wall_clock: Mutex::default(), vcpus })
    }

    /// `None`: the MSR is not one of these.
    pub fn rdmsr(&self, vcpu: u32, index: u32) -> Option<Result<u64, GeneralProtection>> {
        let vcpu = lock(self.vcpus.get(vcpu as usize)?);
        let value = match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => *lock(&self.wall_clock),
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => vcpu.system_time,
            msr::KVM_STEAL_TIME => vcpu.steal.msr,
            msr::KVM_POLL_CONTROL => vcpu.poll_control,
            KVM_FIRST..=KVM_LAST => return Some(Err(GeneralProtection)),
            _ => return None,
        };
        Some(if self.features.has_msr(index) { Ok(value) } else { Err(GeneralProtection) })
    }

    /// `None`: the MSR is not one of these. Pages that the guest names are written before this
    /// returns; an address that is not memory is the guest's loss.
    pub fn wrmsr(
        &self,
        vcpu: u32,
        index: u32,
        value: u64,
    ) -> Option<Result<(), GeneralProtection>> {
        let mut vcpu = lock(self.vcpus.get(vcpu as usize)?);
        match index {
            msr::KVM_WALL_CLOCK
            | msr::KVM_WALL_CLOCK_NEW
            | msr::KVM_SYSTEM_TIME
            | msr::KVM_SYSTEM_TIME_NEW
            | msr::KVM_STEAL_TIME
            | msr::KVM_POLL_CONTROL
                if self.features.has_msr(index) => {}
            msr::KVM_WALL_CLOCK | msr::KVM_SYSTEM_TIME | KVM_FIRST..=KVM_LAST => {
                return Some(Err(GeneralProtection));
            }
            _ => return None,
        }
        Some(match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => {
                *lock(&self.wall_clock) = value;
                pvclock::write_wall_clock(&self.memory, value, &(self.clock)());
                Ok(())
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => {
                vcpu.system_time = value;
                vcpu.write_time(&self.memory, &(self.clock)(), false);
                Ok(())
            }
            msr::KVM_STEAL_TIME => vcpu.steal.enable(&self.memory, value),
            _ => vcpu.set_poll_control(value),
        })
    }

    /// The guest wrote its TSC, which is now so much ahead of the common one.
    pub fn set_tsc_offset(&self, vcpu: u32, offset: u64) {
        if let Some(vcpu) = self.vcpus.get(vcpu as usize) {
            let mut vcpu = lock(vcpu);
            vcpu.tsc_offset = offset;
            vcpu.write_time(&self.memory, &(self.clock)(), false);
        }
    }

    /// After a pause, a restore or a change of clock: every vCPU's page is written anew.
    /// `stopped` tells guests that they did not run meanwhile, so that no watchdog barks.
    pub fn refresh(&self, stopped: bool) {
        let sample = (self.clock)();
        for vcpu in &self.vcpus {
            lock(vcpu).write_time(&self.memory, &sample, stopped);
        }
    }

    /// The vCPU's guest wants [`Self::update_steal`].
    pub fn counts_steal(&self, vcpu: u32) -> bool {
        self.vcpus.get(vcpu as usize).is_some_and(|vcpu| lock(vcpu).steal.msr & 1 != 0)
    }

    /// Tells the vCPU's guest how long its thread has waited for a processor so far; called
    /// now and then on that thread, with [`run_delay_ns`].
    pub fn update_steal(&self, vcpu: u32, run_delay_ns: u64) {
        if let Some(vcpu) = self.vcpus.get(vcpu as usize) {
            lock(vcpu).steal.update(&self.memory, run_delay_ns);
        }
    }

    /// Back to power-on values.
    pub fn reset(&self) {
        *lock(&self.wall_clock) = 0;
        self.vcpus.iter().for_each(|vcpu| *lock(vcpu) = PvVcpu::default());
    }

    /// One vCPU back to power-on values.
    pub fn reset_vcpu(&self, vcpu: u32) {
        if let Some(vcpu) = self.vcpus.get(vcpu as usize) {
            *lock(vcpu) = PvVcpu::default();
        }
    }

    /// Adds what differs from power-on values to a vCPU's MSR section.
    pub fn save(&self, vcpu: u32, to: &mut Msrs) {
        let Some(vcpu) = self.vcpus.get(vcpu as usize) else { return };
        let vcpu = lock(vcpu);
        let values = [
            (msr::KVM_WALL_CLOCK_NEW, *lock(&self.wall_clock), 0),
            (msr::KVM_SYSTEM_TIME_NEW, vcpu.system_time, 0),
            (msr::KVM_STEAL_TIME, vcpu.steal.msr, 0),
            (msr::KVM_POLL_CONTROL, vcpu.poll_control, vcpu::POLL_CONTROL_RESET),
        ];
        for (index, value, reset) in values {
            if value != reset {
                to.set(index, value);
            }
        }
    }

    /// Takes the values of [`Self::save`], from this or another engine, and removes them from
    /// the section; call [`Self::refresh`] when all vCPUs are restored and the clock is set.
    /// An error names the MSR, and nothing has changed.
    pub fn restore(&self, vcpu: u32, from: &mut Msrs) -> Result<(), UnknownMsr> {
        let Some(vcpu) = self.vcpus.get(vcpu as usize) else { return Ok(()) };
        let ours: Vec<(u32, u64)> =
            from.0.range(KVM_FIRST..=KVM_LAST).map(|(index, value)| (*index, *value)).collect();
        let mut new = PvVcpu { tsc_offset: lock(vcpu).tsc_offset, ..PvVcpu::default() };
        let mut wall_clock = None;
        for (index, value) in &ours {
            if *value != 0 && !self.features.has_msr(*index) {
                return Err(UnknownMsr(*index));
            }
            match *index {
                msr::KVM_WALL_CLOCK_NEW => wall_clock = Some(*value),
                msr::KVM_SYSTEM_TIME_NEW => new.system_time = *value,
                msr::KVM_STEAL_TIME => new.steal.resume(*value).map_err(|_| UnknownMsr(*index))?,
                msr::KVM_POLL_CONTROL => {
                    new.set_poll_control(*value).map_err(|_| UnknownMsr(*index))?;
                }
                _ => {}
            }
        }
        from.0.retain(|index, _| !(KVM_FIRST..=KVM_LAST).contains(index));
        *lock(vcpu) = new;
        if let Some(value) = wall_clock {
            *lock(&self.wall_clock) = value;
        }
        Ok(())
    }
}

/// KVM's own range of MSRs.
const KVM_FIRST: u32 = msr::KVM_WALL_CLOCK_NEW;
const KVM_LAST: u32 = msr::KVM_WALL_CLOCK_NEW + 0xff;

/// A saved guest uses a part of the interface that this one does not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest uses KVM's MSR {0:#x}, which is not offered here with its value")]
pub struct UnknownMsr(pub u32);

#[cfg(test)]
mod tests;
