//! Whether time goes on as it should, wherever the guest is moved to: the TSC and the HPET never
//! back, and each of the clocks by as much as the next.

use crate::{
    cpu,
    hardware::{in32, load, rdtsc, store},
    numbers::{Dec, Hex},
};

const ACPI_TIMER: u16 = 0x608;
const ACPI_HZ: u64 = 3_579_545;
const HPET: u64 = 0xfed0_0000;
const HPET_CONFIGURATION: u64 = 0x10;
const HPET_COUNTER: u64 = 0xf0;
const FEMTOSECONDS: u64 = 1_000_000_000_000_000;
/// Milliseconds that two clocks may differ by.
const SLACK: u64 = 20;

#[derive(Clone, Copy)]
struct Clock {
    name: &'static str,
    read: fn() -> u64,
    hz: u64,
    mask: u64,
}

/// A clock that is compared with another one.
struct Pair {
    clock: Clock,
    other: Clock,
    first: [u64; 2],
    /// It may fall behind the other.
    may_lose: bool,
}

impl Pair {
    fn new(clock: Clock, other: Clock, may_lose: bool) -> Self {
        Self { clock, other, first: [(clock.read)(), (other.read)()], may_lose }
    }

    /// It is read between two looks at the other, so that it does not matter how long the host lets
    /// the guest wait there.
    fn check(&self) {
        let Self { clock, other, first: [first, others], may_lose } = *self;
        let before = (other.read)();
        let value = (clock.read)();
        let after = (other.read)();
        let ticks = |now: u64| {
            let passed = u128::from(now.wrapping_sub(others) & other.mask);
            (passed * u128::from(clock.hz) / u128::from(other.hz)) as u64
        };
        let slack = clock.hz * SLACK / 1000;
        // A clock that may lose has any time that the other has had.
        let least = if may_lose { 0 } else { ticks(before) }.wrapping_sub(slack);
        let ahead = value.wrapping_sub(first).wrapping_sub(least) & clock.mask;
        if ahead > ticks(after).wrapping_sub(least) + slack {
            let (off, hz) = (Hex(ahead.wrapping_sub(slack)), Dec(clock.hz));
            panic!("{} is off by {off} ticks of {hz} Hz from {}", clock.name, other.name);
        }
    }
}

pub struct Clocks {
    pairs: [Pair; 2],
    last: [u64; 2],
}

impl Clocks {
    /// With `loose`, the TSC may jump ahead: some hosts cannot hold it.
    pub fn start(loose: bool) -> Self {
        let period = load::<u32>(HPET + 4);
        store(HPET + HPET_CONFIGURATION, load::<u32>(HPET + HPET_CONFIGURATION) | 1);
        let tsc_hz = u64::from(cpu::tsc_khz()) * 1000;
        assert!(tsc_hz > 0, "nobody tells the frequency of the TSC");
        let clock = |name, read, hz, mask| Clock { name, read, hz, mask };
        let tsc = clock("the TSC", rdtsc, tsc_hz, u64::MAX);
        let hz = FEMTOSECONDS / u64::from(period.max(1));
        let hpet = clock("the HPET", || load(HPET + HPET_COUNTER), hz, u64::MAX);
        let acpi = clock("the ACPI timer", || in32(ACPI_TIMER).into(), ACPI_HZ, u32::MAX.into());
        let pairs = [Pair::new(hpet, tsc, loose), Pair::new(acpi, hpet, false)];
        Self { pairs, last: [0; 2] }
    }

    pub fn check(&mut self) {
        for (pair, last) in self.pairs.iter().zip(&mut self.last) {
            let now = (pair.other.read)();
            assert!(now >= *last, "{} went back by {} ticks", pair.other.name, Dec(*last - now));
            *last = now;
            pair.check();
        }
    }
}
