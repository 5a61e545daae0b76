//! The nodes.

use crate::{Error, Path};
use std::collections::BTreeMap;
use xen_abi::DomainId;

/// Who may do what with a node: its owner all, others by default or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    pub owner: DomainId,
    /// `r`, `w`, `b` or `n`, of whoever is not named.
    pub others: u8,
    pub named: Vec<(DomainId, u8)>,
}

impl Permissions {
    /// For its owner alone.
    pub fn of(owner: DomainId) -> Self {
        Self { owner, others: b'n', named: Vec::new() }
    }

    fn of_domain(&self, who: DomainId) -> u8 {
        self.named.iter().find(|(id, _)| *id == who).map_or(self.others, |(_, letter)| *letter)
    }

    pub fn lets_read(&self, who: DomainId) -> bool {
        who == 0 || who == self.owner || matches!(self.of_domain(who), b'r' | b'b')
    }

    pub fn lets_write(&self, who: DomainId) -> bool {
        who == 0 || who == self.owner || matches!(self.of_domain(who), b'w' | b'b')
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    value: Vec<u8>,
    permissions: Permissions,
}

/// Bytes of a value and its node's name, of a guest's.
const SIZE_MAX: usize = 2048;
/// Nodes that a guest owns.
const NODES_MAX: usize = 1000;

/// All nodes. Every node's parent exists.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: BTreeMap<Path, Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let permissions = Permissions { others: b'r', ..Permissions::of(0) };
        Self { nodes: BTreeMap::from([(Path::root(), Node { value: Vec::new(), permissions })]) }
    }
}

impl Tree {
    /// All of them, each behind its parent.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&Path, &[u8], &Permissions)> {
        self.nodes.iter().map(|(path, node)| (path, &*node.value, &node.permissions))
    }

    /// The opposite; `None` if a parent is not there.
    pub(crate) fn of_nodes(
        all: impl IntoIterator<Item = (Path, Vec<u8>, Permissions)>,
    ) -> Option<Self> {
        let node = |(path, value, permissions)| (path, Node { value, permissions });
        let nodes: BTreeMap<Path, Node> = all.into_iter().map(node).collect();
        let whole = nodes.contains_key(&Path::root())
            && nodes.keys().all(|path| path.parent().is_none_or(|up| nodes.contains_key(&up)));
        whole.then_some(Self { nodes })
    }

    fn node(&self, path: &Path) -> Result<&Node, Error> {
        self.nodes.get(path).ok_or(Error::NoEntry)
    }

    fn readable(&self, who: DomainId, path: &Path) -> Result<&Node, Error> {
        let node = self.node(path)?;
        if node.permissions.lets_read(who) { Ok(node) } else { Err(Error::Access) }
    }

    pub fn read(&self, who: DomainId, path: &Path) -> Result<&[u8], Error> {
        Ok(&self.readable(who, path)?.value)
    }

    pub fn permissions(&self, who: DomainId, path: &Path) -> Result<&Permissions, Error> {
        Ok(&self.readable(who, path)?.permissions)
    }

    /// Names of the nodes in this one.
    pub fn children(&self, who: DomainId, path: &Path) -> Result<Vec<&str>, Error> {
        self.readable(who, path)?;
        let below = self.nodes.range(path.clone()..).map(|(other, _)| other);
        let inside = below.take_while(|other| {
            // Siblings whose names begin alike are in between.
            other.as_str().starts_with(path.as_str())
        });
        Ok(inside.filter(|other| other.parent().as_ref() == Some(path)).map(Path::name).collect())
    }

    /// All nodes in this one, however deep, with their values.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a Path, &'a [u8])> {
        let from = self.nodes.range(path.clone()..);
        let near = from.take_while(|(other, _)| other.as_str().starts_with(path.as_str()));
        let inside = near.filter(move |(other, _)| *other != path && other.is_within(path));
        inside.map(|(other, node)| (other, &*node.value))
    }

    /// Makes the nodes that are missing on the way, and this one with this value.
    pub fn write(&mut self, who: DomainId, path: &Path, value: &[u8]) -> Result<(), Error> {
        if who != 0 && value.len() + path.as_str().len() > SIZE_MAX {
            return Err(Error::NoSpace);
        }
        match self.nodes.get_mut(path) {
            Some(node) if node.permissions.lets_write(who) => {
                node.value = value.to_vec();
                Ok(())
            }
            Some(_) => Err(Error::Access),
            None => self.create(who, path, value),
        }
    }

    /// As [`Tree::write`], but leaves a value that is there.
    pub fn make(&mut self, who: DomainId, path: &Path) -> Result<(), Error> {
        match self.nodes.get(path) {
            Some(node) if node.permissions.lets_write(who) => Ok(()),
            Some(_) => Err(Error::Access),
            None => self.create(who, path, b""),
        }
    }

    fn create(&mut self, who: DomainId, path: &Path, value: &[u8]) -> Result<(), Error> {
        let mut missing = vec![path.clone()];
        let mut above = path.parent().ok_or(Error::Invalid)?;
        let permissions = loop {
            if let Some(node) = self.nodes.get(&above) {
                break node.permissions.clone();
            }
            missing.push(above.clone());
            above = above.parent().ok_or(Error::Invalid)?;
        };
        if !permissions.lets_write(who) {
            return Err(Error::Access);
        }
        let has = || self.nodes.values().filter(|node| node.permissions.owner == who).count();
        if who != 0 && has() + missing.len() > NODES_MAX {
            return Err(Error::NoSpace);
        }
        // What a guest makes is its own; what the host makes belongs to whom it is made for.
        let owner = if who == 0 { permissions.owner } else { who };
        let permissions = Permissions { owner, ..permissions };
        for new in missing {
            let value = if new == *path { value.to_vec() } else { Vec::new() };
            let _ = self.nodes.insert(new, Node { value, permissions: permissions.clone() });
        }
        Ok(())
    }

    /// Removes a node and all in it.
    pub fn remove(&mut self, who: DomainId, path: &Path) -> Result<(), Error> {
        let parent = path.parent().ok_or(Error::Invalid)?;
        match self.nodes.get(path) {
            Some(node) if node.permissions.lets_write(who) => {}
            Some(_) => return Err(Error::Access),
            // One that is not there is gone, but not one that could not be.
            None => return self.node(&parent).map(|_| ()),
        }
        self.nodes.retain(|other, _| !other.is_within(path));
        Ok(())
    }

    pub fn set_permissions(
        &mut self,
        who: DomainId,
        path: &Path,
        permissions: Permissions,
    ) -> Result<(), Error> {
        let node = self.nodes.get_mut(path).ok_or(Error::NoEntry)?;
        let allowed = who == 0 || (node.permissions.owner == who && permissions.owner == who);
        if !allowed {
            return Err(Error::Access);
        }
        node.permissions = permissions;
        Ok(())
    }
}
