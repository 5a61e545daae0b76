//! What other threads than the owner look at: they may wait for the guest's answers, and the owner
//! must not.

use crate::{
    cpus::CpusInfo,
    extras::{BalloonInfo, MemoryInfo},
    info::VcpuInfo,
};

pub(crate) trait Watch: Send + Sync {
    /// How many CPUs there can be; `None` if there are always the same.
    fn cpus_most(&self) -> Option<u32>;
    /// Waits for the answers of a guest that runs to what was asked of its CPUs; whether there are
    /// all.
    fn wait_cpus(&self, runs: bool) -> bool;
    fn cpus(&self, vcpus: &[VcpuInfo]) -> CpusInfo;

    /// Of memory that can come and go.
    fn memory(&self) -> Option<MemoryInfo>;
    /// Asks the guest, and waits a moment for its answer; `None` without a balloon.
    fn balloon(&self) -> Option<BalloonInfo>;
}
