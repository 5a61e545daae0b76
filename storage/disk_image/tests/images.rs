//! Who may open an image, overlays, and images whose makers mean harm.

use disk::{Disk, Error};
use disk_image::{Format, ImageDisk, OpenError, Options};
use imago::{DenyImplicitOpenGate, FormatCreateBuilder, qcow2::Qcow2};
use proptest::prelude::*;
use std::{fs, path::Path};

const SIZE: u64 = 4 << 20;
/// Few tables, near each other.
const CLUSTER: usize = 4096;

/// A qcow2 image with some data, by imago.
fn create(path: &Path, backing: Option<(&str, &str)>) {
    let file = fs::File::create_new(path).unwrap();
    drop(file);
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let file = imago::file::File::try_from(file).unwrap();
    let mut builder =
        Qcow2::<imago::file::File>::create_builder(file).size(SIZE).cluster_size(CLUSTER);
    if let Some((name, format)) = backing {
        builder = builder.backing(name.into(), format.into());
    }
    let image = builder
        .create_open(DenyImplicitOpenGate::default(), |image| {
            Ok(Qcow2::builder(image).backing(None))
        })
        .unwrap();
    let image = imago::FormatAccess::new(image);
    for at in (0..SIZE).step_by(100_000) {
        image.write(&[at as u8 | 1; 5000][..], at).unwrap();
    }
    image.flush().unwrap();
}

fn open(path: &Path, options: &Options) -> Result<ImageDisk, OpenError> {
    ImageDisk::open(path, Format::Qcow2, options)
}

#[test]
fn one_writer_or_many_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    create(&path, None);
    let (write, read) = (Options::default(), Options { read_only: true, ..Options::default() });
    let writer = open(&path, &write).unwrap();
    for options in [&write, &read] {
        let error = open(&path, options).unwrap_err();
        assert!(matches!(error, OpenError::File(disk_raw::OpenError::InUse)), "{error}");
    }
    drop(writer);
    let readers = [(); 2].map(|()| open(&path, &read).unwrap());
    assert!(open(&path, &write).is_err());
    assert!(readers[0].shape().read_only && !readers[0].shape().discard);
    assert!(matches!(readers[0].write(0, b"x"), Err(Error::ReadOnly)));
    assert!(matches!(readers[0].write_zeroes(0, 512, true), Err(Error::ReadOnly)));
    assert!(matches!(readers[1].discard(0, 512), Err(Error::ReadOnly)));
    readers[1].flush().unwrap();
}

#[test]
fn what_is_written_to_an_overlay_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (qcow2, raw) = (folder.path().join("a.qcow2"), folder.path().join("b.img"));
    create(&qcow2, None);
    fs::write(&raw, vec![0x77; SIZE as usize]).unwrap();
    for (path, format) in [(&qcow2, Format::Qcow2), (&raw, Format::Raw)] {
        let before = fs::read(path).unwrap();
        let open = || ImageDisk::ephemeral(path, format, &Options::default(), folder.path());
        let (disk, other) = (open().unwrap(), open().unwrap());
        let mut first = [0; 2];
        other.read(0, &mut first).unwrap();
        disk.write(1, b"gone").unwrap();
        disk.discard(1 << 20, 1 << 20).unwrap();
        disk.flush().unwrap();
        let mut bytes = [0; 5];
        disk.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes[1..], b"gone");
        assert_eq!(bytes[0], first[0]);
        other.read(0, &mut bytes).unwrap();
        assert_eq!(bytes[1], first[1], "each has its own");
        assert_eq!(disk.shape().bytes, SIZE);
        let locked = ImageDisk::open(path, format, &Options::default());
        assert!(locked.is_err(), "nobody writes what others stand on");
        drop((disk, other));
        assert!(fs::read(path).unwrap() == before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left");
    }
}

#[test]
fn a_raw_image_without_the_page_cache() {
    // Not every file system can.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("b.img");
    fs::write(&path, vec![0x77; SIZE as usize]).unwrap();
    let options = Options { direct: true, ..Options::default() };
    let disk = match ImageDisk::open(&path, Format::Raw, &options) {
        Ok(disk) => disk,
        Err(error) => return eprintln!("skipped: O_DIRECT: {error}"),
    };
    disk.write(513, b"odd").unwrap();
    let mut bytes = [0; 5];
    disk.read(512, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\x77odd\x77");
    disk.write_zeroes(8192, 4096, true).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let file = fs::read(&path).unwrap();
    assert!(file[8192..12288].iter().all(|b| *b == 0) && &file[513..516] == b"odd");
    assert_eq!(file.len() as u64, SIZE);
}

#[test]
fn a_chain_that_leads_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    create(&path, Some(("a.qcow2", "qcow2")));
    let read = Options { read_only: true, ..Options::default() };
    let error = open(&path, &read).unwrap_err();
    assert!(matches!(error.root(), OpenError::Chain(_)), "{error}");
    let error = open(&path, &Options::default()).unwrap_err();
    assert!(matches!(error.root(), OpenError::File(disk_raw::OpenError::InUse)), "{error}");
}

#[test]
fn backing_files_that_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let read = Options { read_only: true, ..Options::default() };
    let case = |name: &str, backing: &str, format: &str| {
        let path = folder.path().join(name);
        create(&path, Some((backing, format)));
        open(&path, &read).unwrap_err()
    };
    assert!(matches!(case("a", "/etc/passwd", "raw"), OpenError::BackingElsewhere(_)));
    assert!(matches!(case("b", "x", "vmdk"), OpenError::BackingUnknown { .. }));
    assert!(matches!(case("c", "nbd://x/y", "raw"), OpenError::BackingName(_)));
    assert!(matches!(case("d", "missing", "raw").root(), OpenError::File(_)));
}

/// Whatever an image's maker wrote into it: it is refused, or used with no more than errors.
fn survive(path: &Path) {
    let Ok(disk) = open(path, &Options::default()) else { return };
    if disk.shape().bytes > 1 << 40 {
        return;
    }
    let mut bytes = vec![0; 9000];
    let size = disk.shape().bytes.min(SIZE);
    for at in (0..size.saturating_sub(9000)).step_by(150_000) {
        let _ = disk.read(at, &mut bytes);
        let _ = disk.write(at, &bytes[..700]);
        let _ = disk.write_zeroes(at + 4096, 4096, at % 4 == 0);
        let _ = disk.discard(at, 8192);
    }
    let _ = disk.flush();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of the header and of all tables, which are in the image's first clusters.
    #[test]
    fn tables_of_noise(
        changes in prop::collection::vec((0_usize..16 * CLUSTER, any::<u8>()), 1..40),
        words in prop::collection::vec((0_usize..2 * CLUSTER, 0_u64..40, 0_u64..16), 0..40),
        dirty in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        create(&path, None);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            // The header is mostly refused, and has a test of its own.
            let at = if at < 200 { at + CLUSTER } else { at };
            bytes[at] = byte;
        }
        bytes[79] = dirty.into();
        // Entries that lead to other tables, or to themselves.
        for (at, cluster, flags) in words {
            let entry = (flags << 60) | (cluster * CLUSTER as u64);
            let at = CLUSTER + at * 8 % (14 * CLUSTER);
            bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        fs::write(&path, bytes).unwrap();
        survive(&path);
    }
}
