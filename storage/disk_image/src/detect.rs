//! Which format a file has, when nobody says it.
//!
//! A guest decides what is in a raw image. Were the format guessed from that, a guest could write
//! the header of a qcow2 image whose backing file is any file of the host, and read that after
//! the next start. So the format follows from the file's name, which no guest writes; and what
//! would be raw by its name, but looks like an image of some format, is refused.

use crate::header;
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// How a file holds a disk's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's images that grow.
    Qcow2,
}

/// What a file that nobody said the format of turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// As its name says.
    Is(Format),
    /// By its name it is raw, by its content something else.
    LooksLike(&'static str),
}

const QCOW2: [&str; 2] = ["qcow2", "qcow"];
/// Where a format has its mark.
const MARKS: [(usize, &[u8], &str); 9] = [
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
];

/// By the file's name, if its content does not speak against that. What cannot be read is raw:
/// opening it will say why.
pub fn guess(path: &Path) -> Guess {
    let extension = path.extension().and_then(|extension| extension.to_str());
    if extension.is_some_and(|it| QCOW2.iter().any(|name| it.eq_ignore_ascii_case(name))) {
        return Guess::Is(Format::Qcow2);
    }
    match start(path).ok().and_then(|start| mark(&start)) {
        Some(format) => Guess::LooksLike(format),
        None => Guess::Is(Format::Raw),
    }
}

fn start(path: &Path) -> io::Result<Vec<u8>> {
    let kind = std::fs::metadata(path)?.file_type();
    // Of a pipe, reading takes.
    if !disk_raw::is_disk(kind) {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; 512];
    let length = File::open(path)?.read_at(&mut bytes, 0)?;
    bytes.truncate(length);
    Ok(bytes)
}

fn mark(start: &[u8]) -> Option<&'static str> {
    if header::is_qcow2(start) {
        return Some("qcow2");
    }
    let has = |(at, mark, _): &&(usize, &[u8], &str)| {
        start.get(*at..).is_some_and(|rest| rest.starts_with(mark))
    };
    MARKS.iter().find(has).map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, bytes: &[u8]) -> Guess {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        guess(&path)
    }

    #[test]
    fn names_decide_and_contents_object() {
        let (raw, qcow2) = (Guess::Is(Format::Raw), Guess::Is(Format::Qcow2));
        let mut boot = vec![0; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        for name in ["disk.img", "disk.raw", "disk", "disk.iso"] {
            assert_eq!(of(name, &boot), raw);
            assert_eq!(of(name, b""), raw);
            assert_eq!(of(name, b"QFI\xfb\0\0\0\x03"), Guess::LooksLike("qcow2"));
        }
        assert_eq!(of("disk.QCOW2", &boot), qcow2, "opening it will say that it is none");
        assert_eq!(of("disk.qcow2", b"QFI\xfb"), qcow2);
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert_eq!(of("disk.vdi", &vdi), Guess::LooksLike("vdi"));
        assert_eq!(guess(Path::new("/nonexistent")), raw);
    }
}
