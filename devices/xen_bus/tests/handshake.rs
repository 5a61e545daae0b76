//! Drivers that follow the protocol, that leave, that return, and that do neither.

use device::Device;
use proptest::prelude::*;
use saved_state::{Error as StateError, Reader, Writer};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};
use xen_abi::xs_wire::{Header, kind};
use xen_bus::{Bus, Error, Event, Id, Removal};
use xen_front::{Backend, Connect, Domain, Nodes, fake::FakeDomain};
use xen_store::{Path, Permissions, Store};

const FRONT: &str = "/local/domain/1/device/lamp/3";
const BACK: &str = "/local/domain/0/backend/lamp/1/3";
const LAMP: Id = Id { kind: "lamp", number: 3 };

/// A back end that remembers what was done with it.
#[derive(Default)]
struct Lamp {
    connected: AtomicBool,
    refuses: AtomicBool,
    connections: AtomicU32,
    /// Its state is there, for a connection that goes on.
    restored: AtomicBool,
    last: Mutex<Option<(Nodes, Connect)>>,
}

impl Device for Lamp {
    fn name(&self) -> String {
        "lamp".into()
    }
    fn reset(&self) {
        self.disconnect();
    }
    fn save(&self, _: &mut Writer) {}
    fn restore(&self, _: &mut Reader) -> Result<(), StateError> {
        Ok(())
    }
}

impl Backend for Lamp {
    fn kind(&self) -> &'static str {
        "lamp"
    }
    fn front(&self) -> Nodes {
        [("colour".to_owned(), "red".to_owned())].into()
    }
    fn features(&self) -> Nodes {
        [("feature-dim".to_owned(), "1".to_owned())].into()
    }
    fn connect(&self, _: &Arc<dyn Domain>, front: &Nodes, how: Connect) -> Result<Nodes, String> {
        // A back end that is connected is never connected again.
        assert!(!self.connected.load(SeqCst));
        *self.last.lock().unwrap() = Some((front.clone(), how));
        if self.refuses.load(SeqCst) {
            return Err("no such ring".into());
        }
        let restored = self.restored.swap(false, SeqCst);
        if how == Connect::Again && !restored {
            return Err("no state".into());
        }
        self.connected.store(true, SeqCst);
        self.connections.fetch_add(1, SeqCst);
        Ok([("lumens".to_owned(), "800".to_owned())].into())
    }
    fn disconnect(&self) {
        self.connected.store(false, SeqCst);
        self.restored.store(false, SeqCst);
    }
}

struct World {
    store: Store,
    bus: Bus,
    lamp: Arc<Lamp>,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { store: tree(), bus: Bus::new(FakeDomain::new(1)), lamp: Arc::default() };
        assert_eq!(world.bus.add(&mut world.store, 3, world.lamp.clone()), Ok(LAMP));
        world
    }

    /// A request of the domain's; what the reply says, and what came of it.
    fn ask(&mut self, kind: u32, payload: &str) -> (String, Vec<Event>) {
        let header = Header { kind, length: payload.len() as u32, ..Header::default() };
        let reply = self.store.answer(header, payload.as_bytes());
        let mut events = Vec::new();
        while let Some(path) = self.store.next_change() {
            events.extend(self.bus.changed(&mut self.store, &path));
        }
        (String::from_utf8_lossy(reply.get(16..).unwrap_or(&[])).into_owned(), events)
    }

    fn write(&mut self, node: &str, value: &str) -> Vec<Event> {
        let (reply, events) = self.ask(kind::WRITE, &format!("device/lamp/3/{node}\0{value}"));
        assert_eq!(reply, "OK\0");
        events
    }

    fn state(&mut self, state: &str) -> Vec<Event> {
        self.write("state", state)
    }

    /// What the back end says, as the domain reads it.
    fn back(&mut self, node: &str) -> String {
        self.ask(kind::READ, &format!("{BACK}/{node}\0")).0
    }

    fn is_connected(&self) -> bool {
        self.lamp.connected.load(SeqCst)
    }

    fn connect(&mut self) {
        assert_eq!(self.state("4"), [Event::Connected(LAMP)]);
        assert!(self.is_connected());
    }
}

