//! What clients that read nothing cost; alone in its process, whose memory it looks at.

use display::{Frame, Screen, Seat};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};
use vnc_server::{Config, serve};

/// The largest screen, of noise.
struct Noise;

impl Screen for Noise {
    fn render(&self, frame: &mut Frame) {
        frame.resize(2560, 1600);
        let mut noise = 1u32;
        for pixel in frame.rows_mut().flatten() {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *pixel = noise >> 8;
        }
    }
}

/// MiB of this process's own.
fn held() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// A client that asks for the whole screen and takes its first byte only.
fn stalled(address: std::net::SocketAddr, encoding: i32) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    stream.read_exact(&mut [0; 12 + 6 + 24 + 4]).unwrap();
    stream.write_all(&[&[2, 0, 0, 1], &encoding.to_be_bytes()[..]].concat()).unwrap();
    stream.write_all(&[3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

#[test]
fn clients_that_read_nothing_have_no_pictures_of_their_own() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let seat = Seat::new(Some(Arc::new(Noise)), Vec::new(), Vec::new());
    let server = serve(Config { listen, password: None, name: "test".into() }, seat).unwrap();
    // With one of them all that the server itself needs is there.
    let mut clients = vec![stalled(server.address(), 0)];
    let before = held();
    clients.extend([0, 16, 0, 16, 0, 16].map(|encoding| stalled(server.address(), encoding)));
    // A picture has 16 MiB.
    let more = held().saturating_sub(before);
    assert!(more < 6 * 8, "{more} MiB for {} more clients", clients.len() - 1);
}
