//! What one vCPU changes of the pages of a program that runs on another (SDM volume 3, 4.10.5):
//! it tells the other by an interrupt, which invalidates and says so.

use super::*;
use std::sync::atomic::AtomicBool;

const ROUNDS: u32 = 100;
const FRAMES_USED: u32 = 64;
/// Rounds that the kernel has asked for, that the other vCPU has served, and the program's end.
const ASKED: u64 = DATA;
const SERVED: u64 = DATA + 64;
const ENDED: u64 = DATA + 128;
/// No frame's number.
const POISON: u32 = 0xdead;
const INTERRUPT: u8 = 0x50;
/// A port that makes the other vCPU look for nothing: it may look for other things as well.
const LOOK: u16 = SEND + 1;

/// The kernel's side, on the first vCPU. RSI is the address of the page's entry, RBX the page.
/// At each change, R8 is the entry's old value and R9 the new one.
fn kernel(
    change: Code<'_>,
    settle: Code<'_>,
) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let (mut again, mut wait, mut wrong) =
            (a.create_label(), a.create_label(), a.create_label());
        let (mut still, mut progress, mut on) =
            (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(ebp)?;
        a.mov(r8, qword_ptr(rsi))?;
        a.and(r8, -(PAGE as i32))?;
        change(a)?;
        a.mov(dword_ptr(ASKED), ebp)?;
        a.out(SEND as u32, al)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(SERVED), ebp)?;
        a.jne(wait)?;
        // From now on, nobody writes to what the page was, and nobody reads it.
        a.mov(eax, dword_ptr(r8 + 8))?;
        a.mov(edi, dword_ptr(r8))?;
        a.mov(dword_ptr(r8), POISON)?;
        a.mov(edx, 300)?;
        a.set_label(&mut still)?;
        a.cmp(dword_ptr(r8 + 8), eax)?;
        a.jne(wrong)?;
        a.dec(edx)?;
        a.jnz(still)?;
        a.mov(dword_ptr(r8), edi)?;
        settle(a)?;
        // The program goes on where it may write.
        a.mov(r9, qword_ptr(rsi))?;
        a.and(r9, -(PAGE as i32))?;
        a.mov(edx, dword_ptr(r9 + 8))?;
        a.out(LOOK as u32, al)?;
        a.set_label(&mut progress)?;
        a.pause()?;
        a.cmp(dword_ptr(r9 + 8), edx)?;
        a.jne(on)?;
        a.cmp(r8, r9)?;
        a.je(progress)?;
        a.cmp(dword_ptr(r8 + 8), eax)?;
        a.je(progress)?;
        a.set_label(&mut wrong)?;
        a.ud2()?;
        a.set_label(&mut on)?;
        a.cmp(ebp, ROUNDS)?;
        a.jb(again)?;
        a.mov(dword_ptr(ENDED), 1)?;
        a.hlt()
    }
}

/// The program: reads and writes its page, until a word of another one says that it is over.
fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut wrong) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.cmp(dword_ptr(rbx), POISON)?;
    a.je(wrong)?;
    a.inc(dword_ptr(rbx + 8))?;
    a.mov(eax, dword_ptr(rbx))?;
    a.lock().inc(dword_ptr(rbx + 8))?;
    a.cmp(eax, POISON)?;
    a.je(wrong)?;
    a.push(rax)?;
    a.pop(rax)?;
    a.cmp(dword_ptr(rdi + (ENDED % PAGE) as i32), 0)?;
    a.je(again)?;
    done(a)?;
    a.set_label(&mut wrong)?;
    a.ud2()
}

/// Runs both sides; faults of the program are tried again.
fn run(change: Code<'_>, settle: Code<'_>, invalidate: Code<'_>) {
    let vm = vm_as(&translating(), VmConfig::default());
    furnish(&vm);
    gate(&vm, INTERRUPT.into(), KERNEL, 0);
    let code = |at: u64, code: Code<'_>| {
        vm.memory().write(at, &assemble(64, at, |a| code(a))).unwrap();
    };
    code(KERNEL, &|a| {
        a.push(rax)?;
        invalidate(a)?;
        a.mov(eax, dword_ptr(ASKED))?;
        a.mov(dword_ptr(SERVED), eax)?;
        a.pop(rax)?;
        a.iretq()
    });
    code(KERNEL + 0x800, &|a| {
        a.add(rsp, 8)?;
        a.iretq()
    });
    code(KERNEL + 0xf00, &|a| a.hlt());
    code(CODE, &program);
    code(CODE + 0x1000, &kernel(change, settle));
    let entry = map(&vm, ROOT, HEAP, frame(0) | ALL);
    map(&vm, ROOT, NEAR, DATA | ALL);
    let mut own = long_mode();
    own.regs.rip = CODE + 0x1000;
    own.regs.gpr[4] = STACK - 0x1000;
    (own.regs.gpr[3], own.regs.gpr[6]) = (HEAP, entry);
    let mut users = user();
    (users.regs.gpr[3], users.regs.gpr[7]) = (HEAP, NEAR);
    users.regs.rflags |= rflags::IF;
    let (first, second) = (running(&vm, 0, &own), running(&vm, 1, &users));
    let waits = Arc::new(AtomicBool::new(false));
    let told = Some((waits.clone(), second.kicker()));
    let mut vcpus = [
        (first, Wire { told, ..Wire::default() }),
        (second, Wire { waits, vector: INTERRUPT, ..Wire::default() }),
    ];
    assert_eq!(together(&mut vcpus), [Exit::Idle; 2]);
    let shown = vcpus[1].0.stats().get("windows", "pages shown");
    assert!(matches!(shown, Some(Value::Count(1..))), "{shown:?}");
}

