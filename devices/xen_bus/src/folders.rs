//! The two folders of a device.

use std::fmt;
use xen_abi::xenbus::State;
use xen_front::{Backend, Nodes};
use xen_store::{GUEST, HOST, Path, Permissions, Store};

/// Which device of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// [`Backend::kind`].
    pub kind: &'static str,
    pub number: u32,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.number)
    }
}

/// Paths of a device's folders, and what is put there.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    pub(crate) front: String,
    pub(crate) back: String,
}

/// Owned by one side, and read by the other.
fn permissions(owner: u16, reader: u16) -> Permissions {
    Permissions { named: vec![(reader, b'r')], ..Permissions::of(owner) }
}

impl Folders {
    pub(crate) fn of(id: Id) -> Self {
        let Id { kind, number } = id;
        Self {
            front: format!("/local/domain/{GUEST}/device/{kind}/{number}"),
            back: format!("/local/domain/{HOST}/backend/{kind}/{GUEST}/{number}"),
        }
    }

    /// Whether a node that has changed is in the driver's folder, or that in it.
    pub(crate) fn concern(&self, path: &Path) -> bool {
        Path::parse(&self.front, "")
            .is_ok_and(|front| path.is_within(&front) || front.is_within(path))
    }

    /// Both folders, as they are for a driver that has not begun.
    pub(crate) fn create(&self, store: &mut Store, id: Id, backend: &dyn Backend) {
        self.remove(store);
        store.write(&self.back, "", Some(permissions(HOST, GUEST)));
        self.put_back(store, "frontend", &self.front);
        self.put_back(store, "frontend-id", &GUEST.to_string());
        self.put_back(store, "online", "1");
        self.offer(store, backend);
        store.write(&self.front, "", Some(permissions(GUEST, HOST)));
        self.put_front(store, "backend", &self.back);
        self.put_front(store, "backend-id", &HOST.to_string());
        self.put_front(store, "handle", &id.number.to_string());
        for (name, value) in backend.front() {
            self.put_front(store, &name, &value);
        }
        self.put_front(store, "state", &State::Initialising.text());
    }

    /// What the back end can do, for a driver to choose from.
    pub(crate) fn offer(&self, store: &mut Store, backend: &dyn Backend) {
        self.say(store, backend.features());
        self.set_state(store, State::InitWait);
    }

    /// In the back end's folder.
    pub(crate) fn say(&self, store: &mut Store, nodes: Nodes) {
        for (name, value) in nodes {
            self.put_back(store, &name, &value);
        }
    }

    pub(crate) fn put_back(&self, store: &mut Store, name: &str, value: &str) {
        store.write(&format!("{}/{name}", self.back), value, None);
    }

    fn put_front(&self, store: &mut Store, name: &str, value: &str) {
        store.write(&format!("{}/{name}", self.front), value, None);
    }

    pub(crate) fn set_state(&self, store: &mut Store, state: State) {
        self.put_back(store, "state", &state.text());
    }

    /// What the back end says of itself, where the domain cannot write; `None` without a folder.
    pub(crate) fn back_state(&self, store: &Store) -> Option<State> {
        store.read(&format!("{}/state", self.back)).map(|text| State::parse(&text))
    }

    pub(crate) fn is_online(&self, store: &Store) -> bool {
        store.read(&format!("{}/online", self.back)).as_deref() == Some("1")
    }

    pub(crate) fn front_state(&self, store: &Store) -> State {
        store
            .read(&format!("{}/state", self.front))
            .map_or(State::Unknown, |text| State::parse(&text))
    }

    /// All that the driver has written.
    pub(crate) fn front_nodes(&self, store: &Store) -> Nodes {
        store.below(&self.front).into_iter().collect()
    }

    /// Where an operator of domain 0 looks, as `xenbus_dev_error` of Linux says it.
    pub(crate) fn set_error(&self, store: &mut Store, why: &str) {
        let inside = self.back.strip_prefix("/local/domain/0/").unwrap_or("");
        store.write(&format!("/local/domain/{HOST}/error/{inside}/error"), why, None);
    }

    pub(crate) fn remove(&self, store: &mut Store) {
        store.remove(&self.front);
        store.remove(&self.back);
    }
}
