//! What each vCPU has of the interface.

use crate::{
    pvclock::{TimeInfo, publish, time_scale},
    steal::Steal,
};
use engine::{ClockSample, GeneralProtection};
use guest_mem::GuestMem;

/// The guest may let the host poll when it halts.
pub(crate) const POLL_CONTROL_RESET: u64 = 1;

const SYSTEM_TIME_ENABLE: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PvVcpu {
    pub(crate) system_time: u64,
    pub(crate) steal: Steal,
    pub(crate) poll_control: u64,
    /// What its TSC is ahead of the VM's.
    pub(crate) tsc_offset: u64,
}

impl Default for PvVcpu {
    fn default() -> Self {
        let (system_time, tsc_offset) = (0, 0);
        Self { system_time, tsc_offset, steal: Steal::default(), poll_control: POLL_CONTROL_RESET }
    }
}

impl PvVcpu {
    pub(crate) fn set_poll_control(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value & !1 != 0 {
            return Err(GeneralProtection);
        }
        self.poll_control = value;
        Ok(())
    }

    pub(crate) fn write_time(&self, memory: &GuestMem, now: &ClockSample, stopped: bool) {
        if self.system_time & SYSTEM_TIME_ENABLE == 0 {
            return;
        }
        let (tsc_to_system_mul, tsc_shift) = time_scale(now.khz);
        // A vCPU with a TSC of its own has a time page of its own, whose readers may see
        // another's time a little later.
        let stable = if self.tsc_offset == 0 { TimeInfo::TSC_STABLE } else { 0 };
        let info = TimeInfo {
            version: 0,
            tsc_timestamp: now.tsc.wrapping_add(self.tsc_offset),
            system_time: now.guest_ns,
            tsc_to_system_mul,
            tsc_shift,
            flags: stable | if stopped { TimeInfo::GUEST_STOPPED } else { 0 },
        };
        publish(memory, self.system_time & !SYSTEM_TIME_ENABLE, 0, &mut info.to_bytes());
    }
}