fn invlpg(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, HEAP)?;
    a.invlpg(byte_ptr(rax))
}

fn reload(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)
}

/// The page becomes the next frame.
fn moved(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r9d, ebp)?;
    a.and(r9d, FRAMES_USED - 1)?;
    a.shl(r9d, 12)?;
    a.add(r9d, (FRAMES | ALL) as u32)?;
    a.mov(qword_ptr(rsi), r9)
}

#[test]
fn a_page_that_another_vcpu_moved_is_left_before_that_is_told() {
    run(&moved, &|a| a.nop(), &invlpg);
    run(&moved, &|a| a.nop(), &reload);
}

/// The page becomes read-only, or nothing at all, and what it was again; until then the program
/// faults.
#[test]
fn a_right_that_another_vcpu_took_is_not_used_after_that_is_told() {
    for (rights, invalidate) in [(paging::RW, &invlpg as Code<'_>), (paging::P, &reload)] {
        let take = |a: &mut CodeAssembler| a.and(qword_ptr(rsi), !(rights as i32));
        let give = |a: &mut CodeAssembler| a.or(qword_ptr(rsi), rights as i32);
        run(&take, &give, invalidate);
    }
}

/// One program writes what another one executes, after it was told and has serialised (SDM
/// volume 3, 8.1.3).
#[test]
fn code_that_a_program_writes_is_executed_by_another() {
    let vm = vm_as(&translating(), VmConfig::default());
    furnish(&vm);
    let mut state = user();
    // The same page to write, and to execute; RBP is where both tell what they have done.
    map(&vm, ROOT, HEAP, frame(1) | ALL);
    map(&vm, ROOT, NEAR, frame(1) | ALL);
    map(&vm, ROOT, NEAR + PAGE, frame(2) | ALL);
    let told = NEAR + PAGE;
    (state.regs.gpr[3], state.regs.gpr[6]) = (HEAP, NEAR);
    (state.regs.gpr[5], state.regs.gpr[1]) = (told + 8, 0);
    let writer = assemble(64, CODE, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(rbx + 1), ecx)?;
        a.mov(dword_ptr(rbp), ecx)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rbp + 64), ecx)?;
        a.jne(wait)?;
        a.cmp(ecx, ROUNDS)?;
        a.jb(again)?;
        done(a)
    });
    let reader = assemble(64, CODE + 0x800, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        let mut wrong = a.create_label();
        a.xor(edi, edi)?;
        a.mov(r8, rbx)?;
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
        // What is beside the code is data.
        a.inc(dword_ptr(r8 + 64))?;
        a.mov(dword_ptr(rbp + 64), edi)?;
        a.cmp(edi, ROUNDS)?;
        a.jb(again)?;
        done(a)?;
        a.set_label(&mut wrong)?;
        a.ud2()
    });
    for (at, code) in [
        (CODE, &writer[..]),
        (CODE + 0x800, &reader),
        (KERNEL + 0xf00, &[0xf4]),
        (frame(1), &[0xb8, 0, 0, 0, 0, 0xc3]),
    ] {
        vm.memory().write(at, code).unwrap();
    }
    let vcpus = [0, 1].map(|id| {
        let mut state = state.clone();
        state.regs.rip = CODE + 0x800 * u64::from(id);
        state.regs.gpr[4] -= 0x800 * u64::from(id);
        state.segment_mut(SegReg::Tr).base += 0x100 * u64::from(id);
        (running(&vm, id, &state), Host::default())
    });
    let stack = STACK - 0x1000;
    vm.memory().write(TSS + 0x104, &stack.to_le_bytes()).unwrap();
    let mut vcpus = vcpus;
    assert_eq!(together(&mut vcpus), [Exit::Idle; 2]);
    for (vcpu, _) in &vcpus {
        let shown = vcpu.stats().get("windows", "pages shown");
        assert!(matches!(shown, Some(Value::Count(1..))), "{shown:?}");
    }
    let mut word = [0; 4];
    vm.memory().read(frame(1) + 64, &mut word).unwrap();
    assert_eq!(u32::from_le_bytes(word), ROUNDS);
}
