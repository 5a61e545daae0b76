//! Whatever a driver writes to registers and rings, the device stays sound, and its state is
//! all there is.

mod common;

use common::{Board, ECAM, RAM, SIZE, buffer, device, table};
use proptest::prelude::*;
use virtio::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

#[derive(Clone, Debug)]
enum Act {
    Register(u64, u64, usize),
    /// Of PCI's configuration space.
    Config(u64, u64, usize),
    Descriptor {
        queue: u16,
        index: u16,
        at: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    Offer(u16, u16),
    /// Anything, anywhere in the rings.
    Poke(u16, u64, u16),
    Ring(u16),
    Produce(u8),
    Start(u64),
    Pause,
    Resume,
    Move,
}

fn act() -> impl Strategy<Value = Act> {
    let width = || prop::sample::select(&[1usize, 2, 4, 8][..]);
    let offset = prop_oneof![4 => 0u64..64, 1 => 0x1000u64..0x1004, 1 => 0x2000u64..0x2010,
        1 => 0x3000u64..0x3010, 1 => 0x4000u64..0x4040, 1 => 0u64..0x8000];
    let value = prop_oneof![any::<u64>(), 0u64..32, Just(u64::MAX), 0u64..RAM];
    let address = prop_oneof![8 => Just(0u64).prop_map(|_| buffer(0)), 1 => 0u64..RAM + 0x1000,
        1 => any::<u64>(), 2 => Just(table(0)), 2 => Just(device(0))];
    let len = prop_oneof![8 => 0u32..64, 1 => any::<u32>(), 1 => Just(u32::MAX)];
    let flags = prop_oneof![8 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    let features = prop::sample::select(
        &[VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | INDIRECT_DESC | EVENT_IDX][..],
    );
    prop_oneof![
        4 => (offset, value.clone(), width()).prop_map(|(at, v, len)| Act::Register(at, v, len)),
        1 => (0u64..0x100, value, width()).prop_map(|(at, v, len)| Act::Config(at, v, len)),
        6 => (0u16..2, 0u16..SIZE, address, len, flags, 0u16..SIZE + 1).prop_map(
            |(queue, index, at, len, flags, next)| Act::Descriptor { queue, index, at, len, flags, next }),
        6 => (0u16..2, 0u16..SIZE + 1).prop_map(|(queue, head)| Act::Offer(queue, head)),
        1 => (0u16..2, 0u64..0x3000, any::<u16>()).prop_map(|(q, at, v)| Act::Poke(q, at, v)),
        6 => (0u16..3).prop_map(Act::Ring),
        2 => any::<u8>().prop_map(Act::Produce),
        4 => features.prop_map(Act::Start),
        1 => Just(Act::Pause),
        2 => Just(Act::Resume),
        1 => Just(Act::Move),
    ]
}

fn perform(board: &Board, act: Act) {
    match act {
        Act::Register(at, value, len) => {
            let at = board.bar + at / len as u64 * len as u64;
            board.write(at, value, len);
            board.read(at, len);
        }
        Act::Config(at, value, len) => {
            let at = ECAM + (1 << 15) + at / len as u64 * len as u64;
            board.write(at, value, len);
            board.read(at, len);
        }
        Act::Descriptor { queue, index, at, len, flags, next } => {
            board.describe(queue, index, at, len, flags, next);
        }
        Act::Offer(queue, head) => board.offer(queue, head),
        Act::Poke(queue, at, value) => {
            board.memory.write(table(queue) + at, &value.to_le_bytes()).unwrap();
        }
        Act::Ring(queue) => board.ring(queue),
        Act::Produce(byte) => board.echo.produce(byte),
        Act::Start(features) => {
            board.set_status(0);
            board.clear_rings();
            // The BAR may be elsewhere by now.
            board.pci.assign();
            board.enable(true);
            if board.read(board.bar + 18, 2) == 2 && board.status() == 0 {
                board.start(features, true);
            }
        }
        Act::Pause => board.pause(),
        Act::Resume => board.resume(),
        Act::Move => {
            let parts = board.save();
            let other = Board::new();
            board.copy_memory_to(&other);
            other.restore(&parts).unwrap();
            assert_eq!(other.save(), parts);
            board.restore(&parts).unwrap();
            board.resume();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_driver(acts in prop::collection::vec(act(), 0..150)) {
        let board = Board::new();
        board.start(VERSION_1, true);
        for act in acts {
            perform(&board, act);
        }
        board.pause();
        for device in &board.wiring.devices {
            device.reset();
        }
        board.pci.assign();
        prop_assert_eq!(board.save(), Board::new().save());
        // And it works again.
        board.clear_rings();
        board.resume();
        board.start(VERSION_1, true);
        board.request(b"again");
        board.until("a reset device works", || board.used(0) == 1);
    }
}
