//! The back ends' side of the handshake.

use crate::{
    Error,
    folders::{Folders, Id},
};
use std::{collections::BTreeMap, fmt, sync::Arc};
use xen_abi::xenbus::State;
use xen_front::{Backend, Connect, Domain};
use xen_store::{Path, Store};

/// What has become of a device, for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connected(Id),
    /// The driver asks for what cannot be: why.
    Failed(Id, String),
    /// The driver has let go.
    Closed(Id),
    /// It was to go, and has gone.
    Removed(Id),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(id) => write!(f, "{id}: connected"),
            Self::Failed(id, why) => write!(f, "{id}: cannot connect: {why}"),
            Self::Closed(id) => write!(f, "{id}: closed by its driver"),
            Self::Removed(id) => write!(f, "{id}: removed"),
        }
    }
}

/// What came of a request to remove a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// Its driver was asked to let go: [`Event::Removed`] comes when it has.
    Asked,
}

struct Slot {
    backend: Arc<dyn Backend>,
    folders: Folders,
}

/// The devices of a domain. Whoever has its xenstore calls [`Bus::changed`] with each path that the
/// domain has changed.
pub struct Bus {
    domain: Arc<dyn Domain>,
    slots: BTreeMap<Id, Slot>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("devices", &self.slots.keys()).finish()
    }
}

impl Bus {
    pub fn new(domain: Arc<dyn Domain>) -> Self {
        Self { domain, slots: BTreeMap::new() }
    }

    /// The domain has a device more, whether it runs or is yet to start.
    pub fn add(
        &mut self,
        store: &mut Store,
        number: u32,
        backend: Arc<dyn Backend>,
    ) -> Result<Id, Error> {
        let id = Id { kind: backend.kind(), number };
        if self.slots.contains_key(&id) {
            return Err(Error::Taken(id));
        }
        let folders = Folders::of(id);
        folders.create(store, id, &*backend);
        self.slots.insert(id, Slot { backend, folders });
        Ok(id)
    }

    /// Asks the driver to let go of a device, which is removed then; at once if it has none.
    pub fn remove(&mut self, store: &mut Store, id: Id) -> Result<Removal, Error> {
        let slot = self.slots.get(&id).ok_or(Error::Missing(id))?;
        match slot.folders.back_state(store) {
            Some(State::Connected | State::Closing) => {
                slot.folders.put_back(store, "online", "0");
                slot.folders.set_state(store, State::Closing);
                Ok(Removal::Asked)
            }
            _ => self.destroy(store, id).map(|()| Removal::Done),
        }
    }

    /// Takes a device away, whatever its driver does with it.
    pub fn destroy(&mut self, store: &mut Store, id: Id) -> Result<(), Error> {
        let slot = self.slots.remove(&id).ok_or(Error::Missing(id))?;
        slot.backend.disconnect();
        slot.folders.remove(store);
        Ok(())
    }

    /// The domain has changed a node. Tells what came of it.
    pub fn changed(&mut self, store: &mut Store, path: &Path) -> Vec<Event> {
        let concerned = self.slots.iter().filter(|(_, slot)| slot.folders.concern(path));
        let events: Vec<_> =
            concerned.filter_map(|(id, slot)| slot.follow(store, *id, &self.domain)).collect();
        for event in &events {
            if let Event::Removed(id) = event {
                self.slots.remove(id);
            }
        }
        events
    }

    /// The domain goes on from where it was suspended, in this tree: devices that were to go are
    /// gone, and the others as if they were added now.
    pub fn resume(&mut self, store: &mut Store) -> Vec<Event> {
        let leaving = |slot: &Slot| !slot.folders.is_online(store);
        let gone: Vec<Id> =
            self.slots.iter().filter(|(_, slot)| leaving(slot)).map(|(id, _)| *id).collect();
        let gone = gone.into_iter().filter(|id| self.destroy(store, *id).is_ok());
        let events = gone.map(Event::Removed).collect();
        self.restart(store);
        events
    }

    /// The domain starts anew: all devices are as if they were added now, to this tree.
    pub fn restart(&mut self, store: &mut Store) {
        for (id, slot) in &self.slots {
            slot.backend.disconnect();
            slot.folders.create(store, *id, &*slot.backend);
        }
    }

