//! What firmware boots from, as `--boot` and `--floppy` say it.

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{DiskBus, FirmwareKind, Net, NetModel, SpecError, VmSpec};

const OPTION: &str = "--boot";
const ADVICE: &str = "give floppy, disk, cd and net in the order in which they are to be tried, \
                      such as cd,disk, and menu for a menu of them";

/// A kind of what firmware boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootKind {
    Floppy,
    Disk,
    Cd,
    Net,
}

impl BootKind {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floppy => "floppy",
            Self::Disk => "disk",
            Self::Cd => "cd",
            Self::Net => "net",
        }
    }
}

impl From<DiskBus> for BootKind {
    fn from(bus: DiskBus) -> Self {
        if bus.is_cd() { Self::Cd } else { Self::Disk }
    }
}

/// The order in which firmware tries what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// What comes first; what is not named follows in the order of its options.
    pub order: Vec<BootKind>,
    /// Firmware shows a menu first.
    pub menu: bool,
}

impl Boot {
    /// Whether it says anything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The place of a kind among the others.
    pub fn place(&self, kind: BootKind) -> usize {
        self.order.iter().position(|&named| named == kind).unwrap_or(self.order.len())
    }

    pub(crate) fn validate(&self, spec: &VmSpec) -> Result<(), SpecError> {
        let refuse = |reason: &str, advice: &str| {
            Err(SpecError::new(OPTION, &self.to_string(), reason, advice))
        };
        let mut rest = &*self.order;
        while let Some((kind, others)) = rest.split_first() {
            if others.contains(kind) {
                return refuse(&format!("{} is there twice", kind.name()), ADVICE);
            }
            rest = others;
        }
        if !self.is_default() && spec.firmware.is_none() {
            return refuse(
                "without firmware nothing is booted from a device",
                "give --firmware bios or --firmware uefi with it",
            );
        }
        if self.order.contains(&BootKind::Net) && spec.net == Net::None {
            return refuse("there is no network card", "give --net user with it");
        }
        if spec.firmware.kind == FirmwareKind::Uefi
            && self.order.contains(&BootKind::Net)
            && matches!(&spec.net, Net::User(user) if user.model == NetModel::E1000)
        {
            let reason = "UEFI has no driver for the card e1000";
            return refuse(reason, "give --net user,model=virtio, or --firmware bios");
        }
        Ok(())
    }
}

impl FromStr for Boot {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut boot = Self::default();
        for word in text.split(',') {
            match word {
                "floppy" => boot.order.push(BootKind::Floppy),
                "disk" => boot.order.push(BootKind::Disk),
                "cd" => boot.order.push(BootKind::Cd),
                "net" => boot.order.push(BootKind::Net),
                "menu" => boot.menu = true,
                _ => {
                    let reason = format!("nothing is booted from {word:?}");
                    return Err(SpecError::new(OPTION, text, &reason, ADVICE));
                }
            }
        }
        Ok(boot)
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<&str> = self.order.iter().map(|kind| kind.name()).collect();
        if self.menu {
            words.push("menu");
        }
        f.write_str(&words.join(","))
    }
}

impl VmSpec {
    /// Whether firmware may boot from the network: it was asked to, or was told what.
    pub fn boots_from_network(&self) -> bool {
        let Net::User(user) = &self.net else { return false };
        !self.firmware.is_none()
            && (user.boot.is_some() || self.boot.order.contains(&BootKind::Net))
    }

    pub(crate) fn check_floppy(&self) -> Result<(), SpecError> {
        let Some(floppy) = &self.floppy else { return Ok(()) };
        let refuse = |reason: &str, advice: &str| {
            Err(SpecError::new("--floppy", &floppy.display().to_string(), reason, advice))
        };
        if **floppy == *Path::new("") {
            return refuse("there is no file", "give the image of a floppy");
        }
        if self.firmware.kind != FirmwareKind::Bios {
            return refuse("only a BIOS knows floppies", "give --firmware bios with it");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Firmware;

    fn bios() -> VmSpec {
        let firmware = Firmware { kind: FirmwareKind::Bios, ..Firmware::default() };
        VmSpec { firmware, ..VmSpec::default() }
    }

    #[test]
    fn drives_of_both_adapters_are_cds() {
        use DiskBus::*;
        let kinds = [Virtio, Scsi, Sata, Cd, ScsiCd].map(BootKind::from);
        let disk = BootKind::Disk;
        assert_eq!(kinds, [disk, disk, disk, BootKind::Cd, BootKind::Cd]);
    }

    #[test]
    fn what_is_named_comes_first() {
        let boot: Boot = "cd,menu,net".parse().unwrap();
        assert_eq!(boot.to_string(), "cd,net,menu");
        let places = [BootKind::Cd, BootKind::Net, BootKind::Disk, BootKind::Floppy];
        assert_eq!(places.map(|kind| boot.place(kind)), [0, 1, 2, 2]);
    }

    #[test]
    fn nonsense_is_refused_with_what_to_do() {
        assert!("cd,usb".parse::<Boot>().unwrap_err().to_string().contains("\"usb\""));
        assert!("".parse::<Boot>().is_err());
        let check = |boot: &str, spec: VmSpec| {
            let spec = VmSpec { boot: boot.parse().unwrap(), ..spec };
            spec.validate().map_err(|error| error.to_string())
        };
        assert!(check("cd", VmSpec::default()).unwrap_err().contains("--firmware bios"));
        assert!(check("cd,disk,cd", bios()).unwrap_err().contains("cd is there twice"));
        assert!(check("net", bios()).unwrap_err().contains("--net user"));
        let spec = VmSpec { net: "user".parse().unwrap(), ..bios() };
        assert_eq!(check("net,menu", spec.clone()), Ok(()));
        let e1000 = VmSpec { net: "user,model=e1000".parse().unwrap(), ..spec };
        assert_eq!(check("net", e1000.clone()), Ok(()));
        let uefi = VmSpec { firmware: "uefi".parse().unwrap(), ..e1000 };
        assert!(check("net", uefi).unwrap_err().contains("model=virtio"));
    }

    #[test]
    fn the_network_is_booted_from_when_that_is_asked_for() {
        let spec = |net: &str, boot: &str| VmSpec {
            net: net.parse().unwrap(),
            boot: boot.parse().unwrap(),
            ..bios()
        };
        assert!(!spec("user", "disk").boots_from_network());
        assert!(spec("user", "disk,net").boots_from_network());
        assert!(spec("user,boot=x", "disk").boots_from_network());
        let none = VmSpec { firmware: Firmware::default(), ..spec("user,boot=x", "disk") };
        assert!(!none.boots_from_network());
    }

    #[test]
    fn floppies_are_the_bios_s() {
        let floppy = Some("dos.img".into());
        assert_eq!(VmSpec { floppy: floppy.clone(), ..bios() }.validate(), Ok(()));
        let error = VmSpec { floppy, ..VmSpec::default() }.validate().unwrap_err();
        assert_eq!(error.option(), "--floppy");
    }
}
