use super::*;

fn counter(control: u8, count: u16) -> Counter {
    let mut counter = Counter::new(true);
    counter.program(control);
    let [low, high] = count.to_le_bytes();
    counter.write(low, 0);
    counter.write(high, 0);
    counter
}

fn read(counter: &mut Counter, now: u64) -> u16 {
    u16::from_le_bytes([counter.read(now), counter.read(now)])
}

#[test]
fn mode_0_rises_once_and_wraps() {
    let mut c = counter(0x30, 1000);
    assert_eq!((read(&mut c, 1), c.output(999), c.output(1000)), (999, false, true));
    assert_eq!(read(&mut c, 1001), 0xffff);
    assert_eq!((c.next_rise(0), c.next_rise(1000)), (Some(1000), None));
    c.set_gate(false, 400);
    assert_eq!(read(&mut c, 900), 600, "the gate holds it");
    c.set_gate(true, 900);
    assert_eq!(read(&mut c, 1000), 500);
    c.write(0, 1000);
    assert_eq!(c.run, Run::Idle, "the first byte stops it");
}

#[test]
fn mode_1_needs_a_trigger() {
    let mut c = counter(0x32, 10);
    assert!(c.output(100));
    c.set_gate(false, 100);
    c.set_gate(true, 200);
    assert_eq!((c.output(205), c.output(210), c.next_rise(200)), (false, true, Some(210)));
    c.set_gate(false, 205);
    c.set_gate(true, 206);
    assert_eq!((c.output(215), c.output(216)), (false, true), "retriggered");
}

#[test]
fn mode_2_is_a_rate_and_takes_a_new_count_at_the_end_of_a_period() {
    let mut c = counter(0x34, 10);
    assert_eq!((read(&mut c, 0), read(&mut c, 9), read(&mut c, 10)), (10, 1, 10));
    assert_eq!((c.output(8), c.output(9), c.output(10)), (true, false, true));
    assert_eq!((c.next_rise(0), c.next_rise(10)), (Some(10), Some(20)));
    assert_eq!((c.rises_between(0, 9), c.rises_between(0, 35)), (0, 3));
    c.write(4, 12);
    c.write(0, 12);
    c.settle(19);
    assert_eq!(c.count, 10);
    c.settle(20);
    assert_eq!((c.count, c.next_rise(20)), (4, Some(24)));
}

#[test]
fn mode_3_is_square() {
    let mut c = counter(0x36, 9);
    assert_eq!((c.output(4), c.output(5), c.output(9)), (true, false, true));
    assert_eq!(c.next_rise(0), Some(9));
    c.set_gate(false, 5);
    assert!(c.output(5));
    c.set_gate(true, 50);
    assert_eq!(c.next_rise(50), Some(59), "the gate restarts it");
}

#[test]
fn strobes() {
    let c = counter(0x38, 10);
    assert_eq!((c.output(9), c.output(10), c.output(11)), (true, false, true));
    let mut c = counter(0x3a, 10);
    assert!(c.output(10));
    c.set_gate(false, 1);
    c.set_gate(true, 20);
    assert_eq!((c.output(30), c.output(31)), (false, true));
}

#[test]
fn bcd_and_zero() {
    let mut c = counter(0x31, 0x1000);
    assert_eq!((c.count, read(&mut c, 1)), (1000, 0x0999));
    assert_eq!(counter(0x31, 0).count, 10_000);
    assert_eq!(counter(0x30, 0).count, 0x1_0000);
    assert_eq!(counter(0x31, 0xffff).count, 16_665, "digits above nine");
}

#[test]
fn latches_and_status() {
    let mut c = counter(0x34, 1000);
    c.latch_count(100);
    c.latch_status(100);
    assert_eq!(c.read(500), 0x80 | 0x34, "status first");
    assert_eq!(read(&mut c, 500), 900);
    assert_eq!(read(&mut c, 500), 500);
    let mut idle = Counter::new(true);
    idle.program(0x12);
    idle.latch_status(0);
    assert_eq!(idle.read(0), 0xc0 | 0x12, "null count");
    idle.write(7, 0);
    assert_eq!(idle.next, Some(7), "low byte only");
}
