//! Requests, indexes and nodes of a Xen domain's block driver.

use crate::{input::Input, tamper::tamper};
use device::Device;
use disk::{Memory, Shape};
use saved_state::{Reader, Writer};
use std::{mem::offset_of, sync::Arc, thread};
use xen_abi::{
    blkif::{Discard, ENTRY, Indirect, Request, Segment, op},
    ring::Shared,
};
use xen_blk::{Config, XenBlk};
use xen_front::{
    Access, Backend, Connect, Domain, GrantRef, Nodes, Page,
    fake::{FakeDomain, FrontRing},
};
use zerocopy::IntoBytes;

const SECTORS: u64 = 256;
const QUEUES: u16 = 2;
/// Pages of rings, of which each queue has two or uses one.
const RINGS: usize = 4;
/// Pages for data and for lists of segments.
const PAGES: usize = 6;
/// Turns in which a thread does what it is asked for, or is disturbed in it.
const TURNS: usize = 2000;

struct Driver {
    domain: Arc<FakeDomain>,
    disk: Arc<Memory>,
    blk: Arc<XenBlk>,
    rings: Vec<FrontRing>,
    ports: Vec<u32>,
    /// Those of rings are first.
    grants: Vec<GrantRef>,
    pages: Vec<Page>,
    nodes: Nodes,
}

fn device(disk: &Arc<Memory>) -> Arc<XenBlk> {
    XenBlk::new(
        &Config { index: 3, queues: QUEUES, cdrom: false, persistent_grants: true },
        disk.clone(),
    )
}

fn build() -> Driver {
    let domain = FakeDomain::new(16);
    let disk = Shape { discard: true, ..Shape::of_bytes(SECTORS * 512) };
    let disk = Arc::new(Memory::new(disk));
    let blk = device(&disk);
    blk.resume();
    let pages: Vec<_> = (0..RINGS + PAGES).map(|_| domain.page()).collect();
    let access = |index| if index % 5 == 4 { Access::Read } else { Access::Write };
    let grant = |(index, page)| domain.grant(page, access(index));
    let grants = pages.iter().enumerate().map(grant).collect();
    let ports = (0..QUEUES).map(|_| domain.port()).collect();
    let (rings, nodes) = (Vec::new(), Nodes::new());
    let mut driver = Driver { domain, disk, blk, rings, ports, grants, pages, nodes };
    driver.choose(&mut Input::new(&[0xff; 64]));
    driver.connect(Connect::First);
    driver
}

impl Driver {
    fn connect(&self, how: Connect) -> bool {
        let domain: Arc<dyn Domain> = self.domain.clone();
        self.blk.connect(&domain, &self.nodes, how).is_ok()
    }

    /// Makes rings, and writes to xenstore what a driver does, mostly.
    fn choose(&mut self, input: &mut Input<'_>) {
        let (queues, order) = (1 + u32::from(input.flag()), u32::from(input.flag()));
        let mut nodes = Nodes::new();
        let mut set = |name: String, value: u32| {
            let text = match input.u8() {
                0..=3 => String::from_utf8_lossy(input.some(6)).into_owned(),
                4..=7 => input.number().to_string(),
                8..=11 => return,
                _ => value.to_string(),
            };
            nodes.insert(name, text);
        };
        set("multi-queue-num-queues".into(), queues);
        set("ring-page-order".into(), order);
        self.rings.clear();
        for queue in 0..queues as usize {
            let folder = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            for page in 0..1 << order {
                set(format!("{folder}ring-ref{page}"), self.grants[2 * queue + page]);
            }
            set(format!("{folder}event-channel"), self.ports[queue]);
            let pages = self.pages[2 * queue..2 * queue + (1 << order)].to_vec();
            pages.iter().for_each(|page| page.write(0, &[0; 64]).expect("a page"));
            self.rings.push(FrontRing::new(pages, ENTRY));
        }
        set("feature-persistent".into(), u32::from(queues == order));
        self.nodes = nodes;
    }

    fn segment(&self, input: &mut Input<'_>) -> Segment {
        let grant = match input.u8() {
            0..=7 => input.number() as u32,
            8..=15 => input.pick(&self.grants),
            _ => input.pick(&self.grants[RINGS..]),
        };
        let (first, last) = if input.u8() < 0x20 {
            (input.u8(), input.u8())
        } else {
            let last = input.below(8) as u8;
            (input.below(u64::from(last) + 1) as u8, last)
        };
        Segment { grant, first, last, padding: 0 }
    }

    fn segments(&self, input: &mut Input<'_>, most: u64) -> Vec<Segment> {
        (0..input.below(most)).map(|_| self.segment(input)).collect()
    }

