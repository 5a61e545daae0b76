use super::support::*;
use engine::Exit;
use iced_x86::code_asm::*;
use x86_defs::rflags;

#[test]
fn a_loop_sums_and_halts() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.add(rax, rcx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    assert_eq!(guest.run(), Exit::Idle);
    assert_eq!(guest.gpr()[0], 500_500);
    assert_eq!(guest.vcpu.retired(), Some(2 + 3 * 1000 + 1));
}

#[test]
fn counting_is_exact_within_blocks_and_repeats() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.inc(eax)?;
        a.inc(eax)?;
        a.inc(eax)?;
        a.mov(ecx, 10)?;
        a.mov(edi, DATA as u32)?;
        a.rep().stosb()?;
        a.hlt()
    });
    assert_eq!(guest.run_for(2), Exit::Retired);
    assert_eq!(guest.gpr()[0], 2);
    assert_eq!(guest.run_for(7), Exit::Retired);
    let gpr = guest.gpr();
    assert_eq!((gpr[0], gpr[1], gpr[7]), (3, 6, DATA + 4));
    assert_eq!(guest.run_for(6), Exit::Retired);
    assert_eq!(guest.gpr()[1], 0);
    assert_eq!(guest.run_for(100), Exit::Idle);
    assert_eq!(guest.vcpu.retired(), Some(16));
}

#[test]
fn memory_forms_calls_and_the_stack() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        let mut f = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.add(byte_ptr(rbx + 1), 0x11)?;
        a.mov(ecx, 2)?;
        a.movzx(edx, byte_ptr(rbx + rcx * 2 - 3))?;
        a.movsx(rsi, word_ptr(rbx))?;
        a.push(rax)?;
        a.call(f)?;
        a.pop(r9)?;
        a.hlt()?;
        a.set_label(&mut f)?;
        a.mov(r8, rsp)?;
        a.lock().xadd(qword_ptr(rbx), rcx)?;
        a.mov(ah, 0x7f)?;
        a.ret()
    });
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    assert_eq!(gpr[2], 0x88);
    assert_eq!(gpr[6], 0xffff_ffff_ffff_8888);
    assert_eq!(gpr[8], STACK - 16);
    assert_eq!(gpr[9], 0x1122_3344_5566_7788);
    assert_eq!(gpr[1], 0x1122_3344_5566_8888);
    assert_eq!(gpr[0], 0x1122_3344_5566_7f88);
    assert_eq!(gpr[4], STACK);
    assert_eq!(u64::from_le_bytes(guest.read(DATA)), 0x1122_3344_5566_888a);
}

#[test]
fn repeated_moves_overlap_forward_and_go_backward() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        // A pattern of three bytes spreads over two pages.
        a.mov(rax, DATA + 0xf00)?;
        a.mov(dword_ptr(rax), 0x0033_2211)?;
        a.mov(rsi, DATA + 0xf00)?;
        a.mov(rdi, DATA + 0xf03)?;
        a.mov(ecx, 0x3fd)?;
        a.rep().movsb()?;
        a.std()?;
        a.mov(rsi, DATA + 0xf0b)?;
        a.mov(rdi, DATA + 0x2004)?;
        a.mov(ecx, 5)?;
        a.rep().movsb()?;
        a.hlt()
    });
    assert_eq!(guest.run(), Exit::Idle);
    let mut expected = [0; 0x400];
    for (n, byte) in expected.iter_mut().enumerate() {
        *byte = [0x11, 0x22, 0x33][n % 3];
    }
    assert_eq!(guest.read::<0x400>(DATA + 0xf00), expected);
    assert_eq!(guest.read::<5>(DATA + 0x2000), [0x22, 0x33, 0x11, 0x22, 0x33]);
    assert_eq!(guest.gpr()[7], DATA + 0x1fff);
}

#[test]
fn division_faults_leave_everything() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.mov(edx, 1)?;
        a.mov(eax, 5)?;
        a.xor(ecx, ecx)?;
        a.div(rcx)?;
        a.hlt()
    });
    guest.gate(0, CODE + 0x800);
    guest.vm.memory().write(CODE + 0x800, &[0xf4]).unwrap();
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    assert_eq!((gpr[0], gpr[2], gpr[4]), (5, 1, STACK - 40));
    assert_eq!(u64::from_le_bytes(guest.read(STACK - 40)), CODE + 12);
}

