//! A whole Debian as a Xen PV guest, from nothing but its disk.

use crate::{common::*, stress::stress};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};
use testkit::{
    Error, Folder, Guest, KERNEL_6_1_FULL, KERNEL_6_12, Options, debian, guest_files, package_files,
};

#[test]
fn a_xen_pv_guest_from_its_own_disk() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    let folder = Folder::new("debian-xen");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = Options::default()
        .arg("--guest", "xen-pv")
        .arg("--memory", "1G")
        .timeout("2h")
        .cpus(4)
        .flag("--ephemeral")
        .flag(&debian.disk.to_string_lossy())
        .arg("--net", &format!("user,mac=52:54:00:12:34:56,forward=tcp:127.0.0.1:{port}-:22"));
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "cat /sys/hypervisor/type")?, "xen");
    assert_eq!(says(&mut guest, "systemd-detect-virt")?, "xen");
    assert_eq!(says(&mut guest, "tty")?, "/dev/hvc0");
    assert_eq!(says(&mut guest, "findmnt -n -o SOURCE,FSTYPE /")?, "/dev/xvda1 ext4");
    assert_eq!(says(&mut guest, "nproc")?, "4");
    assert_eq!(says(&mut guest, "cat /sys/class/net/eth0/address")?, "52:54:00:12:34:56");
    says(&mut guest, "until ip -4 addr show eth0 | grep -q 10.0.2.15; do sleep 1; done")?;
    stress(&mut guest, 4)?;
    let ssh = key(&mut guest, &folder, port)?;
    let ssh: Vec<&str> = ssh.iter().map(String::as_str).collect();
    let remote = |command: &str| host(&[&ssh[..], &[command]].concat());
    assert_eq!(remote("uname -n").trim(), "sarang");
    assert_eq!(remote("seq 200000"), (1..=200_000).map(|n| format!("{n}\n")).collect::<String>());

    // What was written is there after a reboot, which reads the kernel from the disk again.
    says(&mut guest, "dd if=/dev/urandom of=/root/noise bs=1M count=20 2> /dev/null; sync")?;
    let sum = says(&mut guest, "sha256sum < /root/noise")?;
    assert_eq!(says(&mut guest, "systemctl --failed --no-legend | wc -l")?, "0");
    guest.send("reboot")?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "sha256sum < /root/noise")?, sum);
    power_off(guest)
}

/// What a kernel for all PCs has as modules and a cloud's has not, in the order of their needs.
const MODULES: [&str; 5] = [
    "crypto/crc32c_generic.ko",
    "lib/crc16.ko",
    "fs/mbcache.ko",
    "fs/jbd2/jbd2.ko",
    "fs/ext4/ext4.ko",
];

/// The small guest's initrd for a kernel, and behind it another first process, which goes on from the
/// disk, whose own initrd and modules are of another kernel.
fn to_the_disk(folder: &Folder, guest: &assets::Guest, modules: &[PathBuf]) -> PathBuf {
    fs::create_dir(folder.path("more")).unwrap();
    let mut init = String::from(
        "#!/bin/sh
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
         modprobe -aq xen_blkfront xen_netfront\n",
    );
    for (index, module) in modules.iter().enumerate() {
        let name = format!("{index}.ko");
        fs::copy(module, folder.path(&format!("more/{name}"))).unwrap();
        init += &format!("insmod /{name}\n");
    }
    init += "until [ -b /dev/xvda1 ]; do sleep 0.1; done
             mount -o ro /dev/xvda1 /mnt && exec switch_root /mnt /sbin/init\n";
    fs::write(folder.path("more/init"), init).unwrap();
    let script = "cd \"$0\"; chmod 755 more/init
                  (cd more; ls | cpio --quiet -o -H newc) > more.cpio
                  cat \"$1\" more.cpio > initrd";
    let from = guest.initrd.display().to_string();
    host(&["sh", "-ec", script, &folder.root().display().to_string(), &from]);
    folder.path("initrd")
}

fn lives_by(pattern: &str, cpus: u32, memory: &str) -> Result<(), Error> {
    let (Some(debian), Some(files)) = (debian(), guest_files(pattern)) else { return Ok(()) };
    let release = &files.release;
    let modules = match pattern {
        KERNEL_6_1_FULL => {
            let paths = MODULES.map(|name| format!("/lib/modules/{release}/kernel/{name}"));
            let paths = paths.each_ref().map(String::as_str);
            let Some(there) = package_files(&files.package, paths) else { return Ok(()) };
            there.to_vec()
        }
        _ => Vec::new(),
    };
    let folder = Folder::new(&format!("debian-xen-{}-{cpus}-{memory}", pattern.len()));
    let disk = format!("{},format=qcow2", debian.disk.display());
    let options = Options::default()
        .arg("--guest", "xen-pv")
        .arg("--memory", memory)
        .timeout("2h")
        .cpus(cpus)
        .flag("--ephemeral")
        .arg("--disk", &disk)
        .kernel(Path::new(&files.kernel))
        .initrd(&to_the_disk(&folder, &files, &modules))
        .append("console=hvc0 net.ifnames=0")
        .arg("--net", "user");
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "uname -r; nproc")?, format!("{release}\n{cpus}"));
    assert_eq!(says(&mut guest, "findmnt -n -o SOURCE,FSTYPE /")?, "/dev/xvda1 ext4");
    says(&mut guest, "until ip -4 addr show eth0 | grep -q 10.0.2.15; do sleep 1; done")?;
    says(&mut guest, "ping -c 2 10.0.2.2")?;
    stress(&mut guest, cpus)?;
    power_off(guest)
}

/// One of the kernels that the disk has not, or with `SARANG_LONG` each, with one CPU and four.
#[test]
fn other_kernels_run_it_as_a_xen_pv_guest() -> Result<(), Error> {
    lives_by(KERNEL_6_12, 1, "512M")?;
    if std::env::var_os("SARANG_LONG").is_some() {
        lives_by(KERNEL_6_12, 4, "4G")?;
        lives_by(KERNEL_6_1_FULL, 1, "512M")?;
        lives_by(KERNEL_6_1_FULL, 4, "4G")?;
    }
    Ok(())
}
