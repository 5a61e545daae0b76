//! State out and in, on one engine and from each to each.

use conformance::*;
use engine::{Exit, Flow, Pending};
use saved_state::{Reader, Writer};
use vcpu_state::*;
use x86_defs::{dr, gpr, msr, rflags, xsave};

/// A value in every section, none of them by chance that of another.
fn rich() -> VcpuState {
    let mut s = Mode::Long.state();
    for (i, r) in s.regs.gpr.iter_mut().enumerate() {
        if i != gpr::RSP {
            *r = 0x1111_2222_3333_0000 + i as u64;
        }
    }
    s.regs.rflags |= rflags::CF | rflags::ZF | rflags::DF | rflags::AC;
    s.segment_mut(SegReg::Fs).base = 0x7fff_1234_5678;
    s.segment_mut(SegReg::Gs).base = 0xffff_8000_0000_1000;
    s.control.cr2 = 0xdead_beef;
    s.control.cr8 = 3;
    s.apic.regs[8] = 0x30;
    s.apic.regs[0xa] = 0x30; // the processor's priority follows
    s.debug.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    s.debug.dr7 = dr::DR7_RESET | 0x0010_0000;
    s.fpu = FpuState::init();
    s.fpu.set_u32(xsave::MXCSR, 0x1fa0);
    for n in 0..16 {
        s.fpu.set_xmm(n, u128::MAX / (n as u128 + 3));
    }
    s.fpu.area[xsave::FTW] = 0x81;
    s.fpu.area[xsave::ST..xsave::ST + 10].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x88, 9, 0x40]);
    s.msrs.set(msr::STAR, 0x0018_0008_0000_0000);
    s.msrs.set(msr::LSTAR, 0xffff_8000_1234_0000);
    s.msrs.set(msr::SFMASK, 0x4_7700);
    s.msrs.set(msr::KERNEL_GS_BASE, 0xffff_8000_0000_2000);
    s.msrs.set(msr::IA32_SYSENTER_CS, 8);
    // As Linux sets them.
    s.msrs.set(msr::IA32_MC0_CTL, !0);
    s.msrs.set(msr::IA32_MC0_CTL + 4 * 9, !0);
    s.msrs.set(msr::IA32_MTRR_DEF_TYPE, 0xc06);
    s.msrs.set(msr::IA32_MTRR_FIX64K_00000, 0x0606_0606_0606_0606);
    s.msrs.set(msr::IA32_MTRR_PHYSBASE0, 0xc000_0000);
    s.msrs.set(msr::IA32_MTRR_PHYSBASE0 + 1, 0x3fff_c000_0800);
    s.msrs.set(msr::IA32_PAT, 0x0007_0406_0007_0405);
    s
}

/// An MSR that is absent has its reset value, which is 0 for those that may be absent.
fn told(msrs: &Msrs) -> Msrs {
    Msrs(msrs.0.iter().filter(|(_, value)| **value != 0).map(|(i, v)| (*i, *v)).collect())
}

/// Both are the same but for the instant, and for the APIC where the machine has it; a
/// difference is told by section.
fn assert_same(got: &VcpuState, want: &VcpuState, apic: bool, what: &str) {
    assert_eq!(got.regs, want.regs, "{what}");
    for (i, (g, w)) in got.segments.reg.iter().zip(&want.segments.reg).enumerate() {
        if g.usable() || w.usable() {
            assert_eq!(g, w, "{what}: segment {i}");
        }
    }
    assert_eq!(got.segments.gdtr, want.segments.gdtr, "{what}");
    assert_eq!(got.segments.idtr, want.segments.idtr, "{what}");
    let control =
        |s: &VcpuState| Control { cr8: if apic { s.control.cr8 } else { 0 }, ..s.control };
    assert_eq!(control(got), control(want), "{what}");
    assert_eq!(got.debug, want.debug, "{what}");
    let differ = got.fpu.area.iter().zip(&want.fpu.area).position(|(g, w)| g != w);
    assert_eq!(differ, None, "{what}: offset in the XSAVE area, {:?} {:?}", got.fpu, want.fpu);
    assert_eq!(told(&got.msrs), told(&want.msrs), "{what}");
    assert_eq!(got.events, want.events, "{what}");
    assert_eq!(got.mp, want.mp, "{what}");
    if apic {
        assert_eq!(got.apic, want.apic, "{what}");
    }
}

/// With AVX state where the guest's CPU has it.
fn with_avx(e: &UnderTest, mut s: VcpuState) -> VcpuState {
    if e.cpuid().has_named("avx") {
        s.control.cr4 |= x86_defs::cr::cr4::OSXSAVE;
        s.control.xcr0 = 7;
        (0..16).for_each(|n| s.fpu.set_ymm_hi(n, n as u128 + 7));
    }
    s
}