    fn count(input: &mut Input<'_>, right: usize) -> u64 {
        if input.u8() < 0x10 { input.number() } else { right as u64 }
    }

    fn put(&mut self, input: &mut Input<'_>) {
        let sector = if input.u8() < 0x40 { input.number() } else { input.below(SECTORS) };
        let id = input.number();
        let entry = match input.u8() & 7 {
            0 => {
                let sectors = input.number();
                let flag = u8::from(input.u8() < 0x10);
                let operation = op::DISCARD;
                let discard =
                    Discard { operation, flag, id, sector, sectors, ..Default::default() };
                discard.as_bytes().to_vec()
            }
            1 | 2 => {
                let list = self.segments(input, 80);
                let page = RINGS + input.below(PAGES as u64) as usize;
                self.pages[page].write(0, list.as_bytes()).expect("inside of the page");
                let segments = Self::count(input, list.len()) as u16;
                let inner = input.pick(&[op::READ, op::WRITE, op::WRITE, op::FLUSH_DISKCACHE]);
                let operation = op::INDIRECT;
                let mut indirect =
                    Indirect { operation, inner, segments, id, sector, ..Default::default() };
                indirect.pages = [self.grants[page]; 8];
                indirect.as_bytes().to_vec()
            }
            3 => input.some(ENTRY).to_vec(),
            _ => {
                let list = self.segments(input, 12);
                let segments = Self::count(input, list.len()) as u8;
                let operation =
                    input.pick(&[op::READ, op::WRITE, op::WRITE, op::FLUSH_DISKCACHE, 2]);
                let mut request = Request { operation, segments, id, sector, ..Default::default() };
                request.segment.iter_mut().zip(list).for_each(|(to, from)| *to = from);
                request.as_bytes().to_vec()
            }
        };
        let ring = input.below(self.rings.len() as u64) as usize;
        self.rings[ring].put(&entry);
        if self.rings[ring].publish() || input.u8() < 8 {
            self.domain.kick(self.ports[ring]);
        }
    }

    /// Waits for the responses, if there are to be any.
    fn wait(&mut self) {
        for ring in &mut self.rings {
            for _ in 0..TURNS {
                while ring.taken != ring.put && ring.take(16).is_some() {}
                if ring.taken == ring.put {
                    break;
                }
                thread::yield_now();
            }
        }
    }

    /// A state that this device saved is one that another can go on with; one that was changed is, or
    /// it is refused.
    fn move_on(&mut self, input: &mut Input<'_>) {
        self.blk.pause();
        let parts = saved(&self.blk);
        self.blk.disconnect();
        assert_eq!(self.domain.used(), 0, "pages are in use that were let go");
        let next = device(&self.disk);
        let mut changed = parts;
        let tampered = input.flag();
        if tampered {
            tamper(input, &mut changed);
        }
        let restored = Reader::new(changed).and_then(|mut reader| {
            next.restore(&mut reader)?;
            reader.finish()
        });
        assert!(tampered || restored.is_ok(), "{restored:?}");
        self.blk = next;
        if restored.is_ok() {
            self.connect(Connect::Again);
        }
        self.blk.resume();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() & 31 {
            0..=19 => self.put(input),
            20..=23 => self.wait(),
            24 | 25 => {
                let ring = input.below(self.rings.len() as u64) as usize;
                let at = [
                    offset_of!(Shared, request_producer),
                    offset_of!(Shared, response_producer),
                    offset_of!(Shared, response_event),
                ];
                self.rings[ring].set_index(input.pick(&at), input.number() as u32);
                self.domain.kick(self.ports[ring]);
            }
            26 => {
                let (page, at) = (input.below(self.pages.len() as u64) as usize, input.below(4000));
                self.pages[page].write(at as usize, input.some(64)).expect("inside of the page");
            }
            27 | 28 => {
                self.choose(input);
                self.connect(Connect::First);
            }
            29 => self.blk.disconnect(),
            30 => {
                self.blk.pause();
                self.blk.resume();
            }
            _ => self.move_on(input),
        }
        let failures = self.blk.counters().into_iter().find(|(name, _)| *name == "failures");
        assert_eq!(failures, Some(("failures", 0)), "a thread panicked");
    }
}

fn saved(blk: &XenBlk) -> Vec<saved_state::Part> {
    let mut writer = Writer::default();
    blk.save(&mut writer);
    writer.finish()
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = build();
    while !input.is_empty() {
        driver.step(&mut input);
    }
    driver.wait();
    driver.blk.reset();
    assert_eq!(driver.domain.used(), 0, "pages are in use after a reset");
}
