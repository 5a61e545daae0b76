//! The Linux bzImage: its setup header and its compressed payload
//! (`Documentation/arch/x86/boot.rst`).
//!
//! ```text
//! | boot sector and real-mode setup       | protected-mode kernel                        |
//! | 512 * (setup_sects + 1) bytes         | decompressor code ... payload ...            |
//!   0x1f1: setup header                     +0x200: 64-bit entry  +payload_offset
//! ```

use crate::Error;
use crate::bytes::{array, printable, u16_at, u32_at, u64_at};
use crate::decompress::{self, Compression};
use std::ops::Range;

/// Offsets of the setup header's fields, in the file and in `struct boot_params` alike.
pub mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP: usize = 0x200;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const EXT_LOADER_VER: usize = 0x226;
    pub const EXT_LOADER_TYPE: usize = 0x227;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

pub const BOOT_FLAG: u16 = 0xaa55;
pub const MAGIC: [u8; 4] = *b"HdrS";
/// `loadflags`: the protected-mode kernel is loaded at 1 MiB, not in low memory.
pub const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: the kernel has the 64-bit entry at 0x200.
pub const XLF_KERNEL_64: u16 = 1 << 0;

const SECTOR: usize = 512;
/// The boot sector's part of the header; what follows has the length that the jump says.
const SHORTEST: usize = 0x212;

/// A validated bzImage.
#[derive(Debug)]
pub struct BzImage<'a> {
    file: &'a [u8],
    version: u16,
    /// Where the protected-mode kernel begins in the file.
    kernel_start: usize,
    /// The setup header's end in the file.
    header_end: usize,
    payload: Range<usize>,
}

impl<'a> BzImage<'a> {
    /// Whether there is a setup header.
    pub fn is_one(file: &[u8]) -> bool {
        let magic = array::<4>(file, field::HEADER);
        magic == Some(MAGIC) && u16_at(file, field::BOOT_FLAG) == Some(BOOT_FLAG)
    }

    /// Checks the header, and that the file is complete.
    pub fn parse(file: &'a [u8]) -> Result<Self, Error> {
        if file.is_empty() {
            return Err(Error::Empty);
        }
        let have = file.len() as u64;
        let truncated =
            |part, needed: usize| Error::Truncated { part, needed: needed as u64, have };
        if !Self::is_one(file) {
            return Err(explain(file));
        }
        if file.len() < SHORTEST {
            return Err(truncated("setup header", SHORTEST));
        }
        let version = u16_at(file, field::VERSION).unwrap_or(0);
        need_version(version, 8, "finding the payload")?;
        // The jump over the header at 0x200 tells where the header ends.
        let jump = file.get(field::JUMP + 1).copied().unwrap_or(0);
        let header_end = field::HEADER + usize::from(jump);
        if header_end < field::SETUP_DATA {
            return Err(Error::Malformed("the setup header is shorter than its version says"));
        }
        if file.len() < header_end {
            return Err(truncated("setup header", header_end));
        }
        if file.get(field::LOADFLAGS).copied().unwrap_or(0) & LOADED_HIGH == 0 {
            return Err(Error::Unfit {
                why: "it is a zImage, for low memory",
                hint: "give a bzImage, as kernels are built since 1998",
            });
        }
        let sectors = match file.get(field::SETUP_SECTS).copied().unwrap_or(0) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let kernel_start = (sectors + 1) * SECTOR;
        let image = Self { file, version, kernel_start, header_end, payload: 0..0 };
        let payload = image.find_payload(truncated)?;
        Ok(Self { payload, ..image })
    }

