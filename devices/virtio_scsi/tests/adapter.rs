//! The adapter, from the driver's side.

use device::Device;
use disk::{Disk, Error, Memory, Shape};
use proptest::prelude::*;
use scsi::{Cd, DiskUnit, Identity, Unit};
use std::sync::{Arc, Condvar, Mutex};
use virtio::{
    fake::{Board, buffer},
    feature::VERSION_1,
};
use virtio_scsi::{
    Address, AddressError, CONTROL, EVENTS, InsertError, REQUESTS, VirtioScsi, feature,
};

const ALL: u64 = VERSION_1 | feature::HOTPLUG | feature::CHANGE;
const BLOCKS: u64 = 1024;
const FIRST: Address = Address { target: 0, lun: 0 };
const CD: Address = Address { target: 0, lun: 1 };
const OTHER: Address = Address { target: 3, lun: 5 };

fn shape() -> Shape {
    Shape { discard: true, ..Shape::of_bytes(BLOCKS * 512) }
}

fn unit(disk: Arc<dyn Disk>) -> Unit {
    let identity = Identity { serial: "SERIAL".into(), place: String::new() };
    Unit::Disk(DiskUnit::new(disk, identity))
}

fn of(disk: Arc<dyn Disk>, queues: u16) -> (Board, Arc<VirtioScsi>) {
    let scsi = VirtioScsi::new(queues);
    scsi.plug(FIRST, unit(disk)).unwrap();
    scsi.plug(CD, Unit::Cd(Cd::new(Some(Arc::new(Memory::new(shape()))), None))).unwrap();
    scsi.plug(OTHER, unit(Arc::new(Memory::new(shape())))).unwrap();
    let board = Board::new(scsi.clone());
    board.start(ALL, true);
    (board, scsi)
}

fn adapter() -> (Board, Arc<Memory>, Arc<VirtioScsi>) {
    let disk = Arc::new(Memory::new(shape()));
    let (board, scsi) = of(disk.clone(), 1);
    (board, disk, scsi)
}

fn lun(address: Address) -> [u8; 8] {
    [1, address.target, 0x40, address.lun as u8, 0, 0, 0, 0]
}

/// As the device itself names a unit.
fn told(Address { target, lun }: Address) -> [u8; 8] {
    [1, target, 0, lun as u8, 0, 0, 0, 0]
}

/// What goes before the data that are given.
fn request(lun: [u8; 8], id: u64, cdb: &[u8]) -> Vec<u8> {
    let mut bytes = lun.to_vec();
    bytes.extend(id.to_le_bytes());
    bytes.extend([0; 3]);
    bytes.extend(cdb);
    bytes.resize(19 + 32, 0);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    response: u8,
    status: u8,
    residual: u32,
    /// Key, code and qualifier.
    sense: Option<[u8; 3]>,
    data: Vec<u8>,
}

fn parse(bytes: &[u8]) -> Answer {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let sense = (word(0) > 0).then(|| [bytes[12 + 2], bytes[12 + 12], bytes[12 + 13]]);
    let (residual, status, response) = (word(4), bytes[10], bytes[11]);
    Answer { response, status, residual, sense, data: bytes[12 + 96..].to_vec() }
}

fn ask_at(
    board: &Board,
    queue: u16,
    lun: [u8; 8],
    cdb: &[u8],
    given: &[u8],
    wanted: u32,
) -> Answer {
    let bytes = [request(lun, 1, cdb), given.to_vec()].concat();
    parse(&board.call(queue, &bytes, 12 + 96 + wanted).expect("an answer"))
}

fn ask(board: &Board, address: Address, cdb: &[u8], given: &[u8], wanted: u32) -> Answer {
    ask_at(board, REQUESTS, lun(address), cdb, given, wanted)
}

/// Past what every unit says after power-on.
fn ready(board: &Board) {
    for address in [FIRST, CD, OTHER] {
        let answer = ask(board, address, &[0], &[], 0);
        assert_eq!((answer.response, answer.status), (0, 2));
        assert!(matches!(answer.sense, Some([6, ..])), "{answer:?}");
    }
}

