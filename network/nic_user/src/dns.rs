//! The name server of the guest's network: queries go to the host's resolvers, the next one
//! when one does not answer.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use rustix::{fd::OwnedFd, io::Errno};

use crate::{
    context::{Context, earlier},
    host::{self, Token},
};

/// Queries at a time; more are not taken, and the guest asks again.
const QUERIES: usize = 64;
/// The longest query that is taken. They are a name long.
const QUERY_MAX: usize = 2048;
const HEADER: usize = 12;
/// A resolver has so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many resolvers are asked, resolv.conf(5).
const RESOLVERS: usize = 3;
/// The list of resolvers is looked at again after so long.
const FRESH: Duration = Duration::from_secs(2);

/// What resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolv {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) domain: Option<String>,
}

impl Resolv {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(addr)) => {
                    if let Ok(addr) = addr.parse()
                        && found.servers.len() < RESOLVERS
                    {
                        found.servers.push(addr);
                    }
                }
                (Some("search" | "domain"), Some(domain)) if is_name(domain) => {
                    found.domain = Some(domain.to_owned());
                }
                _ => {}
            }
        }
        if found.servers.is_empty() {
            // What resolvers are for a host without the file.
            found.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        found
    }

    pub(crate) fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    !text.is_empty() && text.len() < 200 && text != "." && text.bytes().all(plain)
}

/// What the host's resolvers are, looked at again from time to time.
#[derive(Debug, Default)]
pub(crate) struct Resolvers {
    resolv: Resolv,
    /// The file's date, and when it was looked at.
    read: Option<(Option<SystemTime>, Instant)>,
}

impl Resolvers {
    pub(crate) fn current(&mut self, path: &Path, now: Instant) -> &Resolv {
        if self.read.is_none_or(|(_, at)| now.saturating_duration_since(at) >= FRESH) {
            let date = fs::metadata(path).and_then(|m| m.modified()).ok();
            if self.read.is_none_or(|(known, _)| known != date) {
                self.resolv = Resolv::read(path);
            }
            self.read = Some((date, now));
        }
        &self.resolv
    }
}

/// Where DNS over TCP goes.
pub(crate) fn first_resolver(cx: &mut Context) -> Option<SocketAddr> {
    cx.resolv().servers.first().map(|ip| SocketAddr::new(*ip, 53))
}

struct Query {
    guest: SocketAddr,
    /// The name server as the guest sees it.
    server: SocketAddr,
    message: Vec<u8>,
    socket: OwnedFd,
    /// Which resolver has been asked.
    resolver: usize,
    deadline: Instant,
}

#[derive(Default)]
pub(crate) struct Relay {
    queries: HashMap<u64, Query>,
    due: Option<Instant>,
    /// For tests, whose resolvers have other ports.
    port: Option<u16>,
}

impl Relay {
    pub(crate) fn new(port: Option<u16>) -> Self {
        Self { port, ..Self::default() }
    }

    /// A datagram of the guest to its name server.
    pub(crate) fn input(
        &mut self,
        guest: SocketAddr,
        server: SocketAddr,
        message: &[u8],
        cx: &mut Context,
    ) {
        // A query, RFC 1035 section 4.1.1: the bit QR is clear.
        let is_query = message.get(2).is_some_and(|flags| flags & 0x80 == 0);
        if !is_query || message.len() < HEADER || message.len() > QUERY_MAX {
            cx.link.counters.ignored += 1;
            return;
        }
        if self.queries.len() >= QUERIES {
            cx.link.counters.too_many += 1;
            return;
        }
        cx.link.counters.dns_queries += 1;
        self.ask(guest, server, message.to_vec(), 0, cx);
    }

    /// Asks this resolver, or the first after it that can be asked.
    fn ask(
        &mut self,
        guest: SocketAddr,
        server: SocketAddr,
        message: Vec<u8>,
        from: usize,
        cx: &mut Context,
    ) {
        let port = self.port.unwrap_or(53);
        let servers = cx.resolv().servers.clone();
        for (resolver, ip) in servers.into_iter().enumerate().skip(from) {
            let Ok(socket) = host::connect_udp(SocketAddr::new(ip, port)) else { continue };
            if host::send(&socket, &message).is_err() {
                continue;
            }
            let id = cx.id();
            if cx.poller.watch_level(&socket, Token::Dns(id)).is_err() {
                continue;
            }
            let deadline = cx.now + PATIENCE;
            self.due = earlier(self.due, Some(deadline));
            let query = Query { guest, server, message, socket, resolver, deadline };
            self.queries.insert(id, query);
            return;
        }
        fail(guest, server, &message, cx);
    }

    /// A resolver has answered, or cannot be reached.
    pub(crate) fn event(&mut self, id: u64, cx: &mut Context) {
        let Some(query) = self.queries.get(&id) else { return };
        match host::recv(&query.socket, &mut cx.scratch) {
            Ok(len) => {
                let answer = cx.scratch.get(..len).unwrap_or_default();
                // What is no answer to this query is waited out.
                if !answers(answer, &query.message) {
                    return;
                }
                let (guest, server) = (query.guest, query.server);
                let _ = cx.link.datagram(server, guest, None, answer);
                self.queries.remove(&id);
            }
            Err(Errno::AGAIN) => {}
            Err(_) => self.next(id, cx),
        }
    }

