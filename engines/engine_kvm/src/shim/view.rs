//! A vCPU as a personality sees it from inside a trap.

use super::{Registers, Shim, memory};
use crate::{
    state::{segment_from, segment_into},
    vcpu::KvmVcpu,
};
use engine::{CpuView, Error, Roots, TableChanges};
use vcpu_state::{Exception, Regs, SegReg, Segment};
use x86_defs::{
    cr::{cr0, cr4, xcr0},
    xsave,
};

pub(super) struct View<'a> {
    vcpu: &'a KvmVcpu,
    shim: &'a mut Shim,
    registers: Registers,
    segments: [Segment; 8],
    /// Of a call to the kernel.
    failed: Option<Error>,
}

impl<'a> View<'a> {
    pub(super) fn new(vcpu: &'a KvmVcpu, shim: &'a mut Shim, registers: Registers) -> Self {
        let s = &registers.special;
        let segments = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr].map(segment_from);
        Self { vcpu, shim, registers, segments, failed: None }
    }

    /// The root of who runs.
    fn load_root(&mut self) {
        let Some(roots) = self.shim.roots else { return };
        let root = if self.shim.in_kernel { roots.kernel } else { roots.program };
        self.registers.special.cr3 = root;
        self.shim.stale = true;
    }

    /// What has become of the registers.
    pub(super) fn finish(mut self) -> Result<Registers, Error> {
        let [es, cs, ss, ds, fs, gs, ldt, _] = self.segments.map(segment_into);
        let s = &mut self.registers.special;
        (s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt) = (es, cs, ss, ds, fs, gs, ldt);
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.registers),
        }
    }
}

impl CpuView for View<'_> {
    fn regs(&mut self) -> &mut Regs {
        &mut self.registers.regs
    }

    fn segment(&mut self, which: SegReg) -> &mut Segment {
        &mut self.segments[which as usize]
    }

    fn root(&self) -> u64 {
        self.registers.special.cr3
    }

    fn set_roots(&mut self, roots: Roots, _: bool) {
        self.shim.roots = Some(roots);
        self.load_root();
    }

    fn roots(&self) -> Option<Roots> {
        self.shim.roots
    }

    fn enter(&mut self, kernel: bool) {
        self.shim.in_kernel = kernel;
        self.load_root();
    }

    fn tables_changed(&mut self, changes: TableChanges) {
        self.vcpu.vm.shadows.changed(changes);
    }

    fn forget_own(&mut self) {
        self.vcpu.vm.shadows.are_wrong();
        self.shim.stale = true;
    }

    fn read_virt(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception> {
        let _inside = self.vcpu.vm.gate.enter();
        memory::read(&self.vcpu.vm.mem, &self.registers, gva, out)
    }

    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        let _inside = self.vcpu.vm.gate.enter();
        memory::write(&self.vcpu.vm.mem, &self.registers, gva, data)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let table = self.vcpu.vm.cpuid.for_vcpu(self.vcpu.id);
        let [eax, mut ebx, mut ecx, edx] = table.lookup(leaf, subleaf);
        let special = &self.registers.special;
        match (leaf, subleaf) {
            (1, _) => {
                let on = special.cr4 & cr4::OSXSAVE != 0;
                ecx = ecx & !(1 << 27) | u32::from(on) << 27;
            }
            // The sizes of the components that are on.
            (0xd, 0) if eax != 0 => ebx = xsave_size(self.vcpu.xcr0().unwrap_or(xcr0::X87)),
            (0xd, 1) if eax & 0xa != 0 => ebx = xsave_size(self.vcpu.xcr0().unwrap_or(xcr0::X87)),
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }

    fn gdt_base(&self) -> u64 {
        self.registers.special.gdt.base
    }

    fn set_task_switched(&mut self, on: bool) {
        let special = &mut self.registers.special;
        special.cr0 = special.cr0 & !cr0::TS | if on { cr0::TS } else { 0 };
    }

    fn set_xcr0(&mut self, value: u64) {
        if let Err(error) = self.vcpu.set_xcr0(value) {
            self.failed = Some(error);
        }
    }

    fn halt(&mut self) {
        self.shim.halted = true;
    }

    fn deliver(&mut self, exception: Exception) {
        self.shim.raised = Some(exception);
    }

    fn forget_writes(&mut self, _: u64) {
        self.flush_tlb(!0, None);
    }

    fn flush_tlb(&mut self, vcpus: u64, gva: Option<u64>) {
        self.vcpu.vm.shadows.are_wrong();
        let bit = 1u64.checked_shl(self.vcpu.id).unwrap_or(0);
        let asked = if gva.is_none() { !0 } else { vcpus };
        self.shim.stale |= asked & bit != 0;
        if asked & !bit != 0 {
            self.vcpu.vm.forget_translations();
        }
    }
}

fn xsave_size(components: u64) -> u32 {
    let legacy = xsave::LEGACY_LEN + xsave::HEADER_LEN;
    (if components & xcr0::AVX != 0 { xsave::LEN } else { legacy }) as u32
}
