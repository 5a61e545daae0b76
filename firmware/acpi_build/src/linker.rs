//! Tables for firmware to place: three files, of which one is a list of commands (QEMU,
//! `docs/specs/acpi_hw_reduced_hotplug` and the interface of SeaBIOS's `romfile_loader.h` and
//! EDK II's `QemuLoader.h`). A command has 128 bytes; its numbers are little-endian.

use crate::{AREA, Area, Board, Error, OEM_ID, bytes, check, place_tables};
use acpi_tables::rsdp::Rsdp;

const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";
const LOADER: &str = "etc/table-loader";

const COMMAND: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Anywhere below 4 GiB.
const HIGH: u8 = 1;
/// Where a root pointer is searched for.
const BIOS_AREA: u8 = 2;

/// Offsets of pointers and of checksums (ACPI 6.5, tables 5.3, 5.4, 5.9).
mod at {
    pub const CHECKSUM: u32 = 9;
    pub const XSDT_ENTRIES: u32 = 36;
    pub const FADT_FACS: u32 = 36;
    pub const FADT_DSDT: u32 = 40;
    pub const FADT_X_DSDT: u32 = 140;
    pub const RSDP_CHECKSUM: u32 = 8;
    pub const RSDP_XSDT: u32 = 24;
    pub const RSDP_EXTENDED_CHECKSUM: u32 = 32;
}

