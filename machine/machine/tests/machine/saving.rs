//! Saving in the middle of a run, and going on elsewhere.

use crate::{common::*, guests};
use machine::{
    Ended, Handle,
    engines::{self, Kind},
};

/// All that the guest has, and what of the room for more it could have.
pub fn copy_memory(from: &Handle, to: &Handle) {
    for region in from.memory().layout().regions() {
        let slot = &region.slot;
        let mut piece = vec![0; 1 << 20];
        for at in (0..slot.len).step_by(piece.len()) {
            let piece = &mut piece[..(slot.len - at).min(1 << 20) as usize];
            from.memory().read(slot.gpa + at, piece).unwrap();
            to.memory().write(slot.gpa + at, piece).unwrap();
        }
    }
}

const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyz";
/// Where the guest waits for something.
const FLAG: u64 = 0x11_0000;

/// Runs on `first` until half has been printed, then on `second`.
fn moves(first: Kind, second: Kind, khz: u32) {
    let (source, before) = build_at(first, 1, elf(guests::ALPHABET), khz).unwrap();
    source.handle().resume().unwrap();
    until("half is printed", || before.text().ends_with('m'));
    source.handle().pause().unwrap();
    let parts = source.handle().save().unwrap().unwrap();
    let uptime = source.handle().info().unwrap().uptime_ns;
    assert_eq!(machine::tsc_khz(&parts), Some(khz));
    let (target, after) = build_at(second, 1, elf(guests::POWER_OFF), khz).unwrap();
    copy_memory(&source.handle(), &target.handle());
    target.handle().restore(parts).unwrap().unwrap();
    assert_eq!(target.handle().info().unwrap().uptime_ns, uptime);
    drop(source);
    target.handle().memory().write(FLAG, &[1]).unwrap();
    target.handle().resume().unwrap();
    assert_eq!(end(&target), Ended::PoweredOff, "{first:?} to {second:?}");
    assert_eq!(before.text() + &after.text(), ALPHABET, "{first:?} to {second:?}");
}

fn khz(kind: Kind) -> u32 {
    engines::open(kind).unwrap().caps().tsc_khz
}

#[test]
fn a_restored_guest_goes_on_where_it_was() {
    for kind in kinds() {
        moves(kind, kind, khz(kind));
    }
}

#[test]
fn from_one_engine_to_another() {
    let kinds = kinds();
    for &first in &kinds {
        for &second in kinds.iter().filter(|&&second| second != first) {
            // Not every processor's TSC can run at another frequency; the translator's can.
            let khz = khz(if first == Kind::Kvm { first } else { second });
            moves(first, second, khz);
        }
    }
}

#[test]
fn there_and_back() {
    let kinds = kinds();
    let [first, second] = kinds[..] else {
        println!("skipped: there is one engine");
        return;
    };
    let khz = khz(Kind::Kvm);
    for [from, over] in [[first, second], [second, first]] {
        let (mut machine, _) = build_at(from, 1, elf(guests::COUNTS), khz).unwrap();
        machine.handle().resume().unwrap();
        let mut count = 0;
        for next in [over, from, over] {
            until("the guest counts", || dword(&machine, FLAG) > count);
            machine.handle().pause().unwrap();
            let parts = machine.handle().save().unwrap().unwrap();
            count = dword(&machine, FLAG);
            let (target, _) = build_at(next, 1, elf(guests::POWER_OFF), khz).unwrap();
            copy_memory(&machine.handle(), &target.handle());
            target.handle().restore(parts).unwrap().unwrap();
            assert_eq!(dword(&target, FLAG), count, "it waits to be resumed");
            target.handle().resume().unwrap();
            machine = target;
        }
        until("the guest counts", || dword(&machine, FLAG) > count);
    }
}

#[test]
fn saving_does_not_disturb_a_running_guest() {
    for kind in kinds() {
        let (machine, console) = machine(kind, guests::ALPHABET);
        machine.handle().resume().unwrap();
        for _ in 0..10 {
            machine.handle().save().unwrap().unwrap();
        }
        machine.handle().memory().write(FLAG, &[1]).unwrap();
        assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?}");
        assert_eq!(console.text(), ALPHABET);
    }
}

#[test]
fn parts_that_are_missing_or_too_many_are_refused() {
    for kind in kinds() {
        let (machine, _) = machine(kind, guests::COUNTS);
        let handle = machine.handle();
        let parts = handle.save().unwrap().unwrap();
        for gone in 0..parts.len() {
            let mut fewer = parts.clone();
            fewer.remove(gone);
            assert!(handle.restore(fewer).unwrap().is_err(), "part {gone}");
        }
        let mut more = parts.clone();
        more.push(parts[0].clone());
        assert!(handle.restore(more).unwrap().is_err());
        handle.restore(parts).unwrap().unwrap();
        handle.resume().unwrap();
        until("the guest counts", || dword(&machine, 0x11_0000) > 0);
    }
}
