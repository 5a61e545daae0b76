//! The virtio network card (virtio 1.2, section 5.1).
//!
//! The card has no thread for frames: the [`Network`] that it is plugged into takes them out of
//! the guest's ring and puts them there on its own thread, through [`nic::Port`], straight between
//! guest memory and the network's buffers. The guest's doorbell wakes the network. Only the control
//! queue is served by a thread of the card.
//!
//! Checksums and segmentation may be left undone in both directions, and a frame for the guest
//! may lie in several of its buffers. A frame of the guest with a header of a kind that was not offered
//! is dropped and counted; a receive buffer that no frame fits makes the device need a reset.

mod control;
mod filter;
mod header;
mod port;

pub use filter::{Filter, Table};

use control::Command;
use nic::{Mac, Network, Steering};
use port::Side;
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::*},
    },
};
use virtio::{GuestError, Handle, Queue, Served, VirtioDevice};

/// Feature bits (5.1.3).
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// But [`MQ`], which a card with one pair of queues has not.
    pub(crate) const ALL: u64 = CSUM
        | GUEST_CSUM
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | HOST_TSO4
        | HOST_TSO6
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | CTRL_VLAN
        | CTRL_RX_EXTRA
        | GUEST_ANNOUNCE
        | CTRL_MAC_ADDR;
}

const DEVICE_TYPE: u16 = 1;
/// PCI's class: network, Ethernet.
const CLASS: u32 = 0x02_00_00;
/// The queues (5.1.2): of each pair, and the control queue behind the one pair of a driver that
/// knows no others.
pub const RECEIVE: u16 = 0;
pub const TRANSMIT: u16 = 1;
pub const CONTROL: u16 = 2;
/// Pairs of queues at most.
pub const PAIRS_MAX: u16 = 16;
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// VIRTIO_NET_S_LINK_UP and VIRTIO_NET_S_ANNOUNCE.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub mac: Mac,
    pub mtu: u16,
    /// Pairs of queues: 1 to [`PAIRS_MAX`].
    pub pairs: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// The one that the driver chose, or was given.
    pub mac: Mac,
    pub mtu: u16,
    pub link: bool,
    /// The pairs of queues that the driver uses.
    pub pairs: u16,
    pub filter: Filter,
}

impl Schema for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 2;
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    filtered: AtomicU64,
}

pub struct VirtioNet {
    config: Config,
    network: Arc<dyn Network>,
    handle: OnceLock<Handle>,
    features: AtomicU64,
    mac: Mutex<Mac>,
    link: AtomicBool,
    filter: Mutex<Filter>,
    /// The pairs of queues that the driver uses.
    pairs: AtomicU16,
    /// The pair whose turn it is to send, until it has no more, or a batch ends.
    turn: AtomicU16,
    steering: Steering,
    /// The driver is to tell the network where the card is now.
    announce: AtomicBool,
    /// It has to hear of that.
    tell: AtomicBool,
    /// Of each pair.
    receive: Vec<Mutex<Side>>,
    transmit: Vec<Mutex<Side>>,
    counters: Counters,
}

impl fmt::Debug for VirtioNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioNet").field("config", &self.config).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioNet {
    /// A card that is plugged into the network.
    pub fn new(config: Config, network: Arc<dyn Network>) -> Arc<Self> {
        let config = Config { pairs: config.pairs.clamp(1, PAIRS_MAX), ..config };
        let sides = || (0..config.pairs).map(|_| Mutex::default()).collect();
        let card = Arc::new(Self {
            config,
            network: network.clone(),
            handle: OnceLock::new(),
            features: AtomicU64::new(0),
            mac: Mutex::new(config.mac),
            link: AtomicBool::new(true),
            filter: Mutex::default(),
            pairs: AtomicU16::new(1),
            turn: AtomicU16::new(0),
            steering: Steering::default(),
            announce: AtomicBool::new(false),
            tell: AtomicBool::new(false),
            receive: sides(),
            transmit: sides(),
            counters: Counters::default(),
        });
        let port: Weak<Self> = Arc::downgrade(&card);
        network.attach(port);
        card
    }

    fn has(&self, feature: u64) -> bool {
        self.features.load(SeqCst) & feature != 0
    }

    /// The control queue is behind all pairs for a driver that knows of them (5.1.2).
    fn control(&self) -> u16 {
        if self.has(feature::MQ) { 2 * self.config.pairs } else { CONTROL }
    }

    /// Carries a command out, if that can be done.
    fn obey(&self, command: Command) -> bool {
        match command {
            Command::Switch(switch, on) => lock(&self.filter).set(switch, on),
            Command::SetMac(mac) => *lock(&self.mac) = mac,
            Command::Tables(unicast, multicast) => {
                let mut filter = lock(&self.filter);
                (filter.unicast, filter.multicast) = (unicast, multicast);
            }
            Command::Vlan(vlan, true) => drop(lock(&self.filter).vlans.insert(vlan)),
            Command::Vlan(vlan, false) => drop(lock(&self.filter).vlans.remove(&vlan)),
            Command::Announced => self.announce.store(false, SeqCst),
            Command::Pairs(pairs) if (1..=self.config.pairs).contains(&pairs) => {
                self.pairs.store(pairs, SeqCst);
                // Whoever is at work on a pair that is no longer used comes to an end first. It is
                // the queue that is waited for: whoever has a side may wait for the registers, and
                // who has those for the queue of this command.
                for queue in 0..2 * self.config.pairs {
                    self.lend(queue, |_| Ok(()));
                }
                self.network.wake();
            }
            Command::Pairs(_) => return false,
        }
        true
    }
}

