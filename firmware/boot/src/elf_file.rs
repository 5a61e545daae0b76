//! ELF files: the segments to load, the entry, and Xen's note with the PVH entry.

use crate::bytes::{u32_at, u64_at};
use crate::layout::Plan;
use crate::{Bytes, Error};
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader};
use elf::note::{Note, NoteIterator};
use elf::segment::{ProgramHeader, SegmentTable};
use std::ops::Range;
use xen_abi::elfnote;

/// More loadable segments than any kernel has; bounds the work on a hostile file.
const MAX_SEGMENTS: usize = 128;

/// A validated ELF executable for x86-64, or for i386.
#[derive(Debug)]
pub struct ElfFile<'a> {
    file: &'a [u8],
    class: Class,
    entry: u64,
    headers: Vec<ProgramHeader>,
}

impl<'a> ElfFile<'a> {
    pub fn is_elf(file: &[u8]) -> bool {
        file.starts_with(&abi::ELFMAGIC)
    }

    /// Checks the header and that every segment's bytes are in the file.
    pub fn parse(file: &'a [u8]) -> Result<Self, Error> {
        let header = parse_header(file)?;
        check_machine(&header)?;
        let headers = program_headers(file, &header)?;
        let loads = headers.iter().filter(|header| header.p_type == abi::PT_LOAD).count();
        if loads == 0 {
            return Err(Error::Malformed("the ELF file has nothing to load"));
        }
        if loads > MAX_SEGMENTS {
            return Err(Error::Malformed("the ELF file has too many segments"));
        }
        let elf = Self { file, class: header.class, entry: header.e_entry, headers };
        for header in &elf.headers {
            elf.file_range(header)?;
            if header.p_type == abi::PT_LOAD && header.p_memsz < header.p_filesz {
                return Err(Error::Malformed("an ELF segment is larger in the file than loaded"));
            }
            if header.p_paddr.checked_add(header.p_memsz).is_none() {
                return Err(Error::Malformed("an ELF segment's address overflows"));
            }
        }
        Ok(elf)
    }

    pub fn is_64_bit(&self) -> bool {
        self.class == Class::ELF64
    }

    /// The entry's physical address. Linux gives that itself; an entry that is only inside a
    /// segment's virtual addresses is translated.
    pub fn physical_entry(&self) -> Result<u64, Error> {
        let inside =
            |base: u64, size: u64| self.entry.checked_sub(base).filter(|&offset| offset < size);
        if self.loads().any(|load| inside(load.p_paddr, load.p_memsz).is_some()) {
            return Ok(self.entry);
        }
        self.loads()
            .find_map(|load| {
                inside(load.p_vaddr, load.p_memsz)
                    .and_then(|offset| load.p_paddr.checked_add(offset))
            })
            .ok_or(Error::Malformed("the ELF entry is outside its segments"))
    }

    /// The physical address of the 32-bit PVH entry, if the file has the note.
    pub fn pvh_entry(&self) -> Result<Option<u64>, Error> {
        let Some(desc) = self.xen_note(elfnote::PHYS32_ENTRY)? else { return Ok(None) };
        let entry = number(desc).filter(|&entry| {
            self.loads()
                .any(|load| entry.checked_sub(load.p_paddr).is_some_and(|at| at < load.p_memsz))
        });
        match entry {
            Some(entry) if entry <= u64::from(u32::MAX) => Ok(Some(entry)),
            _ => Err(Error::Malformed("the PVH entry is outside the ELF segments")),
        }
    }

    /// The number in Xen's note of this type, if the file has it.
    pub fn xen_number(&self, kind: u64) -> Result<Option<u64>, Error> {
        Ok(self.xen_note(kind)?.and_then(number))
    }

