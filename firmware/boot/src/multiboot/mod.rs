//! Multiboot, the protocol between boot loaders and kernels of many systems but Linux: version 1
//! ("Multiboot Specification version 0.6.96") and version 2 ("Multiboot2 Specification version
//! 2.0").
//!
//! A header near the file's start says what the kernel wants. The file is an ELF executable, or of
//! any other kind if the header has the addresses itself. The kernel is entered in flat 32-bit
//! protected mode with a magic number in EAX and the machine's description at EBX. The initrd is
//! its one module.

mod v1;
mod v2;

use crate::bytes::u32_at;
use crate::elf_file::ElfFile;
use crate::layout::{HIGH_MEMORY, Plan, START_INFO};
use crate::{Bytes, Error, Loaded, Request, entry};
use std::ops::Range;
use vcpu_state::VcpuState;
use x86_defs::gpr;

/// What a kernel sees of its boot loader's name.
const LOADER_NAME: &[u8] = b"Sarang\0";
/// What a module is called: its own name is the host's matter.
const MODULE_NAME: &[u8] = b"initrd\0";

/// A header of either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    version: Version,
    /// Where it is in the file.
    at: usize,
    /// If the header itself says what goes where, which outranks an ELF file's headers.
    addresses: Option<Addresses>,
    entry: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Physical addresses; the end of what is loaded is 0 for all of the file, that of what is zeroed
/// after it is 0 for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    /// None: the file is loaded from its beginning.
    load: Option<u32>,
    load_end: u32,
    bss_end: u32,
}

impl Addresses {
    /// Four fields of both versions' headers.
    fn read(file: &[u8], at: usize) -> Option<Self> {
        let field = |index: usize| u32_at(file, at.checked_add(index * 4)?);
        let load = Some(field(1)?);
        Some(Self { header: field(0)?, load, load_end: field(2)?, bss_end: field(3)? })
    }
}

/// The header of a file that has one: the first version's, if it has both.
///
/// # Errors
/// When there is one that asks for what is not here.
pub fn find(file: &[u8]) -> Result<Option<Header>, Error> {
    match v1::find(file)? {
        Some(header) => Ok(Some(header)),
        None => v2::find(file),
    }
}

/// The machine and what was placed, for the description at EBX.
struct Boot<'a> {
    request: &'a Request,
    module: Option<Range<u64>>,
}

/// Plans a kernel with this header.
pub fn load(request: &Request, kernel: &Bytes, header: &Header) -> Result<Loaded, Error> {
    let mut plan = Plan::new(request.memory, request.initrd.as_ref());
    let file = kernel.as_slice();
    let placed = match header.addresses {
        Some(addresses) => place_by_addresses(&mut plan, kernel, header.at, addresses)?,
        None => place_elf(&mut plan, kernel, file)?,
    };
    let entry = match (header.entry, placed.entry) {
        (Some(entry), _) => u64::from(entry),
        (None, Some(entry)) => entry,
        (None, None) => {
            return Err(Error::Unfit {
                why: "its Multiboot header has no entry",
                hint: "link it with an entry inside its segments, or put an entry into the header",
            });
        }
    };
    let module = match &request.initrd {
        Some(initrd) => Some(place_module(&mut plan, initrd, placed.end)?),
        None => None,
    };
    let length = request.command_line.len();
    if length > COMMAND_LINE_MAX {
        return Err(Error::CommandLineTooLong { length, limit: COMMAND_LINE_MAX });
    }
    let boot = Boot { request, module };
    let (magic, information) = match header.version {
        Version::One => {
            // The first word is the kernel's own name, which loaders of the time put there.
            let line = format!("kernel {}", request.command_line);
            let line = plan.place_command_line(line.trim_end(), usize::MAX)?;
            (v1::BOOTED, v1::information(&boot, line))
        }
        Version::Two => (v2::BOOTED, v2::information(&boot)),
    };
    plan.place_fixed("Multiboot information", START_INFO, information)?;
    let vcpu = enter(&mut plan, entry, magic)?;
    let version = match header.version {
        Version::One => "",
        Version::Two => "2",
    };
    let what = if header.addresses.is_some() { "file" } else { "ELF file" };
    let description = format!("{what}, entered at {entry:#x} by Multiboot{version}");
    Ok(Loaded { segments: plan.finish(), vcpu, description })
}

/// As many bytes as version 2's description, of which it is a part, has room for.
const COMMAND_LINE_MAX: usize = 4095;

struct Placed {
    entry: Option<u64>,
    /// The end of the kernel in memory.
    end: u64,
}

fn place_elf(plan: &mut Plan, kernel: &Bytes, file: &[u8]) -> Result<Placed, Error> {
    if !ElfFile::is_elf(file) {
        return Err(Error::Unfit {
            why: "its Multiboot header says not where it is loaded, and it is no ELF file",
            hint: "give the ELF file, or put addresses into the header",
        });
    }
    let elf = ElfFile::parse(file)?;
    elf.place(plan, kernel)?;
    Ok(Placed { entry: elf.physical_entry().ok(), end: elf.physical_end() })
}

