//! A store and its ring in saved state.

use crate::{
    Path, Permissions, Ring, Store, Tree,
    store::{EVENTS_MAX, HEARD_MAX, TRANSACTIONS_MAX, Transaction, WATCHES_MAX, Watch},
};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use xen_front::Page;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeState {
    path: String,
    value: Vec<u8>,
    owner: u16,
    others: u8,
    named: Vec<(u16, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchState {
    path: String,
    relative: bool,
    token: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransactionState {
    id: u32,
    nodes: Vec<NodeState>,
    generation: u64,
    changed: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreState {
    nodes: Vec<NodeState>,
    generation: u64,
    watches: Vec<WatchState>,
    transactions: Vec<TransactionState>,
    last_transaction: u32,
    /// Path and token.
    events: Vec<(String, String)>,
    /// Paths that the guest has changed, and the host has not looked at.
    heard: Vec<String>,
}

impl Schema for StoreState {
    const KIND: &'static str = "xen-store";
    const VERSION: u16 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RingState {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    broken: bool,
}

impl Schema for RingState {
    const KIND: &'static str = "xen-store-ring";
    const VERSION: u16 = 1;
}

/// A path as it is in the tree.
fn path(text: &str) -> Result<Path, Error> {
    Path::parse(text, "").map_err(|_| malformed::<StoreState>(format!("{text:?} is no path")))
}

fn nodes(tree: &Tree) -> Vec<NodeState> {
    let node = |(path, value, permissions): (&Path, &[u8], &Permissions)| NodeState {
        path: path.as_str().into(),
        value: value.to_vec(),
        owner: permissions.owner,
        others: permissions.others,
        named: permissions.named.clone(),
    };
    tree.nodes().map(node).collect()
}

fn tree(nodes: Vec<NodeState>) -> Result<Tree, Error> {
    let mut all = Vec::new();
    for NodeState { path: text, value, owner, others, named } in nodes {
        all.push((path(&text)?, value, Permissions { owner, others, named }));
    }
    Tree::of_nodes(all).ok_or_else(|| malformed::<StoreState>("a node has no parent"))
}

impl Store {
    pub fn save(&self, to: &mut Writer) {
        let watch = |watch: &Watch| WatchState {
            path: watch.path.as_str().into(),
            relative: watch.relative,
            token: watch.token.clone(),
        };
        let transaction = |(id, transaction): (&u32, &Transaction)| TransactionState {
            id: *id,
            nodes: nodes(&transaction.tree),
            generation: transaction.generation,
            changed: transaction.changed.iter().map(|path| path.as_str().into()).collect(),
        };
        to.put(
            0,
            &StoreState {
                nodes: nodes(&self.tree),
                generation: self.generation,
                watches: self.watches.iter().map(watch).collect(),
                transactions: self.transactions.iter().map(transaction).collect(),
                last_transaction: self.last,
                events: self.events.iter().cloned().collect(),
                heard: self.heard.iter().map(|path| path.as_str().into()).collect(),
            },
        );
    }

    pub fn restore(from: &mut Reader) -> Result<Self, Error> {
        let state: StoreState = from.take(0)?;
        let within = state.watches.len() <= WATCHES_MAX
            && state.transactions.len() <= TRANSACTIONS_MAX
            // A watch fires at first, however many there are.
            && state.events.len() <= EVENTS_MAX + WATCHES_MAX
            && state.heard.len() <= HEARD_MAX;
        if !within {
            return Err(malformed::<StoreState>("it has more than a guest may have"));
        }
        let paths = |all: Vec<String>| all.iter().map(|text| path(text)).collect::<Result<_, _>>();
        let mut store = Self {
            tree: tree(state.nodes)?,
            generation: state.generation,
            last: state.last_transaction,
            events: state.events.into_iter().collect(),
            heard: state.heard.iter().map(|text| path(text)).collect::<Result<_, _>>()?,
            ..Self::default()
        };
        for WatchState { path: text, relative, token } in state.watches {
            store.watches.push(Watch { path: path(&text)?, relative, token });
        }
        for TransactionState { id, nodes, generation, changed } in state.transactions {
            let (tree, changed) = (tree(nodes)?, paths(changed)?);
            store.transactions.insert(id, Transaction { tree, generation, changed });
        }
        Ok(store)
    }
}

impl Ring {
    pub fn save(&self, to: &mut Writer) {
        let (incoming, outgoing) = (self.incoming.clone(), self.outgoing.clone());
        to.put(0, &RingState { incoming, outgoing, broken: self.broken });
    }

    /// On the page where it was.
    pub fn restore(page: Page, from: &mut Reader) -> Result<Self, Error> {
        let RingState { incoming, outgoing, broken } = from.take(0)?;
        if incoming.len() > Self::INCOMING_MAX {
            return Err(malformed::<RingState>("a request is too long"));
        }
        Ok(Self { page, incoming, outgoing, broken })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> StoreState {
        let mut writer = Writer::default();
        Store::default().save(&mut writer);
        Reader::new(writer.finish()).unwrap().take(0).unwrap()
    }

    fn restore(state: &StoreState) -> Result<Store, Error> {
        let mut writer = Writer::default();
        writer.put(0, state);
        Store::restore(&mut Reader::new(writer.finish()).unwrap())
    }

    #[test]
    fn a_store_has_no_more_than_a_guest_may_have() {
        let good = restore(&state());
        assert_eq!(good.unwrap().events.len(), 0);
        let watch = WatchState { path: "/a".into(), relative: false, token: "t".into() };
        let changes: [fn(&mut StoreState, WatchState); 3] = [
            |state, watch| state.watches = vec![watch; WATCHES_MAX + 1],
            |state, _| state.events = vec![Default::default(); EVENTS_MAX + WATCHES_MAX + 1],
            |state, _| state.heard = vec!["/a".into(); HEARD_MAX + 1],
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut bad = state();
            change(&mut bad, watch.clone());
            assert!(restore(&bad).is_err(), "{n}");
        }
    }

    #[test]
    fn changes_are_counted_in_a_circle() {
        let mut state = state();
        state.generation = u64::MAX;
        let mut store = restore(&state).unwrap();
        store.write("/a", "x", None);
        assert_eq!(store.generation, 0);
    }
}
