//! A kernel as a Xen PV guest: what a domain builder places before the first instruction
//! (`xen.h`, "start of day"; `elfnote.h`).
//!
//! Machine frames and the guest's own are the same numbers. From [`elfnote::VIRT_BASE`] on, one
//! range of virtual addresses maps, in this order:
//!
//! | what | frames |
//! |---|---|
//! | the kernel, at its physical addresses | |
//! | `start_info`, the xenstore page, the console page | 3 |
//! | page tables, the L4 first; mapped for reading | |
//! | the boot stack | 1 |
//! | room, at least 512 KiB, to the next multiple of 4 MiB | |
//!
//! Behind it are, outside of that range, the p2m list with page tables of its own, which map it at
//! [`elfnote::INIT_P2M`] (or inside of the range where the kernel has no such note), and the initrd,
//! which the kernel finds by its frame.

use crate::bzimage::BzImage;
use crate::elf_file::ElfFile;
use crate::layout::Segment;
use crate::{Bytes, Compression, Error, decompress};
use std::ops::Range;
use vcpu_state::{SegReg, VcpuState};
use x86_defs::{PAGE_SIZE, cr::cr0, cr::cr4, cr::efer, gpr, is_canonical_48, paging, rflags};
use xen_abi::start_info::{self, StartInfo};
use xen_abi::trap::selector;
use xen_abi::{elfnote, xen};
use zerocopy::{FromZeros, IntoBytes};

const PAGE: u64 = PAGE_SIZE;
/// Bytes that one L1 table maps.
const L1_SPAN: u64 = 2 << 20;
/// The mapped range ends at a multiple of this.
const MAP_ALIGN: u64 = 4 << 20;
/// Bytes that are mapped at least behind what is used.
const SPARE: u64 = 512 << 10;

/// What to boot, and what its domain is like.
#[derive(Clone, Debug)]
pub struct XenPvRequest {
    pub kernel: Bytes,
    pub initrd: Option<Bytes>,
    /// Without a terminating zero; must not contain one.
    pub command_line: String,
    /// Bytes of RAM, from address 0 on: a multiple of 4 KiB.
    pub memory: u64,
    /// Guest-physical address of the page that hypervisor and guest share.
    pub shared_info: u64,
    /// Event channels, bound already.
    pub store_port: u32,
    pub console_port: u32,
}

/// The plan of a domain.
#[derive(Clone, Debug)]
pub struct XenPv {
    /// What to write to guest memory. They do not overlap, and all are inside RAM.
    pub segments: Vec<Segment>,
    /// The state of the first vCPU. CR3 has the L4 table, which is not validated yet, and whose
    /// entries of the hypervisor are empty.
    pub vcpu: VcpuState,
    /// Guest-physical address of the page of xenstore's ring.
    pub store: u64,
    /// Guest-physical address of the console's page.
    pub console: u64,
    /// Guest-physical address of the page for call stubs, if the kernel has one.
    pub hypercall_page: Option<u64>,
    /// One line for a log.
    pub description: String,
}

/// What the kernel's notes say.
#[derive(Clone, Copy, Debug)]
struct Notes {
    entry: u64,
    virt_base: u64,
    paddr_offset: u64,
    init_p2m: Option<u64>,
    hypercall_page: Option<u64>,
    unmapped_initrd: bool,
}

/// Frames of a domain, in bytes of guest-physical address.
#[derive(Clone, Debug)]
struct Places {
    start_info: u64,
    store: u64,
    console: u64,
    tables: Range<u64>,
    stack: u64,
    /// The end of what is mapped from the virtual base on.
    mapped_end: u64,
    p2m: Range<u64>,
    p2m_tables: Range<u64>,
    initrd: Range<u64>,
}

