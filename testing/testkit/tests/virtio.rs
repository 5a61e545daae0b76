//! virtio devices under a stock kernel's own drivers: disks, and what is in the host's file
//! afterwards; random bytes.

use std::{
    fs,
    path::{Path, PathBuf},
};
use testkit::{BOOT, COMMAND, Error, Guest, Options, guest_files, run, status};

const SIZE: usize = 8 << 20;

/// An image of this test's own, removed at its end.
struct Image(PathBuf);

impl Image {
    /// Of bytes that differ from block to block.
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}.img", std::process::id()));
        fs::write(&path, Self::contents()).unwrap();
        Self(path)
    }

    fn contents() -> Vec<u8> {
        let byte = |i: usize| (i / 512).wrapping_mul(31).wrapping_add(i) as u8;
        (0..SIZE).map(byte).collect()
    }

    fn option(&self, more: &str) -> String {
        format!("{}{more}", self.0.display())
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

fn here() -> bool {
    guest_files("linux-image-6.1.0-*-cloud-amd64").is_some()
}

/// A guest at its shell, with the disk's driver loaded.
fn boot(options: &Options, disks: &str) -> Result<Guest, Error> {
    let mut guest = Guest::boot(options)?;
    guest.shell()?;
    let line = format!("for d in {disks}; do until [ -b /dev/$d ]; do sleep 1; done; done");
    guest.command(&line, BOOT)?;
    Ok(guest)
}

/// The host's own word for the bytes.
fn sha256(path: &Path) -> String {
    let out = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn a_guest_reads_and_writes_its_disk() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let image = Image::new("writes");
    let options = Options::default().cpus(2).arg("--disk", &image.option(",serial=SARANG-1"));
    let mut guest = boot(&options, "vda")?;
    assert_eq!(guest.says("cat /sys/block/vda/size")?, (SIZE / 512).to_string());
    assert_eq!(guest.says("cat /sys/block/vda/serial")?, "SARANG-1");
    assert_eq!(guest.says("ls /sys/block/vda/mq | wc -l")?, "2", "a queue for each CPU");
    assert_eq!(guest.says("cat /sys/block/vda/queue/write_cache")?, "write back");
    let device = "cat /sys/bus/pci/devices/0000:00:01.0/device";
    assert_eq!(guest.says(device)?, "0x1042");
    assert!(guest.says("grep virtio /proc/interrupts")?.contains("req.0"), "by messages");
    let sum = guest.says("sha256sum < /dev/vda | cut -d ' ' -f 1")?;
    assert_eq!(sum, sha256(&image.0));

    // 1 MiB of noise at 4 MiB, a text inside a block, zeroes, and a hole.
    guest.says("dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2> /dev/null")?;
    guest.says("dd if=/tmp/noise of=/dev/vda bs=64k seek=64 conv=fsync 2> /dev/null")?;
    guest.says("echo inside | dd of=/dev/vda bs=1 seek=1000 conv=notrunc 2> /dev/null")?;
    guest.says("sync; blkdiscard -o 65536 -l 65536 /dev/vda")?;
    let noise = guest.says("sha256sum < /tmp/noise | cut -d ' ' -f 1")?;
    let all = guest.says("sync; sha256sum < /dev/vda | cut -d ' ' -f 1")?;
    guest.power_off()?;

    assert_eq!(sha256(&image.0), all, "the file is what the guest last saw");
    let (bytes, before) = (image.bytes(), Image::contents());
    assert_eq!((bytes.len(), &bytes[1000..1007]), (SIZE, &b"inside\n"[..]));
    assert_eq!(bytes[..1000], before[..1000]);
    assert!(bytes[1 << 16..1 << 17].iter().all(|b| *b == 0));
    assert_eq!(bytes[1 << 17..4 << 20], before[1 << 17..4 << 20]);
    assert_eq!(bytes[5 << 20..], before[5 << 20..]);
    let part = Image::new("noise");
    fs::write(&part.0, &bytes[4 << 20..5 << 20]).unwrap();
    assert_eq!(sha256(&part.0), noise);
    Ok(())
}

#[test]
fn two_disks_one_of_them_read_only() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let (first, second) = (Image::new("first"), Image::new("second"));
    let options = Options::default()
        .arg("--disk", &first.option(",readonly"))
        .arg("--disk", &second.option(",format=raw"));
    let mut guest = boot(&options, "vda vdb")?;
    assert_eq!(guest.says("cat /sys/block/vda/ro /sys/block/vdb/ro | tr -d '\\n'")?, "10");
    let (_, code) = guest.command("echo x > /dev/vda", COMMAND)?;
    assert_ne!(code, 0);
    guest.says("dd if=/dev/vda of=/dev/vdb bs=64k count=1 seek=1 conv=fsync 2> /dev/null")?;
    // A driver that goes and comes again resets the device.
    guest.says("cd /sys/bus/virtio/drivers/virtio_blk && echo virtio1 > unbind")?;
    guest.says("cd /sys/bus/virtio/drivers/virtio_blk && echo virtio1 > bind")?;
    guest.command("until [ -b /dev/vdb ]; do sleep 1; done", BOOT)?;
    guest.says("dd if=/dev/vdb of=/dev/vdb bs=64k count=1 seek=2 conv=fsync 2> /dev/null")?;
    guest.power_off()?;
    let (bytes, before) = (second.bytes(), Image::contents());
    assert_eq!(first.bytes(), before);
    assert_eq!(bytes[1 << 16..2 << 16], before[..1 << 16]);
    assert_eq!(bytes[2 << 16..3 << 16], before[..1 << 16]);
    assert_eq!(bytes[3 << 16..], before[3 << 16..]);
    Ok(())
}

