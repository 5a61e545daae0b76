//! Steal time: how long a vCPU was ready and its thread did not run.

use crate::pvclock::publish;
use engine::GeneralProtection;
use guest_mem::GuestMem;

const ENABLE: u64 = 1;
/// Bits 1 to 5: the area is 64-byte aligned.
const RESERVED: u64 = 0x3e;

/// Nanoseconds that this thread has waited on a run queue since it began, from the scheduler;
/// `None` where the kernel does not tell.
pub fn run_delay_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

/// `struct kvm_steal_time` and its MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steal {
    pub(crate) msr: u64,
    /// The thread's wait when it was last looked at.
    last: Option<u64>,
}

impl Steal {
    /// Offset of the version; the steal time itself is at 0.
    const VERSION: usize = 8;
    const LEN: usize = 64;

    pub(crate) fn enable(
        &mut self,
        memory: &GuestMem,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        self.resume(value)?;
        self.write(memory, 0);
        Ok(())
    }

    /// Goes on where another run of the same guest stopped: the area is in guest memory.
    pub(crate) fn resume(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value & RESERVED != 0 {
            return Err(GeneralProtection);
        }
        *self = Self { msr: value, last: None };
        Ok(())
    }

    pub(crate) fn update(&mut self, memory: &GuestMem, run_delay_ns: u64) {
        let before = self.last.replace(run_delay_ns).unwrap_or(run_delay_ns);
        let more = run_delay_ns.saturating_sub(before);
        if more != 0 {
            self.write(memory, more);
        }
    }

    /// Adds to what the guest's area says.
    fn write(&self, memory: &GuestMem, more: u64) {
        if self.msr & ENABLE == 0 {
            return;
        }
        let address = self.msr & !(ENABLE | RESERVED);
        let mut bytes = [0; Self::LEN];
        if memory.read(address, &mut bytes).is_err() {
            return;
        }
        let mut stolen = [0; 8];
        stolen.copy_from_slice(&bytes[..8]);
        let stolen = u64::from_le_bytes(stolen).wrapping_add(more);
        bytes[..8].copy_from_slice(&stolen.to_le_bytes());
        publish(memory, address, Self::VERSION, &mut bytes);
    }
}
