//! Guest time that stands still. The kernel's does not: while a vCPU rests, its TSC counts, and its
//! local APIC's timer runs off.

use crate::{clock::VmTsc, lapic, msrs, refused, sys, vcpu::KvmVcpu};
use engine::Error;
use std::sync::{Mutex, PoisonError};
use vcpu_state::{Tsc, VcpuState};

/// What a vCPU's clocks were when time stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    tsc: Tsc,
    timer_left_ns: Option<u64>,
    /// The timer's interrupt waited already.
    fired: bool,
}

impl Held {
    pub(crate) fn of(state: &VcpuState) -> Self {
        let fired = lapic::timer_request(&state.apic.regs)
            .is_some_and(|(index, bit)| state.apic.regs[index] & bit != 0);
        Self { tsc: state.tsc, timer_left_ns: state.apic.timer_left_ns, fired }
    }

    /// A state that is set meanwhile. A TSC of 0 is for that of the VM (see
    /// [`msrs::restore_tsc`]), which has stood, too.
    fn set(state: &VcpuState, common: impl FnOnce() -> u64) -> Self {
        let mut held = Self::of(state);
        if held.tsc.value == 0 {
            held.tsc.value = common();
        }
        held
    }

    /// The state as it would be if the kernel's time had stood still, too.
    pub(crate) fn correct(&self, state: &mut VcpuState) {
        state.tsc = self.tsc;
        state.apic.timer_left_ns = self.timer_left_ns;
        if let Some((index, bit)) = lapic::timer_request(&state.apic.regs)
            && !self.fired
        {
            // Nobody else has the timer's vector.
            state.apic.regs[index] &= !bit;
        }
    }
}

/// The instants of the host's TSC at which all vCPUs of a VM stopped and went on: one for all, or
/// their TSCs would drift apart.
#[derive(Debug, Default)]
pub(crate) struct Standstill(Mutex<Instants>);

#[derive(Debug, Default)]
struct Instants {
    held: u32,
    leaving: bool,
    at: u64,
}

impl Standstill {
    /// A vCPU is held; when the first of them was.
    fn begin(&self, now: u64) -> u64 {
        let mut instants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if instants.held == 0 {
            *instants = Instants { held: 0, leaving: false, at: now };
        }
        instants.held += 1;
        instants.at
    }

    /// When those that are held were.
    fn begun(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).at
    }

    /// A vCPU goes on; when the first of them did.
    fn end(&self, now: u64) -> u64 {
        let mut instants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut instants.leaving, true) {
            instants.at = now;
        }
        instants.held = instants.held.saturating_sub(1);
        instants.at
    }
}

impl KvmVcpu {
    pub(crate) fn hold(&mut self) -> Result<(), Error> {
        if self.held.is_some() {
            return Ok(());
        }
        let mut state = self.save()?;
        let at = self.vm.standstill.begin(sys::rdtsc());
        if let Some(offset) = sys::tsc_offset(&self.fd) {
            state.tsc.value = self.vm.tsc.scaled(at).wrapping_add(offset);
        }
        self.held = Some(Held::of(&state));
        Ok(())
    }

    /// A state was set on a vCPU that may be held.
    pub(crate) fn hold_again(&mut self, state: &VcpuState) {
        if self.held.is_none() {
            return;
        }
        let tsc = &self.vm.tsc;
        let common = || {
            let kept = msrs::save_tsc(&self.fd, tsc.khz()).value;
            let offset = kept.wrapping_sub(tsc.scaled(sys::rdtsc()));
            let offset = sys::tsc_offset(&self.fd).unwrap_or(offset);
            tsc.scaled(self.vm.standstill.begun()).wrapping_add(offset)
        };
        self.held = Some(Held::set(state, common));
    }

    /// Time goes on from where it was held.
    pub(crate) fn release(&mut self) -> Result<(), Error> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let at = self.vm.standstill.end(sys::rdtsc());
        set_tsc(self, held.tsc.value, at)?;
        {
            // A message that came between the two calls would be lost.
            let vm = self.vm.clone();
            let _no_messages = vm.hold_messages();
            let mut state = self.save()?;
            held.correct(&mut state);
            let page = lapic::to_kvm(&state.apic, state.control.cr8)?;
            self.fd.set_lapic(&page).map_err(refused("KVM_SET_LAPIC"))?;
        }
        msrs::restore_deadline(&self.fd, &held.tsc)?;
        // A guest with the paravirtual clock is told that it did not run; others need not be.
        let _ = self.fd.kvmclock_ctrl();
        Ok(())
    }
}

/// The vCPU's TSC is `value` when the host's is `at`, as exactly as the kernel can.
fn set_tsc(vcpu: &KvmVcpu, value: u64, at: u64) -> Result<(), Error> {
    let tsc: &VmTsc = &vcpu.vm.tsc;
    let offset = value.wrapping_sub(tsc.scaled(at));
    // A kernel that has no offset may say that it took one.
    if sys::set_tsc_offset(&vcpu.fd, offset) && sys::tsc_offset(&vcpu.fd) == Some(offset) {
        return Ok(());
    }
    // A value near what the TSC is by now would be taken for just that, so that none of the time
    // that has passed is taken back; one that lies far off in between is no such neighbour.
    msrs::set_tsc(&vcpu.fd, value.wrapping_add(u64::from(tsc.khz()) * 10_000))?;
    msrs::set_tsc(&vcpu.fd, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_vcpus_stop_and_go_on_at_one_instant() {
        let standstill = Standstill::default();
        for base in [0, 1000] {
            assert_eq!([1, 2].map(|now| standstill.begin(base + now)), [base + 1; 2]);
            assert_eq!(standstill.begun(), base + 1);
            assert_eq!([5, 6].map(|now| standstill.end(base + now)), [base + 5; 2]);
        }
    }

    #[test]
    fn a_vcpu_that_is_new_has_the_time_of_the_others() {
        let mut state = VcpuState::reset(1);
        assert_eq!(Held::set(&state, || 77).tsc.value, 77);
        state.tsc.value = 5;
        assert_eq!(Held::set(&state, || 77).tsc.value, 5, "one that is restored has its own");
    }

    #[test]
    fn what_the_timer_did_meanwhile_is_undone_and_nothing_else() {
        let mut before = VcpuState::reset(0);
        before.apic.regs[0x32] = 0x40;
        before.apic.timer_left_ns = Some(1000);
        before.tsc.value = 5;
        let held = Held::of(&before);
        let mut after = before.clone();
        after.tsc.value = 900;
        after.apic.timer_left_ns = Some(1);
        // The timer's vector, and one beside it.
        after.apic.regs[0x22] = 3;
        held.correct(&mut after);
        before.apic.regs[0x22] = 2;
        assert_eq!(after, before);
        // What waited before still does.
        before.apic.regs[0x22] = 1;
        let mut after = before.clone();
        Held::of(&before).correct(&mut after);
        assert_eq!(after, before);
    }
}
