//! A guest whose kernel runs at level 3, with page tables of its own beside its program's.

use super::support::*;
use engine::{
    CpuView, Exit, Flow, Intercepts, Pending, Roots, Stats, TableChanges, Trap, Vcpu, VcpuHost, Vm,
    stats::Value,
};
use std::sync::Arc;
use vcpu_state::SegReg;
use x86_defs::{
    gpr::{RAX, RBX, RDX, RSI},
    paging::{P, RW, US},
    segment::ATTR_DPL,
};

const KERNEL: u64 = 0x9_0000;
const OTHER: u64 = 0x9_8000;
const PROGRAM: u64 = 0xa_0000;
/// What all kernels have in the upper half: an L3 table and what is below.
const SHARED: u64 = 0xa_8000;
const UPPER: u64 = 0xffff_8880_0000_0000;
// Elsewhere in a TLB than below.
const UPPER_CODE: u64 = UPPER + 0x10_0000 + CODE;
const UPPER_DATA: u64 = UPPER + 0x10_0000 + DATA;
/// Pages that begin with their own numbers, in the first word.
const PAGES: u64 = 0xb_0000;
const MOVED_CODE: u64 = 0xc_0000;

fn page(number: u64) -> u64 {
    PAGES + number * 0x1000
}

/// The personality: one step at each SYSCALL.
struct Steps<'f> {
    /// RAX and RDX as each step found them.
    seen: Vec<(u64, u64)>,
    step: &'f mut dyn FnMut(usize, &mut dyn CpuView) -> Flow,
}

impl VcpuHost for Steps<'_> {
    fn pio_in(&mut self, _: u16, _: usize, _: &mut [u8]) -> Flow {
        Flow::Continue
    }

    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn mmio_read(&mut self, _: u64, _: &mut [u8]) -> Flow {
        Flow::Continue
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn pending(&self) -> Option<Pending> {
        None
    }

    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }

    fn tsc(&mut self) -> u64 {
        1
    }

    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        let gpr = cpu.regs().gpr;
        self.seen.push((gpr[RAX], gpr[RDX]));
        cpu.regs().rip = trap.next;
        (self.step)(self.seen.len() - 1, cpu)
    }
}

fn put(vm: &Arc<dyn Vm>, at: u64, value: u64) {
    vm.memory().write(at, &value.to_le_bytes()).unwrap();
}

/// Maps a page; a root's lower tables are the three pages behind it.
fn map(vm: &Arc<dyn Vm>, root: u64, linear: u64, to: u64) {
    let tables = match linear >> 63 {
        0 => [root, root + 0x1000, root + 0x2000, root + 0x3000],
        _ => [root, SHARED, SHARED + 0x1000, SHARED + 0x2000],
    };
    for (n, shift) in [39, 30, 21, 12].into_iter().enumerate() {
        let below = tables.get(n + 1).copied().unwrap_or(to);
        put(vm, tables[n] + (linear >> shift & 511) * 8, below | P | RW | US);
    }
}

/// Reads by RBX and RSI, and asks the personality, for ever.
fn code(at: u64, first: u32) -> Vec<u8> {
    use iced_x86::code_asm::*;
    assemble(64, at, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.add(rax, first as i32)?;
        a.mov(rdx, qword_ptr(rsi))?;
        a.syscall()?;
        a.jmp(top)
    })
}

fn guest() -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = vm_with(Intercepts { exceptions: !0, syscall: true, cpuid: false });
    for number in 0..8 {
        put(&vm, page(number), number);
    }
    vm.memory().write(CODE, &code(CODE, 0)).unwrap();
    vm.memory().write(MOVED_CODE, &code(CODE, 100)).unwrap();
    for (root, data) in [(KERNEL, 1), (OTHER, 4), (PROGRAM, 2)] {
        map(&vm, root, CODE, CODE);
        map(&vm, root, DATA, page(data));
    }
    for root in [KERNEL, OTHER] {
        map(&vm, root, UPPER_CODE, CODE);
        map(&vm, root, UPPER_DATA, page(3));
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut state = long_mode();
    state.control.cr3 = KERNEL;
    for which in [SegReg::Cs, SegReg::Ss] {
        state.segment_mut(which).attr |= ATTR_DPL;
    }
    (state.regs.gpr[RBX], state.regs.gpr[RSI]) = (DATA, DATA);
    vcpu.set_state(&state).unwrap();
    (vm, vcpu)
}

