//! Keys and places from the driver's side.

use display::{Buttons, Key, Keyboard, Pointer, PointerEvent};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use virtio::{VirtioDevice, fake::Board, feature::VERSION_1};
use virtio_input::{EVENTS, Kind, STATUS, VirtioInput};

const CONFIG: u64 = 0x2000;

fn device(kind: Kind) -> (Board, Arc<VirtioInput>) {
    let input = VirtioInput::new(kind);
    let board = Board::new(input.clone());
    (board, input)
}

fn started(kind: Kind) -> (Board, Arc<VirtioInput>) {
    let (board, input) = device(kind);
    board.start(VERSION_1, true);
    (board, input)
}

/// The next event: type, code, value.
fn next(board: &Board) -> (u16, u16, i32) {
    let bytes = board.call(EVENTS, &[], 8).unwrap();
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (half(0), half(2), i32::from_le_bytes(bytes[4..8].try_into().unwrap()))
}

fn key(code: u16) -> Key {
    Key::from_code(code).unwrap()
}

#[test]
fn keys_go_down_and_up_once() {
    let (board, input) = started(Kind::Keyboard);
    input.key(key(30), true);
    input.key(key(30), true);
    input.key(key(30), false);
    input.key(key(30), false);
    let events: Vec<_> = (0..4).map(|_| next(&board)).collect();
    assert_eq!(events, [(1, 30, 1), (0, 0, 0), (1, 30, 0), (0, 0, 0)]);
    board.submit(EVENTS, &[], 8);
    assert_eq!(board.used(EVENTS), 4);
    board.call(STATUS, &[0x11, 0, 1, 0, 1, 0, 0, 0], 0).unwrap();
    assert_eq!(input.counters()[2], ("status events", 1));
}

#[test]
fn a_tablet_tells_places_and_buttons() {
    let (board, input) = started(Kind::Tablet);
    let buttons = Buttons { left: true, ..Buttons::default() };
    let event = PointerEvent { x: 100, y: u16::MAX, wheel: -1, buttons, ..Default::default() };
    input.point(event);
    let events: Vec<_> = (0..5).map(|_| next(&board)).collect();
    assert_eq!(events, [(3, 0, 100), (3, 1, 0x7fff), (2, 8, -1), (1, 0x110, 1), (0, 0, 0)]);
    input.point(PointerEvent { x: 1, ..Default::default() });
    let events: Vec<_> = (0..4).map(|_| next(&board)).collect();
    assert_eq!(events, [(3, 0, 1), (3, 1, 0), (1, 0x110, 0), (0, 0, 0)]);
    assert!(input.is_absolute());
}

#[test]
fn who_does_not_listen_gets_nothing() {
    let (board, input) = device(Kind::Keyboard);
    assert!(!Keyboard::listens(&*input));
    input.key(key(30), true);
    board.start(VERSION_1, true);
    assert!(Keyboard::listens(&*input));
    input.key(key(31), true);
    assert_eq!(next(&board), (1, 31, 1));
    board.set_status(0);
    assert!(!Keyboard::listens(&*input));
}

#[test]
fn the_configuration_answers_selections() {
    let (board, _) = device(Kind::Keyboard);
    board.write(board.bar + CONFIG, 1, 1);
    board.write(board.bar + CONFIG + 1, 0, 1);
    let len = board.read(board.bar + CONFIG + 2, 1);
    let name: Vec<u8> =
        (0..len).map(|at| board.read(board.bar + CONFIG + 8 + at, 1) as u8).collect();
    assert_eq!(name, b"Sarang virtio keyboard");
    board.write(board.bar + CONFIG, 0x7777, 2);
    assert_eq!(board.read(board.bar + CONFIG + 2, 1), 0);
    assert_eq!(board.read(board.bar + CONFIG + 0xff8, 8), 0);
}

