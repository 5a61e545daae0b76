use super::support::*;
use engine::{Breakpoint, BreakpointKind, DebugExit, Exit, GuestDebug, Pending, VmConfig};
use iced_x86::code_asm::*;
use x86_defs::rflags;

/// A handler at this address that counts in R15 and returns.
fn counter(guest: &Guest, vector: u64) {
    let at = CODE + 0x800;
    let code = assemble(64, at, |a| {
        a.inc(r15)?;
        a.iretq()
    });
    guest.vm.memory().write(at, &code).unwrap();
    guest.gate(vector, at);
}

#[test]
fn interrupts_wait_for_their_window() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.nop()?;
        a.sti()?;
        a.mov(rax, r15)?;
        a.mov(rbx, r15)?;
        a.cli()?;
        a.hlt()
    });
    counter(&guest, 0x31);
    guest.host.pending = Some((Pending::Interrupt, 0x31));
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    assert_eq!((gpr[0], gpr[3], gpr[15]), (0, 1, 1), "after the instruction after STI");
}

#[test]
fn halted_until_an_interrupt() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)
    });
    counter(&guest, 0x40);
    for n in 0..3 {
        assert_eq!(guest.run(), Exit::Idle);
        assert_eq!(guest.gpr()[15], n);
        guest.host.pending = Some((Pending::Interrupt, 0x40));
    }
}

#[test]
fn the_trap_flag_traps_after_each_instruction() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.nop()?;
        a.mov(ecx, 3)?;
        a.mov(edi, DATA as u32)?;
        a.rep().stosb()?;
        a.pushfq()?;
        a.and(qword_ptr(rsp), !0x100)?;
        a.popfq()?;
        a.hlt()
    });
    counter(&guest, 1);
    assert_eq!(guest.run(), Exit::Idle);
    // NOP, two MOVs, three iterations, PUSHF, AND, POPF.
    assert_eq!(guest.gpr()[15], 9);
    let state = guest.vcpu.state().unwrap();
    assert_eq!(state.debug.dr6 & x86_defs::dr::DR6_BS, x86_defs::dr::DR6_BS);
    assert_eq!(state.regs.rflags & rflags::TF, 0);
}

#[test]
fn guest_breakpoints_on_code_and_data() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.mov(rax, CODE + 0x100)?;
        a.mov(dr0, rax)?;
        a.mov(rax, DATA + 4)?;
        a.mov(dr1, rax)?;
        // DR0 on execution, DR1 on writes of four bytes.
        a.mov(eax, 0x00d0_0005)?;
        a.mov(dr7, rax)?;
        a.mov(rbx, DATA)?;
        a.mov(byte_ptr(rbx + 3), 1)?;
        a.mov(byte_ptr(rbx + 7), 1)?;
        a.mov(rcx, CODE + 0x100)?;
        a.jmp(rcx)
    });
    guest.vm.memory().write(CODE + 0x100, &[0x90, 0xf4]).unwrap();
    // It sets RF, or the instruction's breakpoint would hit again.
    let handler = assemble(64, CODE + 0x800, |a| {
        a.inc(r15)?;
        a.or(dword_ptr(rsp + 16), rflags::RF as i32)?;
        a.iretq()
    });
    guest.vm.memory().write(CODE + 0x800, &handler).unwrap();
    guest.gate(1, CODE + 0x800);
    assert_eq!(guest.run(), Exit::Idle);
    assert_eq!(guest.gpr()[15], 2);
    let state = guest.vcpu.state().unwrap();
    assert_eq!(state.regs.rip, CODE + 0x102);
    assert_eq!(state.debug.dr6 & 0xf, 1);
}

#[test]
fn a_debugger_steps_and_breaks() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.nop()?;
        a.nop()?;
        a.mov(rbx, DATA)?;
        a.mov(byte_ptr(rbx), 1)?;
        a.hlt()
    });
    let step = GuestDebug { single_step: true, breakpoints: vec![] };
    guest.vcpu.set_debug(&step).unwrap();
    assert_eq!(guest.run(), Exit::Debug(DebugExit::Step));
    assert_eq!(guest.vcpu.state().unwrap().regs.rip, CODE + 1);
    let at = CODE + 2;
    let breakpoints = vec![
        Breakpoint { address: at, kind: BreakpointKind::Execute },
        Breakpoint { address: DATA, kind: BreakpointKind::Write { len: 1 } },
    ];
    guest.vcpu.set_debug(&GuestDebug { single_step: false, breakpoints }).unwrap();
    assert_eq!(guest.run(), Exit::Debug(DebugExit::Breakpoint { address: at }));
    let breakpoints = vec![Breakpoint { address: DATA, kind: BreakpointKind::Write { len: 1 } }];
    guest.vcpu.set_debug(&GuestDebug { single_step: false, breakpoints }).unwrap();
    assert_eq!(guest.run(), Exit::Debug(DebugExit::Watchpoint { address: DATA }));
    assert_eq!(guest.read::<1>(DATA), [1]);
    guest.vcpu.set_debug(&GuestDebug::default()).unwrap();
    assert_eq!(guest.run(), Exit::Idle);
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    let mut state = long_mode();
    state.segments.idtr.limit = 0;
    let mut guest = Guest::new(&state, &[0x0f, 0x0b]);
    assert_eq!(guest.run(), Exit::Shutdown);
}

