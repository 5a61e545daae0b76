//! A driver's way through the transport, and what becomes of one that errs.

mod common;

use common::{Board, ECAM, RAM, SIZE, buffer, device, driver, table};
use device::Device;
use std::sync::atomic::Ordering::SeqCst;
use virtio::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

/// Address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

const READY: u8 = 1 | 2 | 4 | 8;
const NEEDS_RESET: u8 = 0x40;

#[test]
fn the_capabilities_lead_to_the_structures() {
    let board = Board::new();
    let config = |at: u64| board.read(ECAM + (1 << 15) + at, 4) as u32;
    assert_eq!((config(0), config(8)), (0x107f_1af4, 0xff00_0001));
    let mut at = u64::from(config(0x34) & 0xff);
    let mut found = Vec::new();
    while at != 0 {
        let head = config(at);
        if head as u8 == 9 {
            found.push((head >> 24, config(at + 8), config(at + 12)));
        }
        at = u64::from(head >> 8 & 0xff);
    }
    let structures =
        [(1, 0, 0x1000), (3, 0x1000, 0x1000), (4, 0x2000, 0x1000), (2, 0x3000, 0x1000), (5, 0, 0)];
    assert_eq!(found, structures);
}

#[test]
fn the_window_is_another_way_to_the_registers() {
    let board = Board::new();
    let config = ECAM + (1 << 15);
    let window = (0x40u64..0x100)
        .step_by(4)
        .find(|at| board.read(config + at, 1) == 9 && board.read(config + at + 3, 1) == 5)
        .unwrap();
    let access = |offset: u64, len: u64| {
        board.write(config + window + 8, offset, 4);
        board.write(config + window + 12, len, 4);
    };
    access(20, 1);
    board.write(config + window + 16, 3, 1);
    assert_eq!((board.status(), board.read(config + window + 16, 1)), (3, 3));
    access(18, 2);
    assert_eq!(board.read(config + window + 16, 2), 2, "queues");
    access(19, 2);
    assert_eq!(board.read(config + window + 16, 4), 0xffff_ffff, "not aligned");
    access(0x8000, 4);
    assert_eq!(board.read(config + window + 16, 4), 0xffff_ffff, "beyond the BAR");
}

#[test]
fn features_are_negotiated() {
    let board = Board::new();
    board.write(board.bar, 0, 4);
    assert_eq!(board.read(board.bar + 4, 4), 1 << 28 | 1 << 29 | 1 << 3);
    board.write(board.bar, 1, 4);
    assert_eq!(board.read(board.bar + 4, 4), 1);
    board.write(board.bar, 2, 4);
    assert_eq!(board.read(board.bar + 4, 4), 0);
    assert!(!board.negotiate(1 << 3), "a legacy driver");
    board.set_status(0);
    assert!(!board.negotiate(VERSION_1 | 1 << 4), "what was not offered");
    board.set_status(READY);
    assert_eq!(board.status() & 12, 0, "ready without features is not ready");
    board.set_status(0);
    assert_eq!(board.status(), 0);
    assert!(board.negotiate(VERSION_1 | 1 << 3));
    board.write(board.bar + 12, 0, 4);
    board.set_status(READY);
    assert_eq!(board.echo.features.load(SeqCst), VERSION_1 | 1 << 3, "fixed once accepted");
    assert_eq!(board.echo.activated.load(SeqCst), 1);
    board.set_status(READY);
    assert_eq!(board.echo.activated.load(SeqCst), 1);
}

#[test]
fn requests_come_back_with_messages() {
    let board = Board::new();
    board.start(VERSION_1, true);
    for (round, bytes) in [(1, &b"first"[..]), (2, b"and second")] {
        board.request(bytes);
        board.until("a message", || board.used(0) == round);
        board.until("a message", || board.sink.take_messages().iter().any(|m| m.data == 0x41));
        let mut back = vec![0; bytes.len()];
        board.memory.read(buffer(0) + 0x1000, &mut back).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(board.used_entry(0, round - 1), (0, bytes.len() as u32));
    }
    assert_eq!(board.read(board.bar + 0x1000, 1), 0, "ISR is for the pin");
    let counters = board.virtio.counters();
    assert!(counters.contains(&("requests", 2)) && counters.contains(&("doorbells", 2)));
}

