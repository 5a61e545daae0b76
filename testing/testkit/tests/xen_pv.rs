//! Stock kernels as Xen PV guests, of the program that users run: `--guest xen-pv`.

use std::{
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Folder, Guest, KERNEL_6_12, Options, guest_files};

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";

fn domain() -> Options {
    Options::default().arg("--guest", "xen-pv")
}

fn until(
    guest: &mut Guest,
    what: &str,
    done: impl Fn(&mut Guest) -> Result<bool, Error>,
) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !done(guest)? {
        assert!(Instant::now() < limit, "{what}: {}", guest.said());
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// KiB of memory that the kernel has.
fn total(guest: &mut Guest) -> Result<u64, Error> {
    let text = guest.says("grep MemTotal /proc/meminfo")?;
    Ok(text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// Boots, looks around, works, and does what the monitor asks of its kernel.
fn lives(options: Options, cpus: u32) -> Result<(), Error> {
    let mut guest = Guest::boot(&options.cpus(cpus))?;
    guest.shell()?;
    let dmesg = guest.says("dmesg | grep -i xen")?;
    assert!(dmesg.contains("Booting kernel on Xen") && dmesg.contains("Xen PV"), "{dmesg}");
    assert!(guest.says("dmesg | grep xen:events")?.contains("Using FIFO-based ABI"));
    assert_eq!(guest.says("nproc")?.trim(), cpus.to_string());
    assert_eq!(guest.says("cat /sys/hypervisor/type")?.trim(), "xen");
    // It takes no measures against leaks that there are not here.
    let flaws = "cd /sys/devices/system/cpu/vulnerabilities && cat spectre_v2 mds retbleed";
    let told = guest.says(flaws)?;
    assert!(told.contains("Enhanced") && told.contains("Not affected"), "{told}");
    assert!(!told.contains("Retpoline") && !told.contains("Vulnerable"), "{told}");
    // Every CPU comes to the same result.
    let sum = guest.says("for i in 1 2 3 4; do seq 1 20000 | sha256sum & done; wait")?;
    let sums: Vec<&str> = sum.lines().filter(|line| line.len() > 64).collect();
    assert_eq!(sums.len(), 4, "{sum}");
    assert!(sums.iter().all(|line| *line == sums[0]), "{sum}");

    // Memory goes back and comes again.
    let all = total(&mut guest)?;
    assert!(guest.monitor("balloon 300M")?.contains("asked"));
    until(&mut guest, "memory goes", |guest| {
        Ok(guest.monitor("info balloon")?.contains("given by the guest           212 MiB"))
    })?;
    assert!(total(&mut guest)? < all - (200 << 10));
    guest.monitor("balloon 512M")?;
    until(&mut guest, "memory comes", |guest| {
        Ok(guest.monitor("info balloon")?.contains("given by the guest             0 MiB"))
    })?;
    assert_eq!(total(&mut guest)?, all);

    // The operator's reset: a second life, of the same console.
    guest.says("touch /root/first-life")?;
    guest.monitor("reset")?;
    guest.expect("Run /init", BOOT)?;
    guest.shell()?;
    assert!(guest.says("ls /root")?.trim().is_empty());
    // The kernel's own.
    guest.send("reboot -f")?;
    guest.expect("Run /init", BOOT)?;
    guest.shell()?;
    assert_eq!(guest.says("nproc")?.trim(), cpus.to_string());
    guest.power_off()
}

#[test]
fn a_domain_lives() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    lives(domain(), 1)
}

#[test]
fn a_domain_of_a_newer_kernel_lives_with_four_cpus() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    lives(domain().arg("--package", KERNEL_6_12), 4)
}

#[test]
fn the_power_button_reaches_the_kernel() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&domain().cpus(2))?;
    guest.shell()?;
    guest.monitor("powerdown")?;
    let finished = guest.finish(COMMAND)?;
    assert_eq!(finished.status, Some(0), "{finished:?}");
    Ok(())
}

