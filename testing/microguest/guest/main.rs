//! The built-in guest: says what it sees, and takes commands on the serial port.
//!
//! Commands after `run=` on its command line, separated by semicolons, it executes at once,
//! and powers off; tests use that.
#![no_std]
#![no_main]

mod apic;
mod clocks;
mod commands;
mod cpu;
mod disk;
mod firmware;
mod hardware;
mod ioapic;
mod network;
mod numbers;
mod pattern;
mod pci;
mod serial;
mod traffic;
mod virtio;

use core::fmt::Write;
use firmware::Firmware;
use numbers::{Dec, Hex};
use serial::Serial;

const RUN: &str = "run=";

/// `kind` is 1 for PVH, 0 for the Linux 64-bit protocol; `info` is where its structure is.
pub fn start(kind: u32, info: u64) -> ! {
    let mut out = Serial::new();
    let firmware = Firmware::read(kind == 1, info);
    hardware::set_interrupts_up();
    let _ = writeln!(out, "\nSarang micro-guest, booted by {}", firmware.protocol());
    commands::info(&mut out, &firmware);
    let mut line = [0u8; 512];
    let length = firmware.command_line(&mut line);
    let given = core::str::from_utf8(&line[..length]).unwrap_or("");
    // Bytes: searching text for text takes instructions of SSE, see `numbers`.
    let run = given.as_bytes().windows(RUN.len()).position(|bytes| bytes == RUN.as_bytes());
    if let Some(at) = run {
        for command in given[at + RUN.len()..].split(';') {
            let _ = writeln!(out, "> {}", command.trim());
            commands::execute(&mut out, &firmware, command.trim());
        }
        hardware::power_off();
    }
    let _ = writeln!(out, "Type help for what there is.");
    loop {
        let _ = write!(out, "> ");
        let length = out.read_line(&mut line);
        match core::str::from_utf8(&line[..length]) {
            Ok(text) => commands::execute(&mut out, &firmware, text.trim()),
            Err(_) => {
                let _ = writeln!(out, "that is not text");
            }
        }
    }
}

/// An exception of the guest's own code is its end.
pub fn died(vector: u32, rip: u64, address: u64) -> ! {
    let mut out = Serial::new();
    let (vector, rip, address) = (Dec(vector.into()), Hex(rip), Hex(address));
    let _ = writeln!(out, "exception {vector} at {rip}, CR2 {address}");
    hardware::power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut out = Serial::new();
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    let _ = writeln!(out, "{file}:{}: {}", Dec(line.into()), info.message());
    hardware::power_off()
}