#[test]
fn kicks_are_sticky() {
    let mut guest = Guest::new(&long_mode(), &[0xeb, 0xfe]);
    guest.vcpu.kicker().stop();
    assert_eq!(guest.run(), Exit::Stopped);
    let kicker = guest.vcpu.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        kicker.stop();
    });
    assert_eq!(guest.run(), Exit::Stopped);
    thread.join().unwrap();
}

/// Calls and returns without end are stopped like any other loop.
#[test]
fn whoever_calls_and_returns_for_ever_is_stopped() {
    type Make = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let programs: [Make; 3] = [
        // The same return again and again.
        |a| {
            let (mut again, mut next) = (a.create_label(), a.create_label());
            a.mov(rbx, rsp)?;
            a.mov(ebp, 20)?;
            a.set_label(&mut again)?;
            a.mov(rsp, rbx)?;
            a.call(next)?;
            a.set_label(&mut next)?;
            a.dec(ebp)?;
            a.jns(again)?;
            a.lea(rsp, qword_ptr(rbx - 8))?;
            a.ret()
        },
        |a| {
            let mut again = a.create_label();
            a.mov(rbx, rsp)?;
            a.set_label(&mut again)?;
            a.mov(rsp, rbx)?;
            a.call(again)
        },
        // Calls and returns that go forward, and one return back.
        |a| {
            let (mut again, mut first, mut second) =
                (a.create_label(), a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.call(first)?;
            a.jmp(again)?;
            a.set_label(&mut first)?;
            a.call(second)?;
            a.ret()?;
            a.set_label(&mut second)?;
            a.ret()
        },
    ];
    for program in programs {
        // Translated at once, and no budget of instructions ends it.
        let vm = vm_as(&translating(), VmConfig::default());
        vm.memory().write(CODE, &assemble(64, CODE, program)).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_state(&long_mode()).unwrap();
        let mut guest = Guest { vm, vcpu, host: Host::default() };
        let kicker = guest.vcpu.kicker();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            kicker.stop();
        });
        assert_eq!(guest.run(), Exit::Stopped);
        thread.join().unwrap();
    }
}

/// A return that was expected leaves nothing that another address could be taken for.
#[test]
fn returns_to_what_is_not_canonical_fault() {
    for upper in [0xaaaa_aaaa_u64, 0x5555_5555, 0x8000_0000, 0x7fff_ffff] {
        let mut guest = Guest::of(
            &translating(),
            &long_mode(),
            &assemble(64, CODE, |a| {
                let (mut again, mut back, mut f) =
                    (a.create_label(), a.create_label(), a.create_label());
                a.mov(rbx, rsp)?;
                a.mov(ebp, 20)?;
                a.set_label(&mut again)?;
                a.call(f)?;
                a.set_label(&mut back)?;
                a.dec(ebp)?;
                a.jns(again)?;
                a.cmp(ebp, -2)?;
                let mut last = a.create_label();
                a.jl(last)?;
                // To where it has returned, but for the upper half.
                a.lea(rcx, ptr(back))?;
                a.mov(rax, upper << 32)?;
                a.or(rax, rcx)?;
                a.push(rax)?;
                a.ret()?;
                a.set_label(&mut last)?;
                a.hlt()?;
                a.set_label(&mut f)?;
                a.ret()
            }),
        );
        assert_eq!(guest.run(), Exit::Shutdown, "{upper:x}");
        assert_eq!(guest.gpr()[5] as u32, u32::MAX);
    }
}

#[test]
fn nmis_are_masked_until_iret() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cmp(r15, 2)?;
        a.jb(again)?;
        a.hlt()
    });
    let at = CODE + 0x800;
    let code = assemble(64, at, |a| {
        a.inc(r15)?;
        a.out(0x80, al)?;
        a.nop()?;
        a.iretq()
    });
    guest.vm.memory().write(at, &code).unwrap();
    guest.gate(2, at);
    guest.host.stop_port = Some(0x80);
    guest.host.pending = Some((Pending::Nmi, 0));
    assert_eq!(guest.run(), Exit::Stopped);
    assert!(guest.vcpu.state().unwrap().events.nmi_masked);
    guest.host.pending = Some((Pending::Nmi, 0));
    assert_eq!(guest.run_for(1), Exit::Retired);
    assert!(guest.vcpu.state().unwrap().events.nmi_pending, "latched");
    assert_eq!(guest.run(), Exit::Stopped);
    assert_eq!(guest.gpr()[15], 2);
    assert_eq!(guest.run(), Exit::Idle);
}
