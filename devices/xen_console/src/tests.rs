//! A console between a carrier and a domain that the test is.

use super::*;
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Takes so many bytes until it is asked for more.
#[derive(Default)]
struct Carrier {
    said: Mutex<Vec<u8>>,
    limit: AtomicUsize,
    space: Mutex<Option<Callback>>,
}

impl Output for Carrier {
    fn write(&self, bytes: &[u8]) {
        self.said.lock().unwrap().extend(bytes);
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        let mut said = self.said.lock().unwrap();
        let take = bytes.len().min(self.limit.load(SeqCst) - said.len());
        said.extend(&bytes[..take]);
        take
    }

    fn on_space(&self, callback: Callback) {
        *self.space.lock().unwrap() = Some(callback);
    }
}

#[derive(Default)]
struct Counts {
    work: AtomicUsize,
    told: AtomicUsize,
    room: AtomicUsize,
}

fn set_up() -> (Arc<XenConsole>, Arc<Carrier>, Page, Arc<Counts>) {
    let memory = GuestMem::new(1 << 20).unwrap();
    let slot = Slot {
        id: 0,
        gpa: 0,
        mem: Memfd::new(PAGE).unwrap(),
        offset: 0,
        len: PAGE,
        writable: true,
    };
    memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
    let page = Page::new(memory, 0).unwrap();
    let (carrier, counts) = (Arc::new(Carrier::default()), Arc::new(Counts::default()));
    carrier.limit.store(1 << 20, SeqCst);
    let count = |which: fn(&Counts) -> &AtomicUsize| {
        let counts = counts.clone();
        move || drop_count(which(&counts))
    };
    let console = XenConsole::new(carrier.clone(), count(|c| &c.work));
    console.on_notify(count(|c| &c.told));
    console.on_room(Box::new(count(|c| &c.room)));
    console.attach(Some(page.clone()));
    (console, carrier, page, counts)
}

fn drop_count(count: &AtomicUsize) {
    count.fetch_add(1, SeqCst);
}

/// The domain writes.
fn write(page: &Page, text: &[u8]) {
    let at = page.index(OUT_PRODUCER);
    for (n, byte) in (0..).zip(text) {
        page.write(OUT + (at.wrapping_add(n) % OUT_SIZE) as usize, &[*byte]).unwrap();
    }
    page.set_index(OUT_PRODUCER, at.wrapping_add(text.len() as u32));
}

#[test]
fn what_is_written_comes_out_across_the_end_of_the_ring() {
    let (console, carrier, page, counts) = set_up();
    // Indexes wrap in the middle of a word, too.
    for index in [OUT_CONSUMER, OUT_PRODUCER] {
        page.set_index(index, u32::MAX - 5);
    }
    let text: Vec<u8> = (0..2048).map(|n| n as u8).collect();
    for _ in 0..3 {
        write(&page, &text);
        console.serve();
    }
    assert!(*carrier.said.lock().unwrap() == text.repeat(3));
    assert_eq!(page.index(OUT_CONSUMER), page.index(OUT_PRODUCER));
    assert_eq!(counts.told.load(SeqCst), 3);
    console.serve();
    assert_eq!(counts.told.load(SeqCst), 3, "nothing has moved");
}

#[test]
fn a_carrier_without_room_holds_the_domain_back() {
    let (console, carrier, page, counts) = set_up();
    carrier.limit.store(3, SeqCst);
    write(&page, b"hello");
    console.serve();
    console.serve();
    assert_eq!((&**carrier.said.lock().unwrap(), counts.told.load(SeqCst)), (&b"hel"[..], 1));
    carrier.limit.store(100, SeqCst);
    carrier.space.lock().unwrap().as_ref().unwrap()();
    assert_eq!(counts.work.load(SeqCst), 1);
    console.serve();
    assert_eq!(*carrier.said.lock().unwrap(), b"hello");
}

#[test]
fn a_domain_that_does_not_read_holds_the_carrier_back() {
    let (console, _, page, counts) = set_up();
    page.set_index(IN_PRODUCER, u32::MAX);
    page.set_index(IN_CONSUMER, u32::MAX);
    assert_eq!(console.receive(&[7; 1500]), 1024);
    assert_eq!((console.receive(&[8]), counts.told.load(SeqCst)), (0, 1));
    console.serve();
    assert_eq!(counts.room.load(SeqCst), 0);
    page.set_index(IN_CONSUMER, page.index(IN_CONSUMER).wrapping_add(1));
    console.serve();
    assert_eq!(counts.room.load(SeqCst), 1);
    assert_eq!(console.receive(&[8, 9]), 1);
    let mut bytes = [0; 2];
    page.read(IN + 1022, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 8], "the ring began at its last byte");
}

#[test]
fn indexes_that_make_no_sense_do_no_harm() {
    let (console, carrier, page, _) = set_up();
    page.set_index(OUT_PRODUCER, 1 << 31);
    console.serve();
    assert_eq!(carrier.said.lock().unwrap().len(), OUT_SIZE as usize);
    page.set_index(IN_PRODUCER, 1 << 31);
    assert_eq!(console.receive(&[1]), 0);
    // Without a domain there is no room, either.
    console.attach(None);
    assert_eq!(console.receive(&[1]), 0);
    console.serve();
}