#[test]
fn requests_come_back_with_the_pin() {
    let board = Board::new();
    board.start(VERSION_1, false);
    board.request(b"bytes");
    board.until("the pin", || board.line.level());
    assert_eq!(board.read(board.bar + 0x1000, 1), 1);
    assert!(!board.line.level());
    assert_eq!(board.read(board.bar + 0x1000, 1), 0);
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    board.memory.write(driver(0), &[1, 0]).unwrap();
    board.request(b"quiet");
    board.until("the request", || board.used(0) == 2);
    board.pause();
    assert!(!board.line.level());
}

#[test]
fn the_driver_says_when_it_wants_to_hear() {
    let board = Board::new();
    // Until both lie there the device rests, so that it sees them together.
    board.pause();
    board.start(VERSION_1 | EVENT_IDX, true);
    // used_event: the driver wants to hear of the second.
    board.memory.write(driver(0) + 4 + 2 * u64::from(SIZE), &[1, 0]).unwrap();
    board.resume();
    board.request(b"one");
    board.until("the first", || board.used(0) == 1);
    board.pause();
    assert!(board.sink.take_messages().is_empty());
    board.resume();
    board.request(b"two");
    board.until("a message", || !board.sink.take_messages().is_empty());
    board.pause();
    // avail_event: the device wants to hear of the next.
    assert_eq!(board.half(device(0) + 4 + 8 * u64::from(SIZE)), 2);
}

#[test]
fn an_indirect_table() {
    let board = Board::new();
    board.start(VERSION_1 | INDIRECT_DESC, true);
    let at = buffer(0);
    board.memory.write(at, b"hello").unwrap();
    let mut indirect = Vec::new();
    for (address, len, flags, next) in [(at, 5u32, 1u16, 1u16), (at + 0x1000, 5, 2, 0)] {
        indirect.extend(address.to_le_bytes());
        indirect.extend(len.to_le_bytes());
        indirect.extend(flags.to_le_bytes());
        indirect.extend(next.to_le_bytes());
    }
    board.memory.write(at + 0x800, &indirect).unwrap();
    board.describe(0, 5, at + 0x800, 32, 4, 0);
    board.offer(0, 5);
    board.ring(0);
    board.until("the request", || board.used(0) == 1);
    assert_eq!(board.used_entry(0, 0), (5, 5));
    assert_eq!(board.status(), READY);
}

#[test]
fn the_device_kicks_itself() {
    let board = Board::new();
    board.start(VERSION_1, true);
    board.describe(1, 0, buffer(1), 1, 2, 0);
    board.offer(1, 0);
    board.ring(1);
    board.echo.produce(0x5a);
    board.until("a byte", || board.used(1) == 1);
    board.echo.produce(0x5b);
    board.describe(1, 1, buffer(1) + 1, 1, 2, 0);
    board.offer(1, 1);
    board.ring(1);
    board.until("another", || board.used(1) == 2);
    assert_eq!(board.half(buffer(1)), 0x5b5a);
}

