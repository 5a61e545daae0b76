//! What devices stand on: the files of disks, opened as what the options say they are, and the
//! host's random bytes.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use disk_image::{Format, Guess, ImageDisk, OpenError, Options};
use disk_raw::RawDisk;
use disk_seed::{SeedDisk, SeedError};
use machine::DiskPart;
use vm_spec::{Disk, DiskBus, DiskCache, DiskFormat};

use crate::{Failure, report};

type FileError = disk_raw::OpenError;

/// Opens all of them, in the order of the options; what cloud-init looks for comes last.
pub fn open(disks: &[Disk], cloud_init: Option<&Path>) -> Result<Vec<DiskPart>, Failure> {
    let mut parts: Vec<_> = disks.iter().map(open_one).collect::<Result<_, _>>()?;
    if let Some(folder) = cloud_init {
        parts.push(seed(folder)?);
    }
    Ok(parts)
}

fn seed(folder: &Path) -> Result<DiskPart, Failure> {
    let made = disk_seed::read_folder(folder).and_then(|files| SeedDisk::new(&files));
    let disk = made.map_err(|error| {
        let option = format!("--cloud-init {}", folder.display());
        match &error {
            SeedError::Io { path, source } => {
                let why = report::os_reason(source);
                Failure::host(format!(
                    "{option}: {}: {why}; give a folder of files",
                    path.display()
                ))
            }
            SeedError::TooLarge => Failure::usage(format!("{option}: {error}; give smaller ones")),
            SeedError::NoUserData | SeedError::Kind(_) => Failure::usage(format!(
                "{option}: {error}; write one that begins with #cloud-config, or is a script"
            )),
            SeedError::Volume(_) => Failure::host(format!("{option}: {error}; leave it out")),
        }
    })?;
    Ok(DiskPart { disk: Arc::new(disk), serial: "cidata".into(), bus: DiskBus::Virtio })
}

/// Whether a file is by its name a disk.
pub fn named_as_disk(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is = |name: &&str| extension.is_some_and(|it| it.eq_ignore_ascii_case(name));
    ["qcow2", "qcow", "img", "raw"].iter().any(is)
}

/// All that were opened, at the start or by the monitor. One that is removed closes itself.
static OPENED: Mutex<Vec<Weak<dyn disk::Disk>>> = Mutex::new(Vec::new());

/// Leaves the files as whoever opens them next wants to find them.
pub fn close_all() -> Result<(), Failure> {
    let opened = std::mem::take(&mut *OPENED.lock().unwrap_or_else(PoisonError::into_inner));
    let mut closed = Ok(());
    for disk in opened.iter().filter_map(Weak::upgrade) {
        closed = closed.and(disk.close());
    }
    closed.map_err(|error| {
        let why = match &error {
            disk::Error::Io { source, .. } => format!("{error}: {}", report::os_reason(source)),
            other => other.to_string(),
        };
        Failure::host(format!("--disk: what was written last may be lost: {why}; check the image"))
    })
}

fn open_one(disk: &Disk) -> Result<DiskPart, Failure> {
    let format = format(disk)?;
    let opened = open_as(disk, format).map_err(|error| {
        let (why, remedy) = explain(&error, &disk.path, disk);
        let line = format!("{} {}: {why}; {remedy}", option(disk), disk.path.display());
        match error.root() {
            OpenError::File(FileError::Io { .. }) | OpenError::Overlay { .. } => {
                Failure::host(line)
            }
            _ => Failure::usage(line),
        }
    })?;
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&opened));
    Ok(DiskPart { disk: opened, serial: disk.serial.clone(), bus: disk.bus })
}

const CDROM: &str = "--cdrom";

/// The option by which a disk is given.
fn option(disk: &Disk) -> &'static str {
    if disk.bus == DiskBus::Cd { CDROM } else { "--disk" }
}

