//! A disk of the VM, as `--disk` says it.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::SpecError;

const OPTION: &str = "--disk";
const ADVICE: &str = "give FILE[,format=raw|qcow2][,bus=virtio|scsi|sata|cd|scsi-cd][,readonly][,ephemeral]\
    [,cache=writeback|none|unsafe][,backing=FILE][,serial=TEXT]; a comma in a name is ',,'";
/// What a virtio disk can tell the guest.
const SERIAL_MAX: usize = 20;

/// How a file holds a disk's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's images, which grow and may stand on backing files.
    Qcow2,
}

impl DiskFormat {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What becomes of data that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskCache {
    /// The host's page cache has them, until the guest flushes them to the storage.
    #[default]
    Writeback,
    /// They go past the host's page cache (`O_DIRECT`).
    None,
    /// A flush leaves them in the host's page cache, too: what the host has not written when it
    /// fails is lost.
    Unsafe,
}

impl DiskCache {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::None => "none",
            Self::Unsafe => "unsafe",
        }
    }
}

/// What the guest reaches the disk through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// A virtio disk.
    #[default]
    Virtio,
    /// A disk of a SATA adapter.
    Sata,
    /// A disc in a CD drive of the same adapter, read-only.
    Cd,
    /// A disk of a virtio SCSI adapter.
    Scsi,
    /// A disc in a CD drive of that one, read-only.
    ScsiCd,
}

impl DiskBus {
    /// It has the discs of a CD drive, which are only read.
    pub fn is_cd(self) -> bool {
        matches!(self, Self::Cd | Self::ScsiCd)
    }

    /// It is of the SATA adapter, or of the virtio SCSI one.
    pub fn is_sata(self) -> bool {
        matches!(self, Self::Sata | Self::Cd)
    }

    pub fn is_scsi(self) -> bool {
        matches!(self, Self::Scsi | Self::ScsiCd)
    }

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Sata => "sata",
            Self::Cd => "cd",
            Self::Scsi => "scsi",
            Self::ScsiCd => "scsi-cd",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub path: PathBuf,
    /// Without one it follows from the file's name, never from what a guest may have written.
    pub format: Option<DiskFormat>,
    pub read_only: bool,
    #[serde(default)]
    pub bus: DiskBus,
    /// What the guest writes is dropped at the end.
    #[serde(default)]
    pub ephemeral: bool,
    #[serde(default)]
    pub cache: DiskCache,
    /// Backing files that may be outside of the image's folder.
    #[serde(default)]
    pub backing: Vec<PathBuf>,
    /// Up to 20 characters by which the guest knows the disk; may be empty.
    pub serial: String,
}

impl Disk {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let refuse = |reason: &str, advice: &str| {
            Err(SpecError::new(OPTION, &self.path.display().to_string(), reason, advice))
        };
        if self.path.as_os_str().is_empty() {
            return refuse("there is no file", ADVICE);
        }
        if self.bus.is_cd() && !self.read_only {
            return refuse("a CD is read-only", "add ,readonly");
        }
        if self.serial.len() > SERIAL_MAX || !self.serial.bytes().all(|b| b.is_ascii_graphic()) {
            return refuse(
                &format!("{:?} is no serial number", self.serial),
                "give up to 20 letters, digits and signs without spaces",
            );
        }
        Ok(())
    }
}

/// The parts between commas, where two commas are one of the text.
pub(crate) fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

