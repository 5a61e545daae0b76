//! The built-in guest: says what it sees, and takes commands on the serial port.
//!
//! Commands after `run=` on its command line, separated by semicolons, it executes at once,
//! and powers off; tests use that.
#![no_std]
#![no_main]

mod apic;
mod commands;
mod cpu;
mod firmware;
mod hardware;
mod serial;

use core::fmt::Write;
use firmware::Firmware;
use serial::Serial;

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
    if let Some((_, commands)) = given.split_once("run=") {
        for command in commands.split(';') {
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
    let _ = writeln!(out, "exception {vector} at {rip:#x}, CR2 {address:#x}");
    hardware::power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut out = Serial::new();
    let _ = writeln!(out, "{info}");
    hardware::power_off()
}
