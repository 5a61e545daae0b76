//! What one vCPU, or a device, changes under another that runs translated code.

use super::support::*;
use crate::Translate;
use engine::{Engine, Exit, Vcpu, Vm, VmConfig};
use iced_x86::code_asm::*;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use vcpu_state::VcpuState;
use x86_defs::{paging, rflags};

const ROUNDS: u32 = 400;

fn vcpu(vm: &Arc<dyn Vm>, id: u32, change: impl FnOnce(&mut VcpuState)) -> Box<dyn Vcpu> {
    let mut state = long_mode();
    state.regs.gpr[4] = STACK - 0x1000 * u64::from(id);
    change(&mut state);
    running(vm, id, &state)
}

fn both(vm: &Arc<dyn Vm>, first: &[u8], second: &[u8]) {
    vm.memory().write(CODE, first).unwrap();
    vm.memory().write(CODE + 0x800, second).unwrap();
    let at = |id: u32| vcpu(vm, id, |s| s.regs.rip = CODE + 0x800 * u64::from(id));
    let exits = together(&mut [0, 1].map(|id| (at(id), Host::default())));
    assert_eq!(exits, [Exit::Idle; 2]);
}

/// Cross-modifying code by the rules (SDM volume 3, 8.1.3): the other serialises before it
/// executes what was changed. Nothing else may come of it than what was written.
#[test]
fn changed_code_is_seen_after_serialising() {
    let target = CODE + 0x1000;
    for same_page in [false, true] {
        let vm = vm_as(&translating(), VmConfig::default());
        let target = if same_page { CODE + 0xc00 } else { target };
        let writer = assemble(64, CODE, |a| {
            let (mut again, mut wait) = (a.create_label(), a.create_label());
            a.mov(rbx, DATA)?;
            a.mov(rsi, target)?;
            a.set_label(&mut again)?;
            a.inc(ecx)?;
            a.mov(dword_ptr(rsi + 1), ecx)?;
            a.mov(dword_ptr(rbx), ecx)?;
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(rbx + 64), ecx)?;
            a.jne(wait)?;
            a.cmp(ecx, ROUNDS)?;
            a.jb(again)?;
            a.hlt()
        });
        let reader = assemble(64, CODE + 0x800, |a| {
            let (mut again, mut wait) = (a.create_label(), a.create_label());
            let mut wrong = a.create_label();
            a.mov(rbp, DATA)?;
            a.mov(rsi, target)?;
            a.set_label(&mut again)?;
            a.inc(edi)?;
            a.set_label(&mut wait)?;
            a.call(rsi)?;
            a.cmp(dword_ptr(rbp), edi)?;
            a.jne(wait)?;
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.call(rsi)?;
            a.cmp(eax, edi)?;
            a.jne(wrong)?;
            a.mov(dword_ptr(rbp + 64), eax)?;
            a.cmp(edi, ROUNDS)?;
            a.jb(again)?;
            a.hlt()?;
            a.set_label(&mut wrong)?;
            // A triple fault: there is no handler.
            a.ud2()
        });
        // MOV EAX, imm32; RET.
        vm.memory().write(target, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
        both(&vm, &writer, &reader);
    }
}

/// The same where requests are looked at long before, and never between the serialising
/// instruction and what was changed, which is in its block, or where a jump forward leads. Each
/// change is the first one of its page: later ones are looked for before each execution.
fn serialising(engine: &Translate, jumps: bool, cpuid: bool) {
    const FUNCTIONS: u64 = 0x10_0000;
    const PAGES: u32 = 160;
    const AGAIN: u32 = 0xffff_fff0;
    const MARK: u32 = 0x1122_3344;
    let vm = vm_as(engine, VmConfig::default());
    let function = assemble(64, 0, |a| {
        let (mut target, mut out) = (a.create_label(), a.create_label());
        for _ in 0..100 {
            a.mov(rax, r9)?;
            a.cqo()?;
            a.idiv(rdi)?;
        }
        a.cmp(dword_ptr(rbp), edi)?;
        a.jne(out)?;
        a.xor(eax, eax)?;
        if cpuid {
            a.cpuid()?
        } else {
            a.serialize()?
        }
        if jumps {
            a.jmp(target)?;
            a.ud2()?;
        }
        a.set_label(&mut target)?;
        a.mov(eax, MARK)?;
        a.ret()?;
        a.set_label(&mut out)?;
        a.mov(eax, AGAIN)?;
        a.ret()
    });
    let mark = MARK.to_le_bytes();
    let operand = function.windows(4).position(|bytes| bytes == mark).unwrap() as u64;
    for page in 0..u64::from(PAGES) {
        vm.memory().write(FUNCTIONS + 0x1000 * page, &function).unwrap();
    }
    let writer = assemble(64, CODE, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA)?;
        a.mov(rsi, FUNCTIONS + operand)?;
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        // Until the other has run the function some times.
        a.mov(eax, dword_ptr(rbx + 128))?;
        a.add(eax, 5)?;
        let mut early = a.create_label();
        a.set_label(&mut early)?;
        a.cmp(dword_ptr(rbx + 128), eax)?;
        a.jb(early)?;
        a.mov(dword_ptr(rsi), ecx)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rbx + 64), ecx)?;
        a.jne(wait)?;
        a.add(rsi, 0x1000)?;
        a.cmp(ecx, PAGES)?;
        a.jb(again)?;
        a.hlt()
    });
    let reader = assemble(64, CODE + 0x800, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        let mut wrong = a.create_label();
        a.mov(rbp, DATA)?;
        a.mov(rsi, FUNCTIONS)?;
        a.mov(r9, 0x7fff_ffff_ffff_ffff_u64)?;
        a.set_label(&mut again)?;
        a.inc(edi)?;
        a.set_label(&mut wait)?;
        a.inc(dword_ptr(rbp + 128))?;
        a.call(rsi)?;
        a.cmp(eax, AGAIN)?;
        a.je(wait)?;
        a.cmp(eax, edi)?;
        a.jne(wrong)?;
        a.mov(dword_ptr(rbp + 64), eax)?;
        a.add(rsi, 0x1000)?;
        a.cmp(edi, PAGES)?;
        a.jb(again)?;
        a.hlt()?;
        a.set_label(&mut wrong)?;
        a.ud2()
    });
    both(&vm, &writer, &reader);
}