/// Files for firmware, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForFirmware {
    pub files: [(&'static str, Vec<u8>); 3],
}

/// Makes the tables with addresses that count from the beginning of their file, and the commands
/// that make them addresses of memory.
///
/// # Errors
/// As [`build`](crate::build).
pub fn for_firmware(board: &Board) -> Result<ForFirmware, Error> {
    check(board)?;
    let mut area = Area { next: 0, segments: Vec::new() };
    let placed = place_tables(board, &mut area);
    let (size, room) = (area.next, AREA.end - AREA.start);
    if size > room {
        return Err(Error::TooLarge { cpus: board.cpus.len(), size, room });
    }
    let mut tables = vec![0; size as usize];
    for (at, table) in &area.segments {
        let at = *at as usize;
        tables[at..at + table.len()].copy_from_slice(table);
    }
    let mut rsdp = bytes(&Rsdp::new(OEM_ID, placed.xsdt));

    let (fadt, xsdt) = (placed.fadt as u32, placed.xsdt as u32);
    let mut script = Script::default();
    script.allocate(TABLES, 64, HIGH);
    script.allocate(RSDP, 16, BIOS_AREA);
    for (offset, size) in [(at::FADT_FACS, 4), (at::FADT_DSDT, 4), (at::FADT_X_DSDT, 8)] {
        script.pointer(TABLES, fadt + offset, size);
    }
    for entry in 0..placed.entries as u32 {
        script.pointer(TABLES, xsdt + at::XSDT_ENTRIES + 8 * entry, 8);
    }
    for table in [fadt, xsdt] {
        let length = length(&tables, table);
        script.checksum(TABLES, table + at::CHECKSUM, table, length);
        clear(&mut tables, table + at::CHECKSUM);
    }
    script.pointer(RSDP, at::RSDP_XSDT, 8);
    for checksum in [at::RSDP_CHECKSUM, at::RSDP_EXTENDED_CHECKSUM] {
        clear(&mut rsdp, checksum);
    }
    // The first 20 bytes have a sum of their own, which the second one counts in.
    script.checksum(RSDP, at::RSDP_CHECKSUM, 0, 20);
    script.checksum(RSDP, at::RSDP_EXTENDED_CHECKSUM, 0, rsdp.len() as u32);
    Ok(ForFirmware { files: [(TABLES, tables), (RSDP, rsdp), (LOADER, script.0)] })
}

/// Firmware computes a checksum over what is there already: SeaBIOS corrects it, EDK II takes it
/// for the sum's, which is right where there is zero.
fn clear(file: &mut [u8], offset: u32) {
    if let Some(byte) = file.get_mut(offset as usize) {
        *byte = 0;
    }
}

/// What a table says of its own length.
fn length(tables: &[u8], table: u32) -> u32 {
    let field = tables.iter().skip(table as usize + 4).take(4);
    field.rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, kind: u32, names: &[&str], rest: &[u8]) {
        let start = self.0.len();
        self.0.extend(kind.to_le_bytes());
        for name in names {
            let mut field = [0; NAME];
            field.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            self.0.extend(field);
        }
        self.0.extend(rest);
        self.0.resize(start + COMMAND, 0);
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        let [a, b, c, d] = alignment.to_le_bytes();
        self.command(ALLOCATE, &[file], &[a, b, c, d, zone]);
    }

    /// The number there counts from the beginning of the tables.
    fn pointer(&mut self, file: &str, offset: u32, size: u8) {
        let [a, b, c, d] = offset.to_le_bytes();
        self.command(ADD_POINTER, &[file, TABLES], &[a, b, c, d, size]);
    }

    fn checksum(&mut self, file: &str, offset: u32, start: u32, length: u32) {
        let numbers = [offset, start, length].map(u32::to_le_bytes).concat();
        self.command(ADD_CHECKSUM, &[file], &numbers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Pci};

    fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
        bytes[at..at + size].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    fn name(bytes: &[u8]) -> String {
        let end = bytes.iter().position(|b| *b == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }

    /// Does what firmware does, with the tables at this address.
    fn execute(files: &ForFirmware, base: u64) -> (Vec<u8>, Vec<u8>) {
        let [(_, mut tables), (_, mut rsdp), (_, script)] = files.files.clone();
        for command in script.chunks(COMMAND) {
            let file = match &*name(&command[4..60]) {
                TABLES => &mut tables,
                RSDP => &mut rsdp,
                other => panic!("{other}"),
            };
            match number(command, 0, 4) as u32 {
                ALLOCATE => assert!(base.is_multiple_of(number(command, 60, 4))),
                ADD_POINTER => {
                    assert_eq!(name(&command[60..116]), TABLES);
                    let (at, size) = (number(command, 116, 4) as usize, command[120] as usize);
                    let value = number(file, at, size) + base;
                    file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let at = number(command, 60, 4) as usize;
                    let start = number(command, 64, 4) as usize;
                    let range = start..start + number(command, 68, 4) as usize;
                    let sum = file[range].iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
                    file[at] = 0u8.wrapping_sub(sum);
                }
                other => panic!("{other}"),
            }
        }
        (tables, rsdp)
    }

    #[test]
    fn what_firmware_makes_of_it_is_sound() {
        let mut board = Board::new((0..4).map(|id| Cpu { uid: id, apic_id: id }).collect());
        let memory = (0xc000_0000, 0xdfff_ffff);
        board.pci = Some(Pci {
            ecam: 0xb000_0000,
            buses: 1,
            memory,
            interrupts: vec![17],
            hot_plug: false,
        });
        let files = for_firmware(&board).unwrap();
        let base = 0x7ffe_0000;
        let (tables, rsdp) = execute(&files, base);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let table = |address: u64, signature: &[u8; 4]| {
            let at = (address - base) as usize;
            let table = &tables[at..at + number(&tables, at + 4, 4) as usize];
            assert_eq!(&table[..4], signature);
            assert!(signature == b"FACS" || sum(table) == 0, "{signature:?}");
            table.to_vec()
        };
        let xsdt = table(number(&rsdp, 24, 8), b"XSDT");
        let entries: Vec<u64> =
            (36..xsdt.len()).step_by(8).map(|at| number(&xsdt, at, 8)).collect();
        let fadt = table(entries[0], b"FACP");
        table(entries[1], b"APIC");
        table(entries[2], b"MCFG");
        table(number(&fadt, 36, 4), b"FACS");
        table(number(&fadt, 40, 4), b"DSDT");
        assert_eq!(number(&fadt, 40, 4), number(&fadt, 140, 8));
    }

    #[test]
    fn a_board_that_cannot_be_described_is_refused() {
        assert_eq!(for_firmware(&Board::new(Vec::new())), Err(Error::NoCpu));
    }
}
