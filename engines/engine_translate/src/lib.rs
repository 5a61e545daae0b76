//! The engine that needs no hardware support: guests are interpreted.
//!
//! A vCPU is a [`semantics::Cpu`] with the decode cache of [`interp`]. What concerns several of
//! them, or them and devices, goes through requests that each serves between two blocks: see
//! [`semantics::sync`].

mod clock;
mod vcpu;
mod vm;

pub use vcpu::TranslateVcpu;
pub use vm::TranslateVm;

use cpu_model::{TRANSLATE_ARCH_CAPABILITIES, host_table, translate_features};
use emit::StubCache;
use engine::{Caps, Engine, Error, Intercepts, Vm, VmConfig};
use std::sync::Arc;
pub use translator::Windowing;

/// Frequency of the guest's TSC unless the VM asks for another: nanoseconds.
const TSC_KHZ: u32 = 1_000_000;

#[derive(Debug)]
pub struct Translate {
    caps: Caps,
    stubs: StubCache,
    translation: Option<Translation>,
}

/// How code is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Bytes of memory for each vCPU's translated code, with all that is kept of it and of
    /// decoded code.
    pub code_memory: usize,
    /// A block is translated when it has run so often.
    pub hot: u32,
    /// Tell `perf report` what it is: see [`translator::PerfMap`].
    pub perf_map: bool,
    /// Whether accesses go by windows, beside the software TLB: blocks that are made for windows
    /// are slower than others where none is open.
    pub windows: Windowing,
}

impl Default for Translation {
    fn default() -> Self {
        Self { code_memory: 128 << 20, hot: 12, perf_map: false, windows: Windowing::Off }
    }
}

impl Translate {
    pub fn new() -> Result<Self, Error> {
        let stubs = StubCache::new().map_err(|source| Error::Os { call: "mmap", source })?;
        let caps = Caps {
            intercepts: Intercepts { exceptions: !0, syscall: true, cpuid: true },
            ring0_intercepts: Intercepts::default(),
            counted: true,
            local_apic: false,
            breakpoints: 4096,
            max_vcpus: 255,
            tsc_khz: TSC_KHZ,
            tsc_scaling: true,
            cpuid: translate_features(&host_table()),
            ring0_capabilities: Some(TRANSLATE_ARCH_CAPABILITIES),
        };
        Ok(Self { caps, stubs, translation: None })
    }

    /// Hot code is translated, where the host has what that needs.
    #[must_use]
    pub fn with_translation(mut self, translation: Translation) -> Self {
        self.translation = Some(translation);
        self
    }
}

impl Translate {
    /// [`Engine::create_vm`], with what only this engine's VMs have.
    pub fn vm(&self, config: &VmConfig) -> Result<TranslateVm, Error> {
        self.caps.check(config)?;
        let khz = config.tsc_khz.unwrap_or(TSC_KHZ);
        if khz == 0 {
            return Err(Error::Unsupported("a TSC that stands still"));
        }
        TranslateVm::new(config, khz, &self.stubs, self.translation)
    }
}

impl Engine for Translate {
    fn name(&self) -> &'static str {
        "translate"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>, Error> {
        Ok(Arc::new(self.vm(config)?))
    }
}

#[cfg(test)]
mod tests;
