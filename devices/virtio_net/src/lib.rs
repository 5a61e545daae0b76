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
mod header;

use control::Command;
use nic::{Mac, Meta, Network, NoRoom, Offloads, Port, Taken};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
};
use virtio::{Chain, GuestError, Handle, Owed, Queue, Served, VirtioDevice};

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
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
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
        | CTRL_MAC_ADDR;
}

const DEVICE_TYPE: u16 = 1;
/// PCI's class: network, Ethernet.
const CLASS: u32 = 0x02_00_00;
/// The queues (5.1.2).
pub const RECEIVE: u16 = 0;
pub const TRANSMIT: u16 = 1;
pub const CONTROL: u16 = 2;
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub mac: Mac,
    pub mtu: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// The one that the driver chose, or was given.
    pub mac: Mac,
    pub mtu: u16,
    pub link: bool,
}

impl Schema for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

/// What is owed to the driver after a batch, and whether it was told not to ring.
#[derive(Debug, Default)]
struct Side {
    owed: Owed,
    silent: bool,
}

pub struct VirtioNet {
    config: Config,
    network: Arc<dyn Network>,
    handle: OnceLock<Handle>,
    features: AtomicU64,
    mac: Mutex<Mac>,
    link: AtomicBool,
    receive: Mutex<Side>,
    transmit: Mutex<Side>,
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
        let card = Arc::new(Self {
            config,
            network: network.clone(),
            handle: OnceLock::new(),
            features: AtomicU64::new(0),
            mac: Mutex::new(config.mac),
            link: AtomicBool::new(true),
            receive: Mutex::default(),
            transmit: Mutex::default(),
            counters: Counters::default(),
        });
        let port: Weak<Self> = Arc::downgrade(&card);
        network.attach(port);
        card
    }

    fn has(&self, feature: u64) -> bool {
        self.features.load(SeqCst) & feature != 0
    }

    /// The next frame. One that is none is handed back and counts as empty, so that a driver that
    /// makes such without end does not keep the network here.
    fn next_frame(
        &self,
        queue: &mut Queue<'_>,
        side: &mut Side,
        buffer: &mut [u8],
    ) -> Result<Option<Taken>, GuestError> {
        loop {
            if let Some(mut chain) = queue.pop()? {
                if !side.silent {
                    side.silent = true;
                    queue.silence()?;
                }
                let taken = read_frame(&mut chain, buffer);
                queue.complete(chain, 0)?;
                let counter = match taken {
                    Some(_) => &self.counters.sent,
                    None => &self.counters.dropped,
                };
                counter.fetch_add(1, Relaxed);
                return Ok(Some(taken.unwrap_or(Taken { len: 0, meta: Meta::default() })));
            }
            side.silent = false;
            if !queue.listen()? || queue.interrupted() {
                return Ok(None);
            }
        }
    }

    /// Whether there was room for the frame.
    fn put_frame(
        &self,
        queue: &mut Queue<'_>,
        side: &mut Side,
        mut header: [u8; header::LEN],
        parts: &[&[u8]],
    ) -> Result<bool, GuestError> {
        let len = header.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        let Some(mut chains) = self.buffers(queue, side, len as u64)? else { return Ok(false) };
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        header[header::NUM_BUFFERS..].copy_from_slice(&count.to_le_bytes());
        let mut filled = chains.iter_mut();
        let mut now = filled.next();
        for mut part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
            while let (false, Some((chain, written))) = (part.is_empty(), now.as_mut()) {
                let n = chain.writable.write(part);
                *written += n as u32;
                part = part.get(n..).unwrap_or_default();
                if !part.is_empty() {
                    now = filled.next();
                }
            }
        }
        queue.complete_all(&chains)?;
        Ok(true)
    }

    /// Buffers for `len` bytes; `None` if there are not enough.
    fn buffers(
        &self,
        queue: &mut Queue<'_>,
        side: &mut Side,
        len: u64,
    ) -> Result<Option<Vec<(Chain, u32)>>, GuestError> {
        let most = if self.has(feature::MRG_RXBUF) { usize::from(QUEUE_SIZE) } else { 1 };
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < len {
            if let Some(chain) = queue.pop()? {
                if !side.silent {
                    side.silent = true;
                    queue.silence()?;
                }
                room += chain.writable.len();
                chains.push((chain, 0));
                if chains.len() >= most && room < len {
                    return Err(GuestError("receive buffers are too small"));
                }
                continue;
            }
            side.silent = false;
            // Before they are given back, since what came meanwhile is counted from here.
            if queue.listen()? && !queue.interrupted() {
                continue;
            }
            chains.into_iter().rev().for_each(|(chain, _)| queue.put_back(chain));
            return Ok(None);
        }
        Ok(Some(chains))
    }

    fn lend<T>(
        &self,
        index: u16,
        work: impl FnOnce(&mut Queue<'_>) -> Result<T, GuestError>,
    ) -> Option<T> {
        self.handle.get()?.lend(index, work)
    }

    fn signal(&self, index: u16, side: &Mutex<Side>) {
        let mut side = lock(side);
        let owed = std::mem::take(&mut side.owed);
        if !owed.is_nothing() {
            // What has to rest is told when the driver asks again: its rings are as they are.
            let told = self.lend(index, |queue| {
                queue.owe(owed);
                queue.signal()
            });
            if told.is_none() {
                side.owed = owed;
            }
        }
    }
}

