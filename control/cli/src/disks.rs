//! What devices stand on: the files of disks, opened as what the options say they are, and the
//! host's random bytes.

use std::{
    fs::File,
    io::{self, Read},
    sync::Arc,
};

use disk_raw::{OpenError, RawDisk};
use machine::DiskPart;
use vm_spec::{Disk, DiskFormat};

use crate::{Failure, report};

/// Opens all of them, in the order of the options.
pub fn open(disks: &[Disk]) -> Result<Vec<DiskPart>, Failure> {
    disks.iter().map(open_one).collect()
}

fn open_one(disk: &Disk) -> Result<DiskPart, Failure> {
    let DiskFormat::Raw = disk.format;
    let opened = RawDisk::open(&disk.path, disk.read_only).map_err(|error| {
        let (why, remedy) = explain(&error, disk.read_only);
        let line = format!("--disk {}: {why}; {remedy}", disk.path.display());
        match error {
            OpenError::Io { .. } => Failure::host(line),
            _ => Failure::usage(line),
        }
    })?;
    Ok(DiskPart { disk: Arc::new(opened), serial: disk.serial.clone() })
}

/// Where an entropy device's bytes come from.
pub fn entropy() -> Result<Box<dyn Read + Send>, Failure> {
    const SOURCE: &str = "/dev/urandom";
    match File::open(SOURCE) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) => {
            let why = report::os_reason(&error);
            Err(Failure::host(format!("--rng: {SOURCE}: {why}; leave --rng out")))
        }
    }
}

/// What is wrong, and what to do.
fn explain(error: &OpenError, read_only: bool) -> (String, &'static str) {
    match error {
        OpenError::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => {
                ("there is no such file".into(), "make one: truncate -s 10G FILE")
            }
            io::ErrorKind::PermissionDenied if read_only => {
                ("this user may not read it".into(), "give another file, or run as its owner")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
                "this user may not read and write it".into(),
                "give another file, or add ,readonly",
            ),
            _ => (report::os_reason(source), "give a file or a block device"),
        },
        OpenError::InUse => {
            (error.to_string(), "end that first, or let all who use it add ,readonly")
        }
        OpenError::Kind => (error.to_string(), "give a file or a block device"),
        OpenError::Empty | OpenError::Size(_) => {
            (error.to_string(), "give it a size: truncate -s 10G FILE")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_disk_is_one_line() {
        for (path, why) in [
            ("/nonexistent", "there is no such file; make one: truncate -s 10G FILE"),
            ("/dev/null", "it is neither a file nor a block device; give a file or a block device"),
        ] {
            let failure = open(&[path.parse().unwrap()]).unwrap_err();
            assert_eq!(failure.line, format!("--disk {path}: {why}"));
        }
    }

    #[test]
    fn who_may_not_read_is_not_told_to_read_only() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = OpenError::Io { call: "open", source };
        assert!(explain(&error, false).1.contains(",readonly"));
        let (why, remedy) = explain(&error, true);
        assert!(!why.contains("write") && !remedy.contains(",readonly"), "{why}; {remedy}");
    }
}
