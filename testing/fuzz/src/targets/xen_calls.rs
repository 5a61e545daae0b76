//! A Xen domain's hypercalls, faults and back ends.

use super::xen::{Around, STEPS, memory, saved};
use crate::{input::Input, same};
use engine::{Cause, ClockSample, CpuView, Flow, Roots, TableChanges, Trap};
use guest_mem::{GuestMem, PAGE};
use saved_state::Reader;
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::SeqCst},
};
use vcpu_state::{Exception, Regs, SegReg, Segment};
use x86_defs::{
    exception::{GP, PF},
    gpr::{R8, R10, RAX, RDI, RDX, RSI, RSP},
    paging::{ADDRESS, P, RW, US},
    segment::{ATTR_L, ATTR_P},
};
use xen_abi::{
    event_channel::{fifo, op},
    grant_table::op as table,
    hypercall as call,
    xen::HYPERVISOR_SLOTS,
};
use xen_front::{Access, Domain as _, Notified};
use xen_pv::{Built, Config, Layout, XenPv};

/// Frames of RAM: tables in the first, the rest is mapped for writing from 0 on.
const RAM: u64 = 64;
const L4: u64 = 1;
const DATA: u64 = 16;
/// Of those, what is done with the state.
const MOVES: u32 = 2;
/// How often a call may come back before it is given up.
const SLICES: u32 = 3;
/// Calls with lists of elements, which change the most.
const LISTS: [u64; 3] = [call::MMU_UPDATE, call::MMUEXT_OP, call::MULTICALL];

/// A vCPU without an engine: it walks the domain's tables.
struct Cpu {
    memory: Arc<GuestMem>,
    regs: Regs,
    segments: [Segment; 8],
    root: u64,
    roots: Roots,
    in_kernel: bool,
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

    fn set_roots(&mut self, roots: Roots, _: bool) {
        self.roots = roots;
        self.enter(self.in_kernel);
    }

    fn roots(&self) -> Option<Roots> {
        Some(self.roots)
    }

    fn enter(&mut self, kernel: bool) {
        self.in_kernel = kernel;
        self.root = if kernel { self.roots.kernel } else { self.roots.program };
    }

    fn tables_changed(&mut self, _: TableChanges) {}

    fn forget_own(&mut self) {}

    fn forget_writes(&mut self, _: u64) {}

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
    /// What back ends use, and where.
    granted: Vec<(u32, Access, u64)>,
    /// Pages that the hypervisor writes to for good.
    written: BTreeSet<u64>,
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
        let memory_of = memory.clone();
        let config = Config {
            memory: memory_of,
            layout,
            vcpus: 2,
            clock,
            board,
            arch_capabilities: Some(1),
        };
        let xen = XenPv::new(config);
        let (store_frame, console_frame) = (RAM - 1, RAM - 2);
        xen.start(&Built { root: L4 * PAGE, store_frame, console_frame }).expect("it starts");
        let regs = Regs::default();
        let mut cpu = Cpu {
            memory,
            regs,
            segments: [Segment::default(); 8],
            root: L4 * PAGE,
            roots: Roots { kernel: L4 * PAGE, program: 0 },
            in_kernel: true,
        };
        cpu.segment(SegReg::Cs).attr = ATTR_P | ATTR_L;
        cpu.regs.gpr[RSP] = (DATA + 8) * PAGE;
        Self { xen, around, layout, cpu, granted: Vec::new(), written: BTreeSet::new() }
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

    /// Grants' tables, with arguments that are nearly right.
    fn tables(&mut self, input: &mut Input<'_>) {
        let at = DATA * PAGE + input.below(96) * 8;
        let count = input.below(34);
        let (operation, words) = match input.below(4) {
            0 => (table::SETUP_TABLE, [0x7ff0 | (count << 32), 0, at + 32]),
            1 => (table::GET_STATUS_FRAMES, [(count % 6) | (0x7ff0 << 32), at + 32, 0]),
            2 => (table::GET_VERSION, [0x7ff0, 0, 0]),
            _ => (table::SET_VERSION, [count % 4, 0, 0]),
        };
        for (n, word) in (0..).zip(words) {
            self.store(at + n * 8, word);
        }
        self.call(call::GRANT_TABLE_OP, [operation, at, 1, 0, 0]);
    }

