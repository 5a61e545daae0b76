//! Topology leaves: one package, one thread in each core, caches shared as sizes suggest.

use crate::{CpuidEntry, CpuidTable};

/// Bits of an APIC ID that tell cores of a package apart.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.max(1).next_power_of_two().trailing_zeros()
}

/// Fills the topology of `vcpus` cores into a table whose vendor is set. APIC IDs are those
/// of vCPU 0; see [`CpuidTable::for_vcpu`].
pub(crate) fn apply(table: &mut CpuidTable, vcpus: u32, amd: bool) {
    let vcpus = vcpus.max(1);
    if let Some(one) = table.get_mut(1, 0) {
        one.ebx = one.ebx & 0xff00 | vcpus.min(255) << 16;
        let ht = u32::from(vcpus > 1) << 28;
        one.edx = one.edx & !(1 << 28) | ht;
    }
    let levels = [
        (0, 0, 1, 1 << 8),
        (1, core_bits(vcpus), vcpus.min(0xffff), 1 | 2 << 8),
        (2, 0, 0, 2), // no level
    ];
    for leaf in [0xb, 0x1f] {
        if leaf == 0x1f && amd {
            continue;
        }
        for (subleaf, eax, ebx, ecx) in levels {
            table.set(CpuidEntry { leaf, subleaf: Some(subleaf), eax, ebx, ecx, edx: 0 });
        }
    }
    if amd {
        let size = core_bits(vcpus) << 12 | vcpus.saturating_sub(1).min(0xff);
        if let Some(entry) = table.get_mut(0x8000_0008, 0) {
            entry.ecx = size;
        }
        table.set(CpuidEntry { leaf: 0x8000_001e, ..CpuidEntry::default() });
    }
    share_caches(table, vcpus);
}

/// Levels 1 and 2 belong to a core, level 3 to the package (SDM volume 2, CPUID leaf 4).
fn share_caches(table: &mut CpuidTable, vcpus: u32) {
    let package = (1u32 << core_bits(vcpus)) - 1;
    for entry in &mut table.entries {
        if !matches!(entry.leaf, 4 | 0x8000_001d) || entry.eax & 0x1f == 0 {
            continue;
        }
        let level = entry.eax >> 5 & 7;
        let sharing = if level >= 3 { package.min(0xfff) } else { 0 };
        entry.eax = entry.eax & 0x3fff | sharing << 14;
        if entry.leaf == 4 {
            entry.eax |= package.min(0x3f) << 26;
        }
    }
}

impl CpuidTable {
    /// The table as vCPU `id` sees it, whose APIC ID is `id`.
    pub fn for_vcpu(&self, id: u32) -> CpuidTable {
        let mut table = self.clone();
        for entry in &mut table.entries {
            match entry.leaf {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | (id & 0xff) << 24,
                0xb | 0x1f => entry.edx = id,
                0x8000_001e => {
                    entry.eax = id;
                    entry.ebx = entry.ebx & !0xff | id & 0xff;
                }
                _ => {}
            }
        }
        table
    }
}
