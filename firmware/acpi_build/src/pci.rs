//! The PCI host bridge: what the MCFG and the DSDT say of it (PCI Firmware Specification 3.3).

use crate::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Pci, bytes, dsdt};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Memory32Fixed, Method, Name, Or, Package, Path, ResourceTemplate, Return, Uuid,
};
use acpi_tables::{Aml, mcfg::MCFG};

/// Where the enhanced configuration space is.
pub(crate) fn mcfg(pci: &Pci) -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(u64::from(pci.ecam), 0, 0, last_bus(pci));
    bytes(&table)
}

fn last_bus(pci: &Pci) -> u8 {
    u8::try_from(pci.buses.saturating_sub(1)).unwrap_or(u8::MAX)
}

/// The host bridge, and beside it the reservation of the configuration space, which is not for
/// the bridge to hand on (4.1.2).
pub(crate) fn devices(pci: &Pci) -> [Vec<u8>; 2] {
    let size = (u32::from(last_bus(pci)) + 1) << 20;
    let ecam = Memory32Fixed::new(true, pci.ecam, size);
    let reserved = dsdt::device("PCIC", &EISAName::new("PNP0C02"), 0, &[&ecam]);
    [bridge(pci), reserved]
}

/// A PCI Express root, compatible with a PCI one.
fn bridge(pci: &Pci) -> Vec<u8> {
    let (express, conventional) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let hid = Name::new(Path::new("_HID"), &express);
    let cid = Name::new(Path::new("_CID"), &conventional);
    let numbers = ["_UID", "_SEG", "_BBN"].map(|name| Name::new(Path::new(name), &0u8));
    let buses = AddressSpace::new_bus_number(0u16, u16::from(last_bus(pci)));
    let ports = IO::new(0xcf8, 0xcf8, 1, 8);
    // All ports but those of configuration space: which of them are free the kernel finds out.
    let below = AddressSpace::new_io(0u16, 0xcf7, None);
    let above = AddressSpace::new_io(0xd00u16, 0xffff, None);
    let (first, last) = pci.memory;
    let memory =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let template = ResourceTemplate::new(vec![&buses, &ports, &below, &above, &memory]);
    let current = Name::new(Path::new("_CRS"), &template);
    let routes: Vec<Vec<u8>> = (1..).zip(&pci.interrupts).map(|(d, gsi)| route(d, *gsi)).collect();
    let routes: Vec<Raw> = routes.into_iter().map(Raw).collect();
    let routing = Package::new(routes.iter().map(|route| route as &dyn Aml).collect());
    let routing = Name::new(Path::new("_PRT"), &routing);
    let mut children: Vec<&dyn Aml> = vec![&hid, &cid];
    children.extend(numbers.iter().map(|number| number as &dyn Aml));
    children.extend([&current as &dyn Aml, &routing]);
    let control = Raw(operating_system_capabilities());
    if pci.hot_plug {
        children.push(&control);
    }
    bytes(&Device::new(Path::new("PCI0"), children))
}

/// `_OSC` (PCI Firmware Specification 3.3, 4.5.1): grants the operating system what it asks for of
/// [`GRANTED`]; of another interface it says that it is unknown.
fn operating_system_capabilities() -> Vec<u8> {
    /// In the first word: the UUID is not known.
    const UNKNOWN: u8 = 1 << 2;
    /// Offsets of the first and the third word, of status and control.
    const STATUS: u8 = 0;
    const CONTROL: u8 = 8;
    let (first, third) = (Path::new("CDW1"), Path::new("CDW3"));
    let status = CreateDWordField::new(&first, &Arg(3), &STATUS);
    let control = CreateDWordField::new(&third, &Arg(3), &CONTROL);
    let interface = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let known = Equal::new(&Arg(0), &interface);
    let granted = And::new(&third, &third, &GRANTED);
    let refused = Or::new(&first, &first, &UNKNOWN);
    let grant = If::new(&known, vec![&control, &granted]);
    let refuse = Else::new(vec![&refused]);
    let answer = Return::new(&Arg(3));
    bytes(&Method::new(Path::new("_OSC"), 4, false, vec![&status, &grant, &refuse, &answer]))
}

/// Native hot-plug, native power management events, and the PCI Express capability.
const GRANTED: u8 = 1 << 0 | 1 << 2 | 1 << 4;

/// Pin INTA# of all functions of a device is hardwired to a GSI (ACPI 6.5, 6.2.13).
fn route(device: u32, gsi: u32) -> Vec<u8> {
    let address = device << 16 | 0xffff;
    bytes(&Package::new(vec![&address, &0u8, &0u8, &gsi]))
}

/// AML that is made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(table: &[u8], part: &[u8]) -> bool {
        table.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn a_bridge_has_its_window_and_its_routes() {
        let pci = Pci {
            ecam: 0xe000_0000,
            buses: 256,
            memory: (0xc000_0000, 0xdfff_ffff),
            interrupts: vec![17, 18],
            hot_plug: false,
        };
        let [bridge, reserved] = devices(&pci);
        assert!(!contains(&bridge, b"_OSC"));
        let [ports, _] = devices(&Pci { hot_plug: true, ..pci });
        // CreateDWordField (Arg3, 8, CDW3), and CDW3 = CDW3 & 0x15.
        assert!(contains(&ports, b"_OSC\x04\x8a\x6b\x00CDW1"), "{ports:02x?}");
        assert!(contains(&ports, b"\x8a\x6b\x0a\x08CDW3\x7bCDW3\x0a\x15CDW3"), "{ports:02x?}");
        assert!(contains(&bridge, b"PCI0\x08_HID\x0c\x41\xd0\x0a\x08"));
        // Word address space: bus numbers 0 to 255 (ACPI 6.5, 6.4.3.5.3).
        let buses = [0x88, 13, 0, 2, 12, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 1];
        assert!(contains(&bridge, &buses), "{bridge:02x?}");
        // Word address spaces: ports 0xd00 to 0xffff (6.4.3.5.3).
        let ports = [0x88, 13, 0, 1, 12, 3, 0, 0, 0, 0x0d, 0xff, 0xff, 0, 0, 0, 0xf3];
        assert!(contains(&bridge, &ports), "{bridge:02x?}");
        // Dword address space: memory, read and write, not cached (6.4.3.5.2).
        let memory = [0x87, 23, 0, 0, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xff, 0xdf];
        assert!(contains(&bridge, &memory), "{bridge:02x?}");
        // Package (4) { 0x2ffff, 0, 0, 18 }.
        let route = [0x12, 11, 4, 0x0c, 0xff, 0xff, 2, 0, 0, 0, 0x0a, 18];
        assert!(contains(&bridge, &route), "{bridge:02x?}");
        assert!(contains(&reserved, &[0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0, 0x10]));
    }
}
