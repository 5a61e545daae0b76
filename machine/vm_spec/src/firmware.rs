//! What the guest starts with, as `--firmware` says it.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{SpecError, disk::parts};

const OPTION: &str = "--firmware";
const ADVICE: &str = "give none, bios[,file=PATH][,log=PATH], or \
                      uefi[,vars=PATH][,file=PATH][,log=PATH]; a comma in a name is ',,'";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// A kernel is started as firmware would start it.
    #[default]
    None,
    /// A PC BIOS: SeaBIOS.
    Bios,
    /// UEFI: OVMF.
    Uefi,
}

impl FirmwareKind {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// What a machine finds at power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    pub kind: FirmwareKind,
    /// The image; `None` means that of the host's package.
    pub file: Option<PathBuf>,
    /// UEFI's variables; `None` forgets them at the end.
    #[serde(default)]
    pub variables: Option<PathBuf>,
    /// Where to write what the firmware does.
    pub log: Option<PathBuf>,
}

impl Firmware {
    pub fn is_none(&self) -> bool {
        self.kind == FirmwareKind::None
    }
}

impl FromStr for Firmware {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: &str| Err(SpecError::new(OPTION, text, reason, ADVICE));
        let mut parts = parts(text).into_iter();
        let kind = match parts.next().as_deref() {
            Some("none") => FirmwareKind::None,
            Some("bios") => FirmwareKind::Bios,
            Some("uefi") => FirmwareKind::Uefi,
            _ => return refuse("there is no such firmware"),
        };
        let mut firmware = Self { kind, ..Self::default() };
        for part in parts {
            match part.split_once('=') {
                _ if kind == FirmwareKind::None => return refuse("no firmware has no options"),
                Some((_, "")) => return refuse(&format!("{part:?} has no value")),
                Some(("file", path)) => firmware.file = Some(path.into()),
                Some(("vars", _)) if kind != FirmwareKind::Uefi => {
                    return refuse("only UEFI has variables");
                }
                Some(("vars", path)) => firmware.variables = Some(path.into()),
                Some(("log", path)) => firmware.log = Some(path.into()),
                _ => return refuse(&format!("there is no option {part:?}")),
            }
        }
        Ok(firmware)
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        for (name, path) in [("vars", &self.variables), ("file", &self.file), ("log", &self.log)] {
            if let Some(path) = path {
                write!(f, ",{name}={}", path.display().to_string().replace(',', ",,"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_both_ways() {
        for text in
            ["none", "bios", "uefi", "bios,file=/a,,b.bin,log=/tmp/log", "uefi,vars=/v,file=/f"]
        {
            assert_eq!(text.parse::<Firmware>().unwrap().to_string(), text);
        }
        let firmware: Firmware = "bios,file=/a,,b.bin".parse().unwrap();
        assert_eq!(firmware.file, Some("/a,b.bin".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "efi",
            "none,log=x",
            "bios,log=",
            "bios,colour=red",
            "bios,",
            "bios,file",
            "bios,vars=v",
        ] {
            assert_eq!(text.parse::<Firmware>().expect_err(text).option(), OPTION);
        }
    }
}
