//! What every part of the network works with.

use std::{sync::Arc, time::Instant};

use crate::{
    config::Config,
    dns::{Resolv, Resolvers},
    host::Poller,
    link::Link,
};

/// Room for the longest datagram and for what a stream has in flight.
pub(crate) const SCRATCH: usize = crate::tcp::IN_FLIGHT + crate::tcp::CHUNK;

pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) link: Link,
    pub(crate) poller: Poller,
    /// One buffer for whatever is on its way from a socket to the guest.
    pub(crate) scratch: Vec<u8>,
    /// When this batch began.
    pub(crate) now: Instant,
    /// Numbers for flows, never used twice.
    next_id: u64,
    resolvers: Resolvers,
}

impl Context {
    pub(crate) fn new(config: Arc<Config>, poller: Poller) -> Self {
        let link = Link::new(config.mtu);
        let scratch = vec![0; SCRATCH];
        Self {
            config,
            link,
            poller,
            scratch,
            now: Instant::now(),
            next_id: 0,
            resolvers: Resolvers::default(),
        }
    }

    /// The host's resolvers.
    pub(crate) fn resolv(&mut self) -> &Resolv {
        self.resolvers.current(&self.config.resolv_conf, self.now)
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// The earlier of two times, where `None` is never.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// An unpredictable number.
pub(crate) fn random() -> u32 {
    let mut bytes = [0; 4];
    let flags = rustix::rand::GetRandomFlags::empty();
    // It fails only before the host's generator is seeded, at its boot.
    let _ = rustix::rand::getrandom(&mut bytes, flags);
    u32::from_ne_bytes(bytes)
}
