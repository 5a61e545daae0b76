use super::*;
use device::fake::{self, FakeTime, Recorder};
use device::{Line, MmioBus};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

struct Board {
    wiring: Wiring,
    time: FakeTime,
    lines: Vec<Arc<Recorder>>,
    gates: [Arc<Gate>; 2],
}

impl Board {
    fn new() -> Self {
        let (time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
        let mut wiring = fake::wiring(&time, &sink);
        let lines: Vec<_> = (0..24).map(|_| Arc::new(Recorder::default())).collect();
        let shared = |pin: &Arc<Recorder>| crate::lines::SharedLine::new(vec![pin.clone()]);
        wiring.irqs = lines.iter().map(|pin| shared(pin) as LineRef).collect();
        let gates = [0, 8].map(|irq| Gate::new(wiring.irq(irq)));
        Hpet::build(gates.clone(), &mut wiring);
        Self { wiring, time, lines, gates }
    }

    fn bus(&self) -> &MmioBus {
        &self.wiring.mmio
    }

    fn get(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.bus().read(ADDRESS + offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u64) {
        self.bus().write(ADDRESS + offset, &value.to_le_bytes());
    }

    fn set_half(&self, offset: u64, value: u32) {
        self.bus().write(ADDRESS + offset, &value.to_le_bytes());
    }

    fn edges(&self, gsi: usize) -> usize {
        self.lines[gsi].take_edges()
    }
}

#[test]
fn it_says_what_it_is_and_counts_while_it_is_on() {
    let board = Board::new();
    assert_eq!(board.get(0), 10_000_000 << 32 | 0x8086_a201);
    assert_eq!(board.get(0x100), 0x00f0_0800 << 32 | 0x30);
    board.time.advance(1000);
    assert_eq!(board.get(0xf0), 0);
    board.set(0x10, 1);
    board.time.advance(1000);
    assert_eq!(board.get(0xf0), 100);
    board.set(0x10, 0);
    board.time.advance(1000);
    assert_eq!(board.get(0xf0), 100);
    board.set(0xf0, 7);
    board.set_half(0xf4, 1);
    board.set(0x10, 1);
    board.time.advance(20);
    assert_eq!(board.get(0xf0), 0x1_0000_0009);
    let mut half = [0; 4];
    board.bus().read(ADDRESS + 0xf4, &mut half);
    assert_eq!(half, [1, 0, 0, 0]);
}

#[test]
fn one_shot_fires_once_at_its_pin() {
    let board = Board::new();
    board.set(0x10, 1);
    // Timer 1, edges, to pin 20.
    board.set(0x120, 20 << 9 | 1 << 2);
    board.set(0x128, 100_000);
    board.time.advance(999_999);
    assert_eq!(board.edges(20), 0);
    board.time.advance(1);
    assert_eq!(board.edges(20), 1);
    board.time.advance(10_000_000_000);
    assert_eq!(board.edges(20), 0);
    // What has passed comes round in 32 bits.
    board.set(0x120, 20 << 9 | 1 << 2 | 1 << 8);
    board.set(0x128, board.get(0xf0) - 1000);
    board.time.advance((1 << 32) * 10 - 10_001);
    assert_eq!(board.edges(20), 0);
    board.time.advance(1);
    assert_eq!(board.edges(20), 1);
    // To a pin that is not offered: nowhere, and that is what is read.
    board.set(0x120, 3 << 9 | 1 << 2);
    assert_eq!(board.get(0x120) as u32, 1 << 2 | 0x30);
    board.set(0x128, board.get(0xf0) + 10);
    board.time.advance(1000);
    assert!(board.lines.iter().all(|line| line.take_edges() == 0));
}

#[test]
fn periodic_as_linux_sets_it() {
    let board = Board::new();
    board.set_half(0x10, 3);
    board.set_half(0x100, 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8);
    board.set_half(0x108, 400_000);
    board.set_half(0x108, 400_000);
    board.time.advance(40_000_000);
    assert_eq!(board.edges(0), 10, "at the place of the PIT");
    assert_eq!(board.get(0x108), 11 * 400_000);
    // However short, it does not keep the host busy.
    board.set_half(0x108, 1);
    board.time.advance(10_000_000);
    assert!((1..300).contains(&board.edges(0)));
    board.set_half(0x100, 0);
    board.time.advance(10_000_000);
    assert_eq!(board.edges(0), 0);
}

/// A clock on which time passes from one look to the next.
#[derive(Debug, Default)]
struct Passing(AtomicU64);

impl Clock for Passing {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(TICK_NS, SeqCst)
    }
    fn realtime_ns(&self) -> u64 {
        0
    }
}

#[test]
fn a_match_is_before_a_write_or_after_it_and_never_lost() {
    for start in 0..20 {
        let (time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
        let mut wiring = fake::wiring(&time, &sink);
        let clock = Arc::new(Passing::default());
        wiring.clock = clock.clone();
        let line = Arc::new(Recorder::default());
        wiring.irqs = (0..24).map(|_| line.clone() as LineRef).collect();
        let gates = [0, 8].map(|irq| Gate::new(wiring.irq(irq)));
        Hpet::build(gates, &mut wiring);
        let set = |at: u64, value: u64| wiring.mmio.write(ADDRESS + at, &value.to_le_bytes());
        set(0x100, 20 << 9 | 1 << 2);
        set(0x108, 100);
        set(0x10, 1);
        clock.0.fetch_add((80 + start) * TICK_NS, SeqCst);
        set(0x10, 0);
        let mut data = [0; 8];
        wiring.mmio.read(ADDRESS + 0xf0, &mut data);
        let counter = u64::from_le_bytes(data);
        assert_eq!(line.take_edges() == 1, counter >= 100, "it stopped at {counter}");
    }
}

#[test]
fn levels_stay_until_they_are_acknowledged() {
    let board = Board::new();
    board.set(0x10, 1);
    board.set(0x140, 11 << 9 | 1 << 2 | 1 << 1);
    board.set(0x148, 1000);
    board.time.advance(10_000);
    assert!(board.lines[11].level());
    assert_eq!(board.get(0x20), 4);
    board.set(0x20, 3);
    assert!(board.lines[11].level());
    board.set(0x20, 4);
    assert!(!board.lines[11].level());
}

#[test]
fn the_pit_and_the_rtc_are_replaced() {
    let board = Board::new();
    board.gates[0].pulse();
    assert_eq!(board.edges(0), 1);
    board.set(0x10, 3);
    board.gates[0].pulse();
    board.gates[1].set(true);
    assert_eq!((board.edges(0), board.lines[8].level()), (0, false));
    board.set(0x120, 1 << 2);
    board.set(0x128, board.get(0xf0) + 100);
    board.time.advance(1000);
    assert_eq!(board.edges(8), 1);
    board.wiring.devices.iter().for_each(|device| device.reset());
    assert!(board.lines[8].level(), "the RTC's again");
}

#[test]
fn a_saved_timer_fires_elsewhere() {
    let board = Board::new();
    board.set(0x10, 3);
    board.set(0x100, 1 << 2 | 1 << 3 | 1 << 6);
    board.set(0x108, 1000);
    board.time.advance(15_000);
    assert_eq!(board.edges(0), 1);
    let parts = fake::save(&board.wiring);
    let other = Board::new();
    other.time.advance(15_000);
    fake::restore(&other.wiring, &parts).unwrap();
    assert_eq!(fake::save(&other.wiring), parts);
    assert_eq!((other.edges(0), other.get(0xf0)), (0, 1500));
    other.gates[0].pulse();
    assert_eq!(other.edges(0), 0, "still replaced");
    other.time.advance(100_000);
    assert!(other.edges(0) > 0);
    let state = || Regs::default().save();
    for break_it in [
        (|s: &mut HpetState| s.config = 4) as fn(&mut HpetState),
        |s| s.status = 8,
        |s| s.timers.truncate(2),
        |s| s.timers[1].config = 1,
        |s| s.timers[0].due = Some(7),
    ] {
        let mut broken = state();
        assert!(Regs::restored(&broken).is_some());
        break_it(&mut broken);
        assert!(Regs::restored(&broken).is_none());
    }
}

proptest! {
    #[test]
    fn any_access_is_survived(
        steps in prop::collection::vec(
            (0u64..0x400, prop_oneof![any::<u64>(), 0u64..100], 0usize..4, 0u64..1_000_000), 0..60),
    ) {
        let board = Board::new();
        for (offset, value, kind, time) in steps {
            let len = [1, 4, 8, 8][kind];
            let at = offset / len * len;
            if kind == 2 {
                board.bus().read(ADDRESS + at, &mut [0; 8]);
            } else {
                board.bus().write(ADDRESS + at, &value.to_le_bytes()[..len as usize]);
            }
            board.time.advance(time);
        }
        let parts = fake::save(&board.wiring);
        let other = Board::new();
        fake::restore(&other.wiring, &parts).unwrap();
        prop_assert_eq!(fake::save(&other.wiring), parts);
        other.wiring.devices.iter().for_each(|device| device.reset());
        prop_assert_eq!(other.get(0xf0), 0);
    }
}
