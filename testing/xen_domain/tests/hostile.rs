//! A kernel of our own that tries what it must not, in an engine: each attempt has its error, and
//! the domain works on.

use boot::XenPvRequest;
use engine_kvm::HostKvm;
use guest_mem::PAGE;
use iced_x86::code_asm::*;
use std::time::Duration;
use x86_defs::{
    exception::{GP, PF},
    paging::{P, RW, US},
};
use xen_abi::{errno::Errno, event_channel, hypercall as call, sched, xen::MACH2PHYS_VIRT};
use xen_domain::{By, Domain, Start};
use xen_pv::{CONSOLE_PORT, Layout, STORE_PORT};

const LONG: Duration = Duration::from_secs(120);
const BASE: u64 = 0xffff_ffff_8000_0000;
const CODE: u64 = BASE + 0x100_0000;
/// What is tried, what it works on, and pages to do with as it likes.
const TRIES: u64 = CODE + PAGE;
const WORDS: u64 = TRIES + 16 * PAGE;
const SPARE: u64 = WORDS + PAGE;
const END: u64 = SPARE + 8 * PAGE;
const MEMORY: u64 = 32 << 20;
const SELF: u64 = 0x7ff0;

/// Instructions in place of a hypercall: what they do with RDI and RSI.
const STORE: u64 = 1000;
const LOAD: u64 = 1001;
const WRMSR: u64 = 1002;
const XSETBV: u64 = 1003;
/// A result that may be anything: what matters is what comes after.
const ANY: u64 = 0xdead_0000_0000_beef;

/// RAX, RDI, RSI, RDX, R10, and RAX afterwards.
type Try = [u64; 6];

/// Goes through all that is to be tried, and says which one was not as it has to be.
fn code() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut next, mut done, mut wrong, mut compare) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    let (mut store, mut load, mut wrmsr_, mut xsetbv_) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(r14, rsp).unwrap();
    a.mov(rbx, TRIES).unwrap();
    a.set_label(&mut next).unwrap();
    a.mov(rax, qword_ptr(rbx)).unwrap();
    a.cmp(rax, -1).unwrap();
    a.je(done).unwrap();
    a.mov(rdi, qword_ptr(rbx + 8)).unwrap();
    a.mov(rsi, qword_ptr(rbx + 16)).unwrap();
    a.mov(rdx, qword_ptr(rbx + 24)).unwrap();
    a.mov(r10, qword_ptr(rbx + 32)).unwrap();
    for (number, label) in [(STORE, store), (LOAD, load), (WRMSR, wrmsr_), (XSETBV, xsetbv_)] {
        a.cmp(rax, number as i32).unwrap();
        a.je(label).unwrap();
    }
    a.syscall().unwrap();
    a.set_label(&mut compare).unwrap();
    a.mov(rcx, qword_ptr(rbx + 40)).unwrap();
    a.add(rbx, 48).unwrap();
    a.cmp(rax, rcx).unwrap();
    a.je(next).unwrap();
    a.mov(rax, ANY).unwrap();
    a.cmp(rcx, rax).unwrap();
    a.je(next).unwrap();
    a.jmp(wrong).unwrap();
    a.set_label(&mut store).unwrap();
    a.mov(qword_ptr(rdi), rsi).unwrap();
    a.xor(eax, eax).unwrap();
    a.jmp(compare).unwrap();
    a.set_label(&mut load).unwrap();
    a.mov(rax, qword_ptr(rdi)).unwrap();
    a.jmp(compare).unwrap();
    for (label, is_msr) in [(&mut wrmsr_, true), (&mut xsetbv_, false)] {
        a.set_label(label).unwrap();
        a.mov(ecx, edi).unwrap();
        a.mov(rax, rsi).unwrap();
        a.mov(rdx, rsi).unwrap();
        a.shr(rdx, 32).unwrap();
        if is_msr {
            a.wrmsr().unwrap()
        } else {
            a.xsetbv().unwrap()
        }
        a.xor(eax, eax).unwrap();
        a.jmp(compare).unwrap();
    }
    a.set_label(&mut wrong).unwrap();
    a.mov(rdi, 0u64).unwrap();
    // Which one: the address behind it; and what it was.
    a.mov(rdx, WORDS + PAGE - 64).unwrap();
    a.mov(qword_ptr(rdx), rbx).unwrap();
    a.mov(rsi, 8u64).unwrap();
    a.mov(eax, call::CONSOLE_IO as u32).unwrap();
    a.syscall().unwrap();
    a.mov(rsi, WORDS + PAGE - 32).unwrap();
    let mut end = a.create_label();
    a.jmp(end).unwrap();
    a.set_label(&mut done).unwrap();
    a.mov(rsi, WORDS + PAGE - 16).unwrap();
    a.set_label(&mut end).unwrap();
    a.mov(edi, sched::op::SHUTDOWN as u32).unwrap();
    a.mov(eax, call::SCHED_OP as u32).unwrap();
    a.syscall().unwrap();
    a.jmp(end).unwrap();
    let mut bytes = a.assemble(CODE).unwrap();
    // Faults come here: their number is the result.
    let mut handlers = CodeAssembler::new(64).unwrap();
    for vector in [GP, PF] {
        let mut pad = handlers.create_label();
        handlers.set_label(&mut pad).unwrap();
        handlers.mov(eax, u32::from(vector)).unwrap();
        handlers.mov(rsp, r14).unwrap();
        handlers.mov(rcx, CODE + compare_at(&bytes)).unwrap();
        handlers.jmp(rcx).unwrap();
    }
    assert!(bytes.len() < 0x800);
    bytes.resize(0x800, 0x90);
    bytes.extend(handlers.assemble(CODE + 0x800).unwrap());
    bytes.resize(PAGE as usize, 0xcc);
    bytes
}

