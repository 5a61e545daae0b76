//! CPUs that come and go while the machine runs.
//!
//! Every vCPU that there can be has its thread from the start, which waits for the owner's word until
//! the CPU is there; the engine makes the vCPU when it first comes. What reaches one that is not there,
//! an INIT to all for instance, is dropped when it comes: it starts as after power-on.

use crate::{
    board::{Apics, Board},
    extras::{BalloonInfo, Extras, MemoryInfo},
    info::{Activity, VcpuInfo},
    vcpu::{VcpuThread, with_source},
    watch::Watch,
};
use chipset::cpus::{Cpu, Wanted};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use vcpu_state::VcpuState;

/// How long a guest has for its answer. One without ACPI gives none.
const PATIENCE: Duration = Duration::from_secs(3);

/// What came of asking for another number of CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpusAnswer {
    /// The machine has those that it has.
    Fixed,
    /// There can be from one to so many.
    Range(u32),
    /// The guest has answered.
    Answered(CpusInfo),
    /// It has not, so far.
    Silent(CpusInfo),
    /// The engine has failed.
    Failed(String),
}

/// What each CPU that there can be does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpusInfo {
    pub cpus: Vec<(Cpu, Activity)>,
}

impl CpusInfo {
    /// How many the guest has.
    pub fn present(&self) -> usize {
        self.cpus.iter().filter(|(cpu, _)| cpu.present).count()
    }
}

impl fmt::Display for CpusInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.cpus.len();
        writeln!(f, "the guest has {} CPUs of {all} that there can be", self.present())?;
        for (id, (cpu, activity)) in self.cpus.iter().enumerate() {
            write!(f, "CPU {id:<4} ")?;
            match (cpu.present, activity) {
                (false, _) => f.write_str("absent")?,
                (true, Activity::Runs) => f.write_str("runs")?,
                (true, Activity::Idle) => f.write_str("idle")?,
                (true, Activity::Off) => f.write_str("not in use: the guest has it offline")?,
            }
            if cpu.inserting {
                f.write_str("; the guest has not looked at it")?;
            } else if cpu.removing {
                f.write_str("; the guest has not heard that it is to go")?;
            } else if cpu.wanted == Wanted::Gone {
                f.write_str("; the guest is to let go of it")?;
            }
            match cpu.refused {
                Some(status) => writeln!(f, "; the guest refused (_OST status {status:#x})")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// A PC, for other threads.
pub(crate) struct PcWatch {
    pub(crate) extras: Arc<Extras>,
    pub(crate) cpus: Option<Arc<chipset::Cpus>>,
}

impl Watch for PcWatch {
    fn cpus_most(&self) -> Option<u32> {
        self.cpus.as_ref().map(|cpus| cpus.cpus().len() as u32)
    }

    fn wait_cpus(&self, runs: bool) -> bool {
        let patience = if runs { PATIENCE } else { Duration::ZERO };
        self.cpus.as_ref().is_none_or(|cpus| cpus.wait(patience))
    }

    fn cpus(&self, vcpus: &[VcpuInfo]) -> CpusInfo {
        let always = Cpu { present: true, ..Cpu::default() };
        let cpus = match &self.cpus {
            Some(cpus) => cpus.cpus(),
            None => vec![always; vcpus.len()],
        };
        // What has reached one that is not there is of no matter.
        let activity = |cpu: &Cpu, vcpu: &VcpuInfo| {
            if cpu.present { vcpu.activity } else { Activity::Off }
        };
        let all = cpus.into_iter().zip(vcpus);
        CpusInfo { cpus: all.map(|(cpu, vcpu)| (cpu, activity(&cpu, vcpu))).collect() }
    }

    fn memory(&self) -> Option<MemoryInfo> {
        self.extras.memory_info()
    }

    fn balloon(&self) -> Option<BalloonInfo> {
        self.extras.balloon_info()
    }
}

impl Board {
    /// Lets the guest have so many CPUs, as far as it agrees. All vCPUs are parked.
    pub(crate) fn set_count(&self, count: u32, vcpus: &[VcpuThread]) -> Result<(), String> {
        self.renew_those_ejected(vcpus)?;
        let Some(cpus) = &self.chipset.cpus else { return Ok(()) };
        cpus.set_count(count, |id| self.renew(id, vcpus))
    }

    /// What the guest ejected is as if it had never been there. All vCPUs are parked.
    pub(crate) fn renew_those_ejected(&self, vcpus: &[VcpuThread]) -> Result<(), String> {
        let ejected = self.chipset.cpus.as_ref().map(|cpus| cpus.take_ejected());
        ejected.unwrap_or_default().into_iter().try_for_each(|id| self.renew(id, vcpus))
    }

    /// A vCPU as after power-on, whatever has reached it.
    fn renew(&self, id: u32, vcpus: &[VcpuThread]) -> Result<(), String> {
        match &self.apics {
            Apics::Board { bus, offsets, pv } => {
                offsets.set(id, 0);
                pv.reset_vcpu(id);
                if let Some(apic) = bus.apic(id) {
                    apic.reset();
                }
            }
            Apics::Engine { nmi } => {
                if let Some(nmi) = nmi.get(id as usize) {
                    nmi.store(false, SeqCst);
                }
            }
        }
        let vcpu = vcpus.get(id as usize).ok_or("no such vCPU")?;
        let set = vcpu.with(move |vcpu, _| {
            // KVM keeps an INIT or SIPI that has arrived until it runs the vCPU, or is asked for
            // its state.
            vcpu.state()?;
            vcpu.set_state(&VcpuState::reset(id))
        });
        set.ok_or("a vCPU is gone")?.map_err(|error| with_source(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_its_line() {
        let there = Cpu { present: true, ..Cpu::default() };
        let cpus = vec![
            (there, Activity::Runs),
            (Cpu { wanted: Wanted::Gone, ..there }, Activity::Idle),
            (Cpu { refused: Some(0x82), ..there }, Activity::Off),
            (Cpu { inserting: true, wanted: Wanted::Taken, ..there }, Activity::Off),
            (Cpu::default(), Activity::Off),
        ];
        let text = CpusInfo { cpus }.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "the guest has 4 CPUs of 5 that there can be",
                "CPU 0    runs",
                "CPU 1    idle; the guest is to let go of it",
                "CPU 2    not in use: the guest has it offline; the guest refused (_OST status 0x82)",
                "CPU 3    not in use: the guest has it offline; the guest has not looked at it",
                "CPU 4    absent",
            ]
        );
    }
}
