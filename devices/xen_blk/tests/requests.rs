//! What drivers ask for, right and wrong.

mod front;

use disk::{Disk, Shape};
use front::*;
use std::sync::{atomic::Ordering::SeqCst, mpsc::channel};
use xen_abi::blkif::{Discard, Request, op, status};
use xen_blk::{Config, XenBlk};
use xen_front::{Access, Backend, Connect};
use zerocopy::IntoBytes;

const SIZE: u64 = 4 << 20;

fn shape() -> Shape {
    Shape { discard: true, ..Shape::of_bytes(SIZE) }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512 + seed) as u8).collect()
}

#[test]
fn disks_have_the_numbers_and_names_of_libxl() {
    let of = |index| {
        let config = Config { index, queues: 1, cdrom: false, persistent_grants: true };
        (config.number(), config.disk_name())
    };
    assert_eq!(of(0), (51712, "xvda".into()));
    assert_eq!(of(1), (51728, "xvdb".into()));
    assert_eq!(of(15), (51952, "xvdp".into()));
    assert_eq!(of(16), (0x1000_1000, "xvdq".into()));
    assert_eq!(of(25).1, "xvdz");
    assert_eq!(of(26), (0x1000_1a00, "xvdaa".into()));
    assert_eq!((of(701).1, of(702).1), ("xvdzz".into(), "xvdaaa".into()));
}

#[test]
fn a_disk_says_what_it_is() {
    let large = Shape { logical_block: 4096, physical_block: 8192, ..shape() };
    let front = Front::new(large);
    let features = front.blk.features();
    let get = |name: &str| features.get(name).map(String::as_str);
    assert_eq!(get("feature-max-indirect-segments"), Some("256"));
    assert_eq!((get("mode"), get("multi-queue-max-queues")), (Some("w"), Some("2")));
    assert_eq!((get("feature-discard"), get("discard-granularity")), (Some("1"), Some("8192")));
    assert_eq!((get("feature-flush-cache"), get("feature-barrier")), (Some("1"), None));
    // A driver that connects again, without having closed, has one connection.
    let said = front.connect(Connect::First).unwrap();
    let get = |name: &str| said.get(name).map(String::as_str);
    // Sectors have 512 bytes, whatever the disk's have.
    assert_eq!((get("sectors"), get("sector-size")), (Some("8192"), Some("4096")));
    assert_eq!((get("physical-sector-size"), get("info")), (Some("8192"), Some("0")));
    let cd = XenBlk::new(
        &Config { index: 3, queues: 1, cdrom: true, persistent_grants: false },
        Spy::new(Shape { read_only: true, ..shape() }),
    );
    assert_eq!(cd.front().get("device-type").map(String::as_str), Some("cdrom"));
    assert_eq!(cd.front().get("virtual-device").map(String::as_str), Some("51760"));
    assert_eq!(cd.features().get("mode").map(String::as_str), Some("r"));
    assert_eq!(cd.features().get("feature-discard"), None);
}

#[test]
fn what_is_written_is_read() {
    let mut front = Front::new(shape());
    let data = pattern(3 * PAGE, 1);
    let mut segments = Vec::new();
    // Parts of pages: 8 sectors, the last 3, the first one.
    for (from, first, last) in [(0, 0, 7), (4096, 5, 7), (4096 + 1536, 0, 0)] {
        let (page, grant) = front.grant(Access::Read);
        let len = usize::from(last - first + 1) * 512;
        page.write(usize::from(first) * 512, &data[from..from + len]).unwrap();
        segments.push(segment(grant, first, last));
    }
    assert_eq!(front.ask(request(op::WRITE, 100, &segments).as_bytes()), status::OKAY);
    let on_disk = front.disk.bytes();
    assert_eq!(on_disk[51200..51200 + 12 * 512], data[..12 * 512]);
    assert!(on_disk[..51200].iter().all(|b| *b == 0), "elsewhere");
    let calls = front.disk.calls.load(SeqCst);
    assert_eq!(calls, 1, "segments are one access");
    let (page, grant) = front.grant(Access::Write);
    page.write(0, &[0xee; PAGE]).unwrap();
    assert_eq!(front.ask(request(op::READ, 101, &[segment(grant, 1, 2)]).as_bytes()), status::OKAY);
    let mut got = [0; PAGE];
    page.read(0, &mut got).unwrap();
    assert_eq!(got[512..1536], data[512..1536]);
    assert!(got[..512].iter().chain(&got[1536..]).all(|b| *b == 0xee), "around it");
    assert_eq!((front.count("bytes written"), front.count("bytes read")), (12 * 512, 1024));
    assert_eq!(front.domain.used(), 1, "the ring alone");
}

