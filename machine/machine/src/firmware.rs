//! What firmware is told of the machine.

use crate::{
    Error,
    bootable::{self, Bootable},
    loader::acpi_board,
    map, smbios,
};
use fw_cfg::{Items, key};
use virtio::MmioPlace;
use vm_spec::VmSpec;

/// Text output and input of the BIOS go to a serial port as well, at this address: a number in
/// eight bytes.
const SERIAL_CONSOLE: &str = "etc/sercon-port";
/// What to boot from, one on a line, and a zero.
const BOOT_ORDER: &str = "bootorder";
/// How many milliseconds its menu waits for a key, in two bytes.
const MENU_WAIT: &str = "etc/boot-menu-wait";
const MENU_PATIENCE: u16 = 10_000;
/// The entry point of SMBIOS, without an address, and its structures.
const SMBIOS_ENTRY: &str = "etc/smbios/smbios-anchor";
const SMBIOS_STRUCTURES: &str = "etc/smbios/smbios-tables";
/// Ranges of memory, 20 bytes each: address, length, type (ACPI 6.5, 15.1).
const MEMORY_MAP: &str = "etc/e820";
const RAM: u32 = 1;

pub(crate) fn items(
    spec: &VmSpec,
    virtio: &[MmioPlace],
    bootable: &[Bootable],
) -> Result<Items, Error> {
    let mut items = Items::default();
    items.set(key::RAM_SIZE, &spec.memory.to_le_bytes());
    items.set(key::NOGRAPHIC, &u16::from(!spec.display.is_there()).to_le_bytes());
    items.set(key::CPUS, &(spec.cpus as u16).to_le_bytes());
    items.set(key::MAX_CPUS, &(spec.cpus_most() as u16).to_le_bytes());
    items.set(key::BOOT_MENU, &u16::from(spec.boot.menu).to_le_bytes());
    items.set(key::IRQ0_OVERRIDE, &1u32.to_le_bytes());
    items.file(MEMORY_MAP, memory_map(spec.memory))?;
    items.file(BOOT_ORDER, bootable::order(&spec.boot, bootable))?;
    if spec.boot.menu {
        items.file(MENU_WAIT, MENU_PATIENCE.to_le_bytes())?;
    }
    items.file(SERIAL_CONSOLE, u64::from(map::COM1).to_le_bytes())?;
    let smbios = smbios::tables(spec);
    items.file(SMBIOS_ENTRY, smbios.entry(0))?;
    items.file(SMBIOS_STRUCTURES, smbios.structures)?;
    for (name, bytes) in acpi_build::for_firmware(&acpi_board(spec, virtio))?.files {
        items.file(name, bytes)?;
    }
    Ok(items)
}

/// RAM only: firmware knows what of it is its own.
fn memory_map(memory: u64) -> Vec<u8> {
    let mut map = Vec::new();
    for range in map::ram(memory) {
        map.extend(range.start.to_le_bytes());
        map.extend((range.end - range.start).to_le_bytes());
        map.extend(RAM.to_le_bytes());
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_is_all_ram() {
        let map = memory_map(4 << 30);
        assert_eq!(map.len(), 40);
        assert_eq!(map[..20], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(map[20..40], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
