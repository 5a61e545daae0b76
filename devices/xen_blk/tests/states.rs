//! Pauses, saved states, drivers that break rings, and chance.

mod front;

use device::Device;
use disk::Shape;
use front::*;
use proptest::prelude::*;
use saved_state::{Part, Reader, Writer};
use std::{
    mem::offset_of,
    sync::{atomic::Ordering::SeqCst, mpsc},
    thread,
};
use xen_abi::{
    blkif::{Discard, ENTRY, Request, Segment, op, status},
    ring::Shared,
};
use xen_blk::{BlkState, Config, XenBlk};
use xen_front::{Access, Backend, Connect, GrantRef, Page};
use zerocopy::IntoBytes;

const SIZE: u64 = 4 << 20;

fn saved(blk: &XenBlk) -> Vec<Part> {
    let mut writer = Writer::default();
    blk.save(&mut writer);
    writer.finish()
}

fn restore(blk: &XenBlk, parts: Vec<Part>) -> Result<(), saved_state::Error> {
    let mut reader = Reader::new(parts)?;
    blk.restore(&mut reader)?;
    reader.finish()
}

fn state(blk: &XenBlk) -> BlkState {
    Reader::new(saved(blk)).unwrap().take(blk.config().number()).unwrap()
}

/// 256 pages of the same.
fn mebibyte(front: &Front, value: u8) -> Vec<Segment> {
    let page = || {
        let (page, grant) = front.grant(Access::Write);
        page.write(0, &[value; PAGE]).unwrap();
        segment(grant, 0, 7)
    };
    (0..256).map(|_| page()).collect()
}

#[test]
fn a_paused_device_does_nothing_and_goes_on() {
    let mut front = Front::new(Shape::of_bytes(SIZE));
    let (page, grant) = front.grant(Access::Read);
    page.write(0, &[1; PAGE]).unwrap();
    let write = request(op::WRITE, 0, &[segment(grant, 0, 7)]);
    front.blk.pause();
    front.put(0, write.as_bytes());
    // Whoever would not rest would have to be done, here or by the time that it is reset.
    thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(front.disk.calls.load(SeqCst), 0);
    front.blk.resume();
    assert_eq!(front.take(0).status, status::OKAY);
    front.blk.pause();
    front.put(0, write.as_bytes());
    front.blk.reset();
    front.blk.resume();
    assert_eq!((front.disk.calls.load(SeqCst), front.domain.used()), (1, 0));
}

/// A pause comes in the middle of a long request: it is begun anew, by this device or, from what was
/// saved, by another.
#[test]
fn a_long_request_is_begun_anew() {
    for elsewhere in [false, true] {
        let mut front = Front::with(Shape::of_bytes(SIZE), 1, 0, true);
        // A response before, so that the ring is not where it began.
        assert_eq!(front.ask(request(op::FLUSH_DISKCACHE, 0, &[]).as_bytes()), status::OKAY);
        let segments = mebibyte(&front, 0x77);
        let (there, arrived) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let after = front.disk.calls.load(SeqCst);
        *front.disk.before.lock().unwrap() = Some(Box::new(move |count| {
            if count == after + 2 {
                there.send(()).unwrap();
                may_go.recv().unwrap();
            }
        }));
        let write = indirect(&front, op::WRITE, 0, &segments);
        front.put(0, write.as_bytes());
        arrived.recv_timeout(LONG).unwrap();
        let blk = front.blk.clone();
        let pause = thread::spawn(move || blk.pause());
        // It has asked for the rest by then, or the request goes on a little: both are right.
        thread::sleep(std::time::Duration::from_millis(50));
        assert!(!pause.is_finished(), "the disk is busy");
        go.send(()).unwrap();
        pause.join().unwrap();
        assert_eq!(front.disk.calls.load(SeqCst), after + 3, "between two pieces");
        assert_eq!(state(&front.blk).queues, Some(vec![1]));
        if elsewhere {
            let parts = saved(&front.blk);
            front.blk.disconnect();
            front.blk = XenBlk::new(&config(), front.disk.clone());
            restore(&front.blk, parts).unwrap();
            // Where the ring is, is not for the driver to say.
            front.queues[0].ring.set_index(offset_of!(Shared, response_producer), 77);
            front.connect(Connect::Again).unwrap();
            assert_eq!(state(&front.blk).queues, Some(vec![1]));
        }
        front.blk.resume();
        if elsewhere {
            while front.count("requests") == 0 {
                thread::yield_now();
            }
            front.blk.pause();
        }
        assert_eq!(front.take(0).status, status::OKAY);
        assert!(front.disk.bytes()[..1 << 20].iter().all(|b| *b == 0x77));
    }
}

