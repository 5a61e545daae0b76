use super::*;
use device::fake::{FakeTime, Recorder, wiring};

fn board() -> (Arc<Pit>, FakeTime, Arc<Recorder>) {
    let (time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
    let mut wiring = wiring(&time, &sink);
    wiring.irqs = vec![sink.clone(); 16];
    (Pit::build(wiring.irq(0), &mut wiring), time, sink)
}

fn program(pit: &Pit, control: u8, count: u16) {
    let port = 0x40 + u16::from(control >> 6);
    pit.write_byte(0x43, control);
    let [low, high] = count.to_le_bytes();
    pit.write_byte(port, low);
    pit.write_byte(port, high);
}

#[test]
fn a_hundred_ticks_a_second() {
    let (pit, time, irq) = board();
    program(&pit, 0x34, 11_932);
    for _ in 0..1000 {
        time.advance(NS / 1000);
    }
    assert!((99..=100).contains(&irq.take_edges()));
    program(&pit, 0x30, 1193);
    time.advance(NS);
    assert_eq!(irq.take_edges(), 1, "one shot");
    assert_eq!(time.next(), None);
}

/// A host that was late: [`FakeTime`] would call in time, so the device is looked at late.
#[test]
fn missed_ticks_are_made_up_for_and_bounded() {
    let (pit, time, irq) = board();
    program(&pit, 0x34, 11_932);
    lock(&pit.regs).look(pit.tick() + 5 * 11_932);
    assert_eq!(lock(&pit.regs).backlog, 5);
    pit.fire();
    time.advance(NS / 40);
    assert!(irq.take_edges() >= 5);
    lock(&pit.regs).look(u64::MAX / 2);
    assert_eq!(lock(&pit.regs).backlog, BACKLOG);
}

#[test]
fn the_shortest_period_does_not_drown_the_host() {
    let (pit, time, irq) = board();
    program(&pit, 0x34, 1);
    time.advance(NS / 10);
    assert!((1..=2001).contains(&irq.take_edges()));
}

#[test]
fn counter_2_as_linux_calibrates_by_it() {
    let (pit, time, _) = board();
    pit.write_byte(0x61, 1);
    program(&pit, 0xb0, 59_659);
    assert_eq!(pit.read_byte(0x61).unwrap() & 0x21, 1);
    time.advance(49_999_000);
    assert_eq!(pit.read_byte(0x61).unwrap() & 0x20, 0);
    time.advance(2_000);
    assert_eq!(pit.read_byte(0x61).unwrap() & 0x20, 0x20);
    let before = pit.read_byte(0x61).unwrap() & 0x10;
    time.advance(REFRESH_NS);
    assert_ne!(pit.read_byte(0x61).unwrap() & 0x10, before);
}

#[test]
fn read_back_latches_several_counters() {
    let (pit, time, _) = board();
    program(&pit, 0x34, 1000);
    program(&pit, 0x74, 2000);
    pit.write_byte(0x43, 0xc6);
    time.advance(NS);
    assert_eq!(pit.read_byte(0x40), Some(0xb4));
    assert_eq!((pit.read_byte(0x40), pit.read_byte(0x40)), (Some(0xe8), Some(3)));
    assert_eq!(pit.read_byte(0x41), Some(0xb4));
    assert_eq!((pit.read_byte(0x41), pit.read_byte(0x41)), (Some(0xd0), Some(7)));
    assert_eq!(pit.read_byte(0x43), None);
}
