//! The machine as the protocol library sees it.

use crate::{
    arch::{RegId, Registers, X86},
    breakpoints::Points,
    inbox::Inbox,
    memory, registers,
};
use engine::{DebugExit, GuestDebug};
use gdbstub::{
    common::{Signal, Tid},
    stub::MultiThreadStopReason,
    target::{
        TargetError, TargetResult,
        ext::{
            base::{
                BaseOps,
                multithread::{MultiThreadBase, MultiThreadResumeOps},
                single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps},
            },
            breakpoints::BreakpointsOps,
            monitor_cmd::MonitorCmdOps,
            thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps},
        },
    },
};
use machine::{DebugStop, Gone, Handle};
use std::collections::VecDeque;
use vcpu_state::{MpState, VcpuState};

pub(crate) struct Target {
    pub(crate) handle: Handle,
    pub(crate) inbox: Inbox,
    pub(crate) points: Points,
    /// What each vCPU is watched for.
    debug: Vec<GuestDebug>,
    /// Of vCPUs since the machine stopped.
    states: Vec<Option<Box<VcpuState>>>,
    /// Breakpoints and watchpoints that were hit while another stop was reported; one of a
    /// vCPU at most.
    missed: VecDeque<DebugStop>,
    /// The debugger asked for the machine to run, and hears of one of these instead.
    pub(crate) tell_missed: bool,
    /// The vCPU that stopped last.
    focus: usize,
    pub(crate) actions: crate::resume::Actions,
}

/// Threads of the protocol are numbered from 1.
pub(crate) fn tid_of(vcpu: usize) -> Tid {
    Tid::MIN.saturating_add(vcpu)
}

pub(crate) fn vcpu_of(tid: Tid) -> usize {
    tid.get() - 1
}

impl Target {
    pub(crate) fn new(handle: Handle, inbox: Inbox) -> Self {
        let vcpus = handle.vcpus();
        Self {
            handle,
            inbox,
            points: Points::default(),
            debug: vec![GuestDebug::default(); vcpus],
            states: vec![None; vcpus],
            missed: VecDeque::new(),
            tell_missed: false,
            focus: 0,
            actions: Default::default(),
        }
    }

    /// A vCPU's state; of a machine that runs, or of a vCPU that does not exist, none.
    pub(crate) fn state(&mut self, vcpu: usize) -> Result<&VcpuState, TargetError<Gone>> {
        let slot = self.states.get_mut(vcpu).ok_or(TargetError::NonFatal)?;
        match slot {
            Some(state) => Ok(state),
            None => Ok(slot.insert(Box::new(fetch(&self.handle, vcpu)?))),
        }
    }

    /// Changes a vCPU's state as it is now.
    fn change(
        &mut self,
        vcpu: usize,
        change: impl FnOnce(&mut VcpuState) -> Option<()> + Send + 'static,
    ) -> TargetResult<(), Self> {
        let slot = self.states.get_mut(vcpu).ok_or(TargetError::NonFatal)?;
        *slot = None;
        let done = self.handle.on_vcpu(vcpu, move |vcpu| {
            let mut state = vcpu.state().ok()?;
            change(&mut state)?;
            vcpu.set_state(&state).ok()
        });
        done.ok().flatten().ok_or(TargetError::NonFatal)
    }

    /// The machine is about to run, or was reset.
    pub(crate) fn forget_states(&mut self) {
        self.states.fill(None);
    }

    /// Sets breakpoints on every vCPU, and single-steps where `step` says so. Refused by the
    /// engine, nothing changes.
    pub(crate) fn watch(&mut self, step: &dyn Fn(usize) -> bool) -> Result<(), TargetError<Gone>> {
        for vcpu in 0..self.debug.len() {
            let wanted =
                GuestDebug { single_step: step(vcpu), breakpoints: self.points.breakpoints() };
            if self.debug.get(vcpu) == Some(&wanted) {
                continue;
            }
            let debug = wanted.clone();
            let set = self.handle.on_vcpu(vcpu, move |vcpu| vcpu.set_debug(&debug).is_ok());
            if !set.unwrap_or(false) {
                return Err(TargetError::NonFatal);
            }
            if let Some(slot) = self.debug.get_mut(vcpu) {
                *slot = wanted;
            }
        }
        Ok(())
    }

    /// Takes away everything that a debugger set.
    pub(crate) fn clear_debug(&mut self) {
        self.points = Points::default();
        // Of a machine that has ended there is nothing to take away.
        drop(self.watch(&|_| false));
    }

    /// A stop that cannot be reported now. A breakpoint does not stop again when the vCPU goes
    /// on from it, so this one is kept for the next time that the debugger listens.
    pub(crate) fn missed(&mut self, stop: DebugStop) {
        if let DebugStop::Exit(vcpu, _) = stop {
            let other = |s: &DebugStop| !matches!(s, DebugStop::Exit(v, _) if *v == vcpu);
            self.missed.retain(other);
            self.missed.push_back(stop);
        }
    }

