use super::support::*;
use engine::{Exit, Pending};
use guest_mem::PageBitmap;
use iced_x86::code_asm::*;
use vcpu_state::MpState;

#[test]
fn locked_additions_of_two_vcpus_all_count() {
    let code = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(ecx, 200_000)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(rbx))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let vm = vm();
    vm.memory().write(CODE, &code).unwrap();
    let mut vcpus = [0, 1].map(|id| (running(&vm, id, &long_mode()), Host::default()));
    assert_eq!(together(&mut vcpus), [Exit::Idle; 2]);
    let mut out = [0; 8];
    vm.memory().read(DATA, &mut out).unwrap();
    assert_eq!(u64::from_le_bytes(out), 400_000);
}

/// One vCPU rewrites an instruction that the other executes, and tells it by memory; the other
/// serialises before it executes it.
#[test]
fn code_changed_by_another_vcpu_is_seen_after_serialising() {
    let vm = vm();
    let target = CODE + 0x1000;
    let writer = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        let mut wait = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(rsi, target)?;
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(rsi + 1), ecx)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rbx + 64), ecx)?;
        a.jne(wait)?;
        a.cmp(ecx, 300)?;
        a.jb(again)?;
        a.hlt()
    });
    let reader = assemble(64, CODE + 0x800, |a| {
        let mut again = a.create_label();
        let mut wait = a.create_label();
        a.mov(rbp, DATA)?;
        a.mov(rsi, target)?;
        a.set_label(&mut again)?;
        a.inc(edi)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rbp), edi)?;
        a.jne(wait)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(rsi)?;
        a.cmp(eax, edi)?;
        a.jne(wait)?;
        a.mov(dword_ptr(rbp + 64), eax)?;
        a.cmp(edi, 300)?;
        a.jb(again)?;
        a.hlt()
    });
    vm.memory().write(CODE, &writer).unwrap();
    vm.memory().write(CODE + 0x800, &reader).unwrap();
    // MOV EAX, imm32; RET.
    vm.memory().write(target, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
    let mut vcpus = [0, 1].map(|id| {
        let mut state = long_mode();
        state.regs.rip = CODE + 0x800 * u64::from(id);
        state.regs.gpr[4] = STACK - 0x1000 * u64::from(id);
        (running(&vm, id, &state), Host::default())
    });
    assert_eq!(together(&mut vcpus), [Exit::Idle; 2]);
}

#[test]
fn dirty_pages_while_the_guest_writes() {
    let mut guest = Guest::asm(64, &long_mode(), |a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(rbx))?;
        a.out(0x80, al)?;
        a.jmp(again)
    });
    guest.host.stop_port = Some(0x80);
    guest.vm.log_dirty(true).unwrap();
    for _ in 0..3 {
        assert_eq!(guest.run(), Exit::Stopped);
        let mut pages = PageBitmap::for_len(0x20_0000);
        guest.vm.take_dirty(0, &mut pages).unwrap();
        assert!(pages.pages().any(|p| p == (DATA / 4096) as usize));
        let mut pages = PageBitmap::for_len(0x20_0000);
        guest.vm.take_dirty(0, &mut pages).unwrap();
        assert_eq!(pages.pages().count(), 0);
    }
}

#[test]
fn init_and_sipi_start_the_second_vcpu() {
    let vm = vm();
    vm.memory().write(0x9000, &[0xb0, 0x55, 0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(1).unwrap();
    let mut host = Host { pending: Some((Pending::Init, 0)), ..Host::default() };
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Idle);
    assert_eq!(vcpu.state().unwrap().mp, MpState::WaitForSipi);
    host.pending = Some((Pending::Sipi, 9));
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Idle);
    assert_eq!(vcpu.state().unwrap().regs.gpr[0], 0x55);
}
