//! Several pairs of queues, filters, announcements: what the control queue is for.

use nic::{FRAME_MAX, Mac, Meta, Network, Port};
use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use virtio::{
    VirtioDevice,
    fake::{Board, buffer},
    feature::VERSION_1,
};
use virtio_net::{CONTROL, Config, RECEIVE, TRANSMIT, VirtioNet, feature};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const PAIRS: u16 = 3;
/// Behind all pairs.
const MQ_CONTROL: u16 = 2 * PAIRS;
const BASE: u64 = VERSION_1 | feature::MAC | feature::CTRL_VQ | feature::STATUS;

/// A network that does nothing by itself.
#[derive(Default)]
struct Wire(Mutex<Option<Weak<dyn Port>>>);

impl Wire {
    fn port(&self) -> Arc<dyn Port> {
        self.0.lock().unwrap().as_ref().unwrap().upgrade().unwrap()
    }

    fn take(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; FRAME_MAX];
        let taken = self.port().take(&mut bytes)?;
        bytes.truncate(taken.len);
        Some(bytes)
    }

    fn give(&self, frame: &[u8]) -> bool {
        self.port().give(&Meta::default(), &[frame]).is_ok()
    }
}

impl Network for Wire {
    fn attach(&self, port: Weak<dyn Port>) {
        *self.0.lock().unwrap() = Some(port);
    }
    fn wake(&self) {}
    fn pause(&self) {}
    fn resume(&self) {}
}

fn with(features: u64) -> (Board, Arc<Wire>, Arc<VirtioNet>) {
    let wire = Arc::new(Wire::default());
    let card = VirtioNet::new(Config { mac: MAC, mtu: 1500, pairs: PAIRS }, wire.clone());
    let board = Board::new(card.clone());
    board.start(BASE | features, true);
    (board, wire, card)
}