/// What to do about a file that is not there.
fn missing(disk: &Disk) -> String {
    let path = disk.path.display();
    let qcow2 = match disk.format {
        Some(format) => format == DiskFormat::Qcow2,
        None => matches!(disk_image::guess(&disk.path), Guess::Is(Format::Qcow2)),
    };
    if disk.bus.is_cd() {
        "give an ISO image".into()
    } else if disk.read_only || disk.ephemeral {
        "give one that is there".into()
    } else if qcow2 {
        format!("make one: qemu-img create -f qcow2 {path} 10G")
    } else {
        format!("make one: truncate -s 10G {path}")
    }
}

fn format(disk: &Disk) -> Result<Format, Failure> {
    let guess = match disk.format {
        Some(DiskFormat::Raw) => Guess::Is(Format::Raw),
        Some(DiskFormat::Qcow2) => Guess::Is(Format::Qcow2),
        None => disk_image::guess(&disk.path),
    };
    let (option, path) = (option(disk), disk.path.display());
    match guess {
        Guess::Is(format) => Ok(format),
        // It takes a name only.
        Guess::LooksLike(other) if option == CDROM => Err(Failure::usage(format!(
            "{option} {path}: this is a {other} image; give an ISO image"
        ))),
        Guess::LooksLike("qcow2") => Err(Failure::usage(format!(
            "{option} {path}: its content is that of a qcow2 image, its name is not; add \
             ,format=qcow2, or ,format=raw if a guest has written that"
        ))),
        Guess::LooksLike(other) => Err(Failure::usage(format!(
            "{option} {path}: this is a {other} image; convert it: qemu-img convert -O qcow2 {path} \
             NEW.qcow2, or add ,format=raw if a guest has written that"
        ))),
    }
}

fn open_as(disk: &Disk, format: Format) -> Result<Arc<dyn disk::Disk>, OpenError> {
    let options = Options {
        read_only: disk.read_only,
        direct: disk.cache == DiskCache::None,
        unsafe_flush: disk.cache == DiskCache::Unsafe,
        backing: disk.backing.clone(),
    };
    if disk.ephemeral && !disk.read_only {
        let opened = ImageDisk::ephemeral(&disk.path, format, &options, &overlay_folder())?;
        return Ok(Arc::new(opened));
    }
    if format == Format::Raw && disk.cache == DiskCache::Writeback {
        return Ok(Arc::new(RawDisk::open(&disk.path, disk.read_only)?));
    }
    Ok(Arc::new(ImageDisk::open(&disk.path, format, &options)?))
}

