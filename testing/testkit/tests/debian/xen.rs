//! A whole Debian as a Xen PV guest, from nothing but its disk.

use crate::{common::*, stress::stress};
use std::net::TcpListener;
use testkit::{Error, Folder, Guest, Options, debian};

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
