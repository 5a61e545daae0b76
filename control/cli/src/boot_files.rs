//! Files that a BIOS is given to boot from: a floppy's image, and the code for the network card.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use machine::FLOPPY;
use vm_spec::{FirmwareKind, Net, NetModel, VmSpec};

use crate::{Failure, report};

/// Where distributions put iPXE for network cards; Debian's is the first.
const PXE: &[&str] =
    &["/usr/lib/ipxe/qemu", "/usr/share/ipxe/qemu", "/usr/share/qemu", "/usr/share/qemu-kvm"];
/// An option ROM says its length in a byte, in units of 512 bytes.
const ROM_MAX: u64 = 255 * 512;
/// Bytes of the floppies that a PC knows: 160, 180, 320, 360, 720, 1200, 1440 and 2880 KiB.
const FLOPPIES: [u64; 8] = [160, 180, 320, 360, 720, 1200, 1440, 2880];

/// Reads what the VM's options name.
pub fn read(spec: &VmSpec) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut files = Vec::new();
    if spec.firmware.kind != FirmwareKind::Bios {
        // UEFI has a driver for the card, and knows no floppies.
        return Ok(files);
    }
    if let Some(path) = &spec.floppy {
        files.push((format!("{FLOPPY}a"), floppy(path)?));
    }
    if let Net::User(user) = &spec.net
        && spec.boots_from_network()
    {
        // The name in the package, and that under which SeaBIOS looks for the option ROM of a PCI
        // function, by its IDs.
        let (name, id) = match user.model {
            NetModel::Virtio => ("pxe-virtio.rom", "pci1af4,1041.rom"),
            NetModel::E1000 => ("pxe-e1000.rom", "pci8086,100e.rom"),
        };
        let found = PXE.iter().map(|folder| Path::new(folder).join(name));
        files.push((id.into(), card_rom(found.into_iter().find(|path| path.is_file()))?));
    }
    Ok(files)
}

fn floppy(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    let fail = |why: &str, remedy: &str| {
        Failure::host(format!("--floppy {}: {why}; {remedy}", path.display()))
    };
    let read = |e: std::io::Error| fail(&report::os_reason(&e), "give an image that can be read");
    let mut bytes = Vec::new();
    let most = FLOPPIES.iter().max().map_or(0, |kib| kib << 10);
    File::open(path).map_err(read)?.take(most + 1).read_to_end(&mut bytes).map_err(read)?;
    if !FLOPPIES.iter().any(|kib| kib << 10 == bytes.len() as u64) {
        let remedy = "give one of 160, 180, 320, 360, 720, 1200, 1440 or 2880 KiB";
        return Err(fail("no floppy has the size of this file", remedy));
    }
    Ok(bytes)
}

fn card_rom(found: Option<PathBuf>) -> Result<Vec<u8>, Failure> {
    let fail = |why: &str| {
        Failure::host(format!(
            "--firmware bios: to boot from the network {why}; install it (`apt-get install \
             ipxe-qemu`), or give --firmware uefi, for a virtio card"
        ))
    };
    let path = found.ok_or_else(|| fail("it needs iPXE, which this host has not"))?;
    let name = path.display();
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(ROM_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| fail(&format!("it needs {name}: {}", report::os_reason(&e))))?;
    if bytes.len() as u64 > ROM_MAX || !bytes.starts_with(&[0x55, 0xaa]) {
        return Err(fail(&format!("it needs iPXE, which {name} is not")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_floppy_has_a_floppy_s_size() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_path_buf();
        let spec = |firmware: &str| VmSpec {
            floppy: Some(path.clone()),
            firmware: firmware.parse().unwrap(),
            ..VmSpec::default()
        };
        fs::write(&path, vec![7; 1440 << 10]).unwrap();
        let files = read(&spec("bios")).unwrap();
        assert_eq!((&*files[0].0, files[0].1.len()), ("floppyimg/a", 1440 << 10));
        assert!(read(&spec("uefi")).unwrap().is_empty());
        for size in [0, 512, (1440 << 10) - 1, (2880 << 10) + 1] {
            fs::write(&path, vec![7; size]).unwrap();
            let line = read(&spec("bios")).unwrap_err().line;
            assert!(line.contains("no floppy has the size") && line.contains("2880"), "{line}");
        }
        let line = floppy(&"/nonexistent".into()).unwrap_err().line;
        assert!(line.starts_with("--floppy /nonexistent: No such file"), "{line}");
    }

    #[test]
    fn what_is_no_rom_is_refused_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, good) in
            [(vec![0x55, 0xaa, 1], true), (vec![1, 2], false), (vec![0x55; 200_000], false)]
        {
            fs::write(file.path(), bytes).unwrap();
            assert_eq!(card_rom(Some(file.path().into())).is_ok(), good);
        }
        let line = card_rom(None).unwrap_err().line;
        assert!(line.contains("apt-get install ipxe-qemu"), "{line}");
    }
}