fn run(
    vcpu: &mut dyn Vcpu,
    step: &mut dyn FnMut(usize, &mut dyn CpuView) -> Flow,
) -> Vec<(u64, u64)> {
    let mut host = Steps { seen: Vec::new(), step };
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
    host.seen
}

fn count(stats: &Stats, name: &str) -> u64 {
    let mut all = stats.groups.iter().flat_map(|group| &group.counters);
    match all.find(|counter| counter.name == name).map(|counter| counter.value) {
        Some(Value::Count(count)) => count,
        _ => 0,
    }
}

const ROOTS: Roots = Roots { kernel: KERNEL, program: PROGRAM };

/// The kernel runs on, with this root, in the upper half.
fn kernel(cpu: &mut dyn CpuView, kernel: u64) {
    cpu.set_roots(Roots { kernel, ..ROOTS }, true);
    cpu.enter(true);
    cpu.regs().gpr[RSI] = UPPER_DATA;
    cpu.regs().rip = UPPER_CODE;
}

#[test]
fn each_has_its_own_pages_and_nothing_is_forgotten_on_the_way() {
    let (_vm, mut vcpu) = guest();
    const TURNS: usize = 400;
    let mut toggle = |step: usize, cpu: &mut dyn CpuView| {
        cpu.set_roots(ROOTS, true);
        let to_kernel = step % 2 == 1;
        cpu.enter(to_kernel);
        let mut word = [0; 8];
        cpu.read_virt(DATA, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), if to_kernel { 1 } else { 2 });
        let upper = cpu.read_virt(UPPER_DATA, &mut word).is_ok();
        assert_eq!(upper, to_kernel, "the program has no upper half");
        let (rip, data) = if to_kernel { (UPPER_CODE, UPPER_DATA) } else { (CODE, DATA) };
        cpu.regs().rip = rip;
        cpu.regs().gpr[RSI] = data;
        if step + 1 == TURNS { Flow::Stop } else { Flow::Continue }
    };
    let seen = run(&mut *vcpu, &mut toggle);
    assert_eq!(seen[0], (1, 1));
    for pair in seen[1..].chunks_exact(2) {
        assert_eq!(pair, [(2, 2), (1, 3)]);
    }
    let before = vcpu.stats();
    run(&mut *vcpu, &mut toggle);
    let walks = |stats: &Stats| count(stats, "page walks");
    // What the program has not is looked for in vain each time.
    assert!(walks(&vcpu.stats()) - walks(&before) <= TURNS as u64 / 2 + 8, "the TLB is kept");
}

