//! Translated code retires exactly what the interpreter retires.

use super::support::*;
use crate::{Translate, Translation};
use engine::Exit;
use iced_x86::code_asm::*;
use vcpu_state::VcpuState;

/// Blocks are translated when they are run for the second time.
fn translating() -> Translate {
    let translation = Translation { hot: 1, ..Translation::default() };
    Translate::new().unwrap().with_translation(translation)
}

/// Loops, conditional branches both ways, calls, indirect jumps, repeats, accesses that miss the
/// TLB, a division that goes to its handler, faults that are handled, port I/O, and HLT.
fn code() -> Vec<u8> {
    assemble(64, CODE, |a| {
        let (mut again, mut even, mut f, mut g) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(ebp, 12)?;
        a.lea(r12, qword_ptr(g))?;
        a.set_label(&mut again)?;
        a.mov(eax, ebp)?;
        a.and(eax, 1)?;
        a.jz(even)?;
        a.inc(r14)?;
        a.call(f)?;
        a.set_label(&mut even)?;
        a.mov(ecx, 9)?;
        a.mov(edi, DATA as u32)?;
        a.mov(esi, DATA as u32 + 0x1800)?;
        a.rep().movsb()?;
        a.lea(rdi, qword_ptr(rdi + rbp))?;
        a.mov(ecx, 5)?;
        a.repe().scasb()?;
        a.rep().stosd()?;
        a.call(r12)?;
        a.ud2()?;
        a.out(0x80, al)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        a.hlt()?;
        a.set_label(&mut f)?;
        // A page for each turn, without a multiplication: what flags it leaves undefined are the host's
        // in translated code.
        a.lea(rbx, qword_ptr(rbp * 8))?;
        for _ in 0..3 {
            a.lea(rbx, qword_ptr(rbx * 8))?;
        }
        a.mov(qword_ptr(rbx + DATA as i32), rax)?;
        a.ret()?;
        a.set_label(&mut g)?;
        a.xor(edx, edx)?;
        a.mov(eax, 1000)?;
        a.div(ebp)?;
        a.add(r15, rax)?;
        a.add(qword_ptr(DATA), 3)?;
        a.cpuid()?;
        a.sub(r13, rdx)?;
        a.ret()
    })
}

fn guest(engine: &Translate) -> Guest {
    let guest = Guest::of(engine, &long_mode(), &code());
    // Of #UD: the handler skips the instruction.
    guest.gate(6, CODE + 0x800);
    let handler = assemble(64, CODE + 0x800, |a| {
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    guest.vm.memory().write(CODE + 0x800, &handler).unwrap();
    guest
}

#[derive(PartialEq)]
struct All {
    state: VcpuState,
    retired: Option<u64>,
    out: Vec<(u16, u32)>,
    memory: [u8; 0x8000],
}

/// Everything but the time, which is asked for once at each end of a run.
fn state(guest: &mut Guest) -> All {
    let mut state = guest.vcpu.state().unwrap();
    state.tsc.value = 0;
    let (retired, out) = (guest.vcpu.retired(), guest.host.out.clone());
    All { state, retired, out, memory: guest.read(DATA) }
}

#[test]
fn a_budget_ends_at_the_same_instruction() {
    let mut whole = guest(&Translate::new().unwrap());
    assert_eq!(whole.run_for(100_000), Exit::Idle);
    let all = whole.vcpu.retired().unwrap();
    assert!(all > 400);
    for budget in 0..=all {
        let (mut a, mut b) = (guest(&Translate::new().unwrap()), guest(&translating()));
        assert_eq!(a.run_for(budget), b.run_for(budget), "{budget}");
        assert_eq!(b.vcpu.retired(), Some(budget));
        assert!(state(&mut a) == state(&mut b), "{budget}");
    }
}

#[test]
fn runs_of_any_length_add_up() {
    for step in 1..40 {
        let (mut a, mut b) = (guest(&Translate::new().unwrap()), guest(&translating()));
        loop {
            let exit = a.run_for(step);
            assert_eq!(exit, b.run_for(step), "{step}");
            assert!(state(&mut a) == state(&mut b), "{step} at {:?}", a.vcpu.retired());
            if exit == Exit::Idle {
                break;
            }
        }
    }
}

#[test]
fn a_run_without_a_budget_counts() {
    let (mut a, mut b) = (guest(&Translate::new().unwrap()), guest(&translating()));
    assert_eq!((a.run(), b.run()), (Exit::Idle, Exit::Idle));
    assert!(state(&mut a) == state(&mut b));
}
