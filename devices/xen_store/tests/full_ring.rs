//! A reply that has no room: the guest says that there is some only if it finds the ring full (Linux,
//! `xb_read`), which it may not be for it while more is put there.

use guest_mem::{Change, CodeWatch, GuestMem, Memfd, PAGE, Slot};
use std::{ops::Range, sync::Arc};
use xen_abi::xs_wire::{Header, RING, kind, page};
use xen_front::Page;
use xen_store::{Permissions, Ring, Store};
use zerocopy::IntoBytes;

/// A guest that takes all that is there when the host begins to write, and does not look again.
struct Takes(Page);

impl CodeWatch for Takes {
    fn invalidate(&self, gpa: Range<u64>) {
        let replies = page::REPLIES as u64..page::REQUEST_CONSUMER as u64;
        if replies.contains(&gpa.start) {
            take(&self.0, u32::MAX);
        }
    }
}

/// The guest takes so much of what is there; true if it notifies the host.
fn take(page: &Page, most: u32) -> bool {
    let consumer = page.index(page::REPLY_CONSUMER);
    let there = page.index(page::REPLY_PRODUCER).wrapping_sub(consumer);
    // As the guest does, of which nobody is told.
    let at = page.gpa() + page::REPLY_CONSUMER as u64;
    let layout = page.memory().layout();
    let (region, offset) = layout.find(at).unwrap();
    let value = consumer.wrapping_add(there.min(most));
    page.memory().arena().store::<u32>(region.arena_at(offset), value);
    page.index(page::REPLY_PRODUCER).wrapping_sub(consumer) >= RING
}

#[test]
fn what_is_taken_while_more_is_put_there_makes_room() {
    const VALUE: usize = 2500;
    let memory = GuestMem::new(1 << 20).unwrap();
    let (mem, len) = (Memfd::new(PAGE).unwrap(), PAGE);
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
    memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
    let shared = Page::new(memory.clone(), 0).unwrap();
    let mut store = Store::default();
    store.write("/local/domain/1", "", Some(Permissions::of(1)));
    store.write("/local/domain/1/value", &"v".repeat(VALUE), None);
    let mut ring = Ring::new(shared.clone());

    let request = b"value\0";
    let length = request.len() as u32;
    let header = Header { kind: kind::READ, request: 1, transaction: 0, length };
    let bytes = [header.as_bytes(), request].concat();
    shared.write(page::REQUESTS, &bytes).unwrap();
    shared.set_index(page::REQUEST_PRODUCER, bytes.len() as u32);
    assert!(ring.serve(&mut store).moved);
    assert_eq!(shared.index(page::REPLY_PRODUCER), RING);
    // The guest finds the ring full, and says that it has taken something.
    assert!(take(&shared, 100));

    // While the host puts as much there, the guest takes the rest: the ring is not full for it.
    let watch: Arc<dyn CodeWatch> = Arc::new(Takes(shared.clone()));
    memory.watch_code(&watch);
    memory.layout().find(0).unwrap().0.code().set(0);
    assert!(ring.serve(&mut store).moved);
    let whole = (size_of::<Header>() + VALUE) as u32;
    let put = shared.index(page::REPLY_PRODUCER);
    let free = RING - put.wrapping_sub(shared.index(page::REPLY_CONSUMER));
    assert!(put == whole || free == 0, "{free} bytes are free, and nobody will say so");
}
