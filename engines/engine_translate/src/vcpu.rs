//! One vCPU.

use crate::TranslateVm;
use engine::{BreakpointKind, Error, Exit, GuestDebug, Kick, Stats, Vcpu, VcpuHost};
use interp::Interp;
use semantics::{
    Cpu, Ctx,
    mem::Watch,
    sync::{Slot, flag},
};
use std::sync::{Arc, atomic::Ordering::SeqCst};
use translator::Translator;
use vcpu_state::VcpuState;
use x86_defs::is_canonical_48;

#[derive(Debug)]
pub struct TranslateVcpu {
    cpu: Cpu,
    interp: Interp,
    counted: bool,
    khz: u32,
    /// The common TSC when the vCPU last stopped.
    last_tsc: Option<u64>,
    /// The TSC to continue from, once the common one is known.
    wanted_tsc: Option<u64>,
}

impl TranslateVcpu {
    pub(crate) fn new(vm: &TranslateVm, id: u32) -> Result<Self, Error> {
        let mut cpu = Cpu::new(id, &vm.mem, &vm.slots, vm.cpuid.clone());
        cpu.trace = vm.trace;
        cpu.intercepts = vm.intercepts;
        let mut interp = Interp::new(vm.features, vm.stubs.clone());
        if let Some(how) = vm.translation {
            let translator =
                Translator::new(how.code_memory / 4 * 3, vm.features, vm.stubs.clone())
                    .map_err(|source| Error::Os { call: "mmap", source })?;
            let translator = translator
                .map(|t| if vm.counted { t.counting() } else { t })
                .map(|t| t.windows(how.windows));
            if let Some(mut translator) = translator {
                if let Some(map) = &vm.perf_map {
                    translator.set_perf_map(map.clone());
                }
                interp.set_translator(translator, how.hot);
            }
        }
        Ok(Self { cpu, interp, counted: vm.counted, khz: vm.khz, last_tsc: None, wanted_tsc: None })
    }

    /// Remembers from now on what [`Self::host_code`] answers.
    pub fn keep_listing(&mut self) {
        if let Some(translator) = self.interp.translator() {
            translator.keep_listing();
        }
    }

    /// What the guest code at a linear address was last translated to: addresses and bytes.
    pub fn host_code(&mut self, linear: u64) -> Option<[(u64, Vec<u8>); 2]> {
        self.interp.translator()?.host_code(linear)
    }

    fn run_budget(&mut self, budget: u64, host: &mut dyn VcpuHost) -> Exit {
        if let Some(wanted) = self.wanted_tsc.take() {
            self.continue_tsc(wanted, host.tsc());
            host.set_tsc_offset(self.cpu.tsc_offset);
        }
        let exit = self.interp.run(&mut Ctx::new(&mut self.cpu, host), budget);
        self.last_tsc = Some(host.tsc());
        exit
    }

    /// The vCPU's TSC reads `wanted` when the common one reads `common`. Values that differ by
    /// less than a second were meant to be the same: vCPUs are restored one after another.
    fn continue_tsc(&mut self, wanted: u64, common: u64) {
        let offset = wanted.wrapping_sub(common);
        let second = u64::from(self.khz) * 1000;
        self.cpu.tsc_offset = if (offset as i64).unsigned_abs() < second { 0 } else { offset };
    }
}

impl Vcpu for TranslateVcpu {
    fn run(&mut self, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        Ok(self.run_budget(u64::MAX, host))
    }

    fn run_for(&mut self, retired: u64, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        if !self.counted {
            return Err(Error::Unsupported("counting retired instructions in this VM"));
        }
        Ok(self.run_budget(retired, host))
    }

    fn state(&mut self) -> Result<VcpuState, Error> {
        let tsc = match self.wanted_tsc {
            Some(wanted) => wanted,
            None => self.last_tsc.unwrap_or(0).wrapping_add(self.cpu.tsc_offset),
        };
        Ok(self.cpu.save_state(tsc, self.khz))
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), Error> {
        check(state)?;
        self.cpu.load_state(state);
        // Zero is the reset value: the vCPU's TSC is the common one.
        match (state.tsc.value, self.last_tsc) {
            (0, _) => (self.cpu.tsc_offset, self.wanted_tsc) = (0, None),
            (value, Some(common)) => self.continue_tsc(value, common),
            (value, None) => self.wanted_tsc = Some(value),
        }
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Kicker(self.cpu.slot.clone()))
    }

    fn set_debug(&mut self, debug: &GuestDebug) -> Result<(), Error> {
        let mut watches: Vec<Watch> =
            self.cpu.mmu.watches().iter().copied().filter(|w| w.bits != 0).collect();
        for breakpoint in &debug.breakpoints {
            let (len, reads) = match breakpoint.kind {
                BreakpointKind::Execute => continue,
                BreakpointKind::Write { len } => (len, false),
                BreakpointKind::Access { len } => (len, true),
            };
            if !matches!(len, 1 | 2 | 4 | 8) {
                return Err(Error::Unsupported("a watchpoint of this length"));
            }
            let (linear, len) = (breakpoint.address, len.into());
            watches.push(Watch { linear, len, reads, bits: 0 });
        }
        self.cpu.mmu.set_watches(watches);
        self.interp.set_debug(debug);
        Ok(())
    }

    fn retired(&self) -> Option<u64> {
        self.interp.counts().then(|| self.interp.retired())
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.interp.report(&self.cpu, &mut stats);
        stats
    }
}

/// What the handlers rely on.
fn check(state: &VcpuState) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::State(what.to_owned()));
    let control = &state.control;
    if control.efer & x86_defs::cr::efer::LMA != 0 && !is_canonical_48(state.regs.rip) {
        return refused("RIP is not canonical");
    }
    if control.xcr0 & 1 == 0 || control.xcr0 & !7 != 0 || control.xcr0 & 6 == 4 {
        return refused("XCR0 selects components that do not exist");
    }
    if control.cr4 & x86_defs::cr::cr4::LA57 != 0 {
        return refused("CR4.LA57 is set");
    }
    Ok(())
}

#[derive(Debug)]
struct Kicker(Arc<Slot>);

impl Kick for Kicker {
    fn notify(&self) {
        self.0.flags.fetch_or(flag::NOTIFY, SeqCst);
    }

    fn stop(&self) {
        self.0.flags.fetch_or(flag::STOP, SeqCst);
    }
}
