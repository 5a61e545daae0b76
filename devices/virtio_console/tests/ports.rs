//! Ports from the driver's side.

use byte_stream::{Input, Output};
use std::sync::{Arc, Mutex};
use virtio::{
    VirtioDevice,
    fake::{Board, buffer},
    feature::VERSION_1,
};
use virtio_console::{FROM_DRIVER, PortConfig, TO_DRIVER, VirtioConsole, feature};

const CONFIG: u64 = 0x2000;
const OPEN: u16 = 6;

/// A carrier that takes no more than it has room for.
#[derive(Default)]
struct Carrier {
    got: Mutex<Vec<u8>>,
    room: Mutex<Option<usize>>,
    space: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl Carrier {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.got.lock().unwrap()).into_owned()
    }

    fn give_room(&self, room: usize) {
        *self.room.lock().unwrap() = Some(room);
        if let Some(callback) = &*self.space.lock().unwrap() {
            callback();
        }
    }
}

impl Output for Carrier {
    fn write(&self, bytes: &[u8]) {
        self.got.lock().unwrap().extend_from_slice(bytes);
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock().unwrap();
        let taken = room.unwrap_or(usize::MAX).min(bytes.len());
        *room = room.map(|room| room - taken);
        self.write(&bytes[..taken]);
        taken
    }

    fn on_space(&self, callback: Box<dyn Fn() + Send + Sync>) {
        *self.space.lock().unwrap() = Some(callback);
    }
}

fn port(name: Option<&str>, carrier: &Arc<Carrier>) -> PortConfig {
    PortConfig { name: name.map(str::to_owned), output: carrier.clone(), peer: false }
}

fn terminal() -> (Board, Arc<VirtioConsole>, Arc<Carrier>) {
    let carrier = Arc::new(Carrier::default());
    let console = VirtioConsole::terminal(port(None, &carrier));
    let board = Board::new(console.clone());
    board.start(VERSION_1 | feature::SIZE | feature::EMERG_WRITE, true);
    (board, console, carrier)
}

/// A console, and a port with a name.
fn two() -> (Board, Arc<VirtioConsole>, [Arc<Carrier>; 2]) {
    let carriers = [Arc::new(Carrier::default()), Arc::new(Carrier::default())];
    let ports = vec![port(None, &carriers[0]), port(Some("org.example.0"), &carriers[1])];
    let console = VirtioConsole::multiport(ports);
    let board = Board::new(console.clone());
    board.start(VERSION_1 | feature::MULTIPORT | feature::EMERG_WRITE, true);
    (board, console, carriers)
}

fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
    [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn tell(board: &Board, port: u32, event: u16, value: u16) {
    board.call(FROM_DRIVER, &message(port, event, value), 0).unwrap();
}

fn told(board: &Board) -> Vec<u8> {
    board.call(TO_DRIVER, &[], 64).unwrap()
}

/// The driver learns which ports there are.
fn introduce(board: &Board) {
    tell(board, 0, 0, 1);
    assert_eq!(told(board), message(0, 1, 1));
    assert_eq!(told(board), message(1, 1, 1));
}

#[test]
fn bytes_go_both_ways() {
    let (board, console, carrier) = terminal();
    board.call(1, b"hello", 0).unwrap();
    assert_eq!(carrier.text(), "hello");
    let input = console.input(0);
    assert_eq!(input.receive(b"keys"), 4);
    assert_eq!(board.call(0, &[], 3).unwrap(), b"key");
    assert_eq!(board.call(0, &[], 3).unwrap(), b"s");
    // A buffer that waits for bytes.
    board.submit(0, &[], 16);
    input.receive(b"later");
    board.until("bytes", || board.used(0) == 3);
    let mut bytes = [0; 5];
    board.memory.read(buffer(0) + 0x1000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"later");
    // Before there is any driver, too.
    board.set_status(0);
    board.write(board.bar + CONFIG + 8, u64::from(b'!'), 4);
    assert_eq!(carrier.text(), "hello!");
}

#[test]
fn a_guest_that_does_not_read_holds_its_sender_back() {
    let (board, console, _) = terminal();
    let input = console.input(0);
    let called = Arc::new(Mutex::new(0));
    let count = called.clone();
    input.on_room(Box::new(move || *count.lock().unwrap() += 1));
    let all: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let mut at = input.receive(&all);
    assert!(at > 4096 && at < all.len());
    assert_eq!((input.receive(&all[at..]), *called.lock().unwrap()), (0, 0));
    let mut got = Vec::new();
    while got.len() < all.len() {
        got.extend(board.call(0, &[], 0x1000).unwrap());
        at += input.receive(&all[at..]);
    }
    assert!(got == all && *called.lock().unwrap() > 0);
}

#[test]
fn a_carrier_without_room_holds_the_guest_back() {
    let (board, _, carrier) = terminal();
    carrier.give_room(3);
    board.submit(1, b"abcdefgh", 0);
    board.until("a part", || carrier.text() == "abc");
    assert_eq!(board.used(1), 0);
    // It goes on where it was, elsewhere too.
    let parts = board.save();
    let (other, _, second) = terminal();
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    second.give_room(2);
    other.resume();
    other.until("more", || second.text() == "de");
    second.give_room(10);
    other.until("the rest", || other.used(1) == 1);
    assert_eq!(second.text(), "defgh");
}

#[test]
fn the_driver_is_told_of_ports() {
    let (board, console, carriers) = two();
    assert_eq!(board.read(board.bar + CONFIG + 4, 4), 2);
    console.resize(80, 25);
    introduce(&board);
    tell(&board, 0, 3, 1);
    assert_eq!(told(&board), message(0, 4, 1), "a console");
    let size = [message(0, 5, 0), vec![80, 0, 25, 0]].concat();
    assert_eq!(told(&board), size);
    tell(&board, 1, 3, 1);
    assert_eq!(told(&board), [message(1, 7, 1), b"org.example.0".to_vec()].concat());
    // Someone comes to the other end, and a program opens it.
    let input = console.input(1);
    input.peer(true);
    assert_eq!(told(&board), message(1, OPEN, 1));
    input.receive(b"ping");
    board.submit(4, &[], 16);
    tell(&board, 1, OPEN, 1);
    board.until("bytes", || board.used(4) == 1);
    board.call(5, b"pong", 0).unwrap();
    assert_eq!((carriers[1].text().as_str(), carriers[0].text().as_str()), ("pong", ""));
    input.peer(false);
    assert_eq!(told(&board), message(1, OPEN, 0));
    // Only the last size counts.
    console.resize(100, 30);
    console.resize(132, 43);
    assert_eq!(told(&board)[8..], [132, 0, 43, 0]);
}

#[test]
fn bytes_wait_for_a_port_that_is_closed() {
    let (board, console, _) = two();
    introduce(&board);
    tell(&board, 1, 3, 1);
    console.input(1).receive(b"early");
    board.submit(4, &[], 16);
    tell(&board, 9, OPEN, 1);
    tell(&board, 1, 77, 1);
    assert_eq!(board.used(4), 0);
    assert_eq!(console.counters()[3].1, 2, "messages that nobody understands");
    tell(&board, 1, OPEN, 1);
    board.until("bytes", || board.used(4) == 1);
}

#[test]
fn a_restored_driver_hears_who_is_there() {
    let (board, console, _) = two();
    introduce(&board);
    tell(&board, 1, 3, 1);
    console.input(1).peer(true);
    console.input(1).receive(b"kept");
    let parts = board.save();
    let (other, _, _) = two();
    board.copy_memory_to(&other);
    other.restore(&parts).unwrap();
    other.resume();
    // The name and the open end had not been read; nobody is there any more.
    assert_eq!(told(&other)[4], 7);
    assert_eq!(told(&other), message(1, OPEN, 0));
    tell(&other, 1, OPEN, 1);
    assert_eq!(other.call(4, &[], 16).unwrap(), b"kept");
    let (board, _, _) = terminal();
    assert!(board.restore(&parts).is_err(), "another kind of console");
}

#[test]
fn broken_control_messages_need_a_reset() {
    let (board, _, _) = two();
    assert_eq!(board.call(FROM_DRIVER, &[0; 7], 0), None);
    let (board, _, _) = two();
    tell(&board, 0, 0, 1);
    assert_eq!(board.call(TO_DRIVER, &[], 7), None);
}

#[test]
fn noise_on_all_queues_breaks_nothing() {
    let (board, console, _) = two();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..2000 {
        let random = next();
        let queue = (random % 6) as u16;
        let bytes = next().to_le_bytes();
        // Small numbers, so that messages mean something.
        let mask = [3, 0, 0, 0, 7, 0, 1, 0];
        let given: Vec<u8> = bytes.iter().zip(mask).map(|(b, m)| b & m).collect();
        match random >> 32 & 3 {
            0 => board.submit(queue, &given, 0),
            1 => board.submit(queue, &[], (random >> 40 & 0xff) as u32),
            2 => board.submit(queue, &given[..4], 32),
            _ => {
                console.input((random >> 40 & 3) as usize).peer(random >> 50 & 1 == 0);
                console.input((random >> 41 & 3) as usize).receive(&given);
            }
        }
        if board.status() & 0x40 != 0 {
            board.set_status(0);
            board.clear_rings();
            board.start(VERSION_1 | feature::MULTIPORT, true);
        }
    }
    board.pause();
    board.resume();
}