#[test]
fn random_bytes() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default().flag("--rng"))?;
    guest.shell()?;
    let current = "/sys/class/misc/hw_random/rng_current";
    guest.command(&format!("until grep -q virtio_rng {current}; do sleep 1; done"), BOOT)?;
    let line = "dd if=/dev/hwrng bs=64 count=1 2> /dev/null | od -An -tx1 | tr -d ' \\n'";
    let (first, second) = (guest.says(line)?, guest.says(line)?);
    assert_eq!((first.len(), second.len()), (128, 128));
    assert!(first != second && first != "0".repeat(128), "{first}");
    guest.power_off()
}

/// Not on the PCI bus: Linux finds them by ACPI.
#[test]
fn devices_whose_registers_are_in_memory() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let (image, other) = (Image::new("mmio"), Image::new("mmio-scsi"));
    let options = Options::default()
        .cpus(2)
        .arg("--virtio", "mmio")
        .arg("--disk", &image.option(",serial=SARANG-1"))
        .arg("--disk", &other.option(",bus=scsi"))
        .flag("--rng")
        .flag("--balloon")
        .flag("--input");
    let mut guest = boot(&options, "vda sda")?;
    assert_eq!(guest.says("cat /sys/block/vda/serial")?, "SARANG-1");
    let place = guest.says("readlink -f /sys/block/vda/device")?;
    assert!(place.contains("/platform/LNRO0005:00/"), "{place}");
    // The two bridges.
    assert_eq!(guest.says("ls /sys/bus/pci/devices | wc -l")?, "2");
    let sum = guest.says("sha256sum < /dev/vda | cut -d ' ' -f 1")?;
    assert_eq!(sum, sha256(&image.0));
    assert_eq!(guest.says("grep -c IO-APIC.*virtio /proc/interrupts")?, "6");
    guest.says("dd if=/dev/vda of=/dev/sda bs=64k count=1 seek=1 conv=fsync 2> /dev/null")?;
    // Drivers that go and come again reset the devices.
    for (driver, device, node) in [("virtio_blk", "virtio0", "vda"), ("virtio_scsi", "*", "sda")] {
        let name = guest.says(&format!("cd /sys/bus/virtio/drivers/{driver}; ls -d virtio*"))?;
        assert!(device == "*" || name == device, "{name}");
        guest.says(&format!("echo {name} > unbind; echo {name} > bind"))?;
        guest.command(&format!("until [ -b /dev/{node} ]; do sleep 1; done"), BOOT)?;
    }
    guest.says("dd if=/dev/sda of=/dev/vda bs=64k count=2 seek=2 conv=fsync 2> /dev/null")?;
    let current = "/sys/class/misc/hw_random/rng_current";
    guest.command(&format!("until grep -q virtio_rng {current}; do sleep 1; done"), BOOT)?;
    let random = guest.says("dd if=/dev/hwrng bs=64 count=1 2> /dev/null | od -An -tx1")?;
    assert!(random.len() > 128, "{random}");
    let told = guest.monitor("stats")?;
    assert!(told.contains("virtio_blk at 0xfec10000"), "{told}");
    guest.power_off()?;
    let (bytes, before) = (image.bytes(), Image::contents());
    assert_eq!(other.bytes()[1 << 16..2 << 16], before[..1 << 16]);
    assert_eq!(bytes[2 << 16..3 << 16], before[..1 << 16]);
    assert_eq!(bytes[3 << 16..4 << 16], before[..1 << 16]);
    assert!(bytes[..2 << 16] == before[..2 << 16] && bytes[4 << 16..] == before[4 << 16..]);
    Ok(())
}

#[test]
fn a_disk_has_one_user() -> Result<(), Error> {
    let image = Image::new("locked");
    let file = fs::OpenOptions::new().read(true).write(true).open(&image.0).unwrap();
    file.lock().unwrap();
    let out = run(&["run", "--built-in", "--disk", &image.option("")], COMMAND)?;
    assert_eq!(out.status.code(), Some(status::BAD_ARGUMENTS));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("another program uses it"), "{said}");
    Ok(())
}
