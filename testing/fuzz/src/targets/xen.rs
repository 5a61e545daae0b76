//! A Xen domain: its hypercalls, the messages of xenstore, and the loader of its kernels.

use crate::{input::Input, same};
use boot::XenPvRequest;
use engine::{Cause, ClockSample, CpuView, Flow, Trap};
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use saved_state::{Part, Reader, Writer};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use vcpu_state::{Exception, Regs, SegReg, Segment};
use x86_defs::{
    exception::{GP, PF},
    gpr::{R8, R10, RAX, RDI, RDX, RSI, RSP},
    paging::{ADDRESS, P, RW, US},
    segment::{ATTR_L, ATTR_P},
};
use xen_abi::{
    hypercall as call,
    xen::HYPERVISOR_SLOTS,
    xs_wire::{Header, RING, page},
};
use xen_front::{Access, Domain as _, Page};
use xen_pv::{Board, Built, Config, Layout, XenPv};
use xen_store::{Permissions, Ring, Store};
use zerocopy::IntoBytes;

/// Frames of RAM: tables in the first, the rest is mapped for writing from 0 on.
const RAM: u64 = 64;
const L4: u64 = 1;
const DATA: u64 = 16;
/// Things that are done with one input.
const STEPS: u32 = 96;
/// Of those, what is done with the state.
const MOVES: u32 = 2;
/// How often a call may come back before it is given up.
const SLICES: u32 = 3;
/// Calls with lists of elements, which change the most.
const LISTS: [u64; 3] = [call::MMU_UPDATE, call::MMUEXT_OP, call::MULTICALL];

#[derive(Default)]
struct Around {
    ended: AtomicBool,
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

/// A vCPU without an engine: it walks the domain's tables.
struct Cpu {
    memory: Arc<GuestMem>,
    regs: Regs,
    segments: [Segment; 8],
    root: u64,
}

fn load(memory: &GuestMem, address: u64) -> u64 {
    let mut bytes = [0; 8];
    // What is not there is zero.
    let _ = memory.read(address, &mut bytes);
    u64::from_le_bytes(bytes)
}

impl Cpu {
    fn walk(&self, linear: u64, write: bool) -> Option<u64> {
        if !x86_defs::is_canonical_48(linear) {
            return None;
        }
        let mut table = self.root & ADDRESS;
        for shift in [39, 30, 21, 12] {
            let entry = load(&self.memory, table + (linear >> shift & 511) * 8);
            if entry & P == 0 || (write && entry & RW == 0) {
                return None;
            }
            table = entry & ADDRESS;
        }
        Some(table + linear % PAGE)
    }

    fn each(&self, at: u64, len: usize, write: bool) -> Result<Vec<u64>, Exception> {
        let fault = Exception { vector: PF, error: Some(0), payload: at };
        let byte = |n: u64| at.checked_add(n).and_then(|at| self.walk(at, write)).ok_or(fault);
        (0..len as u64).map(byte).collect()
    }
}

impl CpuView for Cpu {
    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn segment(&mut self, which: SegReg) -> &mut Segment {
        &mut self.segments[which as usize]
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn set_root(&mut self, cr3: u64) {
        self.root = cr3;
    }

    fn read_virt(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception> {
        for (at, byte) in self.each(gva, out.len(), false)?.into_iter().zip(out) {
            let _ = self.memory.read(at, std::slice::from_mut(byte));
        }
        Ok(())
    }

    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        for (at, byte) in self.each(gva, data.len(), true)?.into_iter().zip(data) {
            let _ = self.memory.write(at, &[*byte]);
        }
        Ok(())
    }

    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        [7, 0, 0, 0]
    }

    fn gdt_base(&self) -> u64 {
        Layout::gdt_linear(0)
    }

    fn set_task_switched(&mut self, _: bool) {}

    fn set_xcr0(&mut self, value: u64) {
        assert_eq!((value & !7, value & 1), (0, 1), "no value of XCR0");
    }

    fn halt(&mut self) {}

    fn deliver(&mut self, _: Exception) {}

