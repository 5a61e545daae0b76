//! What the guest takes its machine for.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{
    ConsoleDevice, DiskBus, Display, Kernel, Net, NetModel, SpecError, Trace, VirtioTransport,
    VmSpec,
};

const OPTION: &str = "--guest";

/// Which machine the guest finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// A PC: UART, PIC, PIT, IOAPIC, LAPIC, RTC, ACPI.
    #[default]
    Pc,
    /// The same, whose kernel is entered by PVH (Xen's `docs/misc/pvh.pandoc`).
    Pvh,
    /// Xen's paravirtual interface: a kernel that knows its hypervisor, and no board.
    XenPv,
}

impl GuestKind {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Pvh => "pvh",
            Self::XenPv => "xen-pv",
        }
    }

    pub(crate) fn validate(self, spec: &VmSpec) -> Result<(), SpecError> {
        let refuse =
            |reason: &str, advice: &str| Err(SpecError::new(OPTION, self.name(), reason, advice));
        if spec.kernel == Kernel::Disk && (self != Self::XenPv || spec.disks.is_empty()) {
            return refuse(
                "only a Xen PV guest with a disk starts from what that has in its file system",
                "give --kernel FILE, or --guest xen-pv with --disk FILE",
            );
        }
        if self == Self::Pc {
            return Ok(());
        }
        if !spec.firmware.is_none() {
            return refuse(
                "such a guest starts with a kernel, not with firmware",
                "give --kernel FILE, or --guest pc",
            );
        }
        if self == Self::Pvh {
            return Ok(());
        }
        match Self::not_in_a_domain(spec) {
            Some(what) => refuse(
                &format!("a Xen PV guest has no board, and so no place for {what}"),
                "leave that out, or give --guest pc",
            ),
            None => Ok(()),
        }
    }

    /// What of a description only a PC can have.
    fn not_in_a_domain(spec: &VmSpec) -> Option<&'static str> {
        let default = VmSpec::default();
        [
            (spec.memory_max.is_some(), "memory that comes later (--memory SIZE,max=SIZE)"),
            (spec.console_device != ConsoleDevice::Serial, "a virtio console (--console virtio)"),
            (!spec.channels.is_empty(), "channels (--channel)"),
            (spec.rng, "virtio's random bytes (--rng)"),
            (spec.input, "virtio's keyboard and tablet (--input)"),
            (spec.virtio != VirtioTransport::Pci, "virtio devices (--virtio)"),
            (spec.ports > 0, "PCI Express ports (--ports)"),
            (spec.vsock.is_some(), "virtio's sockets (--vsock)"),
            (spec.display != Display::None, "a screen (--display)"),
            (spec.floppy.is_some(), "a floppy (--floppy)"),
            (spec.boot != default.boot, "firmware's boot order (--boot)"),
            (spec.smbios != default.smbios, "SMBIOS (--smbios)"),
            (spec.disks.iter().any(|disk| board_bus(disk.bus)), "a SATA or SCSI adapter (bus=)"),
            (matches!(&spec.net, Net::User(net) if net.model == NetModel::E1000), "an e1000"),
            (spec.gdb.is_some(), "a debugger (--gdb)"),
            (spec.trace != Trace::default(), "a trace (--trace)"),
        ]
        .into_iter()
        .find_map(|(given, what)| given.then_some(what))
    }
}

/// Whether a disk asks for an adapter; CDs have none of their own.
fn board_bus(bus: DiskBus) -> bool {
    matches!(bus, DiskBus::Sata | DiskBus::Scsi)
}

impl FromStr for GuestKind {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "pc" => Ok(Self::Pc),
            "pvh" => Ok(Self::Pvh),
            "xen-pv" => Ok(Self::XenPv),
            _ => Err(SpecError::new(
                OPTION,
                text,
                "there is no such kind of guest",
                "give pc, pvh or xen-pv",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineChoice;

    #[test]
    fn kinds_have_their_words() {
        for kind in [GuestKind::Pc, GuestKind::Pvh, GuestKind::XenPv] {
            assert_eq!(kind.name().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.name()));
        }
        assert!("xen".parse::<GuestKind>().unwrap_err().to_string().contains("xen-pv"));
    }

    #[test]
    fn a_domain_has_no_board() {
        let domain = || VmSpec { guest: GuestKind::XenPv, ..VmSpec::default() };
        assert_eq!(domain().validate(), Ok(()));
        assert_eq!(domain().engine_of_guest(), EngineChoice::Translate);
        assert_eq!(VmSpec::default().engine_of_guest(), EngineChoice::Auto);
        let by_kvm = VmSpec { engine: EngineChoice::Kvm, cpus: 2, ..domain() };
        assert_eq!((by_kvm.validate(), by_kvm.engine_of_guest()), (Ok(()), EngineChoice::Kvm));
        for (spec, what) in [
            (VmSpec { rng: true, ..domain() }, "--rng"),
            (VmSpec { ports: 1, ..domain() }, "--ports"),
            (VmSpec { disks: vec!["d,bus=sata".parse().unwrap()], ..domain() }, "bus="),
            (VmSpec { net: "user,model=e1000".parse().unwrap(), ..domain() }, "e1000"),
            (VmSpec { firmware: "bios".parse().unwrap(), ..domain() }, "--kernel"),
            (VmSpec { display: "vnc=127.0.0.1:0".parse().unwrap(), ..domain() }, "--display"),
        ] {
            let text = spec.validate().unwrap_err().to_string();
            assert!(text.contains(what) && text.contains("--guest xen-pv"), "{text}");
        }
        let firmware = "bios".parse().unwrap();
        let spec = VmSpec { guest: GuestKind::Pvh, firmware, ..VmSpec::default() };
        assert!(spec.validate().is_err());
    }
}