#[test]
fn a_state_is_of_the_same_disk_and_queues() {
    let front = Front::new(Shape::of_bytes(SIZE));
    front.blk.pause();
    let parts = saved(&front.blk);
    let larger = XenBlk::new(&config(), Spy::new(Shape::of_bytes(2 * SIZE)));
    let error = restore(&larger, parts.clone()).unwrap_err().to_string();
    assert_eq!(error, "saved xen-blk is malformed: the disk has another size");
    let mut writer = Writer::default();
    writer.put(51712, &BlkState { capacity: SIZE, queues: Some(vec![0; 33]) });
    let error = restore(&front.blk, writer.finish()).unwrap_err().to_string();
    assert_eq!(error, "saved xen-blk is malformed: it has too many queues");
    for queues in [None, Some(vec![0, 0])] {
        let mut front = Front::new(Shape::of_bytes(SIZE));
        front.blk.disconnect();
        let mut writer = Writer::default();
        writer.put(51712, &BlkState { capacity: SIZE, queues });
        restore(&front.blk, writer.finish()).unwrap();
        let error = front.connect(Connect::Again).unwrap_err();
        assert_eq!(error, "its state is of other queues");
        // What is restored is not for a driver that begins.
        front.set_up(1, 0, false);
        front.connect(Connect::First).unwrap();
        assert_eq!(front.ask(request(op::FLUSH_DISKCACHE, 0, &[]).as_bytes()), status::OKAY);
    }
    let mut front = Front::new(Shape::of_bytes(SIZE));
    front.blk.disconnect();
    let mut writer = Writer::default();
    writer.put(51712, &BlkState { capacity: SIZE, queues: Some(vec![3]) });
    restore(&front.blk, writer.finish()).unwrap();
    front.set_up(1, 0, false);
    front.connect(Connect::First).unwrap();
    assert_eq!(front.ask(request(op::FLUSH_DISKCACHE, 0, &[]).as_bytes()), status::OKAY);
    let idle = XenBlk::new(&config(), Spy::new(Shape::of_bytes(SIZE)));
    assert_eq!(state(&idle), BlkState { capacity: SIZE, queues: None });
}

#[test]
fn a_ring_that_makes_no_sense_is_not_served_until_it_is_another() {
    let mut front = Front::new(Shape::of_bytes(SIZE));
    let port = front.queues[0].port;
    front.queues[0].ring.set_index(offset_of!(Shared, request_producer), 33);
    front.domain.kick(port);
    while front.count("guest errors") == 0 {
        thread::yield_now();
    }
    // Right again, which comes too late.
    front.put(0, request(op::FLUSH_DISKCACHE, 0, &[]).as_bytes());
    front.domain.kick(port);
    thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((front.count("requests"), front.count("guest errors")), (0, 1));
    front.blk.disconnect();
    assert_eq!(front.domain.used(), 0);
    front.set_up(1, 0, false);
    front.connect(Connect::First).unwrap();
    assert_eq!(front.ask(request(op::FLUSH_DISKCACHE, 0, &[]).as_bytes()), status::OKAY);
}