fn tree() -> Store {
    let mut store = Store::default();
    store.write("/local/domain/1", "", Some(Permissions::of(1)));
    store.write("/local/domain/1/device", "", Some(Permissions::of(1)));
    store
}

#[test]
fn a_driver_finds_a_device_and_connects() {
    let mut world = World::new();
    for (node, value) in
        [("backend", BACK), ("backend-id", "0"), ("handle", "3"), ("colour", "red"), ("state", "1")]
    {
        assert_eq!(world.ask(kind::READ, &format!("device/lamp/3/{node}\0")).0, value);
    }
    for (node, value) in [
        ("frontend", FRONT),
        ("frontend-id", "1"),
        ("online", "1"),
        ("feature-dim", "1"),
        ("state", "2"),
    ] {
        assert_eq!(world.back(node), value);
    }
    // It is the host's.
    assert_eq!(world.ask(kind::WRITE, &format!("{BACK}/state\x004")).0, "EACCES\0");
    assert_eq!(world.ask(kind::RM, &format!("{BACK}\0")).0, "EACCES\0");
    assert!(world.write("queue-0/ring-ref", "8").is_empty());
    assert_eq!(world.state("3"), [Event::Connected(LAMP)]);
    assert_eq!((world.back("state"), world.back("lumens")), ("4".into(), "800".into()));
    assert!(world.state("4").is_empty());
    let (nodes, how) = world.lamp.last.lock().unwrap().clone().unwrap();
    assert_eq!(
        (how, nodes.get("queue-0/ring-ref").map(String::as_str)),
        (Connect::First, Some("8"))
    );
    assert_eq!(world.lamp.connections.load(SeqCst), 1);
}

#[test]
fn a_driver_leaves_and_another_comes() {
    let mut world = World::new();
    world.connect();
    // As Linux' `xenbus_reset_frontend` does after kexec.
    assert!(world.state("5").is_empty());
    assert_eq!((world.back("state"), world.is_connected()), ("5".into(), true));
    assert_eq!(world.state("6"), [Event::Closed(LAMP)]);
    assert_eq!((world.back("state"), world.is_connected()), ("6".into(), false));
    assert!(world.state("6").is_empty() && world.state("1").is_empty());
    assert_eq!(world.back("state"), "2");
    world.connect();
    // One that begins anew without a word of the other.
    assert!(world.state("1").is_empty());
    assert_eq!((world.back("state"), world.is_connected()), ("2".into(), false));
    world.connect();
    // Its folder goes.
    assert_eq!(world.ask(kind::RM, "device\0").1, [Event::Closed(LAMP)]);
    assert_eq!((world.back("state"), world.is_connected()), ("6".into(), false));
}

#[test]
fn why_it_cannot_connect_is_told() {
    let mut world = World::new();
    world.lamp.refuses.store(true, SeqCst);
    let event = Event::Failed(LAMP, "no such ring".into());
    assert_eq!(event.to_string(), "lamp/3: cannot connect: no such ring");
    assert_eq!(world.state("4"), [event]);
    assert_eq!(world.back("state"), "5");
    let told = world.store.read("/local/domain/0/error/backend/lamp/1/3/error");
    assert_eq!(told.as_deref(), Some("no such ring"));
    // Not again until it has let go.
    world.lamp.refuses.store(false, SeqCst);
    assert!(world.state("4").is_empty() && !world.is_connected());
    assert_eq!(world.state("6"), [Event::Closed(LAMP)]);
    assert!(world.state("1").is_empty());
    world.connect();
}

