//! The places on the PCI bus, and what takes one.

use crate::{ConsoleDevice, DiskBus, Net, NetModel, SpecError, VirtioTransport, VmSpec};

/// Places for devices: a bus has 32, and the bridges have two of them.
pub const PCI_MAX: usize = 30;

/// How many virtio devices there are.
fn virtio(spec: &VmSpec) -> usize {
    let disks = spec.disks.iter().filter(|disk| disk.bus == DiskBus::Virtio).count();
    let single = [
        spec.disks.iter().any(|disk| disk.bus.is_scsi()),
        spec.cloud_init.is_some(),
        spec.rng,
        matches!(&spec.net, Net::User(user) if user.model == NetModel::Virtio),
        spec.console_device == ConsoleDevice::Virtio,
        !spec.channels.is_empty(),
        // The keyboard, and the tablet.
        spec.input,
        spec.input,
        spec.balloon,
        spec.memory_max.is_some(),
        spec.vsock.is_some(),
    ];
    disks + single.into_iter().filter(|there| *there).count()
}

/// How many places the devices take. Those of an adapter, SATA or SCSI, share its one.
fn taken(spec: &VmSpec) -> usize {
    let others = [
        spec.disks.iter().any(|disk| disk.bus.is_sata()),
        matches!(&spec.net, Net::User(user) if user.model != NetModel::Virtio),
        spec.display.is_there(),
    ];
    let virtio = match spec.virtio {
        VirtioTransport::Pci => virtio(spec),
        VirtioTransport::Mmio => 0,
    };
    virtio + spec.ports as usize + others.into_iter().filter(|there| *there).count()
}

/// Without many disks there are never too many.
pub(crate) fn check(spec: &VmSpec) -> Result<(), SpecError> {
    let taken = taken(spec);
    if taken <= PCI_MAX {
        return Ok(());
    }
    let last = spec.disks.last().map(|disk| disk.path.display().to_string());
    Err(SpecError::new(
        "--disk",
        &last.unwrap_or_default(),
        &format!("the PCI bus has {PCI_MAX} places, and disks and other devices take {taken}"),
        "give fewer disks, make some of them bus=scsi, or leave out other devices",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    #[test]
    fn each_device_takes_a_place() {
        let disk = |text: &str| text.parse::<Disk>().unwrap();
        let spec = VmSpec {
            disks: ["a", "b,bus=sata", "c,bus=cd", "d", "e,bus=scsi", "f,bus=scsi-cd"]
                .map(disk)
                .into(),
            cloud_init: Some("/seed".into()),
            rng: true,
            balloon: true,
            input: true,
            ports: 3,
            console_device: ConsoleDevice::Virtio,
            channels: vec!["x=pty".parse().unwrap(), "y=pty".parse().unwrap()],
            net: "user".parse().unwrap(),
            memory_max: Some(1 << 30),
            vsock: Some("/v".parse().unwrap()),
            display: "vnc=127.0.0.1:7".parse().unwrap(),
            ..VmSpec::default()
        };
        assert_eq!(taken(&spec), 2 + 1 + 1 + 1 + 1 + 1 + 2 + 3 + 1 + 1 + 1 + 1 + 1 + 1);
        // On their own bus all but those of the SATA adapter, the screen and the ports.
        assert_eq!(taken(&VmSpec { virtio: VirtioTransport::Mmio, ..spec }), 1 + 1 + 3);
        assert_eq!(taken(&VmSpec::default()), 0);
    }

    #[test]
    fn too_many_are_refused_with_what_to_do() {
        let disks = |count| vec!["a".parse().unwrap(); count];
        let full = VmSpec { disks: disks(22), ports: 8, ..VmSpec::default() };
        assert_eq!(full.validate(), Ok(()));
        let error = VmSpec { rng: true, ..full }.validate().unwrap_err();
        assert_eq!(error.option(), "--disk");
        assert!(error.to_string().contains("30 places") && error.to_string().contains("bus=scsi"));
    }
}
