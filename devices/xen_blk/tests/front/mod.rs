//! A driver made by hand.

// Each test is a crate of its own, and uses what it needs.
#![allow(dead_code)]

use device::Device;
use disk::{Disk, Error, Memory, Shape};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use xen_abi::blkif::{ENTRY, Indirect, Request, Response, Segment, op};
use xen_blk::{Config, XenBlk};
use xen_front::{
    Access, Backend, Connect, Domain, GrantRef, Nodes, Page,
    fake::{FakeDomain, FrontRing},
};
use zerocopy::{FromBytes, IntoBytes};

pub const LONG: Duration = Duration::from_secs(60);
pub const PAGE: usize = 4096;

/// Hears of each call of a disk, by its number.
type Before = Box<dyn FnMut(u64) + Send>;

/// A disk that counts calls, discards to zeroes, and does what a test asks before each call.
pub struct Spy {
    pub inner: Memory,
    pub calls: AtomicU64,
    pub before: Mutex<Option<Before>>,
}

impl Spy {
    pub fn new(shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            inner: Memory::new(shape),
            calls: AtomicU64::new(0),
            before: Mutex::default(),
        })
    }

    fn called(&self) {
        let count = self.calls.fetch_add(1, SeqCst);
        if let Some(before) = &mut *self.before.lock().unwrap() {
            before(count);
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; self.shape().bytes as usize];
        self.inner.read(0, &mut all).unwrap();
        all
    }
}

impl Disk for Spy {
    fn shape(&self) -> Shape {
        self.inner.shape()
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.called();
        self.inner.read(offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.called();
        self.inner.write(offset, data)
    }
    fn flush(&self) -> Result<(), Error> {
        self.called();
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.called();
        self.inner.write_zeroes(offset, len, true)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.inner.write_zeroes(offset, len, unmap)
    }
}

pub fn config() -> Config {
    Config { index: 0, queues: 2, cdrom: false, persistent_grants: true }
}

/// One queue of a driver.
pub struct Queue {
    pub ring: FrontRing,
    pub pages: Vec<GrantRef>,
    pub port: u32,
}

/// A domain with a driver, and the back end that it uses.
pub struct Front {
    pub domain: Arc<FakeDomain>,
    pub blk: Arc<XenBlk>,
    pub disk: Arc<Spy>,
    pub queues: Vec<Queue>,
    pub nodes: Nodes,
}

impl Front {
    pub fn new(shape: Shape) -> Self {
        Self::with(shape, 1, 0, false)
    }

    pub fn with(shape: Shape, queues: u32, order: u32, persistent: bool) -> Self {
        let domain = FakeDomain::new(700);
        let disk = Spy::new(shape);
        let blk = XenBlk::new(&config(), disk.clone());
        blk.resume();
        let mut front = Self { domain, blk, disk, queues: Vec::new(), nodes: Nodes::new() };
        front.set_up(queues, order, persistent);
        front.connect(Connect::First).unwrap();
        front
    }

    /// Makes rings, and writes what it chose.
    pub fn set_up(&mut self, queues: u32, order: u32, persistent: bool) {
        let mut say = |name: &str, value: u32| self.nodes.insert(name.into(), value.to_string());
        say("multi-queue-num-queues", queues);
        say("ring-page-order", order);
        say("feature-persistent", persistent.into());
        self.queues.clear();
        for queue in 0..queues {
            let pages: Vec<Page> = (0..1 << order).map(|_| self.domain.page()).collect();
            let refs: Vec<_> =
                pages.iter().map(|page| self.domain.grant(page, Access::Write)).collect();
            let folder = if queues == 1 { String::new() } else { format!("queue-{queue}/") };
            for (i, page) in refs.iter().enumerate() {
                say(&format!("{folder}ring-ref{i}"), *page);
            }
            let port = self.domain.port();
            say(&format!("{folder}event-channel"), port);
            self.queues.push(Queue { ring: FrontRing::new(pages, ENTRY), pages: refs, port });
        }
    }

    pub fn connect(&self, how: Connect) -> Result<Nodes, String> {
        let domain: Arc<dyn Domain> = self.domain.clone();
        self.blk.connect(&domain, &self.nodes, how)
    }

    pub fn grant(&self, access: Access) -> (Page, GrantRef) {
        let page = self.domain.page();
        let grant = self.domain.grant(&page, access);
        (page, grant)
    }

    /// Puts a request and notifies, if the back end wants that.
    pub fn put(&mut self, queue: usize, request: &[u8]) {
        let queue = &mut self.queues[queue];
        queue.ring.put(request);
        if queue.ring.publish() {
            self.domain.kick(queue.port);
        }
    }

    /// The next response, for which it sleeps as a driver does.
    pub fn take(&mut self, queue: usize) -> Response {
        let queue = &mut self.queues[queue];
        loop {
            let seen = self.domain.notified(queue.port);
            if let Some(response) = queue.ring.take(size_of::<Response>()) {
                return Response::read_from_bytes(&response).unwrap();
            }
            assert!(self.domain.wait(queue.port, seen, LONG), "no response");
        }
    }

    /// A request and its response.
    pub fn ask(&mut self, request: &[u8]) -> i16 {
        self.put(0, request);
        self.take(0).status
    }

    /// What was counted.
    pub fn count(&self, name: &str) -> u64 {
        self.blk.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
    }
}

pub fn segment(grant: GrantRef, first: u8, last: u8) -> Segment {
    Segment { grant, first, last, padding: 0 }
}

pub fn request(operation: u8, sector: u64, segments: &[Segment]) -> Request {
    let mut request = Request { operation, id: 7, sector, ..Request::default() };
    request.segments = segments.len() as u8;
    request.segment.iter_mut().zip(segments).for_each(|(to, from)| *to = *from);
    request
}

/// An indirect request, whose segments are in a page that this grants.
pub fn indirect(front: &Front, inner: u8, sector: u64, segments: &[Segment]) -> Indirect {
    let (page, grant) = front.grant(Access::Read);
    let bytes = segments.as_bytes();
    page.write(0, &bytes[..bytes.len().min(PAGE)]).unwrap();
    let mut request =
        Indirect { operation: op::INDIRECT, inner, id: 9, sector, ..Indirect::default() };
    request.segments = segments.len() as u16;
    request.pages[0] = grant;
    request
}
