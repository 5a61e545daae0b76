//! Requests and their replies, watches, transactions.

use crate::{Error, Path, Permissions, Tree, events::Events};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use xen_abi::{
    DomainId,
    xs_wire::{Header, PAYLOAD_MAX, kind},
};
use zerocopy::IntoBytes;

/// The guest's number.
pub const GUEST: DomainId = 1;
/// Whoever is around it.
pub const HOST: DomainId = 0;
/// Of the guest's, at once.
pub(crate) const WATCHES_MAX: usize = 128;
pub(crate) const TRANSACTIONS_MAX: usize = 10;
/// Paths that one transaction changes.
const CHANGES_MAX: usize = 1024;
/// Events that wait for the guest to take them: a transaction with all its changes, seen by all
/// watches, would be a gigabyte. Those that come too late are lost.
pub(crate) const EVENTS_MAX: usize = 1024;
/// Changes that wait for the host to look at them: of more, it looks at all.
pub(crate) const HEARD_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub(crate) path: Path,
    /// As it was given, for events name paths by it.
    pub(crate) relative: bool,
    pub(crate) token: String,
}

/// Changes that come to be all at once, or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    pub(crate) tree: Tree,
    /// Of the tree that it began with.
    pub(crate) generation: u64,
    pub(crate) changed: BTreeSet<Path>,
}

/// The tree of one guest, and its conversation.
#[derive(Debug, Default)]
pub struct Store {
    pub(crate) tree: Tree,
    /// Counts changes.
    pub(crate) generation: u64,
    pub(crate) watches: Vec<Watch>,
    pub(crate) transactions: BTreeMap<u32, Transaction>,
    pub(crate) last: u32,
    /// Events that the guest is to hear of.
    pub(crate) events: Events,
    /// Paths that the guest has changed.
    pub(crate) heard: VecDeque<Path>,
}

fn home() -> String {
    format!("/local/domain/{GUEST}")
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Invalid)
}

/// The strings of a payload, each of which ends with a zero.
fn strings(payload: &[u8]) -> Result<Vec<&str>, Error> {
    let payload = payload.strip_suffix(b"\0").ok_or(Error::Invalid)?;
    payload.split(|byte| *byte == 0).map(text).collect()
}

fn one(payload: &[u8]) -> Result<&str, Error> {
    match strings(payload)?.as_slice() {
        [one] => Ok(one),
        _ => Err(Error::Invalid),
    }
}

