//! A whole Debian with systemd on a qcow2 disk, made by Debian's own tools and cached.
//!
//! No privilege is needed: `mmdebstrap` installs the packages under `fakechroot`, `mke2fs` makes
//! the file system of the folder, `grub-mkimage` and `mtools` what firmware boots, `qemu-img` the
//! image. It starts from a kernel that is loaded, under a PC's BIOS and under UEFI.

use assets::Cache;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

mod script;

/// Raised when what is put into the image changes.
const RECIPE: u32 = 3;
/// Of root, in the image.
pub const PASSWORD: &str = "sarang";
const PACKAGES: &str = "systemd-sysv,udev,dbus,openssh-server,linux-image-cloud-amd64,\
                        initramfs-tools,iproute2,ca-certificates,cloud-init,stress-ng";
const TOOLS: [&str; 7] =
    ["mmdebstrap", "fakechroot", "fakeroot", "mke2fs", "qemu-img", "grub-mkimage", "mformat"];
/// The packages that hold them.
const NEEDED: &str = "mmdebstrap fakechroot fakeroot e2fsprogs qemu-utils grub-common \
                      grub-pc-bin grub-efi-amd64-bin mtools";
/// What GRUB is made of, for a BIOS and for UEFI.
const GRUB: [&str; 2] = ["/usr/lib/grub/i386-pc", "/usr/lib/grub/x86_64-efi"];
/// What each unit of the partition table's is worth.
const SECTOR: u64 = 512;
/// The disk; the root file system, behind the room for GRUB; the EFI system partition.
const DISK: u64 = 2 << 30;
const ROOT: (u64, u64) = (1 << 20, DISK - (33 << 20));
const ESP: (u64, u64) = (DISK - (32 << 20), 32 << 20);

/// The image, its kernel and its initrd, which are to be written by nobody.
#[derive(Clone, Debug)]
pub struct Debian {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
    /// `stress-ng` with its libraries, a tar archive: for guests that have another kernel than the
    /// disk has modules for.
    pub stress: PathBuf,
}

/// Debian 12, made if the cache has it not, which takes some minutes. `None`, with a line that
/// says so, when it cannot be had here; where the tests must be whole (`CI=true`), that is a
/// failure.
///
/// # Panics
/// With `CI=true` in the environment, when the image cannot be had.
pub fn debian() -> Option<Debian> {
    match find_or_make() {
        Ok(debian) => Some(debian),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "Debian's image: {why}");
            eprintln!("skipped: Debian's image cannot be had here: {why}");
            None
        }
    }
}

fn find_or_make() -> Result<Debian, String> {
    let cache = Cache::locate().map_err(|e| e.to_string())?;
    // Beside what users fetch, which this is not.
    let folder = cache.root().with_file_name("sarang-test").join(format!("debian-12-{RECIPE}"));
    let said = |e: io::Error| format!("{}: {e}", folder.display());
    fs::create_dir_all(&folder).map_err(said)?;
    // Tests that want it meanwhile wait for it.
    let lock = File::create(folder.join("lock")).map_err(said)?;
    lock.lock().map_err(said)?;
    let file = |name: &str| folder.join(name);
    let debian = Debian {
        kernel: file("vmlinuz"),
        initrd: file("initrd.img"),
        disk: file("disk.qcow2"),
        stress: file("stress.tar"),
    };
    if !file("complete").exists() {
        make(&folder)?;
        File::create(file("complete")).map_err(said)?;
    }
    Ok(debian)
}

fn make(folder: &Path) -> Result<(), String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    for tool in TOOLS {
        if !path.split(':').any(|folder| Path::new(folder).join(tool).exists()) {
            return Err(format!("there is no {tool}; apt-get install {NEEDED}"));
        }
    }
    if let Some(folder) = GRUB.iter().find(|folder| !Path::new(folder).is_dir()) {
        return Err(format!("there is no {folder}; apt-get install {NEEDED}"));
    }
    let run = |line: &[&str]| {
        // What is made below belongs to root inside the image only.
        let mut command = Command::new(line[0]);
        let out = command
            .args(&line[1..])
            .current_dir(folder)
            .env("PATH", &path)
            .env("TMPDIR", folder)
            .output();
        match out {
            Ok(out) if out.status.success() => Ok(()),
            Ok(out) => Err(format!("{}: {}", line[0], String::from_utf8_lossy(&out.stderr))),
            Err(error) => Err(format!("{}: {error}", line[0])),
        }
    };
    run(&[
        "mmdebstrap",
        "--mode=fakechroot",
        "--variant=important",
        &format!("--include={PACKAGES}"),
        "--aptopt=Acquire::Languages \"none\"",
        "bookworm",
        "root.tar",
    ])?;
    run(&["fakeroot", "sh", "-ec", &script::root()])?;
    run(&["sh", "-ec", script::stress()])?;
    run(&["sh", "-ec", &script::loaders()])?;
    partition(&folder.join("disk.raw")).map_err(|e| format!("disk.raw: {e}"))?;
    run(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"])?;
    for name in ["root.tar", "disk.raw"] {
        let _ = fs::remove_file(folder.join(name));
    }
    Ok(())
}

/// The table of a PC's BIOS, which OVMF reads too. The code before it is GRUB's.
fn partition(disk: &Path) -> io::Result<()> {
    let entry = |active: u8, kind: u8, (from, size): (u64, u64)| {
        let mut entry = [0; 16];
        (entry[0], entry[4]) = (active, kind);
        entry[8..12].copy_from_slice(&((from / SECTOR) as u32).to_le_bytes());
        entry[12..].copy_from_slice(&((size / SECTOR) as u32).to_le_bytes());
        entry
    };
    let disk = File::options().write(true).open(disk)?;
    disk.write_all_at(&entry(0x80, 0x83, ROOT), 446)?;
    disk.write_all_at(&entry(0, 0xef, ESP), 446 + 16)?;
    disk.write_all_at(&[0x55, 0xaa], 510)
}
