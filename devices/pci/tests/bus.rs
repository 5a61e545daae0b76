//! The bus as a guest sees it: enumeration, sizing, decoding, interrupts.

mod common;

use common::{Board, ECAM, WINDOW};
use device::Msi;
use saved_state::{Reader, Writer};

#[test]
fn both_ways_lead_to_the_same_registers() {
    let board = Board::new(2);
    assert_eq!(board.config(0, 0), 0x0008_1b36);
    assert_eq!((board.config(1, 0), board.config(2, 0)), (0x1042_1af4, 0x1042_1af4));
    assert_eq!(board.config(1, 0x3c), 0x0000_0111, "INTA# at GSI 17");
    for slot in [3, 31] {
        assert_eq!(board.config(slot, 0), u32::MAX);
    }
    assert_eq!(board.read(ECAM + (1 << 20), 4), 0xffff_ffff, "there is no bus 1");
    assert_eq!(board.read(ECAM + (1 << 15) + (1 << 12), 4), 0xffff_ffff, "no function 1");
    assert_eq!(board.read(ECAM + (1 << 15) + 0x100, 4), 0, "no extended capabilities");
    assert_eq!(board.port_config(1, 0), 0x1042_1af4);
    board.port_config_write(1, 0x3c, 0x55);
    assert_eq!(board.read(ECAM + (1 << 15) + 0x3c, 1), 0x55);
}

#[test]
fn the_address_port_answers_to_four_bytes_only() {
    let board = Board::new(1);
    board.wiring.pio.write(0xcf8, &0x8000_0800u32.to_le_bytes());
    board.wiring.pio.write(0xcf8, &[0xff]);
    let mut data = [0; 4];
    board.wiring.pio.read(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0800);
    board.wiring.pio.read(0xcfe, &mut data);
    assert_eq!(data, [0xff; 4], "no register lies across two");
    board.wiring.pio.read(0xcfe, &mut data[..2]);
    assert_eq!(data[..2], [0x42, 0x10]);
    board.wiring.pio.write(0xcf8, &0x0000_0800u32.to_le_bytes());
    board.wiring.pio.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4], "switched off");
}

#[test]
fn bars_are_placed_and_move() {
    let board = Board::new(2);
    let (first, second) = (board.config(1, 0x10), board.config(2, 0x10));
    assert!(first != second && WINDOW.contains(&first.into()) && WINDOW.contains(&second.into()));
    assert_eq!(board.read(u64::from(first) + 8, 4), 0x0100_0008, "slot 1, offset 8");
    assert_eq!(board.read(u64::from(second) + 8, 4), 0x0200_0008);
    board.config_write(1, 0x10, 0xc800_0000);
    assert_eq!(board.read(u64::from(first) + 8, 4), u64::from(u32::MAX));
    assert_eq!(board.read(0xc800_0010, 4), 0x0100_0010);
    board.config_write(1, 4, 0);
    assert_eq!(board.read(0xc800_0010, 4), u64::from(u32::MAX), "not decoded");
    // On top of each other the first answers; outside the window nobody does.
    board.config_write(1, 4, 2);
    board.config_write(2, 0x10, 0xc800_0000);
    assert_eq!(board.read(0xc800_0010, 4), 0x0100_0010);
    board.config_write(1, 0x10, 0x1000);
    assert_eq!(board.read(0xc800_0010, 4), 0x0200_0010);
    board.write(0xc800_0020, &[1, 2]);
    assert_eq!(board.functions[1].written(), [(0, 0x20, vec![1, 2])]);
}

