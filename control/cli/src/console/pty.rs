//! A pseudo-terminal as the console: any terminal program can connect to it.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use byte_stream::Input;
use rustix::{
    fs::{self as rfs, Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};

use super::feeder::Feeder;
use crate::{Failure, report};

/// Both ends of a pseudo-terminal. Reading ends when it is dropped.
pub struct Pty {
    main: File,
    /// Held open, so that the guest's output is not an error while nobody is connected.
    _other: OwnedFd,
    /// What is read goes there, until the stream is closed.
    feeds: Option<(Feeder, UnixStream)>,
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some((feeder, _)) = &self.feeds {
            feeder.end();
        }
    }
}

impl Pty {
    /// Opens one and prints its path.
    pub fn open(option: &str) -> Result<Self, Failure> {
        let (pty, path) = Self::new().map_err(|e| {
            Failure::host(format!("{option}pty: {}; use {option}unix:PATH", report::os_reason(&e)))
        })?;
        let what = option.trim_start_matches('-').trim_end_matches([' ', '=', ':']);
        report::notice(&format!("the {what} is {path}"));
        Ok(pty)
    }

    fn new() -> io::Result<(Self, String)> {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&main)?;
        unlockpt(&main)?;
        let path = ptsname(&main, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let other = rfs::open(&path, flags, Mode::empty())?;
        // The guest has a line discipline of its own.
        let mut settings = tcgetattr(&other)?;
        settings.make_raw();
        tcsetattr(&other, OptionalActions::Now, &settings)?;
        rfs::fcntl_setfl(&main, OFlags::NONBLOCK)?;
        let path = path.to_string_lossy().into_owned();
        Ok((Self { main: main.into(), _other: other, feeds: None }, path))
    }

    /// For output. What nobody reads is lost when the pseudo-terminal is full.
    pub fn writer(&self) -> Result<Lossy, Failure> {
        let file = self.main.try_clone();
        file.map(Lossy).map_err(|e| {
            Failure::host(format!("--console pty: {}; raise `ulimit -n`", report::os_reason(&e)))
        })
    }

    /// Begins to read.
    pub fn start(&mut self, input: Arc<dyn Input>) -> Result<(), Failure> {
        let mut main = self.writer()?.0;
        let (end, ended) = super::ends()?;
        let feeder = Feeder::start(input)?;
        self.feeds = Some((feeder.clone(), end));
        super::spawn("console pty", move || {
            let mut buffer = [0; 4096];
            loop {
                match main.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => feeder.send(&buffer[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        if !super::wait(&main, &ended) {
                            return;
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })
    }
}

/// Writes what fits and forgets the rest.
#[derive(Debug)]
pub struct Lossy(File);

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(bytes.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::OpenOptions, sync::Mutex};

    #[test]
    fn carries_both_ways() {
        let (mut pty, path) = Pty::new().unwrap();
        let mut client = OpenOptions::new().read(true).write(true).open(path).unwrap();
        pty.writer().unwrap().write_all(b"from the guest\n").unwrap();
        let mut buffer = [0; 15];
        client.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"from the guest\n", "raw: no carriage return is added");

        struct Collect(Mutex<std::sync::mpsc::Sender<Vec<u8>>>);
        impl Input for Collect {
            fn receive(&self, bytes: &[u8]) -> usize {
                self.0.lock().unwrap().send(bytes.to_vec()).unwrap();
                bytes.len()
            }
            fn on_room(&self, _: Box<dyn Fn() + Send + Sync>) {}
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        pty.start(Arc::new(Collect(Mutex::new(sender)))).unwrap();
        client.write_all(b"to\x03").unwrap();
        let mut got = Vec::new();
        while got.len() < 3 {
            got.extend(receiver.recv().unwrap());
        }
        assert_eq!(got, b"to\x03", "raw: Ctrl-C is a byte");
        drop(pty);
        assert!(receiver.recv().is_err(), "nobody reads any more");
    }

    #[test]
    fn output_that_nobody_reads_is_no_error() {
        let (pty, _) = Pty::new().unwrap();
        pty.writer().unwrap().write_all(&vec![b'x'; 1 << 20]).unwrap();
    }
}
