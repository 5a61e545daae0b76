//! The device from the driver's side.

use proptest::prelude::*;
use std::sync::Arc;
use virtio::{
    fake::{Board, RAM},
    feature::VERSION_1,
};
use virtio_mem::{BLOCK, Config, Sizes, VirtioMem, feature};

const CONFIG: u64 = 0x2000;
/// The board's memory is smaller than the region, whose address is above it: what is not memory
/// is passed over when it is given back.
const ADDRESS: u64 = 1 << 32;
const BLOCKS: u64 = 16;
const ALL: u64 = VERSION_1 | feature::ACPI_PXM | feature::UNPLUGGED_INACCESSIBLE;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

fn make(address: u64) -> (Board, Arc<VirtioMem>) {
    let mut made = None;
    let board = Board::with(|memory| {
        let config = Config { memory: memory.clone(), address, size: BLOCKS * BLOCK };
        made.insert(VirtioMem::new(config)).clone()
    });
    board.start(ALL, true);
    (board, made.unwrap())
}

fn ask(board: &Board, kind: u16, address: u64, count: u16) -> (u16, u16) {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    let answer = board.call(0, &bytes, 10).unwrap();
    let half = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
    (half(0), half(8))
}

fn plug(board: &Board, block: u64, count: u16) -> u16 {
    ask(board, 0, ADDRESS + block * BLOCK, count).0
}

fn unplug(board: &Board, block: u64, count: u16) -> u16 {
    ask(board, 1, ADDRESS + block * BLOCK, count).0
}

fn state(board: &Board, block: u64, count: u16) -> (u16, u16) {
    ask(board, 3, ADDRESS + block * BLOCK, count)
}

#[test]
fn the_configuration_says_what_there_is() {
    let (board, memory) = make(ADDRESS);
    memory.request(5 * BLOCK + 1);
    plug(&board, 0, 2);
    let word = |at: u64| board.read(board.bar + CONFIG + at, 8);
    let words: Vec<u64> = (0..8).map(|n| word(8 * n)).collect();
    let all = BLOCKS * BLOCK;
    assert_eq!(words, [BLOCK, 0, ADDRESS, all, all, 2 * BLOCK, 5 * BLOCK, 0]);
}

#[test]
fn the_driver_is_told_of_another_size() {
    let (board, memory) = make(ADDRESS);
    board.sink.take_messages();
    memory.request(4 * BLOCK);
    board.until("a message", || !board.sink.take_messages().is_empty());
    memory.request(4 * BLOCK);
    assert!(board.sink.take_messages().is_empty(), "no news");
}

#[test]
fn no_more_is_plugged_than_was_asked_for() {
    let (board, memory) = make(ADDRESS);
    assert_eq!(plug(&board, 0, 1), NACK);
    memory.request(4 * BLOCK);
    assert_eq!((plug(&board, 2, 3), plug(&board, 0, 2), plug(&board, 0, 1)), (ACK, NACK, ACK));
    assert_eq!(plug(&board, 9, 1), NACK);
    assert_eq!(
        memory.sizes(),
        Sizes { region: BLOCKS * BLOCK, requested: 4 * BLOCK, plugged: 4 * BLOCK }
    );
    assert_eq!((state(&board, 2, 3), state(&board, 1, 1), state(&board, 1, 2)), {
        ((ACK, 0), (ACK, 1), (ACK, 2))
    });
    // Less is asked for: what is there stays until the driver gives it up.
    memory.request(BLOCK);
    assert_eq!(memory.sizes().plugged, 4 * BLOCK);
    assert_eq!(unplug(&board, 2, 3), ACK);
    assert_eq!(memory.sizes().plugged, BLOCK);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let (board, memory) = make(ADDRESS);
    memory.request(BLOCKS * BLOCK);
    assert_eq!(plug(&board, 0, 4), ACK);
    assert_eq!(plug(&board, 3, 2), ERROR, "one is plugged already");
    assert_eq!(unplug(&board, 3, 2), ERROR, "one is not");
    assert_eq!(plug(&board, BLOCKS - 1, 2), ERROR, "beyond the end");
    assert_eq!(plug(&board, 5, 0), ERROR);
    for address in [0, ADDRESS - BLOCK, ADDRESS + 4096, u64::MAX, u64::MAX - BLOCK + 1] {
        for kind in [0, 1, 3] {
            assert_eq!(ask(&board, kind, address, 1).0, ERROR, "{kind} {address:#x}");
        }
    }
    assert_eq!(ask(&board, 4, ADDRESS, 1).0, ERROR);
    assert_eq!(ask(&board, 2, 7, 7).0, ACK, "all of it, wherever");
    assert_eq!(memory.sizes().plugged, 0);
    // Requests that are none.
    assert!(board.call(0, &[0; 23], 10).is_none());
}