/// Where overlays are: by default not in /tmp, which may be memory.
fn overlay_folder() -> PathBuf {
    let chosen = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    chosen.map_or_else(|| "/var/tmp".into(), PathBuf::from)
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

/// What is wrong with an image, the disk's own or one that it stands on, and what to do.
fn explain(error: &OpenError, image: &Path, disk: &Disk) -> (String, String) {
    if let OpenError::Backing { file, source } = error {
        let (why, remedy) = explain_backing(source, file, disk);
        return (format!("backing file {}: {why}", file.display()), remedy);
    }
    let path = image.display();
    let (why, remedy) = match error {
        OpenError::File(FileError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            ("there is no such file".into(), missing(disk))
        }
        OpenError::File(FileError::Empty | FileError::Size(_)) if disk.bus.is_cd() => {
            (error.to_string(), "give an ISO image".into())
        }
        OpenError::File(error) => return explain_file(error, disk.read_only || disk.ephemeral),
        OpenError::Header(header) if header.repairable() => {
            (error.to_string(), format!("repair it: qemu-img check -r all {path}"))
        }
        OpenError::Header(disk_image::HeaderError::Io(source)) => {
            (report::os_reason(source), "give a file that can be read".into())
        }
        OpenError::Header(disk_image::HeaderError::Magic) => {
            (error.to_string(), "give the right file, or add ,format=raw".into())
        }
        OpenError::Header(_) => (
            error.to_string(),
            // That takes in all that the disk stands on.
            format!(
                "make one that is used here: qemu-img convert -O qcow2 {} NEW.qcow2",
                disk.path.display()
            ),
        ),
        OpenError::Damaged(_) | OpenError::Repair(_) => {
            (error.to_string(), format!("look at it: qemu-img check {path}"))
        }
        OpenError::Dirty => (error.to_string(), "open it once without ,readonly".into()),
        OpenError::Extras => (
            error.to_string(),
            "add ,readonly or ,ephemeral, or convert it: qemu-img convert".into(),
        ),
        OpenError::Old => (
            error.to_string(),
            format!("bring it up to date: qemu-img amend -f qcow2 -o compat=v3 {path}"),
        ),
        OpenError::Overlay { source, .. } => (
            format!("{}: {}", error, report::os_reason(source)),
            "name another folder in TMPDIR".into(),
        ),
        OpenError::BackingFormat(name) => {
            (error.to_string(), format!("say it: qemu-img rebase -u -b {name} -F qcow2|raw {path}"))
        }
        OpenError::BackingElsewhere(file) => {
            (error.to_string(), format!("if you trust the image, add ,backing={}", file.display()))
        }
        OpenError::BackingUnknown { .. } | OpenError::BackingName(_) => {
            (error.to_string(), "give an image over raw or qcow2 files".into())
        }
        OpenError::Chain(_) => (error.to_string(), "commit some: qemu-img commit".into()),
        OpenError::Backing { .. } => (error.to_string(), String::new()),
    };
    (why, remedy)
}

/// The same of a backing file, which is only read.
fn explain_backing(error: &OpenError, file: &Path, disk: &Disk) -> (String, String) {
    let elsewhere =
        "put it there, or tell the image where it is: qemu-img rebase -u -b FILE -F FORMAT";
    match error {
        OpenError::File(FileError::InUse) => {
            ("another program writes it".into(), "end that first".into())
        }
        OpenError::File(FileError::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            ("there is no such file".into(), elsewhere.into())
        }
        // Only what stands on it says that it is one.
        OpenError::Header(disk_image::HeaderError::Magic) => (error.to_string(), elsewhere.into()),
        OpenError::File(error) => explain_file(error, true),
        OpenError::Dirty => (
            error.to_string(),
            "open it once for itself, or repair it: qemu-img check -r all".into(),
        ),
        error => explain(error, file, disk),
    }
}

fn explain_file(error: &FileError, read_only: bool) -> (String, String) {
    let (why, remedy) = match error {
        FileError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied if read_only => {
                ("this user may not read it".into(), "give another file, or run as its owner")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
                "this user may not read and write it".into(),
                "give another file, or add ,readonly or ,ephemeral",
            ),
            io::ErrorKind::InvalidInput => {
                (report::os_reason(source), "leave out ,cache=none, which this file system refuses")
            }
            _ => (report::os_reason(source), "give a file or a block device"),
        },
        FileError::InUse => {
            (error.to_string(), "end that first, or let all who use it add ,readonly or ,ephemeral")
        }
        FileError::Kind => (error.to_string(), "give a file or a block device"),
        FileError::Empty | FileError::Size(_) => {
            (error.to_string(), "give it a size: truncate -s 10G FILE")
        }
    };
    (why, remedy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(option: &str) -> String {
        open(&[option.parse().unwrap()], None).unwrap_err().line
    }

    #[test]
    fn what_is_no_seed_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| open(&[], Some(path)).unwrap_err().line;
        let line = said(folder.path());
        assert!(
            line.ends_with("write one that begins with #cloud-config, or is a script"),
            "{line}"
        );
        let line = said(Path::new("/nonexistent"));
        assert_eq!(
            line,
            "--cloud-init /nonexistent: /nonexistent: No such file or directory; give a folder of files"
        );
        std::fs::write(folder.path().join("user-data"), "#cloud-config").unwrap();
        assert_eq!(open(&[], Some(folder.path())).unwrap().len(), 1);
    }

    #[test]
    fn what_is_wrong_with_a_disk_is_one_line() {
        for (path, why) in [
            ("/nonexistent", "there is no such file; make one: truncate -s 10G /nonexistent"),
            ("/dev/null", "it is neither a file nor a block device; give a file or a block device"),
        ] {
            assert_eq!(refused(path), format!("--disk {path}: {why}"));
        }
        for (option, line) in [
            (
                "/no.qcow2",
                "--disk /no.qcow2: there is no such file; \
                 make one: qemu-img create -f qcow2 /no.qcow2 10G",
            ),
            ("/no.iso,bus=cd", "--cdrom /no.iso: there is no such file; give an ISO image"),
            ("/no.iso,bus=scsi-cd", "--disk /no.iso: there is no such file; give an ISO image"),
            ("/no,readonly", "--disk /no: there is no such file; give one that is there"),
        ] {
            assert_eq!(refused(option), line);
        }
        assert!(refused("/etc/passwd,format=qcow2,readonly").contains("it is no qcow2 image; "));
    }

    #[test]
    fn a_format_is_not_guessed_from_what_a_guest_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, b"QFI\xfb\0\0\0\x03 and more").unwrap();
        let line = refused(&path.to_string_lossy());
        assert!(line.contains(",format=qcow2, or ,format=raw"), "{line}");
        std::fs::write(&path, b"KDMV").unwrap();
        assert!(refused(&path.to_string_lossy()).contains("this is a vmdk image; convert it"));
        let line = refused(&format!("{},format=raw", path.display()));
        assert!(line.contains("its 4 bytes are no multiple"), "{line}");
    }

    #[test]
    fn who_may_not_read_is_not_told_to_read_only() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = FileError::Io { call: "open", source };
        assert!(explain_file(&error, false).1.contains(",readonly"));
        let (why, remedy) = explain_file(&error, true);
        assert!(!why.contains("write") && !remedy.contains(",readonly"), "{why}; {remedy}");
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let disk: Disk = "a.qcow2".parse().unwrap();
        let other = || io::Error::other("x");
        for error in [
            OpenError::Dirty,
            OpenError::Extras,
            OpenError::Old,
            OpenError::Damaged(other()),
            OpenError::Repair(other()),
            OpenError::Overlay { folder: "/x".into(), source: other() },
            OpenError::BackingFormat("b".into()),
            OpenError::BackingUnknown { name: "b".into(), format: "vmdk".into() },
            OpenError::BackingName("nbd://x".into()),
            OpenError::BackingElsewhere("/x".into()),
            OpenError::Chain(64),
        ] {
            let (why, remedy) = explain(&error, &disk.path, &disk);
            assert!(!why.is_empty() && !remedy.is_empty(), "{error}");
            let nested = OpenError::Backing { file: "b".into(), source: Box::new(error) };
            let (why, remedy) = explain(&nested, &disk.path, &disk);
            assert!(why.starts_with("backing file b: ") && !remedy.is_empty(), "{why}");
        }
    }

    /// A line that names another image would have its user break that one.
    #[test]
    fn remedies_are_for_the_image_that_is_wrong() {
        let disk: Disk = "top.qcow2".parse().unwrap();
        let remedy = |error| {
            let nested = OpenError::Backing { file: "/x/mid".into(), source: Box::new(error) };
            explain(&nested, &disk.path, &disk).1
        };
        let corrupt = disk_image::HeaderError::Feature("is marked as corrupt");
        for error in [
            OpenError::BackingFormat("base".into()),
            OpenError::Damaged(io::Error::other("x")),
            OpenError::Header(corrupt),
        ] {
            let remedy = remedy(error);
            assert!(remedy.ends_with(" /x/mid"), "{remedy}");
        }
        // As a raw disk, the one that stands on it would be no disk either.
        let remedy = remedy(OpenError::Header(disk_image::HeaderError::Magic));
        assert!(!remedy.contains("format=raw") && remedy.contains("rebase"), "{remedy}");
    }
}
