//! The virtio SCSI adapter under a stock kernel's own drivers: disks and CD drives, and what is in the
//! host's files afterwards.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Guest, KERNEL_6_12, Options, guest_files};

const SIZE: usize = 16 << 20;

/// A file of this test's own, removed at its end.
struct Image(PathBuf);

impl Image {
    /// Of bytes that differ from block to block.
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}.img", std::process::id()));
        fs::write(&path, Self::contents()).unwrap();
        Self(path)
    }

    fn contents() -> Vec<u8> {
        (0..SIZE).map(|i| (i / 512).wrapping_mul(31).wrapping_add(i) as u8 | 1).collect()
    }

    fn option(&self, more: &str) -> String {
        format!("{},bus={more}", self.0.display())
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.0).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A guest at its shell, with the drivers' devices there.
fn boot(options: Options, devices: &str) -> Result<Guest, Error> {
    let mut guest = Guest::boot(&options.arg("--package", KERNEL_6_12))?;
    guest.shell()?;
    let line = format!("for d in {devices}; do until [ -b /dev/$d ]; do sleep 1; done; done");
    guest.command(&line, BOOT)?;
    Ok(guest)
}

/// The disks' own names, which the order of probing does not change.
fn name_of(guest: &mut Guest, address: &str) -> Result<String, Error> {
    guest.says(&format!("ls /sys/bus/scsi/devices/{address}/block"))
}

#[test]
fn disks_are_read_written_and_unmapped() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    let (first, second) = (Image::new("scsi-first"), Image::new("scsi-second"));
    let options = Options::default()
        .cpus(2)
        .arg("--disk", &first.option("scsi,serial=SARANG-1"))
        .arg("--disk", &second.option("scsi,readonly"));
    let mut guest = boot(options, "sda sdb")?;
    let disk = name_of(&mut guest, "*:0:0:0")?;
    let other = name_of(&mut guest, "*:0:0:1")?;
    let sys = format!("/sys/block/{disk}");
    for (file, value) in [
        ("size", (SIZE / 512).to_string()),
        ("device/vendor", "SARANG".into()),
        ("device/model", "HARDDISK".into()),
        ("device/scsi_level", "6".into()),
        ("queue/write_cache", "write back".into()),
        ("queue/rotational", "0".into()),
        ("queue/discard_max_bytes", (1u64 << 30).to_string()),
        ("device/scsi_disk/*/provisioning_mode", "unmap".into()),
        ("device/scsi_disk/*/thin_provisioning", "1".into()),
    ] {
        assert_eq!(guest.says(&format!("cat {sys}/{file}"))?, value, "{file}");
    }
    let serial = guest.says(&format!("tail -c +5 {sys}/device/vpd_pg80"))?;
    assert_eq!(serial, "SARANG-1");
    let id = guest.says(&format!("cat {sys}/device/wwid"))?;
    assert!(id.starts_with("t10.SARANG") && id.ends_with("SARANG-1"), "{id}");
    assert_eq!(guest.says(&format!("ls {sys}/mq | wc -l"))?, "2", "a queue for each CPU");
    assert_eq!(guest.says(&format!("cat /sys/block/{other}/ro"))?, "1");
    // Reads and writes, through both.
    let copy = format!("dd if=/dev/{other} of=/dev/{disk} bs=1M count=2 seek=4 conv=fsync 2>&1");
    guest.says(&copy)?;
    let (_, code) = guest.command(&format!("echo x > /dev/{other}"), COMMAND)?;
    assert_ne!(code, 0, "read-only");
    // Blocks that are given back.
    guest.says(&format!("blkdiscard -o 8388608 -l 4194304 /dev/{disk}"))?;
    // The cache can be switched off, and resets reach the unit.
    let cache = format!("{sys}/device/scsi_disk/*/cache_type");
    guest.says(&format!("for c in {cache}; do echo write through > $c; done"))?;
    assert_eq!(guest.says(&format!("cat {sys}/queue/write_cache"))?, "write through");
    guest.says(&format!("dd if=/dev/zero of=/dev/{disk} bs=64k count=1 conv=fsync 2>&1"))?;
    // A unit that is removed comes back by a scan of its host.
    guest.says(&format!("echo 1 > {sys}/device/delete"))?;
    guest.says("for h in /sys/class/scsi_host/host*; do echo - - - > $h/scan; done")?;
    guest.command("until ls /sys/bus/scsi/devices/*:0:0:0/block; do sleep 1; done", BOOT)?;
    guest.power_off()?;
    let (bytes, before) = (first.bytes(), Image::contents());
    let same = |from: usize, to: usize| assert!(bytes[from..to] == before[from..to], "{from}");
    assert!(bytes[..64 << 10].iter().all(|byte| *byte == 0));
    same(64 << 10, 4 << 20);
    assert!(bytes[4 << 20..6 << 20] == before[..2 << 20]);
    same(6 << 20, 8 << 20);
    assert!(bytes[8 << 20..12 << 20].iter().all(|byte| *byte == 0), "a hole reads as zeroes");
    same(12 << 20, SIZE);
    let allocated = fs::metadata(&first.0).unwrap().blocks() * 512;
    assert!(
        allocated <= (SIZE - (4 << 20)) as u64,
        "{allocated} bytes after 4 MiB were given back"
    );
    assert_eq!(second.bytes(), before);
    Ok(())
}

