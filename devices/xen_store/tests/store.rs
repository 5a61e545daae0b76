//! A guest's requests, by the ring as its driver makes them.

use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use proptest::prelude::*;

use xen_abi::xs_wire::{Header, RING, kind, page};
use xen_front::Page;
use xen_store::{Permissions, Ring, Store};
use zerocopy::{FromZeros, IntoBytes};

struct Guest {
    page: Page,
    ring: Ring,
    store: Store,
}

impl Guest {
    fn new() -> Self {
        let memory = GuestMem::new(PAGE).unwrap();
        let mem = Memfd::new(PAGE).unwrap();
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: PAGE, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let mut store = Store::default();
        store.write("/local/domain/1", "", Some(Permissions::of(1)));
        store.write("/local/domain/1/name", "guest", None);
        store.write("/tool", "not for guests", Some(Permissions::of(0)));
        let page = Page::new(memory, 0).unwrap();
        Self { ring: Ring::new(page.clone()), page, store }
    }

    fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut producer = self.page.index(page::REQUEST_PRODUCER);
            if producer.wrapping_sub(self.page.index(page::REQUEST_CONSUMER)) == RING {
                self.ring.serve(&mut self.store);
                producer = self.page.index(page::REQUEST_PRODUCER);
            }
            self.page.write((producer % RING) as usize, &[*byte]).unwrap();
            self.page.set_index(page::REQUEST_PRODUCER, producer.wrapping_add(1));
        }
    }

    fn receive(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let consumer = self.page.index(page::REPLY_CONSUMER);
            if consumer == self.page.index(page::REPLY_PRODUCER) {
                self.ring.serve(&mut self.store);
                if consumer == self.page.index(page::REPLY_PRODUCER) {
                    return None;
                }
            }
            let mut byte = [0];
            self.page.read(page::REPLIES + (consumer % RING) as usize, &mut byte).unwrap();
            bytes.extend(byte);
            self.page.set_index(page::REPLY_CONSUMER, consumer.wrapping_add(1));
        }
        Some(bytes)
    }

    fn message(&mut self) -> Option<(Header, String)> {
        let mut header = Header::new_zeroed();
        let bytes = self.receive(size_of::<Header>())?;
        header.as_mut_bytes().copy_from_slice(&bytes);
        let payload = self.receive(header.length as usize)?;
        Some((header, String::from_utf8(payload).unwrap()))
    }

    fn ask(&mut self, kind: u32, transaction: u32, payload: &str) -> String {
        let header = Header { kind, request: 7, transaction, length: payload.len() as u32 };
        self.send(&[header.as_bytes(), payload.as_bytes()].concat());
        // Events may come first.
        let (reply, text) = loop {
            let (reply, text) = self.message().unwrap();
            if reply.kind != kind::WATCH_EVENT {
                break (reply, text);
            }
        };
        assert_eq!((reply.request, reply.transaction), (7, transaction));
        assert!(reply.kind == kind || reply.kind == kind::ERROR, "{reply:?}");
        text
    }
}

#[test]
fn values_are_read_written_listed_and_removed() {
    let mut guest = Guest::new();
    assert_eq!(guest.ask(kind::READ, 0, "name\0"), "guest");
    assert_eq!(guest.ask(kind::READ, 0, "/local/domain/1/name\0"), "guest");
    assert_eq!(guest.ask(kind::WRITE, 0, "device/vbd/1/state\x004"), "OK\0");
    assert_eq!(guest.ask(kind::DIRECTORY, 0, "device/vbd\0"), "1\0");
    assert_eq!(guest.store.read("/local/domain/1/device/vbd/1/state").as_deref(), Some("4"));
    assert_eq!(guest.store.next_change().unwrap().as_str(), "/local/domain/1/device/vbd/1/state");
    assert_eq!(guest.ask(kind::RM, 0, "device\0"), "OK\0");
    assert_eq!(guest.ask(kind::READ, 0, "device/vbd/1/state\0"), "ENOENT\0");
    assert_eq!(guest.ask(kind::MKDIR, 0, "data/a\0"), "OK\0");
    assert_eq!(guest.ask(kind::GET_PERMS, 0, "data/a\0"), "n1\0");
    assert_eq!(guest.ask(99, 0, "x\0"), "ENOSYS\0");
}

#[test]
fn what_is_not_the_guests_stays_so() {
    let mut guest = Guest::new();
    assert_eq!(guest.ask(kind::READ, 0, "/tool\0"), "EACCES\0");
    assert_eq!(guest.ask(kind::WRITE, 0, "/tool\0x"), "EACCES\0");
    assert_eq!(guest.ask(kind::WRITE, 0, "/local/domain/2/x\0x"), "EACCES\0");
    assert_eq!(guest.ask(kind::RM, 0, "/local/domain/1\0"), "OK\0");
    assert_eq!(guest.ask(kind::RM, 0, "/tool\0"), "EACCES\0");
    for bad in ["", "a//b\0", "a/\0", "/a b\0", "no end", "/\u{e4}\0"] {
        assert_eq!(guest.ask(kind::READ, 0, bad), "EINVAL\0", "{bad:?}");
    }
    let long = "x".repeat(3000);
    assert_eq!(guest.ask(kind::WRITE, 0, &format!("/local/domain/1/a\0{long}")), "ENOSPC\0");
}

