//! What a session waits for: bytes from the debugger, stops of the machine.

use machine::DebugStop;
use std::{
    collections::VecDeque,
    io::Read,
    net::TcpStream,
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread::JoinHandle,
};

pub(crate) enum Event {
    Byte(u8),
    /// The debugger closed the connection, or it broke.
    Closed,
    Stop(DebugStop),
    /// The machine has ended.
    Ended,
}

pub(crate) enum Message {
    Bytes(Vec<u8>),
    Closed,
    Stop(DebugStop),
    Ended,
}

/// Sends [`Message::Ended`] when the machine forgets its debugger.
pub(crate) struct StopSender(pub(crate) Sender<Message>);

impl StopSender {
    pub(crate) fn tell(&self, stop: DebugStop) {
        // A session that is over wants no stops.
        drop(self.0.send(Message::Stop(stop)));
    }
}

impl Drop for StopSender {
    fn drop(&mut self) {
        drop(self.0.send(Message::Ended));
    }
}

pub(crate) struct Inbox {
    messages: Receiver<Message>,
    /// Set aside while stops were looked for.
    aside: VecDeque<Message>,
    bytes: VecDeque<u8>,
    /// Lets the reader go on.
    more: SyncSender<()>,
}

impl Inbox {
    /// Starts the thread that reads `from`. It ends when the connection is shut down.
    pub(crate) fn start(
        mut from: TcpStream,
    ) -> std::io::Result<(Self, Sender<Message>, JoinHandle<()>)> {
        let (to, messages) = channel();
        let (more, wanted) = sync_channel(1);
        let of_thread = to.clone();
        let reader = std::thread::Builder::new().name("gdb-reader".into()).spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let bytes = match from.read(&mut chunk) {
                    Ok(n) if n > 0 => chunk.get(..n).unwrap_or_default().to_vec(),
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    _ => {
                        drop(of_thread.send(Message::Closed));
                        return;
                    }
                };
                // One chunk at a time: a peer cannot fill the host's memory.
                if of_thread.send(Message::Bytes(bytes)).is_err() || wanted.recv().is_err() {
                    return;
                }
            }
        })?;
        let inbox = Self { messages, aside: VecDeque::new(), bytes: VecDeque::new(), more };
        Ok((inbox, to, reader))
    }

    /// Waits for the first byte; false if there is none.
    pub(crate) fn opened(&mut self) -> bool {
        match self.next() {
            Event::Byte(byte) => {
                self.bytes.push_front(byte);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn next(&mut self) -> Event {
        loop {
            if let Some(byte) = self.bytes.pop_front() {
                if self.bytes.is_empty() {
                    // The reader has gone if it does not wait for this.
                    let _ = self.more.try_send(());
                }
                return Event::Byte(byte);
            }
            let message = match self.aside.pop_front() {
                Some(message) => Ok(message),
                None => self.messages.recv(),
            };
            match message {
                Ok(Message::Bytes(bytes)) => self.bytes.extend(bytes),
                Ok(Message::Closed) | Err(_) => return Event::Closed,
                Ok(Message::Stop(stop)) => return Event::Stop(stop),
                Ok(Message::Ended) => return Event::Ended,
            }
        }
    }

    /// Takes the stops that have been told so far, and leaves the rest.
    pub(crate) fn stops(&mut self) -> Vec<DebugStop> {
        self.aside.extend(self.messages.try_iter());
        let (mut stops, mut rest) = (Vec::new(), VecDeque::new());
        for message in self.aside.drain(..) {
            match message {
                Message::Stop(stop) => stops.push(stop),
                other => rest.push_back(other),
            }
        }
        self.aside = rest;
        stops
    }
}
