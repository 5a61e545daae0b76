//! The controller as drivers use it, and as hostile guests do.

use device::{
    Device, LineRef, PowerEvent, Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use display::{Buttons, Key, Keyboard, Pointer, PointerEvent};
use i8042::I8042;
use proptest::prelude::*;
use std::sync::Arc;

struct Board {
    wiring: Wiring,
    i8042: Arc<I8042>,
    recorder: Arc<Recorder>,
    lines: Vec<Arc<Recorder>>,
}

fn board(connected: bool) -> Board {
    let recorder = Arc::new(Recorder::default());
    let mut wiring = wiring(&FakeTime::default(), &recorder);
    let lines: Vec<_> = (0..16).map(|_| Arc::new(Recorder::default())).collect();
    wiring.irqs = lines.iter().map(|line| line.clone() as LineRef).collect();
    let i8042 = i8042::build(connected, &mut wiring);
    Board { wiring, i8042, recorder, lines }
}

impl Board {
    fn out(&self, port: u16, value: u8) {
        self.wiring.pio.write(port, &[value]);
    }
    fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.wiring.pio.read(port, &mut data);
        data[0]
    }
    fn command(&self, value: u8) {
        self.out(0x64, value);
    }
    fn set_command_byte(&self, value: u8) {
        self.command(0x60);
        self.out(0x60, value);
    }
    /// All that there is to read: the mouse's bytes with 0x100 added.
    fn drain(&self) -> Vec<u16> {
        let mut bytes = Vec::new();
        while bytes.len() < 1000 {
            let status = self.inb(0x64);
            if status & 1 == 0 {
                break;
            }
            bytes.push(u16::from(self.inb(0x60)) | u16::from(status & 0x20) << 3);
        }
        bytes
    }
    fn ask(&self, command: u8) -> Vec<u16> {
        self.command(command);
        self.drain()
    }
    fn ask_mouse(&self, bytes: &[u8]) -> Vec<u16> {
        for byte in bytes {
            self.command(0xd4);
            self.out(0x60, *byte);
        }
        self.drain()
    }
    fn press(&self, code: u16) {
        let key = Key::from_code(code).unwrap();
        self.i8042.key(key, true);
        self.i8042.key(key, false);
    }
}

/// What Linux's i8042 driver does to find the controller and the mouse's port
/// (drivers/input/serio/i8042.c: i8042_controller_check, i8042_check_aux).
#[test]
fn linux_finds_both_ports() {
    let board = board(true);
    assert!(board.drain().is_empty());
    assert_eq!(board.ask(0xaa), [0x55]);
    let command_byte = board.ask(0x20)[0] as u8;
    assert_ne!(command_byte & 0x40, 0, "it translates");
    board.set_command_byte(command_byte | 0x10 & !1);
    // The loop: what goes in for the mouse comes out as the mouse's.
    board.command(0xd3);
    board.out(0x60, 0x5a);
    assert_eq!(board.drain(), [0x15a]);
    assert_eq!(board.ask(0xa9), [0]);
    board.command(0xa7);
    assert_ne!(board.ask(0x20)[0] & 0x20, 0);
    board.command(0xa8);
    assert_eq!(board.ask(0x20)[0] & 0x20, 0);
    // And the loop again, with its interrupt.
    board.set_command_byte(0x42);
    board.lines[12].take_edges();
    board.command(0xd3);
    board.out(0x60, 0xa5);
    assert_eq!((board.lines[12].take_edges(), board.inb(0x64) & 0x21), (1, 0x21));
    assert_eq!(board.drain(), [0x1a5]);
    assert!(!board.lines[12].level());
}

