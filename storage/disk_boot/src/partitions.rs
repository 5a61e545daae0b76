//! What parts a disk has: by a GUID partition table (UEFI 2.10, 5.3) or by a master boot record.

use disk::{Disk, Error};
use std::fmt;

const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];
const MBR_TABLE: usize = 446;
const MBR_ENTRY: usize = 16;
/// Types of an extended partition, whose parts are logical ones.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Logical partitions that are followed.
const LOGICAL_MAX: u32 = 60;
/// Entries that are looked at.
const GPT_MAX: u64 = 256;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts them; `None` for all of the disk.
    pub number: Option<u32>,
    pub start: u64,
    pub length: u64,
}

impl Partition {
    /// What follows the disk's name in the partition's.
    pub fn suffix(&self) -> String {
        self.number.map(|number| number.to_string()).unwrap_or_default()
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "partition {number}"),
            None => f.write_str("the whole disk"),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    u32::from_le_bytes(field.unwrap_or_default()).into()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    u64::from_le_bytes(field.unwrap_or_default())
}

/// The whole disk, and its partitions.
pub fn of(disk: &dyn Disk) -> Result<Vec<Partition>, Error> {
    let shape = disk.shape();
    let block = u64::from(shape.logical_block);
    let mut all = vec![Partition { number: None, start: 0, length: shape.bytes }];
    // A partition that is none, or not inside of the disk, is left out.
    let mut add = |number: u64, first: u64, count: u64| {
        let (start, length) = (first.checked_mul(block), count.checked_mul(block));
        if let (Some(start), Some(length @ 1..), Ok(number)) =
            (start, length, u32::try_from(number))
            && start != 0
            && shape.check(start, length).is_ok()
        {
            all.push(Partition { number: Some(number), start, length });
        }
    };
    if shape.bytes < 2 * block {
        return Ok(all);
    }
    let mut header = [0; 512];
    disk.read(block, &mut header)?;
    if header.starts_with(b"EFI PART") {
        let (at, count, size) = (long(&header, 72), word(&header, 80), word(&header, 84));
        for index in 0..count.min(GPT_MAX) {
            let mut entry = [0; 128];
            let offset = at.checked_mul(block).and_then(|at| at.checked_add(index * size));
            let Some(offset) = offset.filter(|offset| shape.check(*offset, 128).is_ok()) else {
                break;
            };
            disk.read(offset, &mut entry)?;
            let (first, last) = (long(&entry, 32), long(&entry, 40));
            if entry.iter().take(16).any(|byte| *byte != 0) && last >= first {
                add(index + 1, first, (last - first).saturating_add(1));
            }
        }
        return Ok(all);
    }
    let entries = mbr(disk, 0)?;
    for (number, entry) in (1..).zip(&entries) {
        if !EXTENDED.contains(&entry.kind) {
            add(number, entry.first, entry.count);
        }
    }
    if let Some(extended) = entries.iter().find(|entry| EXTENDED.contains(&entry.kind)) {
        // Each says where the next one is, from the beginning of the extended one.
        let mut table = extended.first;
        for number in 5..u64::from(5 + LOGICAL_MAX) {
            let Some(at) = table.checked_mul(block).filter(|at| shape.check(*at, 512).is_ok())
            else {
                break;
            };
            let [logical, next, ..] = mbr(disk, at)?;
            add(number, table.saturating_add(logical.first), logical.count);
            if next.kind == 0 || next.first == 0 {
                break;
            }
            table = extended.first.saturating_add(next.first);
        }
    }
    Ok(all)
}

/// An entry of a master boot record, in blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    kind: u8,
    first: u64,
    count: u64,
}

fn mbr(disk: &dyn Disk, at: u64) -> Result<[Entry; 4], Error> {
    let mut sector = [0; 512];
    disk.read(at, &mut sector)?;
    if !sector.ends_with(&MBR_SIGNATURE) {
        return Ok(Default::default());
    }
    let entry = |index: usize| {
        let at = MBR_TABLE + index * MBR_ENTRY;
        let kind = sector.get(at + 4).copied().unwrap_or(0);
        let (first, count) = (word(&sector, at + 8), word(&sector, at + 12));
        if kind == 0 { Entry::default() } else { Entry { kind, first, count } }
    };
    Ok([0, 1, 2, 3].map(entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::{Memory, Shape};
    use proptest::prelude::*;

    fn put(disk: &Memory, at: u64, bytes: &[u8]) {
        disk.write(at, bytes).unwrap();
    }

    fn entry(disk: &Memory, table: u64, index: u64, kind: u8, first: u32, count: u32) {
        let at = table * 512 + 446 + index * 16;
        put(disk, at + 4, &[kind]);
        put(disk, at + 8, &first.to_le_bytes());
        put(disk, at + 12, &count.to_le_bytes());
        put(disk, table * 512 + 510, &MBR_SIGNATURE);
    }

    fn numbers(disk: &Memory) -> Vec<(Option<u32>, u64, u64)> {
        let all = of(disk).unwrap();
        all.iter().map(|part| (part.number, part.start / 512, part.length / 512)).collect()
    }

    #[test]
    fn a_record_has_primary_and_logical_partitions() {
        let disk = Memory::new(Shape::of_bytes(1 << 20));
        assert_eq!(numbers(&disk), [(None, 0, 2048)]);
        entry(&disk, 0, 0, 0x83, 64, 100);
        entry(&disk, 0, 1, 0x05, 1000, 1000);
        entry(&disk, 0, 2, 0x83, 2000, 100);
        entry(&disk, 1000, 0, 0x83, 10, 20);
        entry(&disk, 1000, 1, 0x05, 100, 50);
        entry(&disk, 1100, 0, 0x83, 5, 7);
        let all = [(None, 0, 2048), (Some(1), 64, 100), (Some(5), 1010, 20), (Some(6), 1105, 7)];
        assert_eq!(numbers(&disk), all);
        // A chain that bites its tail ends.
        entry(&disk, 1100, 1, 0x05, 100, 50);
        assert!(numbers(&disk).len() < 100);
    }

    #[test]
    fn a_guid_table_comes_before_its_protective_record() {
        let disk = Memory::new(Shape::of_bytes(1 << 20));
        entry(&disk, 0, 0, 0xee, 1, 2047);
        put(&disk, 512, b"EFI PART");
        put(&disk, 512 + 72, &2u64.to_le_bytes());
        put(&disk, 512 + 80, &4u32.to_le_bytes());
        put(&disk, 512 + 84, &128u32.to_le_bytes());
        for (index, first, last) in [(0u64, 100u64, 199u64), (2, 300, 300), (3, 400, 9999)] {
            let at = 1024 + index * 128;
            put(&disk, at, &[7; 16]);
            put(&disk, at + 32, &first.to_le_bytes());
            put(&disk, at + 40, &last.to_le_bytes());
        }
        assert_eq!(numbers(&disk), [(None, 0, 2048), (Some(1), 100, 100), (Some(3), 300, 1)]);
    }

    proptest! {
        #[test]
        fn noise_is_no_partition_outside_of_the_disk(
            bytes in prop::collection::vec(any::<u8>(), 2048),
            guid: bool,
        ) {
            let disk = Memory::new(Shape::of_bytes(4096));
            put(&disk, 0, &bytes);
            put(&disk, 510, &MBR_SIGNATURE);
            if guid {
                put(&disk, 512, b"EFI PART");
            }
            for part in of(&disk).unwrap() {
                prop_assert!(disk.shape().check(part.start, part.length).is_ok());
            }
        }
    }
}
