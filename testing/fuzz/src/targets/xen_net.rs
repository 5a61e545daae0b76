//! Slots, pages, indexes and nodes of a Xen domain's network driver, and frames from the other end.

use super::virtio_net::Wire;
use crate::{input::Input, tamper::tamper};
use device::Device;
use nic::Mac;
use saved_state::{Reader, Writer};
use std::{mem::offset_of, sync::Arc};
use xen_abi::{netif::TxRequest, ring::Shared};
use xen_front::{
    Access, Backend, Connect, Domain, GrantRef, Nodes, Page,
    fake::{FakeDomain, FrontRing},
};
use xen_net::{Config, XenNet};

const CONFIG: Config =
    Config { handle: 3, mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]), mtu: 1500, queues: 2 };
/// Pages for frames.
const PAGES: usize = 6;

struct Driver {
    domain: Arc<FakeDomain>,
    card: Arc<XenNet>,
    wire: Arc<Wire>,
    /// For each queue, what it sends by and what it gets by.
    rings: Vec<FrontRing>,
    ports: Vec<u32>,
    /// Those of rings are first.
    grants: Vec<GrantRef>,
    pages: Vec<Page>,
    nodes: Nodes,
}

fn build() -> Driver {
    let domain = FakeDomain::new(16);
    let wire = Arc::new(Wire::default());
    let card = XenNet::new(CONFIG, wire.clone());
    card.resume();
    let pages: Vec<_> = (0..4 + PAGES).map(|_| domain.page()).collect();
    let access = |index| if index % 5 == 4 { Access::Read } else { Access::Write };
    let grant = |(index, page)| domain.grant(page, access(index));
    let grants = pages.iter().enumerate().map(grant).collect();
    let ring = |(index, page): (usize, &Page)| {
        FrontRing::new(vec![page.clone()], if index % 2 == 0 { 12 } else { 8 })
    };
    let rings = pages.iter().take(4).enumerate().map(ring).collect();
    let ports = (0..4).map(|_| domain.port()).collect();
    let nodes = Nodes::new();
    let mut driver = Driver { domain, card, wire, rings, ports, grants, pages, nodes };
    driver.nodes = driver.choose(&mut Input::new(&[0xff; 64]));
    driver.connect(Connect::First);
    driver
}

impl Driver {
    fn connect(&self, how: Connect) -> bool {
        let domain: Arc<dyn Domain> = self.domain.clone();
        self.card.connect(&domain, &self.nodes, how).is_ok()
    }