#[test]
fn a_device_is_removed_when_its_driver_has_let_go() {
    let mut world = World::new();
    world.connect();
    assert_eq!(world.bus.remove(&mut world.store, LAMP), Ok(Removal::Asked));
    assert_eq!((world.back("state"), world.back("online")), ("5".into(), "0".into()));
    // What is still to be written is.
    assert!(world.is_connected());
    assert!(world.state("4").is_empty() && world.state("5").is_empty() && world.is_connected());
    assert_eq!(world.state("6"), [Event::Removed(LAMP)]);
    assert!(!world.is_connected());
    assert_eq!((world.store.read(FRONT), world.store.read(BACK)), (None, None));
    assert_eq!(world.bus.remove(&mut world.store, LAMP), Err(Error::Missing(LAMP)));
    // And comes back, while the domain runs: who watches hears of it.
    world.ask(kind::WATCH, "device\0token\0");
    while world.store.next_event().is_some() {}
    let lamp = world.lamp.clone();
    assert_eq!(world.bus.add(&mut world.store, 3, lamp.clone()), Ok(LAMP));
    assert_eq!(world.bus.add(&mut world.store, 3, lamp), Err(Error::Taken(LAMP)));
    let events = std::iter::from_fn(|| world.store.next_event());
    let named = events.filter(|event| event.ends_with(b"device/lamp/3/state\0token\0")).count();
    assert_eq!(named, 1);
    world.connect();
}

#[test]
fn a_device_without_a_driver_goes_at_once() {
    let mut world = World::new();
    assert_eq!(world.bus.remove(&mut world.store, LAMP), Ok(Removal::Done));
    assert!(world.store.list("/local/domain/1/device/lamp").is_empty());
    assert!(world.bus.devices(&world.store).is_empty());
}

#[test]
fn a_restored_domain_goes_on_where_it_was() {
    for closing in [false, true] {
        let mut world = World::new();
        world.connect();
        if closing {
            world.bus.remove(&mut world.store, LAMP).unwrap();
        }
        let lamp = Arc::new(Lamp::default());
        world.bus = Bus::new(FakeDomain::new(1));
        lamp.restored.store(true, SeqCst);
        let there: Vec<(u32, Arc<dyn Backend>)> = vec![(3, lamp.clone())];
        world.bus.restore(&mut world.store, there.clone()).unwrap();
        world.lamp = lamp;
        // The same again, by a bus that has it.
        world.bus.disconnect();
        world.lamp.restored.store(true, SeqCst);
        world.bus.restore(&mut world.store, there).unwrap();
        assert!(world.is_connected());
        assert_eq!(world.lamp.last.lock().unwrap().as_ref().unwrap().1, Connect::Again);
        let gone = if closing { Event::Removed(LAMP) } else { Event::Closed(LAMP) };
        assert_eq!(world.state("6"), [gone]);
    }
    let mut world = World::new();
    let other: Vec<(u32, Arc<dyn Backend>)> = vec![(4, world.lamp.clone())];
    let error = world.bus.restore(&mut world.store, other).unwrap_err();
    assert_eq!(error.to_string(), "lamp/4 cannot go on: it was not there");
    // One that nobody has connected yet is not connected.
    let there: Vec<(u32, Arc<dyn Backend>)> = vec![(3, world.lamp.clone())];
    world.bus.restore(&mut world.store, there).unwrap();
    assert!(!world.is_connected());
    world.connect();
}

/// A driver that has undone what it connected by loses its device, and the domain nothing else.
#[test]
fn a_restored_device_that_cannot_go_on_fails_alone() {
    let mut world = World::new();
    world.connect();
    let bad = world.lamp.clone();
    world.bus.disconnect();
    bad.refuses.store(true, SeqCst);
    let there: Vec<(u32, Arc<dyn Backend>)> = vec![(3, bad)];
    let events = world.bus.restore(&mut world.store, there).unwrap();
    assert_eq!(events, [Event::Failed(LAMP, "no such ring".into())]);
    assert!(!world.is_connected());
    assert_eq!((world.back("state"), world.back("connected")), ("5".into(), "0".into()));
    // Its driver closes it, and may have it again.
    world.lamp.refuses.store(false, SeqCst);
    assert_eq!(world.state("6"), [Event::Closed(LAMP)]);
}

#[test]
fn a_domain_that_starts_again_finds_its_devices() {
    let mut world = World::new();
    world.connect();
    world.store = tree();
    world.bus.restart(&mut world.store);
    assert_eq!((world.back("state"), world.is_connected()), ("2".into(), false));
    world.connect();
}

