//! The chip as firmware uses it, and as a hostile guest does.

use device::{
    Wiring,
    fake::{FakeTime, Recorder, restore, save, wiring},
};
use disk::{Disk, Memory, Shape};
use flash::{BLOCK, Config};
use proptest::prelude::*;
use std::sync::Arc;

const AT: u64 = 0xffc0_0000;
const SIZE: usize = 4 * BLOCK;

fn board() -> (Wiring, Arc<Memory>) {
    let mut wiring = wiring(&FakeTime::default(), &Arc::new(Recorder::default()));
    let store = Arc::new(Memory::new(Shape::of_bytes(SIZE as u64)));
    let contents = vec![0x5a; SIZE];
    store.write(0, &contents).unwrap();
    flash::build(Config { at: AT, contents, store: Some(store.clone()) }, &mut wiring);
    (wiring, store)
}

fn read(board: &Wiring, at: usize) -> u8 {
    let mut byte = [0];
    board.mmio.read(AT + at as u64, &mut byte);
    byte[0]
}

fn write(board: &Wiring, at: usize, values: &[u8]) {
    values.iter().for_each(|value| board.mmio.write(AT + at as u64, &[*value]));
}

fn stored(store: &Memory, at: usize) -> u8 {
    let mut byte = [0];
    store.read(at as u64, &mut byte).unwrap();
    byte[0]
}

/// As OVMF finds out what is there: RAM reads back what is written, ROM does not change.
#[test]
fn firmware_knows_it_for_flash() {
    let (board, _) = board();
    write(&board, 7, &[0x50]);
    assert_eq!(read(&board, 7), 0x5a);
    write(&board, 7, &[0x70]);
    assert_eq!(read(&board, 7), 0, "the cleared status");
    write(&board, 7, &[0x90]);
    assert_eq!((read(&board, 0), read(&board, 1)), (0x89, 0x14));
    write(&board, 7, &[0xff]);
    assert_eq!(read(&board, 7), 0x5a);
}

#[test]
fn programming_clears_bits_and_erasing_sets_a_block() {
    let (board, store) = board();
    write(&board, BLOCK + 3, &[0x10, 0xf8]);
    assert_eq!(read(&board, 0), 0x80);
    write(&board, 0, &[0xff]);
    assert_eq!((read(&board, BLOCK + 3), stored(&store, BLOCK + 3)), (0x58, 0x58));
    write(&board, BLOCK + 9, &[0x20, 0xd0, 0xff]);
    assert_eq!(
        [BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK].map(|at| read(&board, at)),
        [0x5a, 0xff, 0xff, 0x5a]
    );
    assert_eq!((stored(&store, BLOCK), stored(&store, 2 * BLOCK)), (0xff, 0x5a));
    write(&board, 0, &[0x20, 0x00]);
    assert_eq!(read(&board, 0) & 0x30, 0x30, "not confirmed");
    write(&board, 0, &[0xff]);
    assert_eq!(read(&board, 0), 0x5a);
}

#[test]
fn a_buffer_is_programmed_at_once() {
    let (board, store) = board();
    write(&board, 0, &[0x20, 0xd0, 0xe8]);
    assert_eq!(read(&board, 0), 0x80);
    write(&board, 0, &[2]);
    for (at, value) in [(0, 1), (1, 2), (2, 3)] {
        write(&board, at, &[value]);
    }
    assert_eq!(stored(&store, 0), 0xff, "not yet");
    write(&board, 0, &[0xd0, 0xff]);
    assert_eq!([0, 1, 2, 3].map(|at| read(&board, at)), [1, 2, 3, 0xff]);
}

#[test]
fn a_restore_reaches_the_file() {
    let (first, _) = board();
    write(&first, 1, &[0x40, 0x02, 0x40]);
    let saved = save(&first);
    let (second, store) = board();
    restore(&second, &saved).unwrap();
    assert_eq!(stored(&store, 1), 0x02);
    write(&second, 2, &[0x08]);
    assert_eq!(stored(&store, 2), 0x08, "in the middle of a command");
    second.devices.iter().for_each(|device| device.reset());
    assert_eq!((read(&second, 1), read(&second, 2)), (0x02, 0x08));
}

proptest! {
    /// Whatever is written, file and chip are the same.
    #[test]
    fn noise_stays_inside(writes in prop::collection::vec(
        (0..SIZE as u64, prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(
            vec![0x10, 0x20, 0xd0, 0xe8, 0x50, 0x70, 0x90, 0xff, 0])], 1..9)), 1..200)
    ) {
        let (board, store) = board();
        for (at, data) in writes {
            board.mmio.write(AT + at, &data);
            board.mmio.read(AT + at, &mut [0; 8]);
        }
        let saved = save(&board);
        restore(&board, &saved).unwrap();
        board.devices.iter().for_each(|device| device.reset());
        for at in 0..SIZE {
            prop_assert_eq!(read(&board, at), stored(&store, at));
        }
    }
}