fn place_by_addresses(
    plan: &mut Plan,
    kernel: &Bytes,
    at: usize,
    addresses: Addresses,
) -> Result<Placed, Error> {
    let bad = || Error::Unfit {
        why: "the addresses in its Multiboot header contradict each other or the file",
        hint: "put those into the header that the file was linked for",
    };
    let Addresses { header, load, load_end, bss_end } = addresses;
    let (start, load) = match load {
        Some(load) => {
            // The header's own address says where the file's beginning would be.
            let before = header.checked_sub(load).ok_or_else(bad)? as usize;
            (at.checked_sub(before).ok_or_else(bad)?, load)
        }
        None => {
            let before = u32::try_from(at).map_err(|_| bad())?;
            (0, header.checked_sub(before).ok_or_else(bad)?)
        }
    };
    let end = match load_end {
        0 => kernel.len(),
        _ => start.saturating_add(load_end.checked_sub(load).ok_or_else(bad)? as usize),
    };
    if end > kernel.len() {
        let (needed, have) = (end as u64, kernel.len() as u64);
        return Err(Error::Truncated { part: "Multiboot image", needed, have });
    }
    let data = kernel.slice(start..end).ok_or_else(bad)?;
    let data_end = u64::from(load) + data.len() as u64;
    let tail = match bss_end {
        0 => 0,
        _ => u64::from(bss_end).checked_sub(data_end).ok_or_else(bad)?,
    };
    plan.place("Multiboot image", load.into(), data, tail)?;
    Ok(Placed { entry: None, end: data_end + tail })
}

/// On a page of its own right after the kernel, as kernels are used to.
fn place_module(plan: &mut Plan, initrd: &Bytes, kernel_end: u64) -> Result<Range<u64>, Error> {
    if initrd.is_empty() {
        return Err(Error::InitrdEmpty);
    }
    let start = kernel_end.max(HIGH_MEMORY).saturating_add(0xfff) & !0xfff;
    plan.place("initrd", start, initrd.clone(), 0)?;
    Ok(start..start + initrd.len() as u64)
}

fn enter(plan: &mut Plan, entry: u64, magic: u32) -> Result<VcpuState, Error> {
    let mut vcpu = entry::flat(plan, entry)?;
    vcpu.regs.gpr[gpr::RAX] = magic.into();
    vcpu.regs.gpr[gpr::RBX] = START_INFO.start;
    Ok(vcpu)
}

/// KiB of RAM from address 0, and from 1 MiB.
fn basic_memory(request: &Request) -> (u32, u32) {
    let upper = request.memory.low_end.saturating_sub(HIGH_MEMORY) >> 10;
    // Low RAM ends below 4 GiB.
    ((crate::layout::LOW_RAM_END >> 10) as u32, upper as u32)
}

/// The text screen of a VGA, as both versions describe a framebuffer: address, bytes a line, columns,
/// lines, bits a character, and the type "EGA text".
fn text_framebuffer() -> Vec<u8> {
    let mut bytes = 0xb_8000u64.to_le_bytes().to_vec();
    bytes.extend([160u32, 80, 25].iter().flat_map(|value| value.to_le_bytes()));
    bytes.extend([16, 2]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::synthetic::segment;

    /// A file that is no ELF file: 16 bytes, the header, and code, loaded at 1 MiB.
    pub fn by_addresses(load_end: u32, bss_end: u32) -> Vec<u8> {
        let mut file = vec![0xcc; 16];
        let flags = 3 | 1u32 << 16;
        let fields = [
            v1::MAGIC,
            flags,
            0u32.wrapping_sub(v1::MAGIC).wrapping_sub(flags),
            0x10_0010,
            0x10_0000,
            load_end,
            bss_end,
            0x10_0030,
        ];
        file.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        file.resize(100, 0x90);
        file
    }

    #[test]
    fn a_file_with_addresses_goes_where_they_say() {
        let request = Request::new(by_addresses(0, 0x10_1000), Memory::low(4 << 20));
        let loaded = crate::load(&request).unwrap();
        assert_eq!(loaded.vcpu.regs.rip, 0x10_0030);
        let image = segment(&loaded, "Multiboot image");
        assert_eq!((image.gpa, image.data.len(), image.zero_tail), (0x10_0000, 100, 0x1000 - 100));
        let part = Request::new(by_addresses(0x10_0040, 0), Memory::low(4 << 20));
        let loaded = crate::load(&part).unwrap();
        assert_eq!(segment(&loaded, "Multiboot image").data.len(), 64);
    }

    #[test]
    fn as_long_a_command_line_as_there_is_room_for() {
        let mut request = Request::new(by_addresses(0, 0), Memory::low(4 << 20));
        request.command_line = "x".repeat(4095);
        assert!(crate::load(&request).is_ok());
        request.command_line.push('x');
        let error = crate::load(&request).unwrap_err();
        assert_eq!(error, Error::CommandLineTooLong { length: 4096, limit: 4095 });
    }

    #[test]
    fn addresses_outside_the_file_are_errors() {
        for (load_end, bss_end) in
            [(0x10_0065, 0), (0xf_ffff, 0), (0, 0x10_0010), (u32::MAX, 0), (0, u32::MAX)]
        {
            let request = Request::new(by_addresses(load_end, bss_end), Memory::low(4 << 20));
            assert!(crate::load(&request).is_err(), "{load_end:#x} {bss_end:#x}");
        }
    }
}
