//! The console: a 16550A at COM1, waiting by interrupt.

use crate::hardware::{in8, out8, wait};
use core::fmt;

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const RECEIVED: u8 = 1;
const CAN_SEND: u8 = 1 << 5;
/// The PIC's first vector; the port is IRQ 4.
const FIRST_VECTOR: u8 = 0x20;

pub struct Serial;

impl Serial {
    /// 115200 baud, 8N1, FIFOs on, interrupts off.
    pub fn new() -> Self {
        for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 1), (4, 0xb)] {
            out8(PORT + register, value);
        }
        Self
    }

    fn send(&mut self, byte: u8) {
        // A port that is not there reads as all ones, and never blocks.
        while in8(LINE_STATUS) & CAN_SEND == 0 {}
        out8(PORT, byte);
    }

    fn receive(&mut self) -> u8 {
        while in8(LINE_STATUS) & RECEIVED == 0 {
            self.listen();
            wait();
            out8(PORT + 1, 0);
        }
        in8(PORT)
    }

    /// Lets IRQ 4 through the PIC and the local APIC's LINT0. The PIC ends its interrupts
    /// itself, so that no handler has to.
    fn listen(&mut self) {
        crate::apic::accept_pic();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, FIRST_VECTOR),
            (0x21, 4),
            (0x21, 3),
            (0x21, !(1u8 << 4)),
            (0xa1, 0xff),
            (PORT + 1, 1),
        ] {
            out8(port, value);
        }
    }

    /// Reads a line with echo and erase; returns its length.
    pub fn read_line(&mut self, line: &mut [u8]) -> usize {
        let mut length = 0;
        loop {
            match self.receive() {
                b'\r' | b'\n' => {
                    let _ = fmt::Write::write_str(self, "\n");
                    return length;
                }
                8 | 127 => {
                    if length > 0 {
                        length -= 1;
                        let _ = fmt::Write::write_str(self, "\x08 \x08");
                    }
                }
                3 | 21 => {
                    let _ = fmt::Write::write_str(self, "\n> ");
                    length = 0;
                }
                byte @ 32.. if length < line.len() => {
                    line[length] = byte;
                    length += 1;
                    self.send(byte);
                }
                _ => {}
            }
        }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}