#[test]
fn a_cd_drive_and_many_units() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    let disc = Image::new("scsi-disc");
    let disks: Vec<Image> = (0..8).map(|n| Image::new(&format!("scsi-{n}"))).collect();
    let mut options = Options::default().arg("--disk", &disc.option("scsi-cd"));
    for disk in &disks {
        options = options.arg("--disk", &disk.option("scsi,ephemeral"));
    }
    let mut guest = boot(options, "sr0 sda sdh")?;
    // Eight units to a target, the drive among them.
    let all = guest.says("cd /sys/bus/scsi/devices; ls -d [0-9]*:*")?;
    let tails: Vec<&str> =
        all.split_whitespace().filter_map(|a| a.split_once(':')).map(|a| a.1).collect();
    let wanted: Vec<String> =
        (0..8).map(|lun| format!("0:0:{lun}")).chain(["0:1:0".to_owned()]).collect();
    assert_eq!(tails, wanted);
    assert_eq!(guest.says("cat /sys/bus/scsi/devices/*:0:0:0/type")?, "5");
    assert_eq!(guest.says("cat /sys/block/sr0/size")?, (SIZE / 512).to_string());
    let host = std::process::Command::new("sha256sum").arg(&disc.0).output().unwrap();
    let host = String::from_utf8_lossy(&host.stdout).split_whitespace().next().unwrap().to_owned();
    let sum = guest.says("sha256sum < /dev/sr0")?;
    assert_eq!(sum.split_whitespace().next(), Some(&*host));
    let (_, code) = guest.command("echo x > /dev/sr0", COMMAND)?;
    assert_ne!(code, 0, "a CD is not written");
    guest.power_off()
}

/// Waits until the guest has a block device, or has it no longer.
fn until(guest: &mut Guest, device: &str, there: bool) -> Result<(), Error> {
    let not = if there { "" } else { "! " };
    guest.command(&format!("until {not}[ -b /dev/{device} ]; do sleep 1; done"), BOOT)?;
    Ok(())
}

