//! Images against QEMU's own tool: it makes them, it checks them, it compares them.

use disk::Disk;
use disk_image::{Format, ImageDisk, OpenError, Options};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
};

const MIB: u64 = 1 << 20;

/// Runs `qemu-img`; what it printed. `None`, with a line that says so, where it is not installed.
fn qemu_img(args: &[&str]) -> Option<String> {
    let out = match Command::new("qemu-img").args(args).output() {
        Ok(out) => out,
        Err(error) => {
            eprintln!("skipped: qemu-img: {error} (apt-get install qemu-utils)");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    Some(text)
}

/// A folder with images.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// A qcow2 image of some MiB; false without `qemu-img`.
    fn create(&self, name: &str, options: &str, mib: u64) -> bool {
        let (size, path) = (format!("{mib}M"), self.text(name));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &path, &size]).is_some()
    }

    fn check(&self, name: &str) {
        qemu_img(&["check", "-q", "-f", "qcow2", &self.text(name)]).unwrap();
    }

    /// That the image's disk has these bytes, by QEMU's word.
    fn compare(&self, name: &str, bytes: &[u8]) {
        let expected = self.text("expected.raw");
        fs::write(&expected, bytes).unwrap();
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &expected, &self.text(name)]).unwrap();
    }

    fn reopen(&self, name: &str) -> ImageDisk {
        reopen(|| self.open(name))
    }

    fn open(&self, name: &str) -> Result<ImageDisk, OpenError> {
        ImageDisk::open(&self.path(name), Format::Qcow2, &Options::default())
    }
}

/// Opens what was open before. What another test is about to execute holds the lock for a moment, too.
fn reopen(open: impl Fn() -> Result<ImageDisk, OpenError>) -> ImageDisk {
    loop {
        match open() {
            Ok(disk) => return disk,
            Err(error) => match error.root() {
                OpenError::File(disk_raw::OpenError::InUse) => std::thread::yield_now(),
                other => panic!("{other}"),
            },
        }
    }
}

/// What was done to a disk.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, Vec<u8>),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Read(u64, u64),
    Flush,
    Reopen,
}

fn acts(size: u64) -> impl Strategy<Value = Vec<Act>> {
    let place = (0..size / 512, 1..=400_u64)
        .prop_map(move |(at, len)| (at * 512, (len * 512).min(size - at * 512)));
    let act = prop_oneof![
        5 => (place.clone(), any::<u8>()).prop_map(|((at, len), byte)| {
            Act::Write(at, (0..len).map(|i| byte.wrapping_add((i / 512) as u8)).collect())
        }),
        2 => (place.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Act::Zero(at, len, unmap)),
        2 => place.clone().prop_map(|(at, len)| Act::Discard(at, len)),
        3 => place.prop_map(|(at, len)| Act::Read(at, len)),
        1 => Just(Act::Flush),
        1 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..40)
}

/// Does it to the disk and to a copy in memory; what a discard leaves is read back.
fn perform(disk: &ImageDisk, copy: &mut [u8], act: &Act) {
    let range = |at: u64, len: u64| at as usize..(at + len) as usize;
    match act {
        Act::Write(at, data) => {
            disk.write(*at, data).unwrap();
            copy[range(*at, data.len() as u64)].copy_from_slice(data);
        }
        Act::Zero(at, len, unmap) => {
            disk.write_zeroes(*at, *len, *unmap).unwrap();
            copy[range(*at, *len)].fill(0);
        }
        Act::Discard(at, len) => {
            disk.discard(*at, *len).unwrap();
            let mut now = vec![0; *len as usize];
            disk.read(*at, &mut now).unwrap();
            let before = &mut copy[range(*at, *len)];
            assert!(now.iter().zip(&*before).all(|(now, was)| now == was || *now == 0));
            before.copy_from_slice(&now);
        }
        Act::Read(at, len) => {
            let mut now = vec![0xa5; *len as usize];
            disk.read(*at, &mut now).unwrap();
            assert!(now == copy[range(*at, *len)], "{at} {len}");
        }
        Act::Flush => disk.flush().unwrap(),
        Act::Reopen => {}
    }
}

