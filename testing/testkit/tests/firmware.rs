//! Stock firmware of Debian's packages boots GRUB from a disk, and GRUB a stock kernel.

use std::{fs, path::PathBuf, process::Command};
use testkit::{
    BOOT, COMMAND, Error, Guest, KERNEL_6_12, Options, guest_files, left_out, on_this_host,
};

const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// What GRUB does; `console=` is what `sarang` itself would add.
const MENU: &str = "\
serial --unit=0
terminal_input serial
terminal_output serial
set timeout=0
menuentry stock {
  linux /boot/vmlinuz console=ttyS0 sarang.winsize=24x1000 sarang.term=dumb
  initrd /boot/initrd
}
";

/// An image that both kinds of firmware boot, as a disk and as a CD. Removed at its end.
struct Image(PathBuf);

impl Image {
    /// `None`, with a line that says so, where its parts cannot be had.
    fn new(name: &str) -> Option<Self> {
        Self::with(name, "linux-image-6.1.0-*-cloud-amd64")
    }

    /// With the kernel of this package.
    fn with(name: &str, kernel: &str) -> Option<Self> {
        let guest = guest_files(kernel)?;
        let temporary = std::env::temp_dir().join(format!("sarang-{name}-{}", std::process::id()));
        let boot = temporary.join("boot");
        fs::create_dir_all(boot.join("grub")).unwrap();
        fs::copy(&guest.kernel, boot.join("vmlinuz")).unwrap();
        fs::copy(&guest.initrd, boot.join("initrd")).unwrap();
        fs::write(boot.join("grub/grub.cfg"), MENU).unwrap();
        let image = temporary.with_extension("iso");
        let made = Command::new("grub-mkrescue").arg("-o").args([&image, &temporary]).output();
        fs::remove_dir_all(&temporary).unwrap();
        match made {
            Ok(out) if out.status.success() => Some(Self(image)),
            other => {
                left_out(&format!("grub-mkrescue (grub-pc-bin, xorriso, mtools): {other:?}"));
                None
            }
        }
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn seabios_boots_a_kernel_from_a_disk_and_again_after_a_reset() -> Result<(), Error> {
    if !on_this_host(&[SEABIOS]) {
        return Ok(());
    }
    let Some(image) = Image::new("bios") else { return Ok(()) };
    let log = image.0.with_extension("log");
    let options = Options::default()
        .arg("--cpus", "2,max=4")
        .arg("--firmware", &format!("bios,log={}", log.display()))
        .arg("--disk", &format!("{},readonly", image.path()));
    let mut guest = Guest::boot(&options)?;
    guest.expect("SeaBIOS (version", BOOT)?;
    guest.shell()?;
    // Tables that SeaBIOS placed, by our own description.
    assert_eq!(
        guest.says("cat /sys/firmware/acpi/tables/FACP | head -c 16 | tail -c 6")?,
        "SARANG"
    );
    assert_eq!(guest.says("grep -c ^processor /proc/cpuinfo")?, "2");
    let more = guest.monitor("cpu 3")?;
    assert!(more.contains("has 3 CPUs") && !more.contains("not answered"), "{more}");
    guest.says("echo 1 > /sys/devices/system/cpu/cpu2/online")?;
    assert_eq!(guest.says("nproc")?, "3");
    let bridges =
        "cd /sys/bus/pci/devices; cat 0000:00:00.0/device 0000:00:1f.0/device | tr '\\n' ' '";
    assert_eq!(guest.says(bridges)?, "0x29c0 0x2918");
    let trouble = "dmesg | grep -i -e 'fw bug' -e 'firmware bug' -e conflict -e 'failed to assign'";
    assert_eq!(guest.command(trouble, COMMAND)?.0.trim(), "");
    guest.send("reboot -f")?;
    guest.expect("SeaBIOS (version", BOOT)?;
    guest.shell()?;
    assert_eq!(guest.says("cat /sys/devices/system/cpu/present")?, "0-1");
    guest.power_off()?;
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    assert!(text.contains("found virtio-blk at") && text.contains("Found 2 cpu(s)"), "{text}");
    Ok(())
}

#[test]
fn ovmf_boots_a_kernel_from_a_disk_and_keeps_its_variables() -> Result<(), Error> {
    if !on_this_host(&[OVMF]) {
        return Ok(());
    }
    let Some(image) = Image::new("uefi") else { return Ok(()) };
    let variables = image.0.with_extension("vars");
    let options = Options::default()
        .arg("--cpus", "1,max=3")
        .arg("--firmware", &format!("uefi,vars={}", variables.display()))
        .arg("--disk", &format!("{},readonly", image.path()));
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    let found = "dmesg | grep -c -e 'efi: EFI v2' -e 'ACPI: FACP.*SARANG'";
    assert_eq!(guest.says(found)?, "2");
    let more = guest.monitor("cpu 2")?;
    assert!(more.contains("has 2 CPUs") && !more.contains("not answered"), "{more}");
    guest.says("echo 1 > /sys/devices/system/cpu/cpu1/online")?;
    assert_eq!(guest.says("nproc")?, "2");
    guest.power_off()?;
    let template = fs::read(OVMF.replace("CODE", "VARS")).unwrap();
    let kept = fs::read(&variables).unwrap();
    fs::remove_file(&variables).unwrap();
    assert!(kept.len() == template.len() && kept != template, "what OVMF set is in the file");
    Ok(())
}

#[test]
fn ovmf_boots_a_kernel_from_a_cd() -> Result<(), Error> {
    if !on_this_host(&[OVMF]) {
        return Ok(());
    }
    let Some(image) = Image::new("uefi-cd") else { return Ok(()) };
    let options = Options::default().arg("--firmware", "uefi").arg("--cdrom", &image.path());
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    assert_eq!(guest.says("ls -d /sys/firmware/efi")?, "/sys/firmware/efi");
    guest.power_off()
}

#[test]
fn a_cd_boots_and_linux_reads_it_and_a_sata_disk() -> Result<(), Error> {
    if !on_this_host(&[SEABIOS]) {
        return Ok(());
    }
    // Debian's 6.1 cloud kernel has no driver for the adapter.
    let Some(image) = Image::with("cd", KERNEL_6_12) else { return Ok(()) };
    let disk = image.0.with_extension("disk");
    fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let options = Options::default()
        .arg("--firmware", "bios")
        .arg("--disk", &format!("{},bus=sata,serial=SATA-1", disk.display()))
        .arg("--cdrom", &image.path());
    let mut guest = Guest::boot(&options)?;
    // The disk comes first, and has nothing to boot from.
    guest.expect("Booting from Hard Disk", BOOT)?;
    guest.expect("Booting from DVD/CD", BOOT)?;
    guest.shell()?;
    guest.says("modprobe -a ahci sd_mod sr_mod")?;
    guest.says("until [ -b /dev/sda ] && [ -b /dev/sr0 ]; do sleep 1; done")?;
    let found = "dmesg | grep -c -e 'ATA-8.*SARANG HARDDISK' -e 'ATAPI: SARANG CD-ROM'";
    assert_eq!(guest.says(found)?, "2");
    assert_eq!(guest.says("dmesg | grep -c 'ata1.00:.* NCQ (depth 32)'")?, "1");
    assert_eq!(guest.says("cat /sys/block/sda/device/queue_depth")?, "32");
    assert_eq!(guest.says("grep -c 'MSI.*ahci' /proc/interrupts")?, "1");
    let cd = fs::metadata(&image.0).unwrap().len();
    let sum = guest.says(&format!("head -c {cd} /dev/sr0 | sha256sum"))?;
    let out = Command::new("sha256sum").arg(&image.0).output().unwrap();
    assert_eq!(sum.get(..64), String::from_utf8_lossy(&out.stdout).get(..64), "the CD's bytes");
    guest.says("dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2> /dev/null")?;
    guest.says("dd if=/tmp/noise of=/dev/sda bs=48k seek=1 conv=fsync 2> /dev/null")?;
    guest.says("echo 3 > /proc/sys/vm/drop_caches")?;
    guest.says("tail -c +49153 /dev/sda | head -c 4194304 | cmp - /tmp/noise")?;
    // Many commands at once: eight write their parts, and read them again past the cache.
    let parts = |what: &str| format!("for i in $(seq 8 15); do {what} & done; wait; echo all");
    let write = "dd if=/tmp/noise of=/dev/sda bs=256k skip=$i seek=$((i + 12)) count=1 conv=fsync";
    guest.says(&parts(&format!("{write} 2> /dev/null")))?;
    guest.says("echo 3 > /proc/sys/vm/drop_caches")?;
    let read = "dd if=/dev/sda bs=256k skip=$((i + 12)) count=1 2> /dev/null > /tmp/part$i";
    guest.says(&parts(read))?;
    guest.says("cat /tmp/part8 /tmp/part9 /tmp/part1[0-5] > /tmp/parts")?;
    guest.says("tail -c +2097153 /tmp/noise | cmp - /tmp/parts")?;
    let noise = guest.says("sha256sum < /tmp/noise")?;
    let trouble = "dmesg | grep -i -e 'ata[0-9].*\\(exception\\|failed\\|error\\)' -e 'I/O error'";
    assert_eq!(guest.command(trouble, COMMAND)?.0.trim(), "");
    guest.power_off()?;
    let bytes = fs::read(&disk).unwrap();
    fs::write(&disk, &bytes[48 << 10..][..4 << 20]).unwrap();
    let out = Command::new("sha256sum").arg(&disk).output().unwrap();
    fs::remove_file(&disk).unwrap();
    assert_eq!(noise.get(..64), String::from_utf8_lossy(&out.stdout).get(..64), "the disk's bytes");
    Ok(())
}
