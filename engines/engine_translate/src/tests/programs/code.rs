//! Programs that write what they execute (SDM volume 3, 9.1.3), and devices that write what
//! programs have at hand.

use super::*;
use guest_mem::{Change, Memfd, PageBitmap, Slot};
use x86_defs::gpr::{RBX, RDI};

/// Pages that are written and executed by turns.
const PAGES: u64 = 40;
/// What is as far as this from a page may have its place in a TLB.
const FAR: std::ops::Range<u32> = 24..29;

/// How a function is written, from RAX, at RBX.
#[derive(Clone, Copy, Debug)]
enum Store {
    Move,
    Exchange,
    Locked,
    String,
    Push,
    Vector,
    Unit,
    Bytes,
}

impl Store {
    const ALL: [Self; 8] = [
        Self::Move,
        Self::Exchange,
        Self::Locked,
        Self::String,
        Self::Push,
        Self::Vector,
        Self::Unit,
        Self::Bytes,
    ];

    fn store(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        match self {
            Self::Move => a.mov(qword_ptr(rbx), rax),
            Self::Exchange => {
                a.mov(rdx, rax)?;
                a.xchg(qword_ptr(rbx), rdx)
            }
            Self::Locked => {
                a.mov(qword_ptr(rbx), 0)?;
                a.lock().add(qword_ptr(rbx), rax)
            }
            Self::String => {
                a.push(rdi)?;
                a.push(rax)?;
                a.mov(rsi, rsp)?;
                a.mov(rdi, rbx)?;
                a.mov(ecx, 8)?;
                a.rep().movsb()?;
                a.pop(rsi)?;
                a.pop(rdi)
            }
            Self::Push => {
                a.mov(rsi, rsp)?;
                a.lea(rsp, qword_ptr(rbx + 8))?;
                a.push(rax)?;
                a.mov(rsp, rsi)
            }
            Self::Vector => {
                a.movq(xmm3, rax)?;
                a.movups(xmmword_ptr(rbx), xmm3)
            }
            Self::Unit => {
                a.fninit()?;
                a.push(rax)?;
                a.fild(qword_ptr(rsp))?;
                a.fistp(qword_ptr(rbx))?;
                a.pop(rsi)
            }
            Self::Bytes => {
                for n in 0..8 {
                    a.mov(byte_ptr(rbx + n), al)?;
                    a.ror(rax, 8)?;
                }
                Ok(())
            }
        }
    }
}

/// In each round, each page gets a function that returns what RCX was, or so, and is called
/// twice, by RDI. Before the calls, other pages may take the page's place.
fn writes_and_calls(
    a: &mut CodeAssembler,
    store: Store,
    crowd: bool,
    rounds: u32,
) -> Result<(), IcedError> {
    let (mut again, mut page) = (a.create_label(), a.create_label());
    a.mov(ebp, rounds)?;
    a.set_label(&mut again)?;
    a.mov(r9d, PAGES as u32)?;
    a.set_label(&mut page)?;
    // MOV EAX, imm32; RET; and two bytes, of which none makes it a large number.
    a.imul_3(eax, r9d, 1000)?;
    a.add(eax, ebp)?;
    a.shl(rax, 8)?;
    a.mov(rdx, 0x0000_c300_0000_00b8_u64)?;
    a.or(rax, rdx)?;
    a.inc(dword_ptr(rbx + 64))?;
    store.store(a)?;
    a.inc(dword_ptr(rbx + 68))?;
    if crowd {
        for far in FAR {
            a.add(r10d, dword_ptr(rbx + (1 << far)))?;
        }
    }
    a.call(rdi)?;
    a.add(r8, rax)?;
    a.call(rdi)?;
    a.add(r8, rax)?;
    a.add(rbx, PAGE as i32)?;
    a.add(rdi, PAGE as i32)?;
    a.dec(r9d)?;
    a.jnz(page)?;
    a.sub(rbx, (PAGES * PAGE) as i32)?;
    a.sub(rdi, (PAGES * PAGE) as i32)?;
    a.dec(ebp)?;
    a.jnz(again)?;
    done(a)
}

/// Pages are at `write` and at `execute`, and others far from them.
fn written_pages(write: u64, execute: u64, crowd: bool) -> impl Fn(&Arc<dyn Vm>, &mut VcpuState) {
    move |vm, state| {
        for page in 0..PAGES {
            map(vm, ROOT, write + page * PAGE, frame(page) | ALL);
            map(vm, ROOT, execute + page * PAGE, frame(page) | ALL);
            for far in FAR.filter(|_| crowd) {
                map(vm, ROOT, write + page * PAGE + (1 << far), frame(PAGES + page) | ALL);
            }
        }
        (state.regs.gpr[RBX], state.regs.gpr[RDI]) = (write, execute);
    }
}