fn good(answer: Answer) -> Vec<u8> {
    assert_eq!((answer.response, answer.status, &answer.sense), (0, 0, &None), "{answer:?}");
    answer.data
}

#[test]
fn what_is_written_is_read() {
    let (board, disk, scsi) = adapter();
    ready(&board);
    let data: Vec<u8> = (0..1024u32).map(|i| (i * 7) as u8).collect();
    let written = good(ask(&board, FIRST, &[0x2a, 0, 0, 0, 0, 5, 0, 0, 2], &data, 0));
    assert!(written.is_empty(), "what the driver gave was not written to its memory");
    let mut stored = vec![0; 1024];
    disk.read(5 * 512, &mut stored).unwrap();
    assert_eq!(stored, data);
    let read = [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2];
    assert_eq!(good(ask(&board, FIRST, &read, &[], 1024)), data);
    assert_eq!(disk.flushes(), 0);
    good(ask(&board, FIRST, &[0x35], &[], 0));
    good(ask(&board, FIRST, &[0x2a, 8, 0, 0, 0, 0, 0, 0, 1], &[1; 512], 0));
    assert_eq!(disk.flushes(), 2);
    let counters = virtio::VirtioDevice::counters(&*scsi);
    for counter in [("bytes read", 1024), ("bytes written", 1536), ("flushes", 2), ("commands", 7)]
    {
        assert!(counters.contains(&counter), "{counter:?} in {counters:?}");
    }
}

#[test]
fn rooms_that_do_not_fit() {
    let (board, disk, _) = adapter();
    ready(&board);
    let read = [0x28, 0, 0, 0, 0, 5, 0, 0, 2];
    let answer = ask(&board, FIRST, &read, &[], 2000);
    assert_eq!((answer.response, answer.residual, answer.data.len()), (0, 976, 1024));
    let answer = ask(&board, FIRST, &read, &[], 1023);
    assert_eq!((answer.response, answer.residual, answer.data.len()), (1, 1023, 0), "overrun");
    let write = [0x2a, 0, 0, 0, 0, 5, 0, 0, 2];
    let answer = ask(&board, FIRST, &write, &[9; 1000], 0);
    assert_eq!((answer.response, answer.residual, answer.data.len()), (1, 1000, 0));
    assert_eq!(ask(&board, FIRST, &write, &[9; 1024], 8).response, 9, "both directions");
    let mut all = vec![0; 512 * BLOCKS as usize];
    disk.read(0, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0));
    assert_eq!(ask(&board, FIRST, &[0x12, 0, 0, 0, 36], &[], 20).response, 1);
}

#[test]
fn units_and_their_lists() {
    let (board, ..) = adapter();
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let data = good(ask(&board, FIRST, &report, &[], 256));
    assert_eq!(data, [&[0, 0, 0, 16][..], &[0; 12], &[0, 1, 0, 0, 0, 0, 0, 0]].concat());
    // A target's units can be asked for where there is none.
    let absent = Address { target: 3, lun: 0 };
    let data = good(ask(&board, absent, &report, &[], 256));
    assert_eq!(data[8..], [0, 5, 0, 0, 0, 0, 0, 0]);
    assert_eq!(good(ask(&board, absent, &[0x12, 0, 0, 0, 36], &[], 36))[0], 0x7f);
    assert_eq!(ask(&board, absent, &[0], &[], 0).sense, Some([5, 0x25, 0]));
    assert_eq!(ask(&board, Address { target: 1, lun: 0 }, &[0], &[], 0).response, 3);
    assert_eq!(ask_at(&board, REQUESTS, [9; 8], &[0], &[], 0).response, 3);
    let known = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    let data = good(ask_at(&board, REQUESTS, known, &report, &[], 256));
    assert_eq!(data[..8], [0, 0, 0, 24, 0, 0, 0, 0]);
    assert_eq!(data[8..], [told(FIRST), told(CD), told(OTHER)].concat());
    assert_eq!(good(ask_at(&board, REQUESTS, known, &[0x12, 0, 0, 0, 36], &[], 36))[0], 0x1e);
    // A disk, and a CD drive, which has blocks of 2048 bytes.
    assert_eq!(good(ask(&board, FIRST, &[0x12, 0, 0, 0, 36], &[], 36))[0], 0);
    assert_eq!(good(ask(&board, CD, &[0x12, 0, 0, 0, 36], &[], 36))[0], 5);
    ready(&board);
    assert_eq!(good(ask(&board, CD, &[0x25], &[], 8)), [0, 0, 0, 255, 0, 0, 8, 0]);
    assert_eq!(good(ask(&board, CD, &[0x28, 0, 0, 0, 0, 255, 0, 0, 1], &[], 2048)).len(), 2048);
    let write = ask(&board, CD, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 2048], 0);
    assert_eq!(write.sense, Some([5, 0x20, 0]));
    assert_eq!(good(ask(&board, CD, &[3, 0, 0, 0, 18], &[], 18))[2], 0, "the sense went along");
}

