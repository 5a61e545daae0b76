//! Small ports of the board: POST codes, pvpanic, debug exit, debug console.

use crate::{
    Config,
    bytes::{BytePorts, Bytewise},
};
use byte_stream::Output;
use device::{PioDevice, PowerEvent, PowerSink, Wiring};
use std::sync::Arc;

/// QEMU's specification "pvpanic": the port and its two events.
pub const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;
/// A write ends the machine with what was written.
pub const DEBUG_EXIT: u16 = 0xf4;
/// Bytes written here are text for the operator; reads answer the port's number.
pub const DEBUG_CONSOLE: u16 = 0xe9;
const POST: u16 = 0x80;

struct PvPanic(Arc<dyn PowerSink>);

impl BytePorts for PvPanic {
    fn read_byte(&self, _: u16) -> Option<u8> {
        Some(PANICKED | CRASH_LOADED)
    }
    fn write_byte(&self, _: u16, value: u8) {
        if value & PANICKED != 0 {
            self.0.request(PowerEvent::GuestPanicked);
        } else if value & CRASH_LOADED != 0 {
            self.0.request(PowerEvent::GuestCrashLoaded);
        }
    }
}

struct DebugExit(Arc<dyn PowerSink>);

impl PioDevice for DebugExit {
    fn read(&self, _: u16, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, port: u16, data: &[u8]) {
        if port == DEBUG_EXIT {
            let mut value = [0; 4];
            value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            self.0.request(PowerEvent::DebugExit(u32::from_le_bytes(value)));
        }
    }
}

/// SeaBIOS and OVMF write here what they do, if reads answer [`DEBUG_CONSOLE`].
pub const FIRMWARE_LOG: u16 = 0x402;

struct DebugConsole(u16, Arc<dyn Output>);

impl BytePorts for DebugConsole {
    fn read_byte(&self, port: u16) -> Option<u8> {
        (port == self.0).then_some(DEBUG_CONSOLE as u8)
    }
    fn write_byte(&self, port: u16, value: u8) {
        if port == self.0 {
            self.1.write(&[value]);
        }
    }
}

/// The POST port is where kernels write to pass a microsecond.
struct Post;

impl BytePorts for Post {
    fn read_byte(&self, port: u16) -> Option<u8> {
        (port == POST).then_some(0)
    }
    fn write_byte(&self, _: u16, _: u8) {}
}

pub(crate) fn build(config: &Config, wiring: &mut Wiring) {
    let power = wiring.power.clone();
    let panic = Arc::new(Bytewise(Arc::new(PvPanic(power.clone()))));
    wiring.claim_ports("pvpanic", PVPANIC..=PVPANIC, panic);
    wiring.claim_ports("debug_exit", DEBUG_EXIT..=DEBUG_EXIT, Arc::new(DebugExit(power)));
    wiring.claim_ports("post", POST..=POST, Arc::new(Bytewise(Arc::new(Post))));
    let texts = [
        ("debug_console", DEBUG_CONSOLE, &config.debug_console),
        ("firmware_log", FIRMWARE_LOG, &config.firmware_log),
    ];
    for (name, port, output) in texts {
        if let Some(output) = output {
            let console = Arc::new(Bytewise(Arc::new(DebugConsole(port, output.clone()))));
            wiring.claim_ports(name, port..=port, console);
        }
    }
}
