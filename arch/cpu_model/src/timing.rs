//! Leaves that tell frequencies, so that a guest calibrates nothing.

use crate::CpuidEntry;

/// Linux computes `crystal kHz * numerator / denominator` in 32 bits.
const PRODUCT_LIMIT: u64 = u32::MAX as u64;

/// CPUID leaves 0x15, 0x16 and the timing leaf that hypervisors agree on, 0x4000_0010.
///
/// Leaf 0x15's crystal is what the local APIC's timer counts, since guests take it for that
/// (SDM volume 3, 11.5.4). The leaf is empty where no ratio within a millionth of the truth
/// has a product with the crystal's kHz that fits 32 bits; the timing leaf is always exact.
pub fn timing_leaves(tsc_khz: u32, apic_khz: u32) -> [CpuidEntry; 3] {
    let (tsc, apic) = (tsc_khz.max(1), apic_khz.max(1));
    let largest = (PRODUCT_LIMIT / u64::from(apic)).max(1);
    let (numerator, denominator) = nearest_ratio(u64::from(tsc), u64::from(apic), largest);
    let found = u64::from(apic) * u64::from(numerator) / u64::from(denominator);
    let near = found.abs_diff(u64::from(tsc)) <= 1.max(u64::from(tsc) / 1_000_000);
    let hertz = u32::try_from(u64::from(apic) * 1000);
    let mut crystal = CpuidEntry { leaf: 0x15, ..CpuidEntry::default() };
    if let (true, Ok(hertz)) = (near, hertz) {
        (crystal.eax, crystal.ebx, crystal.ecx) = (denominator, numerator, hertz);
    }
    let mhz = tsc.saturating_add(500) / 1000;
    let base = CpuidEntry {
        leaf: 0x16,
        eax: mhz & 0xffff,
        ebx: mhz & 0xffff,
        ecx: 100,
        ..CpuidEntry::default()
    };
    let timing = CpuidEntry { leaf: 0x4000_0010, eax: tsc, ebx: apic, ..CpuidEntry::default() };
    [crystal, base, timing]
}

/// The fraction nearest to `a / b` whose numerator is at most `largest`, by continued
/// fractions.
fn nearest_ratio(a: u64, b: u64, largest: u64) -> (u32, u32) {
    let (mut a, mut b) = (a, b);
    let (mut n0, mut d0, mut n1, mut d1) = (0u64, 1u64, 1u64, 0u64);
    while b != 0 {
        let q = a / b;
        let next = q.checked_mul(n1).and_then(|n| n.checked_add(n0));
        let Some(n2) = next.filter(|n| *n <= largest) else { break };
        let d2 = q * d1 + d0;
        (n0, d0, n1, d1) = (n1, d1, n2, d2);
        (a, b) = (b, a % b);
    }
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    (narrow(n1), narrow(d1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux's native_calibrate_tsc does, in 32 bits that must not overflow.
    fn linux_khz(leaf: &CpuidEntry) -> u32 {
        (leaf.ecx / 1000).checked_mul(leaf.ebx).expect("fits 32 bits") / leaf.eax
    }

    #[test]
    fn linux_finds_the_frequency_in_leaf_15() {
        for tsc in [2_100_000, 2_095_078, 1_000_000, 3_999_991, 2_000_000, 2_593_906] {
            for apic in [1_000_000, 25_000, 24_000] {
                let [crystal, base, timing] = timing_leaves(tsc, apic);
                if crystal.ecx != 0 {
                    let error = linux_khz(&crystal).abs_diff(tsc);
                    assert!(error <= 3, "{tsc} {apic}: off by {error} kHz");
                    assert_eq!(crystal.ecx, apic * 1000);
                }
                assert_eq!(base.eax, (tsc + 500) / 1000);
                assert_eq!((timing.eax, timing.ebx), (tsc, apic));
            }
        }
        assert_eq!(linux_khz(&timing_leaves(2_100_000, 1_000_000)[0]), 2_100_000);
    }

    #[test]
    fn nonsense_frequencies_do_not_panic() {
        for khz in [0, 1, u32::MAX] {
            timing_leaves(khz, khz);
            timing_leaves(khz, 1_000_000);
        }
    }
}