/// A UDP datagram of IPv4 in a frame.
fn datagram(to: Mac, from: Mac, addresses: [[u8; 4]; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(addresses.concat());
    frame.extend(ports.map(u16::to_be_bytes).concat());
    frame.resize(60, 0);
    frame
}

fn send(board: &Board, pair: u16, frame: &[u8]) {
    board.submit(2 * pair + TRANSMIT, &[&[0; 12], frame].concat(), 0);
}

fn offer(board: &Board, pair: u16) {
    let queue = 2 * pair + RECEIVE;
    board.describe(queue, 0, buffer(queue), 2048, 2, 0);
    board.offer(queue, 0);
    board.ring(queue);
}

#[test]
fn pairs_are_used_when_the_driver_says_so() {
    let (board, wire, card) = with(feature::MQ);
    assert_ne!(card.features() & feature::MQ, 0);
    assert_eq!(board.read(board.bar + 0x2000 + 8, 2), u64::from(PAIRS));
    let (peer, guest) = ([192, 0, 2, 1], [10, 0, 2, 15]);
    let question = |port: u16| datagram(Mac([2; 6]), MAC, [guest, peer], [port, 53]);
    let answer = |port: u16| datagram(MAC, Mac([2; 6]), [peer, guest], [53, port]);
    // One until then.
    send(&board, 2, &question(1));
    assert_eq!(wire.take(), None);
    for (pairs, done) in [(0u16, 1), (PAIRS + 1, 1), (PAIRS, 0)] {
        let [low, high] = pairs.to_le_bytes();
        assert_eq!(board.call(MQ_CONTROL, &[4, 0, low, high], 1), Some(vec![done]), "{pairs}");
    }
    assert_eq!(wire.take(), Some(question(1)));
    // All take turns, and each gets its answers.
    for pair in 0..PAIRS {
        send(&board, pair, &question(10 + pair));
    }
    let mut taken: Vec<_> = std::iter::from_fn(|| wire.take()).collect();
    taken.sort();
    assert_eq!(taken, (10..10 + PAIRS).map(question).collect::<Vec<_>>());
    (0..PAIRS).for_each(|pair| offer(&board, pair));
    for pair in 0..PAIRS {
        let before: Vec<u16> = (0..PAIRS).map(|p| board.used(2 * p + RECEIVE)).collect();
        assert!(wire.give(&answer(10 + pair)));
        let after: Vec<u16> = (0..PAIRS).map(|p| board.used(2 * p + RECEIVE)).collect();
        let changed: Vec<u16> =
            (0..PAIRS).filter(|p| before[usize::from(*p)] != after[usize::from(*p)]).collect();
        assert_eq!(changed, [pair]);
    }
    assert!(!wire.give(&answer(10)), "no buffer there");
    board.sink.take_messages();
    wire.port().flush();
    assert_eq!(board.sink.take_messages().len(), 2 * usize::from(PAIRS), "each has its interrupt");
}

#[test]
fn a_pair_sends_what_it_has_before_the_next() {
    let (board, wire, _) = with(feature::MQ);
    assert_eq!(board.call(MQ_CONTROL, &[4, 0, 3, 0], 1), Some(vec![0]));
    let send_all = || {
        for pair in [0, 1, 0, 1] {
            send(&board, pair, &[b'a' + pair as u8; 20]);
        }
    };
    let take = || wire.take().map(|frame| frame[0] as char);
    send_all();
    let order: String = std::iter::from_fn(take).collect();
    assert_eq!(order, "aabb");
    // And where it is not the first's turn any more, the next is first.
    wire.port().flush();
    wire.port().flush();
    send_all();
    let mut order = String::new();
    while let Some(frame) = take() {
        order.push(frame);
        wire.port().flush();
    }
    assert_eq!(order, "abab");
}

#[test]
fn a_frame_goes_where_there_is_room() {
    let (board, wire, card) = with(feature::MQ);
    assert_eq!(board.call(MQ_CONTROL, &[4, 0, 2, 0], 1), Some(vec![0]));
    let frame = datagram(MAC, Mac([2; 6]), [[192, 0, 2, 1], [10, 0, 2, 15]], [53, 9]);
    let used = || [0, 1, 2].map(|pair| board.used(2 * pair + RECEIVE));
    // The conversation's own pair is the first; the third is not used.
    offer(&board, 2);
    assert!(!wire.give(&frame));
    offer(&board, 1);
    assert!(wire.give(&frame));
    assert_eq!(used(), [0, 1, 0]);
    offer(&board, 1);
    offer(&board, 0);
    assert!(wire.give(&frame));
    assert_eq!(used(), [1, 1, 0]);
    let refused = card.counters().into_iter().find(|(name, _)| *name == "frames without room");
    assert_eq!(refused.map(|(_, count)| count), Some(1), "once for a frame");
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn noise_on_its_queues_breaks_nothing() {
    for seed in 1..60 {
        let features = feature::MQ | feature::CTRL_RX | feature::MRG_RXBUF;
        let (board, wire, _) = with(features);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    wire.take();
                    wire.give(&[0x33; 900]);
                    wire.port().flush();
                    std::thread::sleep(std::time::Duration::from_micros(20));
                }
            });
            // However this ends, the network does.
            let _over = SetOnDrop(&over);
            assert_eq!(board.call(MQ_CONTROL, &[4, 0, 3, 0], 1), Some(vec![0]));
            board.noise(seed, BASE | features);
        });
        board.start_over(BASE | features);
        assert_eq!(board.call(MQ_CONTROL, &[4, 0, 3, 0], 1), Some(vec![0]), "{seed}");
        send(&board, 2, b"alive");
        assert_eq!(wire.take().as_deref(), Some(&b"alive"[..]), "{seed}");
    }
}

#[test]
fn a_driver_without_pairs_finds_the_control_queue_where_it_always_was() {
    let (board, wire, _) = with(feature::CTRL_MAC_ADDR);
    assert_eq!(board.call(CONTROL, &[1, 1, 2, 3, 4, 5, 6, 7], 1), Some(vec![0]));
    assert_eq!(wire.port().mac(), Mac([2, 3, 4, 5, 6, 7]));
    assert_eq!(board.call(CONTROL, &[4, 0, 1, 0], 1), Some(vec![1]), "not negotiated");
    let single = VirtioNet::new(Config { mac: MAC, mtu: 1500, pairs: 1 }, wire.clone());
    assert_eq!(single.features() & feature::MQ, 0);
}