/// What has been read is not kept back while the disk is busy with what takes longer.
#[test]
fn a_flush_keeps_nothing_waiting() {
    // Of which the first may take its time.
    const READS: u64 = 6;
    let mut front = Front::new(shape());
    let (seen, is_seen) = channel();
    *front.disk.before.lock().unwrap() = Some(Box::new(move |call| {
        if call == READS {
            is_seen.recv_timeout(LONG / 6).expect("the read's response is seen");
        }
    }));
    let (_, grant) = front.grant(Access::Write);
    let read = request(op::READ, 0, &[segment(grant, 0, 7)]);
    (0..READS).for_each(|_| front.queues[0].ring.put(read.as_bytes()));
    front.put(0, request(op::FLUSH_DISKCACHE, 0, &[]).as_bytes());
    (0..READS).for_each(|_| assert_eq!(front.take(0).operation, op::READ));
    seen.send(()).unwrap();
    assert_eq!(front.take(0).operation, op::FLUSH_DISKCACHE);
}

#[test]
fn an_indirect_request_moves_a_mebibyte() {
    let mut front = Front::new(shape());
    let data = pattern(256 * PAGE, 2);
    let pages: Vec<_> = (0..256).map(|_| front.grant(Access::Write)).collect();
    let segments: Vec<_> = pages.iter().map(|(_, grant)| segment(*grant, 0, 7)).collect();
    for ((page, _), chunk) in pages.iter().zip(data.chunks(PAGE)) {
        page.write(0, chunk).unwrap();
    }
    let write = indirect(&front, op::WRITE, 64, &segments);
    front.put(0, write.as_bytes());
    let response = front.take(0);
    // The driver is told of the write.
    assert_eq!((response.id, response.operation, response.status), (9, op::WRITE, status::OKAY));
    assert_eq!(front.disk.calls.load(SeqCst), 8, "in pieces of 128 KiB");
    assert_eq!(front.disk.bytes()[32768..32768 + data.len()], data);
    let reversed: Vec<_> = segments.iter().rev().copied().collect();
    let read = indirect(&front, op::READ, 64, &reversed);
    assert_eq!(front.ask(read.as_bytes()), status::OKAY);
    for ((page, _), chunk) in pages.iter().rev().zip(data.chunks(PAGE)) {
        let mut got = [0; PAGE];
        page.read(0, &mut got).unwrap();
        assert_eq!(got, chunk);
    }
    let none = indirect(&front, op::READ, 0, &[]);
    let more: Vec<_> = segments.iter().chain(&segments[..1]).copied().collect();
    let many = indirect(&front, op::READ, 0, &more);
    let flush = indirect(&front, op::FLUSH_DISKCACHE, 0, &segments);
    assert_eq!(front.ask(none.as_bytes()), status::ERROR);
    assert_eq!(front.ask(many.as_bytes()), status::ERROR);
    assert_eq!(front.ask(flush.as_bytes()), status::EOPNOTSUPP);
    let mut nowhere = write;
    nowhere.pages[0] = 9999;
    assert_eq!(front.ask(nowhere.as_bytes()), status::ERROR);
}

