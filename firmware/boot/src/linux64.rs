//! The Linux 64-bit boot protocol (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol",
//! and `Documentation/arch/x86/zero-page.rst`).
//!
//! At the entry: long mode with an identity map of the low 4 GiB, flat segments with the
//! selectors `__BOOT_CS` and `__BOOT_DS`, RSI at `struct boot_params`, interrupts off, no IDT.

use crate::bytes::put;
use crate::bzimage::{self, BzImage, field};
use crate::elf_file::ElfFile;
use crate::layout::{BOOT_PARAMS, GDT, Memory, PAGE_TABLES, Plan};
use crate::{Bytes, Error, Loaded, Request};
use std::ops::Range;
use vcpu_state::{SegReg, Segment, Table, VcpuState};
use x86_defs::segment::{
    ATTR_ACCESSED, ATTR_CODE, ATTR_DB, ATTR_G, ATTR_L, ATTR_P, ATTR_RW, ATTR_S, Descriptor,
};
use x86_defs::{cr::cr0, cr::cr4, cr::efer, gpr, paging};

/// `struct boot_params` outside the setup header.
mod param {
    pub const SCREEN_INFO: usize = 0x000;
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    pub const E820_ENTRY_SIZE: usize = 20;
    pub const SIZE: usize = 4096;
}

