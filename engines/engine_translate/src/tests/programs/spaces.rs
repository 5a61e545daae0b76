//! Programs by turns: each has its own pages at the same addresses.

use super::*;
use x86_defs::gpr::RBX;

const ROUNDS: u32 = 40;
const TURNS: u32 = 20;
/// A load of CR3 that forgets nothing (SDM volume 3, 4.10.4.1).
const KEEP: u64 = 1 << 63;

/// Both address spaces have a page at RBX, another one each, and one at RDI that is the same.
fn two_spaces(vm: &Arc<dyn Vm>, state: &mut VcpuState, shared: u64) {
    for (root, own) in [(ROOT, 1), (OTHER_ROOT, 2)] {
        map(vm, root, HEAP, frame(own) | ALL);
        map(vm, root, NEAR, frame(3) | ALL | shared);
        map(vm, root, HEAP + PAGE, frame(3 + own) | ALL);
    }
    state.regs.gpr[RBX] = HEAP;
    state.regs.gpr[7] = NEAR;
}

/// Reads and writes all pages, calls the kernel, and does so again in the other space.
fn by_turns(a: &mut CodeAssembler, trap: Trap) -> Result<(), IcedError> {
    let (mut again, mut turn) = (a.create_label(), a.create_label());
    a.mov(ebp, ROUNDS)?;
    a.set_label(&mut again)?;
    a.mov(edx, TURNS)?;
    a.set_label(&mut turn)?;
    a.mov(eax, dword_ptr(rbx))?;
    a.imul_2(eax, ebp)?;
    a.add(r8, rax)?;
    a.inc(dword_ptr(rbx + 8))?;
    a.inc(dword_ptr(rdi + 8))?;
    a.add(dword_ptr(rbx + (PAGE + 8) as i32), 2)?;
    a.push(rdx)?;
    a.pop(rdx)?;
    a.dec(edx)?;
    a.jnz(turn)?;
    trap.call(a)?;
    a.dec(ebp)?;
    a.jnz(again)?;
    done(a)
}

fn check(left: &Left, case: &str) {
    let each = TURNS * ROUNDS / 2;
    let words = [1, 2, 3, 4, 5].map(|frame| left.word(frame, 8));
    assert_eq!(words, [each, each, 2 * each, 2 * each, 2 * each], "{case}");
    let weights = |odd: u32| (1..=ROUNDS).filter(|n| n % 2 == odd).sum::<u32>();
    let sum = TURNS * (weights(0) + 2 * weights(1));
    assert_eq!(left.gpr[8], u64::from(sum), "{case}");
}

#[test]
fn each_address_space_has_its_own_pages() {
    for (trap, shared) in traps().into_iter().flat_map(|t| [(t, 0), (t, paging::G)]) {
        let kernel = |a: &mut CodeAssembler| {
            a.xchg(rsi, r9)?;
            a.mov(cr3, rsi)
        };
        let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
            two_spaces(vm, state, shared);
            (state.regs.gpr[6], state.regs.gpr[9]) = (ROOT, OTHER_ROOT);
        };
        let left = Program { user: &by_turns, kernel: &kernel, fault: &skip, prepare: &prepare };
        check(&left.run(trap), &format!("{trap:?} {shared:x}"));
    }
}

#[test]
fn each_pcid_has_its_own_pages() {
    for (trap, keep) in traps().into_iter().flat_map(|t| [(t, 0), (t, KEEP)]) {
        let kernel = |a: &mut CodeAssembler| {
            a.xchg(rsi, r9)?;
            a.mov(cr3, rsi)
        };
        let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
            two_spaces(vm, state, 0);
            state.control.cr4 |= cr4::PCIDE;
            state.control.cr3 = ROOT | 1;
            state.regs.gpr[6] = ROOT | 1 | keep;
            state.regs.gpr[9] = OTHER_ROOT | 2 | keep;
        };
        let left = Program { user: &by_turns, kernel: &kernel, fault: &skip, prepare: &prepare };
        check(&left.run(trap), &format!("{trap:?} {keep:x}"));
    }
}

