//! The host's sockets, and the one place where they are waited for.

use crate::{connection::Key, table::ANY_PORT};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fd::{AsFd, OwnedFd},
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    ffi::OsString,
    io,
    os::unix::{ffi::OsStringExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// Whose socket is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The thread is to look up.
    Bell,
    Listener,
    /// One that has not said yet what it wants.
    Client(u32),
    Connection(Key),
}

impl Token {
    /// Connections have their ports; no end of the host's is [`ANY_PORT`].
    fn encode(self) -> u64 {
        let (high, low) = match self {
            Self::Bell => (ANY_PORT, 0),
            Self::Listener => (ANY_PORT, 1),
            Self::Client(n) => (ANY_PORT, n.saturating_add(2)),
            Self::Connection(key) => (key.host, key.guest),
        };
        u64::from(high) << 32 | u64::from(low)
    }

    fn decode(value: u64) -> Self {
        match ((value >> 32) as u32, value as u32) {
            (ANY_PORT, 0) => Self::Bell,
            (ANY_PORT, 1) => Self::Listener,
            (ANY_PORT, n) => Self::Client(n - 2),
            (host, guest) => Self::Connection(Key { host, guest }),
        }
    }
}

/// What a socket may be ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// Both directions are closed.
    pub hung_up: bool,
}

#[derive(Debug)]
pub struct Poller(OwnedFd);

/// Events of one wait.
const EVENTS: usize = 64;

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Tells when a socket becomes ready for something; closing it ends that.
    pub fn watch(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.0, socket, EventData::new_u64(token.encode()), flags)?)
    }

    pub fn watch_stream(&self, stream: &UnixStream, key: Key) -> io::Result<()> {
        self.watch(stream, Token::Connection(key))
    }

    /// One that was a client is a connection now.
    pub fn forget(&self, socket: impl AsFd) {
        // One that is not watched needs no forgetting.
        let _ = epoll::delete(&self.0, socket);
    }

    /// Waits until there is something, or for so long; an interrupted wait ends early.
    pub fn wait(&self, longest: Option<Duration>) -> Vec<(Token, Ready)> {
        let mut events = Vec::with_capacity(EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        let longest = longest.and_then(|time| time.try_into().ok());
        if epoll::wait(&self.0, spare, longest.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = |event: &epoll::Event| {
            let (flags, data) = (event.flags, event.data);
            let gone = EventFlags::HUP | EventFlags::ERR;
            let ready = Ready {
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | gone),
                writable: flags.intersects(EventFlags::OUT | gone),
                hung_up: flags.intersects(gone),
            };
            (Token::decode(data.u64()), ready)
        };
        events.iter().map(ready).collect()
    }
}

/// The socket of the host's program that listens for a port.
pub fn socket_of(base: &Path, port: u32) -> PathBuf {
    let mut name = base.as_os_str().to_owned().into_vec();
    name.extend(format!("_{port}").bytes());
    OsString::from_vec(name).into()
}

/// Connects to it, without waiting: who is too busy to accept refuses.
pub fn connect(base: &Path, port: u32) -> Option<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let address = SocketAddrUnix::new(socket_of(base, port)).ok()?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    net::connect(&socket, &address).ok()?;
    Some(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_both_ways() {
        let connection = |host, guest| Token::Connection(Key { host, guest });
        for token in [
            Token::Bell,
            Token::Listener,
            Token::Client(0),
            Token::Client(63),
            connection(0, 0),
            connection(1, u32::MAX),
            connection(u32::MAX - 1, 1),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
