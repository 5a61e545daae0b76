//! The Linux boot protocols (`Documentation/arch/x86/boot.rst`): 64-bit kernels are entered in long
//! mode, 32-bit ones in flat protected mode without paging. Both have RSI or ESI at
//! `struct boot_params`.

use crate::boot_params::{COMMAND_LINE_MAX, INITRD_MAX, boot_params};
use crate::bzimage::BzImage;
use crate::elf_file::ElfFile;
use crate::layout::{BOOT_PARAMS, Plan};
use crate::{Bytes, Error, Loaded, Request, entry};
use std::fmt;
use x86_defs::gpr;

/// How wide the code is that is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Bits32,
    Bits64,
}

impl Width {
    /// Where the entry is in the protected-mode kernel of a bzImage.
    const fn offset(self) -> u64 {
        match self {
            Self::Bits32 => 0,
            Self::Bits64 => 0x200,
        }
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bits32 => "32-bit",
            Self::Bits64 => "64-bit",
        })
    }
}

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
    let width = if elf.is_64_bit() { Width::Bits64 } else { Width::Bits32 };
    let entry = elf.physical_entry()?;
    let mut plan = Plan::new(request.memory, request.initrd.as_ref());
    // What the decompressor would have needed bounds what the kernel uses while it starts.
    let init = image.map_or(0, |image| image.preferred_address().saturating_add(image.init_size()));
    let end = elf.physical_end().max(init);
    plan.must_be_ram(WORKING_MEMORY, end)?;
    elf.place(&mut plan, bytes)?;
    let description = format!("{what}, entered at {entry:#x} by the Linux {width} protocol");
    finish(request, plan, Kernel { image, end, entry, width, description })
}

/// Plans a bzImage that decompresses itself in the guest.
pub fn load_bzimage(request: &Request, image: &BzImage<'_>) -> Result<Loaded, Error> {
    let range = image.protected_mode_kernel()?;
    let width = if image.has_entry_64() { Width::Bits64 } else { Width::Bits32 };
    let start = image.preferred_address();
    let end = start.checked_add(image.init_size().max(range.len() as u64));
    let end = end.ok_or(Error::Malformed("the preferred address overflows"))?;
    let data = request.kernel.slice(range).ok_or(Error::Malformed("the kernel's range"))?;
    let mut plan = Plan::new(request.memory, request.initrd.as_ref());
    plan.must_be_ram(WORKING_MEMORY, end)?;
    // What the kernel decompresses to follows; none of it need be zero.
    plan.place("protected-mode kernel", start, data, 0)?;
    let entry = start.saturating_add(width.offset());
    let version = image.version_text();
    let description = format!(
        "bzImage {version}, decompressing itself, entered at {entry:#x} by the Linux {width} protocol"
    );
    finish(request, plan, Kernel { image: Some(image), end, entry, width, description })
}

/// A kernel that is placed.
struct Kernel<'a> {
    image: Option<&'a BzImage<'a>>,
    /// Where the memory ends that it needs until it reads the memory map.
    end: u64,
    entry: u64,
    width: Width,
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
    let mut vcpu = match kernel.width {
        Width::Bits32 => entry::flat(&mut plan, kernel.entry)?,
        Width::Bits64 => entry::long(&mut plan, kernel.entry)?,
    };
    vcpu.regs.gpr[gpr::RSI] = BOOT_PARAMS.start;
    Ok(Loaded { segments: plan.finish(), vcpu, description: kernel.description })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u16_at, u32_at, u64_at};
    use crate::synthetic::{Elf, Image, compress, segment, vmlinux};
    use crate::{Compression, Memory, Protocol, Unpack, load};

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

    /// A 32-bit kernel at 16 MiB.
    fn vmlinux32() -> Elf {
        Elf::new32().load(0x100_0000, 0xc100_0000, &[0x90; 64], 0x2000).entry(0x100_0010)
    }

    /// Without the flag of a 64-bit entry.
    fn i386(mut image: Vec<u8>) -> Vec<u8> {
        image[0x236] = 0;
        image
    }

    #[test]
    fn a_32_bit_kernel_is_entered_in_flat_protected_mode() {
        let image = Image::new(compress(Compression::Xz, &vmlinux32().build())).build();
        for kernel in [i386(image.clone()), image, vmlinux32().build()] {
            let loaded = load(&request(kernel)).unwrap();
            let (regs, control) = (&loaded.vcpu.regs, &loaded.vcpu.control);
            assert_eq!((regs.rip, regs.gpr[gpr::RSI]), (0x100_0010, BOOT_PARAMS.start));
            assert_eq!([gpr::RBP, gpr::RDI, gpr::RBX].map(|r| regs.gpr[r]), [0; 3]);
            assert_eq!((control.cr0, control.cr4, control.efer), (0x11, 0, 0));
            assert!(loaded.description.contains("Linux 32-bit"), "{}", loaded.description);
            assert!(loaded.segments.iter().all(|segment| segment.what != "page tables"));
        }
        let pvh = Request { protocol: Protocol::Pvh, ..request(vmlinux32().build()) };
        assert_eq!(load(&pvh).unwrap_err(), Error::NoPvhEntry);
    }

    #[test]
    fn a_32_bit_kernel_can_decompress_itself() {
        let image = i386(Image::new(b"\x89LZO-like payload".to_vec()).build());
        let loaded = load(&request(image)).unwrap();
        assert_eq!((loaded.vcpu.regs.rip, loaded.vcpu.control.cr0), (0x100_0000, 0x11));
    }
}