/// While another address space is present, entries of the first one are changed and invalidated
/// by its PCID: one by one, and all.
#[test]
fn what_changed_meanwhile_is_seen_after_the_way_back() {
    for (trap, kind) in traps().into_iter().flat_map(|t| [(t, 0), (t, 1), (t, 3)]) {
        // R9 and RSI are the two; RDI and RBX as elsewhere; R10 is the page's entry in the first.
        let kernel = |a: &mut CodeAssembler| {
            a.mov(cr3, r9)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.add(r13, rax)?;
            a.add(qword_ptr(r10), PAGE as i32)?;
            a.mov(qword_ptr(DATA), 1)?;
            a.mov(qword_ptr(DATA + 8), rbx)?;
            a.mov(eax, kind)?;
            a.invpcid(rax, xmmword_ptr(DATA))?;
            a.mov(cr3, rsi)
        };
        let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
            let entry = map(vm, ROOT, HEAP, frame(0) | ALL);
            map(vm, OTHER_ROOT, HEAP, frame(200) | ALL);
            state.control.cr4 |= cr4::PCIDE;
            state.control.cr3 = ROOT | 1;
            state.regs.gpr[RBX] = HEAP;
            state.regs.gpr[10] = entry;
            (state.regs.gpr[6], state.regs.gpr[9]) = (ROOT | 1 | KEEP, OTHER_ROOT | 2 | KEEP);
        };
        let user = |a: &mut CodeAssembler, trap: Trap| {
            let (mut again, mut turn) = (a.create_label(), a.create_label());
            a.mov(ebp, ROUNDS)?;
            a.set_label(&mut again)?;
            a.mov(edx, TURNS)?;
            a.set_label(&mut turn)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.add(r8, rax)?;
            a.inc(dword_ptr(rbx + 8))?;
            a.dec(edx)?;
            a.jnz(turn)?;
            trap.call(a)?;
            a.dec(ebp)?;
            a.jnz(again)?;
            done(a)
        };
        let left = Program { user: &user, kernel: &kernel, fault: &skip, prepare: &prepare };
        let left = left.run(trap);
        let rounds = u64::from(ROUNDS);
        let case = format!("{trap:?} {kind}");
        assert_eq!(left.gpr[8], u64::from(TURNS) * rounds * (rounds - 1) / 2, "{case}");
        assert_eq!(left.gpr[13], 200 * rounds, "{case}");
        (0..rounds).for_each(|frame| assert_eq!(left.word(frame, 8), TURNS, "{case}"));
        assert_eq!((left.word(rounds, 8), left.word(200, 8)), (0, 0), "{case}");
    }
}

/// A page that is executed is not written unnoticed: neither from an address space that comes
/// back with what it knew of the page, nor when that is executed there itself.
#[test]
fn code_is_written_from_another_address_space() {
    const IMMEDIATE: i32 = 0x101;
    for (trap, keep) in traps().into_iter().flat_map(|t| [(t, 0), (t, KEEP)]) {
        let kernel = |a: &mut CodeAssembler| {
            a.xchg(rsi, r9)?;
            a.mov(cr3, rsi)
        };
        let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
            two_spaces(vm, state, 0);
            map(vm, ROOT, NEAR, frame(1) | ALL);
            map(vm, OTHER_ROOT, NEAR, frame(1) | ALL);
            // mov eax, imm32; ret
            vm.memory().write(frame(1) + 0x100, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
            state.control.cr4 |= cr4::PCIDE;
            state.control.cr3 = ROOT | 1;
            state.regs.gpr[6] = ROOT | 1 | keep;
            state.regs.gpr[9] = OTHER_ROOT | 2 | keep;
        };
        let user = |a: &mut CodeAssembler, trap: Trap| {
            let execute = |a: &mut CodeAssembler| {
                a.lea(rax, ptr(rdi + 0x100))?;
                a.call(rax)?;
                a.add(r8, rax)
            };
            let mut again = a.create_label();
            a.mov(ebp, ROUNDS)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(rbx + IMMEDIATE), ebp)?;
            trap.call(a)?;
            // The other page at this address takes the place in the TLB.
            a.inc(dword_ptr(rbx + 8))?;
            execute(a)?;
            trap.call(a)?;
            for more in [1000, 2000] {
                a.lea(eax, ptr(rbp + more))?;
                a.mov(dword_ptr(rbx + IMMEDIATE), eax)?;
                execute(a)?;
            }
            a.dec(ebp)?;
            a.jnz(again)?;
            done(a)
        };
        let left = Program { user: &user, kernel: &kernel, fault: &skip, prepare: &prepare };
        let left = left.run(trap);
        let rounds = u64::from(ROUNDS);
        let sum = 3 * rounds * (rounds + 1) / 2 + 3000 * rounds;
        assert_eq!(left.gpr[8], sum, "{trap:?} {keep:x}");
    }
}