    fn find_payload(
        &self,
        truncated: impl Fn(&'static str, usize) -> Error,
    ) -> Result<Range<usize>, Error> {
        let offset = self.u32(field::PAYLOAD_OFFSET) as usize;
        let length = self.u32(field::PAYLOAD_LENGTH) as usize;
        if (offset, length) == (0, 0) {
            // Other programs than Linux that go by its protocol, such as Memtest86+, are what they
            // are: nothing is compressed.
            return Ok(self.kernel_start..self.kernel_start);
        }
        let start = self.kernel_start.saturating_add(offset);
        let end = start.saturating_add(length);
        if end > self.file.len() {
            return Err(truncated("compressed payload", end));
        }
        if length < 8 {
            return Err(Error::Malformed("the bzImage has no payload"));
        }
        Ok(start..end)
    }

    /// Whether the protected-mode kernel has the 64-bit entry. 64-bit kernels before protocol 2.12
    /// do not say, and have the 32-bit one too.
    pub fn has_entry_64(&self) -> bool {
        let flags = u16_at(self.file, field::XLOADFLAGS).unwrap_or(0);
        self.version >= 0x20c && flags & XLF_KERNEL_64 != 0
    }

    /// The protected-mode kernel's range in the file.
    pub fn protected_mode_kernel(&self) -> Result<Range<usize>, Error> {
        // A signature may follow the kernel; syssize, in units of 16 bytes, leaves it out.
        let length = (self.u32(field::SYSSIZE) as usize).saturating_mul(16);
        let end = self.kernel_start.saturating_add(length).min(self.file.len());
        if end <= self.kernel_start + 0x200 || end < self.payload.end {
            return Err(Error::Malformed("the protected-mode kernel is shorter than its payload"));
        }
        Ok(self.kernel_start..end)
    }

    /// The setup header, from [`field::SETUP_SECTS`] on.
    pub fn header(&self) -> &'a [u8] {
        self.file.get(field::SETUP_SECTS..self.header_end).unwrap_or(&[])
    }

    /// A field of 4 bytes; 0 where the header ends before it.
    fn u32(&self, offset: usize) -> u32 {
        if offset + 4 > self.header_end { 0 } else { u32_at(self.file, offset).unwrap_or(0) }
    }

    /// Where the kernel runs without relocation.
    pub fn preferred_address(&self) -> u64 {
        let address = u64_at(self.file, field::PREF_ADDRESS);
        match address {
            Some(address) if self.version >= 0x20a && self.header_end >= field::INIT_SIZE => {
                address
            }
            _ => crate::layout::HIGH_MEMORY,
        }
    }

    /// How much contiguous memory the kernel needs from its address until it reads the memory
    /// map; 0 if it does not say.
    pub fn init_size(&self) -> u64 {
        if self.version >= 0x20a { u64::from(self.u32(field::INIT_SIZE)) } else { 0 }
    }

    /// The highest address that the initrd's last byte may have.
    pub fn initrd_max(&self) -> u64 {
        u64::from(self.u32(field::INITRD_ADDR_MAX))
    }

    /// The longest command line, without its zero.
    pub fn command_line_max(&self) -> usize {
        self.u32(field::CMDLINE_SIZE) as usize
    }

    pub fn payload_magic(&self) -> [u8; 6] {
        array(self.file, self.payload.start).unwrap_or([0; 6])
    }

    pub fn compression(&self) -> Option<Compression> {
        Compression::of(self.payload())
    }

    /// Decompresses the payload, of at most `limit` bytes.
    pub fn decompress(&self, compression: Compression, limit: u64) -> Result<Vec<u8>, Error> {
        decompress::payload(compression, self.payload(), limit)
    }

    fn payload(&self) -> &'a [u8] {
        self.file.get(self.payload.clone()).unwrap_or(&[])
    }

    /// What `uname -r` will say, if the header points to it.
    pub fn version_text(&self) -> String {
        let offset = usize::from(u16_at(self.file, field::KERNEL_VERSION).unwrap_or(0));
        let text = self.file.get(offset + 0x200..self.kernel_start).unwrap_or(&[]);
        let text = printable(text);
        text.split(' ').next().unwrap_or("").to_owned()
    }
}

fn need_version(version: u16, least: u8, reason: &'static str) -> Result<(), Error> {
    if version >= 0x200 + u16::from(least) {
        return Ok(());
    }
    let [minor, major] = version.to_le_bytes();
    Err(Error::ProtocolTooOld { major, minor, least, reason })
}

