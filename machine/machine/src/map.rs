//! The board's address map.

use std::ops::Range;

/// RAM below this is *low*: the hole up to 4 GiB holds PCI, the IOAPIC and the local APICs.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Where BARs can be.
pub const PCI_WINDOW: Range<u64> = LOW_RAM_END..PCI_ECAM.start;
/// PCI's enhanced configuration space, of the one bus that there is: a kernel looks at 32 places
/// on every bus that it is told of.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
pub const LOCAL_APIC: u64 = 0xfee0_0000;
pub const IOAPIC: u64 = 0xfec0_0000;

pub const COM1: u16 = 0x3f8;
pub const COM1_IRQ: usize = 4;

/// GSI of the ACPI interrupt.
pub const SCI: u8 = 9;

/// Where `memory` bytes of RAM lie.
pub fn ram(memory: u64) -> Vec<Range<u64>> {
    let low = memory.min(LOW_RAM_END);
    let mut ranges = vec![Range { start: 0, end: low }];
    if memory > low {
        ranges.push(HIGH_RAM_START..HIGH_RAM_START + (memory - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_low_goes_high() {
        let ram = |memory| ram(memory).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(ram(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram(4 << 30), [(0, 3 << 30), (4 << 30, 5 << 30)]);
        assert_eq!(ram(LOW_RAM_END), [(0, LOW_RAM_END)]);
    }
}
