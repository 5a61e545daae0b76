//! What a driver does, on a domain without a guest, and a network that does nothing by itself.

#![allow(dead_code, reason = "each of the tests uses a part")]

use device::Device;
use nic::{FRAME_MAX, Mac, Meta, Network, NoRoom, Port};
use std::{
    mem::offset_of,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use xen_abi::{
    netif::{Extra, RxRequest, RxResponse, TxRequest, TxResponse, extra, rx, tx},
    ring::Shared,
};
use xen_front::{
    Access, Backend, Connect, Domain, GrantRef, Nodes, Page,
    fake::{FakeDomain, FrontRing},
};
use xen_net::{Config, XenNet};
use zerocopy::{FromBytes, IntoBytes};

pub const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
pub const PAGE: usize = 4096;
pub const ALL: &str =
    "feature-sg=1 feature-gso-tcpv4=1 feature-gso-tcpv6=1 feature-ipv6-csum-offload=1";

/// A network that does nothing by itself.
#[derive(Default)]
pub struct Wire {
    port: Mutex<Option<Weak<dyn Port>>>,
    pub wakes: AtomicUsize,
}

impl Network for Wire {
    fn attach(&self, port: Weak<dyn Port>) {
        *self.port.lock().unwrap() = Some(port);
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, SeqCst);
    }

    fn pause(&self) {}

    fn resume(&self) {}
}

pub struct Queue {
    pub transmit: FrontRing,
    pub receive: FrontRing,
    pub transmit_port: u32,
    pub receive_port: u32,
    grants: (GrantRef, GrantRef),
    /// The pages that were offered, by the place in the ring.
    offered: Vec<Option<(Page, GrantRef)>>,
}

/// A driver with its back end.
pub struct Driver {
    pub domain: Arc<FakeDomain>,
    pub card: Arc<XenNet>,
    pub wire: Arc<Wire>,
    pub queues: Vec<Queue>,
    pub nodes: Nodes,
    /// Pages that hold nothing now, granted for writing.
    free: Vec<(Page, GrantRef)>,
}

