//! Hypercalls as a kernel makes them, and as one that means harm does.

use engine::{Cause, ClockSample, CpuView, Flow, Trap};
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use proptest::prelude::*;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::SeqCst},
};
use vcpu_state::{Exception, Regs, SegReg, Segment};
use x86_defs::{
    gpr::{R8, R10, RAX, RDI, RDX, RSI, RSP},
    paging::{ADDRESS, P, RW, US},
    segment::{ATTR_L, ATTR_P},
};
use xen_abi::{errno::Errno, event_channel, hypercall as call, sched, vcpu, xen::SharedInfo};
use xen_pv::{Board, Config, Layout, XenPv};

/// Frames of RAM: tables in the first, the rest is mapped for writing from 0 on.
const RAM: u64 = 64;
const L4: u64 = 1;
const DATA: u64 = 16;

#[derive(Default)]
struct Around {
    timer: Mutex<Option<u64>>,
    ended: Mutex<Option<u32>>,
    said: Mutex<Vec<u8>>,
}

impl Board for Around {
    fn wake(&self, _: u32) {}

    fn set_timer(&self, _: u32, deadline_ns: Option<u64>) {
        *self.timer.lock().unwrap() = deadline_ns;
    }

    fn console(&self, text: &[u8]) {
        self.said.lock().unwrap().extend(text);
    }

    fn shutdown(&self, reason: u32) {
        *self.ended.lock().unwrap() = Some(reason);
    }

    fn notify(&self, _: u32) {}
}

/// A vCPU without an engine: it walks the domain's tables.
struct Cpu {
    memory: Arc<GuestMem>,
    regs: Regs,
    segments: [Segment; 8],
    root: u64,
    halted: bool,
}

impl Cpu {
    fn load(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        let _ = self.memory.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn walk(&self, linear: u64, write: bool) -> Option<u64> {
        let mut table = self.root & ADDRESS;
        for shift in [39, 30, 21, 12] {
            let entry = self.load(table + (linear >> shift & 511) * 8);
            if entry & P == 0 || (write && entry & RW == 0) {
                return None;
            }
            table = entry & ADDRESS;
        }
        Some(table + linear % PAGE)
    }

    fn each(&self, at: u64, len: usize, write: bool) -> Result<Vec<u64>, Exception> {
        let fault = Exception { vector: 14, error: Some(0), payload: at };
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
            self.memory.read(at, std::slice::from_mut(byte)).unwrap();
        }
        Ok(())
    }

    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        for (at, byte) in self.each(gva, data.len(), true)?.into_iter().zip(data) {
            self.memory.write(at, &[*byte]).unwrap();
        }
        Ok(())
    }

    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        [0; 4]
    }

    fn gdt_base(&self) -> u64 {
        Layout::gdt_linear(0)
    }

    fn set_task_switched(&mut self, _: bool) {}

    fn set_xcr0(&mut self, _: u64) {}

    fn halt(&mut self) {
        self.halted = true;
    }

    fn deliver(&mut self, _: Exception) {}

    fn flush_tlb(&mut self, _: u64, _: Option<u64>) {}
}

struct Guest {
    xen: Arc<XenPv>,
    around: Arc<Around>,
    now: Arc<AtomicU64>,
    layout: Layout,
    cpu: Cpu,
}

impl Guest {
    fn new() -> Self {
        let layout = Layout::new(RAM * PAGE);
        let memory = GuestMem::new(layout.end()).unwrap();
        let mem = Memfd::new(layout.end()).unwrap();
        let len = layout.end();
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        for table in L4..L4 + 3 {
            put(table * PAGE, ((table + 1) * PAGE) | P | RW | US);
        }
        for frame in 0..RAM {
            let writable = if (L4..L4 + 4).contains(&frame) { 0 } else { RW };
            put((L4 + 3) * PAGE + frame * 8, (frame * PAGE) | P | US | writable);
        }
        let (around, now) = (Arc::new(Around::default()), Arc::new(AtomicU64::new(1000)));
        let clock = {
            let now = now.clone();
            Arc::new(move || {
                let guest_ns = now.load(SeqCst);
                ClockSample { guest_ns, tsc: guest_ns, khz: 1_000_000, realtime_ns: guest_ns }
            })
        };
        let config = Config {
            memory: memory.clone(),
            layout,
            vcpus: 2,
            clock,
            board: around.clone(),
            store_frame: RAM - 1,
            console_frame: RAM - 2,
        };
        let xen = XenPv::new(config, L4 * PAGE).unwrap();
        let mut cpu = Cpu {
            memory,
            regs: Regs::default(),
            segments: [Segment::default(); 8],
            root: L4 * PAGE,
            halted: false,
        };
        cpu.segment(SegReg::Cs).attr = ATTR_P | ATTR_L;
        cpu.regs.gpr[RSP] = (DATA + 8) * PAGE;
        Self { xen, around, now, layout, cpu }
    }

