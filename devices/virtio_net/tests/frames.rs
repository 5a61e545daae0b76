//! Frames through the rings, from the driver's side and from the network's.

use device::Device;
use nic::{Checksum, FRAME_MAX, Mac, Meta, Network, NoRoom, Port, SegmentKind, Segmentation};
use proptest::prelude::*;
use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use virtio::{
    VirtioDevice,
    fake::{Board, SIZE, buffer},
    feature::{EVENT_IDX, VERSION_1},
};
use virtio_net::{CONTROL, Config, NetState, RECEIVE, TRANSMIT, VirtioNet, feature};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const PLAIN: u64 =
    VERSION_1 | feature::MAC | feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_MAC_ADDR;
const LARGE: u64 = PLAIN
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::HOST_TSO4
    | feature::MRG_RXBUF;
const HEADER: usize = 12;

/// A network that does nothing by itself.
#[derive(Default)]
struct Wire {
    port: Mutex<Option<Weak<dyn Port>>>,
    wakes: AtomicUsize,
}

impl Wire {
    fn port(&self) -> Arc<dyn Port> {
        self.port.lock().unwrap().as_ref().unwrap().upgrade().unwrap()
    }

    fn take(&self) -> Option<(Vec<u8>, Meta)> {
        let mut bytes = vec![0; FRAME_MAX];
        let taken = self.port().take(&mut bytes)?;
        bytes.truncate(taken.len);
        Some((bytes, taken.meta))
    }
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

fn with(features: u64) -> (Board, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    let board = Board::new(VirtioNet::new(Config { mac: MAC, mtu: 1500, pairs: 1 }, wire.clone()));
    board.start(features, true);
    (board, wire)
}

fn frame(header: [u8; HEADER], payload: &[u8]) -> Vec<u8> {
    [&header[..], payload].concat()
}

/// Receive buffers of `len` bytes each, in ring order.
fn offer_buffers(board: &Board, count: u16, len: u32) {
    for index in 0..count {
        let at = buffer(RECEIVE) + u64::from(index) * u64::from(len);
        board.describe(RECEIVE, index, at, len, 2, 0);
        board.offer(RECEIVE, index);
    }
    board.ring(RECEIVE);
}

/// Interrupts since this was asked last.
fn interrupts(board: &Board) -> usize {
    board.sink.take_messages().len()
}

#[test]
fn frames_of_the_driver_are_taken() {
    let (board, wire) = with(LARGE);
    assert_eq!(wire.take(), None);
    let woken = wire.wakes.load(SeqCst);
    board.submit(TRANSMIT, &frame([0; HEADER], b"hello"), 0);
    assert_eq!(wire.wakes.load(SeqCst), woken + 1, "the doorbell wakes the network");
    assert_eq!(wire.take(), Some((b"hello".to_vec(), Meta::default())));
    assert_eq!(board.used(TRANSMIT), 1);
    interrupts(&board);
    wire.port().flush();
    assert_eq!(interrupts(&board), 1, "told once, at the end of the batch");
    wire.port().flush();
    assert_eq!(interrupts(&board), 0);
    // One that is to be cut.
    let header = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    board.submit(TRANSMIT, &frame(header, &[7; 4000]), 0);
    let meta = Meta {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460, header_len: 54 }),
    };
    assert_eq!(wire.take(), Some((vec![7; 4000], meta)));
}

#[test]
fn what_is_no_frame_is_handed_back() {
    let (board, wire) = with(LARGE);
    // Too short, of an unknown kind, and to be cut without a checksum.
    for bytes in [
        vec![0; 5],
        frame([0, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], b"x"),
        frame([0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], b"x"),
    ] {
        let before = board.used(TRANSMIT);
        board.submit(TRANSMIT, &bytes, 0);
        assert_eq!(wire.take(), Some((Vec::new(), Meta::default())));
        assert_eq!(board.used(TRANSMIT), before.wrapping_add(1));
    }
    // Longer than any frame: many descriptors over the same memory.
    for index in 0..SIZE {
        board.describe(TRANSMIT, index, 0, 0x8_0000, u16::from(index + 1 < SIZE), index + 1);
    }
    board.offer(TRANSMIT, 0);
    board.ring(TRANSMIT);
    assert_eq!(wire.take(), Some((Vec::new(), Meta::default())));
    assert_eq!(board.status() & 0x40, 0);
    board.submit(TRANSMIT, &frame([0; HEADER], b"next"), 0);
    assert_eq!(wire.take().unwrap().0, b"next");
}

