//! What a kernel does all the time, translated and interpreted: flags, bases and rights that
//! change in place, exceptions and returns.

use super::support::*;
use crate::Translate;
use engine::{Engine, Exit, Pending, VmConfig};
use iced_x86::code_asm::*;
use vcpu_state::{SegReg, VcpuState};
use x86_defs::{cr::cr4, msr, paging};

/// Where all memory is mapped again, for the supervisor alone; and once more, at a distance at
/// which entries of TLBs have the same places.
const KERNEL: u64 = 0x20_0000;
const FAR: u64 = 0x400_0000;
const DIRECTORY: u64 = 0x8_2000;

/// With SMAP, and everything that a handler needs in supervisor pages.
fn kernel() -> VcpuState {
    let mut state = long_mode();
    state.control.cr4 |= cr4::SMAP;
    state.segments.gdtr.base += KERNEL;
    state.segments.idtr.base += KERNEL;
    state.regs.rip += KERNEL;
    state.regs.gpr[4] += KERNEL;
    state.segment_mut(SegReg::Gs).base = KERNEL + DATA + 0x100;
    state.msrs.set(msr::KERNEL_GS_BASE, FAR + DATA + 0x200);
    state
}

/// Runs until HLT under both; the state and the exits are the same.
fn both(
    pending: Option<(Pending, u8)>,
    code: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> VcpuState {
    let run = |engine: &Translate, counted: bool| {
        let cpuid = engine.caps().cpuid.clone();
        let vm = vm_as(engine, VmConfig { counted, cpuid, ..VmConfig::default() });
        let memory = vm.memory();
        let large = paging::PS | paging::P | paging::RW;
        memory.write(DIRECTORY + 8, &large.to_le_bytes()).unwrap();
        memory.write(DIRECTORY + 8 * (FAR >> 21), &large.to_le_bytes()).unwrap();
        memory.write(CODE, &assemble(64, CODE + KERNEL, &code)).unwrap();
        for n in 0..0x100u64 {
            memory.write(DATA + 8 * n, &(n * 0x0101_0101).to_le_bytes()).unwrap();
        }
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_state(&kernel()).unwrap();
        let mut guest = Guest { vm, vcpu, host: Host { pending, ..Host::default() } };
        // Both handlers count; that of #PF makes RSI an address that can be accessed.
        let count = assemble(64, KERNEL + CODE + 0x800, |a| {
            a.inc(r15)?;
            a.iretq()
        });
        let repair = assemble(64, KERNEL + CODE + 0x900, |a| {
            a.inc(r14)?;
            a.mov(esi, (KERNEL + DATA) as u32)?;
            a.add(rsp, 8)?;
            a.iretq()
        });
        guest.vm.memory().write(CODE + 0x800, &count).unwrap();
        guest.vm.memory().write(CODE + 0x900, &repair).unwrap();
        guest.gate(0x31, KERNEL + CODE + 0x800);
        guest.gate(14, KERNEL + CODE + 0x900);
        assert_eq!(guest.run(), Exit::Idle);
        let mut state = guest.vcpu.state().unwrap();
        state.tsc.value = 0;
        state
    };
    let expected = run(&Translate::new().unwrap(), true);
    let got = run(&translating(), false);
    assert_eq!(got.regs, expected.regs);
    assert!(got == expected);
    got
}

#[test]
fn user_pages_are_open_between_stac_and_clac_only() {
    let state = both(None, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 5)?;
        a.set_label(&mut again)?;
        a.mov(esi, DATA as u32)?;
        a.stac()?;
        a.add(rax, qword_ptr(rsi + 8))?;
        a.pushfq()?;
        a.pop(rdi)?;
        a.clac()?;
        a.add(rbx, qword_ptr(rsi + 16))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let gpr = state.regs.gpr;
    assert_eq!((gpr[0], gpr[3], gpr[14]), (5 * 0x0101_0101, 10 * 0x0101_0101, 5));
    assert_ne!(gpr[7] & 1 << 18, 0, "the pushed RFLAGS.AC");
}

#[test]
fn swapgs_moves_what_gs_addresses() {
    let state = both(None, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 4)?;
        a.set_label(&mut again)?;
        a.add(rax, qword_ptr(0).gs())?;
        a.add(rbx, qword_ptr(8).gs())?;
        a.swapgs()?;
        a.add(rdx, qword_ptr(0).gs())?;
        a.add(rdi, qword_ptr(8).gs())?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let all = 2 * (0x20 + 0x40) * 0x0101_0101;
    assert_eq!((state.regs.gpr[0], state.regs.gpr[2]), (all, all));
}

#[test]
fn an_interrupt_that_waits_is_taken_after_the_instruction_behind_sti() {
    let state = both(Some((Pending::Interrupt, 0x31)), |a| {
        a.cli()?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.nop()?;
        a.sti()?;
        a.mov(rax, r15)?;
        a.mov(rbx, r15)?;
        a.pushfq()?;
        a.pop(rdi)?;
        a.cli()?;
        a.hlt()
    });
    let gpr = state.regs.gpr;
    assert_eq!((gpr[0], gpr[3], gpr[15]), (0, 1, 1));
    assert_eq!((gpr[6] & 1 << 9, gpr[7] & 1 << 9), (0, 1 << 9));
}

#[test]
fn two_pages_of_one_instruction_may_have_the_same_place_in_the_tlb() {
    let state = both(None, |a| {
        let mut again = a.create_label();
        a.mov(rdx, rsp)?;
        a.mov(ecx, 5)?;
        a.set_label(&mut again)?;
        a.mov(esi, (KERNEL + DATA) as u32)?;
        a.lea(rsp, qword_ptr(rsi + FAR as i32 - KERNEL as i32 + 0x800))?;
        a.lea(rsi, qword_ptr(rsi - KERNEL as i32))?;
        a.stac()?;
        a.push(qword_ptr(rsi + 8))?;
        a.pop(rax)?;
        a.clac()?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(rsp, rdx)?;
        a.hlt()
    });
    assert_eq!(state.regs.gpr[0], 0x0101_0101);
}

/// What processors answer, and what control registers have, is asked for in place: with flags to
/// keep, with registers of all kinds live, and after an exception and a write have changed it.
#[test]
fn processors_and_control_registers_are_asked_in_place() {
    let state = both(None, |a| {
        let mut again = a.create_label();
        a.mov(rax, cr4)?;
        a.or(rax, cr4::OSFXSR as i32)?;
        a.mov(cr4, rax)?;
        a.mov(r13d, 40)?;
        a.movq(xmm3, r13)?;
        a.fninit()?;
        a.fld1()?;
        a.set_label(&mut again)?;
        for (leaf, subleaf) in
            [(0, 0), (1, 0), (4, 2), (7, 0), (0xb, 1), (0xd, 0), (0x8000_0001, 9)]
        {
            a.mov(rax, 0xfeed_0000_0000_0000u64 | leaf)?;
            a.mov(rcx, 0xface_0000_0000_0000u64 | subleaf)?;
            a.mov(rbx, -1i64)?;
            a.mov(rdx, -1i64)?;
            a.cmp(r13d, 20)?;
            a.cpuid()?;
            // The flags are those of the comparison.
            a.adc(r8, rax)?;
            a.lea(r8, ptr(r8 + rbx))?;
            a.lea(r8, ptr(r8 + rcx))?;
            a.lea(r8, ptr(r8 + rdx * 8))?;
        }
        // #PF, whose address is read.
        a.mov(rsi, r13)?;
        a.shl(rsi, 12)?;
        a.add(rsi, 0x1000_0000)?;
        a.cmp(byte_ptr(rsi), 5)?;
        a.mov(r10, cr2)?;
        a.add(r9, r10)?;
        a.mov(rdi, cr4)?;
        a.mov(r11, cr0)?;
        a.mov(rbp, cr3)?;
        a.xor(r11, rbp)?;
        a.lea(r9, ptr(r9 + r11 * 2 + 3))?;
        a.mov(rax, rdi)?;
        a.xor(rax, cr4::TSD as i32)?;
        a.mov(cr4, rax)?;
        a.mov(rax, cr4)?;
        a.mov(cr4, rdi)?;
        a.sub(rax, rdi)?;
        a.add(r12, rax)?;
        a.lea(rax, ptr(rsi + r13))?;
        a.mov(cr2, rax)?;
        a.mov(rax, cr2)?;
        a.add(r9, rax)?;
        a.fchs()?;
        a.paddq(xmm3, xmm3)?;
        a.dec(r13d)?;
        a.jne(again)?;
        a.movq(r13, xmm3)?;
        a.hlt()
    });
    assert_eq!((state.regs.gpr[14], state.regs.gpr[13]), (40, 40 << 40));
}