#[test]
fn a_driver_that_errs_has_to_reset() {
    let chains: &[(&str, &[Descriptor])] = &[
        ("not memory", &[(RAM, 1, 0, 0)]),
        ("beyond the end", &[(RAM - 1, 2, 0, 0)]),
        ("beyond all addresses", &[(u64::MAX, u32::MAX, 0, 0)]),
        ("readable after writable", &[(0x8000, 1, 3, 1), (0x8000, 1, 0, 0)]),
        ("for ever", &[(0x8000, 1, 1, 0)]),
        ("beyond the table", &[(0x8000, 1, 1, SIZE)]),
        ("longer than 4 GiB", &[(0, RAM as u32, 1, 1), (0, u32::MAX, 1, 1)]),
        ("an indirect table of no size", &[(0x8000, 0, 4, 0)]),
        ("an indirect table of half a descriptor", &[(0x8000, 8, 4, 0)]),
        ("an indirect table where no memory is", &[(RAM, 16, 4, 0)]),
    ];
    let board = Board::new();
    for (what, chain) in chains {
        board.start(VERSION_1 | INDIRECT_DESC, true);
        for (index, (at, len, flags, next)) in (0..).zip(*chain) {
            board.describe(0, index, *at, *len, *flags, *next);
        }
        board.offer(0, 0);
        board.ring(0);
        board.until(what, || board.status() == READY | NEEDS_RESET);
        board.until(what, || board.sink.take_messages().iter().any(|m| m.data == 0x40));
        // Nothing is done until then.
        board.request(b"x");
        board.pause();
        assert_eq!(board.used(0), 0, "{what}");
        board.resume();
        board.set_status(READY);
        assert_eq!(board.status(), READY | NEEDS_RESET);
        board.set_status(0);
        board.clear_rings();
    }
    board.start(VERSION_1, true);
    board.request(b"fine");
    board.until("it works again", || board.used(0) == 1);
}

#[test]
fn a_ring_that_overtakes_itself() {
    let board = Board::new();
    board.start(VERSION_1, true);
    board.memory.write(driver(0) + 2, &(SIZE + 1).to_le_bytes()).unwrap();
    board.ring(0);
    board.until("an error", || board.status() == READY | NEEDS_RESET);
}

#[test]
fn queues_that_are_not_memory_are_not_enabled() {
    let good = [table(0), driver(0), device(0)];
    for (index, bad) in [(0, 8), (1, 1), (2, 2), (0, RAM), (1, RAM - 2), (2, u64::MAX - 3)] {
        let board = Board::new();
        board.enable(true);
        assert!(board.negotiate(VERSION_1));
        let mut parts = good;
        parts[index] = bad;
        board.set_up(0, parts, 1);
        assert_eq!(board.read(board.bar + 28, 2), 0, "{bad:#x}");
        assert_eq!(board.status() & NEEDS_RESET, NEEDS_RESET);
        board.set_status(READY);
        board.ring(0);
        board.pause();
        assert_eq!(board.echo.activated.load(SeqCst), 0);
    }
}

#[test]
fn an_enabled_queue_stays_as_it_is() {
    let board = Board::new();
    board.start(VERSION_1, true);
    board.set_up(0, [0x8_0000, 0x8_1000, 0x8_2000], 9);
    board.write(board.bar + 24, 4, 2);
    assert_eq!(board.read(board.bar + 32, 8), table(0));
    assert_eq!(board.read(board.bar + 24, 2), u64::from(SIZE));
    assert_eq!(board.read(board.bar + 26, 2), 0xffff, "there is no such vector");
    board.write(board.bar + 22, 2, 2);
    assert_eq!(board.read(board.bar + 24, 2), 0, "there is no such queue");
    board.request(b"still");
    board.until("the request", || board.used(0) == 1);
}

#[test]
fn a_device_that_is_not_master_of_the_bus_rests() {
    let board = Board::new();
    board.start(VERSION_1, true);
    board.write(ECAM + (1 << 15) + 4, 2, 2);
    board.memory.write(device(0), &[0xee; 32]).unwrap();
    board.request(b"later");
    board.write(board.bar + 0x3004, 1, 2);
    // The threads have seen the doorbells when they have seen the pause.
    std::thread::sleep(std::time::Duration::from_millis(20));
    board.pause();
    assert_eq!((board.half(device(0)), board.used(0)), (0xeeee, 0xeeee), "not even the flags");
    board.memory.write(device(0), &[0; 32]).unwrap();
    board.resume();
    std::thread::sleep(std::time::Duration::from_millis(20));
    // The doorbells are not lost.
    board.write(ECAM + (1 << 15) + 4, 6, 2);
    board.until("the request", || board.used(0) == 1);
}

