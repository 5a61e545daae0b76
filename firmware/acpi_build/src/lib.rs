//! The ACPI tables of the board (ACPI 6.5).
//!
//! [`build`] turns the description of a [`Board`] into tables in the BIOS area below 1 MiB,
//! where an operating system that is given no address looks for the root pointer:
//!
//! ```text
//! RSDP -> XSDT -> FADT -> FACS (the global lock)
//!              |       -> DSDT (CPUs, PCI host bridge, serial ports, clock, pvpanic, power-off)
//!              -> MADT (local APICs, I/O APIC, interrupt overrides)
//!              -> MCFG (PCI's enhanced configuration space)
//!              -> HPET (the event timer)
//!              -> SRAT (where memory can come to)
//! ```
//!
//! Firmware places tables itself: it gets the same ones by [`for_firmware`], with commands that say
//! which of their numbers are addresses.
//!
//! The board is always in ACPI mode: there is no SMI command port, so `PM1_CNT.SCI_EN` reads
//! as one from the start.

mod board;
mod cpus;
mod dsdt;
mod fadt;
mod hpet;
mod linker;
mod madt;
mod pci;
mod srat;
mod virtio;

pub use linker::{ForFirmware, for_firmware};

pub use board::{
    Board, Cpu, HotCpus, HotMemory, Hpet, IoApic, Override, Pci, PmPorts, Polarity, Reset, Rtc,
    Serial, Trigger, VirtioMmio,
};

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use std::ops::Range;

/// Where the tables go: the part of the BIOS area that is searched for the root pointer
/// (ACPI 6.5, 5.2.5.1). The guest's memory map must have it as reserved.
pub const AREA: Range<u64> = 0xe_0000..0x10_0000;

const OEM_ID: [u8; 6] = *b"SARANG";
const OEM_TABLE_ID: [u8; 8] = *b"SARANGPC";
const OEM_REVISION: u32 = 1;

/// Tables, ready to be written to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Guest-physical addresses and the bytes to write there, all inside [`AREA`].
    pub segments: Vec<(u64, Vec<u8>)>,
    /// Where the root pointer is.
    pub rsdp: u64,
}

/// Why a board cannot be described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the board has no CPU: give at least one")]
    NoCpu,
    #[error("two CPUs have the APIC ID {0}: give each its own")]
    SameApicId(u32),
    #[error("two CPUs have the UID {0}: give each its own")]
    SameUid(u32),
    #[error(
        "the ACPI tables of {cpus} CPUs take {size} bytes, and {room} are there: give fewer CPUs"
    )]
    TooLarge { cpus: usize, size: u64, room: u64 },
}

/// Makes the tables.
pub fn build(board: &Board) -> Result<Tables, Error> {
    check(board)?;
    let mut area = Area { next: AREA.start, segments: Vec::new() };
    let rsdp = area.reserve(Rsdp::len(), 16);
    let placed = place_tables(board, &mut area);
    area.segments.push((rsdp, bytes(&Rsdp::new(OEM_ID, placed.xsdt))));
    let (size, room) = (area.next - AREA.start, AREA.end - AREA.start);
    if size > room {
        return Err(Error::TooLarge { cpus: board.cpus.len(), size, room });
    }
    Ok(Tables { segments: area.segments, rsdp })
}

/// Where the tables with pointers are, and how many pointers the last has.
struct Placed {
    fadt: u64,
    xsdt: u64,
    entries: usize,
}

/// All but the root pointer.
fn place_tables(board: &Board, area: &mut Area) -> Placed {
    let facs = area.place(facs(), 64);
    let dsdt = area.place(dsdt::table(board), 16);
    let fadt = area.place(fadt::table(board, facs as u32, dsdt as u32), 16);
    let madt = area.place(madt::table(board), 16);
    let mcfg = board.pci.as_ref().map(|pci| area.place(pci::mcfg(pci), 16));
    let hpet = board.hpet.as_ref().map(|hpet| area.place(hpet::table(hpet), 16));
    let memory = board.hot_memory.as_ref();
    let srat = memory.map(|memory| area.place(srat::table(board, memory), 16));
    let always = [fadt, madt].into_iter();
    let entries: Vec<u64> = always.chain(mcfg).chain(hpet).chain(srat).collect();
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    entries.iter().for_each(|entry| xsdt.add_entry(*entry));
    let xsdt = area.place(bytes(&xsdt), 16);
    Placed { fadt, xsdt, entries: entries.len() }
}

fn check(board: &Board) -> Result<(), Error> {
    if board.cpus.is_empty() {
        return Err(Error::NoCpu);
    }
    let repeated = |key: fn(&Cpu) -> u32| {
        let mut keys: Vec<u32> = board.cpus.iter().map(key).collect();
        keys.sort_unstable();
        keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    };
    if let Some(id) = repeated(|cpu| cpu.apic_id) {
        return Err(Error::SameApicId(id));
    }
    repeated(|cpu| cpu.uid).map_or(Ok(()), |uid| Err(Error::SameUid(uid)))
}

