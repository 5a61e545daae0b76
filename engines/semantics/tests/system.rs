//! System instructions and deliveries, byte by byte.

mod common;

use common::*;
use semantics::{CodeSize, Stop, event};
use vcpu_state::{SegReg, Segment, Shadow};
use x86_defs::{
    cr::{cr0, cr4, efer},
    exception::{DF, GP, NM, NP, PF, SS, TS, UD},
    msr, rflags,
};

#[test]
fn long_mode_fault_from_user_mode_switches_stacks() {
    let mut m = Machine::long_user();
    m.gate64(14, HIGH + 0x9000, CODE0, 0, 0, 14);
    m.put(TSS + 4, 0x6008);
    m.cpu.rip = 0x1234;
    m.cpu.set_rflags(rflags::IF | rflags::TF | rflags::CF);
    m.raise(PF, Some(7), 0xdead_beef).unwrap();
    assert_eq!(m.cpu.gpr[4], 0x6000 - 48, "aligned down");
    let image = rflags::IF | rflags::TF | rflags::CF | rflags::RF | 2;
    assert_eq!(m.stack(8), [7, 0x1234, CODE3.into(), image, 0x8000, DATA3.into()]);
    assert_eq!((m.cpu.rip, m.cpu.cr2, m.cpu.mode.cpl), (HIGH + 0x9000, 0xdead_beef, 0));
    assert_eq!(m.cpu.rflags(), rflags::CF | 2);
    assert_eq!(m.cpu.segment(SegReg::Cs).selector, CODE0);
    assert_eq!(m.cpu.segment(SegReg::Ss).selector, 0);

    m.cpu.gpr[4] += 8;
    m.step(&[0x48, 0xcf]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[4], m.cpu.mode.cpl), (0x1234, 0x8000, 3));
    assert_eq!(m.cpu.rflags(), image);
    assert_eq!(m.cpu.segment(SegReg::Ss).selector, DATA3);
}

#[test]
fn long_mode_interrupt_stack_table_and_trap_gates() {
    let mut m = Machine::long();
    m.gate64(0x30, 0x9000, CODE0, 0, 3, 15);
    m.put(TSS + 0x24 + 16, 0x5000);
    m.cpu.set_rflags(rflags::IF);
    event::interrupt(&mut m.ctx(), 0x30).unwrap();
    assert_eq!(m.cpu.gpr[4], 0x5000 - 40);
    assert_eq!(m.stack(8), [0x7000, CODE0.into(), rflags::IF | 2, 0x8000, DATA0.into()]);
    assert_eq!(m.cpu.rflags() & rflags::IF, rflags::IF, "a trap gate keeps IF");
    assert_eq!(m.cpu.segment(SegReg::Ss).selector, DATA0, "no change of level");
}

#[test]
fn bad_gates_become_faults_of_the_delivery() {
    let mut m = Machine::long();
    m.gate64(13, 0x9000, CODE0, 0, 0, 14);
    m.gate64(11, 0xa000, CODE0, 0, 0, 14);
    // Not present: #NP with the gate, external.
    event::interrupt(&mut m.ctx(), 0x40).unwrap();
    assert_eq!((m.cpu.rip, m.stack::<1>(8)), (0x9000, [0x40 * 8 + 3]), "type 0 is no gate");
    m.put(IDT + 16 * 0x41, 14 << 40);
    event::interrupt(&mut m.ctx(), 0x41).unwrap();
    assert_eq!((m.cpu.rip, m.stack::<1>(8)), (0xa000, [0x41 * 8 + 3]));
    // A stack that is not canonical is #SS.
    m.gate64(12, 0xb000, CODE0, 0, 1, 14);
    m.put(TSS + 0x24, 0x5000);
    m.gate64(0x42, 0x9000, CODE0, 0, 2, 14);
    m.put(TSS + 0x2c, 1 << 47);
    event::interrupt(&mut m.ctx(), 0x42).unwrap();
    assert_eq!((m.cpu.rip, m.stack::<1>(8)), (0xb000, [1]));
}

