//! Connections from both sides, their credit, their ends.

use crate::common::*;
use std::io::{Read, Write};
use virtio::fake::buffer;
use virtio_vsock::{
    CONNECTIONS_MAX, EVENT,
    connection::{ROOM as HOST_ROOM, side},
    packet::{Header, Op},
};

const PORTS: Ports = Ports { guest: 5000, host: 1024 };

#[test]
fn the_configuration_has_the_guests_address() {
    let world = World::new("config");
    assert_eq!(world.board.read(world.board.bar + 0x2000, 8), u64::from(CID));
    assert_eq!(world.board.read(world.board.bar + 0x2004, 4), 0);
}

#[test]
fn a_guest_talks_to_a_program_of_the_host() {
    let world = World::new("out");
    let mut host = world.connect(PORTS);
    world.say(PORTS, Op::Data, 0, 0, b"from the guest");
    assert_eq!(read_exact(&mut host, 14), b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (header, data) = world.hear();
    assert_eq!((header.op, &data[..]), (Op::Data, &b"from the host"[..]));
    assert_eq!((header.fwd_cnt, header.buf_alloc), (14, HOST_ROOM));
    assert_eq!(world.counter("connections by the guest"), 1);
    assert_eq!((world.counter("bytes to the guest"), world.counter("bytes from the guest")), {
        (13, 14)
    });
}

#[test]
fn nobody_who_listens_is_a_refusal() {
    let world = World::new("nobody");
    world.say(PORTS, Op::Request, 0, 0, &[]);
    let (answer, _) = world.hear();
    assert_eq!((answer.op, answer.src_port, answer.dst_port), (Op::Reset, 1024, 5000));
    assert_eq!(world.counter("connections refused"), 1);
    assert_eq!(world.counter("connections now"), 0);
}

#[test]
fn a_program_of_the_host_talks_to_the_guest() {
    let world = World::new("in");
    // What follows at once is kept.
    let mut client = world.client("CONNECT 52\nhello");
    let (request, _) = world.hear();
    assert_eq!((request.op, request.dst_port), (Op::Request, 52));
    let ports = Ports { guest: 52, host: request.src_port };
    world.say(ports, Op::Response, 0, 0, &[]);
    let ok = format!("OK {}\n", ports.host);
    assert_eq!(read_exact(&mut client, ok.len()), ok.as_bytes());
    assert_eq!(world.hear().1, b"hello");
    world.say(ports, Op::Data, 0, 5, b"and you");
    assert_eq!(read_exact(&mut client, 7), b"and you");
    // The guest closes: everything is through, and the port is free.
    world.say(ports, Op::Shutdown, side::BOTH, 5, &[]);
    assert_eq!(world.hear().0.op, Op::Reset);
    assert!(read_all(&mut client).is_empty());
    assert_eq!(world.counter("connections now"), 0);
}

#[test]
fn a_guest_may_refuse_and_a_client_may_go() {
    let world = World::new("refuse");
    let mut client = world.client("CONNECT 52\n");
    let (request, _) = world.hear();
    let ports = Ports { guest: 52, host: request.src_port };
    world.say(ports, Op::Reset, 0, 0, &[]);
    assert!(read_all(&mut client).is_empty());
    assert!(read_all(&mut world.client("GET / HTTP/1.1\n")).is_empty());
    // One that goes before the answer.
    let client = world.client("CONNECT 53\n");
    assert_eq!(world.hear().0.op, Op::Request);
    drop(client);
    assert_eq!(world.hear().0.op, Op::Reset);
    assert_eq!(world.counter("connections now"), 0);
}

#[test]
fn without_a_driver_clients_are_closed() {
    let world = World::stopped("early");
    assert!(read_all(&mut world.client("CONNECT 52\n")).is_empty());
    world.start();
    let _client = world.client("CONNECT 52\n");
    assert_eq!(world.hear().0.op, Op::Request);
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let world = World::new("credit");
    let mut host = world.connect(PORTS);
    let text: Vec<u8> = (0..ROOM as usize + 5000).map(|i| (i / 7) as u8).collect();
    let writer = {
        let (mut host, text) = (host.try_clone().unwrap(), text.clone());
        std::thread::spawn(move || host.write_all(&text).unwrap())
    };
    let mut got = Vec::new();
    while got.len() < ROOM as usize {
        got.extend(world.hear().1);
    }
    assert_eq!(got.len(), ROOM as usize, "and not a byte more");
    // It asks once, and an answer without news is none.
    assert_eq!(world.receive().0.op, Op::CreditRequest);
    world.say(PORTS, Op::CreditUpdate, 0, 0, &[]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!world.heard());
    world.say(PORTS, Op::CreditUpdate, 0, 100, &[]);
    let (header, data) = world.hear();
    assert_eq!((header.op, data.len()), (Op::Data, 100));
    got.extend(data);
    world.say(PORTS, Op::CreditUpdate, 0, ROOM, &[]);
    while got.len() < text.len() {
        got.extend(world.hear().1);
    }
    writer.join().unwrap();
    assert!(got == text);
    host.write_all(b"more").unwrap();
    assert_eq!(world.hear().1, b"more");
}

/// Says so much of a pattern as the device has told that it has room for.
struct Sender {
    sent: u32,
    taken: u32,
}

impl Sender {
    fn learn(&mut self, header: &Header) {
        self.taken = header.fwd_cnt;
    }
    fn room(&self) -> u32 {
        HOST_ROOM - self.sent.wrapping_sub(self.taken)
    }
    fn send(&mut self, world: &World, len: u32) {
        let data: Vec<u8> = (0..len).map(|i| ((self.sent + i) / 3) as u8).collect();
        world.say(PORTS, Op::Data, 0, 0, &data);
        self.sent += len;
    }
}

#[test]
fn a_guest_that_keeps_to_its_credit_loses_nothing_to_a_slow_reader() {
    const ALL: u32 = 3 << 20;
    let world = World::new("slow");
    let mut host = world.connect(PORTS);
    let mut sender = Sender { sent: 0, taken: 0 };
    let reader = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let got = read_all(&mut host);
        let right = (0..ALL).map(|i| (i / 3) as u8).eq(got.iter().copied());
        assert!(got.len() == ALL as usize && right, "{} bytes", got.len());
        host
    });
    while sender.sent < ALL {
        while sender.room() == 0 || world.heard() {
            sender.learn(&world.receive().0);
        }
        let len = sender.room().min(3000).min(ALL - sender.sent);
        sender.send(&world, len);
    }
    world.say(PORTS, Op::Shutdown, side::SEND, 0, &[]);
    let mut host = reader.join().unwrap();
    // The other direction is still open.
    host.write_all(b"thanks").unwrap();
    assert_eq!(world.hear().1, b"thanks");
    drop(host);
    let (end, _) = world.hear();
    assert_eq!((end.op, end.flags & side::SEND), (Op::Shutdown, side::SEND));
    world.say(PORTS, Op::Reset, 0, 0, &[]);
    assert_eq!(world.counter("connections now"), 0);
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let world = World::new("exceed");
    let _host = world.connect(PORTS);
    // The host's socket takes some, and then nothing.
    let mut sent = 0u64;
    while !world.heard() || world.receive().0.op != Op::Reset {
        world.say(PORTS, Op::Data, 0, 0, &[7; 4000]);
        sent += 4000;
        assert!(sent < 64 << 20, "an endless socket");
    }
    assert_eq!(world.counter("connections now"), 0);
    assert!(world.counter("packets out of place") > 0);
}

