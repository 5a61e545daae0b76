//! Commands of the control queue (virtio 1.2, section 5.1.6.5).

use crate::{
    feature,
    filter::{Switch, TABLE_MAX, Table, VLANS},
};
use nic::Mac;
use virtio::{Chain, Span};

const OK: u8 = 0;
const ERR: u8 = 1;

mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
}

const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const VLAN_ADD: u8 = 0;
const VLAN_DEL: u8 = 1;
const ANNOUNCE_ACK: u8 = 0;
const PAIRS_SET: u8 = 0;

/// What the device is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Switch(Switch, bool),
    SetMac(Mac),
    /// Addresses of stations, and of groups.
    Tables(Table, Table),
    /// Tagged frames of this one are let through, or no longer.
    Vlan(u16, bool),
    Announced,
    /// So many pairs of queues are used from now on; whether there are so many is not known here.
    Pairs(u16),
}

/// Reads a command from the front of a request; `None` if it is none, or one of a feature that the
/// driver has not accepted.
pub(crate) fn parse(chain: &mut Chain, features: u64) -> Option<Command> {
    let given = &mut chain.readable;
    let [class, kind] = bytes(given)?;
    let needs = match (class, kind) {
        (class::RX, 0 | 1) => feature::CTRL_RX,
        (class::RX, _) => feature::CTRL_RX_EXTRA,
        (class::MAC, MAC_TABLE_SET) => feature::CTRL_RX,
        (class::MAC, _) => feature::CTRL_MAC_ADDR,
        (class::VLAN, _) => feature::CTRL_VLAN,
        (class::ANNOUNCE, _) => feature::GUEST_ANNOUNCE,
        (class::MQ, _) => feature::MQ,
        _ => return None,
    };
    if features & needs == 0 {
        return None;
    }
    Some(match (class, kind) {
        (class::RX, kind) => Command::Switch(switch(kind)?, bytes::<1>(given)? != [0]),
        (class::MAC, MAC_TABLE_SET) => Command::Tables(table(given)?, table(given)?),
        (class::MAC, MAC_ADDR_SET) => {
            Command::SetMac(Some(Mac(bytes(given)?)).filter(|mac| mac.is_unicast())?)
        }
        (class::VLAN, VLAN_ADD | VLAN_DEL) => {
            let vlan = u16::from_le_bytes(bytes(given)?);
            Command::Vlan(Some(vlan).filter(|vlan| *vlan < VLANS)?, kind == VLAN_ADD)
        }
        (class::ANNOUNCE, ANNOUNCE_ACK) => Command::Announced,
        (class::MQ, PAIRS_SET) => Command::Pairs(u16::from_le_bytes(bytes(given)?)),
        _ => return None,
    })
}

fn switch(kind: u8) -> Option<Switch> {
    Some(match kind {
        0 => Switch::Promiscuous,
        1 => Switch::AllMulticast,
        2 => Switch::AllUnicast,
        3 => Switch::NoMulticast,
        4 => Switch::NoUnicast,
        5 => Switch::NoBroadcast,
        _ => return None,
    })
}

fn bytes<const N: usize>(given: &mut Span) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (given.read(&mut bytes) == N).then_some(bytes)
}

/// A number of addresses, and these.
fn table(given: &mut Span) -> Option<Table> {
    let count = u32::from_le_bytes(bytes(given)?);
    let len = u64::from(count) * 6;
    if len > given.len() {
        return None;
    }
    let mut addresses = given.split_front(len);
    let mut table = Table { overflow: count as usize > TABLE_MAX, ..Table::default() };
    for _ in 0..TABLE_MAX {
        match bytes(&mut addresses) {
            Some(address) if !table.overflow => table.addresses.insert(Mac(address)),
            _ => break,
        };
    }
    Some(table)
}

/// Answers; how many bytes that took.
pub(crate) fn answer(chain: &mut Chain, done: bool) -> u32 {
    chain.writable.write(&[if done { OK } else { ERR }]) as u32
}