#[test]
fn a_guest_fills_no_more_than_its_share() {
    let mut guest = Guest::new();
    let mut answers = (0..1200).map(|n| guest.ask(kind::WRITE, 0, &format!("data/{n}\0x")));
    assert!(answers.any(|answer| answer == "ENOSPC\0"));
    drop(answers);
    let mut watches = (0..200).map(|n| guest.ask(kind::WATCH, 0, &format!("data\0{n}\0")));
    assert!(watches.any(|answer| answer == "ENOSPC\0"));
}

#[test]
fn watches_fire_at_once_and_at_changes() {
    let mut guest = Guest::new();
    assert_eq!(guest.ask(kind::WATCH, 0, "control/shutdown\0token\0"), "OK\0");
    let (event, text) = guest.message().unwrap();
    assert_eq!((event.kind, &*text), (kind::WATCH_EVENT, "control/shutdown\0token\0"));
    guest.store.write("/local/domain/1/control/shutdown", "poweroff", None);
    assert_eq!(guest.message().unwrap().1, "control/shutdown\0token\0");
    guest.store.write("/local/domain/1/control/other", "x", None);
    assert!(guest.message().is_none());
    assert_eq!(guest.ask(kind::UNWATCH, 0, "control/shutdown\0token\0"), "OK\0");
    guest.store.write("/local/domain/1/control/shutdown", "reboot", None);
    assert!(guest.message().is_none());
}

#[test]
fn another_conversation_begins_with_nothing() {
    let mut guest = Guest::new();
    assert_eq!(guest.ask(kind::WATCH, 0, "data\0token\0"), "OK\0");
    assert_eq!(guest.message().unwrap().1, "data\0token\0");
    let id = guest.ask(kind::TRANSACTION_START, 0, "\0");
    let id = id.trim_end_matches('\0').parse().unwrap();
    // Half of a request, then more events than the page takes.
    guest.send(&[0; 7]);
    guest.ring.serve(&mut guest.store);
    for node in 0..100 {
        guest.store.write(&format!("/local/domain/1/data/{node}"), "1", None);
    }
    guest.ring.serve(&mut guest.store);
    guest.store.forget();
    guest.ring.restart();
    // The guest does not want what is there already, either.
    let there = guest.page.index(page::REPLY_PRODUCER);
    guest.page.set_index(page::REPLY_CONSUMER, there);
    guest.store.write("/local/domain/1/data", "2", None);
    guest.ring.serve(&mut guest.store);
    assert_eq!(guest.page.index(page::REPLY_PRODUCER), there);
    assert_eq!(guest.ask(kind::TRANSACTION_END, id, "T\0"), "ENOENT\0");
    assert_eq!(guest.ask(kind::WATCH, 0, "data\0token\0"), "OK\0");
    assert_eq!(guest.ask(kind::READ, 0, "data\0"), "2");
}

#[test]
fn transactions_are_all_or_nothing() {
    let mut guest = Guest::new();
    let id: u32 =
        guest.ask(kind::TRANSACTION_START, 0, "\0").trim_end_matches('\0').parse().unwrap();
    assert_eq!(guest.ask(kind::WRITE, id, "a\x001"), "OK\0");
    assert_eq!(guest.ask(kind::READ, id, "a\0"), "1");
    assert_eq!(guest.ask(kind::READ, 0, "a\0"), "ENOENT\0");
    assert_eq!(guest.ask(kind::TRANSACTION_END, id, "T\0"), "OK\0");
    assert_eq!(guest.ask(kind::READ, 0, "a\0"), "1");
    let id: u32 =
        guest.ask(kind::TRANSACTION_START, 0, "\0").trim_end_matches('\0').parse().unwrap();
    assert_eq!(guest.ask(kind::WRITE, id, "a\x002"), "OK\0");
    guest.store.write("/local/domain/1/name", "another", None);
    assert_eq!(guest.ask(kind::TRANSACTION_END, id, "T\0"), "EAGAIN\0");
    assert_eq!(guest.ask(kind::READ, 0, "a\0"), "1");
    assert_eq!(guest.ask(kind::READ, id, "a\0"), "ENOENT\0");
}

#[test]
fn a_transaction_changes_no_more_than_its_share() {
    let mut guest = Guest::new();
    let id: u32 =
        guest.ask(kind::TRANSACTION_START, 0, "\0").trim_end_matches('\0').parse().unwrap();
    let mut answers = (0..1100).map(|n| guest.ask(kind::RM, id, &format!("gone{n}\0")));
    assert!(answers.any(|answer| answer == "ENOSPC\0"));
    drop(answers);
}

proptest! {
    #[test]
    fn noise_in_the_page_ends_no_more_than_the_conversation(
        writes in prop::collection::vec((0usize..0x820, any::<u32>()), 1..200)
    ) {
        let mut guest = Guest::new();
        for (at, value) in writes {
            guest.page.write(at, &value.to_le_bytes()).unwrap();
            guest.ring.serve(&mut guest.store);
        }
    }
}

#[test]
fn all_that_is_in_a_node_is_found() {
    let mut store = Store::default();
    for (path, value) in
        [("/a/b", "1"), ("/a/b/c", "2"), ("/a/b-d", "3"), ("/a/b/c/e", "4"), ("/a/bc/f", "5")]
    {
        store.write(path, value, None);
    }
    let found = |path: &str| store.below(path).into_iter().map(|(n, v)| n + &v).collect::<Vec<_>>();
    assert_eq!(found("/a/b"), ["c2", "c/e4"]);
    assert_eq!(found("/a/b/c/e"), [""; 0]);
    assert_eq!(found("/nothing"), [""; 0]);
    assert_eq!(found("/").len(), 7);
}