impl Store {
    /// What a path has, for the host.
    pub fn read(&self, path: &str) -> Option<String> {
        let path = Path::parse(path, "").ok()?;
        let value = self.tree.read(HOST, &path).ok()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// The host writes, with these permissions for the node and those that are missing above.
    pub fn write(&mut self, path: &str, value: &str, permissions: Option<Permissions>) {
        let Ok(path) = Path::parse(path, "") else { return };
        if self.tree.write(HOST, &path, value.as_bytes()).is_ok() {
            if let Some(permissions) = permissions {
                let _ = self.tree.set_permissions(HOST, &path, permissions);
            }
            self.changed(&path, HOST);
        }
    }

    pub fn remove(&mut self, path: &str) {
        let Ok(path) = Path::parse(path, "") else { return };
        if self.tree.remove(HOST, &path).is_ok() {
            self.changed(&path, HOST);
        }
    }

    /// Names of what is in a node.
    pub fn list(&self, path: &str) -> Vec<String> {
        let path = Path::parse(path, "");
        let found = path.and_then(|path| {
            Ok(self.tree.children(HOST, &path)?.into_iter().map(str::to_owned).collect())
        });
        found.unwrap_or_default()
    }

    /// All that is in a node, however deep: names below it, as `queue-0/ring-ref`, and values.
    pub fn below(&self, path: &str) -> Vec<(String, String)> {
        let Ok(path) = Path::parse(path, "") else { return Vec::new() };
        let each = self.tree.below(&path).filter_map(|(node, value)| {
            let name = node.as_str().strip_prefix(path.as_str())?.trim_start_matches('/');
            Some((name.to_owned(), String::from_utf8_lossy(value).into_owned()))
        });
        each.collect()
    }

    /// Forgets the conversation with the guest, which begins another: what it watches, and what it
    /// has not been told yet or not ended.
    pub fn forget(&mut self) {
        self.watches.clear();
        self.events.clear();
        self.transactions.clear();
    }

    /// The next path that the guest has changed.
    pub fn next_change(&mut self) -> Option<Path> {
        self.heard.pop_front()
    }

    /// The next event for the guest, as a message.
    pub fn next_event(&mut self) -> Option<Vec<u8>> {
        let (path, token) = self.events.pop()?;
        let payload = format!("{path}\0{token}\0");
        Some(message(Header { kind: kind::WATCH_EVENT, ..Header::default() }, payload.as_bytes()))
    }

    fn changed(&mut self, path: &Path, by: DomainId) {
        self.generation = self.generation.wrapping_add(1);
        if by == GUEST {
            if self.heard.len() >= HEARD_MAX {
                self.heard.clear();
                self.heard.push_back(Path::root());
            } else if self.heard.front() != Some(&Path::root()) {
                self.heard.push_back(path.clone());
            }
        }
        for watch in &self.watches {
            if self.events.len() >= EVENTS_MAX {
                return;
            }
            // A node that is removed is news for those who watch in it.
            if path.is_within(&watch.path) || watch.path.is_within(path) {
                let named = if path.is_within(&watch.path) { path } else { &watch.path };
                let event = (watch.shown(named), watch.token.clone());
                // Twice the same says no more, and one that is no message says nothing.
                let fits = event.0.len() + event.1.len() + 2 <= PAYLOAD_MAX;
                if fits {
                    self.events.push_once(event);
                }
            }
        }
    }

    /// The answer to a request of the guest's.
    pub fn answer(&mut self, header: Header, payload: &[u8]) -> Vec<u8> {
        let Header { kind, request, transaction, .. } = header;
        let reply = Header { kind, request, transaction, length: 0 };
        match self.request(header, payload) {
            Ok(answer) if answer.len() <= PAYLOAD_MAX => message(reply, &answer),
            Ok(_) => error(reply, Error::TooBig),
            Err(why) => error(reply, why),
        }
    }

    fn request(&mut self, header: Header, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let ok = || b"OK\0".to_vec();
        let home = home();
        match header.kind {
            kind::WATCH => {
                let [path, token] = strings(payload)?[..] else { return Err(Error::Invalid) };
                self.watch(path, token)?;
                Ok(ok())
            }
            kind::UNWATCH => {
                let [path, token] = strings(payload)?[..] else { return Err(Error::Invalid) };
                let path = Path::parse(path, &home)?;
                let same = |watch: &Watch| watch.path == path && watch.token == token;
                let at = self.watches.iter().position(same).ok_or(Error::NoEntry)?;
                drop(self.watches.remove(at));
                Ok(ok())
            }
            kind::RESET_WATCHES => {
                self.forget();
                Ok(ok())
            }
            kind::TRANSACTION_START => Ok(format!("{}\0", self.start()?).into_bytes()),
            kind::TRANSACTION_END => {
                self.end(header.transaction, one(payload)?)?;
                Ok(ok())
            }
            kind::GET_DOMAIN_PATH => {
                let id: u32 = one(payload)?.parse().map_err(|_| Error::Invalid)?;
                Ok(format!("/local/domain/{id}\0").into_bytes())
            }
            kind::IS_DOMAIN_INTRODUCED => {
                let id: u32 = one(payload)?.parse().map_err(|_| Error::Invalid)?;
                Ok(if id <= u32::from(GUEST) { b"T\0".to_vec() } else { b"F\0".to_vec() })
            }
            _ => self.on_tree(header, payload),
        }
    }

    /// Requests that a transaction may have.
    fn on_tree(&mut self, header: Header, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let home = home();
        let ok = || b"OK\0".to_vec();
        let tree = match header.transaction {
            0 => &mut self.tree,
            id => {
                let transaction = self.transactions.get_mut(&id).ok_or(Error::NoEntry)?;
                let reads = [kind::READ, kind::DIRECTORY, kind::GET_PERMS].contains(&header.kind);
                if !reads && transaction.changed.len() >= CHANGES_MAX {
                    return Err(Error::NoSpace);
                }
                &mut transaction.tree
            }
        };
        let changed = match header.kind {
            kind::READ => {
                return Ok(tree.read(GUEST, &Path::parse(one(payload)?, &home)?)?.to_vec());
            }
            kind::DIRECTORY => {
                let path = Path::parse(one(payload)?, &home)?;
                let names = tree.children(GUEST, &path)?;
                return Ok(names.iter().flat_map(|name| name.bytes().chain([0])).collect());
            }
            kind::GET_PERMS => {
                let path = Path::parse(one(payload)?, &home)?;
                return Ok(shown(tree.permissions(GUEST, &path)?));
            }
            kind::WRITE => {
                // The value is whatever follows the path's zero.
                let end = payload.iter().position(|byte| *byte == 0).ok_or(Error::Invalid)?;
                let (path, value) = payload.split_at(end);
                let path = Path::parse(text(path)?, &home)?;
                tree.write(GUEST, &path, value.get(1..).unwrap_or(&[]))?;
                path
            }
            kind::MKDIR => {
                let path = Path::parse(one(payload)?, &home)?;
                tree.make(GUEST, &path)?;
                path
            }
            kind::RM => {
                let path = Path::parse(one(payload)?, &home)?;
                tree.remove(GUEST, &path)?;
                path
            }
            kind::SET_PERMS => {
                let all = strings(payload)?;
                let [path, permissions @ ..] = all.as_slice() else { return Err(Error::Invalid) };
                let path = Path::parse(path, &home)?;
                tree.set_permissions(GUEST, &path, parse_permissions(permissions)?)?;
                path
            }
            _ => return Err(Error::NotImplemented),
        };
        match header.transaction {
            0 => self.changed(&changed, GUEST),
            id => {
                if let Some(transaction) = self.transactions.get_mut(&id) {
                    transaction.changed.insert(changed);
                }
            }
        }
        Ok(ok())
    }

    fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        let relative = !path.starts_with('/') && !path.starts_with('@');
        // @introduceDomain and @releaseDomain never happen to one guest.
        let parsed = if path.starts_with('@') {
            Path::parse(&format!("/{path}"), "")?
        } else {
            Path::parse(path, &home())?
        };
        let watch = Watch { path: parsed, relative, token: token.into() };
        if self.watches.iter().any(|old| old.path == watch.path && old.token == watch.token) {
            return Err(Error::Exists);
        }
        if self.watches.len() >= WATCHES_MAX {
            return Err(Error::NoSpace);
        }
        // It fires once at first, whether the node is there or not.
        self.events.push((path.into(), token.into()));
        self.watches.push(watch);
        Ok(())
    }

