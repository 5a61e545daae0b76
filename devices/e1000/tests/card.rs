//! The controller as a driver and a network see it.

use device::{
    Device, LineRef, Wiring,
    fake::{self, FakeTime, Recorder},
};
use e1000::E1000;
use guest_mem::{Change, GuestMem, Memfd, Slot};
use nic::{Checksum, FRAME_MAX, Mac, Meta, Network, NoRoom, Port, SegmentKind, Segmentation};
use proptest::prelude::*;
use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const ECAM: u64 = 0xe000_0000;
const RAM: u64 = 1 << 20;
const TX: u64 = 0x1000;
const RX: u64 = 0x2000;
const RING: u64 = 8;
const DATA: u64 = 0x1_0000;

#[derive(Default)]
struct Wire {
    port: Mutex<Option<Weak<dyn Port>>>,
    wakes: AtomicUsize,
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

struct Board {
    wiring: Wiring,
    memory: Arc<GuestMem>,
    card: Arc<E1000>,
    wire: Arc<Wire>,
    time: FakeTime,
    line: Arc<Recorder>,
    bar: u64,
    ports: u16,
}

impl Board {
    fn new() -> Self {
        let time = FakeTime::default();
        let (sink, line) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut wiring = fake::wiring(&time, &sink);
        let ram = Memfd::new(RAM).unwrap();
        let memory = GuestMem::new(RAM).unwrap();
        let slot = Slot { id: 0, gpa: 0, mem: ram, offset: 0, len: RAM, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        wiring.memory = memory.clone();
        wiring.irqs = (0..24).map(|_| line.clone() as LineRef).collect();
        let config = pci::Config { ecam: ECAM..ECAM + (1 << 28), window: 0xc000_0000..0xd000_0000 };
        let pci = pci::build(&config, &mut wiring);
        let wire = Arc::new(Wire::default());
        let card = e1000::build(MAC, wire.clone(), &pci, &mut wiring);
        pci.assign();
        let mut board = Self { wiring, memory, card, wire, time, line, bar: 0, ports: 0 };
        board.bar = u64::from(board.mmio(ECAM + (1 << 15) + 0x10));
        board.ports = (board.mmio(ECAM + (1 << 15) + 0x14) & !3) as u16;
        board.mmio_write(ECAM + (1 << 15) + 4, 7);
        board.wiring.devices.iter().for_each(|device| device.resume());
        board
    }

    fn mmio(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.wiring.mmio.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn mmio_write(&self, at: u64, value: u32) {
        self.wiring.mmio.write(at, &value.to_le_bytes());
    }

    fn get(&self, register: u64) -> u32 {
        self.mmio(self.bar + register)
    }

    fn set(&self, register: u64, value: u32) {
        self.mmio_write(self.bar + register, value);
    }

    /// Rings of eight descriptors with buffers of 2 KiB, and both directions on.
    fn start(&self) {
        for (base, at) in [(0x3800, TX), (0x2800, RX)] {
            self.set(base, at as u32);
            self.set(base + 4, 0);
            self.set(base + 8, RING as u32 * 16);
            self.set(base + 0x10, 0);
            self.set(base + 0x18, 0);
        }
        for n in 0..RING {
            self.memory.write(RX + n * 16, &buffer(n).to_le_bytes()).unwrap();
            self.memory.write(RX + n * 16 + 8, &[0; 8]).unwrap();
        }
        self.set(0x400, 2);
        // On, broadcasts, without the frame check sequence.
        self.set(0x100, 1 << 1 | 1 << 15 | 1 << 26);
        self.set(0xd0, 0xff);
    }

    fn descriptor(&self, index: u64, words: [u32; 4]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(TX + index * 16, &bytes).unwrap();
    }

    fn data(&self, at: u64, bytes: &[u8]) {
        self.memory.write(DATA + at, bytes).unwrap();
    }

    fn status(&self, ring: u64, index: u64) -> u8 {
        let mut byte = [0];
        self.memory.read(ring + index * 16 + 12, &mut byte).unwrap();
        byte[0]
    }

    fn port(&self) -> Arc<dyn Port> {
        self.wire.port.lock().unwrap().as_ref().unwrap().upgrade().unwrap()
    }

    fn take(&self) -> Option<(Vec<u8>, Meta)> {
        let mut bytes = vec![0; FRAME_MAX];
        let taken = self.port().take(&mut bytes)?;
        bytes.truncate(taken.len);
        Some((bytes, taken.meta))
    }

    fn give(&self, frame: &[u8]) -> Result<(), NoRoom> {
        self.port().give(&Meta::default(), &[frame])
    }

    /// What a receive descriptor says, and what its buffer holds.
    fn got(&self, index: u64) -> (u8, u16, Vec<u8>) {
        let mut bytes = [0; 16];
        self.memory.read(RX + index * 16, &mut bytes).unwrap();
        let mut frame = vec![0; usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))];
        self.memory.read(buffer(index), &mut frame).unwrap();
        (bytes[12], u16::from_le_bytes([bytes[14], bytes[15]]), frame)
    }
}

fn buffer(index: u64) -> u64 {
    0x4_0000 + index * 0x800
}

/// A frame to an address.
fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

fn sum(bytes: &[u8]) -> u32 {
    let words =
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    let mut total: u32 = words.sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

const END_AND_REPORT: u32 = 0x0b << 24;
const EXTENDED: u32 = 1 << 29;
const DATA_TYPE: u32 = 1 << 20;

#[test]
fn the_bus_and_the_eeprom_know_it() {
    let board = Board::new();
    assert_eq!(board.mmio(ECAM + (1 << 15)), 0x100e_8086);
    board.set(0x14, 1);
    assert_eq!(board.get(0x14), 0x5452_0010);
    // By ports.
    let mut data = [0; 4];
    board.wiring.pio.write(board.ports, &8u32.to_le_bytes());
    board.wiring.pio.read(board.ports + 4, &mut data);
    assert_eq!(u32::from_le_bytes(data), board.get(8));
    board.set(0xd0, 4);
    board.wiring.pio.write(board.ports, &0u32.to_le_bytes());
    board.wiring.pio.write(board.ports + 4, &(1u32 << 26).to_le_bytes());
    assert_eq!(board.get(0xd0), 0, "a reset by ports");
    assert_eq!(board.port().mac(), MAC);
}

#[test]
fn frames_of_legacy_descriptors_are_taken() {
    let board = Board::new();
    board.start();
    assert_eq!(board.take(), None);
    let sent = frame([1, 0, 0x5e, 0, 0, 1], 80);
    board.data(0, &sent[..20]);
    board.data(0x1000, &sent[20..]);
    board.descriptor(0, [DATA as u32, 0, 20, 0]);
    board.descriptor(1, [DATA as u32 + 0x1000, 0, 60 | END_AND_REPORT, 0]);
    let woken = board.wire.wakes.load(SeqCst);
    board.set(0x3818, 1);
    assert_eq!(board.take(), None, "its end is not there yet");
    board.set(0x3818, 2);
    assert_eq!(board.wire.wakes.load(SeqCst), woken + 2);
    assert_eq!(board.take(), Some((sent, Meta::default())));
    assert_eq!((board.status(TX, 0), board.status(TX, 1), board.get(0x3810)), (0, 1, 2));
    assert!(!board.line.level(), "at the end of the batch");
    board.port().flush();
    assert!(board.line.level());
    assert_eq!((board.get(0xc0), board.line.level()), (3, false));
    assert_eq!((board.get(0x4080), board.get(0x40f0), board.get(0x4090)), (1, 1, 84));
    // A checksum from byte 14 on, at byte 16.
    let mut sent = frame([2; 6], 64);
    sent[16..18].fill(0);
    board.data(0, &sent);
    board.descriptor(2, [DATA as u32, 0, 64 | 16 << 16 | END_AND_REPORT | 4 << 24, 14 << 8]);
    board.set(0x3818, 3);
    let (taken, meta) = board.take().unwrap();
    assert_eq!((sum(&taken[14..]), meta), (0xffff, Meta::default()));
}

#[test]
fn the_last_descriptor_says_whether_a_sum_and_a_tag_are_inserted() {
    let board = Board::new();
    board.start();
    board.set(0, 1 << 30);
    let mut sent = frame([2; 6], 64);
    sent[16..18].fill(0);
    board.data(0, &sent);
    // Legacy, in two pieces: the start of the sum in the first, all else in the last.
    board.descriptor(0, [DATA as u32, 0, 20, 14 << 8]);
    let last = 44 | 16 << 16 | END_AND_REPORT | 0x44 << 24;
    board.descriptor(1, [DATA as u32 + 20, 0, last, 0x0123 << 16]);
    // In the first only: neither.
    board.descriptor(2, [DATA as u32, 0, 20 | 16 << 16 | 0x44 << 24, 14 << 8 | 0x0123 << 16]);
    board.descriptor(3, [DATA as u32 + 20, 0, 44 | END_AND_REPORT, 0]);
    // Extended, not to be cut: the tag is the last one's.
    let data = DATA_TYPE | EXTENDED;
    board.descriptor(4, [DATA as u32, 0, 20 | data, 0]);
    let last = 44 | data | END_AND_REPORT | 0x40 << 24;
    board.descriptor(5, [DATA as u32 + 20, 0, last, 0x0456 << 16]);
    board.set(0x3818, 6);
    let (taken, _) = board.take().unwrap();
    assert_eq!((taken.len(), &taken[12..18]), (68, &[0x81, 0, 1, 0x23, 8, 0][..]));
    assert_eq!(sum(&taken[18..]), 0xffff);
    assert_eq!(board.take(), Some((sent, Meta::default())));
    assert_eq!(board.take().unwrap().0[12..18], [0x81, 0, 4, 0x56, 8, 0]);
}

#[test]
fn a_reset_by_the_driver_releases_the_pin() {
    let board = Board::new();
    board.start();
    board.set(0xc8, 4);
    assert!(board.line.level());
    board.set(0, 1 << 26);
    assert!(!board.line.level());
    board.start();
    board.set(0xc8, 4);
    assert!(board.line.level(), "and asserts it again");
    board.wiring.devices.iter().for_each(|device| device.reset());
    assert!(!board.line.level());
}

#[test]
fn what_is_no_frame_is_handed_back() {
    let board = Board::new();
    board.start();
    // Too short, from nowhere, and longer than any.
    board.descriptor(0, [DATA as u32, 0, 13 | END_AND_REPORT, 0]);
    board.descriptor(1, [0, 0xffff, 64 | END_AND_REPORT, 0]);
    board.descriptor(2, [0, 0, 0xffff | DATA_TYPE | EXTENDED, 0]);
    board.descriptor(3, [0, 0, 0xffff | DATA_TYPE | EXTENDED | END_AND_REPORT, 0]);
    board.set(0x3818, 4);
    for head in [1, 2, 4] {
        assert_eq!(board.take(), Some((Vec::new(), Meta::default())));
        assert_eq!(board.get(0x3810), head);
    }
    assert_eq!(board.take(), None);
}

/// TCP over IPv4 in a frame: headers as a driver leaves them for segmentation.
fn segmentable(payload: usize) -> Vec<u8> {
    let mut sent = frame([2; 6], 54 + payload);
    sent[14] = 0x45;
    sent[16..18].fill(0);
    sent[24..26].fill(0);
    sent[50..52].copy_from_slice(&0x1234u16.to_be_bytes());
    sent
}

#[test]
fn a_frame_to_be_cut_is_completed_and_goes_as_one() {
    let board = Board::new();
    board.start();
    let sent = segmentable(4000);
    board.data(0, &sent);
    // TCP, IPv4, segmentation; headers of 54 bytes, segments of 1460.
    let contexts = 14 | 24 << 8 | 33 << 16;
    board.descriptor(0, [contexts, 34 | 50 << 8, 7 << 24 | EXTENDED, 54 << 8 | 1460 << 16]);
    let first = [DATA as u32, 0, 54 | DATA_TYPE | EXTENDED | 4 << 24, 3 << 8];
    board.descriptor(1, first);
    let second = 4000 | DATA_TYPE | EXTENDED | END_AND_REPORT | 4 << 24;
    board.descriptor(2, [DATA as u32 + 54, 0, second, 0]);
    board.set(0x3818, 3);
    let (taken, meta) = board.take().unwrap();
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: 1460, header_len: 54 };
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    assert_eq!(meta, Meta { checksum, segmentation: Some(segmentation) });
    assert_eq!(taken[16..18], 4040u16.to_be_bytes());
    assert_eq!(sum(&taken[14..34]), 0xffff, "of the IP header");
    assert_eq!(taken[50..52], (0x1234u16 + 4020).to_be_bytes(), "now with the length");
    assert_eq!(board.get(0x40f8), 1);
    // The context stays; what fits a segment is not cut. A tag moves what comes behind it.
    board.set(0, 1 << 30);
    let short = 54 + 1460;
    let words = short | DATA_TYPE | EXTENDED | END_AND_REPORT | 0x44 << 24;
    board.descriptor(3, [DATA as u32, 0, words, 3 << 8 | 0x0123 << 16]);
    board.set(0x3818, 4);
    let (taken, meta) = board.take().unwrap();
    assert_eq!(
        meta,
        Meta { checksum: Checksum::Partial { start: 38, offset: 16 }, segmentation: None }
    );
    assert_eq!((taken.len(), &taken[12..18]), (1518, &[0x81, 0, 1, 0x23, 8, 0][..]));
}

#[test]
fn checksums_of_contexts_are_partial_or_inserted() {
    let board = Board::new();
    board.start();
    let mut sent = frame([2; 6], 100);
    sent[24..26].fill(0);
    board.data(0, &sent);
    let data = [DATA as u32, 0, 100 | DATA_TYPE | EXTENDED | END_AND_REPORT, 3 << 8];
    board.descriptor(0, [14 | 24 << 8 | 33 << 16, 34 | 50 << 8, EXTENDED, 0]);
    board.descriptor(1, data);
    // To a last byte; and to a place that is not in the frame.
    board.descriptor(2, [14 | 24 << 8 | 33 << 16, 34 | 50 << 8 | 80 << 16, EXTENDED, 0]);
    board.descriptor(3, data);
    board.descriptor(4, [99 | 99 << 8, 34 | 200 << 8, EXTENDED, 0]);
    board.descriptor(5, data);
    board.set(0x3818, 6);
    let (taken, meta) = board.take().unwrap();
    assert_eq!(meta.checksum, Checksum::Partial { start: 34, offset: 16 });
    assert_eq!((sum(&taken[14..34]), &taken[34..]), (0xffff, &sent[34..]));
    let (taken, meta) = board.take().unwrap();
    assert_eq!(meta, Meta::default());
    assert_eq!(taken[50..52], (!(sum(&sent[34..81]) as u16)).to_be_bytes());
    assert_eq!(board.take().unwrap().0, sent);
}

#[test]
fn frames_for_the_guest_fill_buffers() {
    let board = Board::new();
    let own = frame(MAC.0, 100);
    assert_eq!(board.give(&own), Err(NoRoom), "off");
    board.start();
    assert_eq!(board.give(&own), Err(NoRoom), "no buffer");
    assert_eq!(board.get(0x40a0), 1);
    let woken = board.wire.wakes.load(SeqCst);
    board.set(0x2818, 7);
    assert_eq!(board.wire.wakes.load(SeqCst), woken + 1, "room wakes the network");
    assert_eq!(board.give(&own), Ok(()));
    assert_eq!(board.give(&frame([2; 6], 100)), Ok(()), "another's");
    assert_eq!(board.give(&frame([0xff; 6], 42)), Ok(()));
    assert_eq!((board.get(0x2810), board.got(0)), (2, (3, 0, own.clone())));
    let mut padded = frame([0xff; 6], 42);
    padded.resize(60, 0);
    assert_eq!(board.got(1).2, padded);
    board.port().flush();
    assert!(board.line.level());
    assert_eq!(board.get(0xc0), 0x80);
    // With the frame check sequence, which makes the whole one's residue known.
    board.set(0x100, 1 << 1 | 1 << 3);
    assert_eq!(board.give(&frame([2; 6], 1514)), Ok(()));
    let (_, _, bytes) = board.got(2);
    assert_eq!((bytes.len(), crc32fast(&bytes)), (1518, 0x2144_df1c));
    // Too long, until that is allowed; in buffers of 256 bytes.
    assert_eq!(board.give(&frame([2; 6], 1515)), Ok(()));
    assert_eq!((board.get(0x40ac), board.get(0x2810)), (1, 3));
    board.set(0x100, 1 << 1 | 1 << 3 | 1 << 5 | 3 << 16 | 1 << 26);
    assert_eq!(board.give(&frame([2; 6], 1515)), Err(NoRoom), "four of six");
    assert_eq!(board.give(&frame([2; 6], 600)), Ok(()));
    let parts: Vec<_> = (3..6).map(|n| board.got(n)).map(|(s, _, b)| (s, b.len())).collect();
    assert_eq!(parts, [(1, 256), (1, 256), (3, 88)]);
    board.port().flush();
    assert_eq!(board.get(0xc0), 0x90, "few are left");
}

/// Bit by bit.
fn crc32fast(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[test]
fn groups_are_looked_up() {
    let board = Board::new();
    board.start();
    board.set(0x2818, 7);
    let group = [1, 0, 0x5e, 0x12, 0x34, 0x56];
    // Bits 47 to 36 of the address: 0x563.
    assert_eq!(board.give(&frame(group, 64)), Ok(()));
    assert_eq!(board.get(0x2810), 0);
    board.set(0x5200 + 4 * (0x563 >> 5), 1 << (0x563 & 31));
    assert_eq!(board.give(&frame(group, 64)), Ok(()));
    assert_eq!((board.get(0x2810), board.got(0).0), (1, 0x83));
    board.set(0x5200 + 4 * (0x563 >> 5), 0);
    board.set(0x100, board.get(0x100) | 1 << 4);
    assert_eq!(board.give(&frame(group, 64)), Ok(()));
    assert_eq!((board.get(0x2810), board.got(1).0), (2, 3));
    // Another exact address.
    board.set(0x5478, 0x0202_0202);
    board.set(0x547c, 0x8000_0202);
    assert_eq!(board.give(&frame([2; 6], 64)), Ok(()));
    assert_eq!(board.get(0x2810), 3);
}

#[test]
fn tags_are_filtered_by_and_taken_off() {
    let board = Board::new();
    board.start();
    board.set(0x2818, 7);
    let mut tagged = frame(MAC.0, 100);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0x20, 0x45]);
    assert_eq!(board.give(&tagged), Ok(()));
    assert_eq!(board.got(0), (3, 0, tagged.clone()));
    board.set(0x100, board.get(0x100) | 1 << 18);
    assert_eq!(board.give(&tagged), Ok(()));
    assert_eq!(board.get(0x2810), 1, "not a VLAN of the guest's");
    board.set(0x5600 + 4 * 2, 1 << 5);
    board.set(0, 1 << 30);
    assert_eq!(board.give(&tagged), Ok(()));
    let (status, tag, bytes) = board.got(1);
    assert_eq!((status, tag, bytes.len()), (0x0b, 0x2045, 96));
    assert_eq!(bytes[12..], tagged[16..]);
}

