//! Requests, from the driver's side.

use disk::{Disk, Memory, Shape};
use proptest::prelude::*;
use std::sync::Arc;
use virtio::{
    VirtioDevice,
    fake::{Board, buffer},
    feature::VERSION_1,
};
use virtio_blk::{Config, VirtioBlk, feature};

const SECTORS: u64 = 256;
const ALL: u64 = VERSION_1
    | feature::SEG_MAX
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::CONFIG_WCE
    | feature::DISCARD
    | feature::WRITE_ZEROES;

fn with(shape: Shape, queues: u16, features: u64) -> (Board, Arc<Memory>, Arc<VirtioBlk>) {
    let disk = Arc::new(Memory::new(shape));
    let config = Config { serial: "SERIAL-7".into(), queues };
    let blk = VirtioBlk::new(&config, disk.clone());
    let board = Board::new(blk.clone());
    board.start(features, true);
    (board, disk, blk)
}

fn shape() -> Shape {
    Shape { discard: true, ..Shape::of_bytes(SECTORS * 512) }
}

fn device() -> (Board, Arc<Memory>) {
    let (board, disk, _) = with(shape(), 1, ALL);
    (board, disk)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = header(kind, 0);
    for (sector, count, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const OK: &[u8] = &[0];
const IO_ERROR: &[u8] = &[1];
const UNSUPPORTED: &[u8] = &[2];

/// The status, where no data are wanted.
fn ask(board: &Board, given: &[u8]) -> Vec<u8> {
    board.call(0, given, 1).expect("an answer")
}

/// The status of a request that wants data and gets none.
fn fails(board: &Board, queue: u16, given: &[u8], wanted: u32) -> Vec<u8> {
    let mut answer = board.call(queue, given, wanted).expect("an answer");
    let status = answer.split_off(wanted as usize - 1);
    assert!(answer.iter().all(|byte| *byte == 0));
    status
}

#[test]
fn what_is_written_is_read() {
    let (board, disk) = device();
    let data: Vec<u8> = (0..1024u32).map(|i| (i * 7) as u8).collect();
    assert_eq!(ask(&board, &[header(OUT, 5), data.clone()].concat()), OK);
    let mut stored = vec![0; 1024];
    disk.read(5 * 512, &mut stored).unwrap();
    assert_eq!(stored, data);
    assert_eq!(board.call(0, &header(IN, 5), 1025).unwrap(), [&data[..], OK].concat());
    assert_eq!(disk.flushes(), 0);
    assert_eq!(ask(&board, &header(FLUSH, 0)), OK);
    assert_eq!(disk.flushes(), 1);
    let counters = device::Device::counters(&*board.virtio);
    for counter in [("bytes read", 1024), ("bytes written", 1024), ("flushes", 1), ("requests", 3)]
    {
        assert!(counters.contains(&counter), "{counter:?} in {counters:?}");
    }
}

#[test]
fn a_driver_that_cannot_flush_gets_what_it_wrote_flushed() {
    let (board, disk, _) = with(shape(), 1, VERSION_1);
    assert_eq!(ask(&board, &[header(OUT, 0), vec![1; 512]].concat()), OK);
    assert_eq!(disk.flushes(), 1);
    let (board, disk, _) = with(shape(), 1, ALL);
    assert_eq!(board.read(board.bar + 0x2000 + 32, 1), 1, "writeback");
    board.write(board.bar + 0x2000 + 32, 0, 1);
    assert_eq!(board.read(board.bar + 0x2000 + 32, 1), 0);
    assert_eq!(ask(&board, &[header(OUT, 0), vec![1; 512]].concat()), OK);
    assert_eq!(disk.flushes(), 1);
}

#[test]
fn the_configuration_tells_of_the_disk() {
    let blocks = Shape { logical_block: 4096, physical_block: 16384, ..shape() };
    let (board, ..) = with(blocks, 3, VERSION_1 | feature::MQ);
    let config = |at: u64, len: usize| board.read(board.bar + 0x2000 + at, len);
    assert_eq!((config(0, 8), config(12, 4), config(20, 4)), (SECTORS, 254, 4096));
    assert_eq!((config(24, 1), config(26, 2), config(34, 2)), (2, 4, 3));
    assert_eq!((config(36, 4), config(40, 4), config(56, 1)), (1 << 21, 16, 1));
    assert_eq!((config(44, 4), config(28, 4)), (32, 0), "discards in sectors; no best size");
    for queue in 0..3 {
        assert_eq!(board.call(queue, &header(IN, 8), 4097).unwrap().len(), 4097);
        assert_eq!(fails(&board, queue, &header(IN, 1), 4097), IO_ERROR, "half a block");
        assert_eq!(fails(&board, queue, &header(IN, 8), 513), IO_ERROR, "less than one");
    }
}

#[test]
fn the_serial_number() {
    let (board, _) = device();
    let answer = board.call(0, &header(GET_ID, 0), 21).unwrap();
    assert_eq!(answer, b"SERIAL-7\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(fails(&board, 0, &header(GET_ID, 0), 20), IO_ERROR);
}

#[test]
fn zeroes_and_discards() {
    let (board, disk) = device();
    disk.write(0, &vec![0xaa; 256 * 512]).unwrap();
    assert_eq!(ask(&board, &ranges(ZEROES, &[(1, 2, 0), (8, 1, 1)])), OK);
    let mut bytes = vec![0; 10 * 512];
    disk.read(0, &mut bytes).unwrap();
    let zero = |sector: usize| bytes[sector * 512..][..512].iter().all(|b| *b == 0);
    assert_eq!((0..10).filter(|s| zero(*s)).collect::<Vec<_>>(), [1, 2, 8]);
    assert_eq!(ask(&board, &ranges(DISCARD, &[(0, 256, 0)])), OK);
    for (given, status) in [
        (ranges(DISCARD, &[(0, 1, 1)]), UNSUPPORTED),
        (ranges(ZEROES, &[(0, 1, 2)]), UNSUPPORTED),
        (ranges(ZEROES, &[(0, 257, 0)]), IO_ERROR),
        (ranges(ZEROES, &[(u64::MAX, 1, 0)]), IO_ERROR),
        (ranges(DISCARD, &[(1, u32::MAX, 0)]), IO_ERROR),
        (ranges(DISCARD, &[]), IO_ERROR),
        (ranges(DISCARD, &[(0, 1, 0); 17]), IO_ERROR),
        (ranges(DISCARD, &[(0, 1, 0)])[..31].to_vec(), IO_ERROR),
    ] {
        assert_eq!(ask(&board, &given), status, "{given:?}");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let (board, disk) = device();
    for (given, status) in [
        (header(99, 0), UNSUPPORTED),
        ([header(OUT, SECTORS), vec![1; 512]].concat(), IO_ERROR),
        ([header(OUT, SECTORS - 1), vec![1; 1024]].concat(), IO_ERROR),
        ([header(OUT, u64::MAX / 512), vec![1; 512]].concat(), IO_ERROR),
        ([header(OUT, u64::MAX), vec![1; 512]].concat(), IO_ERROR),
        ([header(OUT, 0), vec![1; 511]].concat(), IO_ERROR),
    ] {
        assert_eq!(ask(&board, &given), status, "{:?}", &given[..16]);
    }
    assert_eq!(fails(&board, 0, &header(IN, SECTORS), 513), IO_ERROR);
    let mut all = vec![0; 256 * 512];
    disk.read(0, &mut all).unwrap();
    assert!(all.iter().all(|b| *b == 0), "a refused write wrote nothing");
}

#[test]
fn a_read_only_disk() {
    let read_only = Shape { read_only: true, ..shape() };
    let (board, _, blk) = with(read_only, 1, VERSION_1 | feature::RO);
    let offered = blk.features();
    assert_eq!(offered & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
    assert_eq!(board.call(0, &header(IN, 0), 513).unwrap().len(), 513);
    assert_eq!(ask(&board, &[header(OUT, 0), vec![1; 512]].concat()), IO_ERROR);
    assert_eq!(ask(&board, &ranges(ZEROES, &[(0, 1, 0)])), IO_ERROR);
    assert_eq!(ask(&board, &ranges(DISCARD, &[(0, 1, 0)])), IO_ERROR);
}

#[test]
fn requests_without_header_or_status() {
    for (given, wanted) in [(&[0; 15][..], 1), (&[], 4), (&header(FLUSH, 0)[..], 0)] {
        let (board, _) = device();
        assert_eq!(board.call(0, given, wanted), None, "{given:?}");
    }
}

#[test]
fn a_request_in_many_pieces() {
    let (board, disk) = device();
    // Header and data over three descriptors, the header cut in two.
    let at = buffer(0);
    board.memory.write(at, &[header(OUT, 2), vec![0x55; 512]].concat()).unwrap();
    board.describe(0, 0, at, 7, 1, 1);
    board.describe(0, 1, at + 7, 100, 1, 2);
    board.describe(0, 2, at + 107, 421, 1, 3);
    board.describe(0, 3, at + 0x1000, 1, 2, 0);
    board.offer(0, 0);
    board.ring(0);
    board.until("the request", || board.used(0) == 1);
    let mut bytes = vec![0; 3 * 512];
    disk.read(512, &mut bytes).unwrap();
    assert!(bytes[..512].iter().all(|b| *b == 0) && bytes[1024..].iter().all(|b| *b == 0));
    assert!(bytes[512..1024].iter().all(|b| *b == 0x55));
}

#[test]
fn a_request_that_leaves_the_disk_does_nothing() {
    let (board, disk) = device();
    let (at, data) = (buffer(0), 0x4_0000);
    board.memory.write(at, &header(OUT, 0)).unwrap();
    // More than is moved at once, and twice the disk.
    board.memory.write(data, &vec![0x55; 0x4_0000]).unwrap();
    board.describe(0, 0, at, 16, 1, 1);
    board.describe(0, 1, data, 0x4_0000, 1, 2);
    board.describe(0, 2, at + 0x1000, 1, 2, 0);
    board.memory.write(at + 0x1000, &[0xff]).unwrap();
    board.offer(0, 0);
    board.ring(0);
    board.until("the request", || board.used(0) == 1);
    let mut status = [0];
    board.memory.read(at + 0x1000, &mut status).unwrap();
    assert_eq!(status, IO_ERROR);
    let mut all = vec![0; 256 * 512];
    disk.read(0, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0));
}

#[test]
fn the_cache_mode_is_state() {
    let (board, ..) = with(shape(), 1, ALL);
    board.write(board.bar + 0x2000 + 32, 0, 1);
    let parts = board.save();
    let (other, ..) = with(shape(), 1, ALL);
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    assert_eq!(other.read(other.bar + 0x2000 + 32, 1), 0);
    assert_eq!(other.save(), parts);
    let (larger, ..) = with(Shape::of_bytes(1 << 20), 1, VERSION_1);
    let error = larger.restore(&parts).unwrap_err().to_string();
    assert!(error.contains("virtio"), "{error}");
}

#[test]
fn noise_on_its_queues_breaks_nothing() {
    for seed in 1..100 {
        let (board, ..) = with(shape(), 2, ALL);
        board.noise(seed, ALL);
        board.start_over(ALL);
        for queue in 0..2 {
            let answer = board.call(queue, &header(0, 0), 513).unwrap();
            assert_eq!((answer.len(), answer.last()), (513, Some(&0)), "{seed}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests made of noise get an answer, and touch nothing but the disk.
    #[test]
    fn any_request(requests in prop::collection::vec((0u32..15, prop_oneof![0..SECTORS + 2, any::<u64>()],
        prop::collection::vec(any::<u8>(), 0..600), 0u32..1100), 1..40)) {
        let (board, _) = device();
        for (kind, sector, data, wanted) in requests {
            let mut given = header(kind, sector);
            given.extend(data);
            match board.call(0, &given, wanted) {
                Some(answer) => prop_assert!(answer.last().is_some_and(|status| *status <= 2)),
                None => {
                    prop_assert_eq!(wanted, 0);
                    board.set_status(0);
                    board.clear_rings();
                    board.start(ALL, true);
                }
            }
        }
    }
}