fn write_and_call(write: u64, execute: u64, store: Store, crowd: bool, rounds: u32) {
    let user = |a: &mut CodeAssembler, _: Trap| writes_and_calls(a, store, crowd, rounds);
    let prepare = written_pages(write, execute, crowd);
    let left = Program { user: &user, kernel: &nothing, fault: &skip, prepare: &prepare };
    let left = left.run(Trap::Interrupt);
    let case = format!("{write:x} {execute:x} {store:?} {crowd} {rounds}");
    let (rounds, pages) = (u64::from(rounds), PAGES);
    let all = 1000 * rounds * pages * (pages + 1) / 2 + pages * rounds * (rounds + 1) / 2;
    assert_eq!(left.gpr[8], 2 * all, "{case}");
    for page in 0..pages {
        let words = [left.word(page, 64), left.word(page, 68)];
        assert_eq!(words, [rounds as u32; 2], "{case}: page {page}");
    }
}

/// Few rounds, so that pages do not become ones whose code is compared at each entry.
#[test]
fn what_a_program_writes_is_what_it_executes() {
    for store in Store::ALL {
        write_and_call(HEAP, HEAP, store, false, 3);
        write_and_call(NEAR, NEAR, store, true, 3);
    }
}

#[test]
fn what_a_program_writes_by_another_address_is_what_it_executes() {
    for store in Store::ALL {
        for crowd in [false, true] {
            write_and_call(HEAP, NEAR, store, crowd, 3);
        }
        // In the same window.
        write_and_call(NEAR, NEAR + 0x4000_0000, store, true, 3);
    }
}

#[test]
fn what_is_written_again_and_again_is_what_is_executed() {
    write_and_call(HEAP, HEAP, Store::Move, false, 60);
    write_and_call(HEAP, HEAP, Store::Locked, true, 60);
    write_and_call(NEAR, HEAP, Store::Vector, false, 60);
    write_and_call(NEAR, HEAP, Store::Bytes, true, 60);
}

/// A program that writes a page and executes it, reads another one, and asks a device to go on.
fn asks(a: &mut CodeAssembler, _: Trap) -> Result<(), IcedError> {
    let (mut again, mut turn) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(edx, 20)?;
    a.xor(r8d, r8d)?;
    a.set_label(&mut turn)?;
    a.inc(dword_ptr(rbx + 64))?;
    a.call(rbx)?;
    a.add(r8, rax)?;
    a.mov(eax, dword_ptr(rdi + 8))?;
    a.add(r9, rax)?;
    a.inc(dword_ptr(rdi + 12))?;
    a.dec(edx)?;
    a.jnz(turn)?;
    a.mov(eax, r9d)?;
    a.xor(r9d, r9d)?;
    a.out(0x80, eax)?;
    a.mov(eax, r8d)?;
    a.out(0x81, eax)?;
    a.cmp(r15d, 1)?;
    a.jne(again)?;
    done(a)
}

/// Tells the program to end at the next chance.
fn end(machine: &mut Machine) {
    let mut state = machine.guest.vcpu.state().unwrap();
    state.regs.gpr[15] = 1;
    machine.guest.vcpu.set_state(&state).unwrap();
    machine.guest.host.stop_port = None;
    assert_eq!(machine.guest.run(), Exit::Idle);
}

/// MOV EAX, imm32; RET.
fn returning(value: u32) -> [u8; 6] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

/// A device writes code and data that a program has at hand.
#[test]
fn what_a_device_writes_is_seen() {
    let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
        map(vm, ROOT, HEAP, frame(1) | ALL);
        map(vm, ROOT, NEAR, frame(2) | ALL);
        (state.regs.gpr[RBX], state.regs.gpr[RDI]) = (HEAP, NEAR);
        vm.memory().write(frame(1), &returning(0)).unwrap();
    };
    let program = Program { user: &asks, kernel: &nothing, fault: &skip, prepare: &prepare };
    let left = program.run_with(Trap::Interrupt, |machine| {
        machine.guest.host.stop_port = Some(0x81);
        for round in 1..=30u32 {
            let guest = &mut machine.guest;
            assert_eq!(guest.run(), Exit::Stopped);
            let sum = 20 * (round - 1);
            assert_eq!(guest.host.out, [(0x80, 7 * sum), (0x81, sum)], "{}", machine.name);
            guest.host.out.clear();
            let memory = guest.vm.memory();
            memory.write(frame(2) + 8, &(7 * round).to_le_bytes()).unwrap();
            match round % 2 {
                0 => memory.write(frame(1), &returning(round)).unwrap(),
                _ => memory.dma(frame(1), 6).unwrap().write(&returning(round)),
            };
        }
        end(machine);
    });
    assert_eq!([left.word(1, 64), left.word(2, 12)], [30 * 20; 2]);
}