#[test]
fn what_cannot_be_connected_leaves_nothing_in_use() {
    let mut front = Front::new(Shape::of_bytes(SIZE));
    front.blk.disconnect();
    let ports: Vec<_> = [("ring-ref0", "9999"), ("event-channel", "9999")]
        .into_iter()
        .map(|(node, value)| {
            front.set_up(1, 0, false);
            front.nodes.insert(node.into(), value.into());
            let error = front.connect(Connect::First).unwrap_err();
            assert!(error.starts_with("queue 0: ") && error.contains("9999"), "{error}");
            front.queues[0].port
        })
        .collect();
    front.set_up(2, 1, false);
    front.nodes.insert("queue-1/ring-ref1".into(), "9999".into());
    front.connect(Connect::First).unwrap_err();
    assert_eq!(front.domain.used(), 0);
    assert!(ports.iter().all(|port| !front.domain.is_bound(*port)));
    assert!(!front.domain.is_bound(front.queues[0].port));
}

/// A disk as it should be.
#[derive(Default)]
struct Model(Vec<u8>);

#[derive(Clone, Debug)]
struct Move {
    kind: u8,
    sector: u64,
    segments: Vec<(usize, u8, u8)>,
}

fn moves() -> impl Strategy<Value = Move> {
    let segment = (0usize..24, 0u8..8, 0u8..8).prop_map(|(page, a, b)| (page, a.min(b), a.max(b)));
    (0u8..5, 0u64..120, prop::collection::vec(segment, 1..60))
        .prop_map(|(kind, sector, segments)| Move { kind, sector, segments })
}

impl Model {
    fn apply(&mut self, of: &Move, pages: &mut [Vec<u8>]) -> i16 {
        let at = of.sector as usize * 512;
        let len: usize = of.segments.iter().map(|(_, a, b)| usize::from(b - a + 1) * 512).sum();
        if of.kind == 4 {
            let zeroed = self.0.get_mut(at..at + 4096);
            return zeroed.map_or(status::ERROR, |bytes| {
                bytes.fill(0);
                status::OKAY
            });
        }
        if at + len > self.0.len() || (of.kind < 2 && of.segments.len() > 11) {
            return status::ERROR;
        }
        let mut at = at;
        for (page, a, b) in &of.segments {
            let (from, to) = (usize::from(*a) * 512, (usize::from(*b) + 1) * 512);
            let (disk, page) = (&mut self.0[at..at + to - from], &mut pages[*page][from..to]);
            if of.kind % 2 == 1 {
                disk.copy_from_slice(page)
            } else {
                page.copy_from_slice(disk)
            }
            at += to - from;
        }
        status::OKAY
    }
}

fn entry(front: &Front, of: &Move, pages: &[(Page, GrantRef)]) -> Vec<u8> {
    let segments: Vec<_> =
        of.segments.iter().map(|(page, a, b)| segment(pages[*page].1, *a, *b)).collect();
    match of.kind {
        kind @ 0..2 => request(kind, of.sector, &segments).as_bytes().to_vec(),
        kind @ 2..4 => indirect(front, kind - 2, of.sector, &segments).as_bytes().to_vec(),
        _ => {
            let (sector, sectors) = (of.sector, 8);
            let discard = Discard { operation: op::DISCARD, sector, sectors, ..Default::default() };
            discard.as_bytes().to_vec()
        }
    }
}

/// Any bytes, or what is nearly a request.
fn hostile_entry() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0u32..40, any::<u32>()];
    let segment =
        (word, 0u8..9, 0u8..9).prop_map(|(grant, first, last)| segment(grant, first, last));
    let likely = (0u8..8, any::<u8>(), 0u64..80, prop::collection::vec(segment, 11));
    prop_oneof![
        prop::collection::vec(any::<u8>(), ENTRY),
        likely.prop_map(|(operation, segments, sector, list)| {
            let filled = Request { segments, ..request(operation, sector, &list) };
            filled.as_bytes().to_vec()
        }),
    ]
}

