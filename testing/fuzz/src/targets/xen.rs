//! A Xen domain: the messages of xenstore, and the loader of its kernels.

use crate::{input::Input, same};
use boot::XenPvRequest;
use engine::ClockSample;
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use saved_state::{Part, Reader, Writer};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use xen_abi::xs_wire::{Header, RING, page};
use xen_front::Page;
use xen_pv::{Board, Built, Config, Layout, XenPv};
use xen_store::{Permissions, Ring, Store};
use zerocopy::IntoBytes;

/// Things that are done with one input.
pub(super) const STEPS: u32 = 96;

#[derive(Default)]
pub(super) struct Around {
    pub ended: AtomicBool,
}

impl Board for Around {
    fn wake(&self, _: u32) {}
    fn set_timer(&self, _: u32, _: Option<u64>) {}
    fn console(&self, _: &[u8]) {}
    fn shutdown(&self, _: u32) {
        self.ended.store(true, SeqCst);
    }
    fn notify(&self, _: u32) {}
}

pub(super) fn memory(len: u64) -> Arc<GuestMem> {
    let memory = GuestMem::new(len).expect("memory");
    let mem = Memfd::new(len).expect("memory");
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
    memory.update(&[Change::Map(slot)], |_, _| Ok(())).expect("a slot");
    memory
}

pub(super) fn saved(f: impl FnOnce(&mut Writer)) -> Vec<Part> {
    let mut writer = Writer::default();
    f(&mut writer);
    writer.finish()
}

/// Parts of payloads.
const TEXTS: [&str; 12] =
    ["/local/domain/1", "device", "a", "a/b", "/", "/tool", "T", "F", "n1", "w1", "@x", "/local"];

/// A payload that is right, or nearly.
fn payload(input: &mut Input<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    for _ in 0..=input.below(3) {
        match input.u8() {
            0..=0xdf => payload.extend(input.pick(&TEXTS).as_bytes()),
            0xe0..=0xef => payload.resize(payload.len() + input.below(4000) as usize, b'x'),
            _ => payload.extend(input.some(16)),
        }
        payload.push(if input.u8() < 0xf0 { 0 } else { b'/' });
    }
    payload
}

/// Messages of xenstore, on its ring and off it.
pub(super) fn store(data: &[u8]) {
    let mut input = Input::new(data);
    let mut store = Store::default();
    store.write("/local/domain/1", "", Some(Permissions::of(1)));
    store.write("/tool", "the host's", Some(Permissions::of(0)));
    let page = Page::new(memory(PAGE), 0).expect("a page");
    let mut ring = Ring::new(page.clone());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() {
            0..=0xaf => {
                let payload = payload(&mut input);
                let transaction = if input.flag() { 0 } else { input.below(4) as u32 };
                let length = payload.len() as u32;
                let kind = input.below(24) as u32;
                let header = Header { kind, request: 3, transaction, length };
                put(&page, &[header.as_bytes(), &payload].concat());
            }
            0xb0..=0xbf => put(&page, input.some(64)),
            0xc0..=0xc7 => {
                let which = input.pick(&[
                    page::REQUEST_PRODUCER,
                    page::REQUEST_CONSUMER,
                    page::REPLY_PRODUCER,
                    page::REPLY_CONSUMER,
                ]);
                page.set_index(which, input.number() as u32);
            }
            0xc8..=0xdf => store.write("/local/domain/1/a", "of the host", None),
            0xe0..=0xe7 => store.remove("/local/domain/1/device"),
            0xe8..=0xef => while store.next_change().is_some() {},
            0xf0..=0xf7 => {
                let before = saved(|to| store.save(to));
                let mut reader = Reader::new(before.clone()).expect("parts");
                store = Store::restore(&mut reader).expect("what was saved");
                same(&saved(|to| store.save(to)), &before);
            }
            // The guest reads all that has come.
            _ => page.set_index(page::REPLY_CONSUMER, page.index(page::REPLY_PRODUCER)),
        }
        ring.serve(&mut store);
        assert_eq!(store.read("/tool").as_deref(), Some("the host's"));
    }
}

/// As a driver puts a message there, if there is room.
fn put(page: &Page, bytes: &[u8]) {
    for byte in bytes {
        let producer = page.index(page::REQUEST_PRODUCER);
        if producer.wrapping_sub(page.index(page::REQUEST_CONSUMER)) >= RING {
            return;
        }
        let _ = page.write(page::REQUESTS + (producer % RING) as usize, &[*byte]);
        page.set_index(page::REQUEST_PRODUCER, producer.wrapping_add(1));
    }
}