#[test]
fn nothing_is_completed_once_the_bus_is_lost() {
    let board = Board::new();
    board.start(VERSION_1, true);
    let (begun, begins) = std::sync::mpsc::channel();
    *board.echo.slow.lock().unwrap() = Some(begun);
    board.request(b"slow");
    board.ring(0);
    begins.recv().unwrap();
    // Memory, without the bus.
    board.write(ECAM + (1 << 15) + 4, 2, 2);
    let used = board.used(0);
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(board.used(0), used, "what was in work was done before, or not at all");
    board.write(ECAM + (1 << 15) + 4, 6, 2);
    board.until("the request comes back", || board.used(0) == 1);
}

#[test]
fn a_reset_ends_everything() {
    let board = Board::new();
    board.start(VERSION_1, false);
    board.request(b"one");
    board.until("the pin", || board.line.level());
    board.set_status(0);
    assert!(!board.line.level());
    assert_eq!((board.status(), board.echo.resets.load(SeqCst)), (0, 1));
    board.request(b"two");
    board.pause();
    assert_eq!(board.used(0), 1);
    let fresh = Board::new().save();
    for device in &board.wiring.devices {
        device.reset();
    }
    board.pci.assign();
    assert_eq!(board.save(), fresh);
}

#[test]
fn a_change_of_configuration_is_told() {
    let board = Board::new();
    board.start(VERSION_1, true);
    let before = board.read(board.bar + 21, 1);
    board.write(board.bar + 0x2002, 0x1234, 2);
    assert_eq!(board.read(board.bar + 0x2000, 8), 0x1234_0000);
    assert_eq!(board.read(board.bar + 0x2ffc, 4), 0);
    board.echo.handle.lock().unwrap().as_ref().unwrap().config_changed();
    assert_eq!(board.read(board.bar + 21, 1), before + 1);
    assert_eq!(board.sink.take_messages().iter().map(|m| m.data).collect::<Vec<_>>(), [0x40]);
}

#[test]
fn what_is_saved_goes_on_elsewhere() {
    let board = Board::new();
    board.start(VERSION_1 | EVENT_IDX, true);
    board.request(b"before");
    board.until("the first", || board.used(0) == 1);
    // One that lies in the ring while the device rests; the driver wants to hear of it.
    board.pause();
    board.memory.write(driver(0) + 4 + 2 * u64::from(SIZE), &[1, 0]).unwrap();
    board.request(b"between");
    let parts = board.save();
    let other = Board::new();
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    assert_eq!(other.save(), parts);
    assert_eq!(other.used(0), 1);
    other.resume();
    other.until("the second", || other.used(0) == 2);
    other.until("a message", || !other.sink.take_messages().is_empty());
    assert_eq!(other.echo.features.load(SeqCst), VERSION_1 | EVENT_IDX);
    assert_eq!(board.used(0), 1);
}

#[test]
fn state_that_cannot_have_been_is_refused() {
    let board = Board::new();
    board.start(VERSION_1, true);
    let parts = board.save();
    let at = parts.iter().position(|part| part.kind == "virtio").unwrap();
    let state = |change: &dyn Fn(&mut virtio::VirtioState)| {
        let mut reader = saved_state::Reader::new(vec![parts[at].clone()]).unwrap();
        let mut state: virtio::VirtioState = reader.take(1).unwrap();
        change(&mut state);
        let mut writer = saved_state::Writer::default();
        writer.put(1, &state);
        let mut parts = parts.clone();
        parts[at] = writer.finish().remove(0);
        board.restore(&parts)
    };
    assert!(state(&|_| ()).is_ok());
    assert!(state(&|s| s.device_type = 1).is_err());
    assert!(state(&|s| s.status |= 0x10).is_err());
    assert!(state(&|s| s.status = 4).is_err());
    assert!(state(&|s| s.features |= 1 << 5).is_err());
    assert!(state(&|s| s.config_vector = 3).is_err());
    assert!(state(&|s| s.queues.truncate(1)).is_err());
    assert!(state(&|s| s.queues[0].size = 3).is_err());
    assert!(state(&|s| s.queues[0].size = 2 * SIZE).is_err());
    assert!(state(&|s| s.queues[1].driver = RAM).is_err());
    assert!(state(&|s| s.queues[1].descriptors = 1).is_err());
    assert_eq!(board.save(), parts, "refused parts changed nothing");
}