    /// What Xen's note of this type holds (`elfnote.h`), if the file has it.
    fn xen_note(&self, kind: u64) -> Result<Option<&'a [u8]>, Error> {
        for header in self.headers.iter().filter(|header| header.p_type == abi::PT_NOTE) {
            let data = self.file.get(self.file_range(header)?).unwrap_or(&[]);
            // Notes are aligned to 4 bytes whatever the class, unless the header says 8.
            let align = if header.p_align == 8 { 8 } else { 4 };
            for note in NoteIterator::new(LittleEndian, self.class, align, data) {
                let Note::Unknown(note) = note else { continue };
                if note.n_type == kind && note.name.strip_suffix(b"\0") == Some(elfnote::OWNER) {
                    return Ok(Some(note.desc));
                }
            }
        }
        Ok(None)
    }

    /// The end of the highest segment in physical memory.
    pub fn physical_end(&self) -> u64 {
        self.loads().map(|load| load.p_paddr.saturating_add(load.p_memsz)).max().unwrap_or(0)
    }

    /// Plans every loadable segment at its physical address. `bytes` are the same bytes that
    /// were parsed.
    pub fn place(&self, plan: &mut Plan, bytes: &Bytes) -> Result<(), Error> {
        plan.must_be_ram("last segment", self.physical_end())?;
        self.each_segment(bytes, |gpa, data, tail| plan.place("segment", gpa, data, tail))
    }

    /// Calls with every loadable segment's physical address, bytes and zeros behind them. `bytes` are
    /// the same bytes that were parsed.
    pub fn each_segment(
        &self,
        bytes: &Bytes,
        mut place: impl FnMut(u64, Bytes, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for load in self.loads().filter(|load| load.p_memsz > 0) {
            let data = bytes
                .slice(self.file_range(load)?)
                .ok_or(Error::Malformed("an ELF segment is outside the file"))?;
            place(load.p_paddr, data, load.p_memsz.saturating_sub(load.p_filesz))?;
        }
        Ok(())
    }

    fn loads(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.headers.iter().filter(|header| header.p_type == abi::PT_LOAD)
    }

    fn file_range(&self, header: &ProgramHeader) -> Result<Range<usize>, Error> {
        let have = self.file.len() as u64;
        let end = header.p_offset.checked_add(header.p_filesz);
        match end {
            // Both are at most the file's length, which is a usize.
            Some(end) if end <= have => Ok(header.p_offset as usize..end as usize),
            _ => {
                Err(Error::Truncated { part: "ELF segment", needed: end.unwrap_or(u64::MAX), have })
            }
        }
    }
}

/// A note's number, of 4 or 8 bytes.
fn number(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => u32_at(desc, 0).map(u64::from),
        _ => u64_at(desc, 0),
    }
}

fn parse_header(file: &[u8]) -> Result<FileHeader<LittleEndian>, Error> {
    let have = file.len() as u64;
    let truncated = |needed: u64| Error::Truncated { part: "ELF header", needed, have };
    let ident = file.get(..abi::EI_NIDENT).ok_or(truncated(abi::EI_NIDENT as u64))?;
    if ident.get(abi::EI_DATA) == Some(&abi::ELFDATA2MSB) {
        return Err(Error::WrongArchitecture { found: "a big-endian machine".into() });
    }
    let ident = elf::file::parse_ident::<LittleEndian>(ident)
        .map_err(|_| Error::Malformed("the ELF identification is wrong"))?;
    let size = match ident.1 {
        Class::ELF32 => abi::EI_NIDENT + elf::file::ELF32_EHDR_TAILSIZE,
        Class::ELF64 => abi::EI_NIDENT + elf::file::ELF64_EHDR_TAILSIZE,
    };
    let tail = file.get(abi::EI_NIDENT..size).ok_or(truncated(size as u64))?;
    FileHeader::parse_tail(ident, tail).map_err(|_| Error::Malformed("the ELF header is wrong"))
}

fn check_machine(header: &FileHeader<LittleEndian>) -> Result<(), Error> {
    match (header.e_machine, header.class) {
        (abi::EM_X86_64, Class::ELF64) | (abi::EM_386, Class::ELF32) => {}
        (machine, _) => {
            let name = match machine {
                abi::EM_X86_64 => "x32 (an x86-64 ELF file of 32-bit class)",
                abi::EM_ARM => "32-bit Arm",
                abi::EM_AARCH64 => "64-bit Arm",
                abi::EM_RISCV => "RISC-V",
                abi::EM_MIPS => "MIPS",
                abi::EM_PPC | abi::EM_PPC64 => "POWER",
                abi::EM_S390 => "s390",
                abi::EM_LOONGARCH => "LoongArch",
                _ => {
                    return Err(Error::WrongArchitecture {
                        found: format!("ELF machine {machine}"),
                    });
                }
            };
            return Err(Error::WrongArchitecture { found: name.into() });
        }
    }
    match header.e_type {
        abi::ET_EXEC | abi::ET_DYN => Ok(()),
        _ => Err(Error::Unfit {
            why: "the ELF file is no executable",
            hint: "give a linked one, such as vmlinux",
        }),
    }
}