/// drivers/input/keyboard/atkbd.c: atkbd_probe, atkbd_activate.
#[test]
fn linux_finds_the_keyboard() {
    let board = board(true);
    board.set_command_byte(0x45);
    for (byte, want) in [
        (0xf2, &[0xfa, 0xab, 0x41][..]),
        (0xed, &[0xfa]),
        (0x00, &[0xfa]),
        (0xf3, &[0xfa]),
        (0x00, &[0xfa]),
        (0xf4, &[0xfa]),
    ] {
        board.out(0x60, byte);
        assert_eq!(board.drain(), want, "{byte:#x}");
    }
    board.lines[1].take_edges();
    board.press(30);
    board.press(103);
    assert_eq!(board.drain(), [0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
    assert_eq!(board.lines[1].take_edges(), 6, "an edge for each byte");
    // Without translation it is set 2, as the keyboard sends it.
    board.set_command_byte(0x05);
    board.press(30);
    assert_eq!(board.drain(), [0x1c, 0xf0, 0x1c]);
    board.set_command_byte(0x55);
    board.press(30);
    assert!(board.drain().is_empty(), "the port is off");
    board.command(0xae);
    assert_eq!(board.drain(), [0x1e, 0x9e]);
}

/// drivers/input/mouse/psmouse-base.c: psmouse_probe, intellimouse_detect.
#[test]
fn linux_finds_the_mouse() {
    let board = board(true);
    board.set_command_byte(0x47);
    assert_eq!(board.ask_mouse(&[0xff]), [0x1fa, 0x1aa, 0x100]);
    assert_eq!(board.ask_mouse(&[0xf2]), [0x1fa, 0x100]);
    board.ask_mouse(&[0xf3, 200, 0xf3, 100, 0xf3, 80]);
    assert_eq!(board.ask_mouse(&[0xf2]), [0x1fa, 0x103]);
    assert!(!Pointer::listens(&*board.i8042));
    assert_eq!(board.ask_mouse(&[0xf4]), [0x1fa]);
    assert!(Pointer::listens(&*board.i8042) && !board.i8042.is_absolute());
    let buttons = Buttons { right: true, ..Buttons::default() };
    board.i8042.point(PointerEvent { dx: 2, dy: 1, wheel: -1, buttons, ..Default::default() });
    assert_eq!(board.drain(), [0x12a, 0x102, 0x1ff, 0x101]);
    // Keys come before what the mouse has to say.
    board.i8042.point(PointerEvent { dx: 1, ..Default::default() });
    board.press(30);
    assert_eq!(board.drain(), [0x108, 0x1e, 0x9e, 0x101, 0x100, 0x100]);
}

#[test]
fn the_reset_line_is_there() {
    for connected in [false, true] {
        let board = board(connected);
        board.command(0xfe);
        assert_eq!(board.recorder.take_power(), [PowerEvent::Reset]);
        board.command(0xd1);
        board.out(0x60, 0xfe);
        assert_eq!(board.recorder.take_power(), [PowerEvent::Reset]);
        board.command(0xff);
        assert!(board.recorder.take_power().is_empty());
        board.command(0xdf);
        assert_eq!(board.ask(0xd0)[0] & 2, 2, "A20");
        board.command(0xdd);
        assert_eq!(board.ask(0xd0)[0] & 2, 0);
    }
}

#[test]
fn nothing_connected_does_not_answer() {
    let board = board(false);
    assert_eq!(board.ask(0xa9), [1], "no second port");
    board.command(0xd3);
    board.out(0x60, 0x5a);
    assert_eq!(board.drain(), [0x5a], "as the keyboard's");
    board.out(0x60, 0xf2);
    assert_eq!((board.inb(0x64) & 0x41, board.inb(0x60)), (0x41, 0xfe));
    board.press(30);
    board.i8042.point(PointerEvent { dx: 1, ..Default::default() });
    assert!(board.drain().is_empty() && !Pointer::listens(&*board.i8042));
}

#[test]
fn a_saved_keyboard_goes_on() {
    let first = board(true);
    first.set_command_byte(0x47);
    first.ask_mouse(&[0xf4]);
    first.press(30);
    first.i8042.point(PointerEvent { dx: 900, ..Default::default() });
    first.inb(0x60);
    let saved = fake::save(&first.wiring);
    let second = board(true);
    fake::restore(&second.wiring, &saved).unwrap();
    assert!(second.lines[1].level());
    assert_eq!(second.lines[1].take_edges(), 0);
    assert_eq!(fake::save(&second.wiring), saved);
    assert_eq!(second.drain(), first.drain());
    assert!(fake::restore(&board(false).wiring, &saved).is_err());
    second.i8042.reset();
    assert_eq!((second.drain(), second.ask(0x20)), (vec![], vec![0x65]));
}

#[derive(Clone, Debug)]
enum Act {
    Data(u8),
    Command(u8),
    Read,
    Status,
    Key(u16, bool),
    Point(i32, i32, i32, u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => any::<u8>().prop_map(Act::Data),
        3 => any::<u8>().prop_map(Act::Command),
        1 => Just(Act::Command(0xd4)),
        2 => Just(Act::Read),
        1 => Just(Act::Status),
        2 => (1u16..0x100, any::<bool>()).prop_map(|(code, down)| Act::Key(code, down)),
        2 => (any::<i32>(), any::<i32>(), any::<i32>(), any::<u8>())
            .prop_map(|(dx, dy, wheel, buttons)| Act::Point(dx, dy, wheel, buttons)),
    ]
}

proptest! {
    #[test]
    fn no_guest_harms_it(connected: bool, acts in proptest::collection::vec(act(), 1..300)) {
        let board = board(connected);
        for act in acts {
            match act {
                Act::Data(value) => board.out(0x60, value),
                Act::Command(value) => board.command(value),
                Act::Read => drop(board.inb(0x60)),
                Act::Status => drop(board.inb(0x64)),
                Act::Key(code, down) => {
                    if let Some(key) = Key::from_code(code) {
                        board.i8042.key(key, down);
                    }
                }
                Act::Point(dx, dy, wheel, b) => {
                    let buttons = Buttons { left: b & 1 != 0, middle: b & 2 != 0, right: b & 4 != 0 };
                    board.i8042.point(PointerEvent { dx, dy, wheel, buttons, ..Default::default() });
                }
            }
        }
        let saved = fake::save(&board.wiring);
        let other = self::board(connected);
        fake::restore(&other.wiring, &saved).unwrap();
        prop_assert_eq!(fake::save(&other.wiring), saved);
        let status = board.inb(0x64);
        let byte = board.inb(0x60);
        prop_assert_eq!((other.inb(0x64), other.inb(0x60)), (status, byte));
        // Whatever was done, the self test answers once all that waits was read.
        board.set_command_byte(0x30);
        board.drain();
        prop_assert_eq!(board.ask(0xaa), [0x55]);
    }
}
