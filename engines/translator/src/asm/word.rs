//! Moves of 16 bits, and of a register's low part.

use super::{Asm, Mem, Short};

impl Asm {
    /// Zero-extended.
    pub fn load16(&mut self, to: u8, mem: Mem) {
        self.rex(false, to, &mem);
        self.bytes(&[0x0f, 0xb7]);
        self.modrm(to, &mem);
    }

    /// An instruction with the opcode `byte` for a byte, and the one after it for 2 or 4. A
    /// register is one of the first four.
    fn low(&mut self, byte: u8, size: u8, register: u8, mem: Mem) {
        debug_assert!(register < 4);
        if size == 2 {
            self.code.push(0x66);
        }
        self.rex(false, register, &mem);
        self.code.push(if size == 1 { byte } else { byte + 1 });
        self.modrm(register, &mem);
    }

    /// The low byte, half or all of a 32-bit register.
    pub fn load_low(&mut self, size: u8, to: u8, mem: Mem) {
        self.low(0x8a, size, to, mem);
    }

    pub fn store_low(&mut self, size: u8, mem: Mem, from: u8) {
        self.low(0x88, size, from, mem);
    }

    /// Changes the flags.
    pub fn cmp_low(&mut self, size: u8, a: u8, b: Mem) {
        self.low(0x3a, size, a, b);
    }

    /// Jumps to where it will [`Self::land`].
    pub fn jmp_forward_short(&mut self) -> Short {
        self.bytes(&[0xeb, 0]);
        Short(self.code.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    #[test]
    fn encodes_what_it_says() {
        let mut asm = Asm::new(0, 1 << 20);
        let mem = Mem::indexed(10, 11, 0, 0);
        asm.mov16(15, 1);
        asm.mov16(5, 10);
        asm.load16(10, mem);
        for size in [1, 2, 4] {
            asm.load_low(size, 1, mem);
            asm.store_low(size, mem, 0);
            asm.cmp_low(size, 0, mem);
        }
        let over = asm.jmp_forward_short();
        asm.ret();
        asm.land(over);
        let mut decoder = Decoder::with_ip(64, &asm.code, 0, DecoderOptions::NONE);
        let (mut out, mut formatter) = (String::new(), FastFormatter::new());
        while decoder.can_decode() {
            formatter.format(&decoder.decode(), &mut out);
            out.push(';');
        }
        assert_eq!(
            out,
            "mov r15w,cx;mov bp,r10w;movzx r10d,word ptr [r10+r11];\
             mov cl,[r10+r11];mov [r10+r11],al;cmp al,[r10+r11];\
             mov cx,[r10+r11];mov [r10+r11],ax;cmp ax,[r10+r11];\
             mov ecx,[r10+r11];mov [r10+r11],eax;cmp eax,[r10+r11];\
             jmp 37h;ret;"
        );
    }
}
