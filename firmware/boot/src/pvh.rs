//! The PVH entry: 32-bit protected mode without paging, EBX at `hvm_start_info`
//! (Xen's `docs/misc/pvh.pandoc` and public header `arch-x86/hvm/start_info.h`).

use crate::boot_params::COMMAND_LINE_MAX;
use crate::elf_file::ElfFile;
use crate::layout::{Plan, START_INFO};
use crate::{Bytes, Error, Loaded, Request, entry};
use std::ops::Range;
use x86_defs::gpr;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the high bit of "E" set.
const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;
/// Module list, in [`START_INFO`].
const MODULES: u64 = START_INFO.start + 0x100;
/// Memory map, in [`START_INFO`].
const MEMORY_MAP: u64 = START_INFO.start + 0x200;

/// Plans an ELF file with the note for this entry.
pub fn load(
    request: &Request,
    elf: &ElfFile<'_>,
    bytes: &Bytes,
    what: &str,
) -> Result<Loaded, Error> {
    let entry = elf.pvh_entry()?.ok_or(Error::NoPvhEntry)?;
    let mut plan = Plan::new(request.memory, request.initrd.as_ref());
    elf.place(&mut plan, bytes)?;
    let command_line = plan.place_command_line(&request.command_line, COMMAND_LINE_MAX)?;
    let initrd = match &request.initrd {
        Some(initrd) => Some(plan.place_initrd(initrd, elf.physical_end(), u64::MAX)?),
        None => None,
    };
    plan.place_fixed("start info", START_INFO, start_info(request, command_line, initrd))?;
    let mut vcpu = entry::flat(&mut plan, entry)?;
    vcpu.regs.gpr[gpr::RBX] = START_INFO.start;
    let description = format!("{what}, entered at {entry:#x} by PVH");
    Ok(Loaded { segments: plan.finish(), vcpu, description })
}

/// `hvm_start_info`, the module list and the memory map, as one block.
fn start_info(request: &Request, command_line: u64, initrd: Option<Range<u64>>) -> Vec<u8> {
    let map = request.memory.map();
    let mut block = Vec::new();
    let u32s = |block: &mut Vec<u8>, values: &[u32]| {
        block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    let u64s = |block: &mut Vec<u8>, values: &[u64]| {
        block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    // magic, version, flags, nr_modules
    u32s(&mut block, &[MAGIC, VERSION, 0, u32::from(initrd.is_some())]);
    let modules = if initrd.is_some() { MODULES } else { 0 };
    // modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr
    u64s(&mut block, &[modules, command_line, request.rsdp.unwrap_or(0), MEMORY_MAP]);
    // memmap_entries, reserved
    u32s(&mut block, &[map.len() as u32, 0]);
    block.resize((MODULES - START_INFO.start) as usize, 0);
    if let Some(initrd) = initrd {
        // paddr, size, cmdline_paddr, reserved
        u64s(&mut block, &[initrd.start, initrd.end - initrd.start, 0, 0]);
    }
    block.resize((MEMORY_MAP - START_INFO.start) as usize, 0);
    for entry in map {
        u64s(&mut block, &[entry.range.start, entry.range.end - entry.range.start]);
        u32s(&mut block, &[entry.kind, 0]);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u32_at, u64_at};
    use crate::synthetic::{Elf, Image, compress, segment};
    use crate::{Compression, Memory, Protocol};

    fn kernel() -> Vec<u8> {
        let elf = Elf::new64().load(0x20_0000, 0xffff_ffff_8020_0000, &[0x90; 64], 0x4000);
        elf.entry(0x20_0000).note(b"Xen\0", 18, &0x20_0020u64.to_le_bytes()).build()
    }

    fn request(kernel: Vec<u8>) -> Request {
        Request {
            command_line: "quiet".into(),
            rsdp: Some(0xf_5000),
            initrd: Some(Bytes::from(vec![5; 100])),
            ..Request::new(kernel, Memory::of_size(4 << 30))
        }
    }

    #[test]
    fn start_info_leads_to_everything() {
        let loaded = crate::load(&request(kernel())).unwrap();
        assert_eq!(loaded.vcpu.regs.rip, 0x20_0020);
        assert_eq!(loaded.vcpu.regs.gpr[gpr::RBX], START_INFO.start);
        let info = segment(&loaded, "start info").bytes();
        assert_eq!(&info[..4], b"x\xc5n3");
        assert_eq!((u32_at(info, 4), u32_at(info, 12)), (Some(1), Some(1)));
        assert_eq!(u64_at(info, 24), Some(segment(&loaded, "command line").gpa));
        assert_eq!(u64_at(info, 32), Some(0xf_5000));
        let module = (u64_at(info, 16).unwrap() - START_INFO.start) as usize;
        let initrd = segment(&loaded, "initrd");
        assert_eq!((u64_at(info, module), u64_at(info, module + 8)), (Some(initrd.gpa), Some(100)));
        let map = (u64_at(info, 40).unwrap() - START_INFO.start) as usize;
        assert_eq!(u32_at(info, 48), Some(5));
        let last = map + 4 * 24;
        assert_eq!((u64_at(info, last), u64_at(info, last + 8)), (Some(4 << 30), Some(1 << 30)));
        assert_eq!(info.len(), last + 24);
    }

    #[test]
    fn protocols_are_chosen_by_note_and_by_request() {
        let by64 = Request { protocol: Protocol::Linux, ..request(kernel()) };
        assert_eq!(crate::load(&by64).unwrap().vcpu.regs.rip, 0x20_0000);
        let image = Image::new(compress(Compression::Gzip, &kernel())).build();
        assert_eq!(crate::load(&request(image.clone())).unwrap().vcpu.regs.rip, 0x20_0000);
        let pvh = Request { protocol: Protocol::Pvh, ..request(image) };
        assert_eq!(crate::load(&pvh).unwrap().vcpu.regs.rip, 0x20_0020);
    }

    #[test]
    fn an_i386_file_is_accepted() {
        let elf = Elf::new32().load(0x10_0000, 0xc010_0000, &[0x90; 64], 0x1000);
        let file = elf.note(b"Xen\0", 18, &0x10_0010u32.to_le_bytes()).build();
        assert_eq!(crate::load(&request(file)).unwrap().vcpu.regs.rip, 0x10_0010);
    }
}