#[test]
fn what_is_unplugged_is_the_hosts() {
    // A region that is memory of the board; the block is larger than what there is of it.
    let (board, memory) = make(0);
    let far = RAM - 4096;
    let byte = || {
        let mut byte = [0];
        board.memory.read(far, &mut byte).unwrap();
        byte[0]
    };
    memory.request(BLOCK);
    let bytes = |kind: u16| {
        let mut bytes = [0; 24];
        bytes[0] = kind as u8;
        bytes[16] = 1;
        bytes
    };
    assert!(board.call(0, &bytes(0), 10).is_some());
    board.memory.write(far, &[9]).unwrap();
    assert_eq!(byte(), 9);
    // The rings lie there too, and are gone with the rest: the device says so, or does nothing.
    board.submit(0, &bytes(1), 10);
    board.until("its end", || memory.sizes().plugged == 0 && byte() == 0);
}

#[test]
fn a_reset_of_the_device_takes_nothing_and_one_of_the_machine_all() {
    let (board, memory) = make(ADDRESS);
    memory.request(3 * BLOCK);
    plug(&board, 1, 3);
    board.set_status(0);
    assert_eq!(memory.sizes().plugged, 3 * BLOCK);
    device::Device::reset(&*memory);
    assert_eq!((memory.sizes().plugged, memory.sizes().requested), (0, 3 * BLOCK));
}

#[test]
fn what_is_plugged_moves() {
    let (board, memory) = make(ADDRESS);
    memory.request(6 * BLOCK);
    plug(&board, 1, 3);
    plug(&board, 7, 2);
    let parts = board.save();
    let (other, restored) = make(ADDRESS);
    other.restore(&parts).unwrap();
    assert_eq!(restored.sizes(), memory.sizes());
    board.copy_memory_to(&other);
    other.resume();
    assert_eq!((state(&other, 1, 3), state(&other, 7, 2), state(&other, 4, 3)), {
        ((ACK, 0), (ACK, 0), (ACK, 1))
    });
    let (elsewhere, _) = make(ADDRESS + BLOCK);
    assert!(elsewhere.restore(&parts).is_err());
}

#[test]
fn noise_on_its_queue_breaks_nothing() {
    for seed in 1..100 {
        let (board, memory) = make(ADDRESS);
        memory.request(seed % (BLOCKS + 1) * BLOCK);
        board.noise(seed, ALL);
        board.start_over(ALL);
        memory.request(BLOCKS * BLOCK);
        let Sizes { plugged, requested, region } = memory.sizes();
        assert!(plugged <= region && requested == region, "{seed}");
        // All of it goes, whatever there was.
        assert_eq!(ask(&board, 2, 0, 0).0, ACK, "{seed}");
        assert_eq!(memory.sizes().plugged, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_requests_end_well(
        requests in prop::collection::vec(
            (0..5u16, prop_oneof![4 => 0..20 * BLOCK, 1 => any::<u64>()], 0..20u16, 0..20u64),
            1..40,
        ),
        noise: [u8; 24],
    ) {
        let (board, memory) = make(ADDRESS);
        for (kind, offset, count, requested) in requests {
            memory.request(requested * BLOCK);
            let whole = if offset % 3 == 0 { offset } else { offset / BLOCK * BLOCK };
            let before = memory.sizes().plugged;
            let (answer, _) = ask(&board, kind, ADDRESS.wrapping_add(whole), count);
            let Sizes { plugged, requested, region } = memory.sizes();
            prop_assert!(plugged <= region && (plugged <= before || plugged <= requested));
            prop_assert!(answer == ACK || plugged == before);
        }
        let _ = board.call(0, &noise, 10);
        prop_assert_eq!(board.status() & 0x40, 0);
    }
}
