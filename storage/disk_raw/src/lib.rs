//! Raw disk images: a file or a block device, byte for byte.
//!
//! An image that is written has one user: it is locked while it is open (`flock`), so that two
//! machines cannot damage it. Readers share it. Writes go to the host's page cache, and
//! [`Disk::flush`] to the storage below it.

use disk::{Disk, Error, SECTOR, Shape, write_zeroes_plainly};
use rustix::{
    fs::{FallocateFlags, OFlags, fallocate},
    io::Errno,
};
use std::{
    fs::{File, FileType, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// Why a file is no disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{call} failed")]
    Io { call: &'static str, source: io::Error },
    #[error("another program uses it")]
    InUse,
    #[error("it is neither a file nor a block device")]
    Kind,
    #[error("it is empty")]
    Empty,
    #[error("its {0} bytes are no multiple of 512")]
    Size(u64),
}

/// A file or a block device that is a disk.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    shape: Shape,
}

/// Whether a disk can be in such a file.
pub fn is_disk(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { call, source }
}

/// Opens and locks the file of an image, without the host's page cache if it is to be `direct`.
///
/// # Errors
/// If it cannot be opened, is in use, or is no file that holds a disk.
pub fn open_file(path: &Path, read_only: bool, direct: bool) -> Result<File, OpenError> {
    let failed = |call| move |source| OpenError::Io { call, source };
    // Opening a pipe would wait for who writes to it, and opening some devices does things.
    if std::fs::metadata(path).is_ok_and(|metadata| !is_disk(metadata.file_type())) {
        return Err(OpenError::Kind);
    }
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(flags.bits() as i32);
    let file = options.open(path).map_err(failed("open"))?;
    lock(&file, read_only)?;
    Ok(file)
}

/// One who writes, or many who read.
fn lock(file: &File, read_only: bool) -> Result<(), OpenError> {
    let failed = |call| move |source| OpenError::Io { call, source };
    let kind = file.metadata().map_err(failed("stat"))?.file_type();
    if !is_disk(kind) {
        return Err(OpenError::Kind);
    }
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        // File systems without locks, as some in user space are.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { call: "flock", source }),
    }
}

/// Bytes of a file or block device that is a disk.
///
/// # Errors
/// If no disk has such a size.
pub fn size(mut file: &File) -> Result<u64, OpenError> {
    // A block device's metadata say nothing of its size.
    let bytes = file.seek(SeekFrom::End(0));
    match bytes.map_err(|source| OpenError::Io { call: "lseek", source })? {
        0 => Err(OpenError::Empty),
        bytes if !bytes.is_multiple_of(SECTOR) => Err(OpenError::Size(bytes)),
        bytes => Ok(bytes),
    }
}

impl RawDisk {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// If it cannot be opened, is in use, or has a size that no disk has.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        Self::of(open_file(path, read_only, false)?, read_only)
    }

    /// Takes over an open file, which is readable, and writable unless it is read-only.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_file(file: File, read_only: bool) -> Result<Self, OpenError> {
        lock(&file, read_only)?;
        Self::of(file, read_only)
    }

    fn of(file: File, read_only: bool) -> Result<Self, OpenError> {
        let bytes = size(&file)?;
        let shape = Shape { read_only, discard: !read_only, ..Shape::of_bytes(bytes) };
        // Files are cached by pages, whatever lies below.
        Ok(Self { file, shape: Shape { physical_block: 4096, ..shape } })
    }

    /// `fallocate` on a part of the file; false if this file cannot do that.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool, Error> {
        if len == 0 {
            return Ok(true);
        }
        match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => Ok(false),
            Err(error) => Err(Error::Io { call: "fallocate", source: error.into() }),
        }
    }
}

