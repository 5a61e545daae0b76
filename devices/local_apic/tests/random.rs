//! Whatever a guest does to its APICs, they stay sound, and their state is all there is.

mod common;

use common::*;
use local_apic::Pending;
use proptest::prelude::*;
use x86_defs::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, apic_base};

#[derive(Clone, Debug)]
enum Act {
    Mmio(u64, Vec<u8>),
    Read(u64, usize),
    WriteMsr(u32, u64),
    Base(u64),
    Message(u64, u32),
    Cr8(u8),
    Take(bool),
    Wait(u64),
    Lint(usize),
}

fn act() -> impl Strategy<Value = (u32, Act)> {
    let register = (0u64..64).prop_map(|register| register << 4);
    let act = prop_oneof![
        6 => (register.clone(), any::<[u8; 4]>()).prop_map(|(r, d)| Act::Mmio(r, d.to_vec())),
        1 => (0u64..4096, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(o, d)| Act::Mmio(o, d)),
        1 => (0u64..4096, 1usize..9).prop_map(|(o, n)| Act::Read(o, n)),
        4 => (0x800u32..0x900, prop_oneof![0u64..256, any::<u64>()]).prop_map(|(i, v)| Act::WriteMsr(i, v)),
        1 => any::<u64>().prop_map(|v| Act::WriteMsr(IA32_TSC_DEADLINE, v)),
        1 => (0u64..4).prop_map(|mode| Act::Base(mode << 10)),
        4 => (0u64..256, any::<u16>()).prop_map(|(d, data)| Act::Message(d, data.into())),
        1 => any::<u8>().prop_map(Act::Cr8),
        4 => any::<bool>().prop_map(Act::Take),
        1 => (0u64..1_000_000).prop_map(Act::Wait),
        1 => (0usize..3).prop_map(Act::Lint),
    ];
    (0u32..3, act)
}

fn perform(board: &Board, id: u32, act: Act) {
    let apic = board.apic(id);
    match act {
        Act::Mmio(offset, data) => apic.mmio_write(offset, &data),
        Act::Read(offset, len) => apic.mmio_read(offset, &mut vec![0; len]),
        Act::WriteMsr(index, value) => {
            let _ = apic.wrmsr(index, value);
            let _ = apic.rdmsr(index);
        }
        Act::Base(mode) => {
            let _ = apic.wrmsr(IA32_APIC_BASE, apic_base::DEFAULT | mode);
        }
        Act::Message(dest, data) => board.msi(dest, data),
        Act::Cr8(value) => apic.set_cr8(value),
        Act::Take(pic) => {
            let what = apic.pending(pic);
            let vector = what.and_then(|what| apic.ack(what, || pic.then_some(0x20)));
            assert_eq!(what.is_some(), vector.is_some(), "what is pending can be taken");
            if what == Some(Pending::Interrupt) {
                assert!(vector >= Some(16));
            }
        }
        Act::Wait(ns) => board.time.advance(ns),
        Act::Lint(pin) => apic.pulse_lint(pin),
    }
}

proptest! {
    #[test]
    fn any_access(acts in prop::collection::vec(act(), 0..300)) {
        let board = Board::new(3);
        for (id, act) in acts {
            perform(&board, id, act);
        }
        let other = Board::fresh(3);
        other.time.advance(7);
        for (apic, copy) in board.bus.apics().iter().zip(other.bus.apics()) {
            let mut saved = apic.save();
            copy.restore(&saved).unwrap();
            let mut again = copy.save();
            // Deadlines are of the TSC, which the other board runs at another time.
            saved.apic.regs[0x39] = 0;
            again.apic.regs[0x39] = 0;
            prop_assert_eq!(again, saved);
            prop_assert_eq!(copy.pending(false), apic.pending(false));
        }
        use device::Device;
        board.bus.reset();
        for apic in board.bus.apics() {
            let reset = vcpu_state::ApicState::reset(apic.id());
            prop_assert_eq!(apic.save().apic, reset);
            prop_assert_eq!(apic.pending(false), None);
        }
        prop_assert_eq!(board.time.next(), None);
    }
}

/// Posts from several threads while the vCPU takes: none is lost.
#[test]
fn posts_race_with_acknowledgements() {
    let board = Board::new(1);
    let apic = board.apic(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u32)
            .map(|thread| {
                let board = &board;
                scope.spawn(move || {
                    for round in 0..2000 {
                        board.msi(0, 0x40 + thread * 0x20 + round % 0x20);
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            // Not `take`: between its two questions another thread may post.
            let taken = apic.pending(false).and_then(|what| apic.ack(what, || None));
            if let Some(vector) = taken {
                assert!((0x40..0xc0).contains(&vector));
                put(apic, EOI, 0);
            }
        }
    });
    while take(apic).is_some() {
        put(apic, EOI, 0);
    }
    assert!((0..8).all(|word| get(apic, 0x200 + word * 16) == 0), "the IRR is empty");
}