/// What a program writes after its pages were said to be clean is dirty.
#[test]
fn each_page_that_a_program_writes_is_logged() {
    let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
        map(vm, ROOT, HEAP, frame(1) | ALL);
        map(vm, ROOT, NEAR, frame(2) | ALL);
        (state.regs.gpr[RBX], state.regs.gpr[RDI]) = (HEAP, NEAR);
        vm.memory().write(frame(1), &returning(0)).unwrap();
    };
    let program = Program { user: &asks, kernel: &nothing, fault: &skip, prepare: &prepare };
    program.run_with(Trap::Interrupt, |machine| {
        machine.guest.host.stop_port = Some(0x81);
        assert_eq!(machine.guest.run(), Exit::Stopped);
        for round in 0..12 {
            let vm = machine.guest.vm.clone();
            vm.log_dirty(round % 4 != 3).unwrap();
            let taken = |vm: &Arc<dyn Vm>| {
                let mut out = PageBitmap::for_len(0x20_0000);
                vm.take_dirty(0, &mut out).unwrap();
                out.pages().filter(|page| *page as u64 >= FRAMES / PAGE).collect::<Vec<_>>()
            };
            taken(&vm);
            assert_eq!(machine.guest.run(), Exit::Stopped);
            let dirty = taken(&vm);
            let both = [1, 2].map(|n| (frame(n) / PAGE) as usize);
            let all = both.iter().all(|page| dirty.contains(page));
            assert!(all || round % 4 == 3, "{}: round {round}: {dirty:x?}", machine.name);
        }
        end(machine);
    });
}

/// The memory under a page is taken away, becomes other memory, and read-only.
#[test]
fn memory_that_comes_and_goes_is_what_is_accessed() {
    const AT: u64 = 0x30_0000;
    let slot = || {
        let mem = Memfd::new(PAGE).unwrap();
        Slot { id: 7, gpa: AT, mem, offset: 0, len: PAGE, writable: true }
    };
    let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
        map(vm, ROOT, HEAP, frame(1) | ALL);
        map(vm, ROOT, NEAR, AT | ALL);
        (state.regs.gpr[RBX], state.regs.gpr[RDI]) = (HEAP, NEAR);
        vm.memory().write(frame(1), &returning(0)).unwrap();
    };
    let program = Program { user: &asks, kernel: &nothing, fault: &skip, prepare: &prepare };
    program.run_with(Trap::Interrupt, |machine| {
        let guest = &mut machine.guest;
        guest.host.stop_port = Some(0x81);
        let slots = [slot(), slot()];
        let mut present = false;
        let mut written = [0; 2];
        for round in 0..12u32 {
            let (number, writable) = (round as usize % 3, round % 4 != 3);
            let mut changes = Vec::new();
            if present {
                changes.push(Change::Unmap(7));
            }
            present = number < 2;
            if let Some(slot) = slots.get(number) {
                changes.push(Change::Map(Slot { writable, ..slot.clone() }));
            }
            guest.vm.set_layout(&changes).unwrap();
            let memory = guest.vm.memory();
            if present {
                memory.write(AT + 8, &(round + 5).to_le_bytes()).unwrap();
            }
            guest.host.out.clear();
            assert_eq!(guest.run(), Exit::Stopped);
            let read = if present { round + 5 } else { u32::MAX };
            let case = format!("{}: round {round}", machine.name);
            assert_eq!(guest.host.out[0], (0x80, read.wrapping_mul(20)), "{case}");
            if present {
                written[number] += if writable { 20 } else { 0 };
                let mut word = [0; 4];
                guest.vm.memory().read(AT + 12, &mut word).unwrap();
                assert_eq!(u32::from_le_bytes(word), written[number], "{case}");
            }
        }
        end(machine);
    });
}