#[test]
fn double_and_triple_faults() {
    let mut m = Machine::long();
    assert_eq!(m.raise(GP, Some(0), 0), Err(Stop::Shutdown), "no gates at all");
    let mut m = Machine::long();
    m.gate64(8, 0x9000, CODE0, 0, 0, 14);
    m.raise(GP, Some(0), 0).unwrap();
    assert_eq!((m.cpu.rip, m.stack::<2>(8)), (0x9000, [0, 0x7000]));
    let mut m = Machine::long();
    m.gate64(u64::from(GP), 0x9000, CODE0, 0, 0, 14);
    m.raise(UD, None, 0).unwrap();
    assert_eq!((m.cpu.rip, m.stack::<1>(8)), (0x9000, [u64::from(UD) * 8 + 3]), "in series");
    let mut m = Machine::long();
    m.gate64(u64::from(DF), 0x9000, CODE0, 0, 0, 14);
    m.raise(PF, Some(0), 5).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.cr2), (0x9000, 5));
}

#[test]
fn software_interrupts_need_the_gate_s_privilege() {
    let mut m = Machine::long_user();
    m.gate64(0x80, 0x9000, CODE0, 3, 0, 14);
    m.gate64(0x81, 0x9000, CODE0, 0, 0, 14);
    m.put(TSS + 4, 0x6000);
    assert_eq!(m.faults(&[0xcd, 0x81]), (GP, Some(0x81 * 8 + 2)));
    m.step(&[0xcd, 0x80]).unwrap();
    assert_eq!((m.cpu.rip, m.stack::<1>(8)), (0x9000, [0x7002]));
    let mut m = Machine::long_user();
    m.put(TSS + 4, 0x6000);
    assert_eq!(m.faults(&[0xcc]), (GP, Some(3 * 8 + 2)), "no gate for INT3");
}

#[test]
fn syscall_and_sysret() {
    let mut m = Machine::long_user();
    m.cpu.hot.star = 0x0013_0008 << 32;
    m.cpu.hot.lstar = HIGH + 0x4000;
    m.cpu.hot.sfmask = rflags::IF | rflags::DF;
    m.cpu.set_rflags(rflags::IF | rflags::DF | rflags::ZF);
    m.step(&[0x0f, 0x05]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[1], m.cpu.mode.cpl), (HIGH + 0x4000, 0x7002, 0));
    assert_eq!(m.cpu.gpr[11], rflags::IF | rflags::DF | rflags::ZF | 2);
    assert_eq!(m.cpu.rflags(), rflags::ZF | 2);
    let cs = Segment { selector: 8, base: 0, limit: !0, attr: 0xa09b };
    assert_eq!(*m.cpu.segment(SegReg::Cs), cs);
    assert_eq!(m.cpu.segment(SegReg::Ss).selector, 0x10);
    m.cpu.gpr[1] = 1 << 63;
    assert_eq!(m.faults(&[0x48, 0x0f, 0x07]), (GP, Some(0)));
    m.cpu.gpr[1] = 0x7002;
    m.step(&[0x48, 0x0f, 0x07]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.mode.cpl), (0x7002, 3));
    assert_eq!(m.cpu.segment(SegReg::Cs).selector, 0x23);
    assert_eq!(m.cpu.segment(SegReg::Ss).selector, 0x1b);
    assert_eq!(m.cpu.rflags(), rflags::IF | rflags::DF | rflags::ZF | 2);
    assert_eq!(m.faults(&[0x48, 0x0f, 0x07]), (GP, Some(0)), "level 0 only");
}

#[test]
fn swapgs_and_bases() {
    let mut m = Machine::long();
    m.cpu.hot.kernel_gs_base = HIGH;
    m.cpu.segment_mut(SegReg::Gs).base = 5;
    m.step(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!((m.cpu.segment(SegReg::Gs).base, m.cpu.hot.kernel_gs_base), (HIGH, 5));
    assert_eq!(m.faults(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]).0, UD, "CR4.FSGSBASE is clear");
    (m.cpu.gpr[1], m.cpu.gpr[0], m.cpu.gpr[2]) = (msr::FS_BASE.into(), 0x1000, 1 << 31);
    assert_eq!(m.faults(&[0x0f, 0x30]), (GP, Some(0)), "not canonical");
    m.cpu.gpr[2] = 0;
    m.step(&[0x0f, 0x30]).unwrap();
    m.put(0x1008, 77);
    m.step(&[0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0]).unwrap();
    assert_eq!(m.cpu.gpr[0], 77);
}

