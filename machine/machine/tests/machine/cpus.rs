//! CPUs that come and go.

use crate::{common::*, guests, saving::copy_memory};
use machine::{Activity, CpusAnswer, CpusInfo, Ended, Machine, engines};
use saved_state::Reader;
use std::sync::Arc;
use vcpu_state::VcpuState;
use vm_spec::VmSpec;

/// What the guest counts: starts of CPU 1, what that does, and what the first one does.
const STARTS: u64 = 0x2_1000;
const SECOND: u64 = 0x2_1004;
const FIRST: u64 = 0x2_1008;

fn build(kind: engines::Kind, khz: u32, code: &[u8]) -> Machine {
    let spec = VmSpec { cpus_max: Some(3), ..spec(kind) };
    assert_eq!(spec.validate(), Ok(()));
    let engine = engines::open(kind).unwrap();
    let console = Arc::new(Console::default());
    Machine::build_at(&*engine, &spec, parts(elf(code), &console), khz).unwrap()
}

#[track_caller]
fn set(machine: &Machine, count: u32) -> CpusInfo {
    match machine.handle().set_cpus(count) {
        Ok(CpusAnswer::Answered(info)) => info,
        other => panic!("{other:?}"),
    }
}

/// CPU 1 comes while the guest stands still, and is as after power-on.
#[track_caller]
fn comes(machine: &Machine) {
    let handle = machine.handle();
    handle.pause().unwrap();
    let Ok(CpusAnswer::Silent(info)) = handle.set_cpus(2) else { panic!("it answered") };
    assert_eq!((info.present(), info.cpus[1].1), (2, Activity::Off));
    let mut reader = Reader::new(handle.save().unwrap().unwrap()).unwrap();
    let state = VcpuState::restore(1, &mut reader).unwrap();
    let reset = VcpuState::reset(1);
    assert_eq!((state.mp, state.events, state.regs), (reset.mp, reset.events, reset.regs));
    handle.resume().unwrap();
}

/// The guest goes on: both of its CPUs, or the first only.
#[track_caller]
fn goes_on(machine: &Machine, second: bool) {
    let first = dword(machine, FIRST);
    until("the first CPU works", || dword(machine, FIRST) > first + 100);
    let counted = dword(machine, SECOND);
    if second {
        until("the second CPU works", || dword(machine, SECOND) > counted);
    } else {
        let first = dword(machine, FIRST);
        until("the first CPU works", || dword(machine, FIRST) > first + 100);
        assert_eq!(dword(machine, SECOND), counted, "a CPU that is not there works");
    }
}

/// To another machine in the middle of its run.
fn moved(machine: Machine, to: engines::Kind, khz: u32) -> Machine {
    machine.handle().pause().unwrap();
    let parts = machine.handle().save().unwrap().unwrap();
    let target = build(to, khz, guests::HOT_CPU);
    copy_memory(&machine.handle(), &target.handle());
    target.handle().restore(parts).unwrap().unwrap();
    let (was, is) = (machine.handle().cpus_info().unwrap(), target.handle().cpus_info().unwrap());
    assert_eq!(was, is);
    drop(machine);
    target.handle().resume().unwrap();
    target
}

#[test]
fn cpus_come_and_go_and_move() {
    let kinds = kinds();
    for &kind in &kinds {
        for &other in &kinds {
            let of = if kind == engines::Kind::Kvm { kind } else { other };
            let khz = engines::open(of).unwrap().caps().tsc_khz;
            let machine = build(kind, khz, guests::HOT_CPU);
            machine.handle().resume().unwrap();
            goes_on(&machine, false);
            assert_eq!(dword(&machine, STARTS), 0, "INIT and SIPI reach nobody who is not there");

            comes(&machine);
            until("the CPU starts", || dword(&machine, STARTS) > 0);
            goes_on(&machine, true);
            assert_eq!(dword(&machine, STARTS), 1, "what came before is forgotten");
            let info = machine.handle().cpus_info().unwrap();
            assert_eq!(info.cpus[1].1, Activity::Runs, "{info}");

            let machine = moved(machine, other, khz);
            goes_on(&machine, true);
            assert_eq!(set(&machine, 1).present(), 1);
            goes_on(&machine, false);
            let machine = moved(machine, kind, khz);
            goes_on(&machine, false);

            // It starts from the beginning.
            comes(&machine);
            until("the CPU starts again", || dword(&machine, STARTS) > 1);
            goes_on(&machine, true);
            assert_eq!(dword(&machine, STARTS), 2);
            machine.handle().reset().unwrap();
            assert_eq!(machine.handle().cpus_info().unwrap().present(), 1);
            goes_on(&machine, false);
        }
    }
}

#[test]
fn a_guest_that_does_not_listen_is_told_of() {
    for kind in kinds() {
        let khz = engines::open(kind).unwrap().caps().tsc_khz;
        let machine = build(kind, khz, guests::COUNTS);
        let handle = machine.handle();
        handle.resume().unwrap();
        let Ok(CpusAnswer::Silent(info)) = handle.set_cpus(3) else { panic!("it answered") };
        assert!(info.to_string().contains("has not looked"), "{info}");
        assert_eq!(handle.set_cpus(0), Ok(CpusAnswer::Range(3)));
        assert_eq!(handle.set_cpus(4), Ok(CpusAnswer::Range(3)));
        handle.quit().unwrap();
        assert_eq!(end(&machine), Ended::Quit);
        assert!(handle.set_cpus(2).is_err());
    }
}

#[test]
fn a_machine_without_room_for_more_has_what_it_has() {
    for kind in kinds() {
        let (machine, _) = build_of(kind, 2);
        assert_eq!(machine.handle().set_cpus(1), Ok(CpusAnswer::Fixed));
        assert_eq!(machine.handle().cpus_info().unwrap().present(), 2);
    }
}

fn build_of(kind: engines::Kind, cpus: u32) -> (Machine, Arc<Console>) {
    crate::common::build(kind, cpus, elf(guests::COUNTS)).unwrap()
}

/// The TSCs of the first two, at one instant.
fn tscs(machine: &Machine) -> [u64; 2] {
    let mut reader = Reader::new(machine.handle().save().unwrap().unwrap()).unwrap();
    [0, 1].map(|id| VcpuState::restore(id, &mut reader).unwrap().tsc.value)
}

/// What the clocks of CPUs may differ by where the kernel has no exact means.
const APART_MS: u64 = 20;

#[test]
fn a_cpu_that_came_has_the_time_of_the_others() {
    for kind in kinds() {
        let khz = engines::open(kind).unwrap().caps().tsc_khz;
        let machine = build(kind, khz, guests::HOT_CPU);
        let handle = machine.handle();
        let together = |when: &str| {
            handle.pause().unwrap();
            let [first, second] = tscs(&machine);
            let apart = first.abs_diff(second) / khz as u64;
            assert!(apart < APART_MS, "{kind:?}, {when}: {first} and {second}, {apart} ms apart");
        };
        let rest = || std::thread::sleep(std::time::Duration::from_millis(5 * APART_MS));
        handle.resume().unwrap();
        rest();
        for round in ["when it first came", "when it came again"] {
            // While time stands, and has stood for a while.
            handle.pause().unwrap();
            rest();
            comes(&machine);
            until("the CPU starts", || dword(&machine, STARTS) > 0);
            together(round);
            // The time that passes now passes for none of them.
            rest();
            handle.resume().unwrap();
            goes_on(&machine, true);
            together("after a rest");
            handle.resume().unwrap();
            assert_eq!(set(&machine, 1).present(), 1);
        }
    }
}