/// Makes the plan.
pub fn load(request: &XenPvRequest) -> Result<XenPv, Error> {
    if request.command_line.bytes().any(|byte| byte == 0) {
        return Err(Error::CommandLineZero);
    }
    let length = request.command_line.len();
    if length >= start_info::COMMAND_LINE {
        return Err(Error::CommandLineTooLong { length, limit: start_info::COMMAND_LINE - 1 });
    }
    if !request.memory.is_multiple_of(PAGE) || request.memory > 1 << 40 {
        let reason = "it must be whole pages, of at most 1 TiB";
        return Err(Error::Memory { size: request.memory, reason });
    }
    let (vmlinux, what) = unpacked(request)?;
    let elf = ElfFile::parse(vmlinux.as_slice())?;
    let notes = Notes::of(&elf)?;
    let places = Places::of(request, &notes, elf.physical_end())?;
    let mut segments: Vec<Segment> = Vec::new();
    elf.each_segment(&vmlinux, |gpa, data, zero_tail| {
        let new = Segment { what: "segment", gpa, data, zero_tail };
        let Range { start, end } = new.range();
        if start == end {
            return Ok(());
        }
        let overlaps = |old: &Segment| start < old.range().end && old.range().start < end;
        if segments.iter().any(overlaps) {
            return Err(Error::Overlap { what: "segment", with: "segment", start, end });
        }
        segments.push(new);
        Ok(())
    })?;
    let mut put = |what, gpa, data: Vec<u8>| {
        segments.push(Segment { what, gpa, data: data.into(), zero_tail: 0 });
    };
    put("start info", places.start_info, start_info_page(request, &notes, &places));
    put("xenstore", places.store, vec![0; PAGE as usize]);
    put("console", places.console, vec![0; PAGE as usize]);
    put("boot stack", places.stack, vec![0; PAGE as usize]);
    put("p2m list", places.p2m.start, p2m_list(request, &places));
    for (what, start, bytes) in tables(&notes, &places)? {
        put(what, start, bytes);
    }
    if let Some(initrd) = &request.initrd {
        let (gpa, data) = (places.initrd.start, initrd.clone());
        segments.push(Segment { what: "initrd", gpa, data, zero_tail: 0 });
    }
    let description = format!("{what}, entered at {:#x} as a Xen PV guest", notes.entry);
    Ok(XenPv {
        segments,
        vcpu: entry_state(&notes, &places),
        store: places.store,
        console: places.console,
        hypercall_page: notes.hypercall_page.map(|at| notes.physical(at)),
        description,
    })
}

/// The ELF file, and what it came in.
fn unpacked(request: &XenPvRequest) -> Result<(Bytes, String), Error> {
    let file = request.kernel.as_slice();
    if ElfFile::is_elf(file) {
        return Ok((request.kernel.clone(), "ELF file".into()));
    }
    if Compression::of(file) == Some(Compression::Gzip) {
        let kernel = decompress::payload(Compression::Gzip, file, request.memory)?;
        let kernel = XenPvRequest { kernel: kernel.into(), ..request.clone() };
        return unpacked_once(&kernel);
    }
    unpacked_once(request)
}

fn unpacked_once(request: &XenPvRequest) -> Result<(Bytes, String), Error> {
    let file = request.kernel.as_slice();
    if ElfFile::is_elf(file) {
        return Ok((request.kernel.clone(), "ELF file".into()));
    }
    let image = BzImage::parse(file)?;
    let compression = image
        .compression()
        .ok_or_else(|| Error::UnknownCompression { magic: image.payload_magic() })?;
    let what = format!("bzImage {} ({compression})", image.version_text());
    Ok((image.decompress(compression, request.memory)?.into(), what))
}

impl Notes {
    fn of(elf: &ElfFile<'_>) -> Result<Self, Error> {
        if !elf.is_64_bit() {
            return Err(Error::NoXenEntry("it is a 32-bit kernel"));
        }
        let missing = Error::NoXenEntry("its file has no Xen notes");
        let entry = elf.xen_number(elfnote::ENTRY)?.ok_or(missing.clone())?;
        let virt_base = elf.xen_number(elfnote::VIRT_BASE)?.ok_or(missing)?;
        let notes = Self {
            entry,
            virt_base,
            paddr_offset: elf.xen_number(elfnote::PADDR_OFFSET)?.unwrap_or(0),
            init_p2m: elf.xen_number(elfnote::INIT_P2M)?,
            hypercall_page: elf.xen_number(elfnote::HYPERCALL_PAGE)?,
            unmapped_initrd: elf.xen_number(elfnote::MOD_START_PFN)?.is_some_and(|v| v != 0),
        };
        notes.check(elf)?;
        Ok(notes)
    }

