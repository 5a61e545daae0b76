//! Small bzImages, ELF files and payloads for the tests.

use crate::bytes::put;
use crate::bzimage::field;
use crate::{Compression, Loaded, Segment};
use std::io::Write;

pub const EM_X86_64: u16 = 62;

/// An ELF file with loadable segments and notes.
#[derive(Clone)]
pub struct Elf {
    wide: bool,
    machine: u16,
    entry: u64,
    loads: Vec<(u64, u64, Vec<u8>, u64)>,
    notes: Vec<u8>,
}

impl Elf {
    pub fn new64() -> Self {
        Self { wide: true, machine: EM_X86_64, entry: 0, loads: vec![], notes: vec![] }
    }

    pub fn new32() -> Self {
        Self { wide: false, machine: 3, ..Self::new64() }
    }

    pub fn machine(self, machine: u16) -> Self {
        Self { machine, ..self }
    }

    pub fn entry(self, entry: u64) -> Self {
        Self { entry, ..self }
    }

    pub fn load(mut self, physical: u64, virtual_: u64, data: &[u8], size: u64) -> Self {
        self.loads.push((physical, virtual_, data.to_vec(), size));
        self
    }

    pub fn note(mut self, name: &[u8], kind: u32, data: &[u8]) -> Self {
        for value in [name.len() as u32, data.len() as u32, kind] {
            self.notes.extend(value.to_le_bytes());
        }
        for part in [name, data] {
            self.notes.extend(part);
            self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        }
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let (header_size, entry_size) = if self.wide { (64, 56) } else { (52, 32) };
        let count = self.loads.len() + usize::from(!self.notes.is_empty());
        let mut file = b"\x7fELF".to_vec();
        file.extend([1 + u8::from(self.wide), 1, 1]);
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        self.word(&mut file, self.entry);
        self.word(&mut file, header_size as u64);
        self.word(&mut file, 0);
        file.extend(0u32.to_le_bytes());
        for value in [header_size, entry_size, count, 0, 0, 0] {
            file.extend((value as u16).to_le_bytes());
        }
        let mut data: Vec<u8> = Vec::new();
        let start = header_size + count * entry_size;
        for (physical, virtual_, bytes, size) in &self.loads {
            let offset = (start + data.len()) as u64;
            self.program_header(
                &mut file,
                1,
                [offset, *virtual_, *physical, bytes.len() as u64, *size],
            );
            data.extend(bytes);
        }
        if !self.notes.is_empty() {
            let (offset, size) = ((start + data.len()) as u64, self.notes.len() as u64);
            self.program_header(&mut file, 4, [offset, 0, 0, size, size]);
            data.extend(&self.notes);
        }
        file.extend(data);
        file
    }

    fn word(&self, file: &mut Vec<u8>, value: u64) {
        if self.wide {
            file.extend(value.to_le_bytes());
        } else {
            file.extend((value as u32).to_le_bytes());
        }
    }

    /// `values`: offset, virtual and physical address, size in the file and in memory.
    fn program_header(&self, file: &mut Vec<u8>, kind: u32, values: [u64; 5]) {
        file.extend(kind.to_le_bytes());
        if self.wide {
            file.extend(7u32.to_le_bytes());
        }
        for value in values {
            self.word(file, value);
        }
        if !self.wide {
            file.extend(7u32.to_le_bytes());
        }
        self.word(file, 4);
    }
}

/// A 64-bit kernel of two segments at 16 MiB without a note.
pub fn vmlinux() -> Vec<u8> {
    let text: Vec<u8> = (0..5000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    Elf::new64()
        .load(0x100_0000, 0xffff_ffff_8100_0000, &text, 0x2000)
        .load(0x100_2000, 0xffff_ffff_8100_2000, b"data", 0x10_0000)
        .entry(0x100_0100)
        .build()
}

/// A bzImage of protocol 2.15.
#[derive(Clone)]
pub struct Image {
    payload: Vec<u8>,
}

impl Image {
    const SECTORS: usize = 3;
    const PAYLOAD_OFFSET: usize = 0x400;

    /// `payload` ends in its decompressed size.
    pub fn new(payload: Vec<u8>) -> Self {
        Self { payload }
    }

    pub fn build(&self) -> Vec<u8> {
        let start = (Self::SECTORS + 1) * 512;
        let length = (Self::PAYLOAD_OFFSET + self.payload.len()).next_multiple_of(16);
        let mut file = vec![0x90; start + length];
        file[..start].fill(0);
        let mut set = |at: usize, value: &[u8]| put(&mut file, at, value);
        set(field::SETUP_SECTS, &[Self::SECTORS as u8]);
        set(field::SYSSIZE, &((length / 16) as u32).to_le_bytes());
        set(field::BOOT_FLAG, &0xaa55u16.to_le_bytes());
        set(field::JUMP, &[0xeb, (0x26c - 0x202) as u8]);
        set(field::HEADER, b"HdrS");
        set(field::VERSION, &0x20fu16.to_le_bytes());
        set(field::KERNEL_VERSION, &0x100u16.to_le_bytes());
        set(0x300, b"6.1.0-synthetic (someone@somewhere) #1\0");
        set(field::LOADFLAGS, &[1]);
        set(field::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        set(field::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
        set(field::XLOADFLAGS, &0x7fu16.to_le_bytes());
        set(field::CMDLINE_SIZE, &2047u32.to_le_bytes());
        set(field::PAYLOAD_OFFSET, &(Self::PAYLOAD_OFFSET as u32).to_le_bytes());
        set(field::PAYLOAD_LENGTH, &(self.payload.len() as u32).to_le_bytes());
        set(field::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
        set(field::INIT_SIZE, &0x20_0000u32.to_le_bytes());
        set(start + Self::PAYLOAD_OFFSET, &self.payload);
        file
    }
}

pub fn gzip_payload(data: &[u8]) -> Vec<u8> {
    compress(Compression::Gzip, data)
}

/// Compresses as the kernel's build does, with the size at the end.
pub fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut packed = match compression {
        Compression::None => return data.to_vec(),
        Compression::Gzip => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            to.write_all(data).unwrap();
            return to.finish().unwrap();
        }
        Compression::Bzip2 => {
            let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            to.write_all(data).unwrap();
            to.finish().unwrap()
        }
        Compression::Xz => xz(data, false),
        Compression::Lzma => {
            let options = lzma_rust2::LzmaOptions::with_preset(1);
            let mut to =
                lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            to.write_all(data).unwrap();
            to.finish().unwrap()
        }
        Compression::Lz4 => {
            let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
        }
    };
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

fn xz(data: &[u8], filter: bool) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
    if filter {
        options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
    }
    let mut to = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    to.write_all(data).unwrap();
    to.finish().unwrap()
}

/// As the kernel's `xz_wrap.sh` does for x86: BCJ filter and CRC32.
pub fn xz_bcj_payload(data: &[u8]) -> Vec<u8> {
    let mut packed = xz(data, true);
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

/// Code with many relative calls, which the x86 filter rewrites.
pub fn calls(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|i| [&[0xe8][..], &(i * 5 % 70_000).to_le_bytes(), &[0x90]].concat())
        .collect()
}

pub fn segment<'a>(loaded: &'a Loaded, what: &str) -> &'a Segment {
    loaded.segments.iter().find(|segment| segment.what == what).unwrap()
}