    fn put(&mut self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.cpu.memory.write(at, &bytes).unwrap();
    }

    fn call(&mut self, number: u64, args: &[u64]) -> u64 {
        let rip = self.cpu.regs.rip;
        self.cpu.regs.gpr[RAX] = number;
        for (register, value) in [RDI, RSI, RDX, R10, R8].into_iter().zip(args) {
            self.cpu.regs.gpr[register] = *value;
        }
        self.go_on(rip)
    }

    /// Executes SYSCALL until it is complete.
    fn go_on(&mut self, rip: u64) -> u64 {
        loop {
            let trap = Trap { cause: Cause::Syscall, next: rip + 2 };
            let flow = self.xen.trap(0, trap, &mut self.cpu);
            if flow == Flow::Stop || self.cpu.regs.rip != rip {
                return self.cpu.regs.gpr[RAX];
            }
        }
    }

    fn shared(&self, offset: usize) -> u64 {
        self.cpu.load(self.layout.shared_info() + offset as u64)
    }
}

#[test]
fn what_is_not_there_says_so() {
    let mut guest = Guest::new();
    assert_eq!(guest.call(999, &[]), Errno::NoSys.result());
    assert_eq!(guest.call(call::XEN_VERSION, &[0, 0]) >> 16, 4);
    assert_eq!(guest.xen.unknown(), [((999, 0), 1)]);
    let bad = 0x5000_0000;
    for number in [call::MMU_UPDATE, call::MMUEXT_OP, call::MULTICALL] {
        assert_eq!(guest.call(number, &[bad, 1, 0]), Errno::Fault.result(), "{number}");
    }
    // The hypervisor's addresses are nobody's to read or write.
    let own = Layout::gdt_linear(0) + 14 * PAGE;
    assert!(guest.cpu.walk(own, false).is_some());
    assert_eq!(guest.call(call::CONSOLE_IO, &[0, 8, own]), Errno::Fault.result());
    guest.put(DATA * PAGE, &[u64::from_le_bytes(*b"hello...")]);
    assert_eq!(guest.call(call::CONSOLE_IO, &[0, 5, DATA * PAGE]), 0);
    assert_eq!(*guest.around.said.lock().unwrap(), b"hello");
}

#[test]
fn a_long_list_goes_on_where_it_was() {
    let mut guest = Guest::new();
    // 5,000 updates of the same entry, from a list that is 20 pages long.
    let entry = (L4 + 3) * PAGE + 60 * 8;
    for n in 0..5000 {
        let value = (60 * PAGE) | P | if n % 2 == 0 { RW } else { 0 };
        guest.put(DATA * PAGE + n * 16, &[entry, value]);
    }
    let done = (DATA + 30) * PAGE;
    assert_eq!(guest.call(call::MMU_UPDATE, &[DATA * PAGE, 5000, done]), 0);
    assert_eq!(guest.cpu.load(done) as u32, 5000);
    assert_eq!(guest.cpu.load(entry) & (P | RW), P);
    // The same in a multicall, whose entry changes on the way.
    let list = (DATA + 31) * PAGE;
    guest.put(list, &[call::MMU_UPDATE, 1, DATA * PAGE, 4999, done, 0x7ff0, 0, 0]);
    assert_eq!(guest.call(call::MULTICALL, &[list, 1]), 0);
    assert_eq!((guest.cpu.load(list + 8), guest.cpu.load(done) as u32), (0, 4999));
    assert_eq!(guest.cpu.load(entry) & (P | RW), P | RW);
}