#[test]
fn what_was_sent_before_a_close_still_arrives() {
    let world = World::new("orphan");
    let mut host = world.connect(PORTS);
    let mut sender = Sender { sent: 0, taken: 0 };
    while sender.room() > 0 {
        while world.heard() {
            sender.learn(&world.receive().0);
        }
        let len = sender.room().min(4000);
        sender.send(&world, len);
    }
    // The guest's program closes, and its kernel waits only so long.
    world.say(PORTS, Op::Shutdown, side::BOTH, 0, &[]);
    world.say(PORTS, Op::Reset, 0, 0, &[]);
    assert_eq!(world.counter("connections now"), 1);
    // The ports may be used again at once.
    let mut second = world.connect(PORTS);
    world.say(PORTS, Op::Data, 0, 0, b"second");
    assert_eq!(read_exact(&mut second, 6), b"second");
    let mut got = Vec::new();
    let _ = host.read_to_end(&mut got);
    assert!(got.iter().enumerate().all(|(i, byte)| *byte == (i / 3) as u8));
}

#[test]
fn an_orphan_is_emptied() {
    let world = World::new("emptied");
    let mut host = world.connect(PORTS);
    let mut sender = Sender { sent: 0, taken: 0 };
    while sender.room() > 0 {
        while world.heard() {
            sender.learn(&world.receive().0);
        }
        let len = sender.room().min(4000);
        sender.send(&world, len);
    }
    world.say(PORTS, Op::Shutdown, side::BOTH, 0, &[]);
    world.say(PORTS, Op::Reset, 0, 0, &[]);
    let got = read_all(&mut host);
    assert_eq!(got.len(), sender.sent as usize);
    world.board.until("its end", || world.counter("connections now") == 0);
}

