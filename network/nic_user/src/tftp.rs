//! The TFTP server, RFC 1350, with the options of RFC 2347, 2348, 2349 and 7440. It reads.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::context::{Context, earlier};

pub(crate) const PORT: u16 = 69;
/// Transfers have ports of their own from here on, one for each place in the table.
const FIRST_PORT: u16 = 50_000;
const TRANSFERS: usize = 16;

const RRQ: u16 = 1;
const DATA: u16 = 3;
const ERROR: u16 = 5;
const OACK: u16 = 6;

const TRIES: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(1);
const WINDOW_MAX: u64 = 32;

struct Transfer {
    client: SocketAddr,
    server: SocketAddr,
    file: File,
    size: u64,
    block_size: u64,
    window: u64,
    /// Blocks that the client has, the first being 1. Counts on where the wire's 16 bits wrap.
    acknowledged: u64,
    /// The options that were agreed on, until the client acknowledges them.
    options: Option<Vec<u8>>,
    deadline: Instant,
    tries: u32,
}

#[derive(Default)]
pub(crate) struct Tftp {
    transfers: [Option<Transfer>; TRANSFERS],
    due: Option<Instant>,
}

/// What a client may be told, RFC 1350 appendix I.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NotFound,
    Denied,
    Illegal,
    Busy,
}

impl Tftp {
    /// Whether a transfer goes over the port.
    pub(crate) fn has_port(port: u16) -> bool {
        port == PORT || (FIRST_PORT..FIRST_PORT + TRANSFERS as u16).contains(&port)
    }

    /// A datagram to the server.
    pub(crate) fn input(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        message: &[u8],
        cx: &mut Context,
    ) {
        if server.port() == PORT {
            if let Err(refusal) = self.request(client, server, message, cx) {
                refuse(client, server, refusal, cx);
            }
            return;
        }
        let index = usize::from(server.port().wrapping_sub(FIRST_PORT));
        let Some(place) = self.transfers.get_mut(index) else { return };
        let Some(transfer) = place.as_mut().filter(|t| t.client == client) else { return };
        let ended = match *message {
            [0, 4, hi, lo, ..] => transfer.acknowledge(u16::from_be_bytes([hi, lo]), cx),
            // The client gives up.
            [0, 5, ..] => true,
            _ => false,
        };
        if ended {
            *place = None;
        }
    }

