//! Version 2: its header and the description of the machine at EBX, both made of tags.

use super::{Addresses, Boot, Header, LOADER_NAME, MODULE_NAME, Version, basic_memory};
use crate::Error;
use crate::bytes::{put, u16_at, u32_at};

const MAGIC: u32 = 0xe852_50d6;
/// In EAX at the entry.
pub const BOOTED: u32 = 0x36d7_6289;
/// The header is inside this much of the file, at a multiple of 8.
const SEARCHED: usize = 32768;
/// As the address from which the file is loaded: all of it is, from its beginning (section 3.1.5).
const FROM_THE_BEGINNING: u32 = u32::MAX;
/// Of the header: 32-bit protected mode of i386.
const I386: u32 = 0;

/// The header's tags.
mod wish {
    pub const END: u16 = 0;
    pub const INFORMATION: u16 = 1;
    pub const ADDRESSES: u16 = 2;
    pub const ENTRY: u16 = 3;
    /// The console, the framebuffer, page alignment: whatever is wished, there is a text screen and
    /// modules are at page boundaries. The entries for EFI do not count without it; a kernel that
    /// can be relocated need not be.
    pub const LAST: u16 = 10;
    /// A tag without which the kernel can do.
    pub const OPTIONAL: u16 = 1 << 0;
}

/// The description's tags.
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const BASIC_MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const FRAMEBUFFER: u32 = 8;
    pub const ACPI_OLD: u32 = 14;
    pub const ACPI_NEW: u32 = 15;
    /// The last one that there is; those that this machine has not are left out.
    pub const LAST: u32 = 21;
}

pub fn find(file: &[u8]) -> Result<Option<Header>, Error> {
    let word = |at: usize| u32_at(file, at).unwrap_or(0);
    let last = file.len().min(SEARCHED).saturating_sub(16);
    let sum = |at: usize| (0..4).fold(0u32, |sum, i| sum.wrapping_add(word(at + i * 4)));
    let found = (0..=last).step_by(8).find(|&at| word(at) == MAGIC && sum(at) == 0);
    let Some(at) = found else { return Ok(None) };
    if word(at + 4) != I386 {
        let what = format!("architecture {}", word(at + 4));
        return Err(Error::MultibootFeature { what });
    }
    let cut = || Error::Malformed("the Multiboot2 header is cut off");
    let length = word(at + 8) as usize;
    let end = at.checked_add(length).filter(|&end| end <= file.len().min(SEARCHED));
    let tags = file.get(at + 16..end.ok_or_else(cut)?).ok_or_else(cut)?;
    let mut header = Header { version: Version::Two, at, addresses: None, entry: None };
    let mut next = 0;
    loop {
        let field = |offset: usize| u16_at(tags, next + offset).ok_or_else(cut);
        let (kind, flags) = (field(0)?, field(2)?);
        let size = u32_at(tags, next + 4).ok_or_else(cut)? as usize;
        if kind == wish::END {
            return Ok(Some(header));
        }
        let end = next.checked_add(size).filter(|_| size >= 8).ok_or_else(cut)?;
        let tag = tags.get(next..end).ok_or_else(cut)?;
        read_tag(&mut header, kind, flags & wish::OPTIONAL != 0, tag)?;
        next = end.checked_next_multiple_of(8).ok_or_else(cut)?;
    }
}

fn read_tag(header: &mut Header, kind: u16, optional: bool, tag: &[u8]) -> Result<(), Error> {
    let cut = || Error::Malformed("a tag of the Multiboot2 header is cut off");
    match kind {
        wish::INFORMATION => {
            let wanted = (8..tag.len()).step_by(4).filter_map(|at| u32_at(tag, at));
            match wanted.filter(|_| !optional).find(|&kind| kind > tag::LAST) {
                Some(kind) => Err(Error::MultibootFeature { what: format!("information {kind}") }),
                None => Ok(()),
            }
        }
        wish::ADDRESSES => {
            let mut addresses = Addresses::read(tag, 8).ok_or_else(cut)?;
            addresses.load = addresses.load.filter(|load| *load != FROM_THE_BEGINNING);
            header.addresses = Some(addresses);
            Ok(())
        }
        wish::ENTRY => {
            header.entry = Some(u32_at(tag, 8).ok_or_else(cut)?);
            Ok(())
        }
        kind if kind <= wish::LAST || optional => Ok(()),
        kind => Err(Error::MultibootFeature { what: format!("header tag {kind}") }),
    }
}

