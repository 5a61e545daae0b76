//! Moves of 16 bits.

use super::{Asm, Mem};

impl Asm {
    /// The low half of a 32-bit register becomes that of another; the rest stays.
    pub fn mov16(&mut self, to: u8, from: u8) {
        self.code.push(0x66);
        self.registers(0x89, from, to, false);
    }

    /// Zero-extended.
    pub fn load16(&mut self, to: u8, mem: Mem) {
        self.rex(false, to, &mem);
        self.bytes(&[0x0f, 0xb7]);
        self.modrm(to, &mem);
    }
}
