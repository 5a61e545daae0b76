//! What can be typed.

use crate::{
    apic, cpu,
    firmware::Firmware,
    hardware::{self, image_ends, in8, in16, in32, load, out8, out16, out32, rdtsc, store},
    numbers::Dec,
    serial::Serial,
    traffic,
};
use core::fmt::Write;

const HELP: &str = "\
info           what this guest sees
echo TEXT      prints it
memory         the memory map
timer          five ticks of the local APIC's timer
smp            starts the other processors
x2apic         turns the x2APIC on
traffic N      N requests to a virtio disk and N pings of 10.0.2.2; with pin not by MSI-X,
               with loose where the TSC may jump ahead
garbage-ports  writes noise to every port but those that end the machine
garbage-mmio   writes noise to every device's page
garbage-power  writes noise to the ports that end the machine
bad-tables     loads page tables made of noise
triple-fault   ends by a triple fault
reset          resets the machine
poweroff       turns it off
";

pub fn info(out: &mut Serial, firmware: &Firmware) {
    let hypervisor = cpu::hypervisor();
    let hypervisor = hypervisor.as_ref().map_or("not told", |text| text.as_str());
    let (vendor, brand) = (cpu::vendor(), cpu::brand());
    let (khz, count) = (Dec(cpu::tsc_khz().into()), Dec(cpu::processors().into()));
    let _ = writeln!(out, "cpu:        {} ({}), {khz} kHz", brand.as_str(), vendor.as_str());
    let _ = writeln!(out, "processors: {count}");
    let _ = writeln!(out, "hypervisor: {hypervisor}");
    let _ = writeln!(out, "memory:     {} KiB", Dec(firmware.memory() >> 10));
}

pub fn execute(out: &mut Serial, firmware: &Firmware, line: &str) {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let _ = match command {
        "" => Ok(()),
        "help" => out.write_str(HELP),
        "info" => {
            info(out, firmware);
            Ok(())
        }
        "echo" => writeln!(out, "{rest}"),
        "memory" => memory(out, firmware),
        "timer" => {
            let ticks = apic::tick(5, 1_000_000);
            writeln!(out, "five timer interrupts, {ticks} TSC ticks apart")
        }
        "smp" => {
            let count = cpu::processors();
            let started = apic::start_others(count);
            writeln!(out, "{} of {count} processors run", started + 1)
        }
        "x2apic" => {
            let on = apic::use_x2apic();
            writeln!(out, "x2APIC {}", if on { "on" } else { "not there" })
        }
        "traffic" => traffic::run(out, rest),
        "garbage-ports" => {
            garbage_ports(|port| !ENDS_THE_MACHINE.contains(&port));
            *out = Serial::new();
            writeln!(out, "garbage-ports done")
        }
        "garbage-mmio" => {
            garbage_mmio(firmware);
            writeln!(out, "garbage-mmio done")
        }
        "garbage-power" => {
            garbage_ports(|port| ENDS_THE_MACHINE.contains(&port));
            writeln!(out, "garbage-power done")
        }
        "bad-tables" => {
            let _ = writeln!(out, "bad-tables");
            bad_tables()
        }
        "triple-fault" => hardware::triple_fault(),
        "reset" => hardware::reset(),
        "poweroff" => hardware::power_off(),
        other => writeln!(out, "{other}: not a command; type help"),
    };
}

fn memory(out: &mut Serial, firmware: &Firmware) -> core::fmt::Result {
    for range in firmware.ranges() {
        let kind = if range.kind == 1 { "usable" } else { "reserved" };
        writeln!(out, "{:#014x} {:>12} KiB {kind}", range.from, range.length >> 10)?;
    }
    Ok(())
}

/// Noise that is the same in every run (xorshift64, Marsaglia).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// i8042 reset, pvpanic, debug exit, power management, reset.
const ENDS_THE_MACHINE: &[u16] = &[
    0x61, 0x64, 0x92, 0xf4, 0xf5, 0xf6, 0xf7, 0x505, 0x600, 0x601, 0x602, 0x603, 0x604, 0x605,
    0x606, 0x607, 0xcf9,
];

fn garbage_ports(wanted: impl Fn(u16) -> bool) {
    let mut noise = Noise(0x5a7a_1234_9e37_79b9);
    for round in 0..3 {
        for port in 0..=u16::MAX {
            // A wide access reaches the ports behind it.
            let last = port.saturating_add((1 << round) - 1);
            if !(port..=last).all(&wanted) && round > 0 || !wanted(port) {
                continue;
            }
            let value = noise.next();
            match round {
                0 => {
                    out8(port, value as u8);
                    in8(port);
                }
                1 => {
                    out16(port, value as u16);
                    in16(port);
                }
                _ => {
                    out32(port, value as u32);
                    in32(port);
                }
            }
        }
    }
}

/// Every page from the end of low memory to 4 GiB would take long: the known devices' pages
/// whole, and a word of each 64 KiB of the rest.
fn garbage_mmio(firmware: &Firmware) {
    let mut noise = Noise(0x1357_9bdf_0246_8ace);
    let low = firmware.ranges().filter(|r| r.kind == 1 && r.from < 1 << 32);
    let end = low.map(|r| r.from + r.length).max().unwrap_or(0).max(image_ends());
    let touch = |at: u64, noise: &mut Noise| {
        let value = noise.next();
        match value >> 62 {
            0 => store(at, value as u8),
            1 => store(at, value as u16),
            2 => store(at, value as u32),
            _ => store(at & !7, value),
        }
        load::<u32>(at & !3);
    };
    for page in (end.next_multiple_of(0x1_0000)..1 << 32).step_by(0x1_0000) {
        touch(page, &mut noise);
    }
    for device in [0xfec0_0000u64, 0xfed0_0000, 0xfee0_0000] {
        for at in 0..0x1000 {
            touch(device + at, &mut noise);
        }
    }
}

/// The first entries are noise that says it is present, so that walks go far.
fn bad_tables() -> ! {
    let root = image_ends().next_multiple_of(0x1000) + 0x1000;
    let mut noise = Noise(rdtsc() | 1);
    for entry in 0..512 {
        store(root + entry * 8, noise.next() | 3);
    }
    hardware::load_page_tables(root);
    loop {
        core::hint::spin_loop();
    }
}