/// `__BOOT_CS`: flat 64-bit code.
const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS`: flat data.
const BOOT_DS: u16 = 0x18;
/// A loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: "normal".
const VID_MODE_NORMAL: u16 = 0xffff;
/// Where the 64-bit entry is in the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// `COMMAND_LINE_SIZE` of Linux on x86, less the zero.
pub const COMMAND_LINE_MAX: usize = 2047;
/// `initrd_addr_max` of Linux on x86.
const INITRD_MAX: u64 = 0x7fff_ffff;
/// The only minor version whose header is made here rather than copied.
const VERSION: u16 = 0x20f;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// `struct screen_info` (`include/uapi/linux/screen_info.h`) of a VGA in mode 3: cursor at the top
/// left, 80 columns, 256 KiB of memory, 25 lines of 16 scan lines.
const TEXT_SCREEN: [u8; 18] = [0, 0, 0, 0, 0, 0, 3, 80, 0, 0, 3, 0, 0, 0, 25, 1, 16, 0];

/// For errors: the kernel with what it uses while it starts.
const WORKING_MEMORY: &str = "working memory";

/// Plans a decompressed kernel; `image` is the bzImage that it came from.
pub fn load_elf(
    request: &Request,
    elf: &ElfFile<'_>,
    bytes: &Bytes,
    image: Option<&BzImage<'_>>,
    what: &str,
) -> Result<Loaded, Error> {
    if !elf.is_64_bit() {
        return Err(match image {
            Some(_) => Error::WrongArchitecture { found: "32-bit x86 (i386)".into() },
            None => Error::Elf32WithoutPvh,
        });
    }
    let entry = elf.physical_entry()?;
    let mut plan = Plan::new(request.memory, request.initrd.as_ref());
    // What the decompressor would have needed bounds what the kernel uses while it starts.
    let init = image.map_or(0, |image| image.preferred_address().saturating_add(image.init_size()));
    let end = elf.physical_end().max(init);
    plan.must_be_ram(WORKING_MEMORY, end)?;
    elf.place(&mut plan, bytes)?;
    let description = format!("{what}, entered at {entry:#x} by the Linux 64-bit protocol");
    finish(request, plan, Kernel { image, end, entry, description })
}

/// Plans a bzImage that decompresses itself in the guest.
pub fn load_bzimage(request: &Request, image: &BzImage<'_>) -> Result<Loaded, Error> {
    let range = image.entry_64_kernel()?;
    let start = image.preferred_address();
    let end = start.checked_add(image.init_size().max(range.len() as u64));
    let end = end.ok_or(Error::Malformed("the preferred address overflows"))?;
    let data = request.kernel.slice(range).ok_or(Error::Malformed("the kernel's range"))?;
    let mut plan = Plan::new(request.memory, request.initrd.as_ref());
    plan.must_be_ram(WORKING_MEMORY, end)?;
    // What the kernel decompresses to follows; none of it need be zero.
    plan.place("protected-mode kernel", start, data, 0)?;
    let entry = start + ENTRY_64;
    let version = image.version_text();
    let description = format!(
        "bzImage {version}, decompressing itself, entered at {entry:#x} by the Linux 64-bit protocol"
    );
    finish(request, plan, Kernel { image: Some(image), end, entry, description })
}

/// A kernel that is placed.
struct Kernel<'a> {
    image: Option<&'a BzImage<'a>>,
    /// Where the memory ends that it needs until it reads the memory map.
    end: u64,
    entry: u64,
    description: String,
}

fn finish(request: &Request, mut plan: Plan, kernel: Kernel<'_>) -> Result<Loaded, Error> {
    let limit = kernel.image.map_or(COMMAND_LINE_MAX, BzImage::command_line_max);
    let command_line = plan.place_command_line(&request.command_line, limit)?;
    let initrd = match &request.initrd {
        Some(initrd) => {
            let max = kernel.image.map_or(INITRD_MAX, BzImage::initrd_max);
            Some(plan.place_initrd(initrd, kernel.end, max.saturating_add(1))?)
        }
        None => None,
    };
    let params = boot_params(request, kernel.image, command_line, initrd);
    plan.place_fixed("boot parameters", BOOT_PARAMS, params)?;
    plan.place_fixed("page tables", PAGE_TABLES, identity_map())?;
    plan.place_fixed("GDT", GDT, gdt())?;
    let vcpu = entry_state(kernel.entry);
    Ok(Loaded { segments: plan.finish(), vcpu, description: kernel.description })
}

/// Fills the zero page. All addresses are below 4 GiB: [`Plan`] saw to that.
fn boot_params(
    request: &Request,
    image: Option<&BzImage<'_>>,
    command_line: u64,
    initrd: Option<Range<u64>>,
) -> Vec<u8> {
    let mut page = vec![0; param::SIZE];
    match image {
        Some(image) => put(&mut page, field::SETUP_SECTS, image.header()),
        None => header_for_elf(&mut page),
    }
    put(&mut page, field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(&mut page, field::EXT_LOADER_VER, &[0]);
    put(&mut page, field::EXT_LOADER_TYPE, &[0]);
    put(&mut page, field::VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    put(&mut page, field::CMD_LINE_PTR, &(command_line as u32).to_le_bytes());
    put(&mut page, field::SETUP_DATA, &0u64.to_le_bytes());
    let initrd = initrd.unwrap_or(0..0);
    put(&mut page, field::RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
    put(&mut page, field::RAMDISK_SIZE, &((initrd.end - initrd.start) as u32).to_le_bytes());
    if request.text_screen {
        put(&mut page, param::SCREEN_INFO, &TEXT_SCREEN);
    }
    if let Some(rsdp) = request.rsdp {
        put(&mut page, param::ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
    }
    put_e820(&mut page, &request.memory);
    page
}

/// The setup header of a kernel that comes without one.
fn header_for_elf(page: &mut [u8]) {
    put(page, field::BOOT_FLAG, &bzimage::BOOT_FLAG.to_le_bytes());
    put(page, field::HEADER, &bzimage::MAGIC);
    put(page, field::VERSION, &VERSION.to_le_bytes());
    put(page, field::LOADFLAGS, &[bzimage::LOADED_HIGH]);
    put(page, field::KERNEL_ALIGNMENT, &KERNEL_ALIGNMENT.to_le_bytes());
    put(page, field::XLOADFLAGS, &bzimage::XLF_KERNEL_64.to_le_bytes());
    put(page, field::CMDLINE_SIZE, &(COMMAND_LINE_MAX as u32).to_le_bytes());
    put(page, field::INITRD_ADDR_MAX, &(INITRD_MAX as u32).to_le_bytes());
}

fn put_e820(page: &mut [u8], memory: &Memory) {
    let map = memory.map();
    put(page, param::E820_ENTRIES, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        let at = param::E820_TABLE + index * param::E820_ENTRY_SIZE;
        put(page, at, &entry.range.start.to_le_bytes());
        put(page, at + 8, &(entry.range.end - entry.range.start).to_le_bytes());
        put(page, at + 16, &entry.kind.to_le_bytes());
    }
}

/// Page tables that map the low 4 GiB onto themselves in 2 MiB pages.
fn identity_map() -> Vec<u8> {
    const TABLE: usize = 4096;
    const DIRECTORIES: usize = 4;
    const ENTRY: u64 = paging::P | paging::RW;
    let base = PAGE_TABLES.start;
    let mut tables = vec![0; (2 + DIRECTORIES) * TABLE];
    let mut set = |table: usize, index: usize, value: u64| {
        put(&mut tables, table * TABLE + index * 8, &value.to_le_bytes());
    };
    let address = |table: usize| base + (table * TABLE) as u64;
    set(0, 0, address(1) | ENTRY);
    for directory in 0..DIRECTORIES {
        set(1, directory, address(2 + directory) | ENTRY);
        for index in 0..512 {
            let page = ((directory * 512 + index) as u64) << 21;
            set(2 + directory, index, page | ENTRY | paging::PS);
        }
    }
    tables
}

const CODE: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_CODE | ATTR_S | ATTR_P | ATTR_L | ATTR_G;
const DATA: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_S | ATTR_P | ATTR_DB | ATTR_G;

fn gdt() -> Vec<u8> {
    let flat = |attr| Descriptor::new(0, 0xf_ffff, attr).0;
    [0, 0, flat(CODE), flat(DATA)].iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
}

fn entry_state(entry: u64) -> VcpuState {
    let mut state = VcpuState::reset(0);
    state.regs.rip = entry;
    state.regs.gpr[gpr::RSI] = BOOT_PARAMS.start;
    let data = Segment { selector: BOOT_DS, base: 0, limit: u32::MAX, attr: DATA };
    for which in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        *state.segment_mut(which) = data;
    }
    *state.segment_mut(SegReg::Cs) = Segment { selector: BOOT_CS, attr: CODE, ..data };
    state.segments.gdtr = Table { base: GDT.start, limit: 4 * 8 - 1 };
    state.segments.idtr = Table { base: 0, limit: 0 };
    state.control.cr0 = cr0::PE | cr0::ET | cr0::PG;
    state.control.cr3 = PAGE_TABLES.start;
    state.control.cr4 = cr4::PAE;
    state.control.efer = efer::LME | efer::LMA;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u16_at, u32_at, u64_at};
    use crate::synthetic::{Elf, Image, compress, segment, vmlinux};
    use crate::{Compression, Protocol, Unpack, load};

    fn request(kernel: Vec<u8>) -> Request {
        Request {
            command_line: "console=ttyS0".into(),
            rsdp: Some(0xf_5000),
            ..Request::new(kernel, Memory::low(64 << 20))
        }
    }

    #[test]
    fn bzimage_is_unpacked_and_entered_at_its_elf_entry() {
        let image = Image::new(compress(Compression::Xz, &vmlinux())).build();
        let mut request = request(image.clone());
        request.initrd = Some(Bytes::from(vec![0x77; 10_000]));
        let loaded = load(&request).unwrap();
        assert_eq!(loaded.vcpu.regs.rip, 0x100_0100);
        assert_eq!(loaded.vcpu.regs.gpr[gpr::RSI], BOOT_PARAMS.start);
        assert!(loaded.description.contains("6.1.0-synthetic (xz)"), "{}", loaded.description);
        let params = segment(&loaded, "boot parameters").bytes();
        assert_eq!(params.len(), 4096);
        assert_eq!(params[0x1f1..0x1f4], image[0x1f1..0x1f4]);
        assert_eq!((params[0x210], u16_at(params, 0x1fa)), (0xff, Some(0xffff)));
        assert_eq!(u64_at(params, 0x70), Some(0xf_5000));
        let initrd = segment(&loaded, "initrd");
        assert_eq!(u32_at(params, 0x218), Some(initrd.gpa as u32));
        assert_eq!(u32_at(params, 0x21c), Some(10_000));
        assert_eq!((initrd.gpa % 4096, initrd.range().end <= 64 << 20), (0, true));
        let line = segment(&loaded, "command line");
        assert_eq!(u32_at(params, 0x228), Some(line.gpa as u32));
        assert_eq!(line.bytes(), b"console=ttyS0\0");
        assert_eq!(segment(&loaded, "segment").gpa, 0x100_0000);
    }

    #[test]
    fn e820_says_where_ram_is() {
        let image = Image::new(compress(Compression::Gzip, &vmlinux())).build();
        let mut request = request(image);
        request.memory = Memory::of_size(4 << 30);
        let loaded = load(&request).unwrap();
        let params = segment(&loaded, "boot parameters").bytes();
        let entry = |i: usize| {
            let at = 0x2d0 + i * 20;
            (u64_at(params, at).unwrap(), u64_at(params, at + 8).unwrap(), u32_at(params, at + 16))
        };
        assert_eq!(params[0x1e8], 5);
        assert_eq!(entry(0), (0, 0x9_fc00, Some(1)));
        assert_eq!(entry(1), (0x9_fc00, 0x400, Some(2)));
        assert_eq!(entry(2), (0xe_0000, 0x2_0000, Some(2)));
        assert_eq!(entry(3), (0x10_0000, (3 << 30) - 0x10_0000, Some(1)));
        assert_eq!(entry(4), (4 << 30, 1 << 30, Some(1)));
    }

    #[test]
    fn the_guest_can_decompress_itself() {
        let image = Image::new(b"\x89LZO-like payload".to_vec());
        let loaded = load(&request(image.clone().build())).unwrap();
        assert_eq!(loaded.vcpu.regs.rip, 0x100_0200);
        let kernel = segment(&loaded, "protected-mode kernel");
        assert_eq!((kernel.gpa, &kernel.bytes()[..4]), (0x100_0000, &[0x90; 4][..]));
        let host = Request { unpack: Unpack::Host, ..request(image.build()) };
        assert!(matches!(load(&host), Err(Error::UnknownCompression { .. })));
        let known = Image::new(compress(Compression::Gzip, &vmlinux())).build();
        let guest = Request { unpack: Unpack::Guest, ..request(known) };
        assert_eq!(load(&guest).unwrap().vcpu.regs.rip, 0x100_0200);
    }

    #[test]
    fn elf_without_a_note_gets_a_header_of_its_own() {
        let loaded = load(&request(vmlinux())).unwrap();
        let params = segment(&loaded, "boot parameters").bytes();
        assert_eq!(u16_at(params, 0x1fe), Some(0xaa55));
        assert_eq!(&params[0x202..0x206], b"HdrS");
        assert_eq!(loaded.vcpu.regs.rip, 0x100_0100);
    }

    #[test]
    fn the_entry_state_is_the_protocols() {
        let state = entry_state(0x100_0000);
        let cs = state.segment(SegReg::Cs);
        assert_eq!((cs.selector, cs.attr, cs.limit), (0x10, 0xa09b, u32::MAX));
        let ds = state.segment(SegReg::Ds);
        assert_eq!((ds.selector, ds.attr, ds.limit), (0x18, 0xc093, u32::MAX));
        assert_eq!(state.regs.rflags & x86_defs::rflags::IF, 0);
        let gdt = gdt();
        let code = Descriptor(u64_at(&gdt, 0x10).unwrap());
        assert_eq!((code.attr(), code.limit(), code.base()), (cs.attr, cs.limit, 0));
    }

    #[test]
    fn the_map_translates_4_gib_onto_itself() {
        let tables = identity_map();
        assert_eq!(tables.len() as u64, PAGE_TABLES.end - PAGE_TABLES.start);
        let read = |gpa: u64| u64_at(&tables, (gpa - PAGE_TABLES.start) as usize).unwrap();
        for address in [0u64, 0x1f_ffff, 0x4000_0000, 0xfee0_0123, 0xffff_ffff] {
            let pml4e = read(PAGE_TABLES.start + (address >> 39) * 8);
            let pdpte = read((pml4e & paging::ADDRESS) + (address >> 30 & 511) * 8);
            let pde = read((pdpte & paging::ADDRESS) + (address >> 21 & 511) * 8);
            assert_eq!(pde & 0xfff, paging::P | paging::RW | paging::PS);
            assert_eq!((pde & paging::ADDRESS) + (address & 0x1f_ffff), address);
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_is_needed() {
        let image = Image::new(compress(Compression::Gzip, &vmlinux())).build();
        let small = Request { memory: Memory::low(17 << 20), ..request(image.clone()) };
        let error = load(&small).unwrap_err();
        assert!(matches!(error, Error::TooSmall { .. }), "{error}");
        assert!(error.to_string().contains("at least 18 MiB"), "{error}");
        let mut with_initrd = small;
        with_initrd.initrd = Some(Bytes::from(vec![1; 5 << 20]));
        let error = load(&with_initrd).unwrap_err();
        assert!(error.to_string().contains("at least 23 MiB"), "{error}");
        let mut big = request(image.clone());
        big.initrd = Some(Bytes::from(vec![1; 63 << 20]));
        assert!(matches!(load(&big), Err(Error::InitrdTooLarge { .. })));
        let mut long = request(image.clone());
        long.command_line = "x".repeat(2048);
        assert_eq!(
            load(&long).unwrap_err(),
            Error::CommandLineTooLong { length: 2048, limit: 2047 }
        );
        long.command_line = "x".repeat(2047);
        load(&long).unwrap();
        long.command_line = "a\0b".into();
        assert_eq!(load(&long).unwrap_err(), Error::CommandLineZero);
        let mut empty = request(image);
        empty.initrd = Some(Bytes::from(vec![]));
        assert_eq!(load(&empty).unwrap_err(), Error::InitrdEmpty);
    }

    #[test]
    fn a_32_bit_elf_needs_pvh() {
        let elf = Elf::new32().load(0x10_0000, 0x10_0000, b"code", 4096).entry(0x10_0000).build();
        assert_eq!(load(&request(elf.clone())).unwrap_err(), Error::Elf32WithoutPvh);
        let pvh = Request { protocol: Protocol::Pvh, ..request(elf) };
        assert_eq!(load(&pvh).unwrap_err(), Error::NoPvhEntry);
    }
}