#[test]
fn unmap_and_write_same() {
    let (board, disk, _) = adapter();
    ready(&board);
    disk.write(0, &vec![0xaa; 512 * BLOCKS as usize]).unwrap();
    let zero = |block: u64| {
        let mut bytes = [0; 512];
        disk.read(block * 512, &mut bytes).unwrap();
        bytes.iter().all(|byte| *byte == 0)
    };
    let same = |flags: u8, count: u8| [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, count];
    good(ask(&board, FIRST, &same(9, 2), &[], 0));
    assert_eq!((7..11).map(zero).collect::<Vec<_>>(), [false, true, true, false]);
    let pattern: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
    good(ask(&board, FIRST, &same(0, 200), &pattern, 0));
    let mut bytes = vec![0; 202 * 512];
    disk.read(7 * 512, &mut bytes).unwrap();
    assert!(bytes[..512].iter().chain(&bytes[201 * 512..]).all(|byte| *byte == 0xaa));
    assert!(bytes[512..201 * 512].chunks(512).all(|block| block == pattern));
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend([0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0]);
    assert!(good(ask(&board, FIRST, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &list, 0)).is_empty());
    list[15] = 0xff;
    list[14] = 0xff;
    let answer = ask(&board, FIRST, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &list, 0);
    assert_eq!(answer.sense, Some([5, 0x21, 0]));
    let answer = ask(&board, FIRST, &[0x42, 0, 0, 0, 0, 0, 0, 0, 25], &list, 0);
    assert_eq!(answer.response, 1);
}

#[test]
fn the_configuration() {
    let (board, scsi) = of(Arc::new(Memory::new(shape())), 2);
    let at = board.bar + 0x2000;
    let word = |offset: u64| board.read(at + offset, 4);
    assert_eq!((word(0), word(4), word(16), word(20), word(24)), (2, 254, 16, 96, 32));
    assert_eq!((board.read(at + 30, 2), word(32)), (31, 255));
    for (offset, value, then) in
        [(20, 300, 96), (20, 18, 18), (24, 0, 32), (24, 16, 16), (24, 1000, 16)]
    {
        board.write(at + offset, value, 4);
        assert_eq!(word(offset), then, "{value} at {offset}");
    }
    // Sizes that the driver chose.
    let mut bytes = request(lun(FIRST), 1, &[0x12, 0, 0, 0, 36]);
    bytes.truncate(19 + 16);
    for queue in [REQUESTS, REQUESTS + 1] {
        let answer = board.call(queue, &bytes, 12 + 18 + 36).unwrap();
        assert_eq!((answer.len(), answer[11], answer[30]), (66, 0, 0));
    }
    board.set_status(0);
    assert_eq!((word(20), word(24)), (96, 32));
    let twice = scsi.plug(FIRST, unit(Arc::new(Memory::new(shape()))));
    assert_eq!(twice, Err(AddressError::Taken));
}

fn function(subtype: u32, address: Address, id: u64) -> Vec<u8> {
    let mut bytes = 0u32.to_le_bytes().to_vec();
    bytes.extend(subtype.to_le_bytes());
    bytes.extend(lun(address));
    bytes.extend(id.to_le_bytes());
    bytes
}

const ABORT_TASK: u32 = 0;
const NEXUS_RESET: u32 = 4;
const LUN_RESET: u32 = 5;
const QUERY_TASK: u32 = 6;

