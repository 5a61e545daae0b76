//! As an operating system and OVMF use the registers, and as nobody should.

use super::*;
use device::fake::{FakeTime, Recorder, wiring};
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const MOST: u32 = 4;
const NONE: [u32; 0] = [];

fn board(start: u32) -> (Arc<Cpus>, Arc<Recorder>) {
    let (time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
    let mut wiring = wiring(&time, &sink);
    wiring.irqs = vec![sink.clone(); 16];
    let gpe = Gpe::build(&mut wiring);
    gpe.write(gpe::BLOCK + 2, &[1 << gpe::CPUS]);
    (Cpus::build(start, MOST, gpe, &mut wiring), sink)
}

fn count(cpus: &Cpus, count: u32) -> Vec<u32> {
    let mut prepared = Vec::new();
    let done: Result<(), ()> = cpus.set_count(count, |id| {
        assert!(!cpus.is_present(id));
        prepared.push(id);
        Ok(())
    });
    done.unwrap();
    prepared
}

fn read(cpus: &Cpus, offset: u16) -> u32 {
    let mut data = [0xff; 4];
    cpus.read(PORTS + offset, &mut data);
    u32::from_le_bytes(data)
}

fn flags(cpus: &Cpus) -> u8 {
    let mut data = [0xff];
    cpus.read(PORTS + FLAGS, &mut data);
    data[0]
}

fn select(cpus: &Cpus, id: u32) {
    cpus.write(PORTS, &id.to_le_bytes());
}

fn tell(cpus: &Cpus, id: u32, event: u32, status: u32) {
    select(cpus, id);
    for (command, value) in [(command::OST_EVENT, event), (command::OST_STATUS, status)] {
        cpus.write(PORTS + COMMAND, &[command]);
        cpus.write(PORTS + DATA, &value.to_le_bytes());
    }
}

/// As the tables' code does: which CPUs are told what.
fn scan(cpus: &Cpus) -> Vec<(u32, u8)> {
    let mut told = Vec::new();
    select(cpus, 0);
    loop {
        cpus.write(PORTS + COMMAND, &[command::FIND]);
        let event = flags(cpus) & (flag::INSERTING | flag::REMOVING);
        let first = event & event.wrapping_neg();
        if first == 0 {
            return told;
        }
        told.push((read(cpus, DATA), first));
        cpus.write(PORTS + FLAGS, &[first]);
    }
}

fn present(cpus: &Cpus) -> Vec<u32> {
    (0..MOST).filter(|id| cpus.is_present(*id)).collect()
}

#[test]
fn cpus_come_and_go() {
    let (cpus, sink) = board(1);
    let ejections = Arc::new(AtomicUsize::new(0));
    let told = ejections.clone();
    cpus.on_eject(move || {
        told.fetch_add(1, SeqCst);
    });
    assert_eq!(present(&cpus), [0]);
    assert!(!sink.level());
    assert_eq!(count(&cpus, 3), [1, 2]);
    assert!(sink.level());
    assert_eq!(present(&cpus), [0, 1, 2]);
    assert_eq!(scan(&cpus), [(1, flag::INSERTING), (2, flag::INSERTING)]);
    assert!(!cpus.wait(Duration::ZERO), "the guest has not said that it has them");
    tell(&cpus, 1, 1, SUCCESS);
    tell(&cpus, 2, 1, SUCCESS);
    assert!(cpus.wait(Duration::ZERO));

    assert_eq!(count(&cpus, 1), NONE);
    assert_eq!(scan(&cpus), [(1, flag::REMOVING), (2, flag::REMOVING)]);
    assert_eq!(present(&cpus), [0, 1, 2], "the guest decides");
    tell(&cpus, 2, 3, EJECTING);
    select(&cpus, 2);
    cpus.write(PORTS + FLAGS, &[flag::EJECT]);
    assert_eq!((flags(&cpus), present(&cpus)), (0, vec![0, 1]));
    assert_eq!((cpus.take_ejected(), ejections.load(SeqCst)), (vec![2], 1));
    assert_eq!(cpus.take_ejected(), NONE);
    assert!(!cpus.wait(Duration::ZERO));
    // It says that the other one is in use.
    tell(&cpus, 1, 3, 0x82);
    assert!(cpus.wait(Duration::ZERO));
    assert_eq!(cpus.cpus()[1].refused, Some(0x82));
    // And the operator asks again.
    count(&cpus, 1);
    assert_eq!(cpus.cpus()[1].refused, None);
    assert_eq!(scan(&cpus), [(1, flag::REMOVING)]);
    assert_eq!(count(&cpus, 2), [2], "one that is about to go is not counted on");
}

#[test]
fn what_the_guest_has_not_heard_is_taken_back() {
    let (cpus, _) = board(3);
    count(&cpus, 1);
    assert_eq!(count(&cpus, 2), NONE);
    assert_eq!(scan(&cpus), [(2, flag::REMOVING)]);
    assert_eq!(count(&cpus, 1), NONE);
    assert_eq!(scan(&cpus), [(1, flag::REMOVING)]);
    assert_eq!(count(&cpus, 0), NONE, "the first one stays");
    assert_eq!(scan(&cpus), []);
}

#[test]
fn a_machine_that_cannot_prepare_a_cpu_does_not_have_it() {
    let (cpus, sink) = board(1);
    let failed = cpus.set_count(3, |id| if id == 2 { Err("no") } else { Ok(()) });
    assert_eq!((failed, present(&cpus)), (Err("no"), vec![0, 1]));
    assert!(sink.level(), "one did come");
    assert_eq!(scan(&cpus), [(1, flag::INSERTING)]);
}

#[test]
fn one_that_was_refused_unseen_is_not_counted_twice() {
    let (cpus, _) = board(3);
    count(&cpus, 2);
    // Its answer comes before it has cleared the event.
    tell(&cpus, 2, 3, 0x82);
    assert!(cpus.wait(Duration::ZERO));
    assert_eq!(count(&cpus, 4), [3]);
}

#[test]
fn one_that_came_and_was_taken_back_before_the_guest_looked_is_waited_for() {
    let (cpus, _) = board(1);
    count(&cpus, 2);
    count(&cpus, 1);
    assert_eq!(count(&cpus, 2), NONE);
    assert!(!cpus.wait(Duration::ZERO), "the guest has not seen it come");
    assert_eq!(scan(&cpus), [(1, flag::INSERTING)]);
    tell(&cpus, 1, 1, SUCCESS);
    assert!(cpus.wait(Duration::ZERO));
}

/// OVMF's search for the number of CPUs that can be there, in its `PlatformPei`.
#[test]
fn firmware_counts_them() {
    let (cpus, _) = board(2);
    select(&cpus, 0);
    select(&cpus, 0);
    cpus.write(PORTS + COMMAND, &[command::FIND]);
    assert_eq!(read(&cpus, 0), 0, "these are the registers, and no older ones");
    let (mut here, mut possible) = (0, 0);
    loop {
        here += u32::from(flags(&cpus) & flag::PRESENT);
        possible += 1;
        select(&cpus, possible);
        if read(&cpus, DATA) == 0 {
            break;
        }
    }
    assert_eq!((here, possible), (2, MOST));
}

#[test]
fn a_reset_leaves_those_from_the_start() {
    let (cpus, _) = board(2);
    count(&cpus, 4);
    select(&cpus, 1);
    cpus.write(PORTS + FLAGS, &[flag::EJECT]);
    assert_eq!(present(&cpus), [0, 2, 3]);
    cpus.reset();
    assert_eq!((present(&cpus), cpus.take_ejected()), (vec![0, 1], vec![]));
    assert_eq!(scan(&cpus), []);
    assert!(cpus.wait(Duration::ZERO));
}

fn saved(cpus: &Cpus) -> CpusState {
    let mut writer = Writer::default();
    cpus.save(&mut writer);
    Reader::new(writer.finish()).unwrap().take(0).unwrap()
}

fn restore(cpus: &Cpus, state: &CpusState) -> Result<(), Error> {
    let mut writer = Writer::default();
    writer.put(0, state);
    cpus.restore(&mut Reader::new(writer.finish()).unwrap())
}

#[test]
fn it_goes_on_elsewhere() {
    let (cpus, _) = board(1);
    count(&cpus, 3);
    select(&cpus, 2);
    cpus.write(PORTS + COMMAND, &[command::OST_EVENT]);
    let state = saved(&cpus);
    let (other, _) = board(1);
    restore(&other, &state).unwrap();
    assert_eq!((saved(&other), present(&other)), (state.clone(), vec![0, 1, 2]));
    assert_eq!(scan(&other), [(1, flag::INSERTING), (2, flag::INSERTING)]);
    let after = saved(&other);
    let mut wrong = state.clone();
    wrong.cpus.pop();
    assert!(restore(&other, &wrong).is_err());
    let mut wrong = state.clone();
    wrong.cpus[0].present = false;
    assert!(restore(&other, &wrong).is_err());
    let mut wrong = state;
    wrong.cpus[3].inserting = true;
    assert!(restore(&other, &wrong).is_err());
    assert_eq!(saved(&other), after, "what is refused changes nothing");
}

proptest! {
    /// Whatever the guest does: the first CPU stays, nothing comes by itself, what is ejected is
    /// told, and the state can be restored.
    #[test]
    fn hostile_writes(
        steps in prop::collection::vec(
            (0u16..16, prop::collection::vec(any::<u8>(), 1..5), 0u32..12), 1..200),
    ) {
        let (cpus, _) = board(2);
        let mut before = present(&cpus);
        for (offset, mut bytes, ask) in steps {
            if (1..=MOST).contains(&ask) {
                count(&cpus, ask);
                before = present(&cpus);
            }
            // Most writes select CPUs that are there.
            if offset == 0 && ask > 2 {
                bytes = vec![bytes[0] % 5, 0, 0, 0];
            }
            cpus.write(PORTS.wrapping_add(offset), &bytes);
            let mut data = [0xff; 4];
            cpus.read(PORTS.wrapping_add(offset), &mut data);
            let now = present(&cpus);
            prop_assert!(now.contains(&0));
            let gone: Vec<u32> =
                before.iter().copied().filter(|id| !now.contains(id)).collect();
            prop_assert_eq!(&cpus.take_ejected(), &gone);
            prop_assert!(now.iter().all(|id| before.contains(id)));
            before = now;
            let state = saved(&cpus);
            prop_assert!(restore(&cpus, &state).is_ok());
            prop_assert_eq!(saved(&cpus), state);
        }
        let limit = 2 * MOST as usize;
        prop_assert!(scan(&cpus).len() <= limit);
    }
}
