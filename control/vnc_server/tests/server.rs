//! The server over sockets, with clients that behave and clients that do not.

use display::{Frame, Key, Keyboard, Screen, Seat};
use proptest::prelude::*;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use vnc_server::{CLIENTS_MAX, Config, Password, Server, serve};

/// A screen of one colour, which keys go to.
#[derive(Default)]
struct Guest {
    shown: Mutex<(u16, u16, u32)>,
    keys: Mutex<Vec<(u16, bool)>>,
    drawn: Mutex<usize>,
}

impl Screen for Guest {
    fn render(&self, frame: &mut Frame) {
        let (width, height, color) = *self.shown.lock().unwrap();
        frame.resize(width, height);
        frame.rows_mut().for_each(|row| row.fill(color));
        *self.drawn.lock().unwrap() += 1;
    }
}

impl Keyboard for Guest {
    fn listens(&self) -> bool {
        true
    }
    fn key(&self, key: Key, down: bool) {
        self.keys.lock().unwrap().push((key.code(), down));
    }
}

fn start(password: Option<&str>) -> (Server, Arc<Guest>) {
    let guest = Arc::new(Guest::default());
    *guest.shown.lock().unwrap() = (100, 80, 0x11_2233);
    let seat = Seat::new(Some(guest.clone()), vec![guest.clone()], Vec::new());
    let password = password.map(|text| Password::new(text.as_bytes()).unwrap());
    let listen = "127.0.0.1:0".parse().unwrap();
    (serve(Config { listen, password, name: "test".into() }, seat).unwrap(), guest)
}

struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }

    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes(self.read(2).try_into().unwrap())
    }

    /// Through the handshake; the screen's size.
    fn meet(address: SocketAddr) -> (Self, (u16, u16)) {
        let mut client = Self::connect(address);
        assert_eq!(client.read(12), b"RFB 003.008\n");
        client.0.write_all(b"RFB 003.008\n\x01\x01").unwrap();
        client.read(6);
        let size = (client.word(), client.word());
        assert_eq!(client.read(20)[16..], [0, 0, 0, 4]);
        assert_eq!(client.read(4), b"test");
        (client, size)
    }

    fn encodings(&mut self, encodings: &[i32]) {
        let mut bytes = vec![2, 0, 0, encodings.len() as u8];
        encodings.iter().for_each(|e| bytes.extend(e.to_be_bytes()));
        self.0.write_all(&bytes).unwrap();
    }

    fn request(&mut self, incremental: bool) {
        let bytes = [3, incremental.into(), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        self.0.write_all(&bytes).unwrap();
    }

    /// Rectangles of an update in raw encoding: x, y, width, height, encoding, data.
    fn update(&mut self) -> Vec<([u16; 4], i32, Vec<u8>)> {
        assert_eq!(self.read(2), [0, 0]);
        let count = self.word();
        let rect = |_| {
            let place = [(); 4].map(|()| self.word());
            let encoding = i32::from_be_bytes(self.read(4).try_into().unwrap());
            let bytes =
                if encoding == 0 { 4 * usize::from(place[2]) * usize::from(place[3]) } else { 0 };
            (place, encoding, self.read(bytes))
        };
        (0..count).map(rect).collect()
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_sees_what_changes() {
    let (server, guest) = start(None);
    let (mut client, size) = Client::meet(server.address());
    assert_eq!(size, (100, 80));
    client.encodings(&[0, -223]);
    client.request(false);
    let update = client.update();
    assert!(update.iter().all(|(_, encoding, pixels)| *encoding == 0
        && pixels.chunks(4).all(|pixel| pixel == [0x33, 0x22, 0x11, 0])));
    let area: u32 = update.iter().map(|(r, ..)| u32::from(r[2]) * u32::from(r[3])).sum();
    assert_eq!(area, 100 * 80);
    // Nothing is sent until something changes.
    client.request(true);
    guest.shown.lock().unwrap().2 = 7;
    assert_eq!(client.update()[0].2[..4], [7, 0, 0, 0]);
    // A new size is told, and the picture sent when it is asked for.
    client.request(true);
    *guest.shown.lock().unwrap() = (64, 64, 9);
    assert_eq!(client.update(), [([0, 0, 64, 64], -223, vec![])]);
    client.request(true);
    let update = client.update();
    assert_eq!((update.len(), update[0].0, update[0].2[0]), (1, [0, 0, 64, 64], 9));
}

#[test]
fn extensions_are_told_of_once() {
    let (server, guest) = start(None);
    let (mut client, _) = Client::meet(server.address());
    client.encodings(&[0, -258, -257]);
    client.request(true);
    let kinds: Vec<i32> = client.update().iter().map(|(_, encoding, _)| *encoding).collect();
    assert_eq!(kinds, [-258, -257, 0, 0]);
    client.0.write_all(&[255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 30]).unwrap();
    client.0.write_all(&[4, 1, 0, 0, 0, 0, 0xff, 0x0d]).unwrap();
    until("keys", || guest.keys.lock().unwrap().len() == 2);
    client.request(true);
    guest.shown.lock().unwrap().2 = 7;
    assert!(client.update().iter().all(|(_, encoding, _)| *encoding == 0));
    drop(client);
    until("keys go up", || guest.keys.lock().unwrap().len() == 4);
    assert_eq!(*guest.keys.lock().unwrap(), [(30, true), (28, true), (28, false), (30, false)]);
}

#[test]
fn nobody_is_held_up_and_nothing_is_drawn_for_nobody() {
    let (server, guest) = start(None);
    let clients: Vec<_> = (0..CLIENTS_MAX).map(|_| Client::meet(server.address()).0).collect();
    until("clients", || server.clients() == CLIENTS_MAX);
    // One more is turned away.
    let mut more = Client::connect(server.address());
    assert_eq!(more.0.read(&mut [0; 12]).unwrap_or(0), 0);
    // All ask for all, again and again, and read nothing; the last one reads.
    let mut clients = clients;
    let mut last = clients.pop().unwrap();
    for client in &mut clients {
        (0..50).for_each(|_| client.request(false));
    }
    for color in 1..20 {
        guest.shown.lock().unwrap().2 = color;
        last.request(true);
        last.update();
    }
    drop((clients, last));
    until("they are gone", || server.clients() == 0);
    std::thread::sleep(Duration::from_millis(200));
    let drawn = *guest.drawn.lock().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(*guest.drawn.lock().unwrap(), drawn);
}

#[test]
fn a_password_is_asked_for() {
    let (server, _) = start(Some("secret"));
    let mut client = Client::connect(server.address());
    client.read(12);
    client.0.write_all(b"RFB 003.008\n").unwrap();
    assert_eq!(client.read(2), [1, 2]);
    client.0.write_all(&[2]).unwrap();
    client.read(16);
    client.0.write_all(&[0; 16]).unwrap();
    assert_eq!(client.read(4), [0, 0, 0, 1]);
    let length = client.read(4)[3];
    assert_eq!(client.read(length.into()), b"The password is wrong");
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.clients(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// A client that says anything ends, or not; the next one is served.
    #[test]
    fn any_client_leaves_the_server_well(
        kinds in proptest::collection::vec((0u8..8, proptest::collection::vec(any::<u8>(), 0..60)), 0..20)
    ) {
        let (server, _) = start(None);
        let (mut client, _) = Client::meet(server.address());
        for (kind, bytes) in &kinds {
            // It may have been thrown out.
            let _ = client.0.write_all(&[*kind]).and_then(|()| client.0.write_all(bytes));
        }
        drop(client);
        let (mut next, _) = Client::meet(server.address());
        next.request(false);
        prop_assert!(!next.update().is_empty());
    }
}