#[test]
fn cpus_come_and_go() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&domain().arg("--cpus", "1,max=3"))?;
    guest.shell()?;
    for _ in 0..2 {
        until(&mut guest, "one CPU", |guest| Ok(guest.says("nproc")?.trim() == "1"))?;
        guest.monitor("cpu 3")?;
        // What udev does in a distribution.
        let files = "/sys/devices/system/cpu/cpu[12]/online";
        until(&mut guest, "CPUs come", |guest| {
            Ok(guest.says(&format!("ls {files} | wc -l"))?.trim() == "2")
        })?;
        guest.says(&format!("for file in {files}; do echo 1 > $file; done"))?;
        until(&mut guest, "three CPUs", |guest| Ok(guest.says("nproc")?.trim() == "3"))?;
        assert!(guest.monitor("info cpus")?.contains("3 CPUs of 3"));
        guest.says("taskset -c 2 sh -c 'seq 1 10000 | sha256sum'")?;
        guest.monitor("cpu 1")?;
    }
    until(&mut guest, "one CPU", |guest| Ok(guest.monitor("info cpus")?.contains("1 CPUs of 3")))?;
    guest.power_off()
}

#[test]
fn pvh_is_another_way_in() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default().arg("--guest", "pvh"))?;
    guest.shell()?;
    let info = guest.monitor("info")?;
    assert!(info.contains("PVH"), "{info}");
    guest.power_off()
}

/// An empty file of so many MiB, removed at its end.
fn image(folder: &Folder, mib: u64) -> String {
    let path = folder.text("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

#[test]
fn disks_and_cards_come_and_go() -> Result<(), Error> {
    come_and_go("1")
}

#[test]
fn disks_and_cards_come_and_go_by_grants_of_version_2() -> Result<(), Error> {
    come_and_go("2")
}

fn come_and_go(version: &str) -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let folder = Folder::new(&format!("xen-plug-{version}"));
    let disk = image(&folder, 16);
    let append = format!("grant_table.version={version}");
    let options = domain().cpus(2).arg("--net", "user").arg("--append", &append);
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    let layout = format!("using version {version} layout");
    assert!(guest.says("dmesg | grep xen:grant_table")?.contains(&layout));
    guest.says("modprobe -a xen_blkfront xen_netfront")?;
    assert!(guest.monitor("device list")?.contains("vif/0  from the start"));
    for round in 0..3 {
        let added = guest.monitor(&format!("device add disk {disk}"))?;
        assert!(added.contains("vbd/51712"), "{added}");
        until(&mut guest, "a disk comes", |guest| {
            Ok(guest.says("test -b /dev/xvda && echo there; true")?.contains("there"))
        })?;
        guest.says(&format!(
            "(echo round-{round}; head -c 4194304 /dev/zero) | dd of=/dev/xvda bs=64k conv=fsync 2>&-"
        ))?;
        guest.monitor("device remove vbd/51712")?;
        until(&mut guest, "the disk goes", |guest| {
            Ok(!guest.monitor("device list")?.contains("vbd"))
        })?;
        assert!(guest.says("ls /dev/xvd* 2>&1; true")?.contains("No such file"));
        let bytes = std::fs::read(&disk).unwrap();
        assert!(bytes.starts_with(format!("round-{round}\n\0\0").as_bytes()));
    }
    let added = guest.monitor("device add net user")?;
    assert!(added.contains("vif/1"), "{added}");
    until(&mut guest, "a card comes", |guest| {
        Ok(guest.says("ls /sys/class/net")?.contains("eth1"))
    })?;
    guest.monitor("device remove vif/1")?;
    until(&mut guest, "the card goes", |guest| {
        Ok(!guest.says("ls /sys/class/net")?.contains("eth1"))
    })?;
    let refused = guest.monitor("device add rng")?;
    assert!(refused.contains("disks and network cards only"), "{refused}");
    guest.power_off()
}