#[test]
fn a_program_of_the_host_that_ends_is_told() {
    let world = World::new("ends");
    let mut host = world.connect(PORTS);
    host.write_all(b"last words").unwrap();
    drop(host);
    assert_eq!(world.hear().1, b"last words");
    let mut flags = 0;
    while flags != side::BOTH {
        let (header, _) = world.hear();
        assert_eq!(header.op, Op::Shutdown);
        flags |= header.flags;
    }
    world.say(PORTS, Op::Data, 0, 10, b"nobody reads this");
    world.say(PORTS, Op::Shutdown, side::BOTH, 10, &[]);
    assert_eq!(world.hear().0.op, Op::Reset);
    assert_eq!(world.counter("connections now"), 0);
}

#[test]
fn the_host_closes_one_direction() {
    let world = World::new("half");
    let mut host = world.connect(PORTS);
    host.write_all(b"question").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(world.hear().1, b"question");
    let (end, _) = world.hear();
    assert_eq!((end.op, end.flags), (Op::Shutdown, side::SEND));
    world.say(PORTS, Op::Data, 0, 8, b"answer");
    world.say(PORTS, Op::Shutdown, side::BOTH, 8, &[]);
    assert_eq!(read_all(&mut host), b"answer");
    assert_eq!(world.hear().0.op, Op::Reset);
}

#[test]
fn there_are_only_so_many_connections() {
    let world = World::new("many");
    let listener = world.listen(1024);
    let mut streams = Vec::new();
    for guest in 0..=CONNECTIONS_MAX as u32 {
        world.say(Ports { guest, host: 1024 }, Op::Request, 0, 0, &[]);
        let op = world.hear().0.op;
        if guest < CONNECTIONS_MAX as u32 {
            assert_eq!(op, Op::Response);
            streams.push(listener.accept().unwrap().0);
        } else {
            assert_eq!(op, Op::Reset);
        }
    }
    assert!(read_all(&mut world.client("CONNECT 1\n")).is_empty());
    streams.clear();
    let _ = std::fs::remove_file(virtio_vsock_path(&world.base, 1024));
}

#[test]
fn a_reset_of_the_device_closes_everything() {
    let world = World::new("reset");
    let mut host = world.connect(PORTS);
    world.board.set_status(0);
    assert!(read_all(&mut host).is_empty());
    world.start();
    world.say(PORTS, Op::Data, 0, 0, b"old");
    assert_eq!(world.hear().0.op, Op::Reset);
    let _host = world.connect(PORTS);
}

#[test]
fn a_move_resets_connections_and_tells_the_driver() {
    let (world, other) = (World::new("from"), World::stopped("to"));
    let mut host = world.connect(PORTS);
    let parts = world.board.save();
    world.board.copy_memory_to(&other.board);
    other.board.restore(&parts).unwrap();
    other.board.resume();
    other.await_event();
    other.board.until("an event", || other.board.used(EVENT) == 1);
    assert_eq!(other.board.half(buffer(EVENT)), 0, "TRANSPORT_RESET");
    assert_eq!(other.counter("transport resets"), 1);
    assert_eq!(other.counter("connections now"), 0);
    // The one that stays has its connection until it ends.
    drop(world);
    assert!(read_all(&mut host).is_empty());
}
