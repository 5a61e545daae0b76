//! The modes of the processor: code runs, memory is where the tables say.

use conformance::*;
use x86_defs::{cr::cr4, gpr, paging, rflags};

fn skips(e: &UnderTest, mode: Mode) -> bool {
    mode.is_paged_protected() && e.skips(Lacks::PagedProtectedMode)
}

#[test]
fn code_runs_in_every_mode() {
    each_engine(|e| {
        for mode in Mode::ALL {
            if skips(e, mode) {
                continue;
            }
            // mov al, 0x5a; add al, 1; out 0x10, al
            let mut g = Guest::new(e, mode, &[0xb0, 0x5a, 0x04, 1, 0xe6, 0x10]);
            g.finish();
            assert_eq!(g.bus.log[0], Event::Out(0x10, vec![0x5b]), "{mode:?}");
        }
    });
}

#[test]
fn the_stack_and_calls_work_in_every_mode() {
    each_engine(|e| {
        for mode in Mode::ALL {
            if skips(e, mode) {
                continue;
            }
            // mov al, 1; call 1f; out 0x10, al; jmp 2f; 1: inc al (fe c0); ret; 2:
            let call: &[u8] = if mode == Mode::Real { &[0xe8, 4, 0] } else { &[0xe8, 4, 0, 0, 0] };
            let rest = [0xe6, 0x10, 0xeb, 3, 0xfe, 0xc0, 0xc3];
            let mut g = Guest::new(e, mode, &[&[0xb0, 1], call, &rest].concat());
            let end = g.finish();
            assert_eq!(g.bus.log[0], Event::Out(0x10, vec![2]), "{mode:?}");
            assert_eq!(end.regs.gpr[gpr::RSP], STACK, "{mode:?}");
        }
    });
}

#[test]
fn paging_maps_where_the_tables_say_and_sets_accessed_and_dirty() {
    each_engine(|e| {
        for mode in [Mode::Paged, Mode::Pae, Mode::Long, Mode::User] {
            if skips(e, mode) {
                continue;
            }
            // mov al, [0x4000]; mov [0x5000], al
            let code: &[u8] = if mode.is_long() {
                &[0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0x88, 0x04, 0x25, 0, 0x50, 0, 0]
            } else {
                &[0xa0, 0, 0x40, 0, 0, 0xa2, 0, 0x50, 0, 0]
            };
            let mut g = Guest::new(e, mode, code);
            let (from, to) = (mode.entry_at(0x4000), mode.entry_at(0x5000));
            g.write(from, &0xc007u32.to_le_bytes());
            g.write(to, &0xd007u32.to_le_bytes());
            g.write(0xc000, &[0x77]);
            g.finish();
            assert_eq!(g.read(0xd000), [0x77], "{mode:?}");
            assert_eq!(g.read(0x5000), [0x00], "{mode:?}");
            let entry = |at| u64::from(g.read_u32(at)) & 0xfff;
            assert_eq!(entry(from), 7 | paging::A, "{mode:?}");
            assert_eq!(entry(to), 7 | paging::A | paging::D, "{mode:?}");
        }
    });
}

#[test]
fn large_pages_map_two_megabytes() {
    each_engine(|e| {
        // mov al, [0x204000]; out 0x10, al
        let code = [0x8a, 0x04, 0x25, 0, 0x40, 0x20, 0, 0xe6, 0x10];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.write(0xa008, &0x87u64.to_le_bytes()); // 2 MiB at 0
        g.write(0x4000, &[0x66]);
        g.finish();
        assert_eq!(g.bus.log[0], Event::Out(0x10, vec![0x66]));
        assert_eq!(g.read_u64(0xa008) & 0xfff, 0x87 | paging::A);
    });
}

