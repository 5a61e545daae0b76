//! What firmware may boot from, and in which order it is to try.

use vm_spec::{Boot, BootKind};

/// Something to boot from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bootable {
    pub kind: BootKind,
    /// How firmware is told of it: an Open Firmware device path (IEEE 1275, 3.2.1.1) in the form of
    /// QEMU's file `bootorder`.
    pub path: String,
}

/// A network card on the first bus.
pub(crate) fn card(slot: u8) -> Bootable {
    Bootable { kind: BootKind::Net, path: format!("/pci@i0cf8/ethernet@{slot:x}/ethernet-phy@0") }
}

/// The paths, one on a line, and a zero. What the order leaves open stays as it is.
pub(crate) fn order(boot: &Boot, bootable: &[Bootable]) -> Vec<u8> {
    let mut bootable: Vec<_> = bootable.iter().collect();
    bootable.sort_by_key(|device| boot.place(device.kind));
    let paths: Vec<&str> = bootable.iter().map(|device| &*device.path).collect();
    let mut text = paths.join("\n").into_bytes();
    text.push(0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_stable() {
        let device = |kind, path: &str| Bootable { kind, path: path.into() };
        let all = [
            device(BootKind::Disk, "a"),
            device(BootKind::Cd, "b"),
            device(BootKind::Disk, "c"),
            device(BootKind::Net, "d"),
        ];
        let order = |text: &str| order(&text.parse().unwrap(), &all);
        assert_eq!(order("menu"), b"a\nb\nc\nd\0");
        assert_eq!(order("cd"), b"b\na\nc\nd\0");
        assert_eq!(order("net,disk"), b"d\na\nc\nb\0");
        assert_eq!(super::order(&Boot::default(), &[]), b"\0");
    }
}
