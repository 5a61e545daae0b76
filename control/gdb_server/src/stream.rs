//! The debugger's end of the protocol: bytes out, buffered.

use gdbstub::conn::Connection;
use std::{
    io::{self, Write},
    net::TcpStream,
};

/// The protocol library writes byte by byte.
pub(crate) struct Stream {
    to: TcpStream,
    buffer: Vec<u8>,
}

const FULL: usize = 4096;

impl Stream {
    pub(crate) fn new(to: TcpStream) -> Self {
        Self { to, buffer: Vec::with_capacity(FULL) }
    }

    fn empty(&mut self) -> io::Result<()> {
        let written = Write::write_all(&mut self.to, &self.buffer);
        self.buffer.clear();
        written
    }
}

impl Connection for Stream {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.buffer.push(byte);
        if self.buffer.len() < FULL { Ok(()) } else { self.empty() }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.empty()
    }

    fn on_session_start(&mut self) -> io::Result<()> {
        self.to.set_nodelay(true)
    }
}