#[test]
fn control_registers_refuse_nonsense() {
    let mut m = Machine::long();
    let to_cr0 = [0x0f, 0x22, 0xc0];
    m.cpu.gpr[0] = m.cpu.cr0 & !cr0::PG;
    assert_eq!(m.faults(&to_cr0), (GP, Some(0)), "paging cannot end in 64-bit mode");
    m.cpu.gpr[0] = 1 << 32 | m.cpu.cr0;
    assert_eq!(m.faults(&to_cr0), (GP, Some(0)));
    m.cpu.gpr[0] = m.cpu.cr0 | cr0::NW;
    assert_eq!(m.faults(&to_cr0), (GP, Some(0)));
    m.cpu.gpr[0] = m.cpu.cr4 & !cr4::PAE;
    assert_eq!(m.faults(&[0x0f, 0x22, 0xe0]), (GP, Some(0)));
    m.cpu.gpr[0] = m.cpu.cr4 | cr4::LA57;
    assert_eq!(m.faults(&[0x0f, 0x22, 0xe0]), (GP, Some(0)));
    m.cpu.gpr[0] = m.cpu.cr4 | cr4::PCIDE;
    m.step(&[0x0f, 0x22, 0xe0]).unwrap();
    m.cpu.gpr[0] = 1 << 63 | PML4 | 5;
    m.step(&[0x0f, 0x22, 0xd8]).unwrap();
    assert_eq!(m.cpu.cr3, PML4 | 5, "bit 63 is not stored");
    m.cpu.gpr[0] = 1 << 60;
    assert_eq!(m.faults(&[0x0f, 0x22, 0xd8]), (GP, Some(0)));
    m.cpu.gpr[0] = 9;
    m.step(&[0x44, 0x0f, 0x22, 0xc0]).unwrap();
    assert_eq!(m.host.cr8, 9);
}

#[test]
fn from_real_mode_to_long_mode() {
    let mut m = Machine::real();
    // lgdt [0x500]
    m.put(0x500, 0x7f | GDT << 16);
    m.step(&[0x0f, 0x01, 0x16, 0x00, 0x05]).unwrap();
    m.cpu.gpr[0] = cr0::PE | cr0::ET;
    m.step(&[0x0f, 0x22, 0xc0]).unwrap();
    assert!(m.cpu.mode.protected && m.cpu.mode.code == CodeSize::Bits16);
    // jmp 0x28:0x7100
    m.step(&[0x66, 0xea, 0x00, 0x71, 0, 0, CODE0_32 as u8, 0]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.mode.code), (0x7100, CodeSize::Bits32));
    m.cpu.gpr[0] = DATA0.into();
    m.step(&[0x8e, 0xd0]).unwrap();
    assert_eq!((m.cpu.mode.stack, m.cpu.events.shadow), (4, Shadow::MovSs));
    m.cpu.gpr[0] = cr4::PAE;
    m.step(&[0x0f, 0x22, 0xe0]).unwrap();
    m.cpu.gpr[0] = PML4;
    m.step(&[0x0f, 0x22, 0xd8]).unwrap();
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]) = (efer::LME, msr::EFER.into(), 0);
    m.step(&[0x0f, 0x30]).unwrap();
    m.cpu.gpr[0] = cr0::PE | cr0::PG | cr0::ET;
    m.step(&[0x0f, 0x22, 0xc0]).unwrap();
    assert!(m.cpu.mode.long && m.cpu.efer & efer::LMA != 0);
    assert_eq!(m.cpu.mode.code, CodeSize::Bits32, "compatibility mode");
    m.step(&[0xea, 0x00, 0x72, 0, 0, CODE0 as u8, 0]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.mode.code), (0x7200, CodeSize::Bits64));
    // lea rax, [rip]; push rax; push 8; retfq
    m.cpu.gpr[4] = 0x8000;
    m.put(0x7ff0, 0x7300);
    m.put(0x7ff8, CODE0_32.into());
    m.cpu.gpr[4] = 0x7ff0;
    m.step(&[0x48, 0xcb]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.mode.code), (0x7300, CodeSize::Bits32));
}

