//! How machines end, and kernels that are none.

use crate::{common::*, guests};
use machine::{Ended, Error};

#[test]
fn a_guest_ends_its_machine() {
    for kind in kinds() {
        for (code, ended) in [
            (guests::POWER_OFF, Ended::PoweredOff),
            (guests::PANIC, Ended::GuestPanicked),
            (guests::DEBUG_EXIT, Ended::DebugExit(77)),
        ] {
            let (machine, _) = machine(kind, code);
            machine.handle().resume().unwrap();
            assert_eq!(end(&machine), ended, "{kind:?}");
            assert!(machine.handle().pause().is_err(), "nobody is there to ask");
        }
    }
}

#[test]
fn a_reset_starts_the_guest_anew() {
    for kind in kinds() {
        let (machine, console) = machine(kind, guests::RESETS);
        machine.handle().resume().unwrap();
        assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?}");
        // The guest's data are those of the file each time.
        assert_eq!(console.text(), "AAA", "{kind:?}");
    }
}

#[test]
fn a_triple_fault_shows_registers_code_and_stack() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::TRIPLE_FAULT);
        machine.handle().resume().unwrap();
        let Ended::TripleFault(text) = end(&machine) else { panic!("{kind:?}") };
        for part in ["vcpu 0: rip 00000000001000", "rax 0000000012345678", "code", "stack"] {
            assert!(text.contains(part), "{kind:?}: {part} is not in\n{text}");
        }
    }
}

#[test]
fn processors_start_by_init_and_sipi() {
    for kind in kinds() {
        for cpus in [1u32, 2, 4] {
            let mut code = guests::SMP.to_vec();
            let at = code.len() - 4;
            code[at..].copy_from_slice(&(cpus - 1).to_le_bytes());
            let (machine, _) = build(kind, cpus, elf(&code)).unwrap();
            machine.handle().resume().unwrap();
            assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?}, {cpus} vCPUs");
            assert!(machine.handle().info().is_err());
        }
    }
}

#[test]
fn what_is_no_kernel_is_refused_in_one_line() {
    let good = elf(guests::POWER_OFF);
    let mut other = good.clone();
    other[18] = 183;
    let mut high = good.clone();
    high[64 + 24..64 + 32].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let kernels = [
        ("empty", Vec::new()),
        ("text", b"#!/bin/sh\n".to_vec()),
        ("truncated", good[..100].to_vec()),
        ("without its code", good[..124].to_vec()),
        ("of another architecture", other),
        ("beyond memory", high),
    ];
    for kind in kinds() {
        for (what, kernel) in &kernels {
            let Err(error) = build(kind, 1, kernel.clone()) else { panic!("{what} was accepted") };
            assert!(matches!(error, Error::Boot(_)), "{what}: {error:?}");
            assert_eq!(error.line().lines().count(), 1, "{what}");
        }
    }
}

#[test]
fn more_vcpus_than_the_engine_runs_are_refused() {
    for kind in kinds() {
        let error = build(kind, 100_000, elf(guests::POWER_OFF)).unwrap_err();
        assert!(matches!(error, Error::TooManyVcpus { asked: 100_000, .. }), "{kind:?}: {error:?}");
    }
}

#[test]
fn dropping_a_machine_ends_it_whatever_it_does() {
    for kind in kinds() {
        let (paused, _) = machine(kind, guests::COUNTS);
        drop(paused);
        let (running, _) = machine(kind, guests::COUNTS);
        let handle = running.handle();
        handle.resume().unwrap();
        drop(running);
        assert!(handle.info().is_err());
        assert!(handle.resume().is_err() && handle.save().is_err() && handle.reset().is_err());
    }
}