    /// Whether something is to be reported before the machine runs.
    pub(crate) fn has_missed(&mut self) -> bool {
        let points = &self.points;
        self.missed.retain(|stop| match stop {
            DebugStop::Exit(_, DebugExit::Breakpoint { address }) => {
                points.is_software(*address).is_some()
            }
            DebugStop::Exit(_, DebugExit::Watchpoint { address }) => {
                points.watch_at(*address).is_some()
            }
            _ => false,
        });
        !self.missed.is_empty()
    }

    pub(crate) fn take_missed(&mut self) -> Option<MultiThreadStopReason<u64>> {
        if !std::mem::take(&mut self.tell_missed) {
            return None;
        }
        let stop = self.missed.pop_front()?;
        Some(self.reason(stop))
    }

    pub(crate) fn reason(&mut self, stop: DebugStop) -> MultiThreadStopReason<u64> {
        let signal =
            |vcpu, signal| MultiThreadStopReason::SignalWithThread { tid: tid_of(vcpu), signal };
        let DebugStop::Exit(vcpu, exit) = stop else { return signal(self.focus, Signal::SIGINT) };
        self.focus = vcpu as usize;
        let tid = tid_of(self.focus);
        match exit {
            DebugExit::Step => signal(self.focus, Signal::SIGTRAP),
            DebugExit::Breakpoint { address } => match self.points.is_software(address) {
                Some(true) => MultiThreadStopReason::SwBreak(tid),
                Some(false) => MultiThreadStopReason::HwBreak(tid),
                None => signal(self.focus, Signal::SIGTRAP),
            },
            DebugExit::Watchpoint { address } => match self.points.watch_at(address) {
                Some(kind) => MultiThreadStopReason::Watch { tid, kind, addr: address },
                None => signal(self.focus, Signal::SIGTRAP),
            },
        }
    }
}

fn fetch(handle: &Handle, vcpu: usize) -> Result<VcpuState, TargetError<Gone>> {
    let state = handle.on_vcpu(vcpu, |vcpu| vcpu.state().ok());
    state.ok().flatten().ok_or(TargetError::NonFatal)
}

impl gdbstub::target::Target for Target {
    type Arch = X86;
    type Error = Gone;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Gone> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Target {
    fn read_registers(&mut self, regs: &mut Registers, tid: Tid) -> TargetResult<(), Self> {
        *regs = registers::all(self.state(vcpu_of(tid))?);
        Ok(())
    }

    fn write_registers(&mut self, regs: &Registers, tid: Tid) -> TargetResult<(), Self> {
        let regs = regs.clone();
        self.change(vcpu_of(tid), move |state| registers::set_all(state, &regs))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, at: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let memory = self.handle.memory().clone();
        let state = self.state(vcpu_of(tid))?;
        match memory::read(state, &memory, at, data) {
            0 if !data.is_empty() => Err(TargetError::NonFatal),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, at: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let memory = self.handle.memory().clone();
        let state = self.state(vcpu_of(tid))?;
        machine::virt::write(state, &memory, at, data).map_err(|_| TargetError::NonFatal)
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), Gone> {
        (0..self.debug.len()).map(tid_of).for_each(active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Target {
    fn read_register(&mut self, tid: Tid, reg: RegId, out: &mut [u8]) -> TargetResult<usize, Self> {
        let value = registers::get(self.state(vcpu_of(tid))?, reg);
        let out = out.get_mut(..reg.len()).ok_or(TargetError::NonFatal)?;
        out.copy_from_slice(value.to_le_bytes().get(..reg.len()).ok_or(TargetError::NonFatal)?);
        Ok(reg.len())
    }

    fn write_register(&mut self, tid: Tid, reg: RegId, value: &[u8]) -> TargetResult<(), Self> {
        let mut bytes = [0; 16];
        if value.len() != reg.len() {
            return Err(TargetError::NonFatal);
        }
        bytes.get_mut(..value.len()).ok_or(TargetError::NonFatal)?.copy_from_slice(value);
        let value = u128::from_le_bytes(bytes);
        self.change(vcpu_of(tid), move |state| registers::set(state, reg, value))
    }
}

impl ThreadExtraInfo for Target {
    /// What `info threads` shows.
    fn thread_extra_info(&self, tid: Tid, out: &mut [u8]) -> Result<usize, Gone> {
        let vcpu = vcpu_of(tid);
        let what = match fetch(&self.handle, vcpu) {
            Ok(state) => match state.mp {
                MpState::Running => "running",
                MpState::Halted => "halted",
                MpState::Init | MpState::WaitForSipi => "waiting to be started",
            },
            Err(_) => "unknown",
        };
        let text = format!("vCPU {vcpu}: {what}");
        let len = text.len().min(out.len());
        for (to, from) in out.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Ok(len)
    }
}
