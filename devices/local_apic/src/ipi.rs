//! Messages on the bus of APICs, and who they are for (11.6, 11.11, 11.12.10).

use crate::regs::mode;
use device::Msi;

/// Who is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Physical { id: u32, wide: bool },
    Logical { id: u32, wide: bool },
    Only(u32),
    All,
    AllBut(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) target: Target,
    /// A delivery mode of [`mode`].
    pub(crate) mode: u32,
    pub(crate) vector: u8,
    /// Level-triggered.
    pub(crate) level: bool,
}

/// An address from the interrupt range; `None` for one that is ordinary memory.
pub(crate) fn from_msi(msi: Msi) -> Option<Message> {
    if msi.address >> 20 != 0xfee {
        return None;
    }
    let address = msi.address as u32;
    // Bits 5 to 11 extend the ID where the guest was told so (KVM_FEATURE_MSI_EXT_DEST_ID).
    let id = address >> 12 & 0xff | (address >> 5 & 0x7f) << 8;
    let logical = address & 4 != 0;
    let redirect = address & 8 != 0;
    let target = match logical {
        true => Target::Logical { id, wide: false },
        false => Target::Physical { id, wide: false },
    };
    let mode = match msi.data >> 8 & 7 {
        mode::FIXED if redirect && logical => mode::LOWEST,
        other => other,
    };
    Some(Message { target, mode, vector: msi.data as u8, level: msi.data & 1 << 15 != 0 })
}

/// What a write to the ICR sends; `None` for nothing.
pub(crate) fn from_icr(sender: u32, low: u32, dest: u32, wide: bool) -> Option<Message> {
    let mode = low >> 8 & 7;
    let (level, assert) = (low & 1 << 15 != 0, low & 1 << 14 != 0);
    let logical = low & 1 << 11 != 0;
    let target = match low >> 18 & 3 {
        0 if logical => Target::Logical { id: dest, wide },
        0 => Target::Physical { id: dest, wide },
        1 => Target::Only(sender),
        2 => Target::All,
        _ => Target::AllBut(sender),
    };
    let includes_sender = matches!(target, Target::Only(_) | Target::All);
    match mode {
        // INIT level de-assert is for buses of long ago (table 11-3).
        mode::INIT if level && !assert => return None,
        mode::INIT | mode::SIPI if includes_sender => return None,
        mode::FIXED | mode::LOWEST | mode::NMI | mode::INIT | mode::SIPI => {}
        _ => return None,
    }
    // The trigger mode of the ICR matters for INIT only.
    Some(Message { target, mode, vector: low as u8, level: false })
}

/// How an APIC is addressed: its mode and its logical ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Address {
    /// LDR: the upper byte of the xAPIC's, all of the x2APIC's.
    pub(crate) logical: u32,
    pub(crate) x2apic: bool,
    /// Enabled in IA32_APIC_BASE.
    pub(crate) present: bool,
    pub(crate) cluster: bool,
}

impl Address {
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.logical)
            | u64::from(self.x2apic) << 32
            | u64::from(self.present) << 33
            | u64::from(self.cluster) << 34
    }

    pub(crate) fn unpack(bits: u64) -> Self {
        let bit = |n: u32| bits >> n & 1 != 0;
        Self { logical: bits as u32, x2apic: bit(32), present: bit(33), cluster: bit(34) }
    }

    fn matches_logical(self, id: u32) -> bool {
        if self.x2apic {
            return id >> 16 == self.logical >> 16 && id & self.logical & 0xffff != 0;
        }
        let Ok(id) = u8::try_from(id) else { return false };
        let own = self.logical as u8;
        match self.cluster {
            false => id & own != 0,
            true => (id >> 4 == own >> 4 || id >> 4 == 0xf) && id & own & 0xf != 0,
        }
    }
}

impl Target {
    /// Everybody, whatever the others' modes.
    pub(crate) fn is_broadcast(self) -> bool {
        match self {
            Self::Physical { id, wide } | Self::Logical { id, wide } => {
                id == if wide { u32::MAX } else { 0xff }
            }
            Self::All => true,
            Self::Only(_) | Self::AllBut(_) => false,
        }
    }

    /// True if the APIC `id`, addressed so, is meant.
    pub(crate) fn includes(self, own: u32, address: Address) -> bool {
        if !address.present {
            return false;
        }
        self.is_broadcast()
            || match self {
                Self::Physical { id, .. } => id == own,
                Self::Logical { id, .. } => address.matches_logical(id),
                Self::Only(id) => id == own,
                Self::All => true,
                Self::AllBut(id) => id != own,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logical(id: u32) -> Target {
        Target::Logical { id, wide: false }
    }

    #[test]
    fn flat_cluster_and_x2apic_destinations() {
        let flat = Address { logical: 0x04, present: true, ..Address::default() };
        assert!(logical(0x06).includes(2, flat));
        assert!(!logical(0x03).includes(2, flat));
        let cluster = Address { logical: 0x24, cluster: true, ..flat };
        assert!(logical(0x24).includes(2, cluster));
        assert!(!logical(0x14).includes(2, cluster));
        assert!(logical(0xf4).includes(2, cluster), "all clusters");
        assert!(logical(0xff).includes(2, cluster), "broadcast");
        let x2 = Address { logical: 0x1_0004, x2apic: true, ..flat };
        let wide = |id| Target::Logical { id, wide: true };
        assert!(wide(0x1_000f).includes(18, x2));
        assert!(!wide(0xff).includes(18, x2), "cluster 0 is another");
        assert!(wide(u32::MAX).includes(18, x2));
        let absent = Address { present: false, ..x2 };
        assert!(!Target::All.includes(18, absent));
        assert_eq!(Address::unpack(x2.pack()), x2);
    }

    #[test]
    fn a_wide_255_is_one_apic_and_a_narrow_one_is_all() {
        let address = Address { present: true, x2apic: true, ..Address::default() };
        assert!(Target::Physical { id: 0xff, wide: false }.includes(3, address));
        assert!(!Target::Physical { id: 0xff, wide: true }.includes(3, address));
        assert!(Target::Physical { id: 0xff, wide: true }.includes(0xff, address));
    }

    #[test]
    fn messages_and_shorthands() {
        let msi = from_msi(Msi { address: 0xfee0_3000, data: 0x8031 }).unwrap();
        assert_eq!(msi.target, Target::Physical { id: 3, wide: false });
        assert_eq!((msi.mode, msi.vector, msi.level), (mode::FIXED, 0x31, true));
        let lowest = from_msi(Msi { address: 0xfee0_f00c, data: 0x40 }).unwrap();
        assert_eq!((lowest.mode, lowest.target), (mode::LOWEST, logical(0xf)));
        assert_eq!(from_msi(Msi { address: 0xfec0_0000, data: 0 }), None);
        assert_eq!(from_icr(1, 0x4_00f0, 0, false).unwrap().target, Target::Only(1));
        assert_eq!(from_icr(1, 0x8_00f0, 0, false).unwrap().target, Target::All);
        assert_eq!(from_icr(1, 0xc_0500, 0, false).unwrap().target, Target::AllBut(1));
        assert_eq!(from_icr(1, 0x8500, 0, false), None, "INIT de-assert");
        assert_eq!(from_icr(1, 0x8_0600, 0, false), None, "SIPI to itself");
        assert_eq!(from_icr(1, 0x0300, 0, false), None, "reserved");
    }
}
