//! The IOAPIC's routes.

use crate::hardware::{in8, out8, store};

const SELECT: u64 = 0xfec0_0000;
const WINDOW: u64 = 0xfec0_0010;
const REDIRECTION: u32 = 0x10;
const LEVEL_LOW: u32 = 1 << 15 | 1 << 13;

/// Leads an input to a vector of a processor.
pub fn lead(pin: u8, vector: u8, processor: u8, level: bool) {
    let register = REDIRECTION + 2 * u32::from(pin);
    store(SELECT, register + 1);
    store(WINDOW, u32::from(processor) << 24);
    store(SELECT, register);
    store(WINDOW, u32::from(vector) | if level { LEVEL_LOW } else { 0 });
}

/// Nothing comes from the old controllers any more.
pub fn silence_pics() {
    for port in [0x21, 0xa1] {
        out8(port, 0xff);
        in8(port);
    }
}