#[test]
fn a_timer_and_a_limit_do_not_disturb_each_other() {
    let mut guest = Guest::new();
    let at = DATA * PAGE;
    guest.put(at, &[u64::from(event_channel::virq::TIMER), 0]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_VIRQ, at]), 0);
    let port = guest.cpu.load(at + 8) as u32;
    guest.put(at, &[5000, 0]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::SET_SINGLESHOT_TIMER, 0, at]), 0);
    // Polls for a port until 2000, which is before the timer.
    guest.put(at + 64, &[7]);
    guest.put(at, &[at + 64, 1, 2000]);
    assert_eq!(guest.call(call::SCHED_OP, &[sched::op::POLL, at]), 0);
    assert!(guest.cpu.halted);
    assert_eq!(*guest.around.timer.lock().unwrap(), Some(2000));
    guest.now.store(2500, SeqCst);
    guest.xen.timer(0);
    let pending = std::mem::offset_of!(SharedInfo, pending);
    assert_eq!(guest.shared(pending), 0, "the timer is not due");
    assert_eq!(*guest.around.timer.lock().unwrap(), Some(5000));
    assert!(guest.xen.is_pending(0), "it sees that its time is over");
    guest.now.store(5000, SeqCst);
    guest.xen.timer(0);
    assert_eq!(guest.shared(pending), 1 << port);
    assert_eq!(*guest.around.timer.lock().unwrap(), None);
}

/// Numbers that mean something, or almost.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..40,
        (0..RAM + 2, 0u64..520).prop_map(|(frame, word)| frame * PAGE + word * 8),
        (0..RAM + 2).prop_map(|frame| (frame * PAGE) | P | RW | US),
        Just(Layout::gdt_linear(0)),
        Just(0x7ff0),
        Just(!0),
        any::<u64>(),
    ]
}

/// An entry that maps some frame for writing.
fn entry() -> impl Strategy<Value = u64> {
    (0..RAM + 2).prop_map(|frame| (frame * PAGE) | P | RW | US)
}

/// What lists are made of.
fn word() -> impl Strategy<Value = u64> {
    let of_table = (L4..L4 + 4, 0u64..64).prop_map(|(table, word)| table * PAGE + word * 8);
    prop_oneof![of_table, entry(), argument()]
}

type Call = (u64, [u64; 5]);

/// Any call, and more often those that change tables.
fn calls() -> impl Strategy<Value = Call> {
    let list = DATA * PAGE;
    let page = || (0..RAM).prop_map(|frame| frame * PAGE);
    prop_oneof![
        (0u64..42, prop::array::uniform5(argument())),
        (page(), entry())
            .prop_map(|(at, value)| (call::UPDATE_VA_MAPPING, [at, value, 0, 0x7ff0, 0])),
        (0u64..16, 0u64..8)
            .prop_map(move |(at, count)| (call::MMU_UPDATE, [list + at * 8, count, 0, 0x7ff0, 0])),
        (0u64..16, 0u64..8)
            .prop_map(move |(at, count)| (call::MMUEXT_OP, [list + at * 8, count, 0, 0x7ff0, 0])),
    ]
}

proptest! {
    /// Nothing that a kernel asks for panics or hangs; tables stay mapped for reading only.
    #[test]
    fn noise_ends_the_domain_at_most(
        words in prop::collection::vec(word(), 256),
        calls in prop::collection::vec(calls(), 1..40)
    ) {
        let mut guest = Guest::new();
        guest.put(DATA * PAGE, &words);
        for (number, args) in calls {
            guest.call(number, &args);
            if guest.around.ended.lock().unwrap().is_some() {
                break;
            }
            // While the tables of the start are in use, none of them is writable.
            let root = guest.cpu.root & ADDRESS;
            for linear in (0..RAM * PAGE).step_by(PAGE as usize) {
                if let Some(at) = guest.cpu.walk(linear, true) {
                    prop_assert_ne!(at & ADDRESS, root, "a table is writable at {:#x}", linear);
                }
            }
        }
    }
}