/// What is down after all that waits was taken.
fn down_at_last(board: &Board) -> std::collections::BTreeSet<u16> {
    let mut down = std::collections::BTreeSet::new();
    let mut taken = 0;
    loop {
        let before = board.used(EVENTS);
        board.submit(EVENTS, &[], 8);
        if taken > 500 {
            // More than fit have come. A busy machine's thread may be late with what is left.
            let limit = Instant::now() + Duration::from_secs(1);
            while board.used(EVENTS) == before {
                if Instant::now() > limit {
                    return down;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        board.until("an event", || board.used(EVENTS) != before);
        let mut bytes = [0; 8];
        board.memory.read(virtio::fake::buffer(EVENTS) + 0x1000, &mut bytes).unwrap();
        let code = u16::from_le_bytes([bytes[2], bytes[3]]);
        match (bytes[0], bytes[4]) {
            (1, 1) => assert!(down.insert(code)),
            (1, 0) => assert!(down.remove(&code)),
            _ => {}
        }
        taken += 1;
    }
}

#[test]
fn no_key_stays_down_when_there_is_no_room() {
    let (board, input) = started(Kind::Keyboard);
    for _ in 0..200 {
        input.key(key(30), true);
        input.key(key(30), false);
    }
    input.key(key(42), true);
    for _ in 0..200 {
        input.key(key(31), true);
        input.key(key(31), false);
    }
    input.key(key(42), false);
    let down = down_at_last(&board);
    assert!(down.is_empty(), "{down:?}");
}

#[test]
fn no_button_stays_down_when_there_is_no_room() {
    // A place has three events, so that there is room for no more, for one and for two.
    for wheels in 0..3 {
        let (board, input) = started(Kind::Tablet);
        let held = PointerEvent {
            buttons: Buttons { left: true, ..Buttons::default() },
            ..PointerEvent::default()
        };
        input.point(held);
        (0..wheels).for_each(|_| input.point(PointerEvent { wheel: 1, ..held }));
        (0..200).for_each(|x| input.point(PointerEvent { x, ..held }));
        input.point(PointerEvent::default());
        // What could not be told as it went down is told once it is pressed again.
        let right = Buttons { right: true, ..Buttons::default() };
        input.point(PointerEvent { buttons: right, ..PointerEvent::default() });
        let down = down_at_last(&board);
        assert!(down.is_empty(), "{wheels}: {down:?}");
        // Its first event is in the buffer that is there already.
        input.point(PointerEvent { buttons: right, ..PointerEvent::default() });
        let told: Vec<_> = (0..3).map(|_| next(&board)).collect();
        assert!(told.contains(&(1, 0x111, 1)), "{wheels}: {told:?}");
    }
}

#[test]
fn what_went_up_without_room_is_saved() {
    let (board, input) = started(Kind::Keyboard);
    input.key(key(42), true);
    for _ in 0..200 {
        input.key(key(31), true);
        input.key(key(31), false);
    }
    input.key(key(42), false);
    let parts = board.save();
    let (other, _) = started(Kind::Keyboard);
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    other.resume();
    let down = down_at_last(&other);
    assert!(down.is_empty(), "{down:?}");
}

#[test]
fn a_key_that_is_held_again_stays_down() {
    let (board, input) = started(Kind::Keyboard);
    input.key(key(42), true);
    for _ in 0..200 {
        input.key(key(31), true);
        input.key(key(31), false);
    }
    input.key(key(42), false);
    input.key(key(42), true);
    assert_eq!(down_at_last(&board).into_iter().collect::<Vec<_>>(), [42]);
}

#[test]
fn what_waits_is_saved() {
    let (board, input) = started(Kind::Keyboard);
    input.key(key(30), true);
    assert_eq!(next(&board), (1, 30, 1));
    let parts = board.save();
    let (other, restored) = started(Kind::Keyboard);
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    other.resume();
    assert_eq!(next(&other), (0, 0, 0));
    restored.key(key(30), true);
    restored.key(key(30), false);
    assert_eq!(next(&other), (1, 30, 0));
    let (tablet, _) = started(Kind::Tablet);
    assert!(tablet.restore(&parts).is_err());
}

#[test]
fn a_buffer_without_room_needs_a_reset() {
    let (board, input) = started(Kind::Keyboard);
    input.key(key(30), true);
    assert_eq!(board.call(EVENTS, &[], 7), None);
}

#[test]
fn noise_on_its_queues_breaks_nothing() {
    for seed in 1..100 {
        let (board, input) = started(if seed % 2 == 0 { Kind::Keyboard } else { Kind::Tablet });
        for code in 30..34 {
            input.key(key(code), true);
            board.noise(seed << 3 | u64::from(code), VERSION_1);
        }
        board.start_over(VERSION_1);
        assert!(board.call(STATUS, &[0; 8], 0).is_some(), "{seed}");
        if seed % 2 == 0 {
            input.key(key(40), true);
            assert_eq!(next(&board), (1, 40, 1), "{seed}");
        }
    }
}
