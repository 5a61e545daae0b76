//! A disk of the VM, as `--disk` says it.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::SpecError;

const OPTION: &str = "--disk";
const ADVICE: &str = "give FILE[,format=raw][,readonly][,serial=TEXT]; a comma in a name is ',,'";
/// What a virtio disk can tell the guest.
const SERIAL_MAX: usize = 20;

/// How a file holds a disk's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte. A guest decides what is in the file, so that no format is ever guessed
    /// from it.
    #[default]
    Raw,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub path: PathBuf,
    pub format: DiskFormat,
    pub read_only: bool,
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

impl FromStr for Disk {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = parts(text).into_iter();
        let path = parts.next().unwrap_or_default().into();
        let mut disk = Self { path, ..Self::default() };
        for part in parts {
            match part.split_once('=').unwrap_or((&part, "")) {
                ("format", "raw") => disk.format = DiskFormat::Raw,
                ("format", _) => {
                    return Err(SpecError::new(
                        OPTION,
                        text,
                        "there is no such format",
                        "give format=raw",
                    ));
                }
                ("readonly", "") => disk.read_only = true,
                ("serial", serial) => disk.serial = serial.into(),
                _ => {
                    let reason = format!("there is no option {part:?}");
                    return Err(SpecError::new(OPTION, text, &reason, ADVICE));
                }
            }
        }
        disk.validate()?;
        Ok(disk)
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskFormat::Raw = self.format;
        write!(f, "{},format=raw", self.path.display().to_string().replace(',', ",,"))?;
        if self.read_only {
            f.write_str(",readonly")?;
        }
        if !self.serial.is_empty() {
            write!(f, ",serial={}", self.serial.replace(',', ",,"))?;
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
        assert_eq!(disk.to_string(), "a,,b.img,format=raw,readonly,serial=x,,y");
        assert_eq!(disk.to_string().parse::<Disk>().unwrap(), disk);
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
            "a,",
            "a,serial=x y",
            &long,
            "a,readonly=1",
        ] {
            assert_eq!(text.parse::<Disk>().expect_err(text).option(), OPTION);
        }
    }
}