fn program_headers(
    file: &[u8],
    header: &FileHeader<LittleEndian>,
) -> Result<Vec<ProgramHeader>, Error> {
    let entry_size: u16 = if header.class == Class::ELF64 { 56 } else { 32 };
    if header.e_phnum == 0 || header.e_phentsize != entry_size {
        return Err(Error::Malformed("the ELF program header table is wrong"));
    }
    let have = file.len() as u64;
    let size = u64::from(header.e_phnum) * u64::from(entry_size);
    let end = header.e_phoff.saturating_add(size);
    if end > have {
        return Err(Error::Truncated { part: "ELF program header table", needed: end, have });
    }
    let table = file.get(header.e_phoff as usize..end as usize).unwrap_or(&[]);
    Ok(SegmentTable::new(LittleEndian, header.class, table).iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::synthetic::{EM_X86_64, Elf};

    #[test]
    fn segments_go_to_their_physical_addresses() {
        let file = Elf::new64().load(0x20_0000, 0xffff_8000_0020_0000, b"code", 0x3000).build();
        let elf = ElfFile::parse(&file).unwrap();
        let mut plan = Plan::new(Memory::low(64 << 20), None);
        elf.place(&mut plan, &Bytes::from(file.clone())).unwrap();
        assert_eq!(elf.physical_end(), 0x20_3000);
        let segment = &plan.finish()[0];
        assert_eq!(
            (segment.gpa, segment.bytes(), segment.zero_tail),
            (0x20_0000, &b"code"[..], 0x2ffc)
        );
    }

    #[test]
    fn a_virtual_entry_is_translated() {
        let elf = Elf::new64().load(0x20_0000, 0xffff_8000_0020_0000, b"code", 0x3000);
        let file = elf.clone().entry(0x20_0010).build();
        assert_eq!(ElfFile::parse(&file).unwrap().physical_entry(), Ok(0x20_0010));
        let file = elf.clone().entry(0xffff_8000_0020_0010).build();
        assert_eq!(ElfFile::parse(&file).unwrap().physical_entry(), Ok(0x20_0010));
        let file = elf.entry(0x1234).build();
        assert!(ElfFile::parse(&file).unwrap().physical_entry().is_err());
    }

    #[test]
    fn the_pvh_note_is_found_behind_others() {
        let base = || Elf::new64().load(0x10_0000, 0x10_0000, b"code", 0x1000);
        let file =
            base().note(b"GNU\0", 3, &[1; 20]).note(b"Xen\0", 18, &0x10_0040u64.to_le_bytes());
        assert_eq!(ElfFile::parse(&file.build()).unwrap().pvh_entry(), Ok(Some(0x10_0040)));
        let file = base().note(b"Xen\0", 18, &0x10_0040u32.to_le_bytes()).build();
        assert_eq!(ElfFile::parse(&file).unwrap().pvh_entry(), Ok(Some(0x10_0040)));
        let file = base().note(b"Abc\0", 18, &0x10_0040u32.to_le_bytes()).build();
        assert_eq!(ElfFile::parse(&file).unwrap().pvh_entry(), Ok(None));
        let file = base().note(b"Xen\0", 18, &0x50_0000u32.to_le_bytes()).build();
        assert!(ElfFile::parse(&file).unwrap().pvh_entry().is_err());
    }

    #[test]
    fn other_machines_are_named() {
        let file = Elf::new64().machine(abi::EM_AARCH64).load(0, 0, b"x", 1).build();
        let error = ElfFile::parse(&file).unwrap_err();
        assert!(error.to_string().contains("64-bit Arm"), "{error}");
        let file = Elf::new32().machine(EM_X86_64).load(0, 0, b"x", 1).build();
        assert!(matches!(ElfFile::parse(&file), Err(Error::WrongArchitecture { .. })));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = Elf::new64().load(0x10_0000, 0x10_0000, b"code", 0x1000).build();
        for length in 0..file.len() {
            assert!(ElfFile::parse(&file[..length]).is_err(), "{length} bytes");
        }
    }
}