#[test]
fn segment_loads_check_what_the_manual_says() {
    let mut m = Machine::protected();
    let mut load = |selector: u16, modrm: u8| {
        m.cpu.gpr[0] = selector.into();
        m.step(&[0x8e, modrm]).map_err(|_| (m.cpu.raised.vector, m.cpu.raised.error))
    };
    const ES: u8 = 0xc0;
    const SS_: u8 = 0xd0;
    assert_eq!(load(0, SS_), Err((GP, Some(0))));
    assert_eq!(load(CODE0_32, SS_), Err((GP, Some(CODE0_32.into()))));
    assert_eq!(load(DATA3, SS_), Err((GP, Some(0x20))));
    assert_eq!(load(0x80, ES), Err((GP, Some(0x80))), "beyond the table");
    assert_eq!(load(0x84, ES), Err((GP, Some(0x84))), "no LDT");
    assert_eq!(load(TSS_SEL, ES), Err((GP, Some(TSS_SEL.into()))));
    load(DATA3, ES).unwrap();
    load(3, ES).unwrap();
    assert_eq!(m.cpu.segment(SegReg::Es), &Segment { selector: 3, ..Segment::default() });
    assert_eq!(m.faults(&[0x26, 0xa0, 0, 0, 0, 0]), (GP, Some(0)), "null segment");
    // Not present, and not accessed yet.
    m.put(GDT + 0x38, 0x00cf_1200_0000_ffff);
    m.cpu.gpr[0] = 0x38;
    assert_eq!(m.faults(&[0x8e, 0xc0]), (NP, Some(0x38)));
    assert_eq!(m.faults(&[0x8e, 0xd0]), (SS, Some(0x38)));
    m.put(GDT + 0x38, 0x00cf_9200_0000_ffff);
    m.step(&[0x8e, 0xc0]).unwrap();
    assert_eq!(m.get(GDT + 0x38) >> 40 & 0xff, 0x93);
    // Execute-only code cannot be read; expand-down limits.
    m.put(GDT + 0x38, 0x00cf_9900_0000_ffff);
    assert_eq!(m.faults(&[0x8e, 0xc0]), (GP, Some(0x38)));
    m.put(GDT + 0x38, 0x0040_9700_0000_0fff);
    m.step(&[0x8e, 0xc0]).unwrap();
    assert_eq!(m.faults(&[0x26, 0xa0, 0xff, 0x0f, 0, 0]), (GP, Some(0)));
    m.step(&[0x26, 0xa0, 0x00, 0x10, 0, 0]).unwrap();
}

#[test]
fn protected_mode_gates_switch_stacks_and_iret_returns() {
    let mut m = Machine::protected();
    m.gate32(0x80, 0x9000, CODE0_32, 3, 15);
    m.put(TSS + 4, 0x6000 | u64::from(DATA0) << 32);
    // To level 3 by IRET.
    for word in [u64::from(DATA3), 0x8800, rflags::IF | 2, CODE3_32.into(), 0x7100] {
        m.cpu.gpr[0] = word;
        m.step(&[0x50]).unwrap();
    }
    m.step(&[0xcf]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[4], m.cpu.mode.cpl), (0x7100, 0x8800, 3));
    assert!(!m.cpu.segment(SegReg::Ds).usable(), "level 0's data is gone");
    m.step(&[0xcd, 0x80]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[4], m.cpu.mode.cpl), (0x9000, 0x6000 - 20, 0));
    let flags = rflags::IF | 2;
    assert_eq!(m.stack(4), [0x7102, CODE3_32.into(), flags, 0x8800, DATA3.into()]);
    assert_eq!(m.cpu.rflags(), flags, "a trap gate");
    m.put(TSS + 8, 0);
    m.step(&[0xcf]).unwrap();
    assert_eq!(m.faults(&[0xcd, 0x80]), (TS, Some(0)), "no inner stack");
    m.put(TSS + 4, 0x6000 | u64::from(DATA3) << 32);
    assert_eq!(m.faults(&[0xcd, 0x80]), (TS, Some(0x20)));
    m.cpu.segment_mut(SegReg::Tr).limit = 6;
    assert_eq!(m.faults(&[0xcd, 0x80]), (TS, Some(TSS_SEL.into())));
}