fn whole(disk: &ImageDisk) -> Vec<u8> {
    let mut bytes = vec![0; disk.shape().bytes as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Random acts on an image of this kind, and QEMU's word on what came of them.
fn exercise(options: &str, cases: u32) {
    const SIZE: u64 = 8;
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&acts(SIZE * MIB), |acts| {
        let place = Place::new();
        if !place.create("disk.qcow2", options, SIZE) {
            return Ok(());
        }
        let mut copy = vec![0; (SIZE * MIB) as usize];
        let mut disk = place.reopen("disk.qcow2");
        for act in &acts {
            if matches!(act, Act::Reopen) {
                drop(disk);
                disk = place.reopen("disk.qcow2");
            }
            perform(&disk, &mut copy, act);
        }
        prop_assert!(whole(&disk) == copy);
        drop(disk);
        place.check("disk.qcow2");
        place.compare("disk.qcow2", &copy);
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn images_are_what_was_done_to_them() {
    exercise("cluster_size=64k", 24);
}

#[test]
fn images_of_small_clusters() {
    exercise("cluster_size=512,refcount_bits=1", 12);
}

#[test]
fn images_of_version_2_are_read() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..MIB).map(|i| (i / 333) as u8).collect();
    fs::write(place.path("raw"), &bytes).unwrap();
    let (raw, old) = (place.text("raw"), place.text("old.qcow2"));
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", &raw, &old];
    if qemu_img(&convert).is_none() {
        return;
    }
    assert!(matches!(place.open("old.qcow2"), Err(OpenError::Old)));
    let options = Options { read_only: true, ..Options::default() };
    let path = place.path("old.qcow2");
    let disk = reopen(|| ImageDisk::open(&path, Format::Qcow2, &options));
    assert!(whole(&disk) == bytes);
}

#[test]
fn a_chain_of_backing_files() {
    let place = Place::new();
    let base: Vec<u8> = (0..4 * MIB).map(|i| (i / 777) as u8).collect();
    fs::write(place.path("base.raw"), &base).unwrap();
    let create = |name: &str, backing: &str, format: &str, size: &str| {
        let path = place.text(name);
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, &path, size])
    };
    if create("middle.qcow2", "base.raw", "raw", "6M").is_none() {
        return;
    }
    create("top.qcow2", "middle.qcow2", "qcow2", "6M").unwrap();
    let mut copy = base.clone();
    copy.resize(6 * MIB as usize, 0);

    let middle = place.reopen("middle.qcow2");
    assert!(matches!(place.open("top.qcow2").unwrap_err().root(), OpenError::File(_)), "in use");
    middle.write(MIB - 100, &[0x11; 200]).unwrap();
    copy[MIB as usize - 100..][..200].fill(0x11);
    drop(middle);

    let top = place.reopen("top.qcow2");
    assert!(place.open("middle.qcow2").is_err(), "what others stand on is not written");
    assert!(whole(&top) == copy);
    top.write(5 * MIB, &[0x22; 1000]).unwrap();
    top.write(2 * MIB + 1, &[0x33; 3]).unwrap();
    top.write_zeroes(0, 300_000, true).unwrap();
    top.discard(3 * MIB, MIB).unwrap();
    copy[5 * MIB as usize..][..1000].fill(0x22);
    copy[2 * MIB as usize + 1..][..3].fill(0x33);
    copy[..300_000].fill(0);
    copy[3 * MIB as usize..4 * MIB as usize].fill(0);
    assert!(whole(&top) == copy, "a discard does not bring the backing file back");
    drop(top);
    place.check("top.qcow2");
    place.compare("top.qcow2", &copy);
    assert!(fs::read(place.path("base.raw")).unwrap() == base);
}