#[test]
fn serialising_instructions_look_at_requests() {
    for engine in [Translate::new().unwrap(), translating()] {
        let has_serialize = engine.caps().cpuid.lookup(7, 0)[3] >> 14 & 1 != 0;
        for (jumps, cpuid) in [(false, true), (true, true), (false, false), (true, false)] {
            if cpuid || has_serialize {
                serialising(&engine, jumps, cpuid);
            }
        }
    }
}

/// A page is moved to another frame; the other vCPU is told, invalidates, and reads the new one.
#[test]
fn moved_pages_are_seen_after_invalidation() {
    const WINDOW: u64 = 0x4000_0000;
    const TABLE: u64 = 0x9_0000;
    let vm = vm_as(&translating(), VmConfig::default());
    let entry = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    let flags = paging::P | paging::RW | paging::US;
    // Linear 1 GiB: the second entry of the table of level 3, which is behind the first page.
    entry(0x8_1000 + 8, TABLE | flags);
    entry(TABLE, (TABLE + 0x1000) | flags);
    entry(TABLE + 0x1000, 0x10_0000 | flags);
    for n in 0..64u64 {
        vm.memory().write(0x10_0000 + 0x1000 * n, &(n as u32).to_le_bytes()).unwrap();
    }
    let writer = assemble(64, CODE, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA)?;
        a.mov(rsi, TABLE + 0x1000)?;
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.mov(eax, ecx)?;
        a.and(eax, 63)?;
        a.shl(eax, 12)?;
        a.add(eax, (0x10_0000 | flags) as u32)?;
        a.mov(qword_ptr(rsi), rax)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rbx + 64), ecx)?;
        a.jne(wait)?;
        a.cmp(ecx, ROUNDS)?;
        a.jb(again)?;
        a.hlt()
    });
    let reader = assemble(64, CODE + 0x800, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        let mut wrong = a.create_label();
        a.mov(rbp, DATA)?;
        a.mov(rsi, WINDOW)?;
        a.set_label(&mut again)?;
        a.inc(edi)?;
        a.set_label(&mut wait)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(dword_ptr(rsi + 8), eax)?;
        a.cmp(dword_ptr(rbp), edi)?;
        a.jne(wait)?;
        a.invlpg(byte_ptr(rsi))?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(edx, edi)?;
        a.and(edx, 63)?;
        a.cmp(eax, edx)?;
        a.jne(wrong)?;
        a.mov(dword_ptr(rbp + 64), edi)?;
        a.cmp(edi, ROUNDS)?;
        a.jb(again)?;
        a.hlt()?;
        a.set_label(&mut wrong)?;
        a.ud2()
    });
    both(&vm, &writer, &reader);
}

/// A device writes code that is being executed, and then raises its interrupt: the handler
/// executes what was written.
#[test]
fn code_written_by_a_device_is_seen_after_its_interrupt() {
    let (target, handler) = (CODE + 0x1000, CODE + 0x400);
    let guest = Guest::of(&translating(), &long_mode(), &[]);
    let vm = guest.vm.clone();
    guest.gate(0x40, handler);
    drop(guest);
    let code = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(rsi, target)?;
        a.mov(rbp, DATA)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.call(rsi)?;
        a.cmp(dword_ptr(rbp + 64), ROUNDS)?;
        a.jb(again)?;
        a.cli()?;
        a.hlt()
    });
    let handle = assemble(64, handler, |a| {
        a.call(rsi)?;
        a.mov(dword_ptr(rbp), eax)?;
        a.inc(dword_ptr(rbp + 64))?;
        a.iretq()
    });
    vm.memory().write(CODE, &code).unwrap();
    vm.memory().write(handler, &handle).unwrap();
    vm.memory().write(target, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
    let mut vcpu = vcpu(&vm, 1, |s| s.regs.rflags &= !rflags::IF);
    let (line, kick) = (Arc::new(AtomicBool::new(false)), vcpu.kicker());
    let mut host = Wire { waits: line.clone(), vector: 0x40, ..Wire::default() };
    let thread = std::thread::spawn(move || vcpu.run(&mut host).unwrap());
    let word = |at: u64| {
        let mut bytes = [0; 4];
        vm.memory().read(at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    for round in 1..=ROUNDS {
        let written = round.wrapping_mul(0x0101_0101);
        vm.memory().write(target + 1, &written.to_le_bytes()).unwrap();
        line.store(true, SeqCst);
        kick.notify();
        while word(DATA + 64) < round {
            assert!(!thread.is_finished(), "round {round}");
            std::thread::yield_now();
        }
        assert_eq!(word(DATA), written, "round {round}");
    }
    assert_eq!(thread.join().unwrap(), Exit::Idle);
}
