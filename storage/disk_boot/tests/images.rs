//! Disks as `mke2fs` makes them.

use disk::Disk;
use disk_boot::{Error, read};
use disk_raw::RawDisk;
use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::Path,
    process::Command,
    sync::Arc,
};
use tempfile::TempDir;

const ROOM: u64 = 64 << 20;
/// Where the partition of [`partitioned`] begins.
const FIRST: u64 = 2048 * 512;

/// A file system with these files at an offset of a disk; `None` without `mke2fs`.
fn image(kind: &str, offset: u64, files: &[(&str, &[u8])]) -> Option<(TempDir, Arc<dyn Disk>)> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(target) = bytes.strip_prefix(b"-> ") {
            let target = std::str::from_utf8(target).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        } else {
            fs::write(path, bytes).unwrap();
        }
    }
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(offset + (24 << 20)).unwrap();
    let mut command = ["/sbin/mke2fs", "/usr/sbin/mke2fs"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .map(Command::new)
        .or_else(|| {
            println!("skipped: this host has no mke2fs");
            assert!(std::env::var_os("CI").is_none(), "CI has mke2fs");
            None
        })?;
    command.args(["-q", "-F", "-t", kind, "-E"]).arg(format!("offset={offset}"));
    let done = command.arg("-d").arg(&root).arg(&disk).arg("20m").status().unwrap();
    assert!(done.success());
    if offset > 0 {
        let mut file = fs::File::options().write(true).open(&disk).unwrap();
        let mut entry = [0; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&((offset / 512) as u32).to_le_bytes());
        entry[12..].copy_from_slice(&(20u32 << 11).to_le_bytes());
        for (at, bytes) in [(446, &entry[..]), (510, &[0x55, 0xaa])] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(bytes).unwrap();
        }
    }
    let disk = Arc::new(RawDisk::open(&disk, true).unwrap());
    Some((folder, disk))
}

const GRUB: &[u8] =
    b"menuentry x {\n linux /vmlinuz root=LABEL=root ro quiet\n initrd /initrd.img\n}\n";

#[test]
fn what_grub_would_start_is_read_by_its_links() {
    let files: &[(&str, &[u8])] = &[
        ("boot/grub/grub.cfg", GRUB),
        ("boot/vmlinuz-6.1.0-9", b"the kernel"),
        ("boot/vmlinuz-6.12.0", b"another"),
        ("boot/initrd.img-6.1.0-9", b"its files"),
        ("vmlinuz", b"-> boot/vmlinuz-6.1.0-9"),
        ("initrd.img", b"-> /boot/initrd.img-6.1.0-9"),
    ];
    for (kind, offset, place) in [
        ("ext4", 0, "the whole disk"),
        ("ext4", FIRST, "partition 1"),
        ("ext2", FIRST, "partition 1"),
    ] {
        let Some((_folder, disk)) = image(kind, offset, files) else { return };
        let found = read(&disk, ROOM, "xvda").unwrap();
        assert_eq!(found.kernel, b"the kernel");
        assert_eq!(found.initrd.as_deref(), Some(&b"its files"[..]));
        assert_eq!(found.command_line, "root=LABEL=root ro quiet");
        assert_eq!(found.description, format!("{place}: /vmlinuz"));
    }
}

#[test]
fn without_grub_it_is_the_latest_kernel() {
    let mut files: Vec<(&str, &[u8])> = vec![
        ("boot/vmlinuz-6.1.0-9-amd64", b"older"),
        ("boot/initrd.img-6.1.0-9-amd64", b"older files"),
        ("boot/vmlinuz-6.1.0-31-amd64", b"newer"),
        ("boot/initrd.img-6.1.0-31-amd64", b"newer files"),
        ("boot/config-6.1.0-31-amd64", b""),
    ];
    let Some((_folder, disk)) = image("ext4", FIRST, &files) else { return };
    let found = read(&disk, ROOM, "xvdb").unwrap();
    assert_eq!(
        (&*found.kernel, found.initrd.as_deref()),
        (&b"newer"[..], Some(&b"newer files"[..]))
    );
    assert_eq!(found.command_line, "root=/dev/xvdb1 ro");
    // GRUB's file may name what is not there.
    files.push(("boot/grub/grub.cfg", GRUB));
    let Some((_folder, disk)) = image("ext4", 0, &files) else { return };
    let found = read(&disk, ROOM, "xvda").unwrap();
    assert_eq!((&*found.kernel, &*found.command_line), (&b"newer"[..], "root=/dev/xvda ro"));
}

#[test]
fn what_is_not_there_or_too_large_is_said() {
    let Some((_folder, disk)) = image("ext4", FIRST, &[("etc/passwd", b"root")]) else { return };
    let error = read(&disk, ROOM, "xvda").unwrap_err();
    assert!(matches!(error, Error::Nothing) && error.to_string().contains("--kernel"), "{error}");
    let kernel: (&str, &[u8]) = ("vmlinuz", &[7; 100_000]);
    let Some((_folder, disk)) = image("ext4", 0, &[kernel, ("initrd.img", &[8; 100_000])]) else {
        return;
    };
    let error = read(&disk, 150_000, "xvda").unwrap_err().to_string();
    assert!(error.contains("/initrd.img has 100000 bytes, more than the 50000"), "{error}");
    let empty: Arc<dyn Disk> = Arc::new(disk::Memory::new(disk::Shape::of_bytes(512)));
    assert!(matches!(read(&empty, ROOM, "xvda"), Err(Error::Nothing)));
}