#[test]
fn flushes_and_discards_reach_the_disk() {
    let mut front = Front::new(shape());
    front.disk.inner.write(0, &vec![0xaa; SIZE as usize]).unwrap();
    assert_eq!(front.ask(request(op::FLUSH_DISKCACHE, u64::MAX, &[]).as_bytes()), status::OKAY);
    assert_eq!(front.disk.inner.flushes(), 1);
    let discard =
        Discard { operation: op::DISCARD, id: 3, sector: 8, sectors: 16, ..Default::default() };
    front.put(0, discard.as_bytes());
    let response = front.take(0);
    assert_eq!((response.id, response.operation, response.status), (3, op::DISCARD, status::OKAY));
    let bytes = front.disk.bytes();
    assert!(
        bytes[4096..12288].iter().all(|b| *b == 0) && bytes[12288] == 0xaa && bytes[4095] == 0xaa
    );
    // With data: those are written after the flush.
    let (page, grant) = front.grant(Access::Read);
    page.write(0, &[1; 512]).unwrap();
    let flush = request(op::FLUSH_DISKCACHE, 0, &[segment(grant, 0, 0)]);
    assert_eq!(front.ask(flush.as_bytes()), status::OKAY);
    assert_eq!((front.disk.inner.flushes(), front.disk.bytes()[0]), (2, 1));
    for (sector, sectors) in
        [(8192, 1), (0, 8193), (u64::MAX, 1), (0, u64::MAX), (1, u64::MAX >> 9)]
    {
        let beyond = Discard { sector, sectors, ..discard };
        assert_eq!(front.ask(beyond.as_bytes()), status::ERROR, "{sector} {sectors}");
    }
    let secure = Discard { flag: 1, ..discard };
    assert_eq!(front.ask(secure.as_bytes()), status::EOPNOTSUPP);
    assert_eq!(front.count("bytes discarded"), 8192);
    let mut front = Front::new(Shape::of_bytes(SIZE));
    assert_eq!(front.ask(discard.as_bytes()), status::EOPNOTSUPP, "not offered");
}

#[test]
fn what_is_wrong_is_refused_and_does_nothing() {
    let mut front = Front::new(Shape { logical_block: 1024, ..shape() });
    let (page, grant) = front.grant(Access::Write);
    let (_, read_only) = front.grant(Access::Read);
    page.write(0, &[0x55; PAGE]).unwrap();
    let end = SIZE / 512;
    let wrong =
        |operation, sector, segments: &[_], what: i16| (request(operation, sector, segments), what);
    let mut cases: Vec<(Request, i16)> = vec![
        wrong(op::WRITE, 0, &[], status::ERROR),
        wrong(op::WRITE, 0, &[segment(grant, 1, 0)], status::ERROR),
        wrong(op::WRITE, 0, &[segment(grant, 0, 8)], status::ERROR),
        wrong(op::WRITE, 0, &[segment(grant, 0, 255)], status::ERROR),
        wrong(op::READ, 0, &[segment(grant, 0, 9)], status::ERROR),
        // Half of a block, and from the half on.
        wrong(op::WRITE, 0, &[segment(grant, 0, 0)], status::ERROR),
        wrong(op::WRITE, 1, &[segment(grant, 0, 1)], status::ERROR),
        wrong(op::WRITE, end, &[segment(grant, 0, 7)], status::ERROR),
        wrong(op::WRITE, end - 2, &[segment(grant, 0, 7)], status::ERROR),
        wrong(op::WRITE, u64::MAX, &[segment(grant, 0, 7)], status::ERROR),
        wrong(op::WRITE, u64::MAX >> 9, &[segment(grant, 0, 7)], status::ERROR),
        wrong(op::READ, 0, &[segment(read_only, 0, 7)], status::ERROR),
        wrong(op::READ, 0, &[segment(grant, 0, 7), segment(9999, 0, 7)], status::ERROR),
        wrong(op::WRITE_BARRIER, 0, &[segment(grant, 0, 7)], status::EOPNOTSUPP),
        wrong(4, 0, &[segment(grant, 0, 7)], status::EOPNOTSUPP),
        wrong(255, 0, &[], status::EOPNOTSUPP),
    ];
    let mut many = request(op::WRITE, 0, &[segment(grant, 0, 7); 11]);
    many.segments = 12;
    cases.push((many, status::ERROR));
    many.segments = 255;
    cases.push((many, status::ERROR));
    for (request, what) in &cases {
        front.put(0, request.as_bytes());
        let response = front.take(0);
        let expected = (7, request.operation, *what);
        assert_eq!((response.id, response.operation, response.status), expected, "{request:?}");
    }
    assert_eq!(front.count("failed requests"), cases.len() as u64);
    assert_eq!(front.disk.calls.load(SeqCst), 0);
    let mut got = [0; PAGE];
    page.read(0, &mut got).unwrap();
    assert_eq!(got, [0x55; PAGE], "nothing is read before all pages are there");
    assert_eq!(front.domain.used(), 1);
    // And it still works.
    assert_eq!(front.ask(request(op::WRITE, 0, &[segment(grant, 0, 7)]).as_bytes()), status::OKAY);
    let mut front = Front::new(Shape { read_only: true, ..shape() });
    let (_, grant) = front.grant(Access::Write);
    let (write, discard) = (
        request(op::WRITE, 0, &[segment(grant, 0, 7)]),
        Discard { operation: op::DISCARD, sectors: 8, ..Default::default() },
    );
    assert_eq!(front.ask(write.as_bytes()), status::ERROR);
    assert_eq!(front.ask(discard.as_bytes()), status::ERROR);
    assert_eq!(front.disk.calls.load(SeqCst), 0);
}