    fn start(&mut self) -> Result<u32, Error> {
        if self.transactions.len() >= TRANSACTIONS_MAX {
            return Err(Error::NoSpace);
        }
        self.last = self.last.checked_add(1).unwrap_or(1);
        let (tree, generation) = (self.tree.clone(), self.generation);
        let new = Transaction { tree, generation, changed: BTreeSet::new() };
        let _ = self.transactions.insert(self.last, new);
        Ok(self.last)
    }

    fn end(&mut self, id: u32, how: &str) -> Result<(), Error> {
        let commit = match how {
            "T" => true,
            "F" => false,
            _ => return Err(Error::Invalid),
        };
        let done = self.transactions.remove(&id).ok_or(Error::NoEntry)?;
        if !commit || done.changed.is_empty() {
            return Ok(());
        }
        if done.generation != self.generation {
            return Err(Error::Again);
        }
        self.tree = done.tree;
        for path in done.changed {
            self.changed(&path, GUEST);
        }
        Ok(())
    }
}

impl Watch {
    /// A path as the guest named what it watches.
    fn shown(&self, path: &Path) -> String {
        let home = home();
        let inside = path.as_str().strip_prefix(&home).and_then(|rest| rest.strip_prefix('/'));
        match inside {
            Some(inside) if self.relative => inside.into(),
            _ => path.as_str().into(),
        }
    }
}

fn message(header: Header, payload: &[u8]) -> Vec<u8> {
    let header = Header { length: payload.len() as u32, ..header };
    [header.as_bytes(), payload].concat()
}

fn error(header: Header, why: Error) -> Vec<u8> {
    message(Header { kind: kind::ERROR, ..header }, format!("{}\0", why.name()).as_bytes())
}

fn shown(permissions: &Permissions) -> Vec<u8> {
    let mut all = format!("{}{}\0", char::from(permissions.others), permissions.owner);
    for (id, letter) in &permissions.named {
        all.push_str(&format!("{}{id}\0", char::from(*letter)));
    }
    all.into_bytes()
}

fn parse_permissions(all: &[&str]) -> Result<Permissions, Error> {
    let parse = |text: &&str| {
        let letter = *text.as_bytes().first().ok_or(Error::Invalid)?;
        let id = text.get(1..).and_then(|id| id.parse().ok()).ok_or(Error::Invalid)?;
        if b"rwbn".contains(&letter) { Ok((id, letter)) } else { Err(Error::Invalid) }
    };
    let mut all = all.iter().map(parse).collect::<Result<Vec<(DomainId, u8)>, Error>>()?;
    if all.is_empty() || all.len() > 16 {
        return Err(Error::Invalid);
    }
    let (owner, others) = all.remove(0);
    Ok(Permissions { owner, others, named: all })
}