pub fn nodes(text: &str) -> Nodes {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub fn config(queues: u16) -> Config {
    Config { handle: 0, mac: MAC, mtu: 1500, queues }
}

impl Driver {
    /// Connected, with so many queues, the ports split or not.
    pub fn new(count: u16, split: bool, features: &str) -> Self {
        let driver = Self::alone(count, split, features);
        driver.connect(Connect::First).unwrap();
        driver.card.resume();
        driver
    }

    /// Not connected yet.
    pub fn alone(count: u16, split: bool, features: &str) -> Self {
        let domain = FakeDomain::new(4096);
        let wire = Arc::new(Wire::default());
        let card = XenNet::new(config(count), wire.clone());
        let mut nodes = nodes(&format!("request-rx-copy=1 feature-rx-notify=1 {features}"));
        if count > 1 {
            nodes.insert("multi-queue-num-queues".into(), count.to_string());
        }
        let queues = (0..count).map(|_| queue(&domain, split)).collect();
        let mut driver = Self { domain, card, wire, queues, nodes, free: Vec::new() };
        driver.name_queues();
        driver
    }

    fn name_queues(&mut self) {
        for (index, queue) in self.queues.iter().enumerate() {
            let folder =
                if self.queues.len() > 1 { format!("queue-{index}/") } else { String::new() };
            let mut set = |name: &str, value: u32| {
                self.nodes.insert(format!("{folder}{name}"), value.to_string());
            };
            set("tx-ring-ref", queue.grants.0);
            set("rx-ring-ref", queue.grants.1);
            if queue.transmit_port == queue.receive_port {
                set("event-channel", queue.transmit_port);
            } else {
                set("event-channel-tx", queue.transmit_port);
                set("event-channel-rx", queue.receive_port);
            }
        }
    }

    pub fn connect(&self, how: Connect) -> Result<Nodes, String> {
        let domain: Arc<dyn Domain> = self.domain.clone();
        self.card.connect(&domain, &self.nodes, how)
    }

    /// Fresh rings for all queues, as a driver makes them that starts over.
    pub fn renew(&mut self) {
        let split = self.queues[0].transmit_port != self.queues[0].receive_port;
        self.queues = (0..self.queues.len()).map(|_| queue(&self.domain, split)).collect();
        self.name_queues();
    }

    pub fn port(&self) -> Arc<dyn Port> {
        self.wire.port.lock().unwrap().as_ref().unwrap().upgrade().unwrap()
    }

    pub fn wakes(&self) -> usize {
        self.wire.wakes.load(SeqCst)
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.card.counters().into_iter().find(|(key, _)| *key == name).unwrap().1
    }

    /// What the network takes.
    pub fn take(&self) -> Option<(Vec<u8>, Meta)> {
        let mut bytes = vec![0xee; FRAME_MAX];
        let taken = self.port().take(&mut bytes)?;
        bytes.truncate(taken.len);
        Some((bytes, taken.meta))
    }

    pub fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        self.port().give(meta, parts)
    }

    fn page(&mut self) -> (Page, GrantRef) {
        self.free.pop().unwrap_or_else(|| {
            let page = self.domain.page();
            let grant = self.domain.grant(&page, Access::Write);
            (page, grant)
        })
    }

    /// A grant for reading of a page that holds this.
    pub fn grant(&self, at: usize, bytes: &[u8]) -> GrantRef {
        let page = self.domain.page();
        page.write(at, bytes).unwrap();
        self.domain.grant(&page, Access::Read)
    }

    /// Puts requests as they are.
    pub fn put(&mut self, queue: usize, requests: &[&[u8]]) {
        let queue = &mut self.queues[queue];
        requests.iter().for_each(|request| queue.transmit.put(request));
        if queue.transmit.publish() {
            self.domain.kick(queue.transmit_port);
        }
    }

    /// Sends a frame in slots of these sizes, the rest in a last one.
    pub fn send(
        &mut self,
        queue: usize,
        frame: &[u8],
        sizes: &[usize],
        flags: u16,
        extras: &[Extra],
    ) {
        let mut slots = Vec::new();
        let mut rest = frame;
        for size in sizes.iter().copied().chain([usize::MAX]) {
            let (here, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            let offset = (slots.len() * 7) % (PAGE + 1 - here.len());
            let grant = if here.is_empty() { 0 } else { self.grant(offset, here) };
            let id = self.queues[queue].transmit.put.wrapping_add(slots.len() as u32) as u16;
            let size = here.len() as u16;
            slots.push(TxRequest {
                grant,
                offset: offset as u16,
                flags: tx::MORE_DATA,
                id: id ^ 0x5500,
                size,
            });
        }
        slots.last_mut().unwrap().flags = 0;
        let first = slots.first_mut().unwrap();
        first.size = frame.len() as u16;
        first.flags |= flags | if extras.is_empty() { 0 } else { tx::EXTRA_INFO };
        let mut requests: Vec<&[u8]> = slots.iter().map(IntoBytes::as_bytes).collect();
        requests.splice(1..1, extras.iter().map(IntoBytes::as_bytes));
        self.put(queue, &requests);
    }

    /// The answers to what was sent.
    pub fn answers(&mut self, queue: usize) -> Vec<TxResponse> {
        let ring = &mut self.queues[queue].transmit;
        let take = || ring.take(4).map(|bytes| TxResponse::read_from_bytes(&bytes).unwrap());
        std::iter::from_fn(take).collect()
    }

    /// Their statuses.
    pub fn statuses(&mut self, queue: usize) -> Vec<i16> {
        self.answers(queue).into_iter().map(|answer| answer.status).collect()
    }

    /// Offers so many pages for frames.
    pub fn offer(&mut self, queue: usize, count: usize) {
        for _ in 0..count {
            let (page, grant) = self.page();
            self.offer_grant(queue, grant, Some((page, grant)));
        }
        self.publish(queue);
    }

    pub fn offer_grant(&mut self, queue: usize, grant: GrantRef, page: Option<(Page, GrantRef)>) {
        let queue = &mut self.queues[queue];
        let place = queue.receive.put % queue.receive.entries;
        let request = RxRequest { id: place as u16, padding: 0, grant };
        queue.receive.put(request.as_bytes());
        queue.offered[place as usize] = page;
    }

    pub fn publish(&self, queue: usize) {
        if self.queues[queue].receive.publish() {
            self.domain.kick(self.queues[queue].receive_port);
        }
    }

    /// Offers as many pages as the ring holds.
    pub fn fill(&mut self, queue: usize) {
        let ring = &self.queues[queue].receive;
        self.offer(queue, (ring.entries - ring.put.wrapping_sub(ring.taken)) as usize);
    }

    /// The next frame that the driver got, as Linux's reads it: its bytes, or none if one of its
    /// pages could not be written; the flags of its first slot; its segmentation.
    pub fn got(&mut self, queue: usize) -> Option<(Option<Vec<u8>>, u16, Option<Extra>)> {
        let (mut bytes, mut flags, mut cut) = (Some(Vec::new()), None, None);
        loop {
            let (response, page) = self.response(queue)?;
            match (usize::try_from(response.status), &mut bytes, &page) {
                (Ok(len), Some(bytes), Some((page, _))) => {
                    let mut here = vec![0; len];
                    page.read(response.offset.into(), &mut here).unwrap();
                    bytes.extend(here);
                }
                _ => bytes = None,
            }
            self.free.extend(page);
            if flags.is_none() && response.flags & rx::EXTRA_INFO != 0 {
                let (said, page) = self.response(queue).expect("what was announced");
                let said = Extra::read_from_bytes(said.as_bytes()).unwrap();
                assert_eq!((said.kind, said.flags), (extra::GSO, 0));
                cut = Some(said);
                self.free.extend(page);
            }
            flags.get_or_insert(response.flags);
            if response.flags & rx::MORE_DATA == 0 {
                return Some((bytes, flags?, cut));
            }
        }
    }

    fn response(&mut self, queue: usize) -> Option<(RxResponse, Option<(Page, GrantRef)>)> {
        let queue = &mut self.queues[queue];
        let place = (queue.receive.taken % queue.receive.entries) as usize;
        let response = RxResponse::read_from_bytes(&queue.receive.take(8)?).unwrap();
        Some((response, queue.offered[place].take()))
    }

    /// How often the driver was notified.
    pub fn notified(&self, queue: usize) -> (u64, u64) {
        let queue = &self.queues[queue];
        let of = |port| self.domain.notified(port);
        (of(queue.transmit_port), of(queue.receive_port))
    }
}

fn queue(domain: &Arc<FakeDomain>, split: bool) -> Queue {
    let ring = |entry| {
        let page = domain.page();
        let grant = domain.grant(&page, Access::Write);
        (FrontRing::new(vec![page], entry), grant)
    };
    let (transmit, sends) = ring(size_of::<TxRequest>());
    let (receive, gets) = ring(size_of::<RxRequest>());
    let offered = (0..receive.entries).map(|_| None).collect();
    let transmit_port = domain.port();
    let receive_port = if split { domain.port() } else { transmit_port };
    Queue { transmit, receive, transmit_port, receive_port, grants: (sends, gets), offered }
}

/// Sets the number of requests that were put.
pub fn set_producer(ring: &FrontRing, value: u32) {
    ring.set_index(offset_of!(Shared, request_producer), value);
}

pub fn gso(kind: u8, size: u16) -> Extra {
    Extra { kind: extra::GSO, size, gso: kind, ..Extra::default() }
}

/// A frame of TCP with so much of a payload, that begins with the number.
pub fn tcp4(payload: usize, port: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 192, 0, 2, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([1, 187, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|n| (n / 251 + n) as u8));
    frame
}
