//! Arithmetic that changes the flags, for where the guest's are saved or about to be replaced.

use super::{Asm, Mem};

/// An operation's number, as opcodes 81 and 83 have it (SDM volume 2, table A-6).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
}

impl Asm {
    /// With a sign-extended immediate, on 64 bits.
    pub fn alu_imm(&mut self, operation: Alu, register: u8, value: i32) {
        self.registers(0x81, operation as u8, register, true);
        self.bytes(&value.to_le_bytes());
    }

    /// With an operand in memory, on 64 bits.
    pub fn alu_mem(&mut self, operation: Alu, register: u8, mem: Mem) {
        self.rex(true, register, &mem);
        self.code.push((operation as u8) << 3 | 3);
        self.modrm(register, &mem);
    }

    /// `to = from >> count` with the sign, count modulo 64. No flag changes.
    pub fn sarx(&mut self, to: u8, from: u8, count: u8) {
        self.vex(2, 2, to, count, &Mem::at(from, 0));
        self.bytes(&[0xf7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// 32 bits, sign-extended. No flag changes.
    pub fn movsxd_register(&mut self, to: u8, from: u8) {
        self.registers(0x63, to, from, true);
    }

    /// The status flags into AX, which PUSHF and POPF do in many times the time.
    pub fn save_flags(&mut self) {
        // lahf; seto al
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// The status flags out of AX, which changes.
    pub fn restore_flags(&mut self) {
        // add al, 0x7f; sahf
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    pub fn popfq(&mut self) {
        self.bytes(&[0x9d]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    #[test]
    fn encodes_what_it_says() {
        let mut asm = Asm::new(0, 1 << 20);
        asm.alu_imm(Alu::And, 1, 0x8d5);
        asm.alu_imm(Alu::Or, 11, -2);
        asm.alu_imm(Alu::Add, 10, 1);
        asm.alu_mem(Alu::And, 11, Mem::at(4, 300));
        asm.alu_mem(Alu::Or, 1, Mem::at(4, 8));
        asm.popfq();
        asm.sarx(1, 10, 11);
        asm.movsxd_register(1, 9);
        asm.save_flags();
        asm.restore_flags();
        let mut decoder = Decoder::with_ip(64, &asm.code, 0, DecoderOptions::NONE);
        let (mut out, mut formatter) = (String::new(), FastFormatter::new());
        while decoder.can_decode() {
            formatter.format(&decoder.decode(), &mut out);
            out.push(';');
        }
        let wanted = "and rcx,8D5h;or r11,0FFFFFFFFFFFFFFFEh;add r10,1h;\
                      and r11,[rsp+12Ch];or rcx,[rsp+8h];popfq;sarx rcx,r10,r11;movsxd rcx,r9d;lahf;seto al;add al,7Fh;sahf;";
        assert_eq!(out, wanted);
    }
}
