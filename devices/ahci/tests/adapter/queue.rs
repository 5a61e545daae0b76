//! Commands that are queued (native command queuing), and interrupts by messages.

use crate::common::*;
use device::{
    Device, Msi,
    fake::{restore, save},
};
use disk::Disk;
use std::sync::mpsc::channel;

const READ: u8 = 0x60;
const WRITE: u8 = 0x61;
/// A command's table, and its data.
fn table(slot: u32) -> u64 {
    TABLE + 0x100 * u64::from(slot)
}
fn data(slot: u32) -> u64 {
    DATA + 0x1000 * u64::from(slot)
}

impl<D> Board<D> {
    /// Puts a queued command of one sector into a slot.
    fn queue(&self, slot: u32, command: u8, sector: u32) {
        let direction = if command == WRITE { 1 << 6 } else { 0 };
        let mut header = (5u32 | direction | 1 << 16).to_le_bytes().to_vec();
        header.extend(0u32.to_le_bytes());
        header.extend(table(slot).to_le_bytes());
        self.write(LIST + 32 * u64::from(slot), &header);
        let [a, b, c, d] = sector.to_le_bytes();
        let mut bytes = vec![0x27, 0x80, command, 1, a, b, c, 0x40, d, 0, 0, 0, (slot << 3) as u8];
        bytes.resize(0x80, 0);
        bytes.extend(data(slot).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(511u32.to_le_bytes());
        self.write(table(slot), &bytes);
    }

    /// As a driver issues them: first that they are outstanding.
    fn issue(&self, slots: u32) {
        self.set(0, SACT, slots);
        self.set(0, CI, slots);
    }
}

#[test]
fn all_slots_are_queued_and_reported_by_their_bits() {
    let board = board();
    assert_eq!(board.get(0) >> 30 & 1, 1, "CAP.SNCQ");
    board.start(0);
    for slot in 0..32 {
        board.write(data(slot), &[slot as u8 + 1; 512]);
        board.queue(slot, WRITE, 100 + slot);
    }
    board.issue(u32::MAX);
    board.wait(|| board.port(0, SACT) == 0);
    assert_eq!((board.port(0, CI), board.port(0, 0x20)), (0, 0x50));
    let raised = board.port(0, 0x10);
    assert_eq!(raised & (1 | 8 | 1 << 30), 8, "Set Device Bits and nothing else: {raised:#x}");
    assert_eq!(board.read(RECEIVED + 0x58, 4), [0xa1, 0x40, 0x50, 0]);
    for slot in 0..32u32 {
        let mut stored = [0; 512];
        board.disk.read(u64::from(100 + slot) * 512, &mut stored).unwrap();
        assert_eq!(stored, [slot as u8 + 1; 512]);
        board.write(data(slot), &[0; 512]);
        // Others than they were written by.
        board.queue(slot, READ, 100 + (slot + 5) % 32);
    }
    board.issue(u32::MAX);
    board.wait(|| board.port(0, SACT) == 0);
    for slot in 0..32 {
        assert_eq!(board.read(data(slot), 512), [((slot + 5) % 32) as u8 + 1; 512]);
    }
    // The drive says so, too.
    assert_eq!(board.command(0, &fis(0xec, 0, 0), &[], 0, &[512]), (0x50, 0));
    let identity = board.read(DATA, 512);
    assert_eq!((identity[150], identity[153] & 1), (31, 1), "words 75 and 76");
}

#[test]
fn a_port_is_not_busy_with_queued_commands() {
    let ((begins, begun), (go, gone)) = (channel(), channel());
    let board = board_with(Slow::new(begins, gone));
    // Gone before the board, which waits for its drives.
    let (begun, go) = (begun, go);
    board.start(0);
    board.queue(4, READ, 0);
    board.queue(9, READ, 1);
    board.issue(1 << 4 | 1 << 9);
    begun.recv().unwrap();
    assert_eq!((board.port(0, SACT), board.port(0, CI)), (1 << 4 | 1 << 9, 1 << 9));
    assert_eq!(board.port(0, 0x20) & 0x80, 0, "it takes more");
    assert_eq!(board.read(RECEIVED + 0x40, 2), [0x34, 0], "accepted, without an interrupt");
    go.send(()).unwrap();
    begun.recv().unwrap();
    board.wait(|| board.port(0, SACT) == 1 << 9);
    go.send(()).unwrap();
    board.wait(|| board.port(0, SACT) == 0);
    // Slots have their turn: 4 comes after 9, although it is lower.
    board.issue(1 << 4);
    begun.recv().unwrap();
    board.queue(2, READ, 2);
    board.issue(1 << 2 | 1 << 9);
    go.send(()).unwrap();
    begun.recv().unwrap();
    assert_eq!(board.port(0, CI), 1 << 2);
    go.send(()).unwrap();
    begun.recv().unwrap();
    go.send(()).unwrap();
    board.wait(|| board.port(0, SACT) == 0);
}

/// The drive's log of it: one page of log 0x10.
fn log(board: &Board) -> Vec<u8> {
    assert_eq!(board.command(0, &fis(0x2f, 0x10, 1), &[], 0, &[512]), (0x50, 0));
    board.read(DATA, 512)
}

#[test]
fn a_queued_command_that_fails_is_in_the_log() {
    let board = board();
    board.start(0);
    assert_eq!(log(&board)[0], 0x80, "none so far");
    board.queue(7, READ, 2048);
    board.queue(8, WRITE, 3);
    board.issue(1 << 7 | 1 << 8);
    board.wait(|| board.port(0, 0x10) & 1 << 30 != 0);
    assert_eq!(board.port(0, 0x20), 0x1051);
    assert_eq!(board.port(0, SACT), 1 << 7 | 1 << 8, "outstanding for ever");
    assert_eq!(board.port(0, CI), 1 << 8, "nothing more is taken");
    assert_eq!(board.read(RECEIVED + 0x58, 8), [0xa1, 0x40, 0x51, 0x10, 0, 0, 0, 0]);
    board.ahci.pause();
    let other = crate::common::board();
    other.ahci.pause();
    restore(&other.wiring, &save(&board.wiring)).unwrap();
    other.ahci.resume();
    assert_eq!(other.port(0, SACT), 1 << 7 | 1 << 8);
    other.set(0, 0x18, 0x16);
    assert_eq!((other.port(0, SACT), other.port(0, CI)), (0, 0));
    other.set(0, 0x18, 0x17);
    let page = log(&other);
    assert_eq!(page[..8], [7, 0, 0x51, 0x10, 0, 8, 0, 0x40]);
    assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(other.command(0, &fis(0x2f, 0, 1), &[], 0, &[512]), (0x50, 0));
    assert_eq!(other.read(DATA, 34)[32..], [1, 0], "the directory");
    // No other log, and no other page.
    assert_eq!(other.command(0, &fis(0x2f, 0x110, 1), &[], 0, &[512]), (0x51, 4));
    other.set(0, 0x18, 0x16);
    other.set(0, 0x18, 0x17);
    other.set(0, 0x2c, 1);
    other.set(0, 0x2c, 0);
    assert_eq!(log(&other)[0], 0x80, "a reset forgets it");
}

#[test]
fn queued_commands_wait_while_the_machine_is_paused_and_go_on_in_another() {
    let board = board();
    board.start(0);
    board.ahci.pause();
    for slot in [3, 30] {
        board.write(data(slot), &[slot as u8; 512]);
        board.queue(slot, WRITE, slot);
    }
    board.issue(1 << 3 | 1 << 30);
    let other = crate::common::board();
    other.ahci.pause();
    other.write(0, &board.read(0, DATA as usize + 32 * 0x1000));
    restore(&other.wiring, &save(&board.wiring)).unwrap();
    assert_eq!((other.port(0, SACT), other.port(0, CI)), (1 << 3 | 1 << 30, 1 << 3 | 1 << 30));
    other.ahci.resume();
    other.wait(|| other.port(0, SACT) == 0);
    for slot in [3u8, 30] {
        let mut stored = [0; 512];
        other.disk.read(u64::from(slot) * 512, &mut stored).unwrap();
        assert_eq!(stored, [slot; 512]);
    }
}

/// Offset of the message capability in configuration space.
fn capability(board: &Board) -> u64 {
    let mut at = [0];
    board.wiring.mmio.read(SPACE + 0x34, &mut at);
    let mut id = [0];
    board.wiring.mmio.read(SPACE + u64::from(at[0]), &mut id);
    assert_eq!(id, [5]);
    SPACE + u64::from(at[0])
}

#[test]
fn one_message_instead_of_the_pin() {
    let board = board();
    let at = capability(&board);
    let space = |offset: u64, bytes: &[u8]| board.wiring.mmio.write(at + offset, bytes);
    let message = Msi { address: 0xfee0_1000, data: 0x4a };
    space(4, &(message.address as u32).to_le_bytes());
    space(8, &[0; 4]);
    space(12, &[0x4a, 0]);
    space(2, &[1, 0]);
    board.start(0);
    board.start(1);
    assert_eq!(board.sink.take_messages(), []);
    board.queue(0, READ, 0);
    board.issue(1);
    board.wait(|| board.port(0, SACT) == 0);
    board.wait(|| board.get(8) != 0);
    assert_eq!(board.sink.take_messages(), [message]);
    assert!(!board.pin.level(), "the pin is not driven");
    // Another port, before software has dealt with the first one: it hears of that when it has.
    board.command(1, &fis(0xec, 0, 0), &[], 0, &[512]);
    board.wait(|| board.get(8) == 3);
    assert_eq!(board.sink.take_messages(), []);
    board.set(0, 0x10, u32::MAX);
    board.put(8, 1);
    assert_eq!(board.sink.take_messages(), [message]);
    board.set(1, 0x10, u32::MAX);
    board.put(8, 2);
    assert_eq!((board.get(8), board.sink.take_messages()), (0, vec![]));
    // Without messages the pin is driven again.
    board.queue(0, READ, 0);
    board.issue(1);
    board.wait(|| board.get(8) != 0);
    assert_eq!(board.sink.take_messages(), [message]);
    space(2, &[0, 0]);
    assert!(board.pin.level());
    space(2, &[1, 0]);
    assert_eq!((board.sink.take_messages(), board.pin.level()), (vec![message], false));
}
