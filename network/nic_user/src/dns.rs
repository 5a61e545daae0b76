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

/// Where DNS over TCP goes.
pub(crate) fn first_resolver(cx: &Context) -> Option<SocketAddr> {
    let resolv = Resolv::read(&cx.config.resolv_conf);
    resolv.servers.first().map(|ip| SocketAddr::new(*ip, 53))
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
    resolv: Resolv,
    /// The file's date, and when it was looked at.
    read: Option<(Option<SystemTime>, Instant)>,
    /// For tests, whose resolvers have other ports.
    port: Option<u16>,
}

impl Relay {
    pub(crate) fn new(port: Option<u16>) -> Self {
        Self { port, ..Self::default() }
    }

    /// What the guest is told of names at start.
    pub(crate) fn domain(&mut self, cx: &Context) -> Option<&str> {
        self.refresh(cx);
        self.resolv.domain.as_deref()
    }

    fn refresh(&mut self, cx: &Context) {
        if let Some((_, at)) = self.read
            && cx.now.saturating_duration_since(at) < FRESH
        {
            return;
        }
        let date = fs::metadata(&cx.config.resolv_conf).and_then(|m| m.modified()).ok();
        if self.read.is_none_or(|(known, _)| known != date) {
            self.resolv = Resolv::read(&cx.config.resolv_conf);
        }
        self.read = Some((date, cx.now));
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
        self.refresh(cx);
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
        for (resolver, ip) in self.resolv.servers.iter().enumerate().skip(from) {
            let Ok(socket) = host::connect_udp(SocketAddr::new(*ip, port)) else { continue };
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
                if len < HEADER || answer.get(..2) != query.message.get(..2) {
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
}