#[test]
fn functions_are_addressed() {
    let (board, ..) = adapter();
    let absent = Address { target: 0, lun: 9 };
    let nobody = Address { target: 9, lun: 0 };
    for (subtype, address, response) in [
        (ABORT_TASK, FIRST, 0),
        (1, FIRST, 0),
        (3, FIRST, 0),
        (2, FIRST, 11),
        (77, FIRST, 11),
        (QUERY_TASK, FIRST, 0),
        (7, FIRST, 0),
        (LUN_RESET, absent, 12),
        (NEXUS_RESET, absent, 0),
        (ABORT_TASK, nobody, 3),
    ] {
        let answer = board.call(CONTROL, &function(subtype, address, 5), 1);
        assert_eq!(answer, Some(vec![response]), "{subtype} {address:?}");
    }
    let subscribe = [&2u32.to_le_bytes()[..], &lun(FIRST), &[0xff; 4]].concat();
    assert_eq!(board.call(CONTROL, &subscribe, 5), Some(vec![0; 5]));
    assert_eq!(board.call(CONTROL, &99u32.to_le_bytes(), 1), Some(vec![9]));
    assert_eq!(board.call(CONTROL, &[0, 0, 0], 1), None);
}

#[test]
fn resets_reach_the_units_that_they_are_for() {
    let (board, ..) = adapter();
    ready(&board);
    assert_eq!(board.call(CONTROL, &function(LUN_RESET, FIRST, 0), 1), Some(vec![0]));
    assert_eq!(ask(&board, FIRST, &[0], &[], 0).sense, Some([6, 0x29, 3]));
    good(ask(&board, FIRST, &[0], &[], 0));
    good(ask(&board, CD, &[0], &[], 0));
    assert_eq!(board.call(CONTROL, &function(NEXUS_RESET, FIRST, 0), 1), Some(vec![0]));
    assert_eq!(ask(&board, FIRST, &[0], &[], 0).sense, Some([6, 0x29, 7]));
    assert_eq!(ask(&board, CD, &[0], &[], 0).sense, Some([6, 0x29, 7]));
    good(ask(&board, OTHER, &[0], &[], 0));
}

/// A disk whose reads wait until they are let go.
#[derive(Default)]
struct Slow {
    reading: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Slow {
    fn let_go(&self) {
        self.reading.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn until_reading(&self) {
        drop(self.changed.wait_while(self.reading.lock().unwrap(), |(now, _)| !*now).unwrap());
    }
}

impl Disk for Slow {
    fn shape(&self) -> Shape {
        shape()
    }
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), Error> {
        let mut state = self.reading.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, go)| !*go).unwrap());
        data.fill(0x77);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn commands_are_aborted_in_the_ring_and_under_way() {
    let slow = Arc::new(Slow::default());
    let (board, _) = of(slow.clone(), 1);
    ready(&board);
    // Of more than one piece: 300 KiB, from high memory on.
    let at = buffer(REQUESTS);
    let (read, data, len) = ([0x28, 0, 0, 0, 0, 0, 0, 2, 0x58], 0x6_0000, 300 << 10);
    for slot in 0..2u16 {
        let here = at + 0x1000 * u64::from(slot);
        board.memory.write(here, &request(lun(FIRST), 7 + u64::from(slot), &read)).unwrap();
        board.memory.write(here + 0x800, &[0xee; 12]).unwrap();
        board.describe(REQUESTS, 3 * slot, here, 51, 1, 3 * slot + 1);
        board.describe(REQUESTS, 3 * slot + 1, here + 0x800, 108, 3, 3 * slot + 2);
        board.describe(REQUESTS, 3 * slot + 2, data, len, 2, 0);
    }
    let before = board.used(REQUESTS);
    board.offer(REQUESTS, 0);
    board.offer(REQUESTS, 3);
    board.ring(REQUESTS);
    slow.until_reading();
    assert_eq!(board.call(CONTROL, &function(QUERY_TASK, FIRST, 7), 1), Some(vec![10]));
    assert_eq!(board.call(CONTROL, &function(QUERY_TASK, FIRST, 9), 1), Some(vec![0]));
    // The whole set: the one that waits for its disk, and the one behind it.
    let control = board.used(CONTROL);
    board.submit(CONTROL, &function(1, FIRST, 0), 1);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(board.used(CONTROL), control, "not before they have ended");
    slow.let_go();
    board.until("the function", || board.used(CONTROL) != control);
    assert_eq!(board.used(REQUESTS), before.wrapping_add(2));
    for slot in 0..2 {
        let mut answer = [0; 12];
        board.memory.read(at + 0x1000 * slot + 0x800, &mut answer).unwrap();
        assert_eq!(answer[11], 2, "aborted");
    }
    // What comes later is executed, whatever its number.
    assert_eq!(good(ask(&board, FIRST, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1], &[], 512)), [0x77; 512]);
}