#[test]
fn checksums_are_completed_and_told() {
    let board = Board::new();
    board.start();
    board.set(0x2818, 7);
    board.set(0x5000, 0x300);
    let mut bytes = frame(MAC.0, 100);
    bytes[50..52].fill(0);
    let meta = Meta { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: None };
    assert_eq!(board.port().give(&meta, &[&bytes[..54], &bytes[54..]]), Ok(()));
    let (status, _, got) = board.got(0);
    assert_eq!((status, sum(&got[34..])), (0x63, 0xffff));
    board.give(&bytes).unwrap();
    assert_eq!(board.got(1).0, 3, "nobody has looked");
}

#[test]
fn interrupts_come_no_more_often_than_asked() {
    let board = Board::new();
    board.start();
    board.time.advance(1_000_000);
    // Units of 256 ns.
    board.set(0xc4, 1000);
    let ring = || {
        board.set(0xc8, 4);
        board.line.level()
    };
    assert!(ring());
    assert_eq!((board.get(0xc0), board.line.level()), (4, false));
    assert!(!ring());
    board.time.advance(255_999);
    assert!(!board.line.level());
    board.time.advance(1);
    assert!(board.line.level());
    board.set(0xd8, u32::MAX);
    assert!(!board.line.level(), "masked");
}