    /// Whether all addresses make sense: the kernel's are behind the base, in the upper half.
    fn check(&self, elf: &ElfFile<'_>) -> Result<(), Error> {
        let in_kernel =
            |at: u64| at.checked_sub(self.virt_base).is_some_and(|at| at < elf.physical_end());
        if !self.virt_base.is_multiple_of(MAP_ALIGN)
            || !is_canonical_48(self.virt_base)
            || self.virt_base < xen::HYPERVISOR_VIRT.end
            || self.paddr_offset != 0
        {
            return Err(Error::Malformed("its virtual base is not one of a Xen PV guest"));
        }
        if !in_kernel(self.entry) || self.hypercall_page.is_some_and(|page| !in_kernel(page)) {
            return Err(Error::Malformed("its Xen entry is outside the kernel"));
        }
        if !self.unmapped_initrd {
            return Err(Error::NoXenEntry("it wants its initrd mapped"));
        }
        let p2m_fits =
            self.init_p2m.is_none_or(|at| at.is_multiple_of(1 << 39) && at < 1 << 47 && at != 0);
        if !p2m_fits {
            return Err(Error::Malformed("its p2m list's address is not a free one"));
        }
        Ok(())
    }

    fn linear(&self, gpa: u64) -> u64 {
        self.virt_base.wrapping_add(gpa)
    }

    fn physical(&self, linear: u64) -> u64 {
        linear.wrapping_sub(self.virt_base)
    }
}

impl Places {
    fn of(request: &XenPvRequest, notes: &Notes, kernel_end: u64) -> Result<Self, Error> {
        // Whatever the file says, sums stay far from overflow.
        let too_small = |end: u64| Error::TooSmall {
            what: "kernel",
            end,
            low_end: request.memory,
            needed: end,
        };
        if kernel_end > request.memory {
            return Err(too_small(kernel_end));
        }
        let mut at = kernel_end.next_multiple_of(PAGE);
        let mut take = |pages: u64| {
            let start = at;
            at += pages * PAGE;
            start..at
        };
        let list_pages = (request.memory / PAGE * 8).div_ceil(PAGE);
        let inside = if notes.init_p2m.is_none() { take(list_pages) } else { 0..0 };
        let [start_info, store, console] = [(); 3].map(|()| take(1).start);
        let tables_start = take(0).start;
        // Tables map themselves and the stack.
        let mut l1_tables = 1u64;
        let (tables, mapped_end) = loop {
            let count = 1 + 2 * l1_tables.div_ceil(512).max(1) + l1_tables;
            let end = tables_start + count * PAGE;
            let mapped_end = (end + PAGE + SPARE).next_multiple_of(MAP_ALIGN);
            if mapped_end / L1_SPAN <= l1_tables {
                break (tables_start..end, mapped_end);
            }
            l1_tables = mapped_end / L1_SPAN;
        };
        if mapped_end > 1 << 30 {
            return Err(Error::TooLarge { size: mapped_end, limit: 1 << 30 });
        }
        let stack = tables.end;
        let mut at = mapped_end;
        let (p2m, p2m_tables) = match notes.init_p2m {
            None => (inside, at..at),
            Some(_) => {
                let list = at..at + list_pages * PAGE;
                let l1 = list_pages.div_ceil(512);
                let l2 = l1.div_ceil(512);
                at = list.end + (l1 + l2 + 1) * PAGE;
                (list.clone(), list.end..at)
            }
        };
        let size = request.initrd.as_ref().map_or(0, |initrd| initrd.len() as u64);
        let initrd = at..at + size;
        if initrd.end > request.memory {
            return Err(too_small(initrd.end));
        }
        Ok(Self { start_info, store, console, tables, stack, mapped_end, p2m, p2m_tables, initrd })
    }
}