#[test]
fn units_come_and_go() {
    let (board, _, scsi) = adapter();
    ready(&board);
    let new = Address { target: 4, lun: 7 };
    // No buffer yet: the event waits for one.
    scsi.plug(new, unit(Arc::new(Memory::new(shape())))).unwrap();
    let event = board.call(EVENTS, &[], 16).unwrap();
    assert_eq!(event, [&[1, 0, 0, 0][..], &told(new), &[1, 0, 0, 0]].concat());
    assert_eq!(ask(&board, new, &[0], &[], 0).sense, Some([6, 0x29, 0]));
    let before = board.used(EVENTS);
    board.submit(EVENTS, &[], 16);
    assert!(scsi.unplug(new) && !scsi.unplug(new));
    board.until("the event", || board.used(EVENTS) != before);
    let mut event = [0; 16];
    board.memory.read(buffer(EVENTS) + 0x1000, &mut event).unwrap();
    assert_eq!(event[..], [&[1, 0, 0, 0][..], &told(new), &[2, 0, 0, 0]].concat());
    assert_eq!(ask(&board, new, &[0], &[], 0).response, 3);
    // Of too many, the driver hears that it missed some.
    for _ in 0..40 {
        scsi.plug(new, unit(Arc::new(Memory::new(shape())))).unwrap();
        scsi.unplug(new);
    }
    let event = board.call(EVENTS, &[], 16).unwrap();
    assert_eq!(event[..4], [0, 0, 0, 0x80]);
    scsi.plug(new, unit(Arc::new(Memory::new(shape())))).unwrap();
    assert_eq!(board.call(EVENTS, &[], 15), None, "no room");
}

#[test]
fn discs_are_changed() {
    let (board, _, scsi) = adapter();
    ready(&board);
    let disc = || -> Option<Arc<dyn Disk>> { Some(Arc::new(Memory::new(Shape::of_bytes(8192)))) };
    assert_eq!(scsi.insert(FIRST, disc()), Err(InsertError::NoDrive));
    assert_eq!(scsi.insert(Address { target: 9, lun: 0 }, None), Err(InsertError::NoDrive));
    let lock = |locked: u8| good(ask(&board, CD, &[0x1e, 0, 0, 0, locked], &[], 0));
    lock(1);
    assert_eq!(scsi.insert(CD, disc()), Err(InsertError::Locked));
    lock(0);
    assert_eq!(scsi.insert(CD, disc()), Ok(()));
    let event = board.call(EVENTS, &[], 16).unwrap();
    assert_eq!(event, [&[3, 0, 0, 0][..], &told(CD), &[0x28, 0, 0, 0]].concat());
    assert_eq!(ask(&board, CD, &[0], &[], 0).sense, Some([6, 0x28, 0]));
    assert_eq!(good(ask(&board, CD, &[0x25], &[], 8))[..4], [0, 0, 0, 3]);
    assert_eq!(scsi.insert(CD, None), Ok(()));
    assert_eq!(ask(&board, CD, &[0], &[], 0).sense, Some([2, 0x3a, 0]));
    // A driver that knows only of units that come and go hears nothing.
    board.set_status(0);
    board.clear_rings();
    board.start(VERSION_1 | feature::HOTPLUG, true);
    assert_eq!(scsi.insert(CD, disc()), Ok(()));
    scsi.unplug(OTHER);
    let event = board.call(EVENTS, &[], 16).unwrap();
    assert_eq!((event[0], event[12]), (1, 2));
}

