//! Finds a kernel, its initrd and its command line in a disk's own file system, as Xen's pygrub does
//! for guests that have no firmware.
//!
//! Looked at are the disk as a whole and its partitions, in their order; the first one with an ext4,
//! ext3 or ext2 file system that has a kernel counts. What GRUB would start by default is taken from
//! its `grub.cfg`; without one it is the kernel of the latest version in `/boot` or `/`.
//!
//! A guest has written all of this. The size of a file is bounded before it is read, but what a file
//! system costs its reader is not: a VM has a child read it, with limits ([`read_by`]).

mod child;
mod grub;
mod partitions;

pub use child::{ARGUMENT, read_by, serve};
pub use partitions::Partition;

use disk::Disk;
use ext4_view::{Ext4, Ext4Error, Ext4Read};
use std::{cmp::Ordering, sync::Arc};

/// Bytes of a kernel.
const KERNEL_MAX: u64 = 512 << 20;
/// Bytes of GRUB's file.
const CONFIGURATION_MAX: u64 = 4 << 20;
/// Kernels that are compared.
const KERNELS_MAX: usize = 1000;

/// What a disk boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    pub kernel: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
    /// As GRUB would give it; without GRUB it names the root file system, if that is known.
    pub command_line: String,
    /// Where they are, for the operator: `partition 1: /boot/vmlinuz-6.1.0`.
    pub description: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the disk cannot be read")]
    Disk(#[from] disk::Error),
    #[error("the disk has no ext4 file system with a kernel in /boot or /; give one with --kernel")]
    Nothing,
    #[error("{place}: {path} cannot be read: {why}")]
    File { place: String, path: String, why: String },
    #[error("{place}: {path} has {size} bytes, more than the {most} that there is room for")]
    TooLarge { place: String, path: String, size: u64, most: u64 },
    #[error("the process that is to read the disk cannot start")]
    Process(#[source] std::io::Error),
    #[error(
        "the disk's file system cannot be read in the time and memory that one takes: it is broken, or made so; give a kernel with --kernel"
    )]
    GaveUp,
    /// What the process that read it found.
    #[error("{0}")]
    Said(String),
}

/// Reads what the disk boots. `room` is how many bytes of memory the guest has, and `name` what it
/// will call the disk: `xvda`. Of a disk that may have been made to harm who reads it, see [`read_by`].
pub fn read(disk: &Arc<dyn Disk>, room: u64, name: &str) -> Result<BootFiles, Error> {
    for partition in partitions::of(&**disk)? {
        let part = Part { disk: disk.clone(), from: partition.start, length: partition.length };
        let Ok(files) = Ext4::load(Box::new(part)) else { continue };
        let place = Place { files, partition, room };
        if let Some(choice) = place.choice(name)? {
            return place.read(choice);
        }
    }
    Err(Error::Nothing)
}

/// A part of a disk, as a file system reads it.
struct Part {
    disk: Arc<dyn Disk>,
    from: u64,
    length: u64,
}

impl Ext4Read for Part {
    fn read(
        &mut self,
        start: u64,
        data: &mut [u8],
    ) -> Result<(), Box<dyn core::error::Error + Send + Sync>> {
        let inside = start.checked_add(data.len() as u64).is_some_and(|end| end <= self.length);
        if !inside {
            return Err("outside of the partition".into());
        }
        Ok(self.disk.read(self.from + start, data)?)
    }
}

/// A file system that may be booted from.
struct Place {
    files: Ext4,
    partition: Partition,
    room: u64,
}

/// What is booted, by paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kernel: String,
    pub(crate) initrd: Option<String>,
    pub(crate) command_line: String,
}