    /// Ports and their queues, with arguments that are nearly right.
    fn ports(&mut self, input: &mut Input<'_>) {
        let at = DATA * PAGE + input.below(96) * 8;
        let (frame, port) = (input.below(RAM + 2), input.below(16));
        let (operation, words) = match input.below(8) {
            0 => (op::INIT_CONTROL, [frame, (input.below(66) * 64) | (input.below(3) << 32), 0]),
            1 => (op::EXPAND_ARRAY, [frame, 0, 0]),
            2 => (op::SET_PRIORITY, [port | (input.below(17) << 32), 0, 0]),
            3 => (op::BIND_IPI, [input.below(2), 0, 0]),
            4 => (op::CLOSE, [port, 0, 0]),
            5 => (op::UNMASK, [port, 0, 0]),
            6 => (op::SEND, [port, 0, 0]),
            _ => {
                let bits =
                    [0, fifo::LINKED, fifo::MASKED, fifo::BUSY | fifo::LINKED, fifo::PENDING];
                let word = u64::from(input.pick(&bits)) | (input.number() & u64::from(fifo::LINK));
                return self.store(frame * PAGE + port * 4, word);
            }
        };
        for (n, word) in (0..).zip(words) {
            self.store(at + n * 8, word);
        }
        // What it asks for may be where it cannot write.
        let asked = self.cpu.walk(at, false).map(|at| load(&self.cpu.memory, at));
        self.call(call::EVENT_CHANNEL_OP, [operation, at, 0, 0, 0]);
        let done = self.cpu.regs.gpr[RAX] == 0;
        if done && matches!(operation, op::INIT_CONTROL | op::EXPAND_ARRAY) {
            self.written.extend(asked.map(|frame| frame.wrapping_mul(PAGE)));
        }
    }

    fn hypercall(&mut self, input: &mut Input<'_>) {
        let list = DATA * PAGE + input.below(96) * 8;
        let (number, args) = match input.u8() {
            0..=0x5f => (input.pick(&LISTS), [list, input.below(9), 0, 0x7ff0, 0]),
            0x60..=0x77 => return self.ports(input),
            0x78..=0x7f => return self.tables(input),
            0x80..=0x8f => {
                let linear = input.below(RAM) * PAGE;
                (call::UPDATE_VA_MAPPING, [linear, entry(input), input.below(8), 0x7ff0, 0])
            }
            0x90..=0xbf => {
                (input.below(48), [input.below(34), list, input.below(4), argument(input), 0])
            }
            _ => (input.below(64), [(); 5].map(|()| argument(input))),
        };
        self.call(number, args);
    }

    fn call(&mut self, number: u64, args: [u64; 5]) {
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
                let (grant, frame) = (input.below(600) as u32, input.below(RAM + 2));
                let flags: u64 = input.pick(&[1, 1, 1, 2, 3, 5, 0x101]);
                // Of either version.
                let (size, words) = match input.u8() {
                    0..=0x7f => (8, [flags | frame << 32, 0]),
                    0x80..=0xef => (16, [flags, frame]),
                    _ => (16, [flags, input.number()]),
                };
                let at = self.layout.grants() + u64::from(grant) * size;
                for (at, word) in [at, at + 8].into_iter().zip(words).take(size as usize / 8) {
                    let _ = self.cpu.memory.write(at, &word.to_le_bytes());
                }
                if let Ok(page) = self.xen.map(grant, access) {
                    self.granted.push((grant, access, page.gpa()));
                }
            }
            1 => {
                if let Some((grant, access, _)) = self.granted.pop() {
                    self.xen.unmap(grant, access);
                }
            }
            _ => {
                let port = input.below(16) as u32;
                let notified: Notified = Arc::new(|| {});
                if self.xen.bind(port, notified.clone()).is_ok() && input.flag() {
                    self.xen.unbind(port, &notified);
                }
            }
        }
    }

    /// A domain that no back end uses is restored as it was.
    fn moved(&mut self) {
        while let Some((grant, access, _)) = self.granted.pop() {
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
        let used = self.granted.iter().filter(|(_, access, _)| *access == Access::Write);
        let used: BTreeSet<u64> = used.map(|(.., page)| *page).collect();
        for page in used.iter().chain(&self.written) {
            assert!(!tables.contains(page), "a page that others write is a table: {page:#x}");
        }
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
pub(super) fn run(data: &[u8]) {
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
