//! The user-mode network: what a guest needs of one, from an ordinary process.
//!
//! The guest finds a router with an address for it (DHCP, or a router advertisement), a name
//! server that asks the host's resolvers, and the outer world behind NAT: TCP, UDP and ICMP
//! echo, IPv4 and IPv6, each carried by sockets of this process. Addresses of the host can be
//! forwarded to the guest, and files are served to firmware by TFTP. No privilege and no helper
//! program is needed.
//!
//! Both sides are hostile. A guest's frames are taken apart without trust; what it may hold is
//! bounded for each flow and in number, as are timers and stores; what answers a flow is whom it
//! asked. Where the guest may not go says [`Config`]: this host's loopback among others, unless
//! that is asked for.
//!
//! One thread does everything, by epoll and times; see [`nic`] for how it meets the card.

#[doc(hidden)]
pub mod by_hand;
mod checksum;
mod config;
mod context;
mod counters;
mod dhcp;
mod dns;
mod forward;
mod host;
mod icmp;
mod ingress;
mod link;
mod neighbour;
mod packet;
mod reassembly;
mod stack;
mod state;
mod tcp;
mod tftp;
mod thread;
mod udp;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::JoinHandle,
};

use device::Device;
use nic::{Network, Port};
use saved_state::{Reader, Writer};

pub use config::{Config, Forward, MTU_MAX, MTU_MIN, Transport};
pub use counters::Counters;
pub use thread::Report;

use context::Context;
use stack::Stack;
use state::UserNetState;
use thread::Shared;

/// Files that a network of one guest may have open, and what else the process has.
pub const FILES_MAX: u64 = 2048;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen at {at}")]
    Listen { at: SocketAddr, source: io::Error },
    #[error("{0} is no address that the guest may have")]
    Guest(IpAddr),
    #[error("an MTU of {0} is not between {MTU_MIN} and {MTU_MAX}")]
    Mtu(u16),
    #[error("no thread or socket for the network")]
    Host(#[from] io::Error),
}

/// A network of one guest.
pub struct UserNet {
    config: Arc<Config>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    instance: u32,
}

impl fmt::Debug for UserNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserNet").field("config", &self.config).finish_non_exhaustive()
    }
}

impl UserNet {
    /// Opens the forwards and starts the thread. `instance` tells networks of a machine apart.
    pub fn start(config: Config, instance: u32) -> Result<Arc<Self>, Error> {
        Self::start_with(config, instance, None)
    }

    /// With resolvers at another port than 53: for tests, which may not listen there.
    #[doc(hidden)]
    pub fn start_with(
        config: Config,
        instance: u32,
        dns_port: Option<u16>,
    ) -> Result<Arc<Self>, Error> {
        if !(MTU_MIN..=MTU_MAX).contains(&config.mtu) {
            return Err(Error::Mtu(config.mtu));
        }
        let mut guests = config.forwards.iter().filter_map(|forward| forward.guest);
        if let Some(outside) = guests.find(|guest| !config.is_guest(*guest)) {
            return Err(Error::Guest(outside));
        }
        let forwards =
            forward::open(&config).map_err(|(at, source)| Error::Listen { at, source })?;
        let shared = Arc::new(Shared::new()?);
        let poller = thread::poller(&shared)?;
        let config = Arc::new(config);
        let cx = Context::new(config.clone(), poller);
        let stack = Stack::new(forwards, dns_port, &cx)?;
        let for_thread = shared.clone();
        let thread =
            std::thread::Builder::new().name(format!("net{instance}")).spawn(move || {
                thread::run(&for_thread, stack, cx);
            })?;
        let thread = Mutex::new(Some(thread));
        Ok(Arc::new(Self { config, shared, thread, instance }))
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What has gone over it. Waits for the thread's round to end.
    pub fn report(&self) -> Report {
        self.shared.report()
    }
}

impl Network for UserNet {
    fn attach(&self, port: Weak<dyn Port>) {
        self.shared.attach(port);
    }

    fn wake(&self) {
        self.shared.ring();
    }

    fn pause(&self) {
        self.shared.pause();
    }

    fn resume(&self) {
        self.shared.resume();
    }
}

impl Device for UserNet {
    fn name(&self) -> String {
        format!("net{}", self.instance)
    }

    fn reset(&self) {
        self.shared.reset();
    }

    fn pause(&self) {
        self.shared.pause();
    }

    fn resume(&self) {
        self.shared.resume();
    }

    fn save(&self, to: &mut Writer) {
        to.put(self.instance, &UserNetState::of(&self.shared.memory()));
    }

    fn restore(&self, from: &mut Reader) -> Result<(), saved_state::Error> {
        let saved: UserNetState = from.take(self.instance)?;
        self.shared.restore(saved.check(&self.config)?);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Report { counters, tcp, udp } = self.shared.report();
        vec![
            ("frames from the guest", counters.frames_from_guest),
            ("bytes from the guest", counters.bytes_from_guest),
            ("frames to the guest", counters.frames_to_guest),
            ("bytes to the guest", counters.bytes_to_guest),
            ("frames ignored", counters.ignored),
            ("packets refused", counters.refused),
            ("frames that waited for room", counters.no_room),
            ("flows too many", counters.too_many),
            ("TCP connections", counters.tcp_flows),
            ("UDP flows", counters.udp_flows),
            ("TCP connections now", tcp as u64),
            ("UDP flows now", udp as u64),
            ("names asked for", counters.dns_queries),
            ("retransmissions", counters.retransmissions),
        ]
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.shared.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Of the card, which holds this, the thread itself may be the last owner for a round.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}