#[test]
fn the_link_goes_down_and_up() {
    let board = Board::new();
    board.start();
    board.port().set_link(false);
    assert!(board.line.level());
    assert_eq!((board.get(0xc0), board.get(8) & 2), (4, 0));
    assert_eq!(board.give(&frame(MAC.0, 64)), Err(NoRoom));
    board.port().set_link(true);
    assert_eq!((board.get(0xc0), board.get(8) & 2), (4, 2));
}

#[test]
fn a_card_at_rest_touches_nothing() {
    let board = Board::new();
    board.start();
    board.set(0x2818, 7);
    board.descriptor(0, [DATA as u32, 0, 64 | END_AND_REPORT, 0]);
    board.set(0x3818, 1);
    for rest in [true, false] {
        if rest {
            board.card.pause();
        } else {
            board.card.resume();
            // Not a master of the bus.
            board.mmio_write(ECAM + (1 << 15) + 4, 3);
        }
        assert_eq!(board.take(), None);
        assert_eq!(board.give(&frame(MAC.0, 64)), Err(NoRoom));
    }
    let woken = board.wire.wakes.load(SeqCst);
    board.mmio_write(ECAM + (1 << 15) + 4, 7);
    assert_eq!(board.wire.wakes.load(SeqCst), woken + 1);
    assert!(board.take().is_some());
}

