//! What the monitor prompt shows.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    /// A Xen domain that has suspended itself.
    Asleep,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    Runs,
    /// Halted until an interrupt.
    Idle,
    /// The guest has not started it, or has halted it for good.
    #[default]
    Off,
}

/// Counts of one vCPU since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuInfo {
    /// Instructions, where the engine counts them.
    pub retired: Option<u64>,
    pub rip: u64,
    pub activity: Activity,
    /// The guest has it.
    pub present: bool,
    pub exits: Exits,
}

/// Callbacks and returns of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Returns of the engine.
    pub runs: u64,
    pub idle: u64,
    pub pio: u64,
    pub mmio: u64,
    pub msr: u64,
    pub interrupts: u64,
    /// Exceptions, system calls and hypercalls that a personality took.
    pub traps: u64,
}

#[derive(Clone, Debug)]
pub struct Info {
    pub state: State,
    pub engine: &'static str,
    pub cpu_model: String,
    pub memory: u64,
    /// Guest time since power-on.
    pub uptime_ns: u64,
    pub kernel: String,
    pub vcpus: Vec<VcpuInfo>,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Running => "running",
            State::Paused => "paused",
            State::Asleep => "asleep",
        };
        writeln!(f, "state    {state}, up {:.1} s", self.uptime_ns as f64 / 1e9)?;
        writeln!(f, "engine   {}, CPU model {}", self.engine, self.cpu_model)?;
        writeln!(f, "memory   {} MiB", self.memory >> 20)?;
        writeln!(f, "kernel   {}", self.kernel)?;
        for (id, vcpu) in self.vcpus.iter().enumerate().filter(|(_, vcpu)| vcpu.present) {
            let Exits { runs, idle, pio, mmio, msr, interrupts, traps } = vcpu.exits;
            write!(f, "vcpu {id:<3} at {:#018x}", vcpu.rip)?;
            if let Some(retired) = vcpu.retired {
                write!(f, ", {retired} instructions")?;
            }
            if traps > 0 {
                write!(f, ", {traps} traps")?;
            }
            writeln!(
                f,
                ", {pio} port accesses, {mmio} MMIO, {msr} MSR, {interrupts} interrupts, \
                 {idle} idle, {runs} exits"
            )?;
        }
        Ok(())
    }
}