#[test]
fn virtual_8086_mode_and_back() {
    let mut m = Machine::protected();
    m.gate32(13, 0x9000, CODE0_32, 0, 14);
    m.put(TSS + 4, 0x6000 | u64::from(DATA0) << 32);
    let words = [0x40, 0x30, 0x20, 0x10, 0x700, 0x0ff0, rflags::VM | 2, 0x600, 0x100];
    for word in words {
        m.cpu.gpr[0] = word;
        m.step(&[0x50]).unwrap();
    }
    m.step(&[0xcf]).unwrap();
    assert!(m.cpu.mode.v86 && m.cpu.mode.cpl == 3 && m.cpu.mode.code == CodeSize::Bits16);
    assert_eq!((m.cpu.rip, m.cpu.gpr[4]), (0x100, 0x0ff0));
    let base = |m: &Machine, seg| m.cpu.segment(seg).base;
    assert_eq!((base(&m, SegReg::Cs), base(&m, SegReg::Gs)), (0x6000, 0x400));
    assert_eq!(m.faults(&[0xfa]), (GP, Some(0)), "CLI below IOPL");
    m.raise(GP, Some(0), 0).unwrap();
    assert!(!m.cpu.mode.v86 && m.cpu.mode.cpl == 0);
    assert_eq!(m.cpu.gpr[4], 0x6000 - 40);
    let image = rflags::VM | rflags::RF | 2;
    let frame = [0, 0x100, 0x600, image, 0x0ff0, 0x700, 0x10, 0x20, 0x30, 0x40];
    assert_eq!(m.stack(4), frame);
    assert!(!m.cpu.segment(SegReg::Gs).usable());
    m.cpu.gpr[4] += 4;
    m.step(&[0xcf]).unwrap();
    assert!(m.cpu.mode.v86);
    assert_eq!(base(&m, SegReg::Ds), 0x200);
}

#[test]
fn real_mode_interrupts() {
    let mut m = Machine::real();
    m.put(0x21 * 4, 0x1234_5678);
    m.cpu.set_rflags(rflags::IF | rflags::CF);
    m.step(&[0xcd, 0x21]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.segment(SegReg::Cs).base), (0x5678, 0x12340));
    assert_eq!(m.stack(2), [0x7002, 0, rflags::IF | rflags::CF | 2]);
    assert_eq!(m.cpu.rflags(), rflags::CF | 2);
    m.step(&[0xcf]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[4], m.cpu.rflags()), (0x7002, 0x8000, 0x203));
}

#[test]
fn call_gates() {
    let mut m = Machine::protected();
    // At 0x38: DPL 3, to CODE0_32:0x9000, two parameters.
    let gate = 0x9000 | u64::from(CODE0_32) << 16 | 2 << 32 | 0xec << 40;
    m.put(GDT + 0x38, gate);
    m.put(TSS + 4, 0x6000 | u64::from(DATA0) << 32);
    for word in [u64::from(DATA3), 0x8800, 2, CODE3_32.into(), 0x7100] {
        m.cpu.gpr[0] = word;
        m.step(&[0x50]).unwrap();
    }
    m.step(&[0xcf]).unwrap();
    m.put(0x8800, 0x22_0000_0011);
    m.step(&[0x9a, 0, 0, 0, 0, 0x3b, 0]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.mode.cpl, m.cpu.gpr[4]), (0x9000, 0, 0x6000 - 24));
    let frame = [0x7107, CODE3_32.into(), 0x11, 0x22, 0x8800, DATA3.into()];
    assert_eq!(m.stack(4), frame);
    m.step(&[0xca, 8, 0]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.mode.cpl, m.cpu.gpr[4]), (0x7107, 3, 0x8808));
    assert_eq!(m.faults(&[0xea, 0, 0, 0, 0, 0x3b, 0]), (GP, Some(CODE0_32.into())), "JMP cannot");
}

#[test]
fn ports_by_iopl_and_bitmap() {
    let mut m = Machine::long_user();
    m.cpu.gpr[0] = 0x41;
    m.cpu.gpr[2] = 0x3f8;
    let tr = m.cpu.segment_mut(SegReg::Tr);
    tr.limit = 0x68 + 0x80;
    m.put(TSS + 0x66, 0x68);
    m.put(TSS + 0x68 + 0x7f, 0xfffe);
    assert_eq!(m.faults(&[0x66, 0xef]), (GP, Some(0)), "the second port is denied");
    m.put(TSS + 0x68 + 0x7f, 0xfffc);
    m.step(&[0x66, 0xef]).unwrap();
    m.step(&[0xec]).unwrap();
    assert_eq!((m.host.ports[0], m.cpu.gpr[0]), ((0x3f8, 2, 0x41), 0x5a));
    m.cpu.gpr[2] = 0x3ff;
    assert_eq!(m.faults(&[0xec]), (GP, Some(0)));
}

