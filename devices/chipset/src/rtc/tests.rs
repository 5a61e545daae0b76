use super::{regs::NS, *};
use device::fake::{FakeTime, Recorder, wiring};

/// Tuesday, 14 November 2023, 22:13:20.
const EPOCH: u64 = 1_700_000_000 * NS;

fn board() -> (Arc<Rtc>, FakeTime, Arc<Recorder>) {
    let (mut time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
    time.epoch_ns = EPOCH;
    let mut wiring = wiring(&time, &sink);
    wiring.irqs = vec![sink.clone(); 16];
    let config = Config { memory_low: 3 << 30, memory_high: 5 << 30, ..Config::default() };
    let outputs = Outputs { irq: wiring.irq(8), alarm: Arc::new(device::NoLine) };
    (Rtc::build(&config, outputs, &mut wiring), time, sink)
}

fn get(rtc: &Rtc, index: usize) -> u8 {
    rtc.write_byte(0x70, index as u8);
    rtc.read_byte(0x71).unwrap()
}

fn put(rtc: &Rtc, index: usize, value: u8) {
    rtc.write_byte(0x70, index as u8);
    rtc.write_byte(0x71, value);
}

fn time(rtc: &Rtc) -> [u8; 8] {
    [9, 0x32, 8, 7, 6, 4, 2, 0].map(|index| get(rtc, index))
}

#[test]
fn tells_the_time_in_each_format() {
    let (rtc, clock, _) = board();
    assert_eq!(time(&rtc), [0x23, 0x20, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    put(&rtc, reg::B, b::BINARY);
    clock.advance(60 * NS);
    assert_eq!(time(&rtc), [23, 20, 11, 14, 3, 0x80 | 10, 14, 20]);
    assert_eq!(get(&rtc, reg::D), VALID);
}

#[test]
fn is_set_with_updates_halted() {
    let (rtc, clock, _) = board();
    put(&rtc, reg::B, b::SET | b::HOURS_24);
    let writes = [(9, 0x99), (0x32, 0x19), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)];
    for (index, value) in writes {
        put(&rtc, index, value);
    }
    clock.advance(10 * NS);
    assert_eq!(get(&rtc, 0), 0x58, "halted");
    put(&rtc, reg::B, b::HOURS_24);
    clock.advance(2 * NS);
    assert_eq!(time(&rtc), [0x00, 0x20, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn update_in_progress() {
    let (rtc, clock, _) = board();
    assert_eq!(get(&rtc, reg::A), 0x26);
    clock.advance(NS - 100_000);
    assert_eq!(get(&rtc, reg::A), 0xa6);
}

#[test]
fn periodic_interrupts_come_at_the_rate_and_wait_for_a_read() {
    let (rtc, clock, line) = board();
    put(&rtc, reg::B, c::PERIODIC | b::HOURS_24);
    assert_eq!(get(&rtc, reg::C), 0);
    let mut count = 0;
    for _ in 0..2048 {
        clock.advance(NS / 2048);
        if line.level() {
            assert_eq!(get(&rtc, reg::C) & (c::IRQ | c::PERIODIC), c::IRQ | c::PERIODIC);
            count += 1;
        }
    }
    assert!((1022..=1025).contains(&count), "{count} in a second at 1024 Hz");
    clock.advance(NS);
    assert_eq!(line.take_edges(), count + 1, "unread, it stays high");
}

#[test]
fn update_ended_and_alarm() {
    let (rtc, clock, line) = board();
    put(&rtc, reg::B, c::UPDATE | b::HOURS_24);
    clock.advance(NS);
    assert!(line.level());
    assert_eq!(get(&rtc, reg::C), c::IRQ | c::UPDATE | c::PERIODIC);
    assert!(!line.level());
    // At 22:14:00, each hour.
    put(&rtc, reg::SECOND_ALARM, 0);
    put(&rtc, reg::MINUTE_ALARM, 0x14);
    put(&rtc, reg::HOUR_ALARM, 0xff);
    put(&rtc, reg::B, c::ALARM | b::HOURS_24);
    clock.advance(38 * NS);
    assert!(!line.level());
    clock.advance(NS);
    assert!(line.level());
    assert_eq!(get(&rtc, reg::C) & c::ALARM, c::ALARM);
    clock.advance(3599 * NS);
    assert!(!line.level());
    clock.advance(NS);
    assert!(line.level());
}

#[test]
fn memory_sizes_ram_and_nmi_mask() {
    let (rtc, ..) = board();
    assert_eq!((get(&rtc, 0x15), get(&rtc, 0x16)), (0x80, 0x02));
    assert_eq!((get(&rtc, 0x34), get(&rtc, 0x35)), (0x00, 0xbf));
    assert_eq!((get(&rtc, 0x5b), get(&rtc, 0x5c), get(&rtc, 0x5d)), (0, 0x40, 1));
    put(&rtc, 0x40, 0x5a);
    rtc.reset();
    assert_eq!(get(&rtc, 0x40), 0x5a, "the battery keeps it");
    rtc.write_byte(0x70, 0x8f);
    assert!(rtc.nmi_masked());
}
