//! The board's address map.

use std::ops::Range;

/// RAM below this is *low*: the hole up to 4 GiB holds PCI, the IOAPIC, the local APICs and the
/// firmware's ROM.
pub const LOW_RAM_END: u64 = PCI_ECAM.start;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Where BARs can be: where SeaBIOS and OVMF place them on the chipset that this one is like.
pub const PCI_WINDOW: Range<u64> = 0xc000_0000..IOAPIC;
/// PCI's enhanced configuration space, of the root bus; see [`pci_ecam`]. Firmware for this chipset
/// has it here.
pub const PCI_ECAM: Range<u64> = 0xb000_0000..0xb010_0000;
/// Room for memory of devices in the space that an engine lays out: ROM, and what the host bridge
/// shows twice while it changes.
pub const DEVICE_MEMORY: u64 = 64 << 20;
/// The firmware's ROM ends here.
pub const ROM_END: u64 = 1 << 32;
pub const LOCAL_APIC: u64 = 0xfee0_0000;
pub const IOAPIC: u64 = 0xfec0_0000;

/// Registers of virtio devices that are not on the PCI bus: more than a description has.
pub const VIRTIO_MMIO: Range<u64> = 0xfec1_0000..0xfec5_0000;
/// Their interrupts, which they share with PCI's pins.
pub const VIRTIO_GSIS: Range<u32> = 16..24;

pub const COM1: u16 = 0x3f8;
pub const COM1_IRQ: usize = 4;

/// GSI of the ACPI interrupt.
pub const SCI: u8 = 9;

/// The enhanced configuration space of the buses that there are, of the root bus and one behind
/// each port: a kernel looks at 32 places on a root bus, and at one behind a port.
pub fn pci_ecam(ports: u32) -> Range<u64> {
    let bus = PCI_ECAM.end - PCI_ECAM.start;
    PCI_ECAM.start..PCI_ECAM.end + u64::from(ports) * bus
}

/// Where `memory` bytes of RAM lie.
pub fn ram(memory: u64) -> Vec<Range<u64>> {
    let low = memory.min(LOW_RAM_END);
    let mut ranges = vec![Range { start: 0, end: low }];
    if memory > low {
        ranges.push(HIGH_RAM_START..HIGH_RAM_START + (memory - low));
    }
    ranges
}

/// Where memory comes to while the machine runs: behind all RAM, at the beginning of the largest
/// piece in which Linux takes memory (2 GiB).
pub fn hot_memory(memory: u64, room: u64) -> Range<u64> {
    const PIECE: u64 = 2 << 30;
    let end = ram(memory).last().map_or(0, |range| range.end);
    let start = end.max(HIGH_RAM_START).next_multiple_of(PIECE);
    start..start + room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_low_goes_high() {
        let ram = |memory| ram(memory).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(ram(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram(4 << 30), [(0, 0xb000_0000), (4 << 30, 0x1_5000_0000)]);
        assert_eq!(ram(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(hot_memory(512 << 20, 1 << 30), 4 << 30..5 << 30);
        assert_eq!(hot_memory(4 << 30, 1 << 30), 6 << 30..7 << 30);
    }
}
