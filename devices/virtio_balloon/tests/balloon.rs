//! The balloon from the driver's side.

use std::{sync::Arc, thread, time::Duration};
use virtio::{
    VirtioDevice,
    fake::{Board, RAM, buffer},
    feature::VERSION_1,
};
use virtio_balloon::{DEFLATE, INFLATE, REPORTING, STATS, Tag, VirtioBalloon, feature};

const ALL: u64 = VERSION_1 | feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING;
const CONFIG: u64 = 0x2000;
const LONG: Duration = Duration::from_secs(60);

fn device() -> (Board, Arc<VirtioBalloon>) {
    let mut balloon = None;
    let board =
        Board::with(|memory| balloon.insert(VirtioBalloon::new(memory.clone(), RAM)).clone());
    board.start(ALL, true);
    (board, balloon.unwrap())
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn counter(balloon: &VirtioBalloon, name: &str) -> u64 {
    balloon.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
}

fn byte(board: &Board, at: u64) -> u8 {
    let mut byte = [0];
    board.memory.read(at, &mut byte).unwrap();
    byte[0]
}

#[test]
fn pages_in_the_balloon_are_the_hosts() {
    let (board, balloon) = device();
    for page in 0x80..0x90u64 {
        board.memory.write(page << 12, &[7; 4096]).unwrap();
    }
    // Two neighbours in the wrong order, one twice, one that is no memory, the last page of all.
    let pages = numbers(&[0x83, 0x82, 0x85, 0x85, 0x1_0000, u32::MAX]);
    board.call(INFLATE, &pages, 0).unwrap();
    let kept: Vec<u64> = (0x80..0x90).filter(|page| byte(&board, page << 12) == 7).collect();
    assert_eq!(
        kept,
        [0x80, 0x81, 0x84, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f]
    );
    assert_eq!(byte(&board, 0x83fff), 0);
    assert_eq!(counter(&balloon, "bytes returned to the host"), 3 << 12);
    assert_eq!(counter(&balloon, "pages that are no memory"), 2);
    // Deflating needs no work, and writing to a page brings it back.
    board.call(DEFLATE, &numbers(&[0x82]), 0).unwrap();
    board.memory.write(0x82000, &[9]).unwrap();
    assert_eq!(byte(&board, 0x82000), 9);
    assert_eq!(counter(&balloon, "pages deflated"), 1);
}

#[test]
fn a_target_reaches_the_driver() {
    let (board, balloon) = device();
    assert_eq!(board.read(board.bar + CONFIG, 4), 0);
    balloon.set_target(0x21_fff);
    assert_eq!(board.sink.take_messages().len(), 1);
    assert_eq!(board.read(board.bar + CONFIG, 4), 0x21);
    balloon.set_target(0x21_000);
    assert!(board.sink.take_messages().is_empty(), "the same target");
    board.write(board.bar + CONFIG + 4, 0x20, 4);
    assert_eq!(balloon.size(), (0x21_000, 0x20_000));
    balloon.set_target(u64::MAX);
    assert_eq!(balloon.size().0, RAM, "no more than there is");
    board.set_status(0);
    assert_eq!(balloon.size(), (RAM, 0));
}

#[test]
fn reported_memory_is_the_hosts_in_whole_pages() {
    let (board, balloon) = device();
    board.memory.write(0x80_000, &[7; 0x4000]).unwrap();
    // From inside a page to inside another.
    board.describe(REPORTING, 0, 0x80_800, 0x2800, 2 | 1, 1);
    board.describe(REPORTING, 1, buffer(REPORTING), 16, 2, 0);
    board.offer(REPORTING, 0);
    board.ring(REPORTING);
    board.until("the report", || board.used(REPORTING) == 1);
    let kept = [0x80_000, 0x80_fff, 0x81_000, 0x82_fff, 0x83_000].map(|at| byte(&board, at));
    assert_eq!(kept, [7, 7, 0, 0, 7]);
    assert_eq!(counter(&balloon, "bytes returned to the host"), 0x2000);
}

#[test]
fn statistics_are_asked_for() {
    let (board, balloon) = device();
    let mut bytes = Vec::new();
    for (tag, value) in [(4u16, 1000u64 << 10), (99, 1), (5, 1 << 20), (4, 3)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    board.submit(STATS, &bytes, 0);
    board.until("a look", || {
        balloon.ask_statistics(Duration::ZERO).get(Tag::Total).is_some() || board.used(STATS) > 0
    });
    board.until("the buffer comes back", || board.used(STATS) == 1);
    // The driver fills it anew.
    let asker = balloon.clone();
    let answer = thread::spawn(move || asker.ask_statistics(LONG));
    board.until("asked", || {
        if board.used(STATS) == board.half(virtio::fake::driver(STATS) + 2) {
            board.submit(STATS, &bytes, 0);
        }
        answer.is_finished()
    });
    let said = answer.join().unwrap();
    assert_eq!((said.get(Tag::Free), said.get(Tag::Total)), (Some(1000 << 10), Some(1 << 20)));
    assert_eq!(said.values.len(), 2);
    assert!(said.to_string().contains("1000 KiB"), "{said}");
    // Nobody answers, and nobody waits for ever.
    board.set_status(0);
    assert!(balloon.ask_statistics(Duration::from_millis(1)).values.is_empty());
}

#[test]
fn its_state_is_saved() {
    let (board, balloon) = device();
    balloon.set_target(0x30_000);
    board.write(board.bar + CONFIG + 4, 5, 4);
    let parts = board.save();
    let (other, restored) = device();
    other.restore(&parts).unwrap();
    assert_eq!(restored.size(), (0x30_000, 0x5000));
    let fits = |part: &&saved_state::Part| part.kind == "virtio-balloon";
    assert_eq!(parts.iter().filter(fits).count(), 1);
}

#[test]
fn noise_on_its_queues_breaks_nothing() {
    for seed in 1..100 {
        let (board, balloon) = device();
        balloon.set_target(seed.min(256) << 12);
        board.noise(seed, ALL);
        board.start_over(ALL);
        let before = counter(&balloon, "pages deflated");
        assert_eq!(board.call(DEFLATE, &numbers(&[0x82]), 0), Some(Vec::new()), "{seed}");
        assert_eq!(counter(&balloon, "pages deflated"), before + 1, "{seed}");
        // The operator's wish outlives what the driver did.
        assert_eq!(board.read(board.bar + CONFIG, 4), seed.min(256), "{seed}");
    }
}