impl VirtioDevice for VirtioNet {
    fn name(&self) -> &'static str {
        "virtio_net"
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.config.pairs)];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn features(&self) -> u64 {
        feature::ALL | if self.config.pairs > 1 { feature::MQ } else { 0 }
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    fn doorbell(&self, index: u16) -> bool {
        if index == self.control() {
            return false;
        }
        self.network.wake();
        true
    }

    /// The structure of 5.1.4: the address, the status, the pairs of queues, the MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&lock(&self.mac).0);
        let announce = self.has(feature::GUEST_ANNOUNCE) && self.announce.load(SeqCst);
        let status =
            if self.link.load(SeqCst) { LINK_UP } else { 0 } | if announce { ANNOUNCE } else { 0 };
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.config.pairs.to_le_bytes());
        bytes[10..].copy_from_slice(&self.config.mtu.to_le_bytes());
        virtio::read_config_bytes(&bytes, offset, data);
    }

    fn activate(&self, features: u64) {
        self.features.store(features, SeqCst);
        let announce = features & feature::GUEST_ANNOUNCE != 0;
        self.tell.store(announce && self.announce.load(SeqCst), SeqCst);
        self.network.wake();
    }

    fn reset(&self) {
        self.features.store(0, SeqCst);
        self.pairs.store(1, SeqCst);
        self.announce.store(false, SeqCst);
        self.tell.store(false, SeqCst);
        *lock(&self.filter) = Filter::default();
        *lock(&self.mac) = self.config.mac;
    }

    /// Of the control queue only.
    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        if index != self.control() {
            return Ok(Served::Left);
        }
        while let Some(mut chain) = queue.pop()? {
            let command = control::parse(&mut chain, self.features.load(SeqCst));
            let done = command.is_some_and(|command| self.obey(command));
            let written = control::answer(&mut chain, done);
            if written == 0 {
                return Err(GuestError("a command has no room for its answer"));
            }
            queue.complete(chain, written)?;
        }
        Ok(Served::Drained)
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let state = NetState {
            mac: *lock(&self.mac),
            mtu: self.config.mtu,
            link: self.link.load(SeqCst),
            pairs: self.pairs.load(SeqCst),
            filter: lock(&self.filter).clone(),
        };
        to.put(instance, &state);
    }

    fn restore(&self, from: &mut Reader, instance: u32) -> Result<(), Error> {
        let state: NetState = from.take(instance)?;
        if state.mtu != self.config.mtu {
            return Err(malformed::<NetState>("the network has another MTU"));
        }
        if !state.mac.is_unicast() {
            return Err(malformed::<NetState>("the address is not one station's"));
        }
        if !(1..=self.config.pairs).contains(&state.pairs) {
            return Err(malformed::<NetState>("the card has fewer queues"));
        }
        if !state.filter.is_sound() {
            return Err(malformed::<NetState>("a filter has more than its tables hold"));
        }
        *lock(&self.mac) = state.mac;
        *lock(&self.filter) = state.filter;
        self.pairs.store(state.pairs, SeqCst);
        self.link.store(state.link, SeqCst);
        // The card may be elsewhere; the network is to learn of it (5.1.6.5.4).
        self.announce.store(true, SeqCst);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { sent, received, refused, dropped, filtered } = &self.counters;
        vec![
            ("frames sent", sent.load(Relaxed)),
            ("frames received", received.load(Relaxed)),
            ("frames without room", refused.load(Relaxed)),
            ("frames dropped", dropped.load(Relaxed)),
            ("frames filtered", filtered.load(Relaxed)),
        ]
    }
}