#[test]
fn ports_lead_to_a_function() {
    let board = Board::new(2);
    assert_eq!((board.config(1, 0x14), board.config(2, 0x14)), (0xc001, 0xc021));
    let read = |port, len| {
        let mut data = [0; 4];
        board.wiring.pio.read(port, &mut data[..len]);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(0xc004, 4), read(0xc03e, 2)), (0x0110_0004, 0x001e));
    assert_eq!(read(0xc01e, 4), u32::MAX, "not across the end");
    assert_eq!((read(0xc040, 2), read(0x1000, 1)), (0xffff, 0xff));
    board.wiring.pio.write(0xc028, &[1, 2]);
    assert_eq!(board.functions[1].written(), [(1, 8, vec![1, 2])]);
    // Ports and memory are switched on apart.
    board.config_write(1, 4, 2);
    assert_eq!(read(0xc004, 4), u32::MAX);
    board.config_write(1, 4, 1);
    board.config_write(1, 0x14, 0x1000);
    assert_eq!((read(0xc004, 4), read(0x1004, 4)), (u32::MAX, 0x0110_0004));
    // Beyond the last port there is none, and below the window those of the board are.
    for nowhere in [0x1_1000, 0xcf8] {
        board.config_write(1, 0x14, nowhere);
        assert_eq!((read(0x1004, 4), read(0xcfc, 2)), (u32::MAX, 0xffff));
    }
}

#[test]
fn messages_and_pins() {
    let board = Board::new(1);
    let requester = board.functions[0].requester.clone();
    let bar = u64::from(board.config(1, 0x10));
    board.write(bar + 0x1000, &0xfee0_0000u64.to_le_bytes());
    board.write(bar + 0x1008, &0x31u64.to_le_bytes());
    // By the pin: GSI 17.
    requester.set_pin(true);
    assert!(board.lines[17].level());
    assert_eq!(board.config(1, 4) >> 16 & 8, 8, "interrupt status");
    board.config_write(1, 4, 0x402);
    assert!(!board.lines[17].level(), "interrupts disabled");
    board.config_write(1, 4, 0x002);
    assert!(board.lines[17].level());
    // By messages.
    board.config_write(1, 0x40, 0x8000_0000);
    assert!(!board.lines[17].level() && requester.uses_messages());
    requester.notify(0);
    assert_eq!(board.read(bar + 0x2000, 8), 1, "no bus master: it stays pending");
    assert!(board.sink.take_messages().is_empty() && !requester.is_master());
    board.config_write(1, 4, 6);
    assert_eq!(board.sink.take_messages(), [Msi { address: 0xfee0_0000, data: 0x31 }]);
    assert!(requester.is_master());
}

#[test]
fn a_window_is_the_functions() {
    let board = Board::new(1);
    let at = (0x40..0x100).step_by(4).find(|at| board.config(1, *at) as u8 == 9).unwrap();
    board.config_write(1, at + 4, 0xabcd);
    assert_eq!(board.config(1, at + 8), 0xabcd, "the function answers with its capability");
    board.config_write(1, at + 8, 0x1234_5678);
    let written = board.functions[0].windows();
    assert_eq!(written, [(0xabcd, 0x1234_5678u32.to_le_bytes().to_vec())]);
}

#[test]
fn reset_and_restore() {
    let board = Board::new(2);
    let fresh = Board::without_firmware(2).save();
    board.config_write(1, 4, 6);
    board.config_write(1, 0x40, 0x8000_0000);
    board.functions[0].requester.notify(1);
    board.functions[1].requester.set_pin(true);
    let saved = board.save();
    let copy = Board::without_firmware(2);
    copy.restore(&saved).unwrap();
    assert_eq!(copy.save(), saved);
    assert!(copy.lines[18].level());
    let bar = u64::from(copy.config(1, 0x10));
    assert_eq!(copy.read(bar + 8, 4), 0x0100_0008);
    board.reset();
    assert_eq!(board.save(), fresh);
    assert!(!board.lines[18].level());
    // Of another machine.
    assert!(Board::new(1).restore(&saved).is_err());
    assert!(Board::new(3).restore(&saved).is_err());
}

#[test]
fn a_refused_part_changes_nothing() {
    let board = Board::new(1);
    let before = board.save();
    let mut other = Board::new(1);
    other.config_write(1, 0x3c, 0x77);
    let parts = other.save();
    for index in 0..parts.len() {
        let mut parts = parts.clone();
        parts[index].payload.truncate(3);
        let mut reader = Reader::new(parts).unwrap();
        assert!(board.pci().restore(&mut reader).is_err());
        assert_eq!(board.save(), before);
    }
    other.wiring.devices.clear();
    let mut writer = Writer::default();
    board.pci().save(&mut writer);
    assert_eq!(writer.finish(), before);
}
