//! Ports, MMIO, MSRs and CPUID: what crosses the seam, and that instructions are finished.

use conformance::*;
use engine::{Exit, Flow, VmConfig};
use x86_defs::{exception, gpr, msr};

/// No RAM is there.
const MMIO: u32 = 0x50_0000;

/// In 64-bit mode all low memory but RAM is mapped by the page directory's third entry.
fn with_mmio(e: &UnderTest, code: &[u8]) -> Guest {
    let g = Guest::new(e, Mode::Long, code);
    g.write(0xa010, &(0x40_0000u64 | 0x87).to_le_bytes());
    g
}

#[test]
fn ports_of_all_widths() {
    each_engine(|e| {
        // in al, 0x10; out 0x11, al; in ax, 0x12; out 0x13, ax; in eax, 0x14; out 0x15, eax
        let code =
            [0xe4, 0x10, 0xe6, 0x11, 0x66, 0xe5, 0x12, 0x66, 0xe7, 0x13, 0xe5, 0x14, 0xe7, 0x15];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.bus.input = 1;
        g.finish();
        let want = [
            Event::In(0x10, 1),
            Event::Out(0x11, vec![1]),
            Event::In(0x12, 2),
            Event::Out(0x13, vec![2, 3]),
            Event::In(0x14, 4),
            Event::Out(0x15, vec![4, 5, 6, 7]),
        ];
        assert_eq!(g.bus.log[..6], want);
    });
}

#[test]
fn narrow_inputs_keep_the_rest_of_the_register_and_wide_ones_clear_it() {
    each_engine(|e| {
        // in ax, 0x10
        let mut g = Guest::new(e, Mode::Long, &[0x66, 0xe5, 0x10]);
        g.set(|s| s.regs.gpr[0] = !0);
        assert_eq!(g.finish().regs.gpr[0], 0xffff_ffff_ffff_0100);
        // in eax, 0x10
        let mut g = Guest::new(e, Mode::Long, &[0xe5, 0x10]);
        g.set(|s| s.regs.gpr[0] = !0);
        assert_eq!(g.finish().regs.gpr[0], 0x0302_0100);
    });
}

#[test]
fn strings_of_ports_go_on_to_the_end() {
    each_engine(|e| {
        // mov dx, 0x1234; mov edi, 0x4ffe; mov ecx, 4; rep insb; mov esi, edi - 2; mov ecx, 2;
        // rep outsb
        let code = [
            0x66, 0xba, 0x34, 0x12, 0xbf, 0xfe, 0x4f, 0, 0, 0xb9, 4, 0, 0, 0, 0xf3, 0x6c, 0x8d,
            0x77, 0xfe, 0xb9, 2, 0, 0, 0, 0xf3, 0x6e,
        ];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.bus.input = 0x41;
        let end = g.finish();
        assert_eq!(g.read(0x4ffe), *b"ABCD", "across a page");
        let inputs = g.bus.log.iter().filter(|e| **e == Event::In(0x1234, 1)).count();
        assert_eq!(inputs, 4);
        let outputs: Vec<u8> = g
            .bus
            .log
            .iter()
            .filter_map(|e| if let Event::Out(0x1234, b) = e { Some(b[0]) } else { None })
            .collect();
        assert_eq!(outputs, *b"CD");
        assert_eq!(end.regs.gpr[gpr::RCX], 0);
        assert_eq!(end.regs.gpr[gpr::RDI], 0x5002);
    });
}

#[test]
fn mmio_of_all_widths() {
    each_engine(|e| {
        let at = MMIO.to_le_bytes();
        let load = |prefix: &[u8], op: u8| [prefix, &[op, 0x04, 0x25], &at].concat();
        let code = [
            load(&[], 0x8a),
            load(&[], 0x88),
            load(&[0x66], 0x8b),
            load(&[0x66], 0x89),
            load(&[], 0x8b),
            load(&[], 0x89),
            load(&[0x48], 0x8b),
            load(&[0x48], 0x89),
        ]
        .concat();
        let mut g = with_mmio(e, &code);
        g.finish();
        let gpa = u64::from(MMIO);
        let mut next = 0u8;
        let mut want = Vec::new();
        for len in [1usize, 2, 4, 8] {
            let bytes: Vec<u8> = (next..next + len as u8).collect();
            next += len as u8;
            want.push(Event::Read(gpa, len));
            want.push(Event::Write(gpa, bytes));
        }
        assert_eq!(g.bus.log[..8], want);
    });
}

