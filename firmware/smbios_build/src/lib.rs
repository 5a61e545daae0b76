//! The SMBIOS tables of the board, by which software learns who made a machine and what it has
//! ("System Management BIOS Reference Specification" 3.0.0, DSP0134, "SMBIOS" below).
//!
//! [`build`] turns a [`Description`] into structures in the order of their handles, and
//! [`Tables::entry`] makes the entry point that leads to them.

mod structure;

use std::ops::Range;
use structure::Structure;

/// Where an entry point is searched for, at multiples of 16 (SMBIOS, 5.2.2).
pub const AREA: Range<u64> = 0xf_0000..0x10_0000;
/// Bytes of an entry point.
pub const ENTRY: usize = 24;
/// Of a text; longer ones are cut.
pub const TEXT_MAX: usize = 255;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// RAM that one memory device has.
const DEVICE_MAX: u64 = 16 * GIB;
const DEVICES_MAX: u64 = 64;

/// Handles of the first structure of a type (SMBIOS, 6.1.2).
mod handle {
    pub const BIOS: u16 = 0x000;
    pub const SYSTEM: u16 = 0x100;
    pub const BOARD: u16 = 0x200;
    pub const CHASSIS: u16 = 0x300;
    pub const PROCESSOR: u16 = 0x400;
    pub const OEM: u16 = 0xe00;
    pub const ARRAY: u16 = 0x1000;
    pub const DEVICE: u16 = 0x1100;
    pub const MAPPED: u16 = 0x1300;
    pub const BOOT: u16 = 0x2000;
    pub const END: u16 = 0x7f00;
    /// There is none; errors are not told of.
    pub const NONE: u16 = 0xffff;
    pub const NOT_PROVIDED: u16 = 0xfffe;
}

/// Type 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bios {
    pub vendor: String,
    pub version: String,
    /// Month, day and year: `01/31/2026`.
    pub date: String,
    pub release: Option<(u8, u8)>,
    pub uefi: bool,
}

/// Type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    /// The first three fields have their lowest byte first (SMBIOS, 7.2.1).
    pub uuid: [u8; 16],
    pub sku: String,
    pub family: String,
}

/// Type 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    pub asset: String,
    pub location: String,
}

/// Type 3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chassis {
    pub manufacturer: String,
    pub version: String,
    pub serial: String,
    pub asset: String,
    pub sku: String,
}

/// Type 4: one package with all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    pub manufacturer: String,
    pub version: String,
    pub cores: u32,
}

/// A machine as SMBIOS sees it. What is empty is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    pub bios: Bios,
    pub system: System,
    /// `None`: there is no such structure.
    pub board: Option<Board>,
    pub chassis: Chassis,
    pub processor: Processor,
    /// Type 11.
    pub oem: Vec<String>,
    /// Where RAM is; its sum is what there is.
    pub memory: Vec<Range<u64>>,
}

/// Structures, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    pub structures: Vec<u8>,
}

/// Makes the structures.
pub fn build(description: &Description) -> Tables {
    let mut all = vec![bios(&description.bios), system(&description.system)];
    all.extend(description.board.as_ref().map(board));
    all.push(chassis(&description.chassis));
    all.push(processor(&description.processor));
    all.extend(oem(&description.oem));
    all.extend(memory(&description.memory));
    all.push(Structure::new(32, handle::BOOT).bytes(&[0; 6]).byte(0));
    all.push(Structure::new(127, handle::END));
    Tables { structures: all.into_iter().flat_map(Structure::finish).collect() }
}

impl Tables {
    /// The entry point, with the structures at this address (SMBIOS, 5.2.2); 0 for firmware that
    /// places them itself.
    pub fn entry(&self, structures: u64) -> [u8; ENTRY] {
        let mut entry = [0; ENTRY];
        let size = u32::try_from(self.structures.len()).unwrap_or(u32::MAX);
        // Anchor, checksum, length, version 3.0.0, revision of this entry point.
        entry[..12].copy_from_slice(b"_SM3_\0\x18\x03\0\0\x01\0");
        entry[12..16].copy_from_slice(&size.to_le_bytes());
        entry[16..].copy_from_slice(&structures.to_le_bytes());
        let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        entry[5] = sum.wrapping_neg();
        entry
    }
}

/// SMBIOS, 7.1.
fn bios(bios: &Bios) -> Structure {
    /// Characteristics are not given here; in the second extension: UEFI, and a virtual machine.
    const NOT_GIVEN: u64 = 1 << 3;
    const UEFI: u8 = 1 << 3;
    const VIRTUAL: u8 = 1 << 4;
    let uefi = if bios.uefi { UEFI } else { 0 };
    let (major, minor) = bios.release.unwrap_or((0xff, 0xff));
    Structure::new(0, handle::BIOS)
        .text(&bios.vendor)
        .text(&bios.version)
        .word(0xf000)
        .text(&bios.date)
        .byte(0)
        .quad(NOT_GIVEN)
        .bytes(&[0, VIRTUAL | uefi, major, minor])
        // There is no embedded controller.
        .bytes(&[0xff, 0xff])
}

/// SMBIOS, 7.2.
fn system(system: &System) -> Structure {
    const POWER_SWITCH: u8 = 6;
    let [a, b, c, d, e, f, g, h, rest @ ..] = system.uuid;
    Structure::new(1, handle::SYSTEM)
        .text(&system.manufacturer)
        .text(&system.product)
        .text(&system.version)
        .text(&system.serial)
        .bytes(&[d, c, b, a, f, e, h, g])
        .bytes(&rest)
        .byte(POWER_SWITCH)
        .text(&system.sku)
        .text(&system.family)
}

