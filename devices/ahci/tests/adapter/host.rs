//! One command after the other.

use crate::common::*;
use device::{
    Device,
    fake::{restore, save},
};
use disk::Disk;
use proptest::prelude::*;
use std::{sync::mpsc::channel, time::Duration};

const WRITE: u32 = 1 << 6;

#[test]
fn drives_are_found_by_their_signatures() {
    let board = board();
    assert_eq!((board.get(0x0c), board.get(0) & 0x1f), (0x3f, 5));
    assert_eq!([0, 1, 2].map(|port| board.port(port, 0x28)), [0x113, 0x113, 0]);
    assert_eq!([0, 1, 2].map(|port| board.port(port, 0x24)), [0x101, 0xeb14_0101, u32::MAX]);
    board.set(0, 0x2c, 1);
    assert_eq!((board.port(0, 0x28), board.port(0, 0x20)), (0, 0x7f));
    board.set(0, 0x2c, 0);
    assert_eq!((board.port(0, 0x28), board.port(0, 0x20)), (0x113, 0x150));
    assert_eq!(board.port(0, 0x30), 1 << 26, "a device was found");
}

#[test]
fn a_disk_is_identified_read_and_written() {
    let board = board();
    board.start(0);
    assert_eq!(board.command(0, &fis(0xec, 0, 0), &[], 0, &[512]), (0x50, 0));
    let identity = board.read(DATA, 512);
    assert_eq!(identity.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(&identity[20..24], b"1S  ", "the serial number, bytes swapped");
    assert_eq!(identity[200..204], [0, 8, 0, 0], "2048 sectors");
    assert_eq!(board.read(LIST + 3 * 32 + 4, 4), [0, 2, 0, 0], "512 bytes were moved");
    assert_eq!(
        (board.read(RECEIVED + 0x20, 1), board.read(RECEIVED + 0x40, 1)),
        (vec![0x5f], vec![0x34])
    );
    assert!(board.pin.level());
    board.set(0, 0x10, u32::MAX);
    board.put(8, u32::MAX);
    assert!(!board.pin.level());

    let data: Vec<u8> = (0..3 * 512).map(|i| ((i * 7) >> 3) as u8).collect();
    board.write(DATA, &data);
    assert_eq!(board.command(0, &fis(0x35, 5, 3), &[], WRITE, &[512, 1000, 24]), (0x50, 0));
    let mut stored = vec![0; data.len()];
    board.disk.read(5 * 512, &mut stored).unwrap();
    assert_eq!(stored, data);
    board.write(DATA, &vec![0; data.len()]);
    assert_eq!(board.command(0, &fis(0x25, 5, 3), &[], 0, &[1536]), (0x50, 0));
    assert_eq!(board.read(DATA, 1536), data);
    assert_eq!(board.command(0, &fis(0xea, 0, 0), &[], 0, &[]), (0x50, 0));
    assert_eq!(board.disk.flushes(), 1);
}

#[test]
fn what_fails_stops_the_port_until_it_is_started_again() {
    let board = board();
    board.start(0);
    assert_eq!(board.command(0, &fis(0x25, 2047, 2), &[], 0, &[1024]), (0x51, 0x10));
    assert_eq!(board.port(0, 0x10) & 1 << 30, 1 << 30);
    assert_eq!(board.port(0, 0x38), 1 << 3, "not done");
    board.set(0, 0x18, 0x16);
    board.wait(|| board.port(0, 0x18) & 1 << 15 == 0);
    assert_eq!(board.port(0, 0x38), 0);
    board.set(0, 0x18, 0x17);
    assert_eq!(board.command(0, &fis(0x25, 2047, 1), &[], 0, &[512]), (0x50, 0));
    // Fewer bytes of memory than of data.
    assert_eq!(board.command(0, &fis(0x25, 0, 2), &[], 0, &[512]), (0x51, 4));
}

#[test]
fn a_cd_is_read_by_packets() {
    let board = board();
    board.start(1);
    let packet = |packet: &[u8], len: &[u32]| {
        board.set(1, 0x18, 0x16);
        board.wait(|| board.port(1, 0x18) & 1 << 15 == 0);
        board.set(1, 0x18, 0x17);
        board.command(1, &[0x27, 0x80, 0xa0, 1], packet, 1 << 5, len)
    };
    assert_eq!(packet(&[0x25], &[8]), (0x51, 0x64), "a new disc");
    assert_eq!(packet(&[0x25], &[8]), (0x50, 0));
    assert_eq!(board.read(DATA, 8), [0, 0, 0, 63, 0, 0, 8, 0]);
    assert_eq!(packet(&[0x28, 0, 0, 0, 0, 16, 0, 0, 1], &[2048]), (0x50, 0));
    assert_eq!(board.read(DATA, 6), *b"\x01CD001");
    assert_eq!(packet(&[0x28, 0, 0, 0, 0, 64, 0, 0, 1], &[2048]), (0x51, 0x54));
    assert_eq!(board.command(1, &fis(0xec, 0, 0), &[], 0, &[512]).0, 0x51, "not an ATA disk");
}

#[test]
fn commands_wait_while_the_machine_is_paused_and_go_on_in_another() {
    let board = board();
    board.start(0);
    board.ahci.pause();
    board.write(DATA, &[0x77; 512]);
    // Without waiting for its end, which does not come.
    let saved = std::thread::scope(|scope| {
        let command = scope.spawn(|| board.command(0, &fis(0x35, 1, 1), &[], WRITE, &[512]));
        board.wait(|| board.port(0, 0x38) != 0);
        let saved = save(&board.wiring);
        board.ahci.resume();
        assert_eq!(command.join().unwrap(), (0x50, 0));
        saved
    });
    let other = crate::common::board();
    other.ahci.pause();
    other.write(0, &board.read(0, DATA as usize + 512));
    restore(&other.wiring, &saved).unwrap();
    assert_eq!(other.port(0, 0x38), 1 << 3);
    other.ahci.resume();
    other.wait(|| other.port(0, 0x38) == 0);
    let mut stored = [0; 512];
    other.disk.read(512, &mut stored).unwrap();
    assert_eq!(stored, [0x77; 512]);
}

#[test]
fn memory_is_left_alone_once_the_guest_says_so() {
    let ((begins, begun), (go, gone)) = (channel(), channel());
    let board = board_with(Slow::new(begins, gone));
    board.start(0);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| board.command(0, &fis(0x25, 0, 1), &[], 0, &[512]));
        begun.recv().unwrap();
        let forbids = scope.spawn(|| {
            board.wiring.mmio.write(COMMAND, &[MEMORY, 0]);
            board.read(DATA, 512)
        });
        // Time to return too early.
        std::thread::sleep(Duration::from_millis(200));
        go.send(()).unwrap();
        let seen = forbids.join().unwrap();
        assert_eq!(reads.join().unwrap(), (0x50, 0));
        assert!(board.read(DATA, 512) == seen, "memory was written later");
    });
    // What is issued now waits.
    board.set(0, 0x38, 1 << 3);
    assert_eq!(board.port(0, 0x20) & 0x80, 0x80);
    assert!(begun.try_recv().is_err());
    go.send(()).unwrap();
    board.wiring.mmio.write(COMMAND, &[MEMORY | MASTER, 0]);
    board.wait(|| board.port(0, 0x38) == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Noise in registers, lists and tables: everything is answered, and the port can be started
    /// again and serves.
    #[test]
    fn noise_is_survived(
        registers in prop::collection::vec((0u64..0x300, any::<u32>()), 0..40),
        memory in prop::collection::vec((0u64..0x4000, prop::collection::vec(any::<u8>(), 1..64)), 0..40),
        commands in prop::collection::vec(
            (0u64..2, any::<[u8; 16]>(), any::<[u8; 12]>(), 0u32..0xffff, 0usize..4, any::<bool>()), 1..20),
    ) {
        let board = board();
        for (register, value) in &registers {
            board.put(register & !3, *value);
        }
        for (at, bytes) in &memory {
            board.write(*at, bytes);
        }
        (0..6).for_each(|port| board.set(port, 0x38, u32::MAX));
        // Nothing hangs: a stop comes to an end.
        board.put(4, 1 << 31 | 1);
        board.wait(|| board.get(4) & 1 == 0);
        for (port, mut fis, packet, flags, regions, tame) in commands {
            board.set(port, 0x18, 0x16);
            board.wait(|| board.port(port, 0x18) & 1 << 15 == 0);
            board.start(port);
            if tame {
                fis[..2].copy_from_slice(&[0x27, 0x80]);
                fis[2] = [0x25, 0x60, 0xec, 0xa0, 0x61, 0x06, 0x2f, 0xef][usize::from(fis[2] & 7)];
                fis[6..12].copy_from_slice(&[0, 0x40, 0, 0, 0, 0]);
            }
            let lengths = vec![4096; regions];
            board.command(port, &fis, &packet, flags & 0xffe0, &lengths);
            board.ahci.pause();
            let saved = save(&board.wiring);
            restore(&board.wiring, &saved).unwrap();
            board.ahci.resume();
        }
        board.put(4, 1 << 31 | 1);
        board.wait(|| board.get(4) & 1 == 0);
        board.start(0);
        prop_assert_eq!(board.command(0, &fis(0x25, 0, 1), &[], 0, &[512]), (0x50, 0));
    }
}
