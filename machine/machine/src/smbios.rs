//! The machine as SMBIOS tells of it.

use crate::map;
use smbios_build::{Bios, Board, Chassis, Description, Processor, System, Tables};
use std::ops::Range;
use vm_spec::{FirmwareKind, VmSpec};

const MAKER: &str = "Sarang";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of the release. Kernels distrust what is much older, and from 2015 on Linux takes the clock's
/// alarms to be told by ACPI while HPET has its interrupt.
const DATE: &str = "11/22/2026";

fn or(given: &Option<String>, default: &str) -> String {
    given.clone().unwrap_or_else(|| default.into())
}

pub(crate) fn tables(spec: &VmSpec) -> Tables {
    smbios_build::build(&describe(spec))
}

/// Where the entry point and the structures go without firmware: behind what is in their area
/// already, which ends at `taken`. `None` if there is no room.
pub(crate) fn segments(tables: &Tables, taken: u64) -> Option<[(u64, Vec<u8>); 2]> {
    let area: Range<u64> = smbios_build::AREA;
    let entry = taken.max(area.start).next_multiple_of(16);
    let structures = (entry + smbios_build::ENTRY as u64).next_multiple_of(16);
    let end = structures + tables.structures.len() as u64;
    let entry = (entry, tables.entry(structures).to_vec());
    (end <= area.end).then(|| [entry, (structures, tables.structures.clone())])
}

fn describe(spec: &VmSpec) -> Description {
    let given = &spec.smbios;
    let (bios, system, board, chassis) = (&given.bios, &given.system, &given.board, &given.chassis);
    Description {
        bios: Bios {
            vendor: or(&bios.vendor, MAKER),
            version: or(&bios.version, VERSION),
            date: or(&bios.date, DATE),
            release: bios.release,
            uefi: spec.firmware.kind == FirmwareKind::Uefi,
        },
        system: System {
            manufacturer: or(&system.manufacturer, MAKER),
            product: or(&system.product, "Virtual Machine"),
            version: or(&system.version, VERSION),
            serial: or(&system.serial, ""),
            uuid: spec.uuid().into_bytes(),
            sku: or(&system.sku, ""),
            family: or(&system.family, ""),
        },
        board: (*board != Default::default()).then(|| Board {
            manufacturer: or(&board.manufacturer, MAKER),
            product: or(&board.product, ""),
            version: or(&board.version, ""),
            serial: or(&board.serial, ""),
            asset: or(&board.asset, ""),
            location: or(&board.location, ""),
        }),
        chassis: Chassis {
            manufacturer: or(&chassis.manufacturer, MAKER),
            version: or(&chassis.version, VERSION),
            serial: or(&chassis.serial, ""),
            asset: or(&chassis.asset, ""),
            sku: or(&chassis.sku, ""),
        },
        processor: Processor {
            manufacturer: MAKER.into(),
            version: spec.cpu_model.clone().unwrap_or_default(),
            cores: spec.cpus,
        },
        oem: given.oem.clone(),
        memory: map::ram(spec.memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_tables_fit_behind_those_of_acpi() {
        let text = Some("x".repeat(255));
        let mut spec = VmSpec { cpus_max: Some(255), memory: 256 << 30, ..VmSpec::default() };
        spec.smbios.oem = vec!["y".repeat(255); 16];
        spec.smbios.system.serial.clone_from(&text);
        spec.smbios.system.family = text;
        let acpi = acpi_build::build(&crate::loader::acpi_board(&spec, &[])).unwrap();
        let taken = acpi.segments.iter().map(|(at, bytes)| at + bytes.len() as u64).max().unwrap();
        let [(entry, bytes), (structures, _)] = segments(&tables(&spec), taken).unwrap();
        assert!(entry >= taken && entry % 16 == 0 && entry >= 0xf_0000);
        assert_eq!(bytes[16..], structures.to_le_bytes());
        assert_eq!(segments(&tables(&spec), 0xf_fff0), None);
    }
}
