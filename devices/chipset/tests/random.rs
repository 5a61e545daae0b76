//! Whatever a guest does to the chipset, it stays sound, and its state is all there is.

mod common;

use common::Board;
use proptest::prelude::*;
use saved_state::{Part, Reader, Writer};

#[derive(Clone, Debug)]
enum Act {
    Out(u16, Vec<u8>),
    In(u16, usize),
    Mmio(u64, Vec<u8>),
    Pin(u8, u32),
    Line(usize, bool),
    Ack,
    Eoi(u8),
    Button,
    Wait(u64),
}

const PORTS: &[u16] = &[
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x92, 0xcf9,
    0x600, 0x602, 0x604, 0x608, 0x505, 0xf4, 0x80, 0xe9,
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 1),
        1 => prop::collection::vec(any::<u8>(), 2),
        1 => prop::collection::vec(any::<u8>(), 4),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let port = prop_oneof![8 => prop::sample::select(PORTS), 1 => any::<u16>()];
    prop_oneof![
        12 => (port.clone(), bytes()).prop_map(|(port, data)| Act::Out(port, data)),
        4 => (port, prop::sample::select(&[1usize, 2, 4][..])).prop_map(|(p, n)| Act::In(p, n)),
        1 => (0u64..0x1000, bytes()).prop_map(|(offset, data)| Act::Mmio(offset, data)),
        3 => (any::<u8>(), any::<u32>()).prop_map(|(register, value)| Act::Pin(register, value)),
        3 => (0usize..26, any::<bool>()).prop_map(|(irq, level)| Act::Line(irq, level)),
        3 => Just(Act::Ack),
        1 => any::<u8>().prop_map(Act::Eoi),
        1 => Just(Act::Button),
        2 => (0u64..300_000_000).prop_map(Act::Wait),
    ]
}

fn perform(board: &Board, act: Act) {
    match act {
        Act::Out(port, data) => board.wiring.pio.write(port, &data),
        Act::In(port, len) => board.wiring.pio.read(port, &mut vec![0; len]),
        Act::Mmio(offset, data) => {
            board.wiring.mmio.write(chipset::ioapic::ADDRESS + offset, &data);
            board.wiring.mmio.read(chipset::ioapic::ADDRESS + offset, &mut [0; 8]);
        }
        Act::Pin(register, value) => board.ioapic(register, value),
        Act::Line(irq, level) => {
            if let Some(line) = board.wiring.irqs.get(irq) {
                line.set(level);
            }
        }
        Act::Ack => {
            let (pic, pending) = (&board.chipset.pic, board.chipset.pic.pending());
            assert_eq!(pic.ack().is_some(), pending);
        }
        Act::Eoi(vector) => board.chipset.ioapic.eoi(vector),
        Act::Button => board.chipset.pm.power_button(),
        Act::Wait(ns) => board.time.advance(ns),
    }
}

/// What a battery keeps, and what counts guest time, is not a reset's business.
fn without_rtc_and_clocks(parts: Vec<Part>) -> Vec<Part> {
    parts.into_iter().filter(|part| !part.kind.starts_with("rtc")).collect()
}

proptest! {
    #[test]
    fn any_access(acts in prop::collection::vec(act(), 0..200), after in prop::collection::vec(act(), 0..40)) {
        let board = Board::new();
        let mut elapsed = 0u64;
        let mut levels = [false; 26];
        for act in acts {
            match act {
                Act::Wait(ns) => elapsed += ns,
                Act::Line(irq, level) => levels[irq] = level,
                _ => {}
            }
            perform(&board, act);
        }
        // A copy at the same moment, with the same levels from outside.
        let copy = Board::new();
        copy.time.advance(elapsed);
        let parts = board.save();
        copy.restore(&parts).unwrap();
        for (line, level) in copy.wiring.irqs.iter().zip(levels) {
            line.restore(level);
        }
        prop_assert_eq!(copy.save(), parts);
        prop_assert_eq!(copy.chipset.pic.pending(), board.chipset.pic.pending());
        prop_assert_eq!(copy.chipset.ioapic.routes(), board.chipset.ioapic.routes());
        // From here on both do the same.
        board.sink.take_messages();
        copy.sink.take_messages();
        for act in after {
            perform(&board, act.clone());
            perform(&copy, act);
        }
        prop_assert_eq!(copy.sink.take_messages(), board.sink.take_messages());
        prop_assert_eq!(copy.save(), board.save());
        // And a reset is a fresh board at this time.
        for line in &board.wiring.irqs {
            line.set(false);
        }
        board.reset();
        let fresh = Board::new();
        fresh.time.advance(device::Clock::now_ns(&board.time));
        fresh.reset();
        prop_assert_eq!(without_rtc_and_clocks(board.save()), without_rtc_and_clocks(fresh.save()));
        prop_assert!(!board.chipset.pic.pending());
    }

    /// A saved machine that somebody tampered with is refused, or is sound.
    #[test]
    fn any_payload(index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8) {
        let board = Board::new();
        let mut parts = board.save();
        let part = index.get(&parts).clone();
        let place = parts.iter().position(|p| *p == part).unwrap();
        let offset = at.index(part.payload.len());
        parts[place].payload[offset] = byte;
        if board.restore(&parts).is_ok() {
            for port in PORTS {
                perform(&board, Act::In(*port, 1));
                perform(&board, Act::Out(*port, vec![byte]));
            }
            perform(&board, Act::Wait(1_000_000_000));
            perform(&board, Act::Ack);
            board.save();
        }
    }
}

#[test]
fn a_refused_part_changes_nothing() {
    let board = Board::new();
    board.out(0x21, 0x5a);
    let before = board.save();
    for device in &board.wiring.devices {
        let mut writer = Writer::default();
        device.save(&mut writer);
        let mut parts = writer.finish();
        parts[0].payload.truncate(3);
        assert!(device.restore(&mut Reader::new(parts).unwrap()).is_err(), "{}", device.name());
    }
    assert_eq!(board.save(), before);
}
