//! A small read-only disk made of files: the seed of cloud-init's NoCloud.
//!
//! A guest with cloud-init looks for a FAT or ISO 9660 volume with the label `cidata` and reads
//! the files `user-data`, `meta-data`, `network-config` and `vendor-data` in its root
//! (cloud-init, "NoCloud"). The volume is made in memory, by the crate `fatfs`, from a folder as it
//! is at the start; nothing of it is written to the host.

mod folder;

pub use folder::read_folder;

use disk::{Disk, Error, Shape};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use std::{
    fmt,
    io::{self, Cursor, Write},
    path::PathBuf,
};

/// All files together: they are descriptions, and stay in memory.
pub const BYTES_MAX: usize = 16 << 20;
/// The label that is looked for, in the form of FAT's.
const LABEL: [u8; 11] = *b"CIDATA     ";
const SECTOR: usize = 512;
/// Room for the tables, the root and the rest of each file's last cluster.
const OVERHEAD: usize = 1 << 20;

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("there is no file user-data in it")]
    NoUserData,
    #[error("{} is no file", .0.display())]
    Kind(PathBuf),
    #[error("its files have more than 16 MiB")]
    TooLarge,
    #[error("the volume cannot be made: {0}")]
    Volume(io::Error),
}

/// A file of the volume's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// A disk that holds a volume with some files.
pub struct SeedDisk {
    bytes: Vec<u8>,
    shape: Shape,
}

impl fmt::Debug for SeedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeedDisk").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl SeedDisk {
    /// Makes the volume.
    ///
    /// # Errors
    /// If the files are too large, or have names that no file of FAT has.
    pub fn new(files: &[File]) -> Result<Self, SeedError> {
        let total: usize = files.iter().map(|file| file.bytes.len()).sum();
        if total > BYTES_MAX {
            return Err(SeedError::TooLarge);
        }
        let size = (total + OVERHEAD).next_multiple_of(SECTOR);
        let mut volume = Cursor::new(vec![0; size]);
        fill(&mut volume, files).map_err(SeedError::Volume)?;
        let shape = Shape { read_only: true, ..Shape::of_bytes(size as u64) };
        Ok(Self { bytes: volume.into_inner(), shape })
    }
}

fn fill(volume: &mut Cursor<Vec<u8>>, files: &[File]) -> io::Result<()> {
    let options = FormatVolumeOptions::new().volume_label(LABEL);
    fatfs::format_volume(&mut *volume, options)?;
    let system = FileSystem::new(volume, FsOptions::new())?;
    for file in files {
        let mut to = system.root_dir().create_file(&file.name)?;
        to.write_all(&file.bytes)?;
        to.flush()?;
    }
    system.unmount()
}

impl Disk for SeedDisk {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.shape.check(offset, data.len() as u64)?;
        let at = offset as usize;
        data.copy_from_slice(&self.bytes[at..at + data.len()]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn file(name: &str, bytes: &[u8]) -> File {
        File { name: name.into(), bytes: bytes.into() }
    }

    #[test]
    fn the_volume_has_the_files() {
        let long = vec![7; 300_000];
        let files = [file("user-data", b"#cloud-config\n"), file("meta-data", &long)];
        let disk = SeedDisk::new(&files).unwrap();
        assert!(disk.shape().read_only && disk.write(0, b"x").is_err());
        assert!(disk.write_zeroes(0, 512, true).is_err() && disk.discard(0, 512).is_err());
        let mut bytes = vec![0; disk.shape().bytes as usize];
        disk.read(0, &mut bytes).unwrap();
        assert!(disk.read(disk.shape().bytes, &mut [0]).is_err());
        let system = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "CIDATA");
        for file in &files {
            let mut read = Vec::new();
            system.root_dir().open_file(&file.name).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == file.bytes, "{}", file.name);
        }
    }

    #[test]
    fn what_fits_and_what_does_not() {
        for size in [0, 1, 511, 5 << 20, BYTES_MAX] {
            assert!(SeedDisk::new(&[file("user-data", &vec![1; size])]).is_ok(), "{size}");
        }
        let error = SeedDisk::new(&[file("user-data", &vec![1; BYTES_MAX + 1])]).unwrap_err();
        assert!(matches!(error, SeedError::TooLarge));
        assert!(matches!(SeedDisk::new(&[file("a/b:c", b"")]), Err(SeedError::Volume(_))));
    }
}
