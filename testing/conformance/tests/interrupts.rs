//! Interrupts are pulled, at boundaries and through windows.

use conformance::*;
use engine::{Exit, Flow, Pending};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use vcpu_state::MpState;

const MODES: [Mode; 3] = [Mode::Real, Mode::Protected, Mode::Long];

/// Those in which handlers return.
fn iret_modes(e: &UnderTest) -> impl Iterator<Item = Mode> {
    let all = !e.skips(Lacks::Other("IRET in protected mode"));
    MODES.into_iter().filter(move |m| all || *m != Mode::Protected)
}

fn out(port: u16) -> Event {
    Event::Out(port, vec![0])
}

#[test]
fn an_interrupt_waits_for_its_window_and_the_sti_shadow() {
    each_engine(|e| {
        for mode in iret_modes(e) {
            // out 1, al; sti; out 2, al; out 3, al
            let mut g = Guest::new(e, mode, &[0xe6, 1, 0xfb, 0xe6, 2, 0xe6, 3]);
            g.bus.raise(Pending::Interrupt, 0x20);
            g.finish();
            let want = [out(1), out(2), Event::Vector(0x20), out(3), out(0xf4)];
            assert_eq!(g.bus.log, want, "{mode:?}");
        }
    });
}

#[test]
fn what_is_pending_stays_the_hosts_while_interrupts_are_off() {
    each_engine(|e| {
        // sti; cli: the shadow covers cli
        let mut g = Guest::new(e, Mode::Long, &[0xfb, 0xfa]);
        g.bus.raise(Pending::Interrupt, 0x20);
        g.finish();
        assert!(g.bus.vectors().is_empty());
        assert!(g.bus.line.lock().unwrap().is_some());
    });
}

#[test]
fn opening_the_window_needs_no_other_exit() {
    each_engine(|e| {
        for mode in MODES {
            // sti; jmp $
            let mut g = Guest::new(e, mode, &[0xfb, 0xeb, 0xfe]);
            g.bus.raise(Pending::Interrupt, 0x20);
            g.bus.hook = Some(Box::new(|_| Flow::Stop));
            assert_eq!(g.run(), Exit::Stopped);
            assert_eq!(g.bus.log, [Event::Vector(0x20)], "{mode:?}");
        }
    });
}

#[test]
fn an_interrupt_wakes_a_halt() {
    each_engine(|e| {
        for mode in iret_modes(e) {
            // sti; hlt; out 1, al
            let mut g = Guest::new(e, mode, &[0xfb, 0xf4, 0xe6, 1]);
            g.idle();
            assert!(g.bus.log.is_empty());
            assert_eq!(g.state().mp, MpState::Halted);
            g.bus.raise(Pending::Interrupt, 0x20);
            g.finish();
            assert_eq!(g.bus.log, [Event::Vector(0x20), out(1), out(0xf4)], "{mode:?}");
        }
    });
}

#[test]
fn notify_makes_a_running_guest_look_again() {
    each_engine(|e| {
        // sti; jmp $
        let mut g = Guest::new(e, Mode::Long, &[0xfb, 0xeb, 0xfe]);
        g.bus.hook = Some(Box::new(|_| Flow::Stop));
        let (kick, line) = (g.cpu.kicker(), g.bus.line.clone());
        std::thread::scope(|s| {
            s.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                *line.lock().unwrap() = Some((Pending::Interrupt, 0x21));
                kick.notify();
            });
            assert_eq!(g.run(), Exit::Stopped);
        });
        assert_eq!(g.bus.log, [Event::Vector(0x21)]);
    });
}

#[test]
fn an_nmi_needs_no_window() {
    each_engine(|e| {
        for mode in MODES {
            // out 1, al; jmp $ with interrupts off
            let mut g = Guest::new(e, mode, &[0xe6, 1, 0xeb, 0xfe]);
            g.bus.raise(Pending::Nmi, 0);
            g.bus.hook =
                Some(Box::new(
                    |e| if *e == Event::Vector(2) { Flow::Stop } else { Flow::Continue },
                ));
            assert_eq!(g.run(), Exit::Stopped);
            assert!(g.bus.log.contains(&Event::Vector(2)), "{mode:?}");
            assert!(g.state().events.nmi_masked, "{mode:?}: until IRET");
        }
    });
}

