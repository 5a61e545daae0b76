//! Where things go in guest-physical memory, and the check that nothing collides.
//!
//! What the loader itself places below 640 KiB (everything else comes from the kernel's file,
//! or is the initrd):
//!
//! | from      | to        | what                                                   |
//! |-----------|-----------|--------------------------------------------------------|
//! | `0x01000` | `0x02000` | [`GDT`]                                                |
//! | `0x02000` | `0x05000` | [`START_INFO`]: PVH start info, modules, memory map    |
//! | `0x07000` | `0x08000` | [`BOOT_PARAMS`]: Linux's "zero page"                   |
//! | `0x08000` | `0x0e000` | [`PAGE_TABLES`]: identity map of the low 4 GiB         |
//! | `0x20000` | `0x30000` | [`COMMAND_LINE`]                                       |
//! | `0x9fc00` | `0xa0000` | extended BIOS data area, reserved                      |
//! | `0xa0000` | `0xe0000` | VGA and option ROMs, reserved                          |
//! | `0xe0000` | `0x100000`| ACPI and MP tables, reserved                           |
//!
//! All of it is free for the kernel once it has read it; Linux copies what it needs.

use crate::{Bytes, Error};
use std::ops::Range;

/// The global descriptor table.
pub const GDT: Range<u64> = 0x1000..0x2000;
/// PVH's `hvm_start_info`, module list and memory map.
pub const START_INFO: Range<u64> = 0x2000..0x5000;
/// Linux's `struct boot_params`.
pub const BOOT_PARAMS: Range<u64> = 0x7000..0x8000;
/// One PML4, one PDPT and four page directories.
pub const PAGE_TABLES: Range<u64> = 0x8000..0xe000;
pub const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// Where RAM below 1 MiB ends for the guest.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// BIOS area with the ACPI tables; told to the guest as reserved.
pub const BIOS_AREA: Range<u64> = 0xe_0000..HIGH_MEMORY;
/// The end of real mode's megabyte.
pub const HIGH_MEMORY: u64 = 0x10_0000;

const GIB: u64 = 1 << 30;
const PAGE: u64 = x86_defs::PAGE_SIZE;

/// The guest's RAM: `0..low_end`, and from 4 GiB to `high_end` if that is above 4 GiB.
///
/// All of low RAM is backed, the areas that a PC reserves below 1 MiB included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Multiple of 4 KiB, at least 1 MiB and below 4 GiB (3 GiB on the usual board).
    pub low_end: u64,
    /// Multiple of 4 KiB; what is not above 4 GiB means none.
    pub high_end: u64,
}

impl Memory {
    /// Low RAM only.
    pub const fn low(low_end: u64) -> Self {
        Self { low_end, high_end: 0 }
    }

    /// `size` bytes on a board whose low RAM ends at 3 GiB at most.
    pub const fn of_size(size: u64) -> Self {
        if size <= 3 * GIB {
            Self::low(size)
        } else {
            Self { low_end: 3 * GIB, high_end: size.saturating_add(GIB) }
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |size, reason| Err(Error::Memory { size, reason });
        if self.low_end <= HIGH_MEMORY {
            return bad(self.low_end, "give more than 1 MiB");
        }
        if self.low_end > 4 * GIB - PAGE {
            return bad(self.low_end, "low memory must end below 4 GiB");
        }
        if !self.low_end.is_multiple_of(PAGE) || !self.high_end.is_multiple_of(PAGE) {
            return bad(self.low_end, "memory must end at a multiple of 4 KiB");
        }
        Ok(())
    }

    /// The memory map, in the order of addresses.
    pub(crate) fn map(&self) -> Vec<MapEntry> {
        let entry = |range, kind| MapEntry { range, kind };
        let mut map = vec![
            entry(0..LOW_RAM_END, E820_RAM),
            entry(LOW_RAM_END..0xa_0000, E820_RESERVED),
            entry(BIOS_AREA, E820_RESERVED),
            entry(HIGH_MEMORY..self.low_end, E820_RAM),
        ];
        if self.high_end > 4 * GIB {
            map.push(entry(4 * GIB..self.high_end, E820_RAM));
        }
        map
    }
}

/// E820 types (ACPI 6.5, table 15.4); PVH's memory map has the same.
pub const E820_RAM: u32 = 1;
pub const E820_RESERVED: u32 = 2;

/// An entry of the guest's memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub range: Range<u64>,
    pub kind: u32,
}

