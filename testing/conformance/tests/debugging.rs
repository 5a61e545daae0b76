//! A debugger outside the guest: steps, breakpoints, watchpoints; and counted runs.

use conformance::*;
use engine::{Breakpoint, BreakpointKind, DebugExit, Exit, GuestDebug, VmConfig};

fn step() -> GuestDebug {
    GuestDebug { single_step: true, ..GuestDebug::default() }
}

fn breakpoint(address: u64, kind: BreakpointKind) -> GuestDebug {
    GuestDebug { breakpoints: vec![Breakpoint { address, kind }], ..GuestDebug::default() }
}

#[test]
fn single_steps_end_behind_each_instruction() {
    each_engine(|e| {
        for mode in [Mode::Real, Mode::Long] {
            // nop; mov al, 5; out 0x10, al; nop
            let mut g = Guest::new(e, mode, &[0x90, 0xb0, 5, 0xe6, 0x10, 0x90]);
            g.cpu.set_debug(&step()).unwrap();
            for rip in [1, 3, 5, 6] {
                assert_eq!(g.run(), Exit::Debug(DebugExit::Step), "{mode:?}");
                assert_eq!(g.state().regs.rip, CODE + rip, "{mode:?}");
            }
            assert_eq!(g.bus.log, [Event::Out(0x10, vec![5])], "{mode:?}");
            assert_eq!(g.state().regs.rflags & x86_defs::rflags::TF, 0, "not the guest's own");
            g.cpu.set_debug(&GuestDebug::default()).unwrap();
            g.finish();
        }
    });
}

#[test]
fn breakpoints_stop_before_their_instruction_and_go_on_behind() {
    each_engine(|e| {
        for mode in [Mode::Real, Mode::Long] {
            // mov al, 1; l: inc al (fe c0); out 0x10, al; jmp l
            let mut g = Guest::new(e, mode, &[0xb0, 1, 0xfe, 0xc0, 0xe6, 0x10, 0xeb, 0xfa]);
            let at = CODE + 2;
            g.cpu.set_debug(&breakpoint(at, BreakpointKind::Execute)).unwrap();
            let rounds = if e.skips(Lacks::Other("RF against instruction breakpoints")) {
                1..2
            } else {
                1..4u64
            };
            for al in rounds {
                let hit = Exit::Debug(DebugExit::Breakpoint { address: at });
                assert_eq!(g.run(), hit, "{mode:?}");
                let state = g.state();
                assert_eq!((state.regs.rip, state.regs.gpr[0] & 0xff), (at, al), "{mode:?}");
            }
        }
    });
}

#[test]
fn watchpoints_stop_behind_the_access() {
    each_engine(|e| {
        if e.skips(Lacks::Other("data breakpoints in code that runs natively")) {
            return;
        }
        // mov al, [0x4000]; mov [0x4003], al; nop
        let code = [0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0x88, 0x04, 0x25, 3, 0x40, 0, 0, 0x90];
        let mut g = Guest::new(e, Mode::Long, &code);
        let write = breakpoint(DATA, BreakpointKind::Write { len: 4 });
        g.cpu.set_debug(&write).unwrap();
        assert_eq!(g.run(), Exit::Debug(DebugExit::Watchpoint { address: DATA }));
        assert_eq!(g.state().regs.rip, CODE + 14);
        g.cpu.set_state(&Mode::Long.state()).unwrap();
        let access = breakpoint(DATA, BreakpointKind::Access { len: 2 });
        g.cpu.set_debug(&access).unwrap();
        assert_eq!(g.run(), Exit::Debug(DebugExit::Watchpoint { address: DATA }));
        assert_eq!(g.state().regs.rip, CODE + 7);
    });
}

#[test]
fn as_many_breakpoints_as_the_engine_says() {
    each_engine(|e| {
        let mut g = Guest::new(e, Mode::Long, &[0x90]);
        let most = e.caps().breakpoints;
        let one = Breakpoint { address: CODE, kind: BreakpointKind::Execute };
        let breakpoints = |n| GuestDebug { breakpoints: vec![one; n], ..GuestDebug::default() };
        g.cpu.set_debug(&breakpoints(most.min(64))).unwrap();
        if most < 64 {
            assert!(g.cpu.set_debug(&breakpoints(most + 1)).is_err());
        }
    });
}

#[test]
fn counted_runs_retire_exactly_so_many() {
    each_engine(|e| {
        let config = VmConfig { counted: true, ..VmConfig::default() };
        if !e.caps().counted {
            assert!(e.create_vm(&config).is_err());
            return;
        }
        // mov al, 5; out 0x10, al; inc eax; nop; in al, 0x11
        let code = [0xb0, 5, 0xe6, 0x10, 0xff, 0xc0, 0x90, 0xe4, 0x11];
        let mut g = Guest::with(e, Mode::Long, &code, config);
        for rip in [2, 4, 6, 7, 9] {
            assert_eq!(g.cpu.run_for(1, &mut g.bus).unwrap(), Exit::Retired);
            assert_eq!(g.state().regs.rip, CODE + rip);
        }
        g.cpu.set_state(&Mode::Long.state()).unwrap();
        assert_eq!(g.cpu.run_for(4, &mut g.bus).unwrap(), Exit::Retired);
        assert_eq!(g.state().regs.rip, CODE + 7);
        assert_eq!(g.cpu.run_for(0, &mut g.bus).unwrap(), Exit::Retired);
        assert_eq!(g.state().regs.rip, CODE + 7);
    });
}