fn start_info_page(request: &XenPvRequest, notes: &Notes, places: &Places) -> Vec<u8> {
    let mut info = StartInfo::new_zeroed();
    copy(&mut info.magic, start_info::MAGIC);
    info.pages = request.memory / PAGE;
    info.shared_info = request.shared_info;
    info.flags = start_info::flag::VIRT_P2M_4TOOLS;
    info.store_mfn = places.store / PAGE;
    info.store_port = request.store_port;
    info.console_mfn = places.console / PAGE;
    info.console_port = request.console_port;
    info.pt_base = notes.linear(places.tables.start);
    info.pt_frames = (places.tables.end - places.tables.start) / PAGE;
    info.mfn_list = notes.init_p2m.unwrap_or_else(|| notes.linear(places.p2m.start));
    if request.initrd.is_some() {
        info.flags |= start_info::flag::MOD_START_PFN;
        info.module_start = places.initrd.start / PAGE;
        info.module_bytes = places.initrd.end - places.initrd.start;
    }
    if notes.init_p2m.is_some() {
        info.p2m_first_pfn = places.p2m.start / PAGE;
        info.p2m_frames = (places.p2m_tables.end - places.p2m.start) / PAGE;
    }
    copy(&mut info.command_line, request.command_line.as_bytes());
    let mut page = info.as_bytes().to_vec();
    page.resize(PAGE as usize, 0);
    page
}

fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Every frame's machine frame: itself.
fn p2m_list(request: &XenPvRequest, places: &Places) -> Vec<u8> {
    let mut list: Vec<u8> = (0..request.memory / PAGE).flat_map(u64::to_le_bytes).collect();
    list.resize((places.p2m.end - places.p2m.start) as usize, 0);
    list
}

/// Of a table above the lowest.
const TABLE: u64 = paging::P | paging::RW | paging::A | paging::D | paging::US;
/// Of a page.
const LEAF: u64 = paging::P | paging::RW | paging::A | paging::US;

/// Tables that map a range of frames at a linear address, from the top down.
struct Tables {
    base: u64,
    bytes: Vec<u8>,
    used: u64,
}

impl Tables {
    fn new(area: &Range<u64>) -> Self {
        Self { base: area.start, bytes: vec![0; (area.end - area.start) as usize], used: 0 }
    }

    fn take(&mut self) -> u64 {
        let table = self.base + self.used * PAGE;
        self.used += 1;
        table
    }

    /// The entry of a table; a new table is put there if it is empty.
    fn below(&mut self, table: u64, index: u64) -> Option<u64> {
        let at = (table - self.base + index * 8) as usize;
        let entry = self.bytes.get(at..at + 8)?.try_into().map(u64::from_le_bytes).ok()?;
        if entry != 0 {
            return Some(entry & paging::ADDRESS);
        }
        let new = self.take();
        self.set(table, index, new | TABLE)?;
        Some(new)
    }

    fn set(&mut self, table: u64, index: u64, value: u64) -> Option<()> {
        let at = (table - self.base + index * 8) as usize;
        self.bytes.get_mut(at..at + 8)?.copy_from_slice(&value.to_le_bytes());
        Some(())
    }

    /// Maps a page below this L3 table.
    fn map(&mut self, l3: u64, linear: u64, leaf: u64) -> Option<()> {
        let l2 = self.below(l3, linear >> 30 & 511)?;
        let l1 = self.below(l2, linear >> 21 & 511)?;
        self.set(l1, linear >> 12 & 511, leaf)
    }
}