    fn request(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        message: &[u8],
        cx: &mut Context,
    ) -> Result<(), Refusal> {
        let Some(root) = cx.config.tftp.clone() else { return Err(Refusal::NotFound) };
        let Some((&[hi, lo], rest)) = message.split_first_chunk::<2>() else { return Ok(()) };
        if u16::from_be_bytes([hi, lo]) != RRQ {
            return Err(Refusal::Denied);
        }
        let mut words = rest.split(|b| *b == 0).map(|w| std::str::from_utf8(w).unwrap_or(""));
        let (Some(name), Some(mode)) = (words.next(), words.next()) else {
            return Err(Refusal::Illegal);
        };
        // In netascii the lines of a text would be rewritten; loaders ask for octets.
        if !mode.eq_ignore_ascii_case("octet") && !mode.eq_ignore_ascii_case("netascii") {
            return Err(Refusal::Illegal);
        }
        let file = open(&root, name)?;
        let size = file.metadata().map_err(|_| Refusal::Denied)?.len();
        // A request that is repeated begins again.
        let again = |t: &Option<Transfer>| t.as_ref().is_none_or(|t| t.client == client);
        let index =
            self.transfers.iter().position(|t| t.as_ref().is_some_and(|t| t.client == client));
        let index = index.or_else(|| self.transfers.iter().position(again)).ok_or(Refusal::Busy)?;
        let largest = cx.link.mtu() - crate::packet::ip_len(client.ip()) - crate::packet::UDP - 4;
        let mut transfer = Transfer {
            client,
            server: SocketAddr::new(server.ip(), FIRST_PORT + index as u16),
            file,
            size,
            block_size: 512,
            window: 1,
            acknowledged: 0,
            options: None,
            deadline: cx.now,
            tries: 0,
        };
        transfer.agree(&mut words, largest as u64);
        transfer.go_on(cx);
        self.due = earlier(self.due, Some(transfer.deadline));
        if let Some(place) = self.transfers.get_mut(index) {
            *place = Some(transfer);
        }
        Ok(())
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn timers(&mut self, cx: &mut Context) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        self.due = None;
        for place in &mut self.transfers {
            if let Some(transfer) = place
                && transfer.deadline <= cx.now
            {
                transfer.tries += 1;
                if transfer.tries > TRIES {
                    *place = None;
                } else {
                    transfer.go_on(cx);
                }
            }
            self.due = earlier(self.due, place.as_ref().map(|t| t.deadline));
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Transfer {
    /// Takes the options that we know. The client counts on those only that are confirmed.
    fn agree<'a>(&mut self, words: &mut impl Iterator<Item = &'a str>, largest: u64) {
        let mut agreed = Vec::new();
        // As many as we know, and some that others may.
        for _ in 0..16 {
            let (Some(name), Some(value)) = (words.next(), words.next()) else { break };
            let Ok(value) = value.parse::<u64>() else { continue };
            let value = match name.to_ascii_lowercase().as_str() {
                "blksize" if value >= 8 => {
                    self.block_size = value.min(largest);
                    self.block_size
                }
                "tsize" => self.size,
                "timeout" if (1..=255).contains(&value) => value,
                "windowsize" if value > 0 => {
                    self.window = value.min(WINDOW_MAX);
                    self.window
                }
                _ => continue,
            };
            agreed.extend(name.bytes().chain([0]).chain(value.to_string().bytes()).chain([0]));
        }
        if !agreed.is_empty() {
            let mut message = OACK.to_be_bytes().to_vec();
            message.extend(agreed);
            self.options = Some(message);
        }
    }

    /// The number of the last block, which is not full.
    fn last(&self) -> u64 {
        self.size / self.block_size + 1
    }

    /// Sends what the client lacks.
    fn go_on(&mut self, cx: &mut Context) {
        self.deadline = cx.now + PATIENCE;
        if let Some(options) = &self.options {
            let _ = cx.link.datagram(self.server, self.client, None, options);
            return;
        }
        let end = self.last().min(self.acknowledged + self.window);
        for block in self.acknowledged + 1..=end {
            let offset = (block - 1) * self.block_size;
            let len = self.size.saturating_sub(offset).min(self.block_size);
            let mut message = DATA.to_be_bytes().to_vec();
            message.extend((block as u16).to_be_bytes());
            message.resize(4 + len as usize, 0);
            let body = message.get_mut(4..).unwrap_or_default();
            // A file that was cut short meanwhile has no such bytes.
            if self.file.read_exact_at(body, offset).is_err() {
                return refuse(self.client, self.server, Refusal::Denied, cx);
            }
            if cx.link.datagram(self.server, self.client, None, &message).is_err() {
                return;
            }
        }
    }

    /// Whether that was the end.
    fn acknowledge(&mut self, block: u16, cx: &mut Context) -> bool {
        if self.options.is_some() {
            if block == 0 {
                self.options = None;
                self.tries = 0;
                self.go_on(cx);
            }
            return false;
        }
        let ahead = u64::from(block.wrapping_sub(self.acknowledged as u16));
        // An old acknowledgement is not answered: that doubled every block, RFC 1123
        // section 4.2.3.1.
        if ahead == 0 || ahead > self.window {
            return false;
        }
        self.acknowledged += ahead;
        self.tries = 0;
        if self.acknowledged >= self.last() {
            return true;
        }
        self.go_on(cx);
        false
    }
}

/// The file of this name, inside the folder that is served, wherever its links point.
fn open(root: &Path, name: &str) -> Result<File, Refusal> {
    let name = name.trim_start_matches('/');
    let found = if root.is_dir() {
        if name.is_empty() || name.contains('\0') {
            return Err(Refusal::NotFound);
        }
        let folder = File::open(root).map_err(|_| Refusal::NotFound)?;
        // A FIFO must not make us wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&folder, name, flags, Mode::empty(), resolve) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                return Err(Refusal::NotFound);
            }
            Err(_) => return Err(Refusal::Denied),
        }
    } else {
        // One file, under its own name only.
        let own = root.file_name().and_then(|own| own.to_str());
        if own != name.rsplit('/').next() {
            return Err(Refusal::NotFound);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(root, flags, Mode::empty());
        File::from(file.map_err(|_| Refusal::NotFound)?)
    };
    match found.metadata() {
        Ok(data) if data.is_file() => Ok(found),
        _ => Err(Refusal::Denied),
    }
}

fn refuse(client: SocketAddr, server: SocketAddr, refusal: Refusal, cx: &mut Context) {
    let (code, text): (u16, &str) = match refusal {
        Refusal::NotFound => (1, "file not found"),
        Refusal::Denied => (2, "access violation"),
        Refusal::Illegal => (4, "illegal operation"),
        Refusal::Busy => (0, "too many transfers"),
    };
    let mut message = ERROR.to_be_bytes().to_vec();
    message.extend(code.to_be_bytes());
    message.extend(text.bytes().chain([0]));
    let _ = cx.link.datagram(server, client, None, &message);
}
