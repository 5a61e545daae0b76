//! TCP between a guest's stack and real sockets of this host.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use common::{ADDRESS, GATEWAY, Guest, Options, config, echo, noise, server};
use nic_user::{Config, Forward, Transport, UserNet};
use smoltcp::socket::tcp;

fn guest_with(options: Options) -> Guest {
    Guest::with(UserNet::start(config(), 0).unwrap(), options)
}

/// Sends and receives at the same time.
fn exchange(guest: &mut Guest, handle: smoltcp::iface::SocketHandle, bytes: &[u8]) -> Vec<u8> {
    let (mut at, mut all, mut closed) = (0, Vec::new(), false);
    let mut buffer = vec![0; 1 << 16];
    guest.until("an exchange", |g| {
        let socket = g.socket(handle);
        if at < bytes.len() && socket.can_send() {
            at += socket.send_slice(&bytes[at..]).unwrap();
        }
        if at == bytes.len() && !closed && socket.may_send() {
            socket.close();
            closed = true;
        }
        while socket.can_recv() {
            let n = socket.recv_slice(&mut buffer).unwrap();
            all.extend(&buffer[..n]);
        }
        (closed && !socket.may_recv()).then_some(())
    });
    all
}

#[test]
fn what_is_sent_comes_back() {
    let to = server(echo);
    for offloads in [false, true] {
        let mut guest = guest_with(Options { offloads, ..Options::default() });
        let bytes = noise(3 << 20, 5);
        let handle = guest.connect(to, 1 << 17);
        assert!(exchange(&mut guest, handle, &bytes) == bytes);
    }
}

#[test]
fn a_guest_without_room_gets_everything_later() {
    let to = server(echo);
    let mut guest = guest_with(Options { room: 3, ..Options::default() });
    let bytes = noise(300 << 10, 6);
    let handle = guest.connect(to, 1 << 14);
    assert!(exchange(&mut guest, handle, &bytes) == bytes);
}

#[test]
fn lost_frames_are_sent_again() {
    let to = server(echo);
    let mut guest = guest_with(Options { loss: 53, ..Options::default() });
    let bytes = noise(200 << 10, 7);
    let handle = guest.connect(to, 1 << 15);
    assert!(exchange(&mut guest, handle, &bytes) == bytes);
    assert!(guest.net.report().counters.retransmissions > 0);
}

#[test]
fn a_file_is_fetched_by_http() {
    let body = Arc::new(noise(8 << 20, 8));
    let served = body.clone();
    let to = server(move |mut stream| {
        let mut request = [0; 1024];
        let n = stream.read(&mut request).unwrap();
        assert!(request[..n].starts_with(b"GET /file HTTP/1.0\r\n"));
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&served).unwrap();
    });
    for (offloads, buffer) in [(false, 1 << 16), (true, 1 << 20), (false, 1000)] {
        let mut guest = guest_with(Options { offloads, ..Options::default() });
        let handle = guest.connect(to, buffer);
        guest.established(handle);
        guest.socket(handle).send_slice(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
        let all = guest.read_all(handle);
        let start = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert!(all[start..] == body[..]);
        if buffer == 1000 {
            return;
        }
    }
}

/// Each side may end before the other.
#[test]
fn ends_are_separate() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let to = server(move |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        tell.lock().unwrap().send(stream.read_to_end(&mut rest).is_ok()).unwrap();
    });
    let mut guest = guest_with(Options::default());
    let handle = guest.connect(to, 1 << 14);
    guest.send_all(handle, &noise(100_000, 1));
    assert_eq!(guest.read_all(handle), b"100000 bytes");
    assert!(told.recv_timeout(common::PATIENCE).unwrap());

    // The other way round: the server ends, the guest goes on.
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let to = server(move |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        tell.lock().unwrap().send(all).unwrap();
    });
    let handle = guest.connect(to, 1 << 14);
    guest.until("connecting", |g| g.socket(handle).may_send().then_some(()));
    assert_eq!(guest.read_all(handle), b"");
    assert_eq!(guest.socket(handle).state(), tcp::State::CloseWait);
    let bytes = noise(50_000, 2);
    guest.send_all(handle, &bytes);
    let got = guest.until("the rest", |_| told.try_recv().ok());
    assert!(got == bytes);
    guest.until("the end of all flows", |g| (g.net.report().tcp == 0).then_some(()));
}

