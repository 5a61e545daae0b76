//! A stock kernel as a Xen PV guest under engine kvm, with a small ring 0 of ours beneath it. This needs
//! no VT-x: a KVM that does the work of ring 0 in software is enough.

use std::fs;
use testkit::{BOOT, Error, Folder, Guest, KERNEL_6_12, Options, guest_files, serve};

/// `seq 1 2000 | sha256sum`
const SUM: &str = "6251e5743b6fd6a7d606130bdf7c15077ce85ebd3a0fdee284d15a46df199e38";

/// Programs keep to the registers that their kernel saves: a KVM that leaves ring 3 to the processor
/// shows them the host's XCR0, and tells them of AVX-512 whatever it was told. The kernel starts none
/// itself, since they would not have this in their environment.
const REGISTERS: &str =
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL sysctl.kernel.modprobe=/none";

fn can_run() -> bool {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: engine kvm, /dev/kvm: {error}");
            false
        }
    }
}

fn works(options: Options, name: &str) -> Result<(), Error> {
    let folder = Folder::new(&format!("xen-kvm-{name}"));
    let disk = folder.text("disk.raw");
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let options = options
        .engine("kvm")
        .flag("--force-kvm")
        .arg("--guest", "xen-pv")
        .arg("--cpu-model", "host")
        .arg("--disk", &disk)
        .arg("--net", "user,loopback")
        .append(REGISTERS);
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    assert_eq!(guest.says("cat /sys/hypervisor/type")?, "xen");
    assert!(guest.says("seq 1 2000 | sha256sum")?.starts_with(SUM));
    guest.says("for i in 1 2 3 4 5 6 7 8; do ls -lR /etc | sha256sum; done > /tmp/sums")?;
    assert_eq!(guest.says("sort -u /tmp/sums | wc -l")?, "1");
    guest.command(
        "modprobe -a xen_blkfront xen_netfront; until [ -b /dev/xvda ]; do sleep 1; done",
        BOOT,
    )?;
    guest.says(
        "(echo written; head -c 1048576 /dev/zero) | dd of=/dev/xvda bs=64k conv=fsync 2>&-",
    )?;
    guest.says("echo 3 > /proc/sys/vm/drop_caches")?;
    assert_eq!(guest.says("head -1 /dev/xvda")?, "written");
    guest.says("until ip link set eth0 up; do sleep 1; done; ip addr add 10.0.2.15/24 dev eth0")?;
    assert_eq!(
        guest.says(&format!("nc 10.0.2.2 {} < /dev/null", serve("from outside\n")))?,
        "from outside"
    );
    let dmesg = guest.says("dmesg")?;
    assert!(dmesg.contains("kernel on Xen"), "{dmesg}");
    // Before, the kernel has started programs itself.
    let programs = dmesg.split("Run /init").last().unwrap_or_default();
    for (text, bad) in [
        (&*dmesg, "WARNING: CPU"),
        (&dmesg, "BUG:"),
        (&dmesg, "Call Trace"),
        (programs, "segfault"),
        (programs, "general protection"),
    ] {
        assert!(!text.contains(bad), "{bad}: {dmesg}");
    }
    guest.power_off()?;
    assert!(fs::read(&disk).unwrap().starts_with(b"written\n\0\0"));
    Ok(())
}

#[test]
fn debian_6_1() -> Result<(), Error> {
    if !can_run() || guest_files("linux-image-6.1.0-*-cloud-amd64").is_none() {
        return Ok(());
    }
    works(Options::default().cpus(2), "6.1")
}

#[test]
fn debian_6_12() -> Result<(), Error> {
    if !can_run() || guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    works(Options::default().arg("--package", KERNEL_6_12), "6.12")
}