/// Linux says that its pages stay granted whether that was offered or not, and takes them back with
/// the response where it was not: a page in use makes it give the disk up.
#[test]
fn pages_stay_in_use_only_where_that_was_offered() {
    for (offered, how, stay) in [
        (true, Connect::First, true),
        (false, Connect::First, false),
        (true, Connect::Again, false),
    ] {
        let mut front = Front::with(Shape::of_bytes(64 << 10), 1, 0, true);
        front.blk.pause();
        let parts = saved(&front.blk);
        front.blk.disconnect();
        let config = Config { persistent_grants: offered, ..config() };
        front.blk = XenBlk::new(&config, front.disk.clone());
        let says = if offered { "1" } else { "0" };
        assert_eq!(front.blk.features().get("feature-persistent").unwrap(), says);
        if how == Connect::Again {
            restore(&front.blk, parts).unwrap();
        }
        front.connect(how).unwrap();
        front.blk.resume();
        let (_, grant) = front.grant(Access::Write);
        let read = request(op::READ, 0, &[segment(grant, 0, 7)]);
        assert_eq!(front.ask(read.as_bytes()), status::OKAY);
        assert_eq!(front.domain.take_back(grant), !stay, "{offered} {how:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_keeps_what_it_is_given(
        moves in prop::collection::vec(moves(), 1..40),
        persistent: bool,
    ) {
        let shape = Shape { discard: true, ..Shape::of_bytes(64 << 10) };
        let mut front = Front::with(shape, 1, 0, persistent);
        let pages: Vec<_> = (0..24).map(|_| front.grant(Access::Write)).collect();
        let mut bytes: Vec<_> = (0..24u8).map(|i| vec![i + 1; PAGE]).collect();
        for ((page, _), bytes) in pages.iter().zip(&bytes) {
            page.write(0, bytes).unwrap();
        }
        let mut model = Model(vec![0; 64 << 10]);
        for (i, each) in moves.iter().enumerate() {
            if i % 7 == 6 {
                front.blk.pause();
                let parts = saved(&front.blk);
                front.blk.disconnect();
                front.blk = XenBlk::new(&config(), front.disk.clone());
                restore(&front.blk, parts).unwrap();
                front.connect(Connect::Again).unwrap();
                front.blk.resume();
            }
            let entry = entry(&front, each, &pages);
            prop_assert_eq!(front.ask(&entry), model.apply(each, &mut bytes), "{:?}", each);
        }
        prop_assert_eq!(front.disk.bytes(), model.0);
        for ((page, _), bytes) in pages.iter().zip(&bytes) {
            let mut got = vec![0; PAGE];
            page.read(0, &mut got).unwrap();
            prop_assert_eq!(&got, bytes);
        }
    }

    #[test]
    fn no_ring_breaks_more_than_itself(
        entries in prop::collection::vec((hostile_entry(), prop_oneof![4 => 0u32..3, 1 => any::<u32>()]), 1..60),
        order in 0u32..3,
        persistent: bool,
    ) {
        let shape = Shape { discard: true, ..Shape::of_bytes(32 << 10) };
        let mut front = Front::with(shape, 1, order, persistent);
        let guard = front.domain.page();
        guard.write(0, &[0x99; PAGE]).unwrap();
        for access in [Access::Read, Access::Write] {
            (0..10).for_each(|_| drop(front.grant(access)));
        }
        for (entry, more) in &entries {
            front.queues[0].ring.put(entry);
            front.queues[0].ring.put = front.queues[0].ring.put.wrapping_add(*more);
            front.queues[0].ring.publish();
            front.domain.kick(front.queues[0].port);
            // Until it has done all, or will do no more.
            let put = u64::from(front.queues[0].ring.put);
            while front.count("requests") != put && front.count("guest errors") == 0 {
                prop_assert_eq!(front.count("failures"), 0);
                thread::yield_now();
            }
        }
        front.blk.pause();
        prop_assert_eq!(front.count("failures"), 0);
        let mut got = [0; PAGE];
        guard.read(0, &mut got).unwrap();
        prop_assert_eq!(got, [0x99; PAGE], "a page that was never granted");
        front.blk.disconnect();
        prop_assert_eq!(front.domain.used(), 0);
    }
}
