//! By what the guest reaches virtio devices.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DiskBus, FirmwareKind, Net, NetModel, SpecError, VmSpec};

const OPTION: &str = "--virtio";

/// The bus of the virtio devices that are there when the VM starts. Devices that come later are on
/// PCI Express, behind its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtioTransport {
    #[default]
    Pci,
    /// Registers in memory, of which ACPI tells.
    Mmio,
}

impl VirtioTransport {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Mmio => "mmio",
        }
    }

    /// OVMF knows no such devices in memory, and SeaBIOS disks only.
    pub(crate) fn validate(self, spec: &VmSpec) -> Result<(), SpecError> {
        if self == Self::Pci {
            return Ok(());
        }
        let refuse =
            |reason: &str, advice: &str| Err(SpecError::new(OPTION, self.name(), reason, advice));
        let virtio = |bus: DiskBus| bus == DiskBus::Virtio || bus.is_scsi();
        if spec.firmware.kind == FirmwareKind::Uefi
            && spec.disks.iter().any(|disk| virtio(disk.bus))
        {
            return refuse(
                "UEFI finds no virtio disks there",
                "give disks bus=sata, or --firmware bios, or --virtio pci",
            );
        }
        let card = matches!(&spec.net, Net::User(user) if user.model == NetModel::Virtio);
        if card && spec.boots_from_network() {
            return refuse(
                "firmware finds no virtio network card there, to boot from",
                "give --net user,model=e1000, or --virtio pci",
            );
        }
        Ok(())
    }
}

impl FromStr for VirtioTransport {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "pci" => Ok(Self::Pci),
            "mmio" => Ok(Self::Mmio),
            _ => Err(SpecError::new(OPTION, text, "there is no such bus", "give pci or mmio")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(firmware: &str, disk: &str, net: &str, boot: &str) -> VmSpec {
        VmSpec {
            virtio: "mmio".parse().unwrap(),
            firmware: firmware.parse().unwrap(),
            disks: vec![disk.parse().unwrap()],
            net: net.parse().unwrap(),
            boot: boot.parse().unwrap(),
            ..VmSpec::default()
        }
    }

    #[test]
    fn what_firmware_would_not_find_is_refused() {
        for (firmware, disk, net, boot) in [
            ("bios", "a", "user", "disk"),
            ("bios", "a,bus=scsi", "none", "disk"),
            ("uefi", "a,bus=sata", "user", "disk"),
            ("bios", "a", "user,model=e1000", "net"),
        ] {
            let spec = spec(firmware, disk, net, boot);
            assert_eq!(spec.validate(), Ok(()), "{firmware} {disk} {net} {boot}");
        }
        for (firmware, disk, net, boot) in [
            ("uefi", "a", "none", "disk"),
            ("uefi", "a,bus=scsi-cd", "none", "cd"),
            ("bios", "a", "user", "net"),
            ("bios", "a", "user,boot=x", "disk"),
        ] {
            let refused = spec(firmware, disk, net, boot);
            let error = refused.validate().unwrap_err();
            assert_eq!(error.option(), "--virtio", "{error}");
            let pci = VmSpec { virtio: VirtioTransport::Pci, ..refused };
            assert_eq!(pci.validate(), Ok(()));
        }
        assert!("PCI".parse::<VirtioTransport>().is_err());
    }

    #[test]
    fn descriptions_from_before_have_pci() {
        let mut value = serde_json::to_value(VmSpec::default()).unwrap();
        assert_eq!(value.as_object_mut().unwrap().remove("virtio"), Some("pci".into()));
        let spec: VmSpec = serde_json::from_value(value).unwrap();
        assert_eq!(spec.virtio, VirtioTransport::Pci);
    }
}
