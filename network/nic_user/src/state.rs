//! What is saved of a network.
//!
//! Who has which address; and the TCP connections that were open, of which the guest is told
//! that they are reset when it goes on, since their other ends cannot follow it. Forwards are
//! part of the description of the VM.

use std::net::SocketAddr;

use nic::Mac;
use saved_state::{Error, Schema, malformed};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, LEASES},
    dhcp::Leases,
    stack::Memory,
    tcp::{FLOWS, Orphan},
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserNetState {
    leases: Vec<Lease>,
    connections: Vec<Connection>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lease {
    mac: Mac,
    index: u8,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Connection {
    guest: SocketAddr,
    remote: SocketAddr,
    /// Sequence numbers: what the guest expects next, and what has come from it.
    seq: u32,
    ack: u32,
}

impl Schema for UserNetState {
    const KIND: &'static str = "nic_user";
    const VERSION: u16 = 1;
}

impl UserNetState {
    pub(crate) fn of(memory: &Memory) -> Self {
        let lease = |&(mac, index): &(Mac, u8)| Lease { mac, index };
        let connection =
            |o: &Orphan| Connection { guest: o.guest, remote: o.remote, seq: o.seq, ack: o.ack };
        Self {
            leases: memory.leases.leases.iter().map(lease).collect(),
            connections: memory.orphans.iter().map(connection).collect(),
        }
    }

    pub(crate) fn check(self, config: &Config) -> Result<Memory, Error> {
        let fault = |reason: &str| Err(malformed::<Self>(reason));
        let Self { leases, connections } = self;
        for (i, lease) in leases.iter().enumerate() {
            let twice = leases.iter().take(i).any(|l| l.mac == lease.mac || l.index == lease.index);
            if twice || lease.index >= LEASES || !lease.mac.is_unicast() {
                return fault("a lease is impossible");
            }
        }
        if connections.len() > FLOWS {
            return fault("there are too many connections");
        }
        let possible = |c: &Connection| {
            c.guest.is_ipv4() == c.remote.is_ipv4() && config.is_guest(c.guest.ip())
        };
        if !connections.iter().all(possible) {
            return fault("a connection is impossible");
        }
        let orphan =
            |c: Connection| Orphan { guest: c.guest, remote: c.remote, seq: c.seq, ack: c.ack };
        Ok(Memory {
            leases: Leases { leases: leases.into_iter().map(|l| (l.mac, l.index)).collect() },
            orphans: connections.into_iter().map(orphan).collect(),
        })
    }
}
