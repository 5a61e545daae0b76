//! One of the two vCPUs, with a VM of its own.

use super::{Error, Start, board::TSC_KHZ};
use cpu_model::Options;
use engine::{Engine, Exit, Vcpu, VcpuHost, Vm, VmConfig};
use engine_translate::{Translate, TranslateVcpu, TranslateVm};
use guest_mem::{Change, GuestMem, Memfd, Slot};
use std::sync::Arc;
use vcpu_state::VcpuState;

/// The CPUID leaf with the first letters of the processor's name.
const BRAND: u32 = 0x8000_0002;

pub struct Side {
    pub vm: TranslateVm,
    pub vcpu: TranslateVcpu,
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Side").field("retired", &self.retired()).finish_non_exhaustive()
    }
}

impl Side {
    /// With the kernel in memory and the vCPU before its first instruction.
    pub fn new(
        engine: &Translate,
        start: &Start,
        trace: bool,
        other_brand: bool,
    ) -> Result<Self, Error> {
        let supported = &engine.caps().cpuid;
        let model = cpu_model::best_model(supported).ok_or("no CPU model for this host")?;
        let options = Options {
            vcpus: 1,
            tsc_khz: TSC_KHZ,
            apic_khz: (local_apic::TIMER_HZ / 1000) as u32,
            hypervisor: pv_kvm::leaves(pv_kvm::Features::all()),
        };
        let mut cpuid = cpu_model::resolve(&model, supported, &options)?;
        if let Some(entry) = cpuid.get_mut(BRAND, 0).filter(|_| other_brand) {
            entry.ebx ^= 1;
        }
        let config = VmConfig {
            counted: true,
            cpuid,
            memory: start.memory,
            tsc_khz: Some(TSC_KHZ),
            trace,
            ..VmConfig::default()
        };
        let vm = engine.vm(&config)?;
        let mem = Memfd::new(start.memory)?;
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: start.memory, writable: true };
        vm.set_layout(&[Change::Map(slot)])?;
        let state = load(vm.memory(), start)?;
        vm.log_dirty(true)?;
        let mut vcpu = vm.vcpu(0)?;
        vcpu.keep_listing();
        vcpu.set_state(&state)?;
        Ok(Self { vm, vcpu })
    }

    pub fn memory(&self) -> &Arc<GuestMem> {
        self.vm.memory()
    }

    pub fn retired(&self) -> u64 {
        self.vcpu.retired().unwrap_or_default()
    }

    /// Runs for so many instructions; how it ended, and how many they were.
    pub fn run(
        &mut self,
        instructions: u64,
        host: &mut dyn VcpuHost,
    ) -> Result<(Exit, u64), Error> {
        let before = self.retired();
        let exit = self.vcpu.run_for(instructions, host)?;
        Ok((exit, self.retired() - before))
    }
}

/// Writes the boot plan to memory.
fn load(memory: &GuestMem, start: &Start) -> Result<VcpuState, Error> {
    let cpus = vec![acpi_build::Cpu { uid: 0, apic_id: 0 }];
    let acpi = acpi_build::build(&acpi_build::Board::new(cpus))?;
    let mut request = boot::Request::new(start.kernel.clone(), boot::Memory::of_size(start.memory));
    request.initrd = start.initrd.clone().map(Into::into);
    request.command_line.clone_from(&start.command_line);
    request.rsdp = Some(acpi.rsdp);
    let plan = boot::load(&request)?;
    for segment in &plan.segments {
        memory.write(segment.gpa, segment.bytes())?;
    }
    for (gpa, bytes) in &acpi.segments {
        memory.write(*gpa, bytes)?;
    }
    Ok(plan.vcpu)
}
