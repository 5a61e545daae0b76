//! Disks whose file systems were made to harm who looks for a kernel in them.

use std::{fs, path::Path, process::Command, time::Duration};
use testkit::{Error, Folder, left_out, run};

const LONG: Duration = Duration::from_secs(180);
/// Of a superblock, which is at byte 1024: fields by their offsets (`struct ext4_super_block`).
const SUPERBLOCK: usize = 1024;
const BLOCKS_COUNT: usize = 4;
const LOG_BLOCK_SIZE: usize = 24;
const BLOCKS_PER_GROUP: usize = 32;
const INODE_SIZE: usize = 88;
const BLOCK: usize = 4096;

fn put(disk: &mut [u8], at: usize, value: u32) {
    disk[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get(disk: &[u8], at: usize, len: usize) -> usize {
    disk[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// A node of a tree of extents whose entries all lead to the same block.
fn node(disk: &mut [u8], at: usize, entries: u16, depth: u16, child: u32) {
    let header = [0xf30a, entries, entries, depth, 0, 0];
    let header: Vec<u8> = header.iter().flat_map(|word: &u16| word.to_le_bytes()).collect();
    disk[at..at + 12].copy_from_slice(&header);
    for entry in 0..usize::from(entries) {
        let at = at + 12 + entry * 12;
        put(disk, at, entry as u32);
        put(disk, at + 4, child);
        put(disk, at + 8, 0);
    }
}

/// The root directory has a tree of five levels, of which each node's entries all lead to the next: to
/// walk it takes for ever, and to know it five blocks.
fn endless(disk: &mut [u8]) {
    let table = get(disk, BLOCK + 8, 4) * BLOCK;
    let root = table + get(disk, SUPERBLOCK + INODE_SIZE, 2);
    let first = 4096 - 8;
    node(disk, root + 40, 4, 5, first);
    for level in 0..5u32 {
        let at = (first + level) as usize * BLOCK;
        let entries = if level == 4 { 0 } else { 340 };
        node(disk, at, entries, 4 - level as u16, first + level + 1);
    }
}

fn refused(name: &str, change: impl Fn(&mut [u8])) -> Result<(), Error> {
    let folder = Folder::new(&format!("disk-boot-{name}"));
    let (root, disk) = (folder.path("root"), folder.path("disk.img"));
    fs::create_dir_all(root.join("boot")).unwrap();
    fs::write(root.join("boot/vmlinuz-1"), [0; 12288]).unwrap();
    let mke2fs = ["/sbin/mke2fs", "/usr/sbin/mke2fs"].into_iter().find(|at| Path::new(at).exists());
    let Some(mke2fs) = mke2fs else {
        left_out("this host has no mke2fs");
        return Ok(());
    };
    let mut made = Command::new(mke2fs);
    made.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^64bit,^has_journal"]);
    assert!(made.arg("-d").arg(&root).arg(&disk).arg("16m").status().unwrap().success());
    let mut bytes = fs::read(&disk).unwrap();
    let text = disk.display().to_string();
    let boots = |text: &str| run(&["run", "--guest", "xen-pv", "--memory", "256M", text], LONG);
    // It is found as it is, and is no kernel.
    let whole = boots(&text)?;
    assert!(
        String::from_utf8_lossy(&whole.stderr).contains("an unknown kind of file"),
        "{whole:?}"
    );
    change(&mut bytes);
    fs::write(&disk, &bytes).unwrap();
    let out = boots(&text)?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("cannot be read in the time and memory that one takes"), "{out:?}");
    assert_eq!((out.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    Ok(())
}

#[test]
fn more_groups_than_memory_holds() -> Result<(), Error> {
    refused("groups", |disk| {
        put(disk, SUPERBLOCK + BLOCKS_COUNT, u32::MAX);
        put(disk, SUPERBLOCK + BLOCKS_PER_GROUP, 1);
    })
}

#[test]
fn blocks_of_two_gigabytes() -> Result<(), Error> {
    refused("blocks", |disk| put(disk, SUPERBLOCK + LOG_BLOCK_SIZE, 21))
}

#[test]
fn a_directory_without_an_end() -> Result<(), Error> {
    refused("endless", endless)
}
