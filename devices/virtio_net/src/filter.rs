//! Which frames the guest wants (virtio 1.2, sections 5.1.6.5.1 to 5.1.6.5.3).

use nic::{Mac, head};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Addresses of one table; a driver with more gets all of the kind.
pub(crate) const TABLE_MAX: usize = 64;
/// VLAN identifiers.
pub(crate) const VLANS: u16 = 4096;

/// Bytes of a frame that are looked at: both addresses, and a tag.
const HEAD: usize = 16;
/// IEEE 802.1Q's tag protocol identifier.
const TAGGED: [u8; 2] = [0x81, 0x00];

/// Addresses of one kind, individual or of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// At most 64.
    pub addresses: BTreeSet<Mac>,
    /// There were more.
    pub overflow: bool,
}

/// What the driver chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub all_unicast: bool,
    pub no_multicast: bool,
    pub no_unicast: bool,
    pub no_broadcast: bool,
    pub unicast: Table,
    pub multicast: Table,
    /// Tagged frames that are let through, where the driver filters them.
    pub vlans: BTreeSet<u16>,
}

impl Default for Filter {
    /// Everything, until the driver says otherwise.
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: BTreeSet::new(),
        }
    }
}

/// A switch of class VIRTIO_NET_CTRL_RX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Promiscuous,
    AllMulticast,
    AllUnicast,
    NoMulticast,
    NoUnicast,
    NoBroadcast,
}

impl Filter {
    pub(crate) fn set(&mut self, switch: Switch, on: bool) {
        let place = match switch {
            Switch::Promiscuous => &mut self.promiscuous,
            Switch::AllMulticast => &mut self.all_multicast,
            Switch::AllUnicast => &mut self.all_unicast,
            Switch::NoMulticast => &mut self.no_multicast,
            Switch::NoUnicast => &mut self.no_unicast,
            Switch::NoBroadcast => &mut self.no_broadcast,
        };
        *place = on;
    }

    pub(crate) fn is_sound(&self) -> bool {
        let small = |table: &Table| table.addresses.len() <= TABLE_MAX;
        small(&self.unicast)
            && small(&self.multicast)
            && self.vlans.iter().all(|vlan| *vlan < VLANS)
    }

    /// Whether a frame for the card with this address goes to the guest; `vlans`: the driver
    /// filters tagged ones. All of them go to one that is promiscuous (5.1.6.5.1).
    pub(crate) fn passes(&self, mac: Mac, vlans: bool, parts: &[&[u8]]) -> bool {
        if self.promiscuous {
            return true;
        }
        let head = head::<HEAD>(parts);
        let [to0, to1, to2, to3, to4, to5, _, _, _, _, _, _, kind @ .., high, low] = head;
        let vlan = u16::from_be_bytes([high, low]) % VLANS;
        if vlans && kind == TAGGED && !self.vlans.contains(&vlan) {
            return false;
        }
        let to = Mac([to0, to1, to2, to3, to4, to5]);
        if to.0 == [0xff; 6] {
            return !self.no_broadcast;
        }
        let (table, none, all) = if to.0[0] & 1 != 0 {
            (&self.multicast, self.no_multicast, self.all_multicast)
        } else {
            (&self.unicast, self.no_unicast, self.all_unicast || to == mac)
        };
        !none && (all || table.overflow || table.addresses.contains(&to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
    const GROUP: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    const ALL: Mac = Mac([0xff; 6]);

    fn passing(filter: &Filter) -> Vec<Mac> {
        let passes = |to: &Mac| filter.passes(MAC, true, &[&to.0[..3], &to.0[3..], &[0; 50]]);
        [MAC, OTHER, GROUP, ALL].into_iter().filter(passes).collect()
    }

    #[test]
    fn switches_and_tables_say_what_passes() {
        let mut filter = Filter::default();
        assert_eq!(passing(&filter).len(), 4, "everything at first");
        filter.set(Switch::Promiscuous, false);
        assert_eq!(passing(&filter), [MAC, ALL]);
        filter.multicast.addresses.insert(GROUP);
        filter.unicast.addresses.insert(OTHER);
        assert_eq!(passing(&filter), [MAC, OTHER, GROUP, ALL]);
        filter.set(Switch::NoMulticast, true);
        filter.set(Switch::NoBroadcast, true);
        assert_eq!(passing(&filter), [MAC, OTHER]);
        filter.set(Switch::NoUnicast, true);
        assert!(passing(&filter).is_empty());
        let mut filter = Filter { promiscuous: false, ..Filter::default() };
        filter.set(Switch::AllMulticast, true);
        assert_eq!(passing(&filter), [MAC, GROUP, ALL]);
        filter.set(Switch::AllUnicast, true);
        assert_eq!(passing(&filter).len(), 4);
        let mut filter = Filter { promiscuous: false, ..Filter::default() };
        (filter.unicast.overflow, filter.multicast.overflow) = (true, true);
        assert_eq!(passing(&filter).len(), 4, "more than the table holds");
    }

    #[test]
    fn tagged_frames_need_their_vlan() {
        let mut filter = Filter { promiscuous: false, ..Filter::default() };
        let tagged = [&MAC.0[..], &OTHER.0, &[0x81, 0, 0x60, 7]].concat();
        assert!(filter.passes(MAC, false, &[&tagged]) && !filter.passes(MAC, true, &[&tagged]));
        filter.vlans.insert(7);
        assert!(filter.passes(MAC, true, &[&tagged[..13], &tagged[13..]]));
        let mut filter = Filter::default();
        assert!(filter.passes(MAC, true, &[&tagged]), "a promiscuous card sees all");
        assert!(filter.passes(MAC, true, &[&[]]), "what is no frame is not looked at");
        filter.promiscuous = false;
        assert!(!filter.passes(MAC, true, &[&[]]) && !filter.passes(MAC, true, &[]));
    }
}
