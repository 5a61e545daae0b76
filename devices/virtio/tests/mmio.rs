//! A driver's way through the registers in memory, and what becomes of one that errs: whatever it
//! writes, the device stays sound, and its state is all there is.

mod common;

use common::{Echo, RAM, SIZE, buffer, device, driver, table};
use device::{
    LineRef, Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use guest_mem::{Change, GuestMem, Memfd, Slot};
use proptest::prelude::*;
use saved_state::Part;
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};
use virtio::{
    MmioPlace, MmioWindow, VirtioState,
    feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1},
};

const WINDOW: u64 = 0xfec1_0000;
const LIMIT: Duration = Duration::from_secs(60);
const READY: u32 = 1 | 2 | 4 | 8;
const NEEDS_RESET: u32 = 0x40;

/// Offsets (virtio 1.2, table 4.1).
const FEATURES: u64 = 0x10;
const STATUS: u64 = 0x70;
const INTERRUPTS: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

struct Board {
    wiring: Wiring,
    memory: Arc<GuestMem>,
    echo: Arc<Echo>,
    lines: Vec<Arc<Recorder>>,
    window: MmioWindow,
    base: u64,
}

impl Board {
    /// Two devices, of which the second is used.
    fn new() -> Self {
        let sink = Arc::new(Recorder::default());
        let mut wiring = wiring(&FakeTime::default(), &sink);
        let ram = Memfd::new(RAM).unwrap();
        let memory = GuestMem::new(RAM).unwrap();
        let slot = Slot { id: 0, gpa: 0, mem: ram, offset: 0, len: RAM, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        wiring.memory = memory.clone();
        let lines: Vec<_> = (0..24).map(|_| Arc::new(Recorder::default())).collect();
        wiring.irqs = lines.iter().map(|line| line.clone() as LineRef).collect();
        let mut window = MmioWindow::new(WINDOW..WINDOW + 0x1_0000, 16..24);
        window.build(Arc::new(Echo::default()), &mut wiring).unwrap();
        let echo = Arc::new(Echo::default());
        let base = window.build(echo.clone(), &mut wiring).unwrap().place().address;
        wiring.devices.iter().for_each(|device| device.resume());
        Self { wiring, memory, echo, lines, window, base }
    }

    fn read(&self, at: u64, len: usize) -> u64 {
        let mut data = [0xff; 8];
        data[len..].fill(0);
        self.wiring.mmio.read(self.base + at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&self, at: u64, value: u64, len: usize) {
        self.wiring.mmio.write(self.base + at, &value.to_le_bytes()[..len]);
    }

    fn get(&self, at: u64) -> u32 {
        self.read(at, 4) as u32
    }

    fn set(&self, at: u64, value: u32) {
        self.write(at, value.into(), 4);
    }

    fn level(&self) -> bool {
        self.lines[17].level()
    }

    fn negotiate(&self, features: u64) -> bool {
        self.set(STATUS, 3);
        for half in 0..2 {
            self.set(0x24, half);
            self.set(0x20, (features >> (32 * half)) as u32);
        }
        self.set(STATUS, 0xb);
        self.get(STATUS) & 8 != 0
    }

    fn set_up(&self, queue: u16, parts: [u64; 3]) {
        self.set(0x30, queue.into());
        self.set(0x38, SIZE.into());
        for (at, part) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
            self.set(at, part as u32);
            self.set(at + 4, (part >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    fn start(&self, features: u64) {
        assert!(self.negotiate(features));
        for queue in 0..2 {
            self.set_up(queue, [table(queue), driver(queue), device(queue)]);
        }
        self.set(STATUS, READY);
    }

    fn clear_rings(&self) {
        for queue in 0..2 {
            self.memory.write(driver(queue), &[0; 64]).unwrap();
            self.memory.write(device(queue), &[0; 128]).unwrap();
        }
    }

    fn describe(&self, queue: u16, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend([flags, next].iter().flat_map(|half| half.to_le_bytes()));
        self.memory.write(table(queue) + 16 * u64::from(index), &bytes).unwrap();
    }

    fn half(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn used(&self, queue: u16) -> u16 {
        self.half(device(queue) + 2)
    }

    /// One more chain in the ring as it is in memory.
    fn offer(&self, queue: u16, head: u16) {
        let index = self.half(driver(queue) + 2);
        let at = driver(queue) + 4 + 2 * u64::from(index % SIZE);
        self.memory.write(at, &head.to_le_bytes()).unwrap();
        self.memory.write(driver(queue) + 2, &index.wrapping_add(1).to_le_bytes()).unwrap();
    }

    fn request(&self, bytes: &[u8]) {
        let at = buffer(0);
        self.memory.write(at, bytes).unwrap();
        self.describe(0, 0, at, bytes.len() as u32, 1, 1);
        self.describe(0, 1, at + 0x1000, bytes.len() as u32, 2, 0);
        self.offer(0, 0);
        self.set(0x50, 0);
    }

    fn answer(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(buffer(0) + 0x1000, &mut bytes).unwrap();
        bytes
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let limit = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < limit, "{what}");
            thread::yield_now();
        }
    }

    fn pause(&self) {
        self.wiring.devices.iter().for_each(|device| device.pause());
    }

    fn resume(&self) {
        self.wiring.devices.iter().for_each(|device| device.resume());
    }

    fn save(&self) -> Vec<Part> {
        self.pause();
        fake::save(&self.wiring)
    }

    fn copy_to(&self, other: &Self) {
        self.pause();
        other.pause();
        let mut bytes = vec![0; RAM as usize];
        self.memory.read(0, &mut bytes).unwrap();
        other.memory.write(0, &bytes).unwrap();
    }
}

#[test]
fn the_registers_say_what_it_is() {
    let board = Board::new();
    let at = |address, gsi| MmioPlace { address, gsi };
    assert_eq!(board.window.places(), [at(WINDOW, 16), at(WINDOW + 0x1000, 17)]);
    let first: Vec<u32> = (0..4).map(|n| board.get(4 * n)).collect();
    assert_eq!(first, [0x7472_6976, 2, 0x3f, 0x1af4]);
    assert_eq!(board.get(FEATURES), 1 << 3 | (INDIRECT_DESC | EVENT_IDX) as u32);
    board.set(0x14, 1);
    assert_eq!(board.get(FEATURES), 1, "VERSION_1");
    board.set(0x14, 2);
    assert_eq!(board.get(FEATURES), 0);
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|at| board.get(at)), [u32::MAX; 4]);
    for (queue, size) in [(0, SIZE), (1, SIZE), (2, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        board.set(0x30, queue);
        assert_eq!(board.get(0x34), u32::from(size), "queue {queue}");
    }
    // Only whole registers.
    assert_eq!((board.read(0, 1), board.read(0, 2), board.read(0, 8)), (0, 0, 0));
    assert_eq!((board.read(2, 4), board.read(0xfe, 4)), (0, 0));
    board.write(STATUS, 3, 1);
    board.write(STATUS, 3, 8);
    assert_eq!(board.get(STATUS), 0);
}

#[test]
fn the_configuration_is_behind_the_registers() {
    let board = Board::new();
    board.write(0x101, 0xaabb, 2);
    board.write(0x107, 0xcc, 1);
    assert_eq!(*board.echo.config.lock().unwrap(), [0, 0xbb, 0xaa, 0, 0, 0, 0, 0xcc]);
    assert_eq!(board.read(0x100, 8), 0xcc00_0000_00aa_bb00);
    assert_eq!((board.read(0x108, 8), board.read(0xff8, 8)), (0, 0));
    board.start(VERSION_1);
    board.echo.handle.lock().unwrap().as_ref().unwrap().config_changed();
    assert_eq!((board.get(0xfc), board.get(INTERRUPTS), board.level()), (1, 2, true));
    board.set(ACKNOWLEDGE, 2);
    assert_eq!((board.get(INTERRUPTS), board.level()), (0, false));
}

#[test]
fn requests_are_answered_and_told_until_they_are_acknowledged() {
    let board = Board::new();
    assert!(!board.negotiate(1 << 5 | VERSION_1), "not offered");
    board.set(STATUS, 0);
    assert!(!board.negotiate(0), "as devices before version 1");
    board.set(STATUS, 0);
    board.start(VERSION_1);
    assert_eq!(board.echo.features.load(SeqCst), VERSION_1);
    board.request(b"hello");
    board.until("an answer", || board.used(0) == 1 && board.level());
    assert_eq!(board.answer(5), b"hello");
    assert_eq!(board.get(INTERRUPTS), 1);
    board.set(ACKNOWLEDGE, 2);
    assert!(board.level(), "another's bit");
    board.set(ACKNOWLEDGE, 1);
    assert_eq!((board.get(INTERRUPTS), board.level()), (0, false));
    assert!(board.lines.iter().all(|line| !line.level()));
    // Neither other queues nor queues that are not there.
    for queue in [1, 2, 64, 0x1_0000, u32::MAX] {
        board.set(0x50, queue);
    }
    // A status with bits that there are not is no reset.
    board.set(STATUS, 0x100);
    assert_eq!(board.get(STATUS), READY);
    board.set(STATUS, 0);
    assert_eq!((board.get(STATUS), board.get(0x44)), (0, 0));
}

#[test]
fn a_queue_is_taken_back_and_set_up_anew() {
    let board = Board::new();
    board.start(VERSION_1);
    board.request(b"one");
    board.until("an answer", || board.used(0) == 1);
    board.set(0x30, 0);
    board.set(0x80, 0x1234);
    board.set(0x44, 7);
    assert_eq!(board.get(0x44), 1);
    board.set(0x44, 0);
    assert_eq!(board.get(0x44), 0);
    board.request(b"two");
    assert_eq!(board.used(0), 1);
    board.clear_rings();
    board.set_up(0, [table(0), driver(0), device(0)]);
    board.request(b"three");
    board.until("an answer", || board.used(0) == 1);
    assert_eq!(board.answer(5), b"three");
    assert_eq!(board.get(STATUS), READY);
}

#[test]
fn a_driver_that_errs_has_to_reset() {
    let board = Board::new();
    board.start(VERSION_1);
    board.describe(0, 0, u64::MAX - 3, 16, 0, 0);
    board.offer(0, 0);
    board.set(0x50, 0);
    board.until("the error", || board.get(STATUS) & NEEDS_RESET != 0);
    board.until("its interrupt", || board.level());
    assert_eq!(board.get(INTERRUPTS) & 2, 2);
    board.set(STATUS, 0);
    assert!(!board.level());
    // A queue that is not memory.
    assert!(board.negotiate(VERSION_1));
    board.set_up(0, [RAM - 16, driver(0), device(0)]);
    assert_eq!((board.get(STATUS) & NEEDS_RESET, board.get(0x44)), (NEEDS_RESET, 0));
    board.set(STATUS, 0);
    board.clear_rings();
    board.start(VERSION_1);
    board.request(b"again");
    board.until("a reset device works", || board.used(0) == 1);
}

#[test]
fn a_saved_device_goes_on_elsewhere() {
    let board = Board::new();
    board.start(VERSION_1 | EVENT_IDX);
    board.request(b"here");
    board.until("an answer", || board.used(0) == 1 && board.level());
    board.pause();
    // Rung, and not yet looked at.
    board.request(b"there");
    let parts = board.save();
    assert!(parts.iter().any(|part| (&*part.kind, part.instance) == ("virtio", 0x101)));
    let other = Board::new();
    board.copy_to(&other);
    fake::restore(&other.wiring, &parts).unwrap();
    assert_eq!(other.save(), parts);
    assert_eq!((other.level(), other.get(INTERRUPTS)), (true, 1));
    assert_eq!(other.lines[17].take_edges(), 0, "told already");
    other.resume();
    other.until("an answer", || other.used(0) == 2);
    assert_eq!(other.answer(5), b"there");
    // What no device can have been in.
    let state: VirtioState = saved_state::Reader::new(parts.clone()).unwrap().take(0x101).unwrap();
    for break_it in [
        (|state: &mut VirtioState| state.isr = 4) as fn(&mut VirtioState),
        |state| state.status = 0x10,
        |state| state.queues[0].driver = RAM,
        |state| state.device_type = 1,
    ] {
        let mut broken = state.clone();
        break_it(&mut broken);
        let mut to = saved_state::Writer::default();
        to.put(0x101, &broken);
        let part = to.finish().remove(0);
        let mut all = parts.clone();
        let place = all.iter_mut().find(|p| p.kind == part.kind && p.instance == 0x101).unwrap();
        *place = part;
        assert!(fake::restore(&Board::new().wiring, &all).is_err());
    }
}

#[derive(Clone, Debug)]
enum Act {
    Access(u64, u64, usize),
    Descriptor { queue: u16, index: u16, at: u64, len: u32, flags: u16, next: u16 },
    Offer(u16, u16),
    Poke(u16, u64, u16),
    Ring(u16),
    Produce(u8),
    Start(u64),
    Move,
}

fn act() -> impl Strategy<Value = Act> {
    let register = prop::sample::select(
        &[0x14u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xa0, 0xc0][..],
    );
    let offset = prop_oneof![4 => register, 2 => 0u64..0x110, 1 => 0u64..0x1000];
    let value = prop_oneof![any::<u64>(), 0u64..32, Just(u64::MAX), 0u64..RAM];
    let width = prop::sample::select(&[4usize, 4, 4, 1, 2, 8][..]);
    let address = prop_oneof![8 => Just(buffer(0)), 1 => 0u64..RAM + 0x1000, 1 => any::<u64>(),
        2 => Just(table(0)), 2 => Just(device(0))];
    let len = prop_oneof![8 => 0u32..64, 1 => any::<u32>(), 1 => Just(u32::MAX)];
    let flags = prop_oneof![8 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    let features = prop::sample::select(
        &[VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | INDIRECT_DESC | EVENT_IDX][..],
    );
    prop_oneof![
        6 => (offset, value, width).prop_map(|(at, v, len)| Act::Access(at, v, len)),
        6 => (0u16..2, 0u16..SIZE, address, len, flags, 0u16..SIZE + 1).prop_map(
            |(queue, index, at, len, flags, next)| Act::Descriptor { queue, index, at, len, flags, next }),
        6 => (0u16..2, 0u16..SIZE + 1).prop_map(|(queue, head)| Act::Offer(queue, head)),
        1 => (0u16..2, 0u64..0x3000, any::<u16>()).prop_map(|(q, at, v)| Act::Poke(q, at, v)),
        6 => (0u16..3).prop_map(Act::Ring),
        2 => any::<u8>().prop_map(Act::Produce),
        4 => features.prop_map(Act::Start),
        1 => Just(Act::Move),
    ]
}

fn perform(board: &Board, act: Act) {
    match act {
        Act::Access(at, value, len) => {
            // Aligned or not, within the page.
            let at = at.min(0x1000 - len as u64);
            board.write(at, value, len);
            board.read(at, len);
        }
        Act::Descriptor { queue, index, at, len, flags, next } => {
            board.describe(queue, index, at, len, flags, next);
        }
        Act::Offer(queue, head) => board.offer(queue, head),
        Act::Poke(queue, at, value) => {
            board.memory.write(table(queue) + at, &value.to_le_bytes()).unwrap();
        }
        Act::Ring(queue) => board.set(0x50, queue.into()),
        Act::Produce(byte) => board.echo.produce(byte),
        Act::Start(features) => {
            board.set(STATUS, 0);
            board.clear_rings();
            board.start(features);
        }
        Act::Move => {
            let parts = board.save();
            let other = Board::new();
            board.copy_to(&other);
            fake::restore(&other.wiring, &parts).unwrap();
            assert_eq!((other.save(), other.level()), (parts, board.level()));
            board.resume();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_driver(acts in prop::collection::vec(act(), 0..150)) {
        let board = Board::new();
        board.start(VERSION_1);
        for act in acts {
            perform(&board, act);
        }
        board.pause();
        board.wiring.devices.iter().for_each(|device| device.reset());
        prop_assert_eq!(board.save(), Board::new().save());
        prop_assert!(!board.level());
        // And it works again, and its threads have not panicked.
        board.clear_rings();
        board.resume();
        board.start(VERSION_1);
        board.request(b"again");
        board.until("a reset device works", || board.used(0) == 1);
        let failures = |device: &Arc<dyn device::Device>| {
            device.counters().iter().find(|(name, _)| *name == "failures").unwrap().1
        };
        prop_assert!(board.wiring.devices.iter().all(|device| failures(device) == 0));
    }
}
