//! Version 1: its header, and the description of the machine at EBX.

use super::{Addresses, Boot, Header, LOADER_NAME, MODULE_NAME, Version, basic_memory};
use crate::Error;
use crate::bytes::{put, u32_at};
use crate::layout::START_INFO;

pub const MAGIC: u32 = 0x1bad_b002;
/// In EAX at the entry.
pub const BOOTED: u32 = 0x2bad_b002;
/// The header is inside this much of the file, at a multiple of 4.
const SEARCHED: usize = 8192;

mod flag {
    /// Modules are to be at page boundaries: they always are.
    pub const PAGE_ALIGN: u32 = 1 << 0;
    pub const MEMORY: u32 = 1 << 1;
    /// A video mode is asked for. Whatever it is, the screen shows text; kernels look for what they
    /// got.
    pub const VIDEO: u32 = 1 << 2;
    /// What a loader that does not know it must refuse.
    pub const REQUIRED: u32 = 0xffff;
    pub const ADDRESSES: u32 = 1 << 16;
}

pub fn find(file: &[u8]) -> Result<Option<Header>, Error> {
    let word = |at: usize| u32_at(file, at).unwrap_or(0);
    let last = file.len().min(SEARCHED).saturating_sub(12);
    let sum = |at: usize| word(at).wrapping_add(word(at + 4)).wrapping_add(word(at + 8));
    let found = (0..=last).step_by(4).find(|&at| word(at) == MAGIC && sum(at) == 0);
    let Some(at) = found else { return Ok(None) };
    let flags = word(at + 4);
    let unknown = flags & flag::REQUIRED & !(flag::PAGE_ALIGN | flag::MEMORY | flag::VIDEO);
    if unknown != 0 {
        return Err(Error::MultibootFeature { what: format!("flags {unknown:#x}") });
    }
    let (mut addresses, mut entry) = (None, None);
    if flags & flag::ADDRESSES != 0 {
        let cut = Error::Malformed("the Multiboot header is cut off");
        (addresses, entry) = (Addresses::read(file, at + 12), u32_at(file, at + 28));
        if addresses.is_none() || entry.is_none() {
            return Err(cut);
        }
    }
    Ok(Some(Header { version: Version::One, at, addresses, entry }))
}

/// Offsets in the description, and its length.
mod field {
    pub const FLAGS: usize = 0;
    pub const MEMORY: usize = 4;
    pub const COMMAND_LINE: usize = 16;
    pub const MODULES: usize = 20;
    pub const MEMORY_MAP: usize = 44;
    pub const LOADER_NAME: usize = 64;
    pub const FRAMEBUFFER: usize = 88;
    pub const END: usize = 116;
}

/// What follows the description: the module's entry, its name, the loader's name, the memory map.
const MODULE: usize = 0x80;
const MODULE_NAME_AT: usize = 0x90;
const LOADER_NAME_AT: usize = 0xa0;
const MAP: usize = 0x100;