#[test]
fn compressed_images_and_snapshots() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..3 * MIB).map(|i| ((i / 5000) ^ (i % 7)) as u8).collect();
    fs::write(place.path("raw"), &bytes).unwrap();
    let (raw, packed) = (place.text("raw"), place.text("packed.qcow2"));
    if qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &packed]).is_none() {
        return;
    }
    let mut copy = bytes.clone();
    let disk = place.reopen("packed.qcow2");
    assert!(whole(&disk) == copy);
    for at in [5, 100_000, 1_000_000] {
        disk.write(at, b"overwritten").unwrap();
        copy[at as usize..][..11].copy_from_slice(b"overwritten");
    }
    drop(disk);
    place.check("packed.qcow2");
    place.compare("packed.qcow2", &copy);
    qemu_img(&["snapshot", "-c", "now", &packed]).unwrap();
    assert!(matches!(place.open("packed.qcow2"), Err(OpenError::Extras)));
    let options = Options { read_only: true, ..Options::default() };
    let path = place.path("packed.qcow2");
    let disk = reopen(|| ImageDisk::open(&path, Format::Qcow2, &options));
    assert!(whole(&disk) == copy);
}

#[test]
fn what_is_discarded_is_used_again() {
    let place = Place::new();
    if !place.create("disk.qcow2", "cluster_size=64k", 64) {
        return;
    }
    let disk = place.reopen("disk.qcow2");
    assert!(disk.shape().discard);
    for round in 0..8_u8 {
        disk.write(0, &vec![round; 8 * MIB as usize]).unwrap();
        disk.discard(0, 8 * MIB).unwrap();
        disk.flush().unwrap();
    }
    drop(disk);
    place.check("disk.qcow2");
    let length = fs::metadata(place.path("disk.qcow2")).unwrap().len();
    assert!(length < 20 * MIB, "{length}");
}

const CHILD: &str = "DISK_IMAGE_TEST_CHILD";

/// What a process does until it is killed: nothing is closed or dropped.
fn write_until_killed(path: &Path) -> ! {
    let disk = reopen(|| ImageDisk::open(path, Format::Qcow2, &Options::default()));
    let mut flushed = [0; 8];
    disk.read(0, &mut flushed).unwrap();
    for i in u64::from_le_bytes(flushed) + 1.. {
        let at = MIB + i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (60 * MIB);
        match i % 16 {
            5 => disk.discard(at, MIB).unwrap(),
            9 => {
                disk.write(0, &i.to_le_bytes()).unwrap();
                disk.flush().unwrap();
                println!("flushed {i}");
            }
            _ => disk.write(at, &vec![i as u8; 30_000]).unwrap(),
        }
        println!("did {i}");
    }
    unreachable!();
}

#[test]
fn an_image_is_repaired_whenever_its_user_died() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let place = Place::new();
    if !place.create("disk.qcow2", "cluster_size=4k,refcount_bits=8", 64) {
        return;
    }
    let mut flushed = 0;
    for acts in [3, 7, 20, 30, 90, 120, 400] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_image_is_repaired_whenever_its_user_died", "--nocapture"])
            .env(CHILD, place.path("disk.qcow2"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut did = 0;
        let mut said = String::new();
        while did < acts && out.read_line(&mut said).unwrap() != 0 {
            did += usize::from(said.contains("did "));
            if let Some(number) = said.trim().strip_prefix("flushed ") {
                flushed = number.parse().unwrap();
            }
            said.clear();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(did, acts, "it died early");

        let disk = place.reopen("disk.qcow2");
        let bytes = whole(&disk);
        let last = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(last >= flushed, "{last} is there, {flushed} was flushed");
        drop(disk);
        place.check("disk.qcow2");
        place.compare("disk.qcow2", &bytes);
    }
}

#[test]
fn an_image_says_that_it_is_in_use() {
    let place = Place::new();
    if !place.create("disk.qcow2", "cluster_size=64k", 64) {
        return;
    }
    let dirty = || fs::read(place.path("disk.qcow2")).unwrap()[79] & 1 != 0;
    let disk = place.reopen("disk.qcow2");
    disk.flush().unwrap();
    assert!(!dirty(), "nothing was written");
    disk.write(0, b"x").unwrap();
    assert!(dirty());
    disk.close().unwrap();
    assert!(!dirty());
    disk.discard(0, MIB).unwrap();
    disk.flush().unwrap();
    assert!(dirty());
    drop(disk);
    assert!(!dirty());
    place.check("disk.qcow2");
}