impl Disk {
    /// Takes one option; false if there is none such.
    fn set(&mut self, name: &str, value: Option<&str>) -> Result<bool, &'static str> {
        match (name, value) {
            ("format", Some("raw")) => self.format = Some(DiskFormat::Raw),
            ("format", Some("qcow2")) => self.format = Some(DiskFormat::Qcow2),
            ("format", _) => return Err("there is no such format"),
            ("cache", Some("writeback")) => self.cache = DiskCache::Writeback,
            ("cache", Some("none")) => self.cache = DiskCache::None,
            ("cache", Some("unsafe")) => self.cache = DiskCache::Unsafe,
            ("cache", _) => return Err("there is no such cache mode"),
            ("bus", Some("virtio")) => self.bus = DiskBus::Virtio,
            ("bus", Some("sata")) => self.bus = DiskBus::Sata,
            ("bus", Some("cd")) => (self.bus, self.read_only) = (DiskBus::Cd, true),
            ("bus", Some("scsi")) => self.bus = DiskBus::Scsi,
            ("bus", Some("scsi-cd")) => (self.bus, self.read_only) = (DiskBus::ScsiCd, true),
            ("bus", _) => return Err("there is no such bus"),
            ("readonly", None) => self.read_only = true,
            ("ephemeral", None) => self.ephemeral = true,
            ("backing", Some(file)) if !file.is_empty() => self.backing.push(file.into()),
            ("serial", Some(serial)) => self.serial = serial.into(),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl FromStr for Disk {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = parts(text).into_iter();
        let path = parts.next().unwrap_or_default().into();
        let mut disk = Self { path, ..Self::default() };
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (&*part, None),
            };
            let refuse = |reason: &str| Err(SpecError::new(OPTION, text, reason, ADVICE));
            match disk.set(name, value) {
                Ok(true) => {}
                Ok(false) => return refuse(&format!("there is no option {part:?}")),
                Err(reason) => return refuse(reason),
            }
        }
        disk.validate()?;
        Ok(disk)
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |text: &str| text.replace(',', ",,");
        f.write_str(&escape(&self.path.display().to_string()))?;
        if let Some(format) = self.format {
            write!(f, ",format={}", format.name())?;
        }
        if self.bus != DiskBus::default() {
            write!(f, ",bus={}", self.bus.name())?;
        }
        for (name, set) in [("readonly", self.read_only), ("ephemeral", self.ephemeral)] {
            if set {
                write!(f, ",{name}")?;
            }
        }
        if self.cache != DiskCache::default() {
            write!(f, ",cache={}", self.cache.name())?;
        }
        for file in &self.backing {
            write!(f, ",backing={}", escape(&file.display().to_string()))?;
        }
        if !self.serial.is_empty() {
            write!(f, ",serial={}", escape(&self.serial))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_both_ways() {
        let disk: Disk = "a,,b.img,readonly,serial=x,,y".parse().unwrap();
        assert_eq!(disk.path, PathBuf::from("a,b.img"));
        assert!(disk.read_only && disk.serial == "x,y");
        assert_eq!(disk.to_string(), "a,,b.img,readonly,serial=x,,y");
        assert_eq!(disk.to_string().parse::<Disk>().unwrap(), disk);
        let all = "a.img,format=qcow2,bus=sata,readonly,ephemeral,cache=none,backing=b,,c,backing=d,serial=s";
        let disk: Disk = all.parse().unwrap();
        assert_eq!((disk.format, disk.cache), (Some(DiskFormat::Qcow2), DiskCache::None));
        assert_eq!(disk.backing, [PathBuf::from("b,c"), PathBuf::from("d")]);
        assert_eq!(disk.to_string(), all);
        for bus in ["scsi", "scsi-cd", "sata", "cd"] {
            let disk: Disk = format!("a,bus={bus}").parse().unwrap();
            assert_eq!((disk.bus.name(), disk.read_only), (bus, disk.bus.is_cd()));
            assert_eq!(disk.to_string().parse::<Disk>().unwrap(), disk);
        }
        let plain: Disk = "disk.img".parse().unwrap();
        assert_eq!(plain, Disk { path: "disk.img".into(), ..Disk::default() });
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("a,serial={}", "x".repeat(21));
        for text in [
            "",
            ",readonly",
            "a,format=vhd",
            "a,colour=red",
            "a,bus=ide",
            "a,",
            "a,serial=x y",
            &long,
            "a,readonly=1",
            "a,serial",
            "a,backing=",
            "a,cache=writethrough",
        ] {
            assert_eq!(text.parse::<Disk>().expect_err(text).option(), OPTION);
        }
    }
}
