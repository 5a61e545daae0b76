//! The device as firmware uses it, and as a hostile guest does.

use device::{
    Device, Wiring,
    fake::{FakeTime, Recorder, restore, save, wiring},
};
use fw_cfg::{Error, FwCfg, Items, key};
use guest_mem::{Change, Memfd, Slot};
use proptest::prelude::*;
use std::sync::Arc;

const RAM: u64 = 4 << 20;

struct Board {
    wiring: Wiring,
    device: Arc<FwCfg>,
}

fn board() -> Board {
    let mut wiring = wiring(&FakeTime::default(), &Arc::new(Recorder::default()));
    let mem = Memfd::new(RAM).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
    wiring.memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
    let mut items = Items::default();
    items.set(key::CPUS, &[4, 0]);
    items.file("etc/one", *b"0123456789").unwrap();
    items.file("etc/large", vec![7; 200_000]).unwrap();
    let device = fw_cfg::build(items, &mut wiring);
    Board { wiring, device }
}

impl Board {
    fn select(&self, key: u16) {
        self.wiring.pio.write(0x510, &key.to_le_bytes());
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        let next = |_| {
            let mut byte = [0xee];
            self.wiring.pio.read(0x511, &mut byte);
            byte[0]
        };
        (0..count).map(next).collect()
    }

    /// Executes a command; its control field afterwards.
    fn dma(&self, control: u32, length: u32, address: u64) -> u32 {
        let mut command = control.to_be_bytes().to_vec();
        command.extend(length.to_be_bytes());
        command.extend(address.to_be_bytes());
        self.wiring.memory.write(0x100, &command).unwrap();
        self.wiring.pio.write(0x514, &[0; 4]);
        self.wiring.pio.write(0x518, &0x100u32.to_be_bytes());
        let mut control = [0; 4];
        self.wiring.memory.read(0x100, &mut control).unwrap();
        u32::from_be_bytes(control)
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.wiring.memory.read(at, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn items_are_read_byte_by_byte() {
    let board = board();
    board.select(key::SIGNATURE);
    assert_eq!(board.bytes(6), *b"QEMU\0\0");
    board.select(key::ID);
    assert_eq!(board.bytes(4), [3, 0, 0, 0]);
    board.select(key::CPUS);
    assert_eq!(board.bytes(2), [4, 0]);
    board.select(0x7777);
    assert_eq!(board.bytes(2), [0, 0]);
    let mut four = [0; 4];
    board.select(key::FILES);
    board.wiring.pio.read(0x511, &mut four);
    assert_eq!(&four, b"0123");
}

#[test]
fn the_directory_lists_the_files() {
    let board = board();
    board.select(key::FILE_DIR);
    assert_eq!(board.bytes(4), [0, 0, 0, 2]);
    let first = board.bytes(64);
    assert_eq!(first[..8], [0, 0, 0, 10, 0, 0x20, 0, 0]);
    assert_eq!(&first[8..16], b"etc/one\0");
    let second = board.bytes(64);
    assert_eq!(
        (&second[..6], &second[8..18]),
        (&[0, 3, 0xd, 0x40, 0, 0x21][..], &b"etc/large\0"[..])
    );
}

#[test]
fn commands_select_read_and_skip() {
    let board = board();
    let mut signature = [0; 4];
    board.wiring.pio.read(0x514, &mut signature);
    assert_eq!(&signature, b"QEMU");
    board.wiring.pio.read(0x518, &mut signature);
    assert_eq!(&signature, b" CFG");
    assert_eq!(board.dma(0x0020_000a, 4, 0x1000), 0);
    assert_eq!(board.dma(4, 2, 0), 0);
    assert_eq!(board.dma(2, 6, 0x1004), 0);
    assert_eq!(board.memory(0x1000, 10), *b"01236789\0\0");
    assert_eq!(board.dma(0x0021_000a, 200_000, 0x2000), 0);
    assert!(board.memory(0x2000, 200_000).iter().all(|byte| *byte == 7));
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let board = board();
    assert_eq!(board.dma(0x0020_000a, 4, RAM - 2), 1, "not memory");
    assert_eq!(board.dma(0x0020_000a, 4, u64::MAX), 1);
    assert_eq!(board.dma(0x0020_0018, 4, 0x1000), 1, "writing");
    assert_eq!(board.dma(0x0020_000a, u32::MAX, 0x1000), 1, "more zeroes than anybody needs");
    assert_eq!(board.device.counters()[1], ("commands refused", 4));
    // Commands that are nowhere.
    board.wiring.pio.write(0x514, &[0xff; 4]);
    board.wiring.pio.write(0x518, &[0xff; 4]);
}

#[test]
fn names_are_checked() {
    let mut items = Items::default();
    for name in ["", "a b", "\u{e9}", &"x".repeat(56)] {
        assert_eq!(items.file(name, *b""), Err(Error::Name(name.into())));
    }
    items.file(&"x".repeat(55), *b"").unwrap();
    assert!(matches!(items.file(&"x".repeat(55), *b""), Err(Error::Twice(_))));
    for n in 1..1024 {
        items.file(&format!("f{n}"), *b"").unwrap();
    }
    assert_eq!(items.file("more", *b""), Err(Error::TooMany));
}

#[test]
fn reading_goes_on_where_it_was_saved() {
    let board = board();
    board.select(key::FILES);
    board.bytes(3);
    let saved = save(&board.wiring);
    board.wiring.devices.iter().for_each(|device| device.reset());
    assert_eq!(board.bytes(1), *b"Q");
    let other = self::board();
    restore(&other.wiring, &saved).unwrap();
    assert_eq!(other.bytes(2), *b"34");
}

proptest! {
    /// Whatever a guest writes, the device answers, and memory behind RAM's end stays untouched.
    #[test]
    fn noise_is_answered(
        commands in prop::collection::vec(
            (any::<[u8; 16]>(), any::<bool>(), 0u32..0x40, 0u16..12, any::<[u8; 4]>(), 1usize..=4),
            1..60,
        ),
    ) {
        let board = board();
        for (mut command, tame, item, port, value, width) in commands {
            if tame {
                // One that means something.
                let control = item << 16 | u32::from(command[3]) & 0x1f;
                command[..4].copy_from_slice(&control.to_be_bytes());
                command[4..6].fill(0);
                command[8..13].fill(0);
            }
            board.wiring.memory.write(0x80, &command).unwrap();
            board.wiring.pio.write(0x510 + port, &value[..width]);
            board.wiring.pio.write(0x518, &0x80u32.to_be_bytes());
            let mut data = [0; 4];
            board.wiring.pio.read(0x510 + port, &mut data[..width]);
            let saved = save(&board.wiring);
            restore(&board.wiring, &saved).unwrap();
        }
    }
}