#[test]
fn a_domain_that_wakes_finds_its_devices_but_for_those_that_were_to_go() {
    let mut world = World::new();
    world.connect();
    world.write("ring-ref", "8");
    let other = Arc::new(Lamp::default());
    assert!(world.bus.add(&mut world.store, 4, other.clone()).is_ok());
    assert_eq!(world.bus.remove(&mut world.store, LAMP), Ok(Removal::Asked));
    assert_eq!(world.bus.resume(&mut world.store), [Event::Removed(LAMP)]);
    assert_eq!((world.store.read(FRONT), world.is_connected()), (None, false));
    assert_eq!(world.bus.add(&mut world.store, 3, world.lamp.clone()), Ok(LAMP));
    world.connect();
    world.write("ring-ref", "9");
    assert!(world.bus.resume(&mut world.store).is_empty());
    assert_eq!((world.back("state"), world.is_connected()), ("2".into(), false));
    assert_eq!(world.store.read(&format!("{FRONT}/ring-ref")), None);
    assert_eq!(world.store.read(&format!("{FRONT}/state")).as_deref(), Some("1"));
    world.connect();
}

#[test]
fn other_folders_are_no_business_of_a_device() {
    let mut world = World::new();
    world.store.write(&format!("{FRONT}/state"), "4", None);
    for path in ["device/lamp/33/state", "device/lam", "data/x"] {
        assert!(world.ask(kind::WRITE, &format!("{path}\x004")).1.is_empty());
    }
    assert!(!world.is_connected());
    let path = Path::parse(&format!("{FRONT}/state"), "").unwrap();
    assert_eq!(world.bus.changed(&mut world.store, &path), [Event::Connected(LAMP)]);
}

proptest! {
    /// Any states in any order, folders that go, removals: a back end is connected exactly when its
    /// own folder says so, and the driver that follows the protocol afterwards has its device.
    #[test]
    fn no_driver_breaks_the_handshake(
        moves in prop::collection::vec((0u8..14, any::<bool>(), "[0-9a-z -]{0,600}"), 1..40),
    ) {
        let mut world = World::new();
        for (what, refuses, junk) in moves {
            world.lamp.refuses.store(refuses && what % 2 == 0, SeqCst);
            match what {
                0..9 => drop(world.ask(kind::WRITE, &format!("device/lamp/3/state\0{what}"))),
                9 => drop(world.ask(kind::WRITE, &format!("device/lamp/3/state\0{junk}"))),
                10 => drop(world.ask(kind::WRITE, &format!("device/lamp/3/ring-ref\0{junk}"))),
                11 => drop(world.ask(kind::RM, "device/lamp/3/state\0")),
                12 => drop(world.ask(kind::RM, "device/lamp\0")),
                _ => drop(world.bus.remove(&mut world.store, LAMP)),
            }
            let gone = world.bus.devices(&world.store).is_empty();
            prop_assert_eq!(gone, world.store.read(BACK).is_none());
            if gone {
                prop_assert!(!world.is_connected());
                let lamp = world.lamp.clone();
                prop_assert_eq!(world.bus.add(&mut world.store, 3, lamp), Ok(LAMP));
            }
            let (state, connected) = (world.back("state"), world.back("connected") == "1");
            prop_assert_eq!(connected, world.is_connected());
            prop_assert!(!connected || state == "4" || state == "5", "{}", state);
            prop_assert!(state != "4" || connected);
        }
        world.lamp.refuses.store(false, SeqCst);
        for state in ["5", "6"] {
            drop(world.ask(kind::WRITE, &format!("device/lamp/3/state\0{state}")));
        }
        if world.bus.devices(&world.store).is_empty() {
            let lamp = world.lamp.clone();
            prop_assert_eq!(world.bus.add(&mut world.store, 3, lamp), Ok(LAMP));
        }
        drop(world.ask(kind::WRITE, "device/lamp/3/state\x001"));
        let (_, events) = world.ask(kind::WRITE, "device/lamp/3/state\x003");
        prop_assert_eq!(events, [Event::Connected(LAMP)]);
    }
}
