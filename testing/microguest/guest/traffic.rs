//! Traffic with a disk and with a network, by interrupts alone, while two timers tick and the clocks
//! are compared. What goes wrong ends the guest with a message.
//!
//! The second processor, if there is one, has the network and a timer of its own.

use crate::{
    apic,
    clocks::Clocks,
    cpu,
    disk::{self, Disk},
    hardware::{self, Vector, halt, out8},
    ioapic,
    network::{self, Network},
    numbers::{Dec, Hex},
    serial::Serial,
    virtio::{self, Interrupts},
};
use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};

/// Vectors: of the local APICs' timers, of the PIT, of devices.
const TIMERS: [u8; 2] = [0x40, 0x41];
const PIT: u8 = 0x42;
const DISK: u8 = 0x51;
const NETWORK: u8 = 0x61;
/// The PIT's input of the IOAPIC.
const PIT_PIN: u8 = 2;
/// The PIT's ticks of 1.193182 MHz for 100 Hz.
const PIT_PERIOD: u16 = 11_932;
/// The local APIC's, of about 1 GHz: some 200 Hz.
const TIMER_PERIOD: u32 = 5_000_000;
/// Requests to the disk for each tick of the PIT: more than are under way at a time.
const REQUESTS: u32 = 5;
const PINGS: u32 = 3;
/// Requests between two lines that tell of them.
const LINE: u32 = 50;

/// What the second processor is to do, too: pings, interrupts by pins, letting the TSC jump.
static PINGS_WANTED: AtomicU32 = AtomicU32::new(0);
static BY_PIN: AtomicBool = AtomicBool::new(false);
static LOOSE: AtomicBool = AtomicBool::new(false);
static PINGED: AtomicU32 = AtomicU32::new(0);
static NETWORK_DONE: AtomicBool = AtomicBool::new(false);

/// A local APIC's own.
struct Timer(Vector);

impl Timer {
    /// Of the processor that calls.
    fn start(cpu: u8) -> Self {
        let vector = TIMERS[usize::from(cpu)];
        apic::start_timer(vector.into(), TIMER_PERIOD);
        Self(Vector::new(vector))
    }

    fn ticks(&mut self) -> u32 {
        let came = self.0.fresh();
        apic::end(came);
        came
    }
}

/// What the last processor does, which may be the first: pings, and a timer.
struct Last {
    network: Network,
    timer: Timer,
}

impl Last {
    fn start(pings: u32, interrupts: Interrupts, cpu: u8) -> Option<Self> {
        let network = Network::start(pings, interrupts, NETWORK, cpu)?;
        Some(Self { network, timer: Timer::start(cpu) })
    }

    /// Whether the timer has ticked.
    fn step(&mut self) -> bool {
        let ticked = self.timer.ticks() > 0;
        if ticked {
            self.network.allowed = PINGS;
        }
        self.network.step();
        PINGED.store(self.network.done, SeqCst);
        ticked
    }

    fn end(&self) {
        apic::stop_timer();
        NETWORK_DONE.store(true, SeqCst);
    }
}

/// On the second processor.
pub fn on_second_processor() {
    let pings = PINGS_WANTED.swap(0, SeqCst);
    if pings == 0 {
        return;
    }
    hardware::use_interrupts();
    apic::enable();
    let Some(mut last) = Last::start(pings, interrupts(), 1) else { return };
    let mut clocks = Clocks::start(LOOSE.load(SeqCst));
    while !last.network.is_done() {
        if last.step() {
            clocks.check();
        }
        halt();
    }
    last.end();
}

fn pinged() -> Dec {
    Dec(PINGED.load(SeqCst).into())
}

fn interrupts() -> Interrupts {
    if BY_PIN.load(SeqCst) { Interrupts::Pin } else { Interrupts::Messages }
}

/// `traffic REQUESTS [pin] [loose]`.
pub fn run(out: &mut Serial, words: &str) -> core::fmt::Result {
    let (count, rest) = words.split_once(' ').unwrap_or((words, ""));
    let Ok(count) = count.parse::<u32>() else {
        return writeln!(out, "traffic: how many requests?");
    };
    if !virtio::is_there(network::TYPE) || !virtio::is_there(disk::TYPE) {
        return writeln!(out, "traffic: there is no virtio disk, or no virtio network card");
    }
    BY_PIN.store(rest.split(' ').any(|word| word == "pin"), SeqCst);
    LOOSE.store(rest.split(' ').any(|word| word == "loose"), SeqCst);
    PINGED.store(0, SeqCst);
    NETWORK_DONE.store(false, SeqCst);
    ioapic::silence_pics();
    apic::enable();
    let mut pit = start_pit();
    let Some(disk) = Disk::start(count, interrupts(), DISK, 0) else { return Ok(()) };
    if cpu::processors() < 2 {
        let last = Last::start(count, interrupts(), 0);
        return first(out, disk, &mut pit, last);
    }
    PINGS_WANTED.store(count, SeqCst);
    if !apic::start_other(1) {
        return writeln!(out, "traffic: the second processor does not start");
    }
    first(out, disk, &mut pit, None)
}

/// 100 Hz, mode 2.
fn start_pit() -> Vector {
    ioapic::lead(PIT_PIN, PIT, 0, false);
    out8(0x43, 0x34);
    PIT_PERIOD.to_le_bytes().into_iter().for_each(|byte| out8(0x40, byte));
    Vector::new(PIT)
}

/// The first processor has the disk, and, without a second one, the rest.
fn first(
    out: &mut Serial,
    mut disk: Disk,
    pit: &mut Vector,
    mut rest: Option<Last>,
) -> core::fmt::Result {
    let mut clocks = Clocks::start(LOOSE.load(SeqCst));
    let (mut told, mut ticks) = (0, 0u64);
    while !disk.is_done() || !NETWORK_DONE.load(SeqCst) {
        let came = pit.fresh();
        apic::end(came);
        ticks += u64::from(came);
        if came > 0 {
            disk.allowed = REQUESTS;
            clocks.check();
        }
        disk.step();
        if let Some(last) = &mut rest {
            last.step();
            if last.network.is_done() {
                last.end();
                rest = None;
            }
        }
        if disk.done >= told + LINE {
            told = disk.done - disk.done % LINE;
            writeln!(out, "disk {}, network {}", Dec(told.into()), pinged())?;
        }
        halt();
    }
    out8(0x43, 0x30); // mode 0, without a count
    let (done, sum) = (Dec(disk.done.into()), Hex(disk.sum()));
    writeln!(out, "disk {done}, network {}, sum {sum}", pinged())?;
    writeln!(out, "traffic done, {} ticks", Dec(ticks))
}