    /// Of the domain that was saved with this tree. `backends` are those that it had, with their
    /// numbers: their states are restored, with which none is connected any more, and they go on. One
    /// whose driver has undone meanwhile what it connected by fails alone, as at first: else a guest
    /// could see to it that it is never restored.
    pub fn restore(
        &mut self,
        store: &mut Store,
        backends: Vec<(u32, Arc<dyn Backend>)>,
    ) -> Result<Vec<Event>, Error> {
        self.slots.clear();
        let mut events = Vec::new();
        for (number, backend) in backends {
            let id = Id { kind: backend.kind(), number };
            let slot = Slot { backend, folders: Folders::of(id) };
            let state = slot.folders.back_state(store);
            let state = state.ok_or_else(|| Error::Restore(id, "it was not there".into()))?;
            if self.slots.contains_key(&id) {
                return Err(Error::Taken(id));
            }
            if slot.is_connected(store, state) {
                let nodes = slot.folders.front_nodes(store);
                if let Err(why) = slot.backend.connect(&self.domain, &nodes, Connect::Again) {
                    events.push(slot.fail(store, id, why));
                }
            }
            self.slots.insert(id, slot);
        }
        Ok(events)
    }

    /// Nothing uses the domain's memory any more, and nothing comes of what it writes: it ends.
    pub fn disconnect(&self) {
        self.slots.values().for_each(|slot| slot.backend.disconnect());
    }

    /// All devices, and how far each is.
    pub fn devices(&self, store: &Store) -> Vec<(Id, Arc<dyn Backend>, State)> {
        let state = |slot: &Slot| slot.folders.back_state(store).unwrap_or(State::Unknown);
        self.slots.iter().map(|(id, slot)| (*id, slot.backend.clone(), state(slot))).collect()
    }
}

impl Slot {
    /// Whether the back end uses the driver's pages, which it does until the driver has let go.
    fn is_connected(&self, store: &Store, state: State) -> bool {
        let node = format!("{}/connected", self.folders.back);
        matches!(state, State::Connected | State::Closing)
            && store.read(&node).as_deref() == Some("1")
    }

    /// Does what the driver's state asks for.
    fn follow(&self, store: &mut Store, id: Id, domain: &Arc<dyn Domain>) -> Option<Event> {
        let state = self.folders.back_state(store)?;
        match (self.folders.front_state(store), state) {
            // It begins, after it had closed or without having closed.
            (State::Initialising, State::InitWait | State::Initialising) => None,
            (State::Initialising, _) => {
                self.backend.disconnect();
                if !self.folders.is_online(store) {
                    return Some(self.leave(store, id));
                }
                self.folders.put_back(store, "connected", "0");
                self.folders.offer(store, &*self.backend);
                None
            }
            (State::Initialised | State::Connected, State::InitWait | State::Closed) => {
                Some(self.connect(store, id, domain))
            }
            (State::Closing, State::InitWait | State::Connected) => {
                // What it has asked for is still done, until it has closed.
                self.folders.set_state(store, State::Closing);
                None
            }
            (State::Closed | State::Unknown, state) => self.close(store, id, state),
            _ => None,
        }
    }

    fn connect(&self, store: &mut Store, id: Id, domain: &Arc<dyn Domain>) -> Event {
        let nodes = self.folders.front_nodes(store);
        match self.backend.connect(domain, &nodes, Connect::First) {
            Ok(more) => {
                self.folders.say(store, more);
                self.folders.put_back(store, "connected", "1");
                self.folders.set_state(store, State::Connected);
                Event::Connected(id)
            }
            Err(why) => self.fail(store, id, why),
        }
    }

    fn fail(&self, store: &mut Store, id: Id, why: String) -> Event {
        self.backend.disconnect();
        self.folders.set_error(store, &why);
        self.folders.put_back(store, "connected", "0");
        self.folders.set_state(store, State::Closing);
        Event::Failed(id, why)
    }

    fn close(&self, store: &mut Store, id: Id, state: State) -> Option<Event> {
        self.backend.disconnect();
        if !self.folders.is_online(store) {
            return Some(self.leave(store, id));
        }
        if state == State::Closed {
            return None;
        }
        self.folders.put_back(store, "connected", "0");
        self.folders.set_state(store, State::Closed);
        Some(Event::Closed(id))
    }

    fn leave(&self, store: &mut Store, id: Id) -> Event {
        self.folders.remove(store);
        Event::Removed(id)
    }
}