impl Place {
    fn choice(&self, name: &str) -> Result<Option<Choice>, Error> {
        // Where /boot has a file system of its own, GRUB's folder is at its root.
        for path in ["/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg"] {
            if self.exists(path) {
                let text = self.bytes(path, CONFIGURATION_MAX)?;
                let choice = grub::default_entry(&String::from_utf8_lossy(&text));
                if let Some(choice) = choice.filter(|choice| self.exists(&choice.kernel)) {
                    return Ok(Some(choice));
                }
            }
        }
        Ok(self.latest(name))
    }

    /// The kernel of the latest version.
    fn latest(&self, name: &str) -> Option<Choice> {
        let mut kernels = Vec::new();
        for folder in ["/boot", ""] {
            let path = if folder.is_empty() { "/" } else { folder };
            let Ok(entries) = self.files.read_dir(path) else { continue };
            for entry in entries.flatten().take(KERNELS_MAX) {
                let file = entry.file_name();
                let Ok(file) = file.as_str() else { continue };
                if let Some(version) = file.strip_prefix("vmlinuz") {
                    let version = version.trim_start_matches('-').to_owned();
                    kernels.push((version, format!("{folder}/{file}"), folder));
                }
            }
        }
        let (version, kernel, folder) =
            kernels.into_iter().max_by(|(a, ..), (b, ..)| by_version(a, b))?;
        let dash = if version.is_empty() { "" } else { "-" };
        let initrds = [
            format!("{folder}/initrd.img{dash}{version}"),
            format!("{folder}/initramfs{dash}{version}.img"),
            format!("{folder}/initrd{dash}{version}"),
        ];
        Some(Choice {
            kernel,
            initrd: initrds.into_iter().find(|path| self.exists(path)),
            command_line: format!("root=/dev/{name}{} ro", self.partition.suffix()),
        })
    }

    fn exists(&self, path: &str) -> bool {
        self.files.exists(path).unwrap_or(false)
    }

    fn bytes(&self, path: &str, most: u64) -> Result<Vec<u8>, Error> {
        let place = || self.partition.to_string();
        let failed = |error: Ext4Error| Error::File {
            place: place(),
            path: path.into(),
            why: error.to_string(),
        };
        let size = self.files.metadata(path).map_err(failed)?.len();
        if size > most {
            return Err(Error::TooLarge { place: place(), path: path.into(), size, most });
        }
        self.files.read(path).map_err(failed)
    }

    fn read(&self, choice: Choice) -> Result<BootFiles, Error> {
        let Choice { kernel: path, initrd, command_line } = choice;
        let kernel = self.bytes(&path, self.room.min(KERNEL_MAX))?;
        let left = self.room.saturating_sub(kernel.len() as u64);
        let initrd = initrd.map(|path| self.bytes(&path, left)).transpose()?;
        let description = format!("{}: {path}", self.partition);
        Ok(BootFiles { kernel, initrd, command_line, description })
    }
}

/// Numbers by their value: 6.1.0-9 is before 6.1.0-31, and rescue kernels and the like are before
/// all that begins with a number.
fn by_version(a: &str, b: &str) -> Ordering {
    fn words(text: &str) -> Vec<(u64, String)> {
        text.split(|c: char| !c.is_ascii_alphanumeric())
            .map(|word| {
                let digits = word.chars().take_while(char::is_ascii_digit).count();
                let (number, rest) = word.split_at(digits);
                (number.parse().unwrap_or(0), rest.to_owned())
            })
            .collect()
    }
    let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    is_number(a).cmp(&is_number(b)).then_with(|| words(a).cmp(&words(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (less, more) in [
            ("6.1.0-9-cloud-amd64", "6.1.0-31-cloud-amd64"),
            ("6.1.0-31-amd64", "6.12.1-1-amd64"),
            ("", "6.1"),
            ("rescue-99", "4.19.0"),
            ("6.1", "6.1.1"),
            ("99999999999999999999999", "1"),
        ] {
            assert_eq!(by_version(less, more), Ordering::Less, "{less} {more}");
            assert_eq!(by_version(more, less), Ordering::Greater, "{less} {more}");
        }
    }
}
