//! Differentiated system description table: the devices that are not found by enumeration,
//! and how to power off (ACPI 6.5, 5.2.11.1).

use crate::{
    Board, Cpu, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Rtc, Serial, bytes, cpus, hpet, pci, virtio,
};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

/// Complies with ACPI 2.0 and later: integers have 64 bits.
const REVISION: u8 = 2;
/// `SLP_TYP` of the soft-off state, of PM1a_CNT and PM1b_CNT.
const SLP_TYP_S5: u8 = 5;
/// `_STA`: present, enabled, shown in the user interface, functioning (ACPI 6.5, 6.3.7).
pub(crate) const WORKING: u8 = 0xf;

/// The table.
pub fn table(board: &Board) -> Vec<u8> {
    let mut devices: Vec<Vec<u8>> = Vec::new();
    match &board.hot_cpus {
        Some(hot) => devices.push(cpus::container(&board.cpus, hot)),
        None => {
            let processors = board.cpus.iter().enumerate();
            devices.extend(processors.map(|(index, cpu)| processor(index, cpu)));
        }
    }
    if let Some(pci) = &board.pci {
        devices.extend(pci::devices(pci));
    }
    devices.extend(board.serial.iter().enumerate().map(|(index, serial)| uart(index, serial)));
    devices.extend(board.rtc.iter().map(clock));
    devices.extend(board.hpet.iter().map(hpet::device));
    devices.extend(board.virtio.iter().enumerate().map(|(index, v)| virtio::device(index, v)));
    devices.extend(board.pvpanic.map(pvpanic));
    if board.i8042 {
        devices.push(keyboard());
        devices.push(mouse());
    }
    let sleep = Package::new(vec![&SLP_TYP_S5, &SLP_TYP_S5, &0u8, &0u8]);
    let mut aml = bytes(&Name::new(Path::new("_S5_"), &sleep));
    aml.extend(Scope::raw(Path::new("_SB_"), devices.concat()));
    aml.extend(board.hot_cpus.iter().flat_map(cpus::event));
    let mut table = Sdt::new(*b"DSDT", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// `\_SB.C000` and so on.
fn processor(index: usize, cpu: &Cpu) -> Vec<u8> {
    device(&processor_name(index), &"ACPI0007", u64::from(cpu.uid), &[])
}

pub(crate) fn processor_name(index: usize) -> String {
    format!("C{:03X}", index & 0xfff)
}

fn uart(index: usize, serial: &Serial) -> Vec<u8> {
    let number = index + 1;
    let name = format!("COM{:X}", number & 0xf);
    let port = IO::new(serial.port, serial.port, 1, 8);
    device(&name, &EISAName::new("PNP0501"), number as u64, &[&port, &isa(serial.irq)])
}

fn clock(rtc: &Rtc) -> Vec<u8> {
    let ports = IO::new(rtc.port, rtc.port, 1, 2);
    device("RTC_", &EISAName::new("PNP0B00"), 0, &[&ports, &isa(rtc.irq)])
}

fn pvpanic(port: u16) -> Vec<u8> {
    device("PEVT", &"QEMU0001", 0, &[&IO::new(port, port, 1, 1)])
}

fn keyboard() -> Vec<u8> {
    let (data, command) = (IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1));
    device("KBD_", &EISAName::new("PNP0303"), 0, &[&data, &command, &isa(1)])
}

fn mouse() -> Vec<u8> {
    device("MOU_", &EISAName::new("PNP0F13"), 0, &[&isa(12)])
}

/// An ISA interrupt: edge-triggered, active high, not shared.
fn isa(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(irq))
}

/// A device that is present; without `_CRS` if it has no resources.
pub(crate) fn device(name: &str, hid: &dyn Aml, uid: u64, resources: &[&dyn Aml]) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), hid);
    let uid = Name::new(Path::new("_UID"), &uid);
    let status = Name::new(Path::new("_STA"), &WORKING);
    let template = ResourceTemplate::new(resources.to_vec());
    let current = Name::new(Path::new("_CRS"), &template);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &status];
    if !resources.is_empty() {
        children.push(&current);
    }
    bytes(&Device::new(Path::new(name), children))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(table: &[u8], part: &[u8]) -> bool {
        table.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn soft_off_is_type_5() {
        let table = table(&Board::new(vec![Cpu { uid: 0, apic_id: 0 }]));
        // Name (_S5, Package (4) { 5, 5, 0, 0 }) in AML (ACPI 6.5, 20.2).
        let expected = b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\0\0";
        assert!(table[36..].starts_with(expected), "{:02x?}", &table[36..60]);
    }

    #[test]
    fn a_serial_port_has_its_ports_and_interrupt() {
        let table = table(&Board::new(vec![Cpu { uid: 0, apic_id: 0 }]));
        assert!(contains(&table, b"COM1\x08_HID\x0c\x41\xd0\x05\x01"));
        // I/O port descriptor and extended interrupt descriptor (ACPI 6.5, 6.4.2.5, 6.4.3.6).
        assert!(contains(&table, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 3, 1, 4, 0, 0, 0]));
    }

    #[test]
    fn devices_follow_the_board() {
        let mut board = Board::new((0..3).map(|id| Cpu { uid: id, apic_id: id }).collect());
        let full = table(&board);
        for name in [b"C000", b"C002", b"COM1", b"RTC_", b"PEVT"] {
            assert!(contains(&full, name), "{name:?}");
        }
        assert!(!contains(&full, b"C003") && !contains(&full, b"KBD_"));
        board.serial.clear();
        board.rtc = None;
        board.pvpanic = None;
        board.i8042 = true;
        let other = table(&board);
        for name in [b"COM1", b"RTC_", b"PEVT"] {
            assert!(!contains(&other, name), "{name:?}");
        }
        assert!(contains(&other, b"KBD_") && contains(&other, b"MOU_"));
    }
}