impl Disk for RawDisk {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.shape.check(offset, data.len() as u64)?;
        self.file.read_exact_at(data, offset).map_err(failed("read"))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.shape.check_write(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset).map_err(failed("write"))
    }

    fn flush(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(failed("fdatasync"))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.shape.check_write(offset, len)?;
        // A file that cannot keeps its bytes, which is as good.
        self.allocate(FallocateFlags::PUNCH_HOLE, offset, len).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.shape.check_write(offset, len)?;
        let punched = unmap && self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?;
        if punched || self.allocate(FallocateFlags::ZERO_RANGE, offset, len)? {
            return Ok(());
        }
        write_zeroes_plainly(self, offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FileType as FileKind, Mode};
    use std::{io::Write, os::unix::fs::MetadataExt};

    const SIZE: u64 = 1 << 20;

    fn image() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0xaa; SIZE as usize]).unwrap();
        file
    }

    #[test]
    fn bytes_are_where_they_were_written() {
        let image = image();
        let disk = RawDisk::open(image.path(), false).unwrap();
        assert_eq!((disk.shape().bytes, disk.shape().logical_block), (SIZE, 512));
        disk.write(513, b"hello").unwrap();
        disk.flush().unwrap();
        let mut bytes = [0; 7];
        disk.read(512, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\xaahello\xaa");
        assert_eq!(&std::fs::read(image.path()).unwrap()[513..518], b"hello");
        assert!(disk.write(SIZE - 1, b"ab").is_err() && disk.read(u64::MAX, &mut bytes).is_err());
        assert_eq!(image.as_file().metadata().unwrap().len(), SIZE, "it does not grow");
    }

    #[test]
    fn zeroes_and_holes() {
        let image = image();
        let disk = RawDisk::open(image.path(), false).unwrap();
        disk.write_zeroes(4096, 8192, false).unwrap();
        disk.write_zeroes(1 << 16, 1 << 16, true).unwrap();
        let before = image.as_file().metadata().unwrap().blocks();
        disk.discard(1 << 18, 1 << 19).unwrap();
        disk.discard(SIZE, 0).unwrap();
        let bytes = std::fs::read(image.path()).unwrap();
        assert_eq!(bytes.len() as u64, SIZE);
        assert!(bytes[4096..12288].iter().all(|b| *b == 0));
        assert!(bytes[1 << 16..1 << 17].iter().all(|b| *b == 0));
        assert!(bytes[..4096].iter().chain(&bytes[12288..1 << 16]).all(|b| *b == 0xaa));
        let after = image.as_file().metadata().unwrap().blocks();
        assert!(after <= before, "{after} blocks, {before} before");
        assert!(disk.write_zeroes(SIZE - 512, 1024, true).is_err());
        assert!(disk.discard(0, SIZE + 512).is_err());
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = image();
        let writer = RawDisk::open(image.path(), false).unwrap();
        assert!(matches!(RawDisk::open(image.path(), false), Err(OpenError::InUse)));
        assert!(matches!(RawDisk::open(image.path(), true), Err(OpenError::InUse)));
        drop(writer);
        let readers = [(); 2].map(|()| RawDisk::open(image.path(), true).unwrap());
        assert!(matches!(RawDisk::open(image.path(), false), Err(OpenError::InUse)));
        assert!(matches!(readers[0].write(0, b"x"), Err(Error::ReadOnly)));
        assert!(matches!(readers[0].discard(0, 512), Err(Error::ReadOnly)));
        assert!(matches!(readers[0].write_zeroes(0, 512, true), Err(Error::ReadOnly)));
    }

    #[test]
    fn what_is_no_disk_is_said() {
        let refused = |path: &Path| RawDisk::open(path, true).unwrap_err().to_string();
        assert_eq!(refused(Path::new("/nonexistent")), "open failed");
        assert_eq!(refused(Path::new("/dev/null")), "it is neither a file nor a block device");
        assert_eq!(refused(Path::new("/proc")), "it is neither a file nor a block device");
        // Nobody will ever write to this one.
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileKind::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(refused(&pipe), "it is neither a file nor a block device");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(refused(file.path()), "it is empty");
        file.as_file().set_len(1000).unwrap();
        assert_eq!(refused(file.path()), "its 1000 bytes are no multiple of 512");
    }
}