    fn flush_tlb(&mut self, _: u64, _: Option<u64>) {}
}

/// A domain of which one vCPU does what an input says.
struct Domain {
    xen: Arc<XenPv>,
    around: Arc<Around>,
    layout: Layout,
    cpu: Cpu,
    granted: Vec<(u32, Access)>,
}

impl Domain {
    fn new() -> Self {
        let layout = Layout::new(RAM * PAGE);
        let memory = memory(layout.end());
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).expect("RAM");
        for table in L4..L4 + 3 {
            put(table * PAGE, ((table + 1) * PAGE) | P | RW | US);
        }
        for frame in 0..RAM {
            let writable = if (L4..L4 + 4).contains(&frame) { 0 } else { RW };
            put((L4 + 3) * PAGE + frame * 8, (frame * PAGE) | P | US | writable);
        }
        let around = Arc::new(Around::default());
        let now = ClockSample { guest_ns: 1000, tsc: 1000, khz: 1_000_000, realtime_ns: 1000 };
        let (memory, board) = (memory, around.clone());
        let clock = Arc::new(move || now);
        let config = Config { memory: memory.clone(), layout, vcpus: 2, clock, board };
        let xen = XenPv::new(config);
        let (store_frame, console_frame) = (RAM - 1, RAM - 2);
        xen.start(&Built { root: L4 * PAGE, store_frame, console_frame }).expect("it starts");
        let regs = Regs::default();
        let mut cpu = Cpu { memory, regs, segments: [Segment::default(); 8], root: L4 * PAGE };
        cpu.segment(SegReg::Cs).attr = ATTR_P | ATTR_L;
        cpu.regs.gpr[RSP] = (DATA + 8) * PAGE;
        Self { xen, around, layout, cpu, granted: Vec::new() }
    }

    /// As a store of the kernel's: only where its tables let it.
    fn store(&mut self, linear: u64, value: u64) {
        let _ = self.cpu.write_virt(linear, &value.to_le_bytes());
    }