#[test]
fn port_breakpoints() {
    let mut m = Machine::long();
    let mut state = m.cpu.save_state(0, 0);
    state.control.cr4 |= cr4::DE;
    state.debug.dr[2] = 0x60;
    state.debug.dr7 |= 1 << 4 | 2 << 24;
    m.cpu.load_state(&state);
    m.step(&[0xe6, 0x61]).unwrap();
    assert_eq!(m.cpu.dr_hits, 0);
    m.step(&[0x66, 0xe7, 0x5f]).unwrap();
    assert_eq!(m.cpu.dr_hits, 4, "the second port");
}

#[test]
fn cpuid_and_msrs() {
    let mut m = Machine::long();
    m.cpu.gpr[0] = 1;
    m.step(&[0x0f, 0xa2]).unwrap();
    assert_eq!(m.cpu.gpr[2], 0xffff_ffff);
    m.cpu.gpr[0] = 1;
    assert_eq!(m.cpu.gpr[2] >> 27 & 1, 1);
    m.step(&[0x0f, 0xa2]).unwrap();
    assert_eq!(m.cpu.gpr[1] >> 27 & 1, 0, "OSXSAVE follows CR4");
    for (index, fine) in [
        (msr::IA32_PAT, true),
        (msr::IA32_MTRR_DEF_TYPE, true),
        (msr::IA32_MC0_CTL, true),
        (0xdead_beef, false),
        (msr::IA32_PRED_CMD, false),
    ] {
        m.cpu.gpr[1] = index.into();
        assert_eq!(m.step(&[0x0f, 0x32]).is_ok(), fine, "{index:#x}");
    }
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]) = (0x0302, msr::IA32_PAT.into(), 0);
    assert_eq!(m.faults(&[0x0f, 0x30]), (GP, Some(0)), "memory types 2 and 3 do not exist");
    m.host.tsc = 1000;
    (m.cpu.gpr[0], m.cpu.gpr[1]) = (5000, msr::IA32_TSC.into());
    m.step(&[0x0f, 0x30]).unwrap();
    assert_eq!((m.host.tsc_offset, m.cpu.tsc_adjust), (4000, 4000));
    m.step(&[0x0f, 0x31]).unwrap();
    assert_eq!(m.cpu.gpr[0], 5000);
}

#[test]
fn user_mode_is_kept_out() {
    let mut m = Machine::long_user();
    for bytes in [
        &[0xf4][..],
        &[0x0f, 0x06],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x23, 0xf8],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x01, 0x10],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x30],
        &[0xfa],
        &[0xfb],
        &[0x0f, 0x09],
        &[0x0f, 0x01, 0xf8],
    ] {
        assert_eq!(m.faults(bytes), (GP, Some(0)), "{bytes:x?}");
    }
    m.cpu.cr4 |= cr4::UMIP;
    assert_eq!(m.faults(&[0x0f, 0x01, 0x00]), (GP, Some(0)), "SGDT under UMIP");
    assert_eq!(m.faults(&[0x0f, 0x01, 0xcb]).0, UD, "STAC");
    let _ = NM;
}

#[test]
fn sti_shadow_and_halt() {
    let mut m = Machine::long();
    m.step(&[0xfb]).unwrap();
    assert_eq!((m.cpu.events.shadow, m.cpu.look, m.cpu.leave), (Shadow::Sti, true, true));
    m.cpu.events.shadow = Shadow::None;
    m.step(&[0xfb]).unwrap();
    assert_eq!(m.cpu.events.shadow, Shadow::None, "interrupts were enabled already");
    assert_eq!(m.step(&[0xf4]), Err(Stop::Halt));
}