/// The next free address, which may pass the area's end; [`build`] checks that once.
struct Area {
    next: u64,
    segments: Vec<(u64, Vec<u8>)>,
}

impl Area {
    fn reserve(&mut self, size: usize, alignment: u64) -> u64 {
        let at = self.next.next_multiple_of(alignment);
        self.next = at + size as u64;
        at
    }

    fn place(&mut self, table: Vec<u8>, alignment: u64) -> u64 {
        let at = self.reserve(table.len(), alignment);
        self.segments.push((at, table));
        at
    }
}

fn facs() -> Vec<u8> {
    let mut facs = FACS::new();
    // Version 2 since ACPI 4.0 (ACPI 6.5, table 5.13).
    facs.version = 2;
    bytes(&facs)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guest memory of the area, as the guest reads it.
    struct Guest(Vec<u8>);

    impl Guest {
        fn new(tables: &Tables) -> Self {
            let mut memory = vec![0; (AREA.end - AREA.start) as usize];
            for (at, bytes) in &tables.segments {
                let at = (at - AREA.start) as usize;
                let to = &mut memory[at..at + bytes.len()];
                assert!(to.iter().all(|&byte| byte == 0), "tables overlap");
                to.copy_from_slice(bytes);
            }
            Self(memory)
        }

        fn at(&self, address: u64, size: usize) -> &[u8] {
            let at = (address - AREA.start) as usize;
            &self.0[at..at + size]
        }

        fn number(&self, address: u64, size: usize) -> u64 {
            self.at(address, size).iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        }

        /// A table with its signature, length and checksum checked.
        fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
            assert_eq!(self.at(address, 4), signature);
            let table = self.at(address, self.number(address + 4, 4) as usize);
            assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(signature));
            table
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn board(cpus: u32) -> Board {
        Board::new((0..cpus).map(|id| Cpu { uid: id, apic_id: id }).collect())
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let tables = build(&board(4)).unwrap();
        let guest = Guest::new(&tables);
        assert_eq!(tables.rsdp % 16, 0);
        assert_eq!(guest.at(tables.rsdp, 8), b"RSD PTR ");
        assert_eq!((sum(guest.at(tables.rsdp, 20)), sum(guest.at(tables.rsdp, 36))), (0, 0));
        let xsdt = guest.number(tables.rsdp + 24, 8);
        assert_eq!(guest.table(xsdt, b"XSDT").len(), 36 + 2 * 8);
        let fadt = guest.number(xsdt + 36, 8);
        assert_eq!(guest.table(fadt, b"FACP").len(), 276);
        let facs = guest.number(fadt + 36, 4);
        assert_eq!(
            (guest.at(facs, 4), facs % 64, guest.number(facs + 4, 4)),
            (&b"FACS"[..], 0, 64)
        );
        let dsdt = guest.number(fadt + 40, 4);
        guest.table(dsdt, b"DSDT");
        assert_eq!(guest.number(fadt + 140, 8), dsdt);
        guest.table(guest.number(xsdt + 44, 8), b"APIC");
    }

    #[test]
    fn a_board_with_pci_has_one_table_more() {
        let mut board = board(1);
        let memory = (0xc000_0000, 0xdfff_ffff);
        board.pci = Some(Pci {
            ecam: 0xe000_0000,
            buses: 256,
            memory,
            interrupts: vec![17],
            hot_plug: true,
        });
        let tables = build(&board).unwrap();
        let guest = Guest::new(&tables);
        let xsdt = guest.number(tables.rsdp + 24, 8);
        assert_eq!(guest.table(xsdt, b"XSDT").len(), 36 + 3 * 8);
        let mcfg = guest.table(guest.number(xsdt + 52, 8), b"MCFG");
        // Base address, segment, first and last bus (PCI Firmware Specification 3.3, 4.1.2).
        assert_eq!(mcfg[44..56], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 255]);
    }

    #[test]
    fn a_board_to_which_memory_can_come_has_one_table_more() {
        let mut board = board(2);
        board.hot_memory =
            Some(HotMemory { ram: vec![0..1 << 28, 1 << 28..1 << 29], room: 1 << 32..5 << 30 });
        let tables = build(&board).unwrap();
        let guest = Guest::new(&tables);
        let xsdt = guest.number(tables.rsdp + 24, 8);
        guest.table(guest.number(xsdt + 52, 8), b"SRAT");
    }

    #[test]
    fn what_is_wrong_with_a_board_is_said() {
        assert_eq!(build(&board(0)), Err(Error::NoCpu));
        let twice = |uid, apic_id| {
            build(&Board::new(vec![Cpu { uid: 0, apic_id: 0 }, Cpu { uid, apic_id }]))
        };
        assert_eq!(twice(1, 0), Err(Error::SameApicId(0)));
        assert_eq!(twice(0, 1), Err(Error::SameUid(0)));
        assert!(matches!(build(&board(4096)), Err(Error::TooLarge { cpus: 4096, .. })));
        Guest::new(&build(&board(1024)).unwrap());
    }
}