    /// What a driver writes to xenstore, mostly.
    fn choose(&self, input: &mut Input<'_>) -> Nodes {
        let mut nodes = Nodes::new();
        let mut set = |input: &mut Input<'_>, name: &str, value: u32| {
            let text = match input.u8() {
                0..=3 => String::from_utf8_lossy(input.some(6)).into_owned(),
                4..=7 => input.number().to_string(),
                8..=11 => return,
                _ => value.to_string(),
            };
            nodes.insert(name.into(), text);
        };
        for name in ["request-rx-copy", "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6"] {
            set(input, name, 1);
        }
        let (six, none) = (input.flag(), input.u8() < 0x10);
        set(input, "feature-ipv6-csum-offload", six.into());
        set(input, "feature-no-csum-offload", none.into());
        let queues = if input.flag() { 2 } else { 1 };
        set(input, "multi-queue-num-queues", queues);
        let split = input.flag();
        for queue in 0..queues as usize {
            let folder = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            let (sends, gets) = (2 * queue, 2 * queue + 1);
            set(input, &format!("{folder}tx-ring-ref"), self.grants[sends]);
            set(input, &format!("{folder}rx-ring-ref"), self.grants[gets]);
            if split {
                set(input, &format!("{folder}event-channel-tx"), self.ports[sends]);
                set(input, &format!("{folder}event-channel-rx"), self.ports[gets]);
            } else {
                set(input, &format!("{folder}event-channel"), self.ports[sends]);
            }
        }
        nodes
    }

    fn grant(&self, input: &mut Input<'_>) -> GrantRef {
        match input.u8() {
            0..=7 => input.number() as u32,
            8..=15 => input.pick(&self.grants),
            _ => input.pick(&self.grants[4..]),
        }
    }

    /// A frame's slots, which need not fit each other.
    fn send(&mut self, input: &mut Input<'_>) {
        let queue = 2 * input.below(2) as usize;
        let page = &self.pages[4 + input.below(PAGES as u64) as usize];
        let frame = super::virtio_net::frame(input, CONFIG.mac);
        page.write(0, &frame).expect("inside of the page");
        for _ in 0..1 + input.below(4) {
            let request = if input.u8() < 0x30 {
                // What is said besides a frame: mostly how it is to be cut.
                let mut said = vec![input.pick(&[1, 1, 1, 2, 5, 6, 0]), input.pick(&[0, 0, 0, 1])];
                said.extend((input.number() as u16).to_le_bytes());
                said.extend([input.pick(&[1, 2, 3]), 0, 0, 0]);
                said
            } else {
                let number = |input: &mut Input<'_>| input.number() as u16;
                let offset = if input.u8() < 0x40 { number(input) } else { 0 };
                let size = if input.u8() < 0x40 { number(input) } else { frame.len() as u16 };
                let (grant, flags) = (self.grant(input), u16::from(input.u8() & 15));
                let request = TxRequest { grant, offset, flags, id: number(input), size };
                slot(&request)
            };
            self.rings[queue].put(&request);
        }
        self.publish(input, queue);
    }

    fn offer(&mut self, input: &mut Input<'_>) {
        let ring = 2 * input.below(2) as usize + 1;
        for _ in 0..1 + input.below(20) {
            let mut request = input.u32().to_le_bytes().to_vec();
            request.extend(self.grant(input).to_le_bytes());
            self.rings[ring].put(&request);
        }
        self.publish(input, ring);
    }

    fn publish(&self, input: &mut Input<'_>, ring: usize) {
        if self.rings[ring].publish() || input.u8() < 8 {
            self.domain.kick(self.ports[ring]);
        }
    }

    /// A state that this card saved is one that another can go on with; one that was changed is, or it
    /// is refused.
    fn move_on(&mut self, input: &mut Input<'_>) {
        self.card.pause();
        let parts = saved(&self.card);
        self.card.disconnect();
        assert_eq!(self.domain.used(), 0, "pages are in use that were let go");
        let next = XenNet::new(CONFIG, self.wire.clone());
        let mut changed = parts.clone();
        let tampered = input.flag();
        if tampered {
            tamper(input, &mut changed);
        }
        let restored = Reader::new(changed).and_then(|mut reader| {
            next.restore(&mut reader)?;
            reader.finish()
        });
        assert!(tampered || restored.is_ok(), "{restored:?}");
        if !tampered {
            assert_eq!(saved(&next), parts, "the state is lost");
        }
        self.card = next;
        if restored.is_ok() {
            self.connect(Connect::Again);
        }
        self.card.resume();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() & 31 {
            0..=11 => self.send(input),
            12..=17 => self.offer(input),
            18..=25 => self.wire.act(input),
            26 => {
                let ring = input.below(4) as usize;
                let at = [
                    offset_of!(Shared, request_producer),
                    offset_of!(Shared, response_producer),
                    offset_of!(Shared, response_event),
                ];
                self.rings[ring].set_index(input.pick(&at), input.number() as u32);
            }
            27 => {
                let (page, at) = (input.below(self.pages.len() as u64) as usize, input.below(4000));
                self.pages[page].write(at as usize, input.some(64)).expect("inside of the page");
            }
            28 => {
                self.nodes = self.choose(input);
                self.connect(Connect::First);
            }
            29 => self.card.disconnect(),
            30 => {
                self.card.pause();
                self.card.resume();
            }
            _ => self.move_on(input),
        }
        self.rings
            .iter_mut()
            .for_each(|ring| while ring.taken != ring.put && ring.take(8).is_some() {});
    }
}

fn slot(request: &TxRequest) -> Vec<u8> {
    let mut bytes = request.grant.to_le_bytes().to_vec();
    for field in [request.offset, request.flags, request.id, request.size] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

fn saved(card: &XenNet) -> Vec<saved_state::Part> {
    let mut writer = Writer::default();
    card.save(&mut writer);
    writer.finish()
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = build();
    while !input.is_empty() {
        driver.step(&mut input);
    }
    driver.card.reset();
    assert_eq!(driver.domain.used(), 0, "pages are in use after a reset");
}