#[test]
fn a_guest_enters_long_mode_by_itself() {
    each_engine(|e| {
        if e.skips(Lacks::Other("compatibility mode on the way into long mode")) {
            return;
        }
        // mov eax, cr4; or al, 0x20; mov cr4, eax; mov eax, 0x8000; mov cr3, eax;
        // mov ecx, 0xc0000080; rdmsr; or ah, 1; wrmsr;
        // mov eax, cr0; or eax, 0x80000000; mov cr0, eax; jmp 0x18:next;
        // next: mov rax, 0x1122334455667788; shr rax, 32; out 0x10, eax
        let mut code = vec![
            0x0f, 0x20, 0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0, 0xb8, 0, 0x80, 0, 0, 0x0f, 0x22, 0xd8,
            0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x80, 0xcc, 1, 0x0f, 0x30, 0x0f, 0x20, 0xc0, 0x0d,
            0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, 0xea,
        ];
        let next = CODE as u32 + code.len() as u32 + 6;
        code.extend(next.to_le_bytes());
        code.extend([0x18, 0]);
        code.extend([0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        code.extend([0x48, 0xc1, 0xe8, 32, 0xe7, 0x10]);
        let mut g = Guest::new(e, Mode::Long, &code);
        let mut state = Mode::Protected.state();
        state.segments.gdtr = g.state().segments.gdtr;
        g.cpu.set_state(&state).unwrap();
        let end = g.finish();
        assert_eq!(g.bus.log[0], Event::Out(0x10, vec![0x44, 0x33, 0x22, 0x11]));
        assert_eq!(end.control.efer & 0x500, 0x500);
        assert_eq!(end.segment(vcpu_state::SegReg::Cs).selector, Mode::CODE64);
    });
}

#[test]
fn syscall_and_sysret_change_rings() {
    each_engine(|e| {
        if e.skips(Lacks::Other("SYSRET to selectors that are not Linux's")) {
            return;
        }
        // Ring 3: syscall; out 0x10, al. Kernel at 0x3000: mov al, 0x42; sysretq
        let mut g = Guest::new(e, Mode::User, &[0x0f, 0x05, 0xe6, 0x10]);
        g.write(0x3000, &[0xb0, 0x42, 0x48, 0x0f, 0x07]);
        g.set(|s| {
            // SYSRET takes SS at the upper selector plus 8, CS at plus 16.
            let star = u64::from(Mode::CODE64) << 32 | u64::from(Mode::CODE64 | 3) << 48;
            s.msrs.set(x86_defs::msr::STAR, star);
            s.msrs.set(x86_defs::msr::LSTAR, 0x3000);
            s.msrs.set(x86_defs::msr::SFMASK, rflags::IF);
            s.regs.rflags |= rflags::CF;
        });
        let end = g.finish();
        assert_eq!(g.bus.log[0], Event::Out(0x10, vec![0x42]));
        assert_eq!(end.regs.gpr[gpr::RCX], CODE + 2);
        assert_eq!(end.regs.gpr[gpr::R11] & rflags::CF, rflags::CF);
        assert_eq!(end.cpl(), 3);
    });
}

#[test]
fn swapgs_and_the_segment_bases_are_msrs() {
    each_engine(|e| {
        // swapgs; mov al, gs:[0]; out 0x10, al; mov ecx, 0xc0000101; rdmsr; out 0x11, eax
        let code = [
            0x0f, 0x01, 0xf8, 0x65, 0x8a, 0x04, 0x25, 0, 0, 0, 0, 0xe6, 0x10, 0xb9, 1, 1, 0, 0xc0,
            0x0f, 0x32, 0xe7, 0x11,
        ];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.write(DATA, &[0x31]);
        g.set(|s| s.msrs.set(x86_defs::msr::KERNEL_GS_BASE, DATA));
        let end = g.finish();
        assert_eq!(g.bus.log[0], Event::Out(0x10, vec![0x31]));
        assert_eq!(g.bus.log[1], Event::Out(0x11, (DATA as u32).to_le_bytes().to_vec()));
        assert_eq!(end.segment(vcpu_state::SegReg::Gs).base, DATA);
        assert_eq!(end.msrs.get(x86_defs::msr::KERNEL_GS_BASE).unwrap_or(0), 0);
    });
}

#[test]
fn invlpg_makes_a_changed_entry_seen() {
    each_engine(|e| {
        let mode = Mode::Long;
        let entry = mode.entry_at(DATA) as u32;
        // mov al, [0x4000]; out 0x10, al; mov dword [entry], 0xc007; invlpg [0x4000];
        // mov al, [0x4000]; out 0x10, al
        let read = [0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0xe6, 0x10];
        let store = [&[0xc7, 0x04, 0x25][..], &entry.to_le_bytes(), &[7, 0xc0, 0, 0]].concat();
        let invlpg = [0x0f, 0x01, 0x3c, 0x25, 0, 0x40, 0, 0];
        let mut g = Guest::new(e, mode, &[&read, &store[..], &invlpg, &read].concat());
        g.write(DATA, &[1]);
        g.write(0xc000, &[2]);
        g.finish();
        assert_eq!(g.bus.log[..2], [Event::Out(0x10, vec![1]), Event::Out(0x10, vec![2])]);
    });
}

#[test]
fn global_pages_survive_a_change_of_cr3_and_others_do_not() {
    each_engine(|e| {
        if e.skips(Lacks::Other("a TLB whose stale entries can be seen")) {
            return;
        }
        // mov rax, cr3; mov cr3, rax; mov al, [0x4000]; out 0x10, al
        let code =
            [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0xe6, 0x10];
        let mode = Mode::Long;
        let mut g = Guest::new(e, mode, &code);
        g.set(|s| s.control.cr4 |= cr4::PGE);
        g.write(mode.entry_at(DATA), &0xc007u32.to_le_bytes());
        g.write(0xc000, &[9]);
        g.finish();
        assert_eq!(g.bus.log[0], Event::Out(0x10, vec![9]));
    });
}