fn wait_for(mut done: impl FnMut() -> Result<bool, Error>, what: &str) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !done()? {
        assert!(Instant::now() < limit, "{what}");
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[test]
fn units_come_and_go() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    let (first, second) = (Image::new("scsi-there"), Image::new("scsi-plugged"));
    let options = Options::default().cpus(2).arg("--disk", &first.option("scsi"));
    let mut guest = boot(options, "sda")?;
    guest.says("modprobe sr_mod")?;
    for round in 1..=2 {
        let add = format!("device add disk {},serial=ROUND-{round}", second.option("scsi"));
        let answer = guest.monitor(&add)?;
        assert!(answer.contains("unit 0:1 of the SCSI adapter"), "{answer}");
        assert!(guest.monitor(&add)?.contains("another program uses it"));
        until(&mut guest, "sdb", true)?;
        assert_eq!(name_of(&mut guest, "*:0:0:1")?, "sdb");
        let serial = guest.says("tail -c +5 /sys/block/sdb/device/vpd_pg80")?;
        assert_eq!(serial, format!("ROUND-{round}"));
        let write = "dd of=/dev/sdb bs=512 conv=fsync,notrunc 2> /dev/null";
        guest.says(&format!("echo round {round} | {write} seek={round}"))?;
        let list = guest.monitor("device list")?;
        assert!(list.contains("unit 0:0  from the start"), "{list}");
        assert!(list.contains(&format!("unit 0:1  disk {}", second.0.display())), "{list}");
        assert!(guest.monitor("device remove 0:1")?.contains("removed"));
        assert!(guest.monitor("device remove 0:1")?.contains("no unit 0:1"));
        until(&mut guest, "sdb", false)?;
        assert_eq!(second.bytes()[512 * round..][..8], *format!("round {round}\n").as_bytes());
    }
    // A CD drive in the same place, and the disk that was there from the start goes.
    let answer = guest.monitor(&format!("device add disk {}", second.option("scsi-cd")))?;
    assert!(answer.contains("unit 0:1 "), "{answer}");
    until(&mut guest, "sr0", true)?;
    assert_eq!(guest.says("cat /sys/bus/scsi/devices/*:0:0:1/type")?, "5");
    assert_eq!(
        guest.says("dd if=/dev/sr0 bs=512 skip=2 count=1 2> /dev/null | head -n 1")?,
        "round 2"
    );
    // Another disc, once the guest does not use the drive: it hears of it by an event.
    guest.says("exec 7< /dev/sr0")?;
    let third = Image::new("scsi-disc");
    fs::write(&third.0, b"another disc\n".repeat(512)).unwrap();
    let change = format!("device change 0:1 {}", third.0.display());
    assert!(guest.monitor(&change)?.contains("the guest has locked the drive"));
    guest.says("exec 7<&-")?;
    assert!(guest.monitor(&change)?.contains("the disc is in the drive 0:1"));
    assert_eq!(guest.says("head -n 1 /dev/sr0")?, "another disc");
    assert_eq!(guest.says("cat /sys/block/sr0/size")?, "16");
    assert!(guest.monitor("device eject 0:1")?.contains("the drive 0:1 is empty"));
    let (text, code) = guest.command("cat /dev/sr0 2>&1", COMMAND)?;
    assert!(code != 0 && text.contains("No medium"), "{text}");
    assert!(guest.monitor("device list")?.contains("unit 0:1  CD drive without a disc"));
    assert!(guest.monitor("device eject 0:0")?.contains("no CD drive"));
    assert!(guest.monitor("device remove 0:0")?.contains("removed"));
    until(&mut guest, "sda", false)?;
    assert!(guest.monitor("device remove 0:1")?.contains("removed"));
    until(&mut guest, "sr0", false)?;
    guest.power_off()
}

#[test]
fn an_adapter_comes_and_goes() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    let image = Image::new("scsi-behind");
    let add = format!("device add disk {}", image.option("scsi"));
    let mut guest = boot(Options::default().arg("--ports", "1"), "")?;
    guest.says("modprobe virtio_scsi && modprobe sd_mod")?;
    assert!(guest.monitor(&add)?.contains("`device add scsi`"));
    assert!(guest.monitor("device add scsi")?.contains("behind port 0"));
    assert!(guest.monitor("device add scsi")?.contains("no port that is free"));
    assert!(guest.monitor(&add)?.contains("unit 0:0 "));
    until(&mut guest, "sda", true)?;
    guest.says("dd if=/dev/zero of=/dev/sda bs=4096 count=1 conv=fsync 2>&1")?;
    assert!(image.bytes()[..4096].iter().all(|byte| *byte == 0));
    // The adapter goes with what is on it.
    assert!(guest.monitor("device remove 0")?.contains("asked"));
    until(&mut guest, "sda", false)?;
    let mut list = || guest.monitor("device list");
    wait_for(|| Ok(list()?.contains("port 0  empty")), "the guest lets go of the adapter")?;
    assert!(!list()?.contains("unit"));
    assert!(guest.monitor(&add)?.contains("`device add scsi`"));
    // Sockets in its place, which are refused where there are some.
    let path = std::env::temp_dir().join(format!("sarang-plugged-vsock-{}", std::process::id()));
    let vsock = format!("device add vsock {}", path.display());
    assert!(guest.monitor(&vsock)?.contains("behind port 0"));
    assert!(path.exists());
    guest.says("modprobe vmw_vsock_virtio_transport")?;
    let bound = "ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport | grep -q virtio";
    guest.command(&format!("until {bound}; do sleep 1; done"), BOOT)?;
    assert!(guest.monitor("device remove 0")?.contains("asked"));
    wait_for(|| Ok(!path.exists()), "the socket goes with the device")?;
    for (kind, advice) in [("input", "keyboard or tablet"), ("memory", "max=SIZE"), ("x", "vsock")]
    {
        let answer = guest.monitor(&format!("device add {kind}"))?;
        assert!(answer.contains(advice), "{answer}");
    }
    guest.power_off()
}