#[test]
fn queues_with_rings_of_several_pages_work_side_by_side() {
    let mut front = Front::with(shape(), 2, 4, false);
    let grants: Vec<_> = (0..2).map(|_| front.grant(Access::Read)).collect();
    for (queue, (page, _)) in grants.iter().enumerate() {
        page.write(0, &[queue as u8 + 1; PAGE]).unwrap();
    }
    let entries = front.queues[0].ring.entries;
    assert_eq!(entries, 512);
    for round in 0..3 * u64::from(entries) {
        for (queue, (_, grant)) in grants.iter().enumerate() {
            let sector = (round * 2 + queue as u64) % (SIZE / 512);
            let mut write = request(op::WRITE, sector, &[segment(*grant, 0, 0)]);
            write.id = round;
            front.put(queue, write.as_bytes());
        }
        // They stay as far ahead as the rings let them.
        for queue in 0..2 {
            if round >= u64::from(entries) - 1 {
                assert_eq!(
                    (front.take(queue).id, front.count("failures")),
                    (round + 1 - u64::from(entries), 0)
                );
            }
        }
    }
    for queue in 0..2 {
        (1..entries).for_each(|_| assert_eq!(front.take(queue).status, status::OKAY));
    }
    let bytes = front.disk.bytes();
    let written = 3 * entries as usize;
    for (sector, data) in bytes.chunks(512).enumerate().take(2 * written) {
        assert!(data.iter().all(|b| usize::from(*b) == sector % 2 + 1), "{sector}");
    }
    assert_eq!(front.count("requests"), 6 * u64::from(entries));
    assert!(front.count("events") <= 6 * u64::from(entries));
}

#[test]
fn a_driver_that_keeps_pages_granted_has_them_kept_in_use() {
    let mut front = Front::with(shape(), 1, 0, true);
    let (page, grant) = front.grant(Access::Write);
    for value in 1..4 {
        page.write(0, &[value; PAGE]).unwrap();
        assert_eq!(
            front.ask(request(op::WRITE, 0, &[segment(grant, 0, 7)]).as_bytes()),
            status::OKAY
        );
        assert_eq!(front.disk.bytes()[0], value);
    }
    assert!(!front.domain.take_back(grant));
    assert_eq!(front.domain.used(), 2);
    front.blk.disconnect();
    assert!(front.domain.take_back(grant));
    assert_eq!(front.domain.used(), 0);
    assert!(!front.domain.is_bound(front.queues[0].port));
}