#[test]
fn state_goes_from_one_to_another() {
    let (board, _, scsi) = adapter();
    ready(&board);
    board.write(board.bar + 0x2000 + 20, 32, 4);
    let stop = [&request(lun(OTHER), 1, &[0x1b])[..], &[]].concat();
    assert_eq!(board.call(REQUESTS, &stop, 12 + 32).unwrap()[11], 0);
    scsi.unplug(CD);
    scsi.plug(CD, Unit::Cd(Cd::new(None, None))).unwrap();
    let parts = board.save();
    let (other, ..) = adapter();
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    // The events that were not told have become the one that some were missed.
    assert_eq!(other.save(), parts);
    other.resume();
    let answer = other.call(REQUESTS, &request(lun(OTHER), 1, &[0]), 12 + 32).unwrap();
    assert_eq!((answer[10], answer[12 + 2], answer[12 + 12]), (2, 2, 4), "stopped");
    assert_eq!(other.call(EVENTS, &[], 16).unwrap()[3], 0x80);
    let larger = VirtioScsi::new(1);
    larger.plug(FIRST, unit(Arc::new(Memory::new(Shape::of_bytes(4096))))).unwrap();
    let larger = Board::new(larger);
    assert!(larger.restore(&parts).unwrap_err().to_string().contains("other units"));
}

#[test]
fn requests_that_are_none() {
    for (queue, given, wanted) in [
        (REQUESTS, &[0; 50][..], 108),
        (REQUESTS, &[0; 51][..], 107),
        (CONTROL, &[0; 23][..], 1),
        (CONTROL, &[0; 24][..], 0),
    ] {
        let (board, ..) = adapter();
        let mut given = given.to_vec();
        if queue == CONTROL {
            given.splice(8.., lun(FIRST));
            given.resize(given.len().max(24), 0);
            if wanted > 0 {
                given.truncate(23);
            }
        }
        assert_eq!(board.call(queue, &given, wanted), None, "{queue} {given:?}");
        assert!(board.virtio.counters().iter().any(|(_, count)| *count == 1));
    }
}

#[test]
fn noise_on_its_queues_breaks_nothing() {
    for seed in 1..100 {
        let (board, _) = of(Arc::new(Memory::new(shape())), 2);
        board.noise(seed, ALL);
        board.start_over(ALL);
        ready(&board);
        for queue in [REQUESTS, REQUESTS + 1] {
            let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1];
            assert_eq!(good(ask_at(&board, queue, lun(FIRST), &read, &[], 512)).len(), 512);
        }
        let reset = board.call(CONTROL, &function(LUN_RESET, OTHER, 0), 1);
        assert_eq!(reset, Some(vec![0]), "{seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Requests made of noise get an answer, and touch nothing but the disks.
    #[test]
    fn any_request(requests in prop::collection::vec((
        0u16..4,
        prop_oneof![Just(lun(FIRST)), Just(lun(CD)), Just(lun(OTHER)), any::<[u8; 8]>()],
        prop_oneof![prop::sample::select(vec![
            0x00u8, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x35, 0x41, 0x42, 0x43, 0x46,
            0x4a, 0x55, 0x5a, 0x88, 0x8a, 0x93, 0x9e, 0xa0, 0xa8, 0xaa,
        ]), any::<u8>()],
        prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 15),
        prop::collection::vec(any::<u8>(), 0..600),
        0u32..1400,
    ), 1..40)) {
        let (board, _) = of(Arc::new(Memory::new(shape())), 2);
        for (queue, lun, code, rest, data, wanted) in requests {
            let cdb = [&[code][..], &rest].concat();
            let given = match queue {
                CONTROL | EVENTS => [&cdb[..], &data].concat(),
                _ => [request(lun, 3, &cdb), data].concat(),
            };
            // Events come when there are some.
            let before = (queue == EVENTS).then(|| board.submit(queue, &given, wanted));
            if before.is_some() {
                continue;
            }
            if board.call(queue, &given, wanted).is_none() {
                board.set_status(0);
                board.clear_rings();
                board.start(ALL, true);
            }
        }
    }
}
