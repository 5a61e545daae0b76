//! Firmware: where its image is on this host, and where its log goes.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use byte_stream::Output;
use disk::Disk;
use disk_raw::RawDisk;
use machine::{FirmwarePart, Variables};
use vm_spec::{Firmware, FirmwareKind, VmSpec};

use crate::{Failure, boot_files, report};

/// Where distributions put SeaBIOS; Debian's is the first.
const BIOS: &[&str] = &[
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu-kvm/bios-256k.bin",
];
/// The same of OVMF.
const UEFI: &[&str] = &[
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
];
/// No firmware is larger; this bounds what a wrong file can take of the host's memory.
const IMAGE_MAX: u64 = 16 << 20;

/// Reads what the option names.
pub fn open(spec: &VmSpec) -> Result<FirmwarePart, Failure> {
    let firmware = &spec.firmware;
    let path = match &firmware.file {
        Some(path) => path.clone(),
        None => installed(firmware.kind)?,
    };
    let fail = |why: &str| {
        let line = format!("--firmware {}: {}: {why}", firmware.kind.name(), path.display());
        Failure::host(format!("{line}; give an image of firmware with file=PATH"))
    };
    let data = fs::metadata(&path).map_err(|e| fail(&report::os_reason(&e)))?;
    if !data.is_file() || data.len() > IMAGE_MAX {
        return Err(fail("this is no firmware"));
    }
    let image = read(&path).map_err(|e| fail(&report::os_reason(&e)))?;
    let log = firmware.log.as_deref().map(log).transpose()?;
    let variables = match firmware.kind {
        FirmwareKind::Uefi => Some(variables(firmware, &path)?),
        _ => None,
    };
    Ok(FirmwarePart {
        image,
        name: path.display().to_string(),
        variables,
        files: boot_files::read(spec)?,
        log,
    })
}

/// All of a file, whatever it said of its size, but no more than is too much.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(IMAGE_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the empty store for an image is, by the names that OVMF's packages give both.
fn empty_store(image: &Path) -> Option<PathBuf> {
    let name = image.file_name()?.to_str().filter(|name| name.contains("CODE"))?;
    Some(image.with_file_name(name.replace("CODE", "VARS")))
}

/// The variables' file, made of the empty store beside the image if it is not there yet.
fn variables(firmware: &Firmware, image: &Path) -> Result<Variables, Failure> {
    let name = |path: &Path| format!("--firmware uefi: {}", path.display());
    let fail = |path: &Path, why: String, remedy: &str| {
        Failure::host(format!("{}: {why}; {remedy}", name(path)))
    };
    let template = || {
        let remedy = "give a copy of its variables with vars=PATH";
        let why = "by its name there is no empty store of variables beside it";
        let empty = empty_store(image).ok_or_else(|| fail(image, why.into(), remedy))?;
        read(&empty).map_err(|e| fail(&empty, report::os_reason(&e), remedy))
    };
    let Some(path) = &firmware.variables else {
        return Ok(Variables { contents: template()?, store: None });
    };
    let remedy = "give a file that can be read and written with vars=PATH";
    if !path.exists() {
        fs::write(path, template()?).map_err(|e| fail(path, report::os_reason(&e), remedy))?;
    }
    let store = RawDisk::open(path, false).map_err(|e| fail(path, e.to_string(), remedy))?;
    let size = store.shape().bytes;
    if size > IMAGE_MAX {
        return Err(fail(path, "it is too large for variables".into(), remedy));
    }
    let mut contents = vec![0; size as usize];
    store.read(0, &mut contents).map_err(|e| fail(path, e.to_string(), remedy))?;
    Ok(Variables { contents, store: Some(Arc::new(store)) })
}

fn installed(kind: FirmwareKind) -> Result<PathBuf, Failure> {
    let (places, package) = match kind {
        FirmwareKind::Uefi => (UEFI, "ovmf"),
        _ => (BIOS, "seabios"),
    };
    let found = places.iter().map(Path::new).find(|path| path.is_file());
    found.map(Path::to_path_buf).ok_or_else(|| {
        let name = kind.name();
        Failure::host(format!(
            "--firmware {name}: this host has none; install it (`apt-get install {package}`), or \
             give its image with --firmware {name},file=PATH"
        ))
    })
}

fn log(path: &Path) -> Result<Arc<dyn Output>, Failure> {
    let file = File::create(path).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::NotFound => "there is no such directory".into(),
            _ => report::os_reason(&error),
        };
        Failure::host(format!("--firmware log={}: {why}; give another path", path.display()))
    })?;
    Ok(Arc::new(Log(Mutex::new(Lines { file, line: Vec::new() }))))
}

/// A file of lines.
struct Log(Mutex<Lines>);

struct Lines {
    file: File,
    /// The last one, which has not ended.
    line: Vec<u8>,
}

/// A guest may write a line without end.
const LINE_MAX: usize = 4096;

impl Lines {
    fn write_out(&mut self) {
        // A log that cannot be written any further ends there.
        let _ = self.file.write_all(&self.line);
        self.line.clear();
    }
}

impl Output for Log {
    fn write(&self, bytes: &[u8]) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.line.extend(bytes);
        if bytes.contains(&b'\n') || lines.line.len() >= LINE_MAX {
            lines.write_out();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.write_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> VmSpec {
        VmSpec { firmware: text.parse().unwrap(), ..VmSpec::default() }
    }

    fn refused(text: &str) -> String {
        let failure = open(&spec(text)).unwrap_err();
        assert!(!failure.line.contains('\n'), "{failure:?}");
        failure.line
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let image = image.path().display();
        for (text, why) in [
            ("bios,file=/nonexistent".into(), "/nonexistent: "),
            ("bios,file=/proc".into(), "/proc: this is no firmware; give"),
            (format!("bios,log=/nonexistent/log,file={image}"), "there is no such directory; give"),
        ] {
            let line = refused(&text);
            assert!(line.contains(why), "{line}");
        }
    }

    #[test]
    fn variables_are_beside_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("CODE");
        fs::create_dir(&folder).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        let (code, vars) = (path("OVMF_CODE_4M.fd"), path("OVMF_VARS_4M.fd"));
        fs::write(&code, [1; 512]).unwrap();
        let line = refused(&format!("uefi,file={code}"));
        assert!(line.contains(&format!("{vars}: No such file")), "{line}");
        fs::write(&vars, [2; 512]).unwrap();
        let kept = path("kept");
        let part = open(&spec(&format!("uefi,file={code},vars={kept}"))).unwrap();
        assert_eq!(part.variables.unwrap().contents, [2; 512]);
        assert_eq!(fs::read(&kept).unwrap(), [2; 512]);

        let other = path("OVMF.fd");
        fs::write(&other, [1; 512]).unwrap();
        let line = refused(&format!("uefi,file={other}"));
        let why = "by its name there is no empty store of variables beside it; give a copy";
        assert!(line.contains(&format!("{other}: {why}")), "{line}");
    }
}
