//! Exceptions: vectors, error codes, CR2, and where they return to.

use conformance::*;
use engine::Exit;
use x86_defs::{exception, rflags};

/// Page-fault error codes (SDM volume 3, figure 4-12).
const P: u32 = 1;
const W: u32 = 2;
const U: u32 = 4;
const I: u32 = 16;

/// The code faults at its offset `at`.
fn faults(e: &UnderTest, mode: Mode, code: &[u8], at: u64, vector: u8, error: Option<u32>) {
    let mut g = Guest::new(e, mode, code);
    let (got, code, state) = g.fault();
    assert_eq!((got, code), (vector, error), "{mode:?}");
    assert_eq!(g.return_address(code, &state), CODE + at, "{mode:?}");
}

fn modes(e: &UnderTest) -> impl Iterator<Item = Mode> {
    let all = !e.skips(Lacks::PagedProtectedMode);
    Mode::ALL.into_iter().filter(move |m| all || !m.is_paged_protected())
}

#[test]
fn divide_errors_and_undefined_opcodes_are_faults() {
    each_engine(|e| {
        for mode in modes(e) {
            // nop; xor cl, cl; div cl
            faults(e, mode, &[0x90, 0x30, 0xc9, 0xf6, 0xf1], 3, exception::DE, None);
            faults(e, mode, &[0x90, 0x0f, 0x0b], 1, exception::UD, None);
        }
    });
}

#[test]
fn breakpoints_are_traps() {
    each_engine(|e| {
        if e.skips(Lacks::SoftwareInterrupts) {
            return;
        }
        for mode in modes(e) {
            faults(e, mode, &[0xcc], 1, exception::BP, None);
            let mut g = Guest::new(e, mode, &[0xcd, 0x30]);
            g.finish();
            assert_eq!(g.bus.vectors(), [0x30], "{mode:?}");
        }
        // Ring 3 may not use a gate of ring 0: vector 0x21, IDT bit set in the error code.
        faults(e, Mode::User, &[0xcd, 0x21], 0, exception::GP, Some(0x21 << 3 | 2));
    });
}

#[test]
fn page_faults_tell_why_and_where() {
    each_engine(|e| {
        // mov al, [0x5004] and mov [0x5004], al and jmp 0x5000
        let read = [0x8a, 0x04, 0x25, 4, 0x50, 0, 0];
        let write = [0x88, 0x04, 0x25, 4, 0x50, 0, 0];
        let fetch = [0xb8, 0, 0x50, 0, 0, 0xff, 0xe0];
        let absent = 0u64;
        let read_only = 0x5005u64;
        let kernels = 0x5003u64;
        let no_execute = 0x5007u64 | 1 << 63;
        let cases: &[(Mode, &[u8], u64, u64, u32)] = &[
            (Mode::Long, &read, absent, 0x5004, 0),
            (Mode::Long, &write, absent, 0x5004, W),
            (Mode::Long, &write, read_only, 0x5004, P | W),
            (Mode::Long, &fetch, absent, 0x5000, I),
            (Mode::Long, &fetch, no_execute, 0x5000, P | I),
            (Mode::User, &read, absent, 0x5004, U),
            (Mode::User, &read, kernels, 0x5004, P | U),
            (Mode::User, &write, kernels, 0x5004, P | U | W),
            (Mode::User, &write, read_only, 0x5004, P | U | W),
            (Mode::User, &fetch, absent, 0x5000, U | I),
            (Mode::User, &fetch, no_execute, 0x5000, P | U | I),
        ];
        for (mode, code, entry, address, error) in cases {
            let mut g = Guest::new(e, *mode, code);
            g.write(mode.entry_at(0x5000), &entry.to_le_bytes());
            let (vector, got, state) = g.fault();
            let case = format!("{mode:?} {entry:#x} {code:x?}");
            assert_eq!((vector, got), (exception::PF, Some(*error)), "{case}");
            assert_eq!(state.control.cr2, *address, "{case}");
        }
    });
}