/// Bytes to write to guest-physical memory.
#[derive(Clone, Debug)]
pub struct Segment {
    /// For logs and errors.
    pub what: &'static str,
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    pub data: Bytes,
    /// How many bytes after the data must be zero. Fresh RAM is; at a reset they are not.
    pub zero_tail: u64,
}

impl Segment {
    /// The bytes to write at [`Segment::gpa`].
    pub fn bytes(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// The guest-physical addresses that it takes, its tail included.
    pub fn range(&self) -> Range<u64> {
        let length = (self.data.len() as u64).saturating_add(self.zero_tail);
        self.gpa..self.gpa.saturating_add(length)
    }
}

/// What the loader itself places, each with the range of the table above.
const FIXED: [(&str, Range<u64>); 5] = [
    ("GDT", GDT),
    ("start info", START_INFO),
    ("boot parameters", BOOT_PARAMS),
    ("page tables", PAGE_TABLES),
    ("command line", COMMAND_LINE),
];

/// Segments under construction: each addition is checked against RAM and the others.
#[derive(Debug)]
pub(crate) struct Plan {
    memory: Memory,
    /// Of the initrd, 0 without one: it counts when the needed memory is told.
    initrd_size: u64,
    taken: Vec<(&'static str, Range<u64>)>,
    segments: Vec<Segment>,
}

impl Plan {
    /// Nothing placed as yet; the areas of the table are taken already.
    pub fn new(memory: Memory, initrd: Option<&Bytes>) -> Self {
        let mut taken = vec![("BIOS and video area", LOW_RAM_END..HIGH_MEMORY)];
        taken.extend(FIXED);
        let initrd_size = initrd.map_or(0, |initrd| initrd.len() as u64);
        Self { memory, initrd_size, taken, segments: Vec::new() }
    }

    /// Plans to write `data` at the start of an area of the table.
    pub fn place_fixed(
        &mut self,
        what: &'static str,
        area: Range<u64>,
        data: Vec<u8>,
    ) -> Result<(), Error> {
        if data.len() as u64 > area.end - area.start {
            return Err(Error::Malformed("a table made for it is too large"));
        }
        self.segments.push(Segment { what, gpa: area.start, data: data.into(), zero_tail: 0 });
        Ok(())
    }

    /// Plans to write `data` at `gpa` and zeros after it. What is empty is placed nowhere: a header
    /// may give any address for nothing.
    pub fn place(
        &mut self,
        what: &'static str,
        gpa: u64,
        data: impl Into<Bytes>,
        zero_tail: u64,
    ) -> Result<(), Error> {
        let data = data.into();
        let end = (data.len() as u64).checked_add(zero_tail).and_then(|n| n.checked_add(gpa));
        let end = end.ok_or(Error::Malformed("an address overflows"))?;
        if end == gpa {
            return Ok(());
        }
        self.take(what, gpa..end)?;
        self.segments.push(Segment { what, gpa, data, zero_tail });
        Ok(())
    }

    /// Checks a range that must be RAM and that nothing else may use.
    fn take(&mut self, what: &'static str, range: Range<u64>) -> Result<(), Error> {
        let Range { start, end } = range;
        for (with, other) in &self.taken {
            if start < other.end && other.start < end {
                return Err(Error::Overlap { what, with, start, end });
            }
        }
        self.must_be_ram(what, end)?;
        self.taken.push((what, range));
        Ok(())
    }

    /// Checks that low RAM reaches `end`.
    pub fn must_be_ram(&self, what: &'static str, end: u64) -> Result<(), Error> {
        let low_end = self.memory.low_end;
        if end > low_end {
            let needed = end.saturating_add(self.initrd_size);
            return Err(Error::TooSmall { what, end, low_end, needed });
        }
        Ok(())
    }

    /// Puts the initrd as high as it may be: page-aligned, its end at most `limit`, above
    /// `floor` and everything placed so far. Returns where.
    pub fn place_initrd(
        &mut self,
        initrd: &Bytes,
        floor: u64,
        limit: u64,
    ) -> Result<Range<u64>, Error> {
        let size = initrd.len() as u64;
        if size == 0 {
            return Err(Error::InitrdEmpty);
        }
        let floor = self.taken.iter().map(|(_, taken)| taken.end).fold(floor, u64::max);
        let floor = floor.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let top = limit.min(self.memory.low_end) & !(PAGE - 1);
        let room = top.saturating_sub(floor);
        let start = top.checked_sub(size).map(|start| start & !(PAGE - 1));
        let Some(start) = start.filter(|&start| start >= floor) else {
            let limit = (limit < self.memory.low_end).then_some(limit);
            return Err(Error::InitrdTooLarge { size, room, limit });
        };
        self.place("initrd", start, initrd.clone(), 0)?;
        Ok(start..start + size)
    }