#[test]
fn task_switches() {
    let mut m = Machine::protected();
    const OTHER: u64 = 0x3800;
    const OTHER_SEL: u16 = 0x38;
    m.put(GDT + 0x38, 0x0000_8900_0000_0067 | OTHER << 16);
    let put32 = |m: &Machine, at: u64, v: u32| m.mem.write(at, &v.to_le_bytes()).unwrap();
    put32(&m, OTHER + 0x20, 0x9000);
    put32(&m, OTHER + 0x24, 2);
    put32(&m, OTHER + 0x28, 0x1111);
    put32(&m, OTHER + 0x38, 0x6000);
    for (n, selector) in [DATA0, CODE0_32, DATA0, DATA0, 0, 0].into_iter().enumerate() {
        put32(&m, OTHER + 0x48 + 4 * n as u64, selector.into());
    }
    m.cpu.gpr[0] = 0x2222;
    // call 0x38:0
    m.step(&[0x9a, 0, 0, 0, 0, OTHER_SEL as u8, 0]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[0], m.cpu.gpr[4]), (0x9000, 0x1111, 0x6000));
    assert_eq!(m.cpu.rflags(), rflags::NT | 2);
    assert_eq!(m.get(OTHER) & 0xffff, u64::from(TSS_SEL), "linked back");
    assert_eq!(m.get(TSS + 0x20), 0x7007 | 2 << 32);
    assert_eq!(m.get(GDT + 0x38) >> 40 & 0xff, 0x8b, "busy");
    assert_eq!(m.get(GDT + u64::from(TSS_SEL)) >> 40 & 0xff, 0x8b, "still busy");
    assert_ne!(m.cpu.cr0 & cr0::TS, 0);
    assert_eq!(m.faults(&[0x9a, 0, 0, 0, 0, TSS_SEL as u8, 0]), (GP, Some(TSS_SEL.into())));
    m.step(&[0xcf]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.gpr[0], m.cpu.rflags()), (0x7007, 0x2222, 2));
    assert_eq!(m.get(GDT + 0x38) >> 40 & 0xff, 0x89, "available again");
    assert_eq!(m.get(OTHER + 0x20), 0x9001 | 2 << 32);

    // By a task gate, with an error code on the new stack.
    m.gate32(13, 0, OTHER_SEL, 0, 5);
    m.raise(GP, Some(0x18), 0).unwrap();
    assert_eq!((m.cpu.rip, m.stack(4)), (0x9001, [0x18]));
    assert_eq!(m.get(TSS + 0x20), 0x7007 | (rflags::RF | 2) << 32);
    // A bad stack segment is the new task's fault.
    m.gate32(10, 0xa000, CODE0_32, 0, 14);
    m.step(&[0xcf]).unwrap();
    put32(&m, OTHER + 0x50, CODE0_32.into());
    put32(&m, OTHER + 0x38, 0x6000);
    m.gate32(u64::from(DF), 0xb000, CODE0_32, 0, 14);
    let stop = m.step(&[0xea, 0, 0, 0, 0, OTHER_SEL as u8, 0]);
    assert_eq!(stop, Err(Stop::Shutdown), "without a stack nothing can be delivered");
}

#[test]
fn virtual_8086_extensions() {
    let mut m = Machine::protected();
    m.put(TSS + 4, 0x6000 | u64::from(DATA0) << 32);
    m.cpu.segment_mut(SegReg::Tr).limit = 0x200;
    m.put(TSS + 0x66, 0xa0);
    m.put(TSS + 0x80 + 4, 1 << 1);
    m.put(0x20 * 4, 0x0700_0234);
    m.cpu.cr4 |= cr4::VME;
    let words = [0, 0, 0, 0, 0x700, 0x0ff0, rflags::VM | rflags::VIF | 2, 0x600, 0x100];
    for word in words {
        m.cpu.gpr[0] = word;
        m.step(&[0x50]).unwrap();
    }
    m.step(&[0xcf]).unwrap();
    assert_eq!(m.faults(&[0xcd, 0x21]), (GP, Some(0)), "not redirected, IOPL 0");
    m.step(&[0xcd, 0x20]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.segment(SegReg::Cs).base), (0x234, 0x7000));
    let image = rflags::IOPL | rflags::IF | 2;
    assert_eq!(m.get(0x7000 + 0xfea) & 0xffff_ffff_ffff, 0x102 | 0x600 << 16 | image << 32);
    assert_eq!(m.cpu.rflags() & (rflags::VIF | rflags::IF), 0);
    m.step(&[0xfb]).unwrap();
    assert_eq!(m.cpu.rflags() & (rflags::VIF | rflags::IF), rflags::VIF, "STI sets VIF");
    m.step(&[0xfa]).unwrap();
    m.step(&[0xcf]).unwrap();
    assert_eq!((m.cpu.rip, m.cpu.rflags() & rflags::VIF), (0x102, rflags::VIF));
}