    fn trap(&mut self, cause: Cause, length: u64) {
        let rip = self.cpu.regs.rip;
        for _ in 0..SLICES {
            let next = rip.wrapping_add(length);
            let flow = self.xen.trap(0, Trap { cause, next }, &mut self.cpu);
            if flow == Flow::Stop || cause != Cause::Syscall || self.cpu.regs.rip != rip {
                return;
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>, moves: &mut u32) {
        match input.u8() {
            0..=0x4f => self.words(input),
            0x50..=0xbf => self.hypercall(input),
            0xc0..=0xcf => {
                self.cpu.regs.rip = argument(input);
                let error = Some(input.below(32) as u32);
                let payload = argument(input);
                let other = input.u8() & 31;
                let vector = input.pick(&[PF, GP, 6, 3, 1, other]);
                self.trap(Cause::Exception(Exception { vector, error, payload }), 0);
            }
            0xd0..=0xd7 => self.trap(Cause::Asked, 0),
            0xd8..=0xdf => self.xen.timer(input.below(4) as u32),
            0xe0..=0xe7 => self.xen.raise(input.number() as u32),
            0xe8..=0xf7 => self.back_end(input),
            _ if *moves > 0 => {
                *moves -= 1;
                self.moved();
            }
            _ => {}
        }
    }

    /// What lists are made of.
    fn words(&mut self, input: &mut Input<'_>) {
        let at = DATA * PAGE + input.below(96) * 8;
        for n in 0..=input.below(8) {
            let word = match input.u8() {
                0..=0x5f => (L4 + input.below(4)) * PAGE + input.below(64) * 8,
                0x60..=0xaf => entry(input),
                _ => argument(input),
            };
            self.store(at + n * 8, word);
        }
    }

    fn hypercall(&mut self, input: &mut Input<'_>) {
        let list = DATA * PAGE + input.below(96) * 8;
        let (number, args) = match input.u8() {
            0..=0x5f => (input.pick(&LISTS), [list, input.below(9), 0, 0x7ff0, 0]),
            0x60..=0x8f => {
                let linear = input.below(RAM) * PAGE;
                (call::UPDATE_VA_MAPPING, [linear, entry(input), input.below(8), 0x7ff0, 0])
            }
            0x90..=0xcf => {
                (input.below(48), [input.below(34), list, input.below(4), argument(input), 0])
            }
            _ => (input.below(64), [(); 5].map(|()| argument(input))),
        };
        self.cpu.regs.gpr[RAX] = number;
        for (register, value) in [RDI, RSI, RDX, R10, R8].into_iter().zip(args) {
            self.cpu.regs.gpr[register] = value;
        }
        self.trap(Cause::Syscall, 2);
    }

    /// What is around a domain uses a grant, or lets it go.
    fn back_end(&mut self, input: &mut Input<'_>) {
        let access = if input.flag() { Access::Write } else { Access::Read };
        match input.below(3) {
            0 => {
                let grant = input.below(600) as u32;
                let value = 1 | input.below(RAM + 2) << 32;
                let at = self.layout.grants() + u64::from(grant) * 8;
                let _ = self.cpu.memory.write(at, &value.to_le_bytes());
                if self.xen.map(grant, access).is_ok() {
                    self.granted.push((grant, access));
                }
            }
            1 => {
                if let Some((grant, access)) = self.granted.pop() {
                    self.xen.unmap(grant, access);
                }
            }
            _ => {
                let port = input.below(16) as u32;
                if self.xen.bind(port, Arc::new(|| {})).is_ok() && input.flag() {
                    self.xen.unbind(port);
                }
            }
        }
    }

    /// A domain that no back end uses is restored as it was.
    fn moved(&mut self) {
        while let Some((grant, access)) = self.granted.pop() {
            self.xen.unmap(grant, access);
        }
        let saved = saved(|to| self.xen.save(to));
        let mut reader = Reader::new(saved.clone()).expect("parts");
        if let Err(error) = self.xen.restore(&mut reader) {
            panic!("what was saved is refused: {error}");
        }
        same(&self::saved(|to| self.xen.save(to)), &saved);
    }

    /// The rule: whatever the vCPU's tables map for writing is the domain's, and no table.
    fn check(&self) {
        let (mut tables, mut writable) = (BTreeSet::new(), BTreeSet::new());
        self.look(self.cpu.root & ADDRESS, 4, &mut tables, &mut writable);
        for page in &writable {
            assert!(!tables.contains(page), "a table is writable: {page:#x}");
            let own = *page < RAM * PAGE || self.layout.is_shared(page / PAGE);
            assert!(own, "what is not the domain's is writable: {page:#x}");
        }
    }

    fn look(&self, table: u64, level: u32, tables: &mut BTreeSet<u64>, to: &mut BTreeSet<u64>) {
        if !tables.insert(table) {
            return;
        }
        for index in (0..512).filter(|index| level < 4 || !HYPERVISOR_SLOTS.contains(index)) {
            let entry = load(&self.cpu.memory, table + index as u64 * 8);
            match (entry & P != 0, level) {
                (true, 1) if entry & RW != 0 => drop(to.insert(entry & ADDRESS)),
                (true, 2..) => self.look(entry & ADDRESS, level - 1, tables, to),
                _ => {}
            }
        }
    }
}

fn memory(len: u64) -> Arc<GuestMem> {
    let memory = GuestMem::new(len).expect("memory");
    let mem = Memfd::new(len).expect("memory");
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
    memory.update(&[Change::Map(slot)], |_, _| Ok(())).expect("a slot");
    memory
}

fn saved(f: impl FnOnce(&mut Writer)) -> Vec<Part> {
    let mut writer = Writer::default();
    f(&mut writer);
    writer.finish()
}

/// An entry that maps some frame.
fn entry(input: &mut Input<'_>) -> u64 {
    let frame = input.below(RAM + 4);
    let rights = input.pick(&[P | RW | US, P | US, P | RW, 0]);
    (frame * PAGE) | rights
}

fn argument(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0..=0x3f => input.below(40),
        0x40..=0x9f => input.below(RAM + 2) * PAGE + input.below(520) * 8,
        0xa0..=0xaf => entry(input),
        0xb0..=0xb7 => Layout::gdt_linear(0) + input.below(8) * 8,
        0xb8..=0xc7 => 0x7ff0,
        _ => input.number(),
    }
}

/// Hypercalls, faults and back ends.
pub(super) fn calls(data: &[u8]) {
    let mut input = Input::new(data);
    let mut domain = Domain::new();
    let mut moves = MOVES;
    for step in 0..STEPS {
        if input.is_empty() || domain.around.ended.load(SeqCst) {
            break;
        }
        domain.step(&mut input, &mut moves);
        if step % 8 == 7 {
            domain.check();
        }
    }
    domain.check();
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
    let xen = XenPv::new(Config { memory, layout, vcpus: 1, clock, board });
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
