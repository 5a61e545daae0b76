//! Whatever a guest writes to configuration space and to BARs, the bus stays sound, and its
//! state is all there is.

mod common;

use common::{Board, ECAM, WINDOW};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    Out(u16, Vec<u8>),
    In(u16, usize),
    /// A register of a function.
    Config(u64, u64, Vec<u8>),
    Mmio(u64, Vec<u8>),
    /// At an offset from where the BAR is now.
    Bar(u64, u64, u64, Vec<u8>),
    Notify(usize, u16),
    Pin(usize, bool),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![2 => any::<u8>(), 1 => Just(0xff), 1 => Just(0)];
    prop_oneof![
        prop::collection::vec(byte.clone(), 1),
        prop::collection::vec(byte.clone(), 2),
        prop::collection::vec(byte.clone(), 4),
        prop::collection::vec(byte, 8),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let port = prop_oneof![Just(0xcf8u16), 0xcf8u16..0xd00];
    let mmio = prop_oneof![WINDOW, ECAM..ECAM + (256 << 20)];
    let offset = prop_oneof![0u64..0x40, 0x1000u64..0x1040, 0x2000u64..0x2010, 0u64..0x4000];
    prop_oneof![
        2 => (port.clone(), bytes()).prop_map(|(port, data)| Act::Out(port, data)),
        1 => (port, 1usize..5).prop_map(|(port, len)| Act::In(port, len)),
        8 => (0u64..4, 0u64..0x110, bytes()).prop_map(|(slot, at, data)| Act::Config(slot, at, data)),
        2 => (mmio, bytes()).prop_map(|(at, data)| Act::Mmio(at, data)),
        6 => (1u64..3, prop::sample::select(&[0x10u64, 0x20][..]), offset, bytes())
            .prop_map(|(slot, bar, offset, data)| Act::Bar(slot, bar, offset, data)),
        2 => (0usize..2, 0u16..4).prop_map(|(n, vector)| Act::Notify(n, vector)),
        1 => (0usize..2, any::<bool>()).prop_map(|(n, level)| Act::Pin(n, level)),
    ]
}

fn access(board: &Board, at: u64, data: &[u8]) -> Vec<u8> {
    // The board never passes an access that crosses a page.
    let len = data.len().min((4096 - at % 4096) as usize);
    let mut read = vec![0; len];
    board.write(at, &data[..len]);
    board.wiring.mmio.read(at, &mut read);
    read
}

/// What the guest reads.
fn perform(board: &Board, act: Act) -> Vec<u8> {
    match act {
        Act::Out(port, data) => board.wiring.pio.write(port, &data[..data.len().min(4)]),
        Act::In(port, len) => {
            let mut data = vec![0; len];
            board.wiring.pio.read(port, &mut data);
            return data;
        }
        Act::Config(slot, at, data) => return access(board, ECAM + (slot << 15) + at, &data),
        Act::Mmio(at, data) => return access(board, at, &data),
        Act::Bar(slot, bar, offset, data) => {
            let base = u64::from(board.config(slot, bar) & !0xf);
            return access(board, base + offset, &data);
        }
        Act::Notify(n, vector) => board.functions[n].requester.notify(vector),
        Act::Pin(n, level) => board.functions[n].requester.set_pin(level),
    }
    Vec::new()
}

fn levels(board: &Board) -> Vec<bool> {
    board.lines.iter().map(|line| line.level()).collect()
}

proptest! {
    #[test]
    fn any_access(acts in prop::collection::vec(act(), 0..200), after in prop::collection::vec(act(), 0..60)) {
        let board = Board::new(2);
        // Decoding on and messages enabled, so that something can happen.
        board.config_write(1, 4, 6);
        board.config_write(1, 0x40, 0x8000_0000);
        for act in acts {
            perform(&board, act);
        }
        let copy = Board::without_firmware(2);
        copy.restore(&board.save()).unwrap();
        prop_assert_eq!(copy.save(), board.save());
        prop_assert_eq!(levels(&copy), levels(&board));
        // From here on both do the same.
        board.sink.take_messages();
        for act in after {
            prop_assert_eq!(perform(&board, act.clone()), perform(&copy, act));
        }
        prop_assert_eq!(copy.sink.take_messages(), board.sink.take_messages());
        prop_assert_eq!(copy.save(), board.save());
        prop_assert_eq!(levels(&copy), levels(&board));
        // What identifies a function is out of reach.
        prop_assert_eq!(board.config(1, 0), 0x1042_1af4);
        prop_assert_eq!(board.config(1, 8) >> 8, 0x01_80_00);
        board.reset();
        prop_assert_eq!(board.save(), Board::without_firmware(2).save());
        prop_assert!(!levels(&board).contains(&true));
    }

    /// A saved bus that somebody tampered with is refused, or is sound.
    #[test]
    fn any_payload(index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8) {
        let board = Board::new(2);
        let mut parts = board.save();
        let place = index.index(parts.len());
        let offset = at.index(parts[place].payload.len());
        parts[place].payload[offset] = byte;
        if board.restore(&parts).is_ok() {
            for act in [Act::Notify(0, 0), Act::Pin(1, true), Act::Bar(1, 0x10, 0x1000, vec![byte; 8])] {
                perform(&board, act);
            }
            prop_assert_eq!(board.config(1, 0), 0x1042_1af4);
            board.save();
        }
    }
}
