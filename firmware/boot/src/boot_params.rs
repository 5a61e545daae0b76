//! `struct boot_params`, the "zero page" by which Linux is told of the machine
//! (`Documentation/arch/x86/zero-page.rst`).

use crate::Request;
use crate::bytes::put;
use crate::bzimage::{self, BzImage, field};
use crate::layout::Memory;
use std::ops::Range;

/// `struct boot_params` outside the setup header.
mod param {
    pub const SCREEN_INFO: usize = 0x000;
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    pub const E820_ENTRY_SIZE: usize = 20;
    pub const SIZE: usize = 4096;
}

/// A loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: "normal".
const VID_MODE_NORMAL: u16 = 0xffff;
/// `COMMAND_LINE_SIZE` of Linux on x86, less the zero.
pub const COMMAND_LINE_MAX: usize = 2047;
/// `initrd_addr_max` of Linux on x86.
pub const INITRD_MAX: u64 = 0x7fff_ffff;
/// The only minor version whose header is made here rather than copied.
const VERSION: u16 = 0x20f;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// `struct screen_info` (`include/uapi/linux/screen_info.h`) of a VGA in mode 3: cursor at the top
/// left, 80 columns, 256 KiB of memory, 25 lines of 16 scan lines.
const TEXT_SCREEN: [u8; 18] = [0, 0, 0, 0, 0, 0, 3, 80, 0, 0, 3, 0, 0, 0, 25, 1, 16, 0];

/// Fills the zero page. All addresses are below 4 GiB: the plan saw to that.
pub fn boot_params(
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
