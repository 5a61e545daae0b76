//! A guest that asks for more than there is.

use xen_abi::xs_wire::{Header, PAYLOAD_MAX, kind};
use xen_store::{Permissions, Store};
use zerocopy::FromBytes;

fn store() -> Store {
    let mut store = Store::default();
    store.write("/local/domain/1", "", Some(Permissions::of(1)));
    store
}

/// The kind of the reply, and what it says.
fn ask(store: &mut Store, kind: u32, transaction: u32, payload: &str) -> (u32, String) {
    let header = Header { kind, request: 1, transaction, length: payload.len() as u32 };
    let reply = store.answer(header, payload.as_bytes());
    let (header, payload) = Header::read_from_prefix(&reply).unwrap();
    (header.kind, String::from_utf8_lossy(payload).into_owned())
}

fn begin(store: &mut Store) -> u32 {
    let (_, id) = ask(store, kind::TRANSACTION_START, 0, "\0");
    id.trim_end_matches('\0').parse().unwrap()
}

/// As many changes at once as there may be, and as many watches that see them.
#[test]
fn a_transaction_that_all_watches_see() {
    let mut store = store();
    let token = "t".repeat(3000);
    for n in 0..128 {
        let watch = format!("/local/domain/1\0{n}{token}\0");
        assert_eq!(ask(&mut store, kind::WATCH, 0, &watch).0, kind::WATCH);
    }
    while store.next_event().is_some() {}
    let id = begin(&mut store);
    for n in 0..990 {
        let write = format!("n{n:04}{}\0", "x".repeat(200));
        assert_eq!(ask(&mut store, kind::WRITE, id, &write).0, kind::WRITE, "{n}");
    }
    assert_eq!(ask(&mut store, kind::TRANSACTION_END, id, "T\0").0, kind::TRANSACTION_END);
    let mut events = 0;
    while let Some(event) = store.next_event() {
        assert!(event.len() <= PAYLOAD_MAX + size_of::<Header>());
        events += 1;
    }
    assert!((100..=1024).contains(&events), "{events}");
    // It works as before.
    assert_eq!(
        ask(&mut store, kind::READ, 0, &format!("n0000{}\0", "x".repeat(200))).0,
        kind::READ
    );
    assert_eq!(ask(&mut store, kind::WRITE, 0, "one\0more").0, kind::WRITE);
    assert_eq!(store.read("/local/domain/1/one").as_deref(), Some("more"));
    assert!(store.next_event().is_some());
}

/// Who watches with a long token something that is deep gets no message that is too long.
#[test]
fn an_event_is_a_message() {
    let mut store = store();
    let watch = format!("a\0{}\0", "t".repeat(4000));
    assert_eq!(ask(&mut store, kind::WATCH, 0, &watch).0, kind::WATCH);
    while store.next_event().is_some() {}
    let write = format!("a/{}\0", "b".repeat(200));
    assert_eq!(ask(&mut store, kind::WRITE, 0, &write).0, kind::WRITE);
    assert!(store.next_event().is_none());
    // A shorter one is told.
    assert_eq!(ask(&mut store, kind::WRITE, 0, "a\0").0, kind::WRITE);
    assert!(store.next_event().is_some());
}

/// The host may be slow: what it has not looked at does not grow, and it misses nothing.
#[test]
fn changes_that_nobody_looks_at() {
    let mut store = store();
    for n in 0..5000 {
        assert_eq!(ask(&mut store, kind::WRITE, 0, &format!("n{}\0", n % 900)).0, kind::WRITE);
    }
    let heard: Vec<_> = std::iter::from_fn(|| store.next_change()).collect();
    assert!(heard.len() <= 1024, "{}", heard.len());
    assert_eq!(heard.first().map(|path| path.as_str()), Some("/"), "look at all");
    // From then on one by one again.
    ask(&mut store, kind::WRITE, 0, "last\0");
    assert_eq!(store.next_change().unwrap().as_str(), "/local/domain/1/last");
    assert!(store.next_change().is_none());
}

/// Nodes, watches and transactions have an end, and then errors.
#[test]
fn all_that_is_counted_has_an_end() {
    let mut store = store();
    let last = |store: &mut Store, kind, payload: &dyn Fn(u32) -> String| {
        (0..2000).find_map(|n| {
            let (reply, text) = ask(store, kind, 0, &payload(n));
            (reply == kind::ERROR).then_some((n, text))
        })
    };
    let full = |at: Option<(u32, String)>, most: u32| {
        let (n, text) = at.unwrap();
        assert!(n <= most && text == "ENOSPC\0", "{n} {text}");
    };
    full(last(&mut store, kind::MKDIR, &|n| format!("d{n}\0")), 1000);
    full(last(&mut store, kind::WATCH, &|n| format!("d{n}\0t\0")), 128);
    full(last(&mut store, kind::TRANSACTION_START, &|_| "\0".into()), 10);
    assert_eq!(ask(&mut store, kind::WRITE, 0, "d1\0v").0, kind::WRITE, "what is there is written");
    assert_eq!(ask(&mut store, kind::RM, 0, "d1\0").0, kind::RM);
    assert_eq!(ask(&mut store, kind::MKDIR, 0, "d1\0").0, kind::MKDIR);
}
