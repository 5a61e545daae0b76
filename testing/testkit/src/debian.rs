//! A whole Debian with systemd on a qcow2 disk, made by Debian's own tools and cached.
//!
//! No privilege is needed: `mmdebstrap` installs the packages under `fakechroot`, `mke2fs` makes
//! the file system of the folder, `qemu-img` the image.

use assets::Cache;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Raised when what is put into the image changes.
const RECIPE: u32 = 1;
/// Of root, in the image.
pub const PASSWORD: &str = "sarang";
/// What `openssl passwd -6 -salt sarang sarang` prints.
const HASH: &str = "$6$sarang$SmqEV49Zu4gq1ZjrbPf/jMt2E4CPNH.TsqlVJw4S4kZxowBXknoFTCyaR5EWqQVxypve8eer6XFIvj6J1jPQP/";
const PACKAGES: &str = "systemd-sysv,udev,dbus,openssh-server,linux-image-cloud-amd64,\
                        initramfs-tools,iproute2,ca-certificates";
const TOOLS: [&str; 5] = ["mmdebstrap", "fakechroot", "fakeroot", "mke2fs", "qemu-img"];
/// The disk, and where its one partition begins.
const DISK: u64 = 2 << 30;
const PARTITION: u64 = 1 << 20;

/// The image, its kernel and its initrd. The image is to be written by nobody.
#[derive(Clone, Debug)]
pub struct Debian {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
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
    let debian =
        Debian { kernel: file("vmlinuz"), initrd: file("initrd.img"), disk: file("disk.qcow2") };
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
            return Err(format!("there is no {tool}; apt-get install {}", TOOLS.join(" ")));
        }
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
    run(&["fakeroot", "sh", "-ec", &script()])?;
    partition(&folder.join("disk.raw")).map_err(|e| format!("disk.raw: {e}"))?;
    run(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"])?;
    for name in ["root.tar", "disk.raw"] {
        let _ = fs::remove_file(folder.join(name));
    }
    Ok(())
}

/// From the installed packages to the file system.
fn script() -> String {
    let blocks = (DISK - PARTITION) / 1024;
    format!(
        "rm -rf root; mkdir root; tar -C root -xpf root.tar
         sed -i 's#^root:[^:]*:#root:{HASH}:#' root/etc/shadow
         echo sarang > root/etc/hostname
         printf '127.0.0.1 localhost sarang\\n' > root/etc/hosts
         echo '/dev/vda1 / ext4 errors=remount-ro 0 1' > root/etc/fstab
         printf 'auto lo\\niface lo inet loopback\\nallow-hotplug eth0\\niface eth0 inet dhcp\\n' \
            > root/etc/network/interfaces
         cp root/boot/vmlinuz-* vmlinuz; cp root/boot/initrd.img-* initrd.img
         truncate -s {DISK} disk.raw
         mke2fs -q -F -t ext4 -L root -d root -E offset={PARTITION} disk.raw {blocks}k
         rm -rf root"
    )
}

/// One partition for Linux, in the table of a PC's BIOS.
fn partition(disk: &Path) -> io::Result<()> {
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&((PARTITION / 512) as u32).to_le_bytes());
    entry[12..].copy_from_slice(&(((DISK - PARTITION) / 512) as u32).to_le_bytes());
    let disk = File::options().write(true).open(disk)?;
    disk.write_all_at(&entry, 446)?;
    disk.write_all_at(&[0x55, 0xaa], 510)
}
