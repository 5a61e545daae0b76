//! What this host's CPUID instruction answers.

use crate::{CpuidEntry, CpuidTable};
use std::arch::x86_64::__cpuid_count;

/// Sub-leaves of a leaf are read up to this one at most: no leaf has more that matter here.
const MAX_SUBLEAF: u32 = 63;

/// The processor's own table, as this thread's CPU answers now.
pub fn host_table() -> CpuidTable {
    let mut table = CpuidTable::default();
    for range in [0, 0x8000_0000] {
        let highest = __cpuid_count(range, 0).eax;
        // A hypervisor that answers nonsense must not make this endless.
        let highest = highest.min(range + 0xff).max(range);
        for leaf in range..=highest {
            read_leaf(&mut table, leaf);
        }
    }
    table
}

fn read_leaf(table: &mut CpuidTable, leaf: u32) {
    if !has_subleaves(leaf) {
        table.set(read(leaf, 0, false));
        return;
    }
    for subleaf in 0..=MAX_SUBLEAF {
        let entry = read(leaf, subleaf, true);
        let last = match leaf {
            // Cache type 0: no more caches (SDM volume 2, CPUID leaf 4).
            4 | 0x8000_001d => entry.eax & 0x1f == 0,
            // Level type 0: no more levels.
            0xb | 0x1f => entry.ecx & 0xff00 == 0,
            // Sub-leaf 0 says how many there are.
            7 | 0x14 | 0x17 | 0x18 => {
                subleaf >= table.get(leaf, 0).map_or(entry.eax, |first| first.eax)
            }
            _ => false,
        };
        let empty = leaf == 0xd && subleaf > 1 && entry.eax == 0;
        if !empty {
            table.set(entry);
        }
        if last {
            break;
        }
    }
}

/// The leaves that look at ECX (SDM volume 2, CPUID).
pub(crate) fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d..=0x20)
        || leaf == 0x8000_001d
}

fn read(leaf: u32, subleaf: u32, significant: bool) -> CpuidEntry {
    let r = __cpuid_count(leaf, subleaf);
    CpuidEntry {
        leaf,
        subleaf: significant.then_some(subleaf),
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_a_64_bit_processor() {
        let host = host_table();
        for name in ["fpu", "cx8", "sse2", "lm", "fxsr"] {
            assert!(host.has_named(name), "{name}");
        }
        assert_eq!(host.has_named("avx2"), std::arch::is_x86_feature_detected!("avx2"));
        assert_eq!(host.has_named("adx"), std::arch::is_x86_feature_detected!("adx"));
    }
}