#[test]
fn read_modify_write_on_mmio_reads_and_writes_once() {
    each_engine(|e| {
        // add byte [mmio], 5; movzx ecx, byte [mmio]; xchg [mmio], al
        let at = MMIO.to_le_bytes();
        let code = [
            &[0x80, 0x04, 0x25][..],
            &at,
            &[5, 0x0f, 0xb6, 0x0c, 0x25],
            &at,
            &[0x86, 0x04, 0x25],
            &at,
        ]
        .concat();
        let mut g = with_mmio(e, &code);
        g.bus.input = 0x10;
        g.set(|s| s.regs.gpr[0] = 0x99);
        let end = g.finish();
        let gpa = u64::from(MMIO);
        let want = [
            Event::Read(gpa, 1),
            Event::Write(gpa, vec![0x15]),
            Event::Read(gpa, 1),
            Event::Read(gpa, 1),
            Event::Write(gpa, vec![0x99]),
        ];
        assert_eq!(g.bus.log[..5], want);
        assert_eq!(end.regs.gpr[gpr::RCX], 0x11);
        assert_eq!(end.regs.gpr[gpr::RAX], 0x12);
    });
}

#[test]
fn mmio_that_crosses_a_page_is_two_accesses() {
    each_engine(|e| {
        // mov eax, [mmio + 0xffe]
        let at = (MMIO + 0xffe).to_le_bytes();
        let mut g = with_mmio(e, &[&[0x8b, 0x04, 0x25][..], &at].concat());
        let end = g.finish();
        let gpa = u64::from(MMIO) + 0xffe;
        assert_eq!(g.bus.log[..2], [Event::Read(gpa, 2), Event::Read(gpa + 2, 2)]);
        assert_eq!(end.regs.gpr[0], 0x0302_0100);
    });
}

#[test]
fn strings_to_mmio() {
    each_engine(|e| {
        // mov esi, 0x4000; mov edi, mmio; mov ecx, 3; rep movsb
        let code = [
            &[0xbe, 0, 0x40, 0, 0, 0xbf][..],
            &MMIO.to_le_bytes(),
            &[0xb9, 3, 0, 0, 0, 0xf3, 0xa4],
        ]
        .concat();
        let mut g = with_mmio(e, &code);
        g.write(DATA, b"xyz");
        g.finish();
        let bytes: Vec<u8> = g
            .bus
            .log
            .iter()
            .filter_map(|e| if let Event::Write(_, b) = e { Some(b.clone()) } else { None })
            .flatten()
            .collect();
        assert_eq!(bytes, b"xyz");
    });
}

#[test]
fn a_stop_in_an_access_takes_effect_behind_its_instruction() {
    each_engine(|e| {
        // in al, 0x10; mov [mmio + 0xfff], ax (two accesses); nop
        let at = (MMIO + 0xfff).to_le_bytes();
        let code = [&[0xe4, 0x10, 0x66, 0x89, 0x04, 0x25][..], &at, &[0x90]].concat();
        let mut g = with_mmio(e, &code);
        g.bus.hook = Some(Box::new(|_| Flow::Stop));
        g.bus.input = 0x77;
        assert_eq!(g.run(), Exit::Stopped);
        let state = g.state();
        assert_eq!((state.regs.rip, state.regs.gpr[0] & 0xff), (CODE + 2, 0x77));
        assert_eq!(g.run(), Exit::Stopped);
        assert_eq!(g.state().regs.rip, CODE + 10);
        let writes = g.bus.log.iter().filter(|e| matches!(e, Event::Write(..))).count();
        assert_eq!(writes, 2, "both halves, before the stop");
        g.bus.hook = None;
        g.finish();
    });
}

#[test]
fn a_kick_inside_an_access_is_not_lost() {
    each_engine(|e| {
        // out 0x10, al; jmp $
        let mut g = Guest::new(e, Mode::Long, &[0xe6, 0x10, 0xeb, 0xfe]);
        let kick = g.cpu.kicker();
        g.bus.hook = Some(Box::new(move |_| {
            kick.stop();
            Flow::Continue
        }));
        assert_eq!(g.run(), Exit::Stopped);
        assert_eq!(g.state().regs.rip, CODE + 2);
        let kick = g.cpu.kicker();
        kick.stop();
        kick.stop();
        assert_eq!(g.run(), Exit::Stopped, "sticky before run");
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                kick.stop();
            });
            assert_eq!(g.run(), Exit::Stopped, "two before were one");
        });
        assert_eq!(g.state().regs.rip, CODE + 2);
    });
}