#[test]
fn code_that_changes_itself() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        let mut here = a.create_label();
        a.lea(rbx, qword_ptr(here))?;
        a.mov(byte_ptr(rbx + 1), 7)?;
        a.set_label(&mut here)?;
        a.mov(al, 1)?;
        a.inc(ecx)?;
        a.mov(byte_ptr(rbx + 1), 9)?;
        a.cmp(ecx, 20)?;
        a.jb(here)?;
        a.hlt()
    });
    assert_eq!(guest.run_for(3), Exit::Retired);
    assert_eq!(guest.gpr()[0], 7);
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    assert_eq!((gpr[0], gpr[1]), (9, 20));
}

#[test]
fn code_that_a_device_changes() {
    let mut guest = Guest::new(&long_mode(), &[0xb0, 1, 0xe6, 0x80, 0xeb, 0xfa]);
    guest.host.stop_port = Some(0x80);
    assert_eq!(guest.run(), Exit::Stopped);
    guest.vm.memory().write(CODE + 1, &[2]).unwrap();
    assert_eq!(guest.run(), Exit::Stopped);
    assert_eq!(guest.host.out, [(0x80, 1), (0x80, 2)]);
}

#[test]
fn real_mode_wraps_and_segments_count() {
    let mut guest = Guest::asm(16, &real_mode(), |a| {
        a.mov(ax, 0x3000)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(0x10), 0x1234)?;
        a.mov(bx, 0xffff)?;
        a.mov(al, byte_ptr(bx + 0x11))?;
        a.push(cs)?;
        a.pop(dx)?;
        a.mov(cx, 3)?;
        a.hlt()
    });
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    assert_eq!((gpr[0] & 0xff, gpr[2] & 0xffff, gpr[1]), (0x34, 0x1000, 3));
    assert_eq!(guest.read::<2>(DATA + 0x10), [0x34, 0x12]);
}

#[test]
fn protected_mode_of_32_bits() {
    let mut guest = Guest::asm(32, &flat32(), |a| {
        a.mov(esi, DATA as u32)?;
        a.mov(dword_ptr(esi), 0xffff_ffffu32)?;
        a.inc(dword_ptr(esi))?;
        a.setz(al)?;
        a.mov(ebx, 0x8000_0000u32)?;
        a.shld(ebx, esi, 4)?;
        a.pushad()?;
        a.popad()?;
        a.mov(ecx, 0x15)?;
        a.mov(al, 0x15)?;
        a.add(al, 0x27)?;
        a.daa()?;
        a.hlt()
    });
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    assert_eq!((gpr[0] & 0xff, gpr[3], gpr[4]), (0x42, 0, STACK));
}

#[test]
fn an_instruction_across_pages() {
    let mut state = long_mode();
    state.regs.rip = CODE + 0xffd;
    let mut guest = Guest::new(&state, &[]);
    // MOV EAX, imm32, then HLT.
    guest.vm.memory().write(CODE + 0xffd, &[0xb8, 1, 2, 3, 4, 0xf4]).unwrap();
    assert_eq!(guest.run(), Exit::Idle);
    assert_eq!(guest.gpr()[0], 0x0403_0201);
    guest.vm.memory().write(CODE + 0x1000, &[9]).unwrap();
    guest.vcpu.set_state(&state).unwrap();
    assert_eq!(guest.run(), Exit::Idle);
    assert_eq!(guest.gpr()[0], 0x0409_0201);
}

#[test]
fn too_long_is_a_protection_fault_and_undefined_is_not() {
    for (code, vector) in [(&[0x66; 16][..], 13), (&[0x0f, 0x0b], 6), (&[0xf0, 0x90], 6)] {
        let mut guest = Guest::new(&long_mode(), code);
        for (v, at) in [(6, CODE + 0x800), (13, CODE + 0x810)] {
            guest.gate(v, at);
            guest.vm.memory().write(at, &[0xb0, v as u8, 0xf4]).unwrap();
        }
        assert_eq!(guest.run(), Exit::Idle);
        assert_eq!(guest.gpr()[0], vector, "{code:x?}");
    }
}

#[test]
fn flags_are_what_they_were() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        a.mov(al, 0x80u32 as i32)?;
        a.add(al, al)?;
        a.pushfq()?;
        a.pop(rbx)?;
        a.stc()?;
        a.inc(al)?;
        a.pushfq()?;
        a.pop(rcx)?;
        a.hlt()
    });
    assert_eq!(guest.run(), Exit::Idle);
    let gpr = guest.gpr();
    let status = |v: u64| v & rflags::STATUS;
    assert_eq!(status(gpr[3]), rflags::CF | rflags::OF | rflags::ZF | rflags::PF);
    assert_eq!(status(gpr[1]), rflags::CF);
}