#[test]
fn a_closed_port_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut guest = guest_with(Options::default());
    // The second: loopback, which is asked for by the gateway's address only.
    for to in [(GATEWAY, port), ([127, 0, 0, 1].into(), port), ([10, 0, 2, 99].into(), port)] {
        let handle = guest.connect(SocketAddr::from(to), 1000);
        if to.0 == GATEWAY {
            let start = Instant::now();
            guest.until("a refusal", |g| {
                (g.socket(handle).state() == tcp::State::Closed).then_some(())
            });
            assert!(start.elapsed() < Duration::from_secs(10));
        } else {
            (0..200).for_each(|_| guest.poll());
            assert_ne!(guest.socket(handle).state(), tcp::State::Established);
        }
    }
    assert_eq!(guest.net.report().tcp, 0);
}

#[test]
fn loopback_is_closed_by_default() {
    let to = server(|_| panic!("nobody may come here"));
    let mut guest = Guest::new(Config::default());
    let handle = guest.connect(to, 1000);
    guest.until("a refusal", |g| (g.socket(handle).state() == tcp::State::Closed).then_some(()));
    assert_eq!(guest.net.report().counters.refused, 1);
}

#[test]
fn resets_cross() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let to = server(move |mut stream| {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"r" {
            // Unread bytes make closing a reset.
            stream.write_all(b"last words").unwrap();
            while stream.peek(&mut [0; 2]).unwrap() < 2 {}
            return;
        }
        let error = stream.read(&mut byte).unwrap_err();
        tell.lock().unwrap().send(error.kind()).unwrap();
    });
    let mut guest = guest_with(Options::default());
    let handle = guest.connect(to, 1000);
    guest.established(handle);
    guest.socket(handle).send_slice(b"r and more").unwrap();
    let words = guest.read_all(handle);
    assert_eq!(words, b"last words", "what came before a reset is delivered");
    guest.until("a reset", |g| (g.socket(handle).state() == tcp::State::Closed).then_some(()));

    let handle = guest.connect(to, 1000);
    guest.established(handle);
    guest.socket(handle).send_slice(b"a").unwrap();
    (0..50).for_each(|_| guest.poll());
    guest.socket(handle).abort();
    let kind = guest.until("the server's error", |_| told.try_recv().ok());
    assert_eq!(kind, ErrorKind::ConnectionReset);
    guest.until("the end of all flows", |g| (g.net.report().tcp == 0).then_some(()));
}

#[test]
fn a_hundred_connections_at_once() {
    let to = server(echo);
    let mut guest = guest_with(Options { offloads: true, ..Options::default() });
    let handles: Vec<_> = (0..100).map(|_| guest.connect(to, 1 << 13)).collect();
    let bytes: Vec<_> = (0..100).map(|i| noise(20_000 + i * 100, i as u64 + 1)).collect();
    let mut sent = vec![0; 100];
    let mut got = vec![Vec::new(); 100];
    let mut most = 0;
    guest.until("a hundred exchanges", |g| {
        let mut done = 0;
        for (i, handle) in handles.iter().enumerate() {
            let socket = g.socket(*handle);
            if sent[i] < bytes[i].len() && socket.can_send() {
                sent[i] += socket.send_slice(&bytes[i][sent[i]..]).unwrap();
                if sent[i] == bytes[i].len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket.recv(|part| (part.len(), got[i].extend_from_slice(part))).unwrap();
            }
            done += usize::from(got[i].len() == bytes[i].len());
        }
        most = most.max(if done == 0 { g.net.report().tcp } else { 0 });
        (done == 100).then_some(())
    });
    assert!(got == bytes);
    assert!(most > 50, "they were open together: {most}");
}

