//! What an operator does to a running machine.

use crate::{common::*, guests};
use machine::{DebugStop, Ended, State};
use std::sync::mpsc::channel;

const COUNTER: u64 = 0x11_0000;

#[test]
fn pausing_stops_the_guest_and_its_time() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::COUNTS);
        let handle = machine.handle();
        assert_eq!(handle.info().unwrap().uptime_ns, 0);
        handle.resume().unwrap();
        until("the guest counts", || dword(&machine, COUNTER) > 0);
        handle.pause().unwrap();
        let (count, info) = (dword(&machine, COUNTER), handle.info().unwrap());
        assert_eq!(info.state, State::Paused);
        assert!(info.uptime_ns > 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let later = handle.info().unwrap();
        assert_eq!((dword(&machine, COUNTER), later.uptime_ns), (count, info.uptime_ns));
        handle.pause().unwrap();
        handle.resume().unwrap();
        handle.resume().unwrap();
        until("the guest counts on", || dword(&machine, COUNTER) > count);
        let info = handle.info().unwrap();
        assert_eq!(info.state, State::Running);
        assert!((guests::START..guests::START + 16).contains(&info.vcpus[0].rip), "{info}");
        assert!(info.to_string().contains("16 MiB"));
        // What follows `info` is the guest running on.
        let count = dword(&machine, COUNTER);
        until("the guest counts on", || dword(&machine, COUNTER) > count);
        handle.quit().unwrap();
        assert_eq!(end(&machine), Ended::Quit);
    }
}

#[test]
fn the_power_button_sets_its_status() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::POWER_BUTTON);
        machine.handle().resume().unwrap();
        machine.handle().power_button().unwrap();
        assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?}");
    }
}

#[test]
fn an_nmi_wakes_a_halted_processor() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::NMI);
        machine.handle().resume().unwrap();
        until("the guest is ready", || dword(&machine, COUNTER) == 1);
        machine.handle().nmi().unwrap();
        assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?}");
    }
}

#[test]
fn a_reset_from_outside_starts_the_guest_anew() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::COUNTS);
        let handle = machine.handle();
        handle.resume().unwrap();
        until("the guest counts", || dword(&machine, COUNTER) > 1000);
        handle.pause().unwrap();
        handle.reset().unwrap();
        // A paused machine stays paused, at its start.
        assert_eq!(handle.info().unwrap().state, State::Paused);
        assert_eq!(handle.info().unwrap().vcpus[0].rip, guests::START);
        let count = dword(&machine, COUNTER);
        handle.resume().unwrap();
        until("the guest counts on", || dword(&machine, COUNTER) > count);
    }
}

#[test]
fn a_vcpu_can_be_worked_on_only_while_it_stands() {
    for kind in kinds() {
        let (machine, _) = build(kind, 2, elf(guests::COUNTS)).unwrap();
        let handle = machine.handle();
        let rip = handle.on_vcpu(0, |vcpu| vcpu.state().unwrap().regs.rip).unwrap();
        assert_eq!(rip, guests::START);
        assert!(handle.on_vcpu(2, |_| ()).is_err());
        handle.resume().unwrap();
        assert!(handle.on_vcpu(0, |_| ()).is_err());
        handle.pause().unwrap();
        // Alone, the processor that waits for its start does not make the other one count,
        // not even when somebody looks at the machine.
        let count = dword(&machine, COUNTER);
        handle.resume_only(1).unwrap();
        handle.info().unwrap();
        handle.save().unwrap().unwrap();
        handle.pause().unwrap();
        assert_eq!(dword(&machine, COUNTER), count);
        handle.resume_only(0).unwrap();
        until("the guest counts on", || dword(&machine, COUNTER) > count);
    }
}

#[test]
fn a_debugger_hears_of_pauses_and_of_the_end() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::COUNTS);
        let handle = machine.handle();
        let (tx, rx) = channel();
        handle.debugger(move |stop| tx.send(stop).unwrap()).unwrap();
        handle.resume().unwrap();
        handle.info().unwrap();
        handle.save().unwrap().unwrap();
        assert!(rx.try_recv().is_err(), "that was no pause");
        handle.pause().unwrap();
        assert_eq!(rx.try_recv(), Ok(DebugStop::Paused));
        handle.pause().unwrap();
        assert!(rx.try_recv().is_err(), "it was paused already");
        handle.quit().unwrap();
        end(&machine);
        assert!(rx.recv().is_err());
    }
}

/// Everything at once, from several threads: nothing is lost, nothing hangs.
#[test]
fn many_operators_at_once() {
    for kind in kinds() {
        let (machine, _) = build(kind, 2, elf(guests::COUNTS)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let handle = machine.handle();
                scope.spawn(move || {
                    for round in 0..30 {
                        handle.resume().unwrap();
                        handle.info().unwrap();
                        if round % 5 == 0 {
                            handle.reset().unwrap();
                        }
                        handle.pause().unwrap();
                        // Others may have resumed it.
                        let _ = handle.on_vcpu(1, |vcpu| vcpu.state().map(|_| ()));
                        handle.save().unwrap().unwrap();
                    }
                });
            }
        });
        let handle = machine.handle();
        handle.quit().unwrap();
        assert_eq!(end(&machine), Ended::Quit, "{kind:?}");
    }
}
