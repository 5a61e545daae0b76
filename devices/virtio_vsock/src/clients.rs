//! Programs of the host that have come to the device's socket, and what they say first: `CONNECT`
//! and a port of the guest's.

use crate::{host::Poller, host::Token, table::ANY_PORT};
use std::{
    io::{ErrorKind, Read},
    os::unix::net::{UnixListener, UnixStream},
};

/// Clients that have not said what they want; one more takes the place of the oldest.
const CLIENTS_MAX: usize = 64;
/// The longest line: `CONNECT 4294967294`, its end, and some blanks.
const LINE_MAX: usize = 32;

#[derive(Debug)]
struct Client {
    number: u32,
    stream: UnixStream,
    line: Vec<u8>,
}

/// What came of looking at a client.
#[derive(Debug)]
enum Look {
    Wants(u32),
    Later,
    Nonsense,
}

#[derive(Debug, Default)]
pub struct Clients {
    /// The oldest first.
    all: Vec<Client>,
    next: u32,
}

impl Clients {
    /// Takes all who stand at the door; false if one had to be left there.
    pub fn welcome(&mut self, listener: &UnixListener, poller: &Poller) -> bool {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.add(stream, poller),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // One who has left meanwhile, or an interruption.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                    ) => {}
                Err(_) => return false,
            }
        }
    }

    fn add(&mut self, stream: UnixStream, poller: &Poller) {
        if self.all.len() >= CLIENTS_MAX {
            self.all.remove(0);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1) & 0xffff;
        let ready = stream.set_nonblocking(true).is_ok();
        if ready && poller.watch(&stream, Token::Client(number)).is_ok() {
            self.all.push(Client { number, stream, line: Vec::new() });
        }
    }

    /// Looks at one that may have said something; its stream and the port that it wants.
    pub fn look(&mut self, number: u32) -> Option<(UnixStream, u32)> {
        let at = self.all.iter().position(|client| client.number == number)?;
        let look = self.all.get_mut(at)?.look();
        if let Look::Later = look {
            return None;
        }
        let client = self.all.remove(at);
        match look {
            Look::Wants(port) => Some((client.stream, port)),
            _ => None,
        }
    }
}

impl Client {
    /// Byte by byte: what follows the line is for the guest.
    fn look(&mut self) -> Look {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    return parse(&self.line).map_or(Look::Nonsense, Look::Wants);
                }
                Ok(1) if self.line.len() < LINE_MAX => self.line.extend(byte),
                Ok(_) => return Look::Nonsense,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Look::Later,
                Err(_) => return Look::Nonsense,
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    let plain = word.eq_ignore_ascii_case("connect") && words.next().is_none();
    let port = port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))?;
    (plain && port != ANY_PORT).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn lines_are_read_strictly() {
        for (line, port) in [
            ("CONNECT 52", Some(52)),
            ("connect  52\r", Some(52)),
            ("CONNECT 4294967294", Some(4_294_967_294)),
            ("CONNECT 4294967295", None),
            ("CONNECT 4294967296", None),
            ("CONNECT +5", None),
            ("CONNECT -1", None),
            ("CONNECT", None),
            ("CONNECT 1 2", None),
            ("CONNECTED 1", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), port, "{line}");
        }
    }

    #[test]
    fn what_follows_the_line_is_left() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut clients, poller) = (Clients::default(), Poller::new().unwrap());
        clients.add(theirs, &poller);
        ours.write_all(b"CONN").unwrap();
        assert!(clients.look(0).is_none() && clients.all.len() == 1);
        ours.write_all(b"ECT 7\nfor the guest").unwrap();
        let (mut stream, port) = clients.look(0).unwrap();
        let mut rest = [0; 64];
        let len = stream.read(&mut rest).unwrap();
        assert_eq!((port, &rest[..len]), (7, &b"for the guest"[..]));
        assert!(clients.look(0).is_none() && clients.all.is_empty());
    }

    #[test]
    fn the_silent_make_room() {
        let (mut clients, poller) = (Clients::default(), Poller::new().unwrap());
        let streams: Vec<UnixStream> = (0..CLIENTS_MAX + 3)
            .map(|_| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                clients.add(theirs, &poller);
                ours
            })
            .collect();
        assert_eq!(clients.all.len(), CLIENTS_MAX);
        assert_eq!((&streams[2]).read(&mut [0]).unwrap(), 0, "the oldest are closed");
        (&streams[3]).write_all(b"CONNECT 1\n").unwrap();
        assert!(clients.look(3).is_some());
    }

    proptest! {
        #[test]
        fn noise_is_no_port(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}