/// `command_line` is where that is.
pub fn information(boot: &Boot<'_>, command_line: u64) -> Vec<u8> {
    const { assert!(field::END <= MODULE) };
    // All of it is below 64 KiB.
    let address = |offset: usize| START_INFO.start as u32 + offset as u32;
    let mut map = Vec::new();
    for entry in boot.request.memory.map() {
        map.extend(20u32.to_le_bytes());
        map.extend(entry.range.start.to_le_bytes());
        map.extend((entry.range.end - entry.range.start).to_le_bytes());
        map.extend(entry.kind.to_le_bytes());
    }
    let mut block = vec![0; MAP];
    let mut set = |at: usize, values: &[u32]| {
        for (index, value) in values.iter().enumerate() {
            put(&mut block, at + index * 4, &value.to_le_bytes());
        }
    };
    let (lower, upper) = basic_memory(boot.request);
    // Memory, command line, modules, memory map, loader's name.
    let mut flags = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
    set(field::MEMORY, &[lower, upper]);
    set(field::COMMAND_LINE, &[command_line as u32]);
    set(field::MODULES, &[0, address(MODULE)]);
    if let Some(module) = &boot.module {
        set(field::MODULES, &[1]);
        // They lie below 4 GiB.
        set(MODULE, &[module.start as u32, module.end as u32, address(MODULE_NAME_AT), 0]);
    }
    set(field::MEMORY_MAP, &[map.len() as u32, address(MAP)]);
    set(field::LOADER_NAME, &[address(LOADER_NAME_AT)]);
    if boot.request.text_screen {
        flags |= 1 << 12;
    }
    set(field::FLAGS, &[flags]);
    if boot.request.text_screen {
        put(&mut block, field::FRAMEBUFFER, &super::text_framebuffer());
    }
    put(&mut block, MODULE_NAME_AT, MODULE_NAME);
    put(&mut block, LOADER_NAME_AT, LOADER_NAME);
    block.extend(map);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;
    use crate::synthetic::{Elf, segment};
    use crate::{Bytes, Memory, Request, load};
    use x86_defs::gpr;

    fn header(flags: u32) -> Vec<u8> {
        let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(flags);
        [MAGIC, flags, sum].iter().flat_map(|field| field.to_le_bytes()).collect()
    }

    fn elf(flags: u32) -> Vec<u8> {
        let code = [&[0; 8], &header(flags)[..], &[0x90; 20]].concat();
        Elf::new32().load(0x10_0000, 0xc010_0000, &code, 0x3000).entry(0xc010_0014).build()
    }

    fn request(kernel: Vec<u8>) -> Request {
        let memory = Memory::of_size(4 << 30);
        Request { command_line: "root=x".into(), ..Request::new(kernel, memory) }
    }

    #[test]
    fn the_description_leads_to_everything() {
        let mut request = request(elf(3));
        request.initrd = Some(Bytes::from(vec![7; 5000]));
        request.text_screen = true;
        let loaded = load(&request).unwrap();
        let regs = &loaded.vcpu.regs;
        assert_eq!((regs.rip, regs.gpr[gpr::RAX]), (0x10_0014, 0x2bad_b002));
        let base = regs.gpr[gpr::RBX] as usize;
        let info = segment(&loaded, "Multiboot information").bytes();
        let word = |at: usize| u32_at(info, at).unwrap();
        assert_eq!(word(0), 0x124d);
        assert_eq!((word(4), word(8)), (639, (3 << 20) - 1024));
        let line = segment(&loaded, "command line");
        assert_eq!((u64::from(word(16)), line.bytes()), (line.gpa, &b"kernel root=x\0"[..]));
        let module = word(24) as usize - base;
        assert_eq!((word(20), word(module), word(module + 4)), (1, 0x10_3000, 0x10_3000 + 5000));
        assert_eq!(&info[word(module + 8) as usize - base..][..7], b"initrd\0");
        assert_eq!(segment(&loaded, "initrd").gpa, 0x10_3000);
        let (length, map) = (word(44) as usize, word(48) as usize - base);
        assert_eq!((length, map + length), (5 * 24, info.len()));
        let last = map + 4 * 24;
        assert_eq!((word(last), word(last + 20)), (20, 1));
        assert_eq!(
            (u64_at(info, last + 4), u64_at(info, last + 12)),
            (Some(4 << 30), Some(1 << 30))
        );
        assert_eq!(&info[word(64) as usize - base..][..7], b"Sarang\0");
        assert_eq!(
            (u64_at(info, 88), word(96), info[108], info[109]),
            (Some(0xb_8000), 160, 16, 2)
        );
    }

    #[test]
    fn what_is_not_known_and_required_is_refused() {
        let error = load(&request(elf(3 | 1 << 5))).unwrap_err();
        assert!(error.to_string().contains("flags 0x20"), "{error}");
        assert!(load(&request(elf(7))).is_ok());
        // Not required: bits above 15.
        assert!(load(&request(elf(1 << 20))).is_ok());
    }

    #[test]
    fn only_a_header_with_its_checksum_near_the_start_counts() {
        assert!(find(&header(0)).unwrap().is_some());
        let mut wrong = header(0);
        wrong[8] ^= 1;
        assert_eq!(find(&wrong), Ok(None));
        let at = |at: usize| [vec![0; at], header(0)].concat();
        assert!(find(&at(8192 - 12)).unwrap().is_some());
        assert_eq!(find(&at(8192 - 8)), Ok(None));
        assert_eq!(find(&at(2)), Ok(None));
        for length in 0..12 {
            assert_eq!(find(&header(0)[..length]), Ok(None));
        }
    }

    #[test]
    fn a_module_that_does_not_fit_is_said() {
        let mut small = request(elf(0));
        small.memory = Memory::low(2 << 20);
        small.initrd = Some(Bytes::from(vec![7; 1 << 20]));
        let error = load(&small).unwrap_err();
        assert!(matches!(error, Error::TooSmall { what: "initrd", .. }), "{error}");
    }
}