#[test]
fn an_interrupt_that_is_gone_is_not_taken() {
    each_engine(|e| {
        // The line falls between the question and the acknowledgement: ack finds nothing.
        let mut g = Guest::new(e, Mode::Long, &[0xfb, 0x90, 0x90]);
        *g.bus.line.lock().unwrap() = Some((Pending::Interrupt, 0x20));
        let line = g.bus.line.clone();
        g.bus.hook = Some(Box::new(|_| Flow::Continue));
        // Another vCPU takes it first.
        *line.lock().unwrap() = None;
        g.finish();
        assert!(g.bus.vectors().is_empty());
    });
}

#[test]
fn cr8_is_the_task_priority() {
    each_engine(|e| {
        // mov cr8, rax; mov rcx, cr8
        let code = [0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc1];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.set(|s| s.regs.gpr[0] = 5);
        let end = g.finish();
        if e.caps().local_apic {
            assert_eq!(end.regs.gpr[1], 5);
            assert_eq!((end.control.cr8, end.apic.regs[8]), (5, 0x50));
        } else {
            assert_eq!(g.bus.log[0], Event::Cr8(5));
        }
    });
}

#[test]
fn interrupts_push_what_iret_pops() {
    each_engine(|e| {
        for mode in [Mode::Long, Mode::User] {
            // nop; jmp $-1, with interrupts on
            let mut g = Guest::new(e, mode, &[0x90, 0xeb, 0xfd]);
            g.set(|s| {
                s.regs.gpr[7] = 0x1234_5678_9abc;
                s.regs.rflags |= x86_defs::rflags::IF;
            });
            g.bus.raise(Pending::Interrupt, 0x22);
            g.bus.hook = Some(Box::new(|_| Flow::Stop));
            assert_eq!(g.run(), Exit::Stopped);
            let state = g.state();
            assert_eq!(state.cpl(), 0, "{mode:?}");
            let rsp = state.regs.gpr[4];
            let frame: Vec<u64> = (0..5).map(|i| g.read_u64(rsp + i * 8)).collect();
            let start = mode.state();
            let cs = start.segment(vcpu_state::SegReg::Cs).selector;
            assert!((CODE..CODE + 3).contains(&frame[0]), "{mode:?} {frame:x?}");
            assert_eq!(frame[1], u64::from(cs), "{mode:?}");
            assert_eq!(frame[3], STACK, "{mode:?}");
            assert_ne!(frame[2] & x86_defs::rflags::IF, 0, "{mode:?}");
            assert_eq!(state.regs.rflags & x86_defs::rflags::IF, 0, "{mode:?}: a gate's");
            assert_eq!(state.regs.gpr[7], 0x1234_5678_9abc);
        }
    });
}

#[test]
fn a_storm_of_notifications_and_interrupts_loses_none() {
    each_engine(|e| {
        // sti; l: inc ecx; jmp l
        let mut g = Guest::new(e, Mode::Long, &[0xfb, 0xff, 0xc1, 0xeb, 0xfc]);
        const COUNT: usize = 200;
        let (kick, line) = (g.cpu.kicker(), g.bus.line.clone());
        let mut seen = 0;
        g.bus.hook = Some(Box::new(move |_| {
            seen += 1;
            if seen == COUNT { Flow::Stop } else { Flow::Continue }
        }));
        let over = AtomicBool::new(false);
        let exit = std::thread::scope(|s| {
            s.spawn(|| {
                for _ in 0..COUNT {
                    while line.lock().unwrap().is_some() {
                        if over.load(SeqCst) {
                            return;
                        }
                        std::thread::yield_now();
                    }
                    *line.lock().unwrap() = Some((Pending::Interrupt, 0x23));
                    kick.notify();
                }
            });
            // A panic here would wait for the other thread.
            let exit = g.run();
            over.store(true, SeqCst);
            exit
        });
        assert_eq!(exit, Exit::Stopped, "after {:x?}", g.bus.log.last());
        assert_eq!(g.bus.vectors().len(), COUNT, "{:x?}", g.bus.log);
    });
}