/// Says what a file is that has no setup header.
fn explain(file: &[u8]) -> Error {
    if array(file, 0x38) == Some(*b"ARM\x64") {
        return Error::WrongArchitecture { found: "64-bit Arm (an Image file)".into() };
    }
    if array(file, 0x30) == Some(*b"RISCV\0\0\0") {
        return Error::WrongArchitecture { found: "RISC-V (an Image file)".into() };
    }
    if array(file, 0x24) == Some(0x016f_2818u32.to_le_bytes()) {
        return Error::WrongArchitecture { found: "32-bit Arm (a zImage file)".into() };
    }
    let known: [(&[u8], &str, &str); 6] = [
        (b"!<arch>", "a Debian package or archive", "the vmlinuz file from inside it"),
        (b"\x1f\x8b", "compressed with gzip", "it decompressed"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd", "it decompressed"),
        (b"\xfd7zXZ\0", "compressed with xz", "it decompressed"),
        (b"070701", "a cpio archive", "the kernel as kernel and this as initrd"),
        (b"QFI\xfb", "a qcow2 disk image", "the kernel as kernel and this as disk"),
    ];
    let found = known.iter().find(|(magic, ..)| file.starts_with(magic));
    let (found, give) = match found {
        Some((_, found, give)) => (*found, *give),
        None if file.len() < 0x206 => ("too short", "a bzImage (vmlinuz) or an x86-64 ELF file"),
        None => ("an unknown kind of file", "a bzImage (vmlinuz) or an x86-64 ELF file"),
    };
    Error::NotAKernel { found, give }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{Image, gzip_payload};

    #[test]
    fn a_complete_image_is_taken_apart() {
        let file = Image::new(gzip_payload(b"\x7fELF...")).build();
        let image = BzImage::parse(&file).unwrap();
        assert_eq!(image.preferred_address(), 0x100_0000);
        assert_eq!(image.init_size(), 0x20_0000);
        assert_eq!(image.command_line_max(), 2047);
        assert_eq!(image.version_text(), "6.1.0-synthetic");
        assert_eq!(image.compression(), Some(Compression::Gzip));
        assert_eq!(image.decompress(Compression::Gzip, 1 << 20).unwrap(), b"\x7fELF...");
        assert_eq!(
            image
                .header()
                .get(field::HEADER - field::SETUP_SECTS..)
                .and_then(|bytes| array(bytes, 0)),
            Some(MAGIC)
        );
    }

    #[test]
    fn old_images_are_refused_by_name() {
        let mut file = Image::new(gzip_payload(b"x")).build();
        file[field::XLOADFLAGS] = 0;
        assert!(!BzImage::parse(&file).unwrap().has_entry_64());
        file[field::VERSION..field::VERSION + 2].copy_from_slice(&0x0204u16.to_le_bytes());
        let error = BzImage::parse(&file).unwrap_err();
        assert!(error.to_string().contains("protocol 2.04"), "{error}");
        let mut file = Image::new(gzip_payload(b"x")).build();
        file[field::LOADFLAGS] = 0;
        assert!(matches!(BzImage::parse(&file), Err(Error::Unfit { .. })));
    }

    #[test]
    fn what_is_not_compressed_has_no_payload() {
        let mut file = Image::new(Vec::new()).build();
        file[field::PAYLOAD_OFFSET..field::PAYLOAD_OFFSET + 8].fill(0);
        let image = BzImage::parse(&file).unwrap();
        assert_eq!((image.compression(), image.payload().len()), (None, 0));
        assert_eq!(image.protected_mode_kernel().unwrap().start, image.kernel_start);
        file[field::PAYLOAD_LENGTH] = 7;
        assert!(matches!(BzImage::parse(&file), Err(Error::Malformed(_))));
    }

    #[test]
    fn other_files_are_named() {
        let say = |file: &[u8]| BzImage::parse(file).unwrap_err().to_string();
        assert!(say(b"").contains("empty"));
        assert!(say(b"!<arch>\ndebian-binary").contains("Debian package"));
        assert!(say(&[0; 4096]).contains("unknown kind"));
        assert!(say(b"MZ").contains("too short"));
        let mut arm = vec![0; 4096];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert!(say(&arm).contains("64-bit Arm"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = Image::new(gzip_payload(b"some kernel")).build();
        let needed = BzImage::parse(&file).unwrap().payload.end;
        for length in 0..needed {
            assert!(BzImage::parse(&file[..length]).is_err(), "{length} bytes");
        }
    }
}
