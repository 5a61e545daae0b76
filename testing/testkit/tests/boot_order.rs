//! What firmware boots from: disks, CDs, floppies and the network, in the order that is asked for.

use std::{fs, path::Path, process::Command};
use testkit::{BOOT, Error, Folder, Guest, Options, on_this_host, status};

const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

fn run(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn assemble(source: &str, target: &str, options: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(source);
    let common = ["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"];
    run(Command::new("cc").args(common).args(options).args(["-o", target]).arg(source));
}

/// 1440 KiB that a BIOS boots, as a floppy and as a disk.
fn boot_sector(folder: &Folder, name: &str) -> String {
    let file = folder.text(name);
    let name = format!("-DNAME=\"the {name}\\n\"");
    assemble("boot_sector.S", &file, &["-Wl,-Ttext=0x7c00,--oformat=binary", &name]);
    file
}

/// What is started with these options, until the machine is off.
fn started(options: &Options) -> Result<String, Error> {
    let mut guest = Guest::boot(options)?;
    guest.expect("started from the ", BOOT)?;
    let name = guest.expect("\n", BOOT)?;
    let end = guest.finish(BOOT)?;
    assert_eq!(end.status, Some(status::POWERED_OFF), "{}", end.stderr);
    Ok(name.trim().to_owned())
}

#[test]
fn a_bios_tries_what_it_is_told_to_first() -> Result<(), Error> {
    if !on_this_host(&[SEABIOS, "/usr/bin/xorriso"]) {
        return Ok(());
    }
    let folder = Folder::new("boot-order");
    let [disk, sata, floppy] =
        ["disk", "second disk", "floppy"].map(|name| boot_sector(&folder, name));
    // A CD boots the image of a floppy (El Torito 1.0, 2.1).
    let content = Folder::new("boot-order-cd");
    boot_sector(&content, "CD");
    let cd = folder.text("iso");
    run(Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o", &cd, "-b", "CD"])
        .arg(content.root()));
    let all = || {
        Options::default()
            .arg("--firmware", "bios")
            .arg("--disk", &format!("{disk},readonly"))
            .arg("--disk", &format!("{sata},bus=sata,readonly"))
            .arg("--cdrom", &cd)
    };
    let with_floppy = || all().arg("--floppy", &floppy);
    assert_eq!(started(&all())?, "disk");
    assert_eq!(started(&all().arg("--boot", "cd"))?, "CD");
    assert_eq!(started(&with_floppy())?, "floppy");
    assert_eq!(started(&with_floppy().arg("--boot", "disk,cd"))?, "disk");
    Ok(())
}

#[test]
fn a_bios_boots_disks_whose_registers_are_in_memory() -> Result<(), Error> {
    if !on_this_host(&[SEABIOS]) {
        return Ok(());
    }
    let folder = Folder::new("boot-mmio");
    let [disk, scsi, sata] =
        ["disk", "second disk", "third disk"].map(|name| boot_sector(&folder, name));
    let options = |disks: &[(&str, &str)]| {
        let options = Options::default().arg("--firmware", "bios").arg("--virtio", "mmio");
        disks.iter().fold(options, |options, (file, bus)| {
            options.arg("--disk", &format!("{file},bus={bus},readonly"))
        })
    };
    let (disk, scsi, sata) = ((&*disk, "virtio"), (&*scsi, "scsi"), (&*sata, "sata"));
    assert_eq!(started(&options(&[disk, scsi, sata]))?, "disk");
    assert_eq!(started(&options(&[scsi, disk, sata]))?, "second disk");
    assert_eq!(started(&options(&[sata, disk, scsi]))?, "third disk");
    Ok(())
}

fn bios_boots_by(model: &str) -> Result<(), Error> {
    if !on_this_host(&[SEABIOS, &format!("/usr/lib/ipxe/qemu/pxe-{model}.rom")]) {
        return Ok(());
    }
    let folder = Folder::new(&format!("boot-{model}"));
    assemble("multiboot.S", &folder.text("kernel"), &["-Wl,-Ttext-segment=0x100000"]);
    fs::write(folder.text("module"), "the module's text\0").unwrap();
    let script = "#!ipxe\nkernel kernel some=words\nmodule module\nboot\n";
    fs::write(folder.text("boot.ipxe"), script).unwrap();
    let options = Options::default().arg("--firmware", "bios").arg("--boot", "net").arg(
        "--net",
        &format!("user,model={model},tftp={},boot=boot.ipxe", folder.root().display()),
    );
    let mut guest = Guest::boot(&options)?;
    guest.expect("tftp://10.0.2.2/boot.ipxe... ok", BOOT)?;
    guest.expect("tftp://10.0.2.2/kernel some=words", BOOT)?;
    guest.expect("the module's text", BOOT)?;
    assert_eq!(guest.finish(BOOT)?.status, Some(status::POWERED_OFF));
    Ok(())
}

#[test]
fn a_bios_boots_from_the_network() -> Result<(), Error> {
    bios_boots_by("virtio")
}

#[test]
fn a_bios_boots_from_the_network_of_an_e1000() -> Result<(), Error> {
    bios_boots_by("e1000")
}

#[test]
fn uefi_boots_from_the_network_before_a_disk() -> Result<(), Error> {
    if !on_this_host(&[OVMF, "/usr/bin/grub-mkimage"]) {
        return Ok(());
    }
    let folder = Folder::new("boot-uefi");
    let program = |name: &str| {
        let menu = format!(
            "serial --unit=0\nterminal_output serial\necho started from the {name}\nhalt\n"
        );
        let (text, file) = (folder.text("menu"), folder.text(name));
        fs::write(&text, menu).unwrap();
        run(Command::new("grub-mkimage")
            .args(["-O", "x86_64-efi", "-p", "/", "-c", &text, "-o", &file])
            .args(["serial", "terminal", "echo", "halt"]));
        file
    };
    program("network");
    // A CD with a FAT volume, which UEFI boots.
    let loader = program("CD");
    let volume = folder.text("volume");
    fs::write(&volume, vec![0; 4 << 20]).unwrap();
    run(Command::new("mformat").args(["-i", &volume, "::"]));
    run(Command::new("mmd").args(["-i", &volume, "::/EFI", "::/EFI/BOOT"]));
    run(Command::new("mcopy").args(["-i", &volume, &loader, "::/EFI/BOOT/BOOTX64.EFI"]));
    let cd = folder.text("iso");
    run(Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o", &cd, "-e", "volume", "-no-emul-boot"])
        .args(["-m", "iso"])
        .arg(folder.root()));
    let options = |order: &str| {
        Options::default()
            .arg("--firmware", "uefi")
            .arg("--boot", order)
            .arg("--net", &format!("user,tftp={},boot=network", folder.root().display()))
            .arg("--cdrom", &cd)
    };
    assert_eq!(started(&options("net,cd"))?, "network");
    assert_eq!(started(&options("cd,net"))?, "CD");
    Ok(())
}