#[test]
fn write_protection_binds_the_kernel_only_with_wp() {
    each_engine(|e| {
        // mov [0x5004], al
        let mut g = Guest::new(e, Mode::Long, &[0x88, 0x04, 0x25, 4, 0x50, 0, 0]);
        g.write(Mode::Long.entry_at(0x5000), &0x5005u64.to_le_bytes());
        g.set(|s| {
            s.control.cr0 &= !x86_defs::cr::cr0::WP;
            s.regs.gpr[0] = 0x21;
        });
        g.finish();
        assert_eq!(g.read(0x5004), [0x21]);
    });
}

#[test]
fn supervisor_mode_prevention() {
    use x86_defs::cr::cr4;
    each_engine(|e| {
        if !e.cpuid().has_named("smap") || !e.cpuid().has_named("smep") {
            println!("skipped: neither SMEP nor SMAP");
            return;
        }
        if e.skips(Lacks::Other("SMEP and SMAP")) {
            return;
        }
        let own = |g: &Guest| {
            // The kernel's own pages are the kernel's.
            for page in [0u64, 0x1000, 0x2000, 0x6000, 0x8000, 0x9000, 0xa000, 0xb000] {
                g.write(Mode::Long.entry_at(page), &(page | 3).to_le_bytes());
            }
        };
        // mov al, [0x5004]
        let mut g = Guest::new(e, Mode::Long, &[0x8a, 0x04, 0x25, 4, 0x50, 0, 0]);
        own(&g);
        g.set(|s| s.control.cr4 |= cr4::SMAP);
        assert_eq!(g.fault().1, Some(P));
        g.cpu.set_state(&Mode::Long.state()).unwrap();
        g.set(|s| {
            s.control.cr4 |= cr4::SMAP;
            s.regs.rflags |= rflags::AC;
        });
        g.finish();
        // jmp 0x5000
        let mut g = Guest::new(e, Mode::Long, &[0xb8, 0, 0x50, 0, 0, 0xff, 0xe0]);
        own(&g);
        g.set(|s| s.control.cr4 |= cr4::SMEP);
        assert_eq!(g.fault().1, Some(P | I));
    });
}

#[test]
fn general_protection_has_the_selector_or_zero() {
    each_engine(|e| {
        let modes = [Mode::Protected, Mode::Long];
        for mode in modes {
            // mov ax, 0x60; mov ds, ax: beyond the GDT's limit
            let code: &[u8] = &[0x66, 0xb8, 0x60, 0, 0x8e, 0xd8];
            faults(e, mode, code, 4, exception::GP, Some(0x60));
            // mov ax, 0x40; mov ds, ax: not present
            let code: &[u8] = &[0x66, 0xb8, 0x40, 0, 0x8e, 0xd8];
            faults(e, mode, code, 4, exception::NP, Some(0x40));
            // mov ax, 0; mov ss, ax
            if mode == Mode::Protected {
                let code: &[u8] = &[0x66, 0xb8, 0, 0, 0x8e, 0xd0];
                faults(e, mode, code, 4, exception::GP, Some(0));
            }
            // mov ecx, 0x12345678; rdmsr
            let code: &[u8] = &[0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32];
            faults(e, mode, code, 5, exception::GP, Some(0));
        }
        // A non-canonical address: mov rax, 1 << 63; mov al, [rax]
        let code: &[u8] = &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x8a, 0];
        faults(e, Mode::Long, code, 10, exception::GP, Some(0));
        // The same by the stack segment: mov rsp, 1 << 63; pop rax
        let code: &[u8] = &[0x48, 0xbc, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x58];
        let mut g = Guest::new(e, Mode::Long, code);
        // The handler needs a stack: IST 1.
        let gate = 0x400 + u64::from(exception::SS) * 16;
        let low = g.read_u64(gate) | 1 << 32;
        g.write(gate, &low.to_le_bytes());
        let (vector, error, _) = g.fault();
        assert_eq!((vector, error), (exception::SS, Some(0)));
        // hlt at ring 3
        faults(e, Mode::User, &[0xf4], 0, exception::GP, Some(0));
    });
}

