//! What firmware boots from: disks, CDs, floppies and the network, in the order that is asked for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::{BOOT, Error, Guest, Options, status};

const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// A folder of this test's, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn has(files: &[&str]) -> bool {
    let missing = files.iter().find(|file| !Path::new(file).is_file());
    if let Some(file) = missing {
        assert!(std::env::var_os("CI").is_none(), "not on this host: {file}");
        eprintln!("skipped: not on this host: {file}");
    }
    missing.is_none()
}

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
    let file = folder.file(name);
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
    if !has(&[SEABIOS, "/usr/bin/xorriso"]) {
        return Ok(());
    }
    let folder = Folder::new("boot-order");
    let [disk, sata, floppy] =
        ["disk", "second disk", "floppy"].map(|name| boot_sector(&folder, name));
    // A CD boots the image of a floppy (El Torito 1.0, 2.1).
    let content = Folder(folder.0.join("content"));
    fs::create_dir(&content.0).unwrap();
    boot_sector(&content, "CD");
    let cd = folder.file("iso");
    run(Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o", &cd, "-b", "CD"])
        .arg(&content.0));
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

fn bios_boots_by(model: &str) -> Result<(), Error> {
    if !has(&[SEABIOS, &format!("/usr/lib/ipxe/qemu/pxe-{model}.rom")]) {
        return Ok(());
    }
    let folder = Folder::new(&format!("boot-{model}"));
    assemble("multiboot.S", &folder.file("kernel"), &["-Wl,-Ttext-segment=0x100000"]);
    fs::write(folder.file("module"), "the module's text\0").unwrap();
    let script = "#!ipxe\nkernel kernel some=words\nmodule module\nboot\n";
    fs::write(folder.file("boot.ipxe"), script).unwrap();
    let options = Options::default()
        .arg("--firmware", "bios")
        .arg("--boot", "net")
        .arg("--net", &format!("user,model={model},tftp={},boot=boot.ipxe", folder.0.display()));
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
    if !has(&[OVMF, "/usr/bin/grub-mkimage"]) {
        return Ok(());
    }
    let folder = Folder::new("boot-uefi");
    let program = |name: &str| {
        let menu = format!(
            "serial --unit=0\nterminal_output serial\necho started from the {name}\nhalt\n"
        );
        let (text, file) = (folder.file("menu"), folder.file(name));
        fs::write(&text, menu).unwrap();
        run(Command::new("grub-mkimage")
            .args(["-O", "x86_64-efi", "-p", "/", "-c", &text, "-o", &file])
            .args(["serial", "terminal", "echo", "halt"]));
        file
    };
    program("network");
    // A CD with a FAT volume, which UEFI boots.
    let loader = program("CD");
    let volume = folder.file("volume");
    fs::write(&volume, vec![0; 4 << 20]).unwrap();
    run(Command::new("mformat").args(["-i", &volume, "::"]));
    run(Command::new("mmd").args(["-i", &volume, "::/EFI", "::/EFI/BOOT"]));
    run(Command::new("mcopy").args(["-i", &volume, &loader, "::/EFI/BOOT/BOOTX64.EFI"]));
    let cd = folder.file("iso");
    run(Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o", &cd, "-e", "volume", "-no-emul-boot"])
        .args(["-m", "iso"])
        .arg(&folder.0));
    let options = |order: &str| {
        Options::default()
            .arg("--firmware", "uefi")
            .arg("--boot", order)
            .arg("--net", &format!("user,tftp={},boot=network", folder.0.display()))
            .arg("--cdrom", &cd)
    };
    assert_eq!(started(&options("net,cd"))?, "network");
    assert_eq!(started(&options("cd,net"))?, "CD");
    Ok(())
}