#[test]
fn what_is_put_in_comes_out() {
    each_engine(|e| {
        let mut g = Guest::new(e, Mode::Long, &[]);
        let state = with_avx(e, rich());
        g.cpu.set_state(&state).unwrap();
        assert_same(&g.state(), &state, e.caps().local_apic, "");
    });
}

#[test]
fn reset_is_restoring_the_reset_values() {
    each_engine(|e| {
        let mut g = Guest::new(e, Mode::Long, &[0xb0, 5]);
        g.finish();
        g.cpu.set_state(&with_avx(e, rich())).unwrap();
        g.cpu.set_state(&VcpuState::reset(0)).unwrap();
        let apic = e.caps().local_apic;
        assert_same(&g.state(), &VcpuState::reset(0), apic, "the first");
        let mut second = g.vm.create_vcpu(1).unwrap();
        assert_same(&second.state().unwrap(), &VcpuState::reset(1), apic, "the second");
    });
}

#[test]
fn the_first_instruction_is_at_the_reset_vector() {
    each_engine(|e| {
        let mut g = Guest::new(e, Mode::Real, &[]);
        let rom = guest_mem::Memfd::new(0x1000).unwrap();
        let slot = guest_mem::Slot { writable: false, ..slot(9, 0xffff_f000, &rom) };
        g.vm.set_layout(&[guest_mem::Change::Map(slot)]).unwrap();
        // jmp far 0:0x1000
        g.write(0xffff_fff0, &[0xea, 0, 0x10, 0, 0]);
        g.cpu.set_state(&VcpuState::reset(0)).unwrap();
        let end = g.finish();
        assert_eq!(end.segment(SegReg::Cs).base, 0);
    });
}

#[test]
fn saved_sections_have_names_and_versions() {
    each_engine(|e| {
        let mut g = Guest::new(e, Mode::Long, &[]);
        g.cpu.set_state(&with_avx(e, rich())).unwrap();
        let state = g.state();
        let mut writer = Writer::default();
        state.save(0, &mut writer);
        let parts = writer.finish();
        let names: Vec<_> = parts.iter().map(|p| (p.kind.as_str(), p.version)).collect();
        assert_eq!(names, VcpuState::SECTIONS);
        let mut reader = Reader::new(parts.clone()).unwrap();
        let back = VcpuState::restore(0, &mut reader).unwrap();
        reader.finish().unwrap();
        assert_eq!(back, state);
        let mut newer = parts;
        newer[3].version += 1;
        assert!(VcpuState::restore(0, &mut Reader::new(newer).unwrap()).is_err());
    });
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    each_engine(|e| {
        let mut g = Guest::new(e, Mode::Long, &[]);
        if !e.caps().tsc_scaling {
            let mut other = g.state();
            other.tsc.khz = 1;
            assert!(g.cpu.set_state(&other).is_err(), "another TSC frequency");
        }
        g.cpu.set_state(&Mode::Long.state()).unwrap();
        g.finish();
    });
}

/// Runs `code` on `a` until `pause`, then the rest on `b`.
fn moved(
    a: &UnderTest,
    b: &UnderTest,
    mode: Mode,
    code: &[u8],
    pause: fn(&Event) -> bool,
) -> Guest {
    let mut from = Guest::new(a, mode, code);
    from.bus.hook = Some(Box::new(move |e| if pause(e) { Flow::Stop } else { Flow::Continue }));
    assert_eq!(from.run(), Exit::Stopped);
    carried(&mut from, b, mode, code)
}

/// The same machine on another engine: memory, clock and state.
fn carried(from: &mut Guest, b: &UnderTest, mode: Mode, code: &[u8]) -> Guest {
    let mut to = Guest::new(b, mode, code);
    let mut ram = vec![0; RAM as usize];
    from.vm.memory().read(0, &mut ram).unwrap();
    to.write(0, &ram);
    let clock = from.vm.clock().unwrap();
    to.vm.set_clock(&clock).unwrap();
    let mut state = from.state();
    if state.tsc.khz != to.state().tsc.khz {
        println!("the engines' TSCs differ: {} and {} kHz", state.tsc.khz, to.state().tsc.khz);
        state.tsc.khz = 0;
    }
    if !from.own_apic {
        // The machine has the APIC then, and saves it.
        state.apic = to.state().apic;
    }
    to.cpu.set_state(&state).unwrap();
    to.bus.log = from.bus.take();
    to
}

#[test]
fn a_program_goes_on_elsewhere() {
    each_pair(|a, b| {
        for mode in [Mode::Real, Mode::Protected, Mode::Long, Mode::User] {
            // mov al, 7; in al, 0x10; not al; out 0x11, al
            let code = [0xb0, 7, 0xe4, 0x10, 0xf6, 0xd0, 0xe6, 0x11];
            let mut g = moved(a, b, mode, &code, |e| matches!(e, Event::In(..)));
            g.finish();
            assert_eq!(g.bus.log[1], Event::Out(0x11, vec![0xff]), "{mode:?}");
        }
    });
}

