//! The VM's clocks.

use crate::{os, sys};
use engine::{ClockSample, Error};
use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::{SystemTime, UNIX_EPOCH},
};

/// How the VM's common TSC follows from the host's.
#[derive(Debug)]
pub(crate) struct VmTsc {
    host_khz: u32,
    guest_khz: u32,
    ahead: AtomicU64,
    /// What the guest reads is the host's, whatever the kernel was told.
    raw: bool,
}

impl VmTsc {
    pub(crate) fn new(host_khz: u32, guest_khz: u32) -> Self {
        let tsc =
            Self { host_khz: host_khz.max(1), guest_khz, ahead: AtomicU64::new(0), raw: false };
        tsc.set(sys::rdtsc(), 0);
        tsc
    }

    /// For programs, that read the processor's own where nothing intercepts RDTSC.
    pub(crate) fn unless_raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// The host's TSC at the guest's frequency.
    pub(crate) fn scaled(&self, host: u64) -> u64 {
        if self.host_khz == self.guest_khz {
            return host;
        }
        (u128::from(host) * u128::from(self.guest_khz) / u128::from(self.host_khz)) as u64
    }

    pub(crate) fn at(&self, host: u64) -> u64 {
        if self.raw {
            return host;
        }
        self.scaled(host).wrapping_add(self.ahead.load(SeqCst))
    }

    /// The common TSC was `value` when the host's was `host`.
    pub(crate) fn set(&self, host: u64, value: u64) {
        self.ahead.store(value.wrapping_sub(self.scaled(host)), SeqCst);
    }

    /// What a vCPU's TSC is ahead of the host's, less what its guest wrote.
    pub(crate) fn set_ahead(&self, ahead: u64) {
        self.ahead.store(ahead, SeqCst);
    }

    pub(crate) fn khz(&self) -> u32 {
        self.guest_khz
    }
}

fn realtime_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The kernel reads its clock, the host's TSC and the time of day at one instant where it can.
pub(crate) fn sample(vm: &VmFd, tsc: &VmTsc) -> Result<ClockSample, Error> {
    let c = vm.get_clock().map_err(os("KVM_GET_CLOCK"))?;
    let host = if c.flags & KVM_CLOCK_HOST_TSC != 0 { c.host_tsc } else { sys::rdtsc() };
    let realtime_ns = if c.flags & KVM_CLOCK_REALTIME != 0 { c.realtime } else { realtime_now() };
    Ok(ClockSample { guest_ns: c.clock, tsc: tsc.at(host), khz: tsc.khz(), realtime_ns })
}

/// Guest time goes on from the sample; what passed since then is not guest time.
pub(crate) fn set(vm: &VmFd, tsc: &VmTsc, at: &ClockSample) -> Result<(), Error> {
    let clock = kvm_clock_data { clock: at.guest_ns, ..Default::default() };
    vm.set_clock(&clock).map_err(os("KVM_SET_CLOCK"))?;
    tsc.set(sys::rdtsc(), at.tsc);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_tsc_runs_at_the_guests_frequency() {
        let tsc = VmTsc::new(2_000_000, 3_000_000);
        tsc.set(1_000_000, 500);
        assert_eq!(tsc.at(1_000_000), 500);
        assert_eq!(tsc.at(3_000_000), 500 + 3_000_000);
        assert_eq!(VmTsc::new(0, 1).khz(), 1);
        assert_eq!(tsc.unless_raw(true).at(1_000_000), 1_000_000);
    }
}