#[test]
fn segment_limits_are_checked_outside_long_mode() {
    each_engine(|e| {
        if e.skips(Lacks::Other("limits of segments in protected mode")) {
            return;
        }
        // mov al, [0x4000] with DS that ends there
        let mut g = Guest::new(e, Mode::Protected, &[0xa0, 0, 0x40, 0, 0]);
        g.set(|s| {
            let ds = s.segment_mut(vcpu_state::SegReg::Ds);
            (ds.limit, ds.attr) = (0x3fff, 0x4093);
        });
        let (vector, error, _) = g.fault();
        assert_eq!((vector, error), (exception::GP, Some(0)));
    });
}

fn clear_present(g: &Guest, vector: u8) {
    let gate = 0x400 + u64::from(vector) * 16;
    let low = g.read_u64(gate) & !(1 << 47);
    g.write(gate, &low.to_le_bytes());
}

#[test]
fn a_fault_while_delivering_a_benign_exception_is_itself_delivered() {
    each_engine(|e| {
        if e.skips(Lacks::Other("faults while benign exceptions are delivered")) {
            return;
        }
        let mut g = Guest::new(e, Mode::Long, &[0x0f, 0x0b]);
        clear_present(&g, exception::UD);
        let (vector, error, _) = g.fault();
        // IDT, and external to the program: the earlier exception was (SDM volume 3, 6.13).
        assert_eq!((vector, error), (exception::NP, Some(u32::from(exception::UD) << 3 | 3)));
    });
}

#[test]
fn a_fault_while_delivering_a_fault_is_a_double_fault_and_then_the_end() {
    each_engine(|e| {
        // A general-protection fault is contributory, and so is #NP for its gate.
        let code: &[u8] = &[0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32];
        let mut g = Guest::new(e, Mode::Long, code);
        clear_present(&g, exception::GP);
        let (vector, error, _) = g.fault();
        assert_eq!((vector, error), (exception::DF, Some(0)));
        clear_present(&g, exception::DF);
        g.cpu.set_state(&Mode::Long.state()).unwrap();
        assert_eq!(g.run(), Exit::Shutdown);
    });
}

#[test]
fn no_descriptor_table_means_a_triple_fault_in_every_mode() {
    each_engine(|e| {
        for mode in modes(e) {
            if mode == Mode::Real && e.skips(Lacks::Other("the limit of the IDT in real mode")) {
                continue;
            }
            let mut g = Guest::new(e, mode, &[0x0f, 0x0b]);
            g.set(|s| s.segments.idtr.limit = 0);
            assert_eq!(g.run(), Exit::Shutdown, "{mode:?}");
        }
    });
}

#[test]
fn single_stepping_by_the_trap_flag_is_the_guests_own() {
    each_engine(|e| {
        if e.skips(Lacks::Other("the trap flag at ring 0")) {
            return;
        }
        // nop; nop with TF set
        let mut g = Guest::new(e, Mode::Long, &[0x90, 0x90]);
        g.set(|s| s.regs.rflags |= rflags::TF);
        let (vector, _, state) = g.fault();
        assert_eq!(vector, exception::DB);
        assert_eq!(state.debug.dr6 & x86_defs::dr::DR6_BS, x86_defs::dr::DR6_BS);
        assert_eq!(g.return_address(None, &state), CODE + 1);
    });
}

#[test]
fn floating_point_without_permission_faults() {
    each_engine(|e| {
        // movaps xmm0, xmm0 with CR0.TS
        let mut g = Guest::new(e, Mode::Long, &[0x0f, 0x28, 0xc0]);
        g.set(|s| s.control.cr0 |= x86_defs::cr::cr0::TS);
        assert_eq!(g.fault().0, exception::NM);
    });
}