/// Bytes, and where they go.
type Block = (&'static str, u64, Vec<u8>);

/// All page tables, as blocks to write.
fn tables(notes: &Notes, places: &Places) -> Result<Vec<Block>, Error> {
    let wrong = || Error::Malformed("its page tables cannot be made");
    let mut main = Tables::new(&places.tables);
    let l4 = main.take();
    let l3 = main.below(l4, notes.virt_base >> 39 & 511).ok_or_else(wrong)?;
    for gpa in (0..places.mapped_end).step_by(PAGE as usize) {
        // No table may be written but by hypercall.
        let leaf = if places.tables.contains(&gpa) { LEAF & !paging::RW } else { LEAF };
        main.map(l3, notes.linear(gpa), gpa | leaf).ok_or_else(wrong)?;
    }
    let mut blocks = Vec::new();
    if let Some(list) = notes.init_p2m {
        let mut tables = Tables::new(&places.p2m_tables);
        let l3 = tables.take();
        main.set(l4, list >> 39 & 511, l3 | TABLE).ok_or_else(wrong)?;
        for gpa in places.p2m.clone().step_by(PAGE as usize) {
            let linear = list + (gpa - places.p2m.start);
            tables.map(l3, linear, gpa | LEAF).ok_or_else(wrong)?;
        }
        blocks.push(("p2m page tables", tables.base, tables.bytes));
    }
    blocks.push(("page tables", main.base, main.bytes));
    Ok(blocks)
}

fn entry_state(notes: &Notes, places: &Places) -> VcpuState {
    let mut state = VcpuState::reset(0);
    state.regs.rip = notes.entry;
    state.regs.rflags = rflags::FIXED | rflags::IF;
    state.regs.gpr[gpr::RSP] = notes.linear(places.stack + PAGE);
    state.regs.gpr[gpr::RSI] = notes.linear(places.start_info);
    state.segment_mut(SegReg::Cs).selector = selector::CS64;
    state.segment_mut(SegReg::Ss).selector = selector::SS;
    state.control.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.control.cr3 = places.tables.start;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;
    use crate::synthetic::{Elf, Image, compress};
    use proptest::prelude::*;

    const BASE: u64 = 0xffff_ffff_8000_0000;

    fn elf() -> Elf {
        let note = |elf: Elf, kind, value: u64| elf.note(b"Xen\0", kind, &value.to_le_bytes());
        let elf = Elf::new64().load(0x100_0000, BASE + 0x100_0000, &[0x90; 64], 0x4321);
        let elf = note(note(elf, 1, BASE + 0x100_0020), 3, BASE);
        note(note(elf, 15, 0x80_0000_0000), 16, 1)
    }

    fn request(kernel: Vec<u8>) -> XenPvRequest {
        XenPvRequest {
            kernel: kernel.into(),
            initrd: Some(Bytes::from(vec![5; 5000])),
            command_line: "quiet".into(),
            memory: 64 << 20,
            shared_info: 64 << 20,
            store_port: 1,
            console_port: 2,
        }
    }

    /// What is in guest memory.
    fn memory(plan: &XenPv, gpa: u64) -> Option<u64> {
        let segment = plan.segments.iter().find(|segment| segment.range().contains(&gpa))?;
        u64_at(segment.bytes(), (gpa - segment.gpa) as usize)
    }

    /// The lowest entry of a linear address, and whether all above let the domain write.
    fn walk(plan: &XenPv, linear: u64) -> Option<u64> {
        let mut table = plan.vcpu.control.cr3;
        for shift in [39, 30, 21] {
            let entry = memory(plan, table + (linear >> shift & 511) * 8)?;
            if entry & (paging::P | paging::RW | paging::US) != 7 {
                return None;
            }
            table = entry & paging::ADDRESS;
        }
        memory(plan, table + (linear >> 12 & 511) * 8).filter(|entry| entry & paging::P != 0)
    }

    #[test]
    fn a_domain_finds_all_that_it_is_told_of() {
        let plan = load(&request(elf().build())).unwrap();
        assert_eq!(plan.vcpu.regs.rip, BASE + 0x100_0020);
        let info = plan.vcpu.regs.gpr[gpr::RSI] - BASE;
        let at = |offset| memory(&plan, info + offset).unwrap();
        assert_eq!(at(0).to_le_bytes(), *b"xen-3.0-");
        assert_eq!((at(0x20), at(0x28), at(0x30)), (16384, 64 << 20, 0x18));
        assert_eq!((at(0x38) * PAGE, at(0x48) * PAGE), (plan.store, plan.console));
        assert_eq!(at(0x58), BASE + plan.vcpu.control.cr3);
        assert_eq!(at(0x68), 0x80_0000_0000);
        let initrd = plan.segments.iter().find(|segment| segment.what == "initrd").unwrap();
        assert_eq!((at(0x70) * PAGE, at(0x78)), (initrd.gpa, 5000));
        assert_eq!(at(0x80).to_le_bytes()[..6], *b"quiet\0");
        // The list behind the mapped range, and its tables.
        let (first, frames) = (at(0x480), at(0x488));
        assert_eq!(frames, 32 + 3);
        assert_eq!(walk(&plan, 0x80_0000_0000 + 17 * PAGE).unwrap() & paging::ADDRESS, {
            (first + 17) * PAGE
        });
        assert_eq!(memory(&plan, first * PAGE + 8 * 777), Some(777));
    }

    #[test]
    fn all_is_mapped_and_tables_for_reading_only() {
        let plan = load(&request(elf().build())).unwrap();
        let stack = plan.vcpu.regs.gpr[gpr::RSP] - BASE;
        let end = (stack + SPARE).next_multiple_of(MAP_ALIGN);
        let tables = plan.vcpu.control.cr3..stack - PAGE;
        for gpa in (0..end).step_by(PAGE as usize) {
            let entry = walk(&plan, BASE + gpa).unwrap();
            assert_eq!(entry & paging::ADDRESS, gpa);
            assert_eq!(entry & paging::RW == 0, tables.contains(&gpa), "{gpa:#x}");
        }
        assert_eq!(walk(&plan, BASE + end), None);
        let count = memory(&plan, plan.vcpu.regs.gpr[gpr::RSI] - BASE + 0x60).unwrap();
        assert_eq!(count * PAGE, tables.end - tables.start);
        let mut ranges: Vec<_> = plan.segments.iter().map(Segment::range).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{ranges:x?}");
    }

    #[test]
    fn a_bzimage_and_a_list_inside_of_the_range() {
        let image = Image::new(compress(Compression::Gzip, &elf().build())).build();
        assert_eq!(load(&request(image)).unwrap().vcpu.regs.rip, BASE + 0x100_0020);
        let file = Elf::new64().load(0x10_0000, BASE + 0x10_0000, &[0x90; 64], 0x4321);
        let file = file.note(b"Xen\0", 1, &(BASE + 0x10_0000).to_le_bytes());
        let file = file.note(b"Xen\0", 3, &BASE.to_le_bytes()).note(b"Xen\0", 16, &[1, 0, 0, 0]);
        let file = file.note(b"Xen\0", 2, &(BASE + 0x10_1000).to_le_bytes());
        let plan = load(&request(file.build())).unwrap();
        let list = memory(&plan, plan.vcpu.regs.gpr[gpr::RSI] - BASE + 0x68).unwrap();
        let entry = walk(&plan, list).unwrap();
        assert_eq!(memory(&plan, (entry & paging::ADDRESS) + 8), Some(1));
        assert_eq!(plan.hypercall_page, Some(0x10_1000));
    }

    #[test]
    fn what_cannot_be_a_domain_is_refused() {
        let kernel = elf().build();
        let small = XenPvRequest { memory: 16 << 20, ..request(kernel.clone()) };
        assert!(matches!(load(&small), Err(Error::TooSmall { .. })));
        let long = XenPvRequest { command_line: "x".repeat(1024), ..request(kernel) };
        assert!(matches!(load(&long), Err(Error::CommandLineTooLong { .. })));
        let plain = Elf::new64().load(0x10_0000, BASE + 0x10_0000, &[0x90; 64], 0x4321);
        assert!(matches!(load(&request(plain.build())), Err(Error::NoXenEntry(_))));
    }

    proptest! {
        #[test]
        fn notes_of_noise_never_panic(
            notes in prop::collection::vec((1u32..20, prop::array::uniform8(any::<u8>())), 0..8),
            paddr in any::<u64>(),
            size in 64u64..1 << 40,
        ) {
            let mut file = Elf::new64().load(paddr, BASE, &[0x90; 64], size);
            for (kind, value) in notes {
                file = file.note(b"Xen\0", kind, &value);
            }
            let _ = load(&request(file.build()));
        }
    }
}
