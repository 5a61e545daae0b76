//! CPUID (SDM volume 2): the table, and what depends on this vCPU and its registers.

use crate::{Cpu, Ctx, Insn, Stop};
use x86_defs::{
    cr::cr4,
    gpr::{RAX, RBX, RCX, RDX},
    xsave,
};

pub fn cpuid(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let cpu = &mut *ctx.cpu;
    let (leaf, subleaf) = (cpu.gpr[RAX] as u32, cpu.gpr[RCX] as u32);
    let [eax, ebx, ecx, edx] = cpu.leaf(leaf, subleaf);
    cpu.gpr[RAX] = eax.into();
    cpu.gpr[RBX] = ebx.into();
    cpu.gpr[RCX] = ecx.into();
    cpu.gpr[RDX] = edx.into();
    cpu.serialize();
    Ok(())
}

impl Cpu {
    /// EAX, EBX, ECX and EDX as this vCPU answers now.
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let [eax, mut ebx, mut ecx, mut edx] = self.cpuid.lookup(leaf, subleaf);
        match (leaf, subleaf) {
            (1, _) => {
                ebx = ebx & 0x00ff_ffff | self.id << 24;
                let osxsave = self.cr4 & cr4::OSXSAVE != 0;
                ecx = ecx & !(1 << 27) | u32::from(osxsave) << 27;
            }
            (0xb | 0x1f, _) => edx = self.id,
            (0xd, 0) if eax != 0 => ebx = xsave_size(self.xcr0),
            // The compacted size, of the components in XCR0 and IA32_XSS.
            (0xd, 1) if eax & 0xa != 0 => ebx = xsave_size(self.xcr0),
            // AMD's extended APIC ID.
            (0x8000_001e, _) if eax | ebx | ecx != 0 => {
                return [self.id, ebx, ecx, edx];
            }
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }
}

/// Length of an XSAVE area with these components: the same in both formats, since AVX is the
/// only one beyond the legacy region.
fn xsave_size(components: u64) -> u32 {
    let legacy = (xsave::LEGACY_LEN + xsave::HEADER_LEN) as u32;
    if components & x86_defs::cr::xcr0::AVX != 0 { xsave::LEN as u32 } else { legacy }
}