/// A server that does not read holds the guest back, and what the guest was promised is kept.
#[test]
fn a_slow_server_holds_the_guest_back() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let to = server(move |mut stream| {
        wait.lock().unwrap().recv().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        tell.lock().unwrap().send(all).unwrap();
    });
    let mut guest = guest_with(Options::default());
    let handle = guest.connect(to, 1 << 16);
    guest.established(handle);
    let bytes = noise(24 << 20, 3);
    let (mut at, mut idle) = (0, 0);
    // Until nothing moves any more: buffers of the host, ours and the guest's are full.
    guest.until("a full path", |g| {
        let sent = g.socket(handle).send_slice(&bytes[at..]).unwrap();
        at += sent;
        idle = if sent == 0 { idle + 1 } else { 0 };
        (idle > 1000).then_some(())
    });
    assert!(at < bytes.len(), "the guest is held back");
    go.send(()).unwrap();
    guest.send_all(handle, &bytes[at..]);
    let got = guest.until("the server's end", |_| told.try_recv().ok());
    assert!(got == bytes);
}

/// A guest that does not read holds the server back.
#[test]
fn a_slow_guest_holds_the_server_back() {
    let bytes = Arc::new(noise(24 << 20, 4));
    let served = bytes.clone();
    let to = server(move |mut stream| stream.write_all(&served).unwrap());
    let mut guest = guest_with(Options { offloads: true, ..Options::default() });
    let handle = guest.connect(to, 1 << 16);
    guest.established(handle);
    (0..2000).for_each(|_| guest.poll());
    let before = guest.net.report().counters.bytes_to_guest;
    assert!(before < 1 << 20, "{before}");
    let got = guest.read_all(handle);
    assert!(got == bytes[..]);
}

fn forward(transport: Transport, listen: &str, port: u16) -> Forward {
    Forward { transport, listen: listen.parse().unwrap(), guest: None, port }
}

/// An address of this host that is free now.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_forward_reaches_the_guest() {
    let at = free_address();
    let config = Config { forwards: vec![forward(Transport::Tcp, &at, 22)], ..config() };
    let mut guest = Guest::new(config.clone());
    assert!(UserNet::start(config, 1).unwrap_err().to_string().contains(&at), "taken is told");
    let handle = guest.tcp(1 << 14);
    guest.socket(handle).listen(22).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(&at).unwrap();
        let bytes = noise(200_000, 9);
        let mut writer = stream.try_clone().unwrap();
        let sent = bytes.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        writing.join().unwrap();
        assert!(all == bytes);
    });
    // The guest echoes.
    let mut waiting = Vec::new();
    guest.until("an echo", |g| {
        let socket = g.socket(handle);
        while socket.can_recv() {
            socket.recv(|part| (part.len(), waiting.extend_from_slice(part))).unwrap();
        }
        if !waiting.is_empty() && socket.can_send() {
            let n = socket.send_slice(&waiting).unwrap();
            waiting.drain(..n);
        }
        if let Some(remote) = socket.remote_endpoint() {
            assert_eq!(remote.addr, GATEWAY.into());
            assert_eq!(socket.local_endpoint().unwrap().addr, ADDRESS.into());
        }
        if waiting.is_empty() && socket.state() == tcp::State::CloseWait {
            socket.close();
        }
        client.is_finished().then_some(())
    });
    client.join().unwrap();
}

#[test]
fn a_forward_to_a_closed_port_is_reset() {
    let at = free_address();
    let mut guest =
        Guest::new(Config { forwards: vec![forward(Transport::Tcp, &at, 23)], ..config() });
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(&at).unwrap();
        stream.read(&mut [0; 1]).map_err(|e| e.kind())
    });
    guest.until("a reset", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), Err(ErrorKind::ConnectionReset));
}
