//! virtio devices whose registers are in memory: where Linux, and SeaBIOS for disks, look for them.

use crate::{VirtioMmio, dsdt};
use acpi_tables::aml::{Interrupt, Memory32Fixed};

/// The ID that the bus has (virtio 1.2, 4.2.1, knows of device trees only; Linux'
/// `drivers/virtio/virtio_mmio.c`).
const ID: &str = "LNRO0005";
const SIZE: u32 = 0x1000;

/// `\_SB.VR00` and so on.
pub(crate) fn device(index: usize, device: &VirtioMmio) -> Vec<u8> {
    let name = format!("VR{:02X}", index & 0xff);
    let registers = Memory32Fixed::new(true, device.address, SIZE);
    // Level-triggered, active low as PCI's pins, with which it is shared.
    let interrupt = Interrupt::new(true, false, true, true, device.gsi);
    dsdt::device(&name, &ID, index as u64, &[&registers, &interrupt])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_its_page_and_its_interrupt() {
        let aml = device(17, &VirtioMmio { address: 0xfec2_1000, gsi: 17 });
        let has = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
        assert!(has(b"VR11\x08_HID\x0dLNRO0005\0\x08_UID\x0a\x11"), "{aml:02x?}");
        // 32-bit fixed memory range (ACPI 6.5, 6.4.3.4), extended interrupt (6.4.3.6).
        assert!(has(&[0x86, 9, 0, 1, 0, 0x10, 0xc2, 0xfe, 0, 0x10, 0, 0]), "{aml:02x?}");
        assert!(has(&[0x89, 6, 0, 0b1101, 1, 17, 0, 0, 0]), "{aml:02x?}");
    }
}