/// SMBIOS, 7.3.
fn board(board: &Board) -> Structure {
    const HOSTS: u8 = 1;
    const MOTHERBOARD: u8 = 10;
    Structure::new(2, handle::BOARD)
        .text(&board.manufacturer)
        .text(&board.product)
        .text(&board.version)
        .text(&board.serial)
        .text(&board.asset)
        .byte(HOSTS)
        .text(&board.location)
        .word(handle::CHASSIS)
        .bytes(&[MOTHERBOARD, 0])
}

/// SMBIOS, 7.4.
fn chassis(chassis: &Chassis) -> Structure {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Structure::new(3, handle::CHASSIS)
        .text(&chassis.manufacturer)
        .byte(OTHER)
        .text(&chassis.version)
        .text(&chassis.serial)
        .text(&chassis.asset)
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        // Nothing of the manufacturer's, no height, no power cords, no elements.
        .bytes(&[0; 8])
        .text(&chassis.sku)
}

/// SMBIOS, 7.5.
fn processor(processor: &Processor) -> Structure {
    const CENTRAL: u8 = 3;
    /// The family is in a field of its own, and is none of the list.
    const SEE_FAMILY_2: u8 = 0xfe;
    const OTHER: u8 = 1;
    /// Populated, and enabled.
    const STATUS: u8 = 0x41;
    /// 64 bits; several cores.
    const CHARACTERISTICS: u16 = 1 << 2 | 1 << 3;
    let cores = u16::try_from(processor.cores).unwrap_or(u16::MAX);
    // From 256 on in the wide fields only.
    let narrow = u8::try_from(cores).unwrap_or(0xff);
    Structure::new(4, handle::PROCESSOR)
        .text("CPU 0")
        .bytes(&[CENTRAL, SEE_FAMILY_2])
        .text(&processor.manufacturer)
        .quad(0)
        .text(&processor.version)
        // Voltage, clocks: unknown.
        .bytes(&[0; 7])
        .bytes(&[STATUS, OTHER])
        .word(handle::NONE)
        .word(handle::NONE)
        .word(handle::NONE)
        // Serial number, asset tag, part number.
        .bytes(&[0; 3])
        .bytes(&[narrow, narrow, narrow])
        .word(CHARACTERISTICS)
        .word(OTHER.into())
        .word(cores)
        .word(cores)
        .word(cores)
}

/// SMBIOS, 7.12.
fn oem(strings: &[String]) -> Option<Structure> {
    let count = strings.len().min(structure::TEXTS_MAX);
    let empty = Structure::new(11, handle::OEM).byte(count as u8);
    let add = |structure: Structure, text: &String| structure.string(text);
    (count > 0).then(|| strings.iter().take(count).fold(empty, add))
}

/// The array, its devices, and where they are (SMBIOS, 7.17, 7.18, 7.20).
fn memory(ranges: &[Range<u64>]) -> Vec<Structure> {
    const OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    const SEE_EXTENDED: u32 = 0x8000_0000;
    let size: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
    let each = DEVICE_MAX.max(size.div_ceil(DEVICES_MAX));
    let count = size.div_ceil(each).max(1);
    let kib = u32::try_from(size >> 10).ok().filter(|kib| *kib < SEE_EXTENDED);
    let array = Structure::new(16, handle::ARRAY)
        .bytes(&[OTHER, SYSTEM_MEMORY, NO_CORRECTION])
        .double(kib.unwrap_or(SEE_EXTENDED))
        .word(handle::NOT_PROVIDED)
        .word(count as u16)
        .quad(if kib.is_some() { 0 } else { size });
    let mut all = vec![array];
    for index in 0..count {
        let here = each.min(size - (index * each).min(size));
        all.push(device(index as u16, here));
    }
    for (index, range) in ranges.iter().enumerate().take(8) {
        let kib = |address: u64| u32::try_from(address >> 10).ok().filter(|kib| *kib != u32::MAX);
        let last = range.end.saturating_sub(1);
        let mapped = Structure::new(19, handle::MAPPED + index as u16);
        let narrow = kib(range.start).zip(kib(last));
        let (first, end) = narrow.unwrap_or((u32::MAX, u32::MAX));
        let mapped = mapped.double(first).double(end).word(handle::ARRAY).byte(1);
        let wide = if narrow.is_some() { (0, 0) } else { (range.start, last) };
        all.push(mapped.quad(wide.0).quad(wide.1));
    }
    all
}

fn device(index: u16, size: u64) -> Structure {
    const UNKNOWN: u16 = 0xffff;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER: u16 = 1 << 1;
    const SEE_EXTENDED: u16 = 0x7fff;
    let mib = size / MIB;
    let narrow = u16::try_from(mib).ok().filter(|mib| *mib < SEE_EXTENDED);
    Structure::new(17, handle::DEVICE + index)
        .word(handle::ARRAY)
        .word(handle::NOT_PROVIDED)
        .word(UNKNOWN)
        .word(UNKNOWN)
        .word(narrow.unwrap_or(SEE_EXTENDED))
        .bytes(&[DIMM, 0])
        .text(&format!("DIMM {index}"))
        .text("")
        .byte(RAM)
        .word(OTHER)
        .word(0)
        // Manufacturer, serial number, asset tag, part number; attributes.
        .bytes(&[0; 5])
        .double(if narrow.is_some() { 0 } else { mib as u32 })
        // Speed and voltages: unknown.
        .bytes(&[0; 8])
}

#[cfg(test)]
mod tests;