    fn next(&mut self, id: u64, cx: &mut Context) {
        if let Some(query) = self.queries.remove(&id) {
            self.ask(query.guest, query.server, query.message, query.resolver + 1, cx);
        }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn timers(&mut self, cx: &mut Context) {
        if self.due.is_none_or(|at| at > cx.now) {
            return;
        }
        self.due = None;
        let late = |query: &Query| query.deadline <= cx.now;
        let ids: Vec<u64> =
            self.queries.iter().filter(|(_, query)| late(query)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.next(id, cx));
        self.due = self.queries.values().map(|query| query.deadline).min();
    }

    pub(crate) fn clear(&mut self) {
        self.queries.clear();
    }
}

/// Whether a message answers the query: by its number and its question. Who cannot read the
/// question says so without repeating it.
fn answers(answer: &[u8], query: &[u8]) -> bool {
    let Some((head, asked)) = query.split_at_checked(HEADER) else { return false };
    let Some((ours, rest)) = answer.split_at_checked(HEADER) else { return false };
    let is_answer = ours[2] & 0x80 != 0;
    if ours[..2] != head[..2] || !is_answer {
        return false;
    }
    let failed = ours[3] & 0x0f != 0;
    if failed && ours[4..6] == [0, 0] {
        return true;
    }
    let Some(end) = question(asked) else { return true };
    let same = rest.get(..end).is_some_and(|rest| rest.eq_ignore_ascii_case(&asked[..end]));
    ours[4..6] == head[4..6] && same
}

/// Where the first question ends: a name, a type and a class, RFC 1035 section 4.1.2. `None` if
/// there is none that can be read.
fn question(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => break,
            label @ 1..64 => at += 1 + label,
            _ => return None,
        }
    }
    (at + 5 <= bytes.len()).then_some(at + 5)
}

/// Nobody answers: SERVFAIL, so that the guest need not wait.
fn fail(guest: SocketAddr, server: SocketAddr, query: &[u8], cx: &mut Context) {
    let mut answer = query.to_vec();
    // QR, the query's opcode and RD; RA and the code 2.
    let (Some(first), flags) = (answer.get(2).copied(), answer.get_mut(2..4)) else { return };
    if let Some(flags) = flags {
        flags.copy_from_slice(&[0x80 | first & 0x79, 0x82]);
    }
    let _ = cx.link.datagram(server, guest, None, &answer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# by hand\nsearch example.org corp\nnameserver 192.0.2.1\n\
            nameserver fe80::1%eth0\nnameserver 2001:db8::1 # second\noptions edns0\nnameserver\n";
        let found = Resolv::parse(text);
        assert_eq!(
            found.servers,
            ["192.0.2.1", "2001:db8::1"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        assert_eq!(found.domain.as_deref(), Some("example.org"));
        assert_eq!(Resolv::parse("").servers, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        assert_eq!(Resolv::parse("search a\u{1b}b").domain, None);
    }

    /// A message with this head, one question, and something behind it.
    fn message(id: u8, flags: [u8; 2], name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, id, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend([0, 0, 1, 0, 1, 0xc0, 0x0c]);
        bytes
    }

    #[test]
    fn an_answer_repeats_the_question() {
        let query = message(7, [1, 0], b"\x03www\x02ex");
        assert!(answers(&message(7, [0x81, 0x80], b"\x03www\x02ex"), &query));
        assert!(answers(&message(7, [0x81, 0x80], b"\x03WWW\x02eX"), &query));
        assert!(!answers(&message(7, [0x81, 0x80], b"\x03ftp\x02ex"), &query), "another name");
        assert!(!answers(&message(8, [0x81, 0x80], b"\x03www\x02ex"), &query), "another number");
        assert!(!answers(&query, &query), "a query");
        let head = [0, 7, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(answers(&head, &query), "a server that could not read it");
        let empty = [0, 7, 0x81, 0x80, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(!answers(&empty, &query) && !answers(&head[..11], &query));
        for end in 0..query.len() {
            let _ = (question(&query[..end]), answers(&query[..end], &query));
        }
    }

    #[test]
    fn resolvers_are_not_read_for_each_query() {
        let path = std::env::temp_dir().join(format!("sarang-resolv-{}", std::process::id()));
        fs::write(&path, "nameserver 192.0.2.1").unwrap();
        let (mut resolvers, now) = (Resolvers::default(), Instant::now());
        let first = resolvers.current(&path, now).servers.clone();
        fs::remove_file(&path).unwrap();
        assert_eq!(resolvers.current(&path, now + FRESH / 2).servers, first);
        let later = resolvers.current(&path, now + 2 * FRESH).servers.clone();
        assert_eq!(later, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
}
