//! What a user does on the first day.

use crate::common::*;
use std::{fs, net::TcpListener, path::Path, time::Duration};
use testkit::{COMMAND, Error, Folder, Guest, debian};

#[test]
fn the_first_day() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    let folder = Folder::new("debian");
    let (disk, base) = (folder.text("disk.qcow2"), debian.disk.to_string_lossy().into_owned());
    host(&["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &disk]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = options(&debian, Start::Bios)
        .cpus(4)
        .arg("--disk", &format!("{disk},backing={base}"))
        .arg("--net", &format!("user,forward=tcp:127.0.0.1:{port}-:22"));
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "cat /proc/1/comm")?, "systemd");
    assert_eq!(says(&mut guest, "findmnt -n -o SOURCE,FSTYPE /")?, "/dev/vda1 ext4");
    assert_eq!(says(&mut guest, "nproc")?, "4");
    says(&mut guest, "until ip -4 addr show eth0 | grep -q 10.0.2.15; do sleep 1; done")?;
    if mirror_is_reached() {
        says(&mut guest, "apt-get -q update")?;
        says(&mut guest, "apt-get -q install -y --no-install-recommends hello")?;
        assert_eq!(says(&mut guest, "hello")?, "Hello, world!");
    } else {
        eprintln!("skipped: apt: this host does not reach deb.debian.org");
    }

    let ssh = key(&mut guest, &folder, port)?;
    let ssh: Vec<&str> = ssh.iter().map(String::as_str).collect();
    let remote = |command: &str| host(&[&ssh[..], &[command]].concat());
    assert_eq!(remote("uname -n").trim(), "sarang");
    assert_eq!(remote("seq 200000"), (1..=200_000).map(|n| format!("{n}\n")).collect::<String>());

    // What was written is there after a reboot, and after the next start.
    says(&mut guest, "dd if=/dev/urandom of=/root/noise bs=1M count=20 2> /dev/null")?;
    let sum = says(&mut guest, "sha256sum < /root/noise")?;
    guest.send("reboot")?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "sha256sum < /root/noise")?, sum);
    assert_eq!(says(&mut guest, "systemctl --failed --no-legend | wc -l")?, "0");
    power_off(guest)?;
    check(&disk);
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "sha256sum < /root/noise")?, sum);
    power_off(guest)?;
    check(&disk);
    check(&base);
    Ok(())
}

#[test]
fn a_day_that_leaves_no_trace() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    let sum = || host(&["sha256sum", &debian.disk.to_string_lossy()]);
    let before = sum();
    let options =
        options(&debian, Start::Uefi).flag("--ephemeral").flag(&debian.disk.to_string_lossy());
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    says(&mut guest, "echo trace > /root/trace; sync; fstrim /")?;
    assert_eq!(says(&mut guest, "echo 3 > /proc/sys/vm/drop_caches; cat /root/trace")?, "trace");
    power_off(guest)?;
    assert_eq!(sum(), before);
    Ok(())
}

fn mirror_is_reached() -> bool {
    use std::net::{TcpStream, ToSocketAddrs};
    const LONGEST: Duration = Duration::from_secs(10);
    let addresses = "deb.debian.org:80".to_socket_addrs();
    addresses
        .is_ok_and(|mut found| found.any(|to| TcpStream::connect_timeout(&to, LONGEST).is_ok()))
}

#[test]
fn an_image_whose_user_was_killed_boots_again() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    let folder = Folder::new("killed");
    let (disk, base) = (folder.text("disk.qcow2"), debian.disk.to_string_lossy().into_owned());
    host(&["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &disk]);
    let options =
        options(&debian, Start::Kernel("")).arg("--disk", &format!("{disk},backing={base}"));
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    says(&mut guest, "echo kept > /root/kept; sync")?;
    guest.send("while true; do dd if=/dev/urandom of=/root/n bs=64k count=100 conv=fsync; done")?;
    guest.expect("copied", COMMAND)?;
    // Dropping kills the program.
    drop(guest);
    assert!(is_marked(Path::new(&disk)));
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "cat /root/kept")?, "kept");
    power_off(guest)?;
    assert!(!is_marked(Path::new(&disk)));
    check(&disk);
    Ok(())
}

/// The "dirty" bit of an image.
fn is_marked(image: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    fs::File::open(image).unwrap().read_exact_at(&mut byte, 79).unwrap();
    byte[0] & 1 != 0
}
