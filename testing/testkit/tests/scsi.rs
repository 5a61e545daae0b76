//! The virtio SCSI adapter under a stock kernel's own drivers: disks and CD drives, and what is in the
//! host's files afterwards.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};
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