#[test]
fn a_saved_card_goes_on_elsewhere() {
    let board = Board::new();
    board.start();
    board.set(0x2818, 7);
    board.data(0, &segmentable(2000));
    let contexts = 14 | 24 << 8 | 33 << 16;
    board.descriptor(0, [contexts, 34 | 50 << 8, 7 << 24 | EXTENDED, 54 << 8 | 1460 << 16]);
    board.set(0x3818, 1);
    assert_eq!(board.take(), None);
    board.give(&frame(MAC.0, 64)).unwrap();
    board.card.pause();
    let parts = fake::save(&board.wiring);

    let other = Board::new();
    let mut all = vec![0; RAM as usize];
    board.memory.read(0, &mut all).unwrap();
    other.memory.write(0, &all).unwrap();
    other.card.pause();
    fake::restore(&other.wiring, &parts).unwrap();
    assert!(!other.line.level());
    other.card.resume();
    assert!(other.line.level(), "what was owed is told");
    assert_eq!(other.get(0xc0), 0x82);
    let words = 2054 | DATA_TYPE | EXTENDED | END_AND_REPORT | 4 << 24;
    other.descriptor(1, [DATA as u32, 0, words, 3 << 8]);
    other.set(0x3818, 2);
    assert!(other.take().unwrap().1.segmentation.is_some(), "the context came along");
    other.give(&frame(MAC.0, 64)).unwrap();
    assert_eq!(other.got(1).0, 3);
    let mut broken = parts;
    broken.iter_mut().filter(|part| part.kind == "e1000").for_each(|part| part.version += 1);
    assert!(fake::restore(&other.wiring, &broken).is_err());
    other.card.reset();
    assert_eq!((other.get(0x3810), other.get(0x2810), other.line.level()), (0, 0, false));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("SARANG_LONG").is_some() { 20_000 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Registers and rings of noise, while the network takes and gives.
    #[test]
    fn any_driver_is_survived(
        steps in prop::collection::vec(
            (0u8..6, prop_oneof![0u64..0x6000, Just(0x3818), Just(0x2818), Just(0x3808),
                Just(0x2808), Just(0x3800), Just(0x2800), Just(0x100), Just(0x400)],
             prop_oneof![any::<u32>(), 0u32..16, 0u32..0x8000], any::<[u8; 16]>()),
            0..120),
    ) {
        let board = Board::new();
        board.start();
        for (kind, at, value, bytes) in steps {
            match kind {
                0 | 1 => board.set(at & !3, value),
                2 => drop(board.get(at & !3)),
                3 => board.memory.write((u64::from(value) % (RAM - 16)) & !15, &bytes).unwrap(),
                4 => {
                    // Most of them with an end, and from memory.
                    let mut bytes = bytes;
                    bytes[2..8].fill(0);
                    board.memory.write(TX + at % RING * 16, &bytes).unwrap();
                }
                _ => {
                    for _ in 0..4 {
                        board.take();
                        let _ = board.give(&vec![1; 14 + value as usize % 3000]);
                    }
                    board.port().flush();
                    board.time.advance(1000);
                }
            }
        }
        // Whatever it was, a reset mends it.
        board.set(0, 1 << 26);
        board.mmio_write(ECAM + (1 << 15) + 4, 7);
        board.start();
        board.data(0, &frame([2; 6], 64));
        board.descriptor(0, [DATA as u32, 0, 64 | END_AND_REPORT, 0]);
        board.set(0x3818, 1);
        prop_assert_eq!(board.take().unwrap().0, frame([2; 6], 64));
        board.set(0x2818, 1);
        prop_assert_eq!(board.give(&frame(MAC.0, 64)), Ok(()));
        prop_assert_eq!(board.got(0).2, frame(MAC.0, 64));
    }
}