#[test]
fn msrs_of_the_machine_and_of_nobody() {
    each_engine(|e| {
        const THEIRS: u32 = 0x4b56_4dff;
        let index = THEIRS.to_le_bytes();
        // mov ecx, theirs; rdmsr; inc eax; wrmsr; rdmsr; out 0x10, eax; inc ecx; wrmsr
        let code = [
            &[0xb9][..],
            &index,
            &[0x0f, 0x32, 0xff, 0xc0, 0x0f, 0x30, 0x0f, 0x32, 0xe7, 0x10, 0xff, 0xc1, 0x0f, 0x30],
        ]
        .concat();
        let mut g = Guest::new(e, Mode::Long, &code);
        g.bus.msrs.insert(THEIRS, 0x7_0000_0008);
        let (vector, error, state) = g.fault();
        assert_eq!((vector, error), (exception::GP, Some(0)));
        assert_eq!(g.return_address(error, &state), CODE + 17);
        let want = [
            Event::ReadMsr(THEIRS),
            Event::WriteMsr(THEIRS, 0x7_0000_0009),
            Event::ReadMsr(THEIRS),
            Event::Out(0x10, vec![9, 0, 0, 0]),
        ];
        assert_eq!(g.bus.log[..4], want);
    });
}

#[test]
fn msrs_of_the_processor_are_state() {
    each_engine(|e| {
        // mov ecx, LSTAR; mov eax, 0x1000; mov edx, 0; wrmsr
        for (index, value) in [
            (msr::LSTAR, 0x1000u64),
            (msr::STAR, 0x0018_0008_0000_0000),
            (msr::SFMASK, 0x200),
            (msr::IA32_SYSENTER_EIP, 0x1234),
            (msr::IA32_PAT, 0x0007_0406_0007_0405),
        ] {
            let code = [
                &[0xb9][..],
                &index.to_le_bytes(),
                &[0xb8],
                &(value as u32).to_le_bytes(),
                &[0xba],
                &((value >> 32) as u32).to_le_bytes(),
                &[0x0f, 0x30],
            ]
            .concat();
            let mut g = Guest::new(e, Mode::Long, &code);
            assert_eq!(g.finish().msrs.get(index), Some(value), "MSR {index:#x}");
        }
    });
}

#[test]
fn cpuid_answers_from_the_table() {
    each_engine(|e| {
        if e.skips(Lacks::Other("CPUID that traps in long mode")) {
            return;
        }
        let table = e.cpuid();
        for (leaf, subleaf) in [(0u32, 0u32), (1, 0), (7, 0), (0x8000_0000, 0), (0x8000_0008, 0)] {
            // mov eax, leaf; mov ecx, subleaf; cpuid; out 0x10..0x13, eax/ebx/ecx/edx
            let code = [
                &[0xb8][..],
                &leaf.to_le_bytes(),
                &[0xb9],
                &subleaf.to_le_bytes(),
                &[0x0f, 0xa2, 0xe7, 0x10, 0x89, 0xd8, 0xe7, 0x11, 0x89, 0xc8, 0xe7, 0x12],
                &[0x89, 0xd0, 0xe7, 0x13],
            ]
            .concat();
            let mut g = Guest::new(e, Mode::Long, &code);
            g.finish();
            let got: Vec<u32> = g.bus.log[..4]
                .iter()
                .map(|e| match e {
                    Event::Out(_, b) => u32::from_le_bytes(b[..].try_into().unwrap()),
                    other => panic!("{other:?}"),
                })
                .collect();
            let mut want = table.for_vcpu(0).lookup(leaf, subleaf);
            // OSXSAVE and OSPKE show registers; nothing else may differ.
            if leaf == 1 {
                want[2] &= !(1 << 27);
            }
            assert_eq!(got, want, "leaf {leaf:#x}.{subleaf}");
        }
    });
}

#[test]
fn what_an_engine_cannot_do_is_refused_before_there_is_a_vm() {
    each_engine(|e| {
        let intercepts = engine::Intercepts { syscall: true, exceptions: !0, ..Default::default() };
        let created = e.create_vm(&VmConfig { intercepts, ..VmConfig::default() });
        let have = e.caps().intercepts;
        assert_eq!(created.is_ok(), have.syscall && have.exceptions == !0);
        if !e.caps().tsc_scaling {
            let tsc_khz = Some(e.caps().tsc_khz / 2);
            assert!(e.create_vm(&VmConfig { tsc_khz, ..VmConfig::default() }).is_err());
        }
    });
}

#[test]
fn the_tsc_goes_on() {
    each_engine(|e| {
        // rdtsc; mov ebx, eax; rdtsc; sub eax, ebx; out 0x10, eax
        let code = [0x0f, 0x31, 0x89, 0xc3, 0x0f, 0x31, 0x29, 0xd8, 0xe7, 0x10];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.finish();
        let Event::Out(0x10, bytes) = &g.bus.log[0] else { panic!("{:?}", g.bus.log) };
        assert_ne!(bytes, &[0; 4]);
        let again = g.state().tsc.value;
        assert!(g.state().tsc.value >= again);
    });
}