pub fn information(boot: &Boot<'_>) -> Vec<u8> {
    let mut block = vec![0; 8];
    let mut add = |kind: u32, body: &[u8]| {
        block.extend(kind.to_le_bytes());
        block.extend((8 + body.len() as u32).to_le_bytes());
        block.extend(body);
        block.resize(block.len().next_multiple_of(8), 0);
    };
    let request = boot.request;
    add(tag::COMMAND_LINE, &[request.command_line.as_bytes(), b"\0"].concat());
    add(tag::LOADER_NAME, LOADER_NAME);
    if let Some(module) = &boot.module {
        // They lie below 4 GiB.
        let (start, end) = (module.start as u32, module.end as u32);
        add(tag::MODULE, &[&start.to_le_bytes(), &end.to_le_bytes(), MODULE_NAME].concat());
    }
    let (lower, upper) = basic_memory(request);
    add(tag::BASIC_MEMORY, &[lower.to_le_bytes(), upper.to_le_bytes()].concat());
    let mut map = [24u32, 0].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for entry in request.memory.map() {
        map.extend(entry.range.start.to_le_bytes());
        map.extend((entry.range.end - entry.range.start).to_le_bytes());
        map.extend(entry.kind.to_le_bytes());
        map.extend([0; 4]);
    }
    add(tag::MEMORY_MAP, &map);
    if request.text_screen {
        add(tag::FRAMEBUFFER, &[&super::text_framebuffer()[..], &[0; 2]].concat());
    }
    // The revision is at offset 15; from 2 on it is the longer structure.
    match request.rsdp_copy.get(15) {
        Some(0 | 1) => add(tag::ACPI_OLD, &request.rsdp_copy),
        Some(_) => add(tag::ACPI_NEW, &request.rsdp_copy),
        None => {}
    }
    add(tag::END, &[]);
    let total = block.len() as u32;
    put(&mut block, 0, &total.to_le_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;
    use crate::synthetic::{Elf, segment};
    use crate::{Bytes, Memory, Request, load};
    use x86_defs::gpr;

    fn header(tags: &[(u16, u16, &[u8])]) -> Vec<u8> {
        let mut body: Vec<u8> = Vec::new();
        for (kind, flags, data) in tags.iter().chain(&[(0, 0, &[][..])]) {
            body.extend(kind.to_le_bytes());
            body.extend(flags.to_le_bytes());
            body.extend((8 + data.len() as u32).to_le_bytes());
            body.extend(*data);
            body.resize(body.len().next_multiple_of(8), 0);
        }
        let length = 16 + body.len() as u32;
        let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(length);
        let start = [MAGIC, 0, length, sum];
        [start.iter().flat_map(|field| field.to_le_bytes()).collect(), body].concat()
    }

    fn elf(tags: &[(u16, u16, &[u8])]) -> Vec<u8> {
        // At offset 64 + 56 of the file, a multiple of 8.
        let code = [header(tags), vec![0x90; 64]].concat();
        Elf::new64().load(0x20_0000, 0x20_0000, &code, 0x1000).entry(0x20_0080).build()
    }

    fn request(kernel: Vec<u8>) -> Request {
        let rsdp_copy = [&b"RSD PTR "[..], &[0; 7], &[2], &[0; 20]].concat();
        let command_line = "a=b".into();
        Request { command_line, rsdp_copy, ..Request::new(kernel, Memory::low(64 << 20)) }
    }

    #[test]
    fn the_tags_tell_everything() {
        let mut request = request(elf(&[(1, 0, &4u32.to_le_bytes()), (6, 0, &[])]));
        request.initrd = Some(Bytes::from(vec![7; 100]));
        let loaded = load(&request).unwrap();
        let regs = &loaded.vcpu.regs;
        assert_eq!((regs.rip, regs.gpr[gpr::RAX]), (0x20_0080, 0x36d7_6289));
        let info = segment(&loaded, "Multiboot information").bytes();
        assert_eq!(u32_at(info, 0), Some(info.len() as u32));
        let (mut at, mut seen) = (8, Vec::new());
        while at < info.len() {
            let (kind, size) = (u32_at(info, at).unwrap(), u32_at(info, at + 4).unwrap() as usize);
            let body = &info[at + 8..at + size];
            match kind {
                1 => assert_eq!(body, b"a=b\0"),
                3 => {
                    assert_eq!(u32_at(body, 0), Some(0x20_1000));
                    assert_eq!(u32_at(body, 4), Some(0x20_1000 + 100));
                }
                4 => assert_eq!(u32_at(body, 4), Some(63 << 10)),
                6 => {
                    assert_eq!((body.len(), u64_at(body, 8 + 3 * 24)), (8 + 4 * 24, Some(1 << 20)))
                }
                15 => assert_eq!(body, request.rsdp_copy),
                _ => {}
            }
            seen.push(kind);
            at = (at + size).next_multiple_of(8);
        }
        assert_eq!(seen, [1, 2, 3, 4, 6, 15, 0]);
    }

    #[test]
    fn addresses_and_an_entry_outrank_the_file() {
        let addresses = [0x30_0078u32, 0x30_0000, 0, 0x31_0000];
        let addresses: Vec<u8> = addresses.iter().flat_map(|field| field.to_le_bytes()).collect();
        let kernel = elf(&[(2, 0, &addresses), (3, 0, &0x30_0099u32.to_le_bytes())]);
        let loaded = load(&request(kernel)).unwrap();
        assert_eq!(loaded.vcpu.regs.rip, 0x30_0099);
        assert_eq!(segment(&loaded, "Multiboot image").range(), 0x30_0000..0x31_0000);
    }

    #[test]
    fn minus_one_loads_the_file_from_its_beginning() {
        let addresses = [0x30_0078u32, u32::MAX, 0x30_00f0, 0x31_0000];
        let addresses: Vec<u8> = addresses.iter().flat_map(|field| field.to_le_bytes()).collect();
        let kernel = elf(&[(2, 0, &addresses), (3, 0, &0x30_0099u32.to_le_bytes())]);
        let loaded = load(&request(kernel.clone())).unwrap();
        let image = segment(&loaded, "Multiboot image");
        assert_eq!((image.range(), image.bytes()), (0x30_0000..0x31_0000, &kernel[..0xf0]));
        // There would be no room for what is before the header.
        let low = [0x77u32, u32::MAX, 0, 0];
        let low: Vec<u8> = low.iter().flat_map(|field| field.to_le_bytes()).collect();
        assert!(load(&request(elf(&[(2, 0, &low), (3, 0, &[0; 4])]))).is_err());
    }

    #[test]
    fn the_command_line_is_a_tag_and_nowhere_else() {
        let loaded = load(&request(elf(&[]))).unwrap();
        assert!(loaded.segments.iter().all(|segment| segment.what != "command line"));
    }

    #[test]
    fn what_is_not_known_is_refused_unless_it_is_optional() {
        assert!(load(&request(elf(&[(99, 1, &[])]))).is_ok());
        let error = load(&request(elf(&[(99, 0, &[])]))).unwrap_err();
        assert!(error.to_string().contains("header tag 99"), "{error}");
        let wish = 500u32.to_le_bytes();
        assert!(load(&request(elf(&[(1, 1, &wish)]))).is_ok());
        let error = load(&request(elf(&[(1, 0, &wish)]))).unwrap_err();
        assert!(error.to_string().contains("information 500"), "{error}");
    }

    #[test]
    fn every_truncation_is_an_error_or_no_header() {
        let whole = header(&[(3, 0, &[0; 4]), (2, 0, &[0; 16])]);
        assert!(find(&whole).unwrap().is_some());
        for length in 0..whole.len() {
            assert!(!matches!(find(&whole[..length]), Ok(Some(_))), "{length} bytes");
        }
        let mut endless = header(&[(4, 0, &[0; 8])]);
        endless[20..24].copy_from_slice(&0u32.to_le_bytes());
        assert!(find(&endless).is_err());
    }
}