const BASE: u64 = 0xffff_ffff_8000_0000;

/// An ELF file whose notes are Xen's, or nearly.
fn kernel(input: &mut Input<'_>) -> Vec<u8> {
    let mut notes = Vec::new();
    for (kind, usual) in [(1u32, BASE + 0x10_0000), (3, BASE), (15, 0x80_0000_0000), (16, 1)] {
        let (kind, value) = match input.u8() {
            0..=0xbf => (kind, usual),
            0xc0..=0xdf => (kind, usual.wrapping_add(input.number())),
            0xe0..=0xef => (input.below(20) as u32, input.number()),
            _ => continue,
        };
        notes.extend([4u32, 8, kind].iter().flat_map(|word| word.to_le_bytes()));
        notes.extend(b"Xen\0");
        notes.extend(value.to_le_bytes());
    }
    let mut headers = Vec::new();
    let count = 1 + input.below(3);
    let start = 64 + (count + 1) * 56;
    let image = vec![0x90; 0x100];
    for n in 0..count {
        let odd = if input.u8() < 0xc0 { 0 } else { input.number() };
        let physical = (0x10_0000 + n * PAGE).wrapping_add(odd);
        let size = if input.u8() < 0xe0 { 0x321 } else { input.number() };
        headers.push([7 << 32 | 1, start, BASE, physical, 0x100, size, PAGE]);
    }
    let len = notes.len() as u64;
    headers.push([4 << 32 | 4, start + 0x100, 0, 0, len, len, 4]);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let first = [1 << 32 | 62 << 16 | 2, 0, 64, 0, 56 << 48 | 64 << 32, count + 1];
    file.extend(first.iter().chain(headers.iter().flatten()).flat_map(|word| word.to_le_bytes()));
    file.extend(image);
    file.extend(notes);
    // A byte that is wrong.
    if input.u8() > 0xc0 {
        let at = input.below(file.len() as u64) as usize;
        file[at] = input.u8();
    }
    file
}

/// Kernels of domains: ELF files with Xen's notes, or any bytes.
pub(super) fn loader(data: &[u8]) {
    let mut input = Input::new(data);
    let size = input.pick(&[4 << 20, 8 << 20, 16 << 20, 8 << 20 | 0x1000]);
    let initrd = match input.u8() {
        0..=0x7f => None,
        0x80..=0xf7 => Some(vec![1; 5000]),
        _ => Some(vec![1; 7 << 20]),
    };
    let command_line = "x".repeat(input.below(0x500) as usize);
    let raw = input.u8() > 0xd0;
    let kernel = if raw { input.rest().to_vec() } else { kernel(&mut input) };
    let request = XenPvRequest {
        kernel: kernel.into(),
        initrd: initrd.map(Into::into),
        command_line,
        memory: size,
        shared_info: size,
        store_port: 1,
        console_port: 2,
    };
    let plan = match boot::load_xen_pv(&request) {
        Ok(plan) => plan,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    // Inside RAM, and none over another.
    let mut ranges: Vec<_> = plan.segments.iter().map(|segment| segment.range()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.iter().all(|range| range.end <= size), "{ranges:x?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:x?}");
    let inside = |at: u64| at.is_multiple_of(PAGE) && at < size;
    assert!(inside(plan.store) && inside(plan.console) && inside(plan.vcpu.control.cr3));
    // What is built is a domain.
    let layout = Layout::new(size);
    let memory = memory(layout.end());
    for segment in &plan.segments {
        memory.write(segment.gpa, segment.bytes()).expect("RAM");
    }
    let now = ClockSample { guest_ns: 1, tsc: 1, khz: 1_000_000, realtime_ns: 1 };
    let (clock, board) = (Arc::new(move || now), Arc::new(Around::default()));
    let xen =
        XenPv::new(Config { memory, layout, vcpus: 1, clock, board, arch_capabilities: None });
    let (store_frame, console_frame) = (plan.store / PAGE, plan.console / PAGE);
    let built = Built { root: plan.vcpu.control.cr3, store_frame, console_frame };
    assert!(xen.start(&built).is_ok(), "its tables break the rules");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_kernels_of_the_loader_are_loaded() {
        let request = XenPvRequest {
            kernel: kernel(&mut Input::new(&[0; 16])).into(),
            initrd: None,
            command_line: String::new(),
            memory: 16 << 20,
            shared_info: 16 << 20,
            store_port: 1,
            console_port: 2,
        };
        boot::load_xen_pv(&request).expect("a kernel");
    }
}