#[test]
fn a_frame_for_the_driver_fills_one_buffer() {
    let (board, wire) = with(PLAIN);
    let port = wire.port();
    assert_eq!(port.give(&Meta::default(), &[b"early"]), Err(NoRoom));
    let woken = wire.wakes.load(SeqCst);
    offer_buffers(&board, 2, 1526);
    assert!(wire.wakes.load(SeqCst) > woken, "room wakes the network");
    assert_eq!(port.give(&Meta::default(), &[b"he", b"llo"]), Ok(()));
    assert_eq!(port.give(&Meta::default(), &[&[9; 1514]]), Ok(()));
    assert_eq!(port.give(&Meta::default(), &[b"late"]), Err(NoRoom));
    assert_eq!(board.used(RECEIVE), 2);
    assert_eq!(board.used_entry(RECEIVE, 0), (0, 17));
    assert_eq!(board.used_entry(RECEIVE, 1), (1, 1526));
    let mut bytes = [0; 17];
    board.memory.read(buffer(RECEIVE), &mut bytes).unwrap();
    assert_eq!(&bytes[..], frame([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], b"hello"));
    interrupts(&board);
    port.flush();
    assert_eq!(interrupts(&board), 1);
    // A buffer too small for a frame is the driver's mistake.
    offer_buffers(&board, 1, 100);
    assert_eq!(port.give(&Meta::default(), &[&[9; 200]]), Err(NoRoom));
    board.until("a reset is needed", || board.status() & 0x40 != 0);
    assert_eq!(port.give(&Meta::default(), &[b"x"]), Err(NoRoom));
}

#[test]
fn a_long_frame_lies_in_several_buffers() {
    for features in [LARGE, LARGE | EVENT_IDX] {
        let (board, wire) = with(features);
        let port = wire.port();
        let offloads = port.offloads();
        assert!(offloads.checksum && offloads.tso4 && !offloads.tso6);
        let payload: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        let meta = Meta {
            checksum: Checksum::Partial { start: 34, offset: 16 },
            segmentation: Some(Segmentation {
                kind: SegmentKind::Tcp4,
                size: 1460,
                header_len: 54,
            }),
        };
        // Not enough, and nothing of it is used.
        offer_buffers(&board, 3, 1000);
        assert_eq!(port.give(&meta, &[&payload]), Err(NoRoom));
        assert_eq!(board.used(RECEIVE), 0);
        for index in 3..8u16 {
            let at = buffer(RECEIVE) + u64::from(index) * 1000;
            board.describe(RECEIVE, index, at, 1000, 2, 0);
            board.offer(RECEIVE, index);
        }
        board.ring(RECEIVE);
        assert_eq!(port.give(&meta, &[&payload[..14], &payload[14..]]), Ok(()));
        assert_eq!(board.used(RECEIVE), 6);
        let lengths: Vec<_> = (0..6).map(|i| board.used_entry(RECEIVE, i)).collect();
        let full = (0..5).map(|i| (i, 1000));
        assert_eq!(lengths, full.chain([(5, 12)]).collect::<Vec<_>>());
        let mut bytes = vec![0; 5012];
        board.memory.read(buffer(RECEIVE), &mut bytes).unwrap();
        assert_eq!(bytes[..HEADER], [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 6, 0]);
        assert!(bytes[HEADER..] == payload);
        interrupts(&board);
        port.flush();
        assert_eq!(interrupts(&board), 1);
        // Two buffers are left, for a frame each.
        assert_eq!(port.give(&Meta::default(), &[b"one"]), Ok(()));
        assert_eq!(port.give(&Meta::default(), &[b"two"]), Ok(()));
        assert_eq!(board.used(RECEIVE), 8);
        assert_eq!(board.used_entry(RECEIVE, 7), (7, 15));
    }
}

