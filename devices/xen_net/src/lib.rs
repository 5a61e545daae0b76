//! The network back end of a Xen domain (`io/netif.h` of Xen): what its driver's frames go through.
//!
//! It has no thread for frames: the [`Network`] that it is plugged into takes them out of the
//! domain's rings and puts them there on its own thread, through [`nic::Port`], and copies them
//! between the pages that the domain grants and the network's buffers. The domain's notifications
//! wake the network.
//!
//! Checksums and segmentation may be left undone in both directions, a frame may lie in several
//! pages, and there may be several queues, each a ring for each direction. A frame that is none is
//! answered with an error and counted. A ring that cannot be what a driver wrote ends the service, as
//! Linux's back end does, until the driver connects again.
//!
//! Whether the cable is plugged in has no place in the protocol.

mod front;
mod headers;
mod offload;
mod port;
mod rx;
mod tx;

use device::Device;
use front::{Choice, Front, Served};
use nic::{Mac, Network, Steering};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};
use xen_front::{Backend, Connect, Domain, Nodes};

/// Queues at most.
pub const QUEUES_MAX: u16 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which of the domain's network devices it is, from 0.
    pub handle: u16,
    pub mac: Mac,
    pub mtu: u16,
    /// Queues that the driver may have: 1 to [`QUEUES_MAX`].
    pub queues: u16,
}

/// How far the rings of a queue were served: requests that were taken and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    pub transmit: u32,
    pub receive: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XenNetState {
    pub mac: Mac,
    pub mtu: u16,
    /// None while no driver is connected.
    pub queues: Vec<QueueState>,
    /// The driver broke a ring, and is not served.
    pub broken: bool,
}

impl Schema for XenNetState {
    const KIND: &'static str = "xen-net";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    broken: AtomicU64,
}

/// The front end, or what is known of it from before.
#[derive(Default)]
struct Link {
    front: Option<Front>,
    /// How far rings were served that are to be connected again.
    restored: Option<Served>,
}

pub struct XenNet {
    config: Config,
    network: Arc<dyn Network>,
    mac: Mutex<Mac>,
    paused: AtomicBool,
    /// Held while rings are worked on.
    link: Mutex<Link>,
    steering: Steering,
    counters: Counters,
}

impl fmt::Debug for XenNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XenNet").field("config", &self.config).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl XenNet {
    /// A back end that is plugged into the network.
    pub fn new(config: Config, network: Arc<dyn Network>) -> Arc<Self> {
        let config = Config { queues: config.queues.clamp(1, QUEUES_MAX), ..config };
        let card = Arc::new(Self {
            config,
            network: network.clone(),
            mac: Mutex::new(config.mac),
            // A device is built paused.
            paused: AtomicBool::new(true),
            link: Mutex::default(),
            steering: Steering::default(),
            counters: Counters::default(),
        });
        let port: Weak<Self> = Arc::downgrade(&card);
        network.attach(port);
        card
    }
}

impl Backend for XenNet {
    fn kind(&self) -> &'static str {
        "vif"
    }

    fn front(&self) -> Nodes {
        let node = |name: &str, value: String| (name.to_owned(), value);
        Nodes::from([
            node("handle", self.config.handle.to_string()),
            node("mac", lock(&self.mac).to_string()),
            node("mtu", self.config.mtu.to_string()),
        ])
    }

    fn features(&self) -> Nodes {
        let queues = self.config.queues.to_string();
        let nodes = [
            ("feature-rx-copy", "1"),
            ("feature-sg", "1"),
            ("feature-gso-tcpv4", "1"),
            ("feature-gso-tcpv6", "1"),
            ("feature-ipv6-csum-offload", "1"),
            ("feature-split-event-channels", "1"),
            ("feature-multicast-control", "0"),
            ("multi-queue-max-queues", queues.as_str()),
        ];
        let mut nodes: Nodes =
            nodes.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        nodes.append(&mut self.front());
        nodes
    }

    fn connect(
        &self,
        domain: &Arc<dyn Domain>,
        front: &Nodes,
        how: Connect,
    ) -> Result<Nodes, String> {
        let mut link = lock(&self.link);
        // Its pages and ports are free before they are used again.
        link.front = None;
        let restored = link.restored.take();
        let choice = Choice::of(front, self.config.queues)?;
        let served = match how {
            Connect::First => None,
            Connect::Again => Some(restored.ok_or("no driver was connected when it was saved")?),
        };
        link.front = Some(Front::connect(domain, &choice, &self.network, served.as_ref())?);
        drop(link);
        self.network.wake();
        Ok(Nodes::new())
    }

    fn disconnect(&self) {
        *lock(&self.link) = Link::default();
    }
}

impl Device for XenNet {
    fn name(&self) -> String {
        format!("vif{}", self.config.handle)
    }

    fn reset(&self) {
        self.disconnect();
        *lock(&self.mac) = self.config.mac;
    }

    fn pause(&self) {
        self.paused.store(true, SeqCst);
        // Who is at work on the rings comes to an end.
        drop(lock(&self.link));
    }

    fn resume(&self) {
        self.paused.store(false, SeqCst);
        nic::Port::flush(self);
        self.network.wake();
    }

    fn save(&self, to: &mut Writer) {
        let link = lock(&self.link);
        let served = link.front.as_ref().map(Front::served).or_else(|| link.restored.clone());
        let Served { queues, broken } = served.unwrap_or_default();
        let state = XenNetState { mac: *lock(&self.mac), mtu: self.config.mtu, queues, broken };
        to.put(self.config.handle.into(), &state);
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: XenNetState = from.take(self.config.handle.into())?;
        if state.mtu != self.config.mtu {
            return Err(malformed::<XenNetState>("the network has another MTU"));
        }
        if !state.mac.is_unicast() {
            return Err(malformed::<XenNetState>("the address is not one station's"));
        }
        if state.queues.len() > usize::from(self.config.queues) {
            return Err(malformed::<XenNetState>("the card has fewer queues"));
        }
        let served = Served { queues: state.queues, broken: state.broken };
        let restored = (!served.queues.is_empty()).then_some(served);
        *lock(&self.link) = Link { front: None, restored };
        *lock(&self.mac) = state.mac;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { sent, received, refused, dropped, broken } = &self.counters;
        vec![
            ("frames sent", sent.load(Relaxed)),
            ("frames received", received.load(Relaxed)),
            ("frames without room", refused.load(Relaxed)),
            ("frames dropped", dropped.load(Relaxed)),
            ("rings that the driver broke", broken.load(Relaxed)),
        ]
    }
}