/// A frame of the driver behind its header; `None` if it is none.
fn read_frame(chain: &mut Chain, buffer: &mut [u8]) -> Option<Taken> {
    let mut head = [0; header::LEN];
    if chain.readable.read(&mut head) < head.len() {
        return None;
    }
    let meta = header::decode(&head)?;
    let len = usize::try_from(chain.readable.len()).ok()?;
    let place = buffer.get_mut(..len)?;
    chain.readable.read(place);
    Some(Taken { len, meta })
}

impl Port for VirtioNet {
    fn mac(&self) -> Mac {
        *lock(&self.mac)
    }

    fn offloads(&self) -> Offloads {
        let checksum = self.has(feature::GUEST_CSUM);
        Offloads {
            checksum,
            tso4: checksum && self.has(feature::GUEST_TSO4),
            tso6: checksum && self.has(feature::GUEST_TSO6),
        }
    }

    fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        let mut side = lock(&self.transmit);
        self.lend(TRANSMIT, |queue| {
            let taken = self.next_frame(queue, &mut side, buffer);
            side.owed = side.owed.and(queue.unsignalled());
            taken
        })
        .flatten()
    }

    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let header = header::encode(meta);
        let mut side = lock(&self.receive);
        let given = self.lend(RECEIVE, |queue| {
            let given = self.put_frame(queue, &mut side, header, parts);
            side.owed = side.owed.and(queue.unsignalled());
            given
        });
        if given == Some(true) {
            self.counters.received.fetch_add(1, Relaxed);
            Ok(())
        } else {
            self.counters.refused.fetch_add(1, Relaxed);
            Err(NoRoom)
        }
    }

    fn flush(&self) {
        self.signal(RECEIVE, &self.receive);
        self.signal(TRANSMIT, &self.transmit);
    }

    fn set_link(&self, up: bool) {
        if self.link.swap(up, SeqCst) != up
            && let Some(handle) = self.handle.get()
        {
            handle.config_changed();
        }
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
        vec![QUEUE_SIZE, QUEUE_SIZE, CONTROL_SIZE]
    }

    fn features(&self) -> u64 {
        feature::ALL
    }

    fn attach(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    fn doorbell(&self, index: u16) -> bool {
        if index == CONTROL {
            return false;
        }
        self.network.wake();
        true
    }

    /// The structure of 5.1.4: the address, the status, the pairs of queues, the MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&lock(&self.mac).0);
        let status = if self.link.load(SeqCst) { LINK_UP } else { 0 };
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes[8..10].copy_from_slice(&1u16.to_le_bytes());
        bytes[10..].copy_from_slice(&self.config.mtu.to_le_bytes());
        for (at, byte) in (offset..).zip(data) {
            let known = usize::try_from(at).ok().and_then(|at| bytes.get(at));
            *byte = known.copied().unwrap_or(0);
        }
    }

    fn activate(&self, features: u64) {
        self.features.store(features, SeqCst);
        self.network.wake();
    }

    fn reset(&self) {
        self.features.store(0, SeqCst);
        *lock(&self.mac) = self.config.mac;
    }

    /// Of the control queue only.
    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        if index != CONTROL {
            return Ok(Served::Left);
        }
        while let Some(mut chain) = queue.pop()? {
            let done = match control::parse(&mut chain) {
                Command::Filter => true,
                Command::SetMac(mac) => {
                    *lock(&self.mac) = mac;
                    true
                }
                Command::Unknown => false,
            };
            let written = control::answer(&mut chain, done);
            if written == 0 {
                return Err(GuestError("a command has no room for its answer"));
            }
            queue.complete(chain, written)?;
        }
        Ok(Served::Drained)
    }

    fn save(&self, to: &mut Writer, instance: u32) {
        let state =
            NetState { mac: *lock(&self.mac), mtu: self.config.mtu, link: self.link.load(SeqCst) };
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
        *lock(&self.mac) = state.mac;
        self.link.store(state.link, SeqCst);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { sent, received, refused, dropped } = &self.counters;
        vec![
            ("frames sent", sent.load(Relaxed)),
            ("frames received", received.load(Relaxed)),
            ("frames without room", refused.load(Relaxed)),
            ("frames dropped", dropped.load(Relaxed)),
        ]
    }
}