    /// The command line with its terminating zero. Returns its address.
    pub fn place_command_line(&mut self, text: &str, limit: usize) -> Result<u64, Error> {
        let room = (COMMAND_LINE.end - COMMAND_LINE.start - 1) as usize;
        let (length, limit) = (text.len(), limit.min(room));
        if length > limit {
            return Err(Error::CommandLineTooLong { length, limit });
        }
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.place_fixed("command line", COMMAND_LINE, bytes)?;
        Ok(COMMAND_LINE.start)
    }

    pub fn finish(self) -> Vec<Segment> {
        self.segments
    }
}

/// Bytes as MiB, rounded up.
pub(crate) fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_does_not_overlap_itself() {
        for pair in FIXED.windows(2) {
            assert!(pair[0].1.end <= pair[1].1.start, "{pair:?}");
        }
        const { assert!(COMMAND_LINE.end <= LOW_RAM_END) };
    }

    #[test]
    fn collisions_and_the_end_of_memory_are_seen() {
        let mut plan = Plan::new(Memory::low(2 << 20), None);
        plan.place("one", 0x10_0000, vec![1; 16], 16).unwrap();
        let overlap = plan.place("two", 0x10_001f, vec![1], 0).unwrap_err();
        assert!(matches!(overlap, Error::Overlap { what: "two", with: "one", .. }));
        plan.place("three", 0x10_0020, vec![1], 0).unwrap();
        assert!(matches!(plan.place("bios", 0xf_0000, vec![1], 0), Err(Error::Overlap { .. })));
        let past = plan.place("four", 0x1f_ffff, vec![1, 2], 0).unwrap_err();
        let (end, needed, low_end) = (0x20_0001, 0x20_0001, 0x20_0000);
        assert_eq!(past, Error::TooSmall { what: "four", end, low_end, needed });
        assert!(past.to_string().contains("at least 3 MiB"), "{past}");
        assert!(plan.place("five", u64::MAX, vec![1], 1).is_err());
    }

    #[test]
    fn initrd_goes_high_and_page_aligned() {
        let mut plan = Plan::new(Memory::low(4 << 20), None);
        let initrd = Bytes::from(vec![7; 5000]);
        let at = plan.place_initrd(&initrd, 0x20_0000, u64::MAX).unwrap();
        assert_eq!(at, 0x3f_e000..0x3f_e000 + 5000);
        let big = Bytes::from(vec![7; (2 << 20) + 1]);
        let mut plan = Plan::new(Memory::low(4 << 20), None);
        let error = plan.place_initrd(&big, 0x20_0000, u64::MAX).unwrap_err();
        let (size, room) = ((2 << 20) + 1, 2 << 20);
        assert_eq!(error, Error::InitrdTooLarge { size, room, limit: None });
        assert!(error.to_string().contains("1 MiB more"));
        let error = plan.place_initrd(&big, 0x20_0000, 0x30_0000).unwrap_err();
        assert_eq!(error, Error::InitrdTooLarge { size, room: 1 << 20, limit: Some(0x30_0000) });
        assert!(error.to_string().contains("below 0x300000"), "{error}");
    }

    #[test]
    fn memory_above_three_gib_continues_at_four() {
        let memory = Memory::of_size(5 * GIB);
        assert_eq!((memory.low_end, memory.high_end), (3 * GIB, 6 * GIB));
        let map = memory.map();
        let ram = |e: &&MapEntry| e.kind == E820_RAM && e.range.start >= HIGH_MEMORY;
        let total: u64 = map.iter().filter(ram).map(|e| e.range.end - e.range.start).sum();
        assert_eq!(total, 5 * GIB - HIGH_MEMORY);
        assert!(map.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        assert!(Memory::low(HIGH_MEMORY).check().is_err());
        assert!(Memory::low(4 * GIB).check().is_err());
        assert!(Memory::low((2 << 20) + 1).check().is_err());
    }
}
