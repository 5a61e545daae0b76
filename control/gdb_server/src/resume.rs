//! Continuing and stepping.

use crate::target::{Target, vcpu_of};
use gdbstub::{
    common::{Signal, Tid},
    target::{
        TargetError,
        ext::base::multithread::{
            MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
            MultiThreadSingleStep, MultiThreadSingleStepOps,
        },
    },
};
use machine::Gone;

/// What the debugger wants of the next resume.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    step: Vec<usize>,
    proceed: Vec<usize>,
    /// vCPUs that are not named stay where they are.
    locked: bool,
}

/// A peer may name vCPUs as often as it likes; what it repeats is not kept.
fn add(list: &mut Vec<usize>, vcpu: usize) {
    if !list.contains(&vcpu) {
        list.push(vcpu);
    }
}

impl Target {
    fn check(&self, tid: Tid) -> Option<usize> {
        let vcpu = vcpu_of(tid);
        (vcpu < self.handle.vcpus()).then_some(vcpu)
    }

    /// The only vCPU to run, if not all do. The machine runs one or all: of several that are to
    /// run without the others, the first does, and the others as if they had not got far.
    fn only(&self) -> Option<usize> {
        let Actions { step, proceed, locked } = &self.actions;
        let named = step.iter().chain(proceed);
        let all = named.clone().count() >= self.handle.vcpus();
        if *locked && !all { named.copied().next() } else { None }
    }
}

impl MultiThreadResume for Target {
    fn resume(&mut self) -> Result<(), Gone> {
        // Every stop that belongs to the past has been told when this returns.
        self.handle.pause()?;
        for stop in self.inbox.stops() {
            self.missed(stop);
        }
        self.forget_states();
        // Only a step must run: it is bounded, and what was missed is told after it.
        if self.has_missed() && self.actions.step.is_empty() {
            self.tell_missed = true;
            return Ok(());
        }
        let step = std::mem::take(&mut self.actions.step);
        let watched = self.watch(&|vcpu| step.contains(&vcpu));
        self.actions.step = step;
        // The breakpoints were accepted when they were set: the engine has failed.
        watched.map_err(|error| match error {
            TargetError::Fatal(gone) => gone,
            _ => Gone,
        })?;
        match self.only() {
            Some(vcpu) => self.handle.resume_only(vcpu),
            None => self.handle.resume(),
        }
    }

    fn clear_resume_actions(&mut self) -> Result<(), Gone> {
        self.actions = Actions::default();
        Ok(())
    }

    /// A machine has no use for signals.
    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Gone> {
        if let Some(vcpu) = self.check(tid) {
            add(&mut self.actions.proceed, vcpu);
        }
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Target {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Gone> {
        if let Some(vcpu) = self.check(tid) {
            add(&mut self.actions.step, vcpu);
        }
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Target {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Gone> {
        self.actions.locked = true;
        Ok(())
    }
}