#[test]
fn configuration_and_control() {
    let (board, wire) = with(PLAIN | feature::STATUS | feature::MTU);
    let config = |at: u64, len| board.read(board.bar + 0x2000 + at, len);
    assert_eq!(config(0, 4), 0x1200_5452);
    assert_eq!((config(6, 2), config(8, 2), config(10, 2)), (1, 1, 1500));
    wire.port().set_link(false);
    assert_eq!(config(6, 2), 0);
    // Promiscuous; another address; one of a group; what is unknown.
    assert_eq!(board.call(CONTROL, &[0, 0, 1], 1), Some(vec![0]));
    assert_eq!(board.call(CONTROL, &[1, 1, 2, 3, 4, 5, 6, 7], 1), Some(vec![0]));
    assert_eq!(wire.port().mac(), Mac([2, 3, 4, 5, 6, 7]));
    assert_eq!(board.call(CONTROL, &[1, 1, 3, 3, 4, 5, 6, 7], 1), Some(vec![1]));
    assert_eq!(board.call(CONTROL, &[9, 9], 1), Some(vec![1]));
    assert_eq!(board.call(CONTROL, &[0, 0, 1], 0), None, "no room for an answer");
    board.set_status(0);
    assert_eq!(wire.port().mac(), MAC);
}

#[test]
fn a_card_at_rest_touches_nothing() {
    let (board, wire) = with(PLAIN);
    offer_buffers(&board, 4, 1526);
    board.submit(TRANSMIT, &frame([0; HEADER], b"sent"), 0);
    board.pause();
    assert_eq!(wire.take(), None);
    assert_eq!(wire.port().give(&Meta::default(), &[b"x"]), Err(NoRoom));
    let woken = wire.wakes.load(SeqCst);
    board.resume();
    assert!(wire.wakes.load(SeqCst) > woken);
    assert_eq!(wire.take().unwrap().0, b"sent");
    assert_eq!(wire.port().give(&Meta::default(), &[b"x"]), Ok(()));
    assert_eq!(board.used(RECEIVE), 1);
}

#[test]
fn a_saved_card_goes_on_elsewhere() {
    let (board, wire) = with(PLAIN);
    assert_eq!(board.call(CONTROL, &[1, 1, 2, 3, 4, 5, 6, 7], 1), Some(vec![0]));
    board.submit(TRANSMIT, &frame([0; HEADER], b"first"), 0);
    assert_eq!(wire.take().unwrap().0, b"first");
    offer_buffers(&board, 2, 1526);
    let parts = board.save();
    let (other, its_wire) = with(PLAIN);
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    other.resume();
    assert_eq!(its_wire.port().mac(), Mac([2, 3, 4, 5, 6, 7]));
    assert_eq!(its_wire.take(), None, "what was sent is sent");
    assert_eq!(its_wire.port().give(&Meta::default(), &[b"x"]), Ok(()));
    assert_eq!(other.used(RECEIVE), 1);
    let mut broken = parts.clone();
    let kind = <NetState as saved_state::Schema>::KIND;
    broken.iter_mut().filter(|part| part.kind == kind).for_each(|part| part.version += 1);
    assert!(other.restore(&broken).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("SARANG_LONG").is_some() { 5000 } else { 100 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Descriptors and rings of noise, while the network takes and gives.
    #[test]
    fn any_ring_is_survived(
        descriptors in prop::collection::vec(
            (0u16..3, 0u16..8, 0u64..0x12_0000, prop_oneof![0u32..4000, any::<u32>()], 0u16..8, 0u16..9),
            0..24),
        heads in prop::collection::vec((0u16..3, 0u16..9), 0..24),
        large: bool,
    ) {
        let (board, wire) = with(if large { LARGE | EVENT_IDX } else { PLAIN });
        for (queue, index, at, len, flags, next) in descriptors {
            board.describe(queue, index, at, len, flags, next);
        }
        for (queue, head) in heads {
            board.offer(queue, head);
            board.ring(queue);
            for _ in 0..3 {
                wire.take();
                let _ = wire.port().give(&Meta::default(), &[&[1; 60], &[2; 900]]);
            }
            wire.port().flush();
        }
        // Whatever it was, a reset mends it.
        board.set_status(0);
        board.clear_rings();
        board.start(PLAIN, true);
        board.submit(TRANSMIT, &frame([0; HEADER], b"alive"), 0);
        prop_assert_eq!(wire.take().map(|(bytes, _)| bytes), Some(b"alive".to_vec()));
    }
}

#[test]
fn it_counts() {
    let wire = Arc::new(Wire::default());
    let card = VirtioNet::new(Config { mac: MAC, mtu: 1500, pairs: 1 }, wire.clone());
    let board = Board::new(card.clone());
    board.start(PLAIN, true);
    board.submit(TRANSMIT, &frame([0; HEADER], b"x"), 0);
    wire.take();
    assert_eq!(VirtioDevice::counters(&*card)[0], ("frames sent", 1));
    assert!(board.virtio.counters().iter().any(|(_, n)| *n > 0));
}
