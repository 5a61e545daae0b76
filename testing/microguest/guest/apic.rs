//! The local APIC: the PIC's way in, the timer, starting other processors.

use crate::hardware::{load, place_trampoline, rdmsr, rdtsc, store, wait, wrmsr};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

const BASE_MSR: u32 = 0x1b;
const X2APIC: u64 = 1 << 10;
const PAGE: u64 = 0xfee0_0000;

const EOI: u32 = 0xb;
const SPURIOUS: u32 = 0xf;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const INITIAL_COUNT: u32 = 0x38;
const DIVIDE: u32 = 0x3e;

const TIMER_VECTOR: u32 = 0x40;
const TRAMPOLINE: u64 = 0x8000;

static STARTED: AtomicU32 = AtomicU32::new(0);

fn x2() -> bool {
    rdmsr(BASE_MSR) & X2APIC != 0
}

fn write(register: u32, value: u32) {
    if x2() {
        wrmsr(0x800 + register, value.into());
    } else {
        store(PAGE + u64::from(register) * 16, value);
    }
}

fn read(register: u32) -> u32 {
    if x2() { rdmsr(0x800 + register) as u32 } else { load(PAGE + u64::from(register) * 16) }
}

/// LINT0 takes external interrupts, as a PC's firmware leaves it.
pub fn accept_pic() {
    enable();
    write(LVT_LINT0, 0x700);
}

/// `x2`: registers are MSRs from here on, until reset.
pub fn use_x2apic() -> bool {
    if crate::cpu::has_x2apic() {
        wrmsr(BASE_MSR, rdmsr(BASE_MSR) | X2APIC);
    }
    x2()
}

/// Waits for so many periods of the timer and returns the TSC ticks of each.
pub fn tick(count: u32, period: u32) -> u64 {
    enable();
    let begin = rdtsc();
    start_timer(TIMER_VECTOR, period);
    let mut seen = 0;
    while seen < count {
        if wait() == TIMER_VECTOR {
            seen += 1;
            end(1);
        }
    }
    stop_timer();
    (rdtsc() - begin) / u64::from(count)
}

/// Interrupts are taken from here on.
pub fn enable() {
    write(SPURIOUS, 0x1ff);
}

/// Ends so many interrupts.
pub fn end(count: u32) {
    (0..count).for_each(|_| write(EOI, 0));
}

/// The calling processor's timer ticks from here on, by this vector.
pub fn start_timer(vector: u32, period: u32) {
    write(DIVIDE, 0b1011); // by 1
    write(LVT_TIMER, vector | 1 << 17);
    write(INITIAL_COUNT, period);
}

pub fn stop_timer() {
    write(INITIAL_COUNT, 0);
    write(LVT_TIMER, 1 << 16);
}

fn send(destination: u32, command: u32) {
    if x2() {
        wrmsr(0x800 + ICR, u64::from(destination) << 32 | u64::from(command));
        return;
    }
    write(ICR_HIGH, destination << 24);
    write(ICR, command);
    while read(ICR) & 1 << 12 != 0 {}
}

/// INIT and SIPI to each of the others in turn; returns how many have come.
pub fn start_others(processors: u32) -> u32 {
    (1..processors).filter(|&id| start_other(id)).count() as u32
}

/// INIT and SIPI; false if the processor does not come.
pub fn start_other(id: u32) -> bool {
    enable();
    place_trampoline(TRAMPOLINE);
    let before = STARTED.load(SeqCst);
    send(id, 0x4500); // INIT, assert
    send(id, 0x4600 | (TRAMPOLINE >> 12) as u32); // SIPI
    let begin = rdtsc();
    while STARTED.load(SeqCst) == before {
        // Some five seconds of any processor that there is.
        if rdtsc() - begin > 15_000_000_000 {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// On the processor that was started, on a stack that the next one will use too.
pub fn application_processor() {
    STARTED.fetch_add(1, SeqCst);
}