#[test]
fn frames_that_the_guest_does_not_want_are_dropped() {
    let (board, wire, card) = with(feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN);
    let other = Mac([2, 0, 0, 0, 0, 9]);
    let group = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let tagged = [&MAC.0[..], &other.0, &[0x81, 0, 0, 7], &[0; 46]].concat();
    let arrives = |frame: &[u8]| {
        offer(&board, 0);
        let before = board.used(RECEIVE);
        assert!(wire.give(frame), "dropped, not refused");
        board.used(RECEIVE) != before
    };
    let to = |mac: Mac| datagram(mac, other, [[0; 4]; 2], [0; 2]);
    let command = |bytes: &[u8]| board.call(CONTROL, bytes, 1).unwrap()[0];
    assert!(arrives(&to(other)) && arrives(&to(group)), "promiscuous at first");
    assert_eq!(command(&[0, 0, 0]), 0);
    assert!(arrives(&to(MAC)) && arrives(&to(Mac::BROADCAST)));
    assert!(!arrives(&to(other)) && !arrives(&to(group)));
    let tables = [&[1, 0, 1, 0, 0, 0][..], &other.0, &[1, 0, 0, 0], &group.0].concat();
    assert_eq!(command(&tables), 0);
    assert!(arrives(&to(other)) && arrives(&to(group)));
    assert_eq!(command(&tables[..tables.len() - 1]), 1, "an address is cut off");
    assert_eq!(command(&[1, 0, 0xff, 0xff, 0xff, 0xff]), 1);
    assert_eq!(command(&[0, 3, 1]), 0);
    assert!(arrives(&to(other)) && !arrives(&to(group)), "no groups");
    assert!(!arrives(&tagged));
    assert_eq!((command(&[2, 0, 7, 0]), command(&[2, 0, 0, 0x10])), (0, 1), "4095 is the last");
    assert!(arrives(&tagged));
    assert_eq!(command(&[2, 1, 7, 0]), 0);
    assert!(!arrives(&tagged));
    // More than the table holds: all of the kind.
    let many = [&[1, 0, 65, 0, 0, 0][..], &[2; 65 * 6], &[0; 4]].concat();
    assert_eq!(command(&many), 0);
    assert!(arrives(&to(Mac([4; 6]))));
    let filtered = card.counters().into_iter().find(|(name, _)| *name == "frames filtered");
    assert!(filtered.is_some_and(|(_, count)| count == 5), "{filtered:?}");
}

#[test]
fn a_restored_card_is_announced() {
    let features = feature::GUEST_ANNOUNCE | feature::MQ | feature::CTRL_RX;
    let (board, wire, _) = with(features);
    let status = |board: &Board| board.read(board.bar + 0x2000 + 6, 2);
    assert_eq!(status(&board), 1);
    assert_eq!(board.call(MQ_CONTROL, &[4, 0, 2, 0], 1), Some(vec![0]));
    assert_eq!(board.call(MQ_CONTROL, &[0, 0, 0], 1), Some(vec![0]));
    let parts = board.save();
    drop(wire);
    let (other, wire, _) = with(features);
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    assert_eq!(other.save(), parts);
    other.resume();
    other.sink.take_messages();
    wire.port().flush();
    assert_eq!(other.sink.take_messages().len(), 1, "the configuration has changed");
    assert_eq!(status(&other), 3);
    wire.port().flush();
    assert!(other.sink.take_messages().is_empty(), "told once");
    // The second pair is in use, and the filter holds.
    send(&other, 1, b"by the second pair");
    assert_eq!(wire.take().unwrap(), b"by the second pair");
    offer(&other, 0);
    assert!(wire.give(&datagram(Mac([2; 6]), MAC, [[0; 4]; 2], [0; 2])));
    assert_eq!(other.used(RECEIVE), 0);
    assert_eq!(other.call(MQ_CONTROL, &[3, 0], 1), Some(vec![0]));
    assert_eq!(status(&other), 1);
    other.set_status(0);
    assert_eq!(status(&other), 1);
}