#[test]
fn a_rich_state_is_the_same_elsewhere() {
    each_pair(|a, b| {
        let (mut from, mut to) = (Guest::new(a, Mode::Long, &[]), Guest::new(b, Mode::Long, &[]));
        let state = if b.cpuid().has_named("avx") { with_avx(a, rich()) } else { rich() };
        from.cpu.set_state(&state).unwrap();
        let mut saved = from.state();
        saved.tsc.khz = 0;
        to.cpu.set_state(&saved).unwrap();
        assert_same(&to.state(), &saved, false, "");
    });
}

#[test]
fn events_under_way_arrive_elsewhere() {
    let ud = Exception { vector: 6, ..Exception::default() };
    let pf = Exception { vector: 14, error: Some(2), payload: 0x5678 };
    let none = Events::default();
    let cases = [
        (Events { interrupt: Some(0x24), ..none }, 0x24),
        (Events { exception: Raised::Injected(ud), ..none }, 6),
        (Events { exception: Raised::Pending(pf), ..none }, 14),
        (Events { nmi_pending: true, ..none }, 2),
    ];
    each_pair(|a, b| {
        for (events, vector) in cases {
            let mut from = Guest::new(a, Mode::Long, &[0x90]);
            from.set(|s| {
                s.regs.rflags |= rflags::IF;
                s.events = events;
            });
            let mut to = carried(&mut from, b, Mode::Long, &[0x90]);
            assert_eq!(to.run(), Exit::Stopped, "{events:?}");
            assert_eq!(to.bus.vectors(), [vector], "{events:?}");
            if vector == 14 {
                assert_eq!(to.state().control.cr2, 0x5678);
            }
        }
    });
}

#[test]
fn a_shadow_lasts_one_instruction_elsewhere() {
    each_pair(|a, b| {
        // out 1, al; out 2, al
        let code = [0xe6, 1, 0xe6, 2];
        let mut from = Guest::new(a, Mode::Long, &code);
        from.set(|s| {
            s.regs.rflags |= rflags::IF;
            s.events.shadow = Shadow::Sti;
        });
        let mut to = carried(&mut from, b, Mode::Long, &code);
        to.bus.raise(Pending::Interrupt, 0x25);
        to.finish();
        let out = |port| Event::Out(port, vec![0]);
        let position = |e: &Event| to.bus.log.iter().position(|x| x == e);
        assert_eq!(position(&out(1)), Some(0));
        assert!(position(&Event::Vector(0x25)) > Some(0), "{:?}", to.bus.log);
    });
}

#[test]
fn a_halt_is_carried_over() {
    each_pair(|a, b| {
        // sti; hlt; out 1, al
        let code = [0xfb, 0xf4, 0xe6, 1];
        let mut from = Guest::new(a, Mode::Long, &code);
        from.idle();
        let mut to = carried(&mut from, b, Mode::Long, &code);
        assert_eq!(to.state().mp, MpState::Halted);
        to.bus.raise(Pending::Interrupt, 0x26);
        to.finish();
        let want = [Event::Vector(0x26), Event::Out(1, vec![0]), Event::Out(0xf4, vec![0])];
        assert_eq!(to.bus.log, want);
    });
}

#[test]
fn the_clock_is_one_sample_and_is_set() {
    each_engine(|e| {
        let g = Guest::new(e, Mode::Real, &[]);
        let now = g.vm.clock().unwrap();
        assert!(now.khz > 0 && now.realtime_ns > 1 << 60);
        let later = engine::ClockSample { guest_ns: 1 << 40, ..now };
        g.vm.set_clock(&later).unwrap();
        let (a, b) = (g.vm.clock().unwrap(), g.vm.clock().unwrap());
        assert!(a.guest_ns >= 1 << 40 && b.guest_ns >= a.guest_ns && b.tsc >= a.tsc);
        assert!(a.guest_ns < 1 << 41);
    });
}

#[test]
fn two_vcpus_share_memory_atomically() {
    each_engine(|e| {
        // mov ecx, 20000; l: lock inc dword [0x4000]; dec ecx; jnz l
        let code =
            [0xb9, 0x20, 0x4e, 0, 0, 0xf0, 0xff, 0x04, 0x25, 0, 0x40, 0, 0, 0xff, 0xc9, 0x75, 0xf4];
        let mut g = Guest::new(e, Mode::Long, &code);
        let mut second = g.vm.create_vcpu(1).unwrap();
        let mut state = Mode::Long.state();
        state.apic = ApicState::reset(1);
        state.regs.gpr[gpr::RSP] = STACK - 0x400;
        second.set_state(&state).unwrap();
        std::thread::scope(|s| {
            let other = s.spawn(|| second.run(&mut Bus::default()).unwrap());
            g.finish();
            assert_eq!(other.join().unwrap(), Exit::Stopped);
        });
        assert_eq!(g.read_u32(DATA), 40_000);
    });
}