/// Where the first SYSCALL ends.
fn compare_at(code: &[u8]) -> u64 {
    code.windows(2).position(|two| two == [0x0f, 0x05]).unwrap() as u64 + 2
}

/// Where the handlers of the two faults are.
fn handlers(code: &[u8]) -> [u64; 2] {
    let first = 0x800;
    let second = code[first + 1..].windows(5).position(|five| five == [0xb8, PF, 0, 0, 0]).unwrap();
    [CODE + first as u64, CODE + first as u64 + 1 + second as u64]
}

fn elf(code: &[u8], tries: &[Try], words: &[(u64, u64)]) -> Vec<u8> {
    let mut image = code.to_vec();
    image.extend(tries.iter().flatten().flat_map(|word| word.to_le_bytes()));
    image.extend([0xff; 8]);
    assert!(image.len() as u64 <= WORDS - CODE, "too much to try");
    image.resize((END - CODE) as usize, 0);
    for (at, value) in words {
        let at = (at - CODE) as usize;
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let mut notes = Vec::new();
    for (kind, value) in [(1u32, CODE), (3, BASE), (15, 0x80_0000_0000), (16, 1)] {
        notes.extend([4u32, 8, kind].iter().flat_map(|word| word.to_le_bytes()));
        notes.extend(b"Xen\0");
        notes.extend(value.to_le_bytes());
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let header: [u64; 6] = [1 << 32 | 62 << 16 | 2, CODE, 64, 0, 56 << 48 | 64 << 32, 2];
    file.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    let (start, size) = (64 + 2 * 56, image.len() as u64);
    let (behind, notes_size) = (start + size, notes.len() as u64);
    let physical = CODE - BASE;
    for header in [
        [7 << 32 | 1, start, CODE, physical, size, size, PAGE],
        [4 << 32 | 4, behind, 0, 0, notes_size, notes_size, 4],
    ] {
        file.extend(header.iter().flat_map(|word: &u64| word.to_le_bytes()));
    }
    file.extend(image);
    file.extend(notes);
    file
}

fn start(kernel: Vec<u8>, by: By) -> Start {
    Start { kernel, initrd: vec![0; 16], command_line: String::new(), memory: MEMORY, vcpus: 1, by }
}

/// Where the loader puts the L4 table, with the others behind it, for a file of this size.
fn root(kernel: Vec<u8>, layout: &Layout) -> u64 {
    let plan = boot::load_xen_pv(&XenPvRequest {
        kernel: kernel.into(),
        initrd: Some(vec![0; 16].into()),
        command_line: String::new(),
        memory: MEMORY,
        shared_info: layout.shared_info(),
        store_port: STORE_PORT,
        console_port: CONSOLE_PORT,
    });
    plan.unwrap().vcpu.control.cr3
}

/// Tries of the engine's pages.
fn of_the_engine(layout: &Layout) -> [Try; 4] {
    let (ring0, inval) = (layout.ring0(), Errno::result(Errno::Inval));
    let map = |linear, entry| [call::UPDATE_VA_MAPPING, linear, entry, 2, SELF, inval];
    [
        map(ring0.linear, (SPARE - BASE) | P | RW | US),
        map(SPARE, ring0.gpa | P | US),
        [LOAD, ring0.linear, 0, 0, 0, PF.into()],
        [STORE, ring0.linear + PAGE, 0, 0, 0, PF.into()],
    ]
}

/// What is tried, and the words that it needs.
fn attempts(root: u64, layout: &Layout, faults: [u64; 2]) -> (Vec<Try>, Vec<(u64, u64)>) {
    let error = Errno::result;
    let (busy, inval, fault) = (error(Errno::Busy), error(Errno::Inval), error(Errno::Fault));
    let gpa = |linear: u64| linear - BASE;
    let mut words = vec![(WORDS + PAGE - 16, 0), (WORDS + PAGE - 32, sched::reason::CRASH.into())];
    let mut tries: Vec<Try> = Vec::new();
    // Handlers of faults, from its own list of them.
    for (n, (vector, at)) in (0..).zip([u64::from(GP), u64::from(PF)].into_iter().zip(faults)) {
        words.extend([(WORDS + n * 16, vector | 0xe033 << 16), (WORDS + n * 16 + 8, at)]);
    }
    tries.push([call::SET_TRAP_TABLE, WORDS, 0, 0, 0, 0]);
    let map = |linear, entry, result| [call::UPDATE_VA_MAPPING, linear, entry, 2, SELF, result];
    // Tables for writing, the hypervisor's pages, what is behind all, and nobody's.
    for table in 0..4 {
        tries.push(map(SPARE, (root + table * PAGE) | P | RW | US, busy));
    }
    for at in
        [layout.m2p(), layout.shared_info() - PAGE, layout.end(), 1 << 40, 0xf_ffff_f000 << 12]
    {
        tries.push(map(SPARE, (at & !0xfff) | P | US, inval));
    }
    tries.push(map(MACH2PHYS_VIRT.start, gpa(SPARE) | P | RW | US, inval));
    tries.push(map(Layout::gdt_linear(0), gpa(SPARE) | P | RW | US, inval));
    tries.extend(of_the_engine(layout));
    tries.push(map(0x8080_0000_0000, 0, inval));
    // By plain stores: only what an L1 table may have is done for it.
    let l1_of = |linear: u64| {
        let l1 = root + 3 * PAGE + (gpa(linear) >> 21) * PAGE;
        BASE + l1 + (linear >> 12 & 511) * 8
    };
    let pf = u64::from(PF);
    tries.push([STORE, BASE + root + 8, 0, 0, 0, pf]);
    tries.push([STORE, l1_of(SPARE), root | P | RW | US, 0, 0, pf]);
    tries.push([STORE, l1_of(SPARE), gpa(SPARE + PAGE) | P | RW | US, 0, 0, 0]);
    tries.push([STORE, SPARE, 0x1234, 0, 0, 0]);
    tries.push([LOAD, SPARE + PAGE, 0, 0, 0, 0x1234]);
    tries.push(map(SPARE, gpa(SPARE) | P | RW | US, 0));
    tries.push([STORE, MACH2PHYS_VIRT.start, 5, 0, 0, pf]);
    tries.push([STORE, layout.m2p_linear(), 5, 0, 0, pf]);
    tries.push([LOAD, layout.m2p_linear() + 5 * 8, 0, 0, 0, 5]);
    tries.push([LOAD, Layout::gdt_linear(0), 0, 0, 0, pf]);
    // Garbage as a table of each level, as root, as descriptors; while it is mapped, and then not.
    let garbage = SPARE + 2 * PAGE;
    words.extend([(garbage + 8, !0), (garbage + 16, 0x0000_ec00_0008_1000)]);
    let ops = WORDS + 0x200;
    for command in [0, 1, 2, 3, 5, 15u64] {
        words
            .extend([(ops + command * 24, command), (ops + command * 24 + 8, gpa(garbage) / PAGE)]);
    }
    words.push((ops + 0x400, gpa(garbage) / PAGE));
    for (mapped, result) in [(true, busy), (false, inval)] {
        if !mapped {
            tries.push(map(garbage, 0, 0));
        }
        for command in [0, 1, 2, 3, 5, 15] {
            tries.push([call::MMUEXT_OP, ops + command * 24, 1, 0, SELF, result]);
        }
        tries.push([call::SET_GDT, ops + 0x400, 512, 0, 0, result]);
    }
    let gate = 0x0000_ec00_0008_1000;
    tries.push([call::UPDATE_DESCRIPTOR, gpa(SPARE), gate, 0, 0, inval]);
    tries.push([call::UPDATE_DESCRIPTOR, layout.shared_info() - PAGE, 0, 0, 0, inval]);
    tries.push([call::UPDATE_DESCRIPTOR, root, 0, 0, 0, busy]);
    // The root is not given back.
    words.extend([(ops + 0x440, ops + 0x480), (ops + 0x448, 1), (ops + 0x458, SELF)]);
    words.push((ops + 0x480, root / PAGE));
    tries.push([call::MEMORY_OP, 1, ops + 0x440, 0, 0, 0]);
    // What only ring 0 does.
    let gp = u64::from(GP);
    tries.push([WRMSR, 0xc000_0101, 1 << 47, 0, 0, gp]);
    tries.push([WRMSR, 0xc000_0101, BASE, 0, 0, 0]);
    tries.push([WRMSR, 0xc000_0080, 0, 0, 0, gp]);
    tries.push([XSETBV, 0, 6, 0, 0, gp]);
    // All numbers and operations, with pointers to nowhere.
    for number in (0..48).filter(|n| ![call::IRET, call::SCHED_OP, call::STACK_SWITCH].contains(n))
    {
        for pointer in [0x8080_0000_0000, Layout::gdt_linear(0), !7] {
            for operation in [0, 1, 2, 3, 6, 8, 9] {
                tries.push([number, operation, pointer, 1, SELF, ANY]);
            }
            tries.push([number, pointer, 1, 0, SELF, ANY]);
        }
    }
    tries.push([call::CONSOLE_IO, 0, 8, Layout::gdt_linear(0), 0, fault]);
    tries.push([call::MULTICALL, 0x8080_0000_0000, 1, 0, 0, fault]);
    // Ports: more than there are, then all closed.
    words.push((ops + 0x500, SELF));
    for _ in 0..40 {
        tries.push([call::EVENT_CHANNEL_OP, event_channel::op::ALLOC_UNBOUND, !7, 0, 0, fault]);
    }
    // And it works on.
    tries.push([call::SET_TRAP_TABLE, WORDS, 0, 0, 0, 0]);
    tries.push(map(SPARE, root | P | RW | US, busy));
    tries.push(map(SPARE, gpa(SPARE) | P | RW | US, 0));
    tries.push([STORE, SPARE, 0x4321, 0, 0, 0]);
    tries.push([LOAD, SPARE, 0, 0, 0, 0x4321]);
    tries.push([call::XEN_VERSION, 0, 0, 0, 0, 4 << 16 | 17]);
    (tries, words)
}

fn has_no_more_than_it_may(by: By) {
    let layout = Layout::new(MEMORY);
    let code = code();
    let root = root(elf(&code, &[], &[]), &layout);
    let (tries, words) = attempts(root, &layout, handlers(&code));
    let domain = Domain::boot(&start(elf(&code, &tries, &words), by)).unwrap();
    let ended = domain.wait(LONG);
    let said = domain.said();
    let which = said.chars().count();
    assert_eq!(ended, Some(sched::reason::POWEROFF), "{which} {:x?}", said.as_bytes());
}

#[test]
fn interpreted() {
    has_no_more_than_it_may(By::Interpreter);
}

#[test]
fn translated() {
    has_no_more_than_it_may(By::Translator);
}

#[test]
fn in_ring_3_of_a_processor() {
    match engine_kvm::probe() {
        HostKvm::Hardware | HostKvm::SoftwareOnly => has_no_more_than_it_may(By::Kvm),
        other => println!("skipped: {}", other.reason()),
    }
}