#[test]
fn what_has_changed_is_seen_with_the_next_load() {
    let (vm, mut vcpu) = guest();
    let mut changes = TableChanges::default();
    let seen = run(&mut *vcpu, &mut |step, cpu| {
        match step {
            40 => map(&vm, KERNEL, DATA, page(5)),
            60 => changes.any += 1,
            80 => map(&vm, KERNEL, UPPER_DATA, page(6)),
            100 => (changes.any, changes.upper) = (changes.any + 1, changes.upper + 1),
            _ => {}
        }
        cpu.tables_changed(changes);
        kernel(cpu, if step < 80 || step % 2 == 0 { KERNEL } else { OTHER });
        if step == 120 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!(seen[40], (1, 3));
    // Nobody has said so.
    assert_eq!(seen[60], (1, 3));
    assert_eq!(seen[61..81], [(5, 3); 20]);
    assert_eq!(seen[81..101].iter().step_by(2).collect::<Vec<_>>(), [&(5, 3); 10]);
    assert_eq!(seen[82..101].iter().step_by(2).collect::<Vec<_>>(), [&(4, 3); 10]);
    assert_eq!(seen[101], (5, 6));
    assert_eq!(seen[102], (4, 6));
}

#[test]
fn other_tables_of_the_upper_half_are_seen() {
    let (vm, mut vcpu) = guest();
    // A copy of the first L3 table, by which another page is found.
    let [l3, l2, l1] = [0xd_0000, 0xd_1000, 0xd_2000];
    let at = |linear: u64, shift: u32| (linear >> shift & 511) * 8;
    put(&vm, l3 + at(UPPER, 30), l2 | P | RW | US);
    put(&vm, l2 + at(UPPER, 21), l1 | P | RW | US);
    put(&vm, l1 + at(UPPER_CODE, 12), MOVED_CODE | P | RW | US);
    put(&vm, l1 + at(UPPER_DATA, 12), page(7) | P | RW | US);
    put(&vm, OTHER + at(UPPER, 39), l3 | P | RW | US);
    let seen = run(&mut *vcpu, &mut |step, cpu| {
        kernel(cpu, if step < 30 { KERNEL } else { OTHER });
        if step == 60 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!((seen[30], seen[31], seen[60]), ((1, 3), (104, 7), (104, 7)));
}

#[test]
fn code_that_has_moved_is_found() {
    let (vm, mut vcpu) = guest();
    let mut changes = TableChanges::default();
    let seen = run(&mut *vcpu, &mut |step, cpu| {
        match step {
            40 => map(&vm, KERNEL, UPPER_CODE, MOVED_CODE),
            // Of where code is, nobody has said anything.
            50 => cpu.forget_own(),
            60 => changes = TableChanges { any: 1, upper: 1, code: 1 },
            _ => {}
        }
        cpu.tables_changed(changes);
        if step == 60 {
            cpu.forget_own();
        }
        kernel(cpu, KERNEL);
        if step == 80 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!((seen[40].0, seen[60].0, seen[61].0, seen[80].0), (1, 1, 101, 101));
}

/// What takes the right to write takes it everywhere, and the page tables are asked again.
#[test]
fn a_page_is_not_written_by_what_was_known() {
    let (vm, mut vcpu) = guest();
    let seen = run(&mut *vcpu, &mut |step, cpu| {
        kernel(cpu, KERNEL);
        cpu.write_virt(DATA, &[1]).unwrap_or_default();
        if step == 20 {
            let entry = KERNEL + 0x3000 + (DATA >> 12 & 511) * 8;
            put(&vm, entry, page(1) | P | US);
            assert!(cpu.write_virt(DATA, &[1]).is_ok(), "it is still known");
            cpu.forget_writes(page(1) + 8);
            assert!(cpu.write_virt(DATA, &[1]).is_err());
        }
        if step == 40 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!(seen[40], (1, 3), "it is still read");
}

#[test]
fn a_flush_forgets_what_has_changed() {
    let (vm, mut vcpu) = guest();
    let mut changes = TableChanges::default();
    let seen = run(&mut *vcpu, &mut |step, cpu| {
        if step == 0 {
            kernel(cpu, KERNEL);
        }
        match step {
            40 => {
                map(&vm, KERNEL, DATA, page(5));
                map(&vm, KERNEL, UPPER_DATA, page(6));
            }
            60 => changes.any += 1,
            70 => (changes.any, changes.upper) = (changes.any + 1, changes.upper + 1),
            _ => {}
        }
        cpu.tables_changed(changes);
        cpu.forget_own();
        if step == 80 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!((seen[60], seen[61], seen[70], seen[71]), ((1, 3), (5, 3), (5, 3), (5, 6)));
}

/// Two pages whose entries have the same place in the TLB are copied by pages, not by words.
#[test]
fn pages_that_evict_each_other_are_copied_whole() {
    use iced_x86::code_asm::*;
    const APART: u64 = 64 << 20;
    let (vm, mut vcpu) = guest();
    let l1 = 0xd_0000;
    put(&vm, KERNEL + 0x2000 + ((DATA + APART) >> 21 & 511) * 8, l1 | P | RW | US);
    put(&vm, l1 + (DATA >> 12 & 511) * 8, page(5) | P | RW | US);
    put(&vm, page(5) + 0xff8, 77);
    let copy = assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rsi, DATA + APART)?;
        a.mov(rdi, DATA)?;
        a.mov(ecx, 512)?;
        a.rep().movsq()?;
        a.syscall()?;
        a.jmp(top)
    });
    vm.memory().write(CODE, &copy).unwrap();
    const TURNS: usize = 50;
    run(&mut *vcpu, &mut |step, cpu| {
        cpu.set_roots(ROOTS, true);
        cpu.enter(true);
        if step == TURNS { Flow::Stop } else { Flow::Continue }
    });
    let mut word = [0; 8];
    vm.memory().read(page(1) + 0xff8, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 77);
    let walks = count(&vcpu.stats(), "page walks");
    assert!(walks < TURNS as u64 * 4 + 50, "{walks}");
}
