//! Arithmetic that changes the flags, for where the guest's are saved or about to be replaced.

use super::{Asm, Mem, Rm};

/// An operation's number, as opcodes 81 and 83 have it (SDM volume 2, table A-6).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
}

impl Asm {
    /// An operation of bytes, words, doublewords or quadwords with this opcode, which is the one
    /// of bytes.
    fn sized(&mut self, opcode: u8, size: u8, reg: u8, rm: Rm) {
        if size == 2 {
            self.code.push(0x66);
        }
        let opcode = opcode | u8::from(size > 1);
        let wide = size == 8;
        match rm {
            Rm::Register(rm) => {
                // With a prefix, 4 to 7 are SPL to DIL.
                self.code.push(0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | rm >> 3);
                self.bytes(&[opcode, 0xc0 | (reg & 7) << 3 | rm & 7]);
            }
            Rm::Memory(mem) => {
                let at = self.code.len();
                self.rex(wide, reg, &mem);
                if self.code.len() == at && size == 1 {
                    self.code.push(0x40);
                }
                self.code.push(opcode);
                self.modrm(reg, &mem);
            }
        }
    }

    /// ADD (0), AND (4), SUB (5) or CMP (7) of `rm` and a register. Changes the flags.
    pub fn group1(&mut self, operation: u8, size: u8, rm: Rm, reg: u8) {
        self.sized(operation << 3, size, reg, rm);
    }

    /// The same with a register first and `rm` second.
    pub fn group1_load(&mut self, operation: u8, size: u8, reg: u8, rm: Rm) {
        self.sized(operation << 3 | 2, size, reg, rm);
    }

    /// The same with an immediate, whose low bytes are taken.
    pub fn group1_imm(&mut self, operation: u8, size: u8, rm: Rm, value: i32) {
        match i8::try_from(value) {
            Ok(value) if size > 1 => {
                self.sized(0x82, size, operation, rm);
                self.code.push(value as u8);
            }
            _ => {
                self.sized(0x80, size, operation, rm);
                self.immediate(size, value);
            }
        }
    }

    /// TEST. Changes the flags.
    pub fn test(&mut self, size: u8, rm: Rm, reg: u8) {
        self.sized(0x84, size, reg, rm);
    }

    /// TEST. Changes the flags.
    pub fn test_imm(&mut self, size: u8, rm: Rm, value: i32) {
        self.sized(0xf6, size, 0, rm);
        self.immediate(size, value);
    }

    fn immediate(&mut self, size: u8, value: i32) {
        match size {
            1 => self.code.push(value as u8),
            2 => self.bytes(&(value as u16).to_le_bytes()),
            _ => self.bytes(&value.to_le_bytes()),
        }
    }

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

    /// 16 bits; the others stay. No flag changes.
    pub fn mov16(&mut self, to: u8, from: u8) {
        self.bytes(&[0x66]);
        self.mov(to, from, false);
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
        asm.mov16(12, 1);
        asm.mov16(3, 1);
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
                      and r11,[rsp+12Ch];or rcx,[rsp+8h];popfq;mov r12w,cx;mov bx,cx;sarx rcx,r10,r11;movsxd rcx,r9d;lahf;seto al;add al,7Fh;sahf;";
        assert_eq!(out, wanted);
    }
}
