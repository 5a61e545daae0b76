//! A small emitter: the few host instructions that surround copied guest instructions.
//!
//! None of them changes the flags, but for the few that say so: the guest's flags are in the
//! host's flags register all the time, and whoever uses one of these saves them first.

mod alu;
mod buffer;
mod word;

pub use alu::Alu;
pub use buffer::Buffer;

/// Host registers by number.
pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
pub const RBX: u8 = 3;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
pub const RDI: u8 = 7;

/// A memory operand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mem {
    pub base: Option<u8>,
    /// Register and shift count.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

impl Mem {
    pub fn at(base: u8, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp }
    }

    pub fn indexed(base: u8, index: u8, shift: u8, disp: i32) -> Self {
        Self { base: Some(base), index: Some((index, shift)), disp }
    }
}

/// An operand in a register or in memory.
#[derive(Clone, Copy, Debug)]
pub enum Rm {
    Register(u8),
    Memory(Mem),
}

/// The offset in the code memory of a forward jump's displacement, to be filled in.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct Patch(usize);

impl Patch {
    pub fn offset(self) -> usize {
        self.0
    }

    /// What is to be filled in so that control goes to an offset in the code memory.
    pub fn distance(at: usize, target: usize) -> i32 {
        (target as i64 - (at + 4) as i64) as i32
    }
}

/// Where a short jump, whose distance is to be filled in, ends.
#[must_use]
#[derive(Debug)]
pub struct Short(usize);

/// Code that will execute at two places of the code memory: what runs mostly, and what seldom
/// does. It is made in the one or in the other.
#[derive(Debug)]
pub struct Asm {
    /// Of the part that is being made.
    pub code: Buffer,
    /// Its offset in the code memory.
    origin: usize,
    /// The other part.
    other: (usize, Buffer),
}

impl Asm {
    /// At these offsets of the code memory.
    pub fn new(hot: usize, cold: usize) -> Self {
        Self::with_room(hot, cold, <[Buffer; 2]>::default())
    }

    /// In buffers that were used before.
    pub fn with_room(hot: usize, cold: usize, room: [Buffer; 2]) -> Self {
        let [mut code, mut other] = room;
        code.truncate(0);
        other.truncate(0);
        Self { code, origin: hot, other: (cold, other) }
    }

    /// From now on the other part is made.
    pub fn change_part(&mut self) {
        std::mem::swap(&mut self.origin, &mut self.other.0);
        std::mem::swap(&mut self.code, &mut self.other.1);
    }

    /// The part that is being made, and the other.
    pub fn finish(self) -> [Buffer; 2] {
        [self.code, self.other.1]
    }

    /// Offset in the code memory of what comes next.
    pub fn here(&self) -> usize {
        self.origin + self.code.len()
    }

    #[inline(always)]
    pub fn bytes<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.code.put(bytes, N);
    }

    fn rex(&mut self, wide: bool, reg: u8, mem: &Mem) {
        let x = mem.index.map_or(0, |(r, _)| r >> 3);
        let b = mem.base.map_or(0, |r| r >> 3);
        let rex = u8::from(wide) << 3 | reg >> 3 << 2 | x << 1 | b;
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
    }

    /// ModRM, SIB and displacement (SDM volume 2, 2.1.5).
    fn modrm(&mut self, reg: u8, mem: &Mem) {
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            // No base: SIB with a 32-bit displacement.
            let (index, shift) = mem.index.unwrap_or((RSP, 0));
            self.bytes(&[reg | 4, shift << 6 | (index & 7) << 3 | 5]);
            return self.bytes(&mem.disp.to_le_bytes());
        };
        let small = i8::try_from(mem.disp);
        let mode = match (mem.disp, small) {
            (0, _) if base & 7 != 5 => 0,
            (_, Ok(_)) => 0x40,
            _ => 0x80,
        };
        match mem.index {
            Some((index, shift)) => {
                self.bytes(&[mode | reg | 4, shift << 6 | (index & 7) << 3 | base & 7]);
            }
            None if base & 7 == 4 => self.bytes(&[mode | reg | 4, 0x24]),
            None => self.code.push(mode | reg | base & 7),
        }
        match (mode, small) {
            (0x40, Ok(disp)) => self.code.push(disp as u8),
            (0x80, _) => self.bytes(&mem.disp.to_le_bytes()),
            _ => {}
        }
    }

    pub fn load(&mut self, to: u8, mem: Mem) {
        self.rex(true, to, &mem);
        self.code.push(0x8b);
        self.modrm(to, &mem);
    }

    pub fn load32(&mut self, to: u8, mem: Mem) {
        self.rex(false, to, &mem);
        self.code.push(0x8b);
        self.modrm(to, &mem);
    }

    pub fn store(&mut self, mem: Mem, from: u8) {
        self.rex(true, from, &mem);
        self.code.push(0x89);
        self.modrm(from, &mem);
    }

    pub fn store16(&mut self, mem: Mem, from: u8) {
        self.code.push(0x66);
        self.store32(mem, from);
    }

    pub fn store32(&mut self, mem: Mem, from: u8) {
        self.rex(false, from, &mem);
        self.code.push(0x89);
        self.modrm(from, &mem);
    }

    /// Stores a sign-extended immediate, four bytes or eight.
    pub fn store_imm(&mut self, mem: Mem, value: i32, wide: bool) {
        self.rex(wide, 0, &mem);
        self.code.push(0xc7);
        self.modrm(0, &mem);
        self.bytes(&value.to_le_bytes());
    }

    pub fn lea(&mut self, to: u8, mem: Mem, wide: bool) {
        self.rex(wide, to, &mem);
        self.code.push(0x8d);
        self.modrm(to, &mem);
    }

    /// 64 bits, or 32 with the upper half cleared.
    pub fn mov(&mut self, to: u8, from: u8, wide: bool) {
        let rex = u8::from(wide) << 3 | from >> 3 << 2 | to >> 3;
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
        self.bytes(&[0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// A sign-extended immediate.
    pub fn mov_imm(&mut self, to: u8, value: i32) {
        self.bytes(&[0x48 | to >> 3, 0xc7, 0xc0 | to & 7]);
        self.bytes(&value.to_le_bytes());
    }

    /// The upper half becomes zero.
    pub fn mov_imm32(&mut self, to: u8, value: u32) {
        if to >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0xb8 | to & 7);
        self.bytes(&value.to_le_bytes());
    }

    pub fn mov_imm64(&mut self, to: u8, value: u64) {
        self.bytes(&[0x48 | to >> 3, 0xb8 | to & 7]);
        self.bytes(&value.to_le_bytes());
    }

    /// 32 bits, sign-extended.
    pub fn movsxd(&mut self, to: u8, mem: Mem) {
        self.rex(true, to, &mem);
        self.code.push(0x63);
        self.modrm(to, &mem);
    }

    /// Gathers the bits of `from` that the mask selects.
    pub fn pext_register(&mut self, to: u8, from: u8, mask: u8) {
        self.vex(2, 2, to, from, &Mem::at(mask, 0));
        self.bytes(&[0xf5, 0xc0 | (to & 7) << 3 | mask & 7]);
    }

    pub fn movzx16(&mut self, to: u8, from: u8) {
        let rex = to >> 3 << 2 | from >> 3;
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
        self.bytes(&[0x0f, 0xb7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// All bits the other way round, unlike NEG without a flag.
    pub fn not(&mut self, register: u8) {
        self.bytes(&[0x48 | register >> 3, 0xf7, 0xd0 | register & 7]);
    }

    /// The prefix C4; `map` 2 is 0F38, 3 is 0F3A; `pp` 1 is 66, 2 is F3, 3 is F2.
    fn vex(&mut self, map: u8, pp: u8, reg: u8, second: u8, mem: &Mem) {
        let x = mem.index.map_or(0, |(r, _)| r >> 3);
        let b = mem.base.map_or(0, |r| r >> 3);
        let first = (reg >> 3 ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map;
        self.bytes(&[0xc4, first, 0x80 | (!second & 15) << 3 | pp]);
    }

    /// Gathers the bits of `from` that the mask in memory selects.
    pub fn pext(&mut self, to: u8, from: u8, mask: Mem) {
        self.vex(2, 2, to, from, &mask);
        self.code.push(0xf5);
        self.modrm(to, &mask);
    }

    /// Puts the low bits of `from` where the mask in memory has bits.
    pub fn pdep(&mut self, to: u8, from: u8, mask: Mem) {
        self.vex(2, 3, to, from, &mask);
        self.code.push(0xf5);
        self.modrm(to, &mask);
    }

    pub fn pushfq(&mut self) {
        self.bytes(&[0x9c]);
    }

    /// `to = from >> count`, count modulo 64.
    pub fn shrx(&mut self, to: u8, from: u8, count: u8) {
        self.vex(2, 3, to, count, &Mem::at(from, 0));
        self.bytes(&[0xf7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// `to = from << count`, count modulo 64.
    pub fn shlx(&mut self, to: u8, from: u8, count: u8) {
        self.vex(2, 1, to, count, &Mem::at(from, 0));
        self.bytes(&[0xf7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    pub fn rorx(&mut self, to: u8, from: u8, count: u8) {
        self.vex(3, 3, to, 0, &Mem::at(from, 0));
        self.bytes(&[0xf0, 0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    pub fn push(&mut self, register: u8) {
        if register >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x50 | register & 7);
    }

    pub fn pop(&mut self, register: u8) {
        if register >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x58 | register & 7);
    }

    pub fn push_mem(&mut self, mem: Mem) {
        self.rex(false, 6, &mem);
        self.code.push(0xff);
        self.modrm(6, &mem);
    }

    pub fn pop_mem(&mut self, mem: Mem) {
        self.rex(false, 0, &mem);
        self.code.push(0x8f);
        self.modrm(0, &mem);
    }

    /// An operation with this opcode, `rm` first; most change the flags.
    pub fn registers(&mut self, opcode: u8, reg: u8, rm: u8, wide: bool) {
        let rex = u8::from(wide) << 3 | reg >> 3 << 2 | rm >> 3;
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
        self.bytes(&[opcode, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// Does not change the flags.
    pub fn not32(&mut self, register: u8) {
        self.registers(0xf7, 2, register, false);
    }

    /// Changes the flags.
    pub fn cmp(&mut self, a: u8, b: u8, wide: bool) {
        self.registers(0x39, b, a, wide);
    }

    /// Changes the flags.
    pub fn cmp_imm(&mut self, a: u8, value: i8, wide: bool) {
        self.registers(0x83, 7, a, wide);
        self.code.push(value as u8);
    }

    /// A jump if the condition (0 to 15) holds.
    pub fn jcc_forward(&mut self, condition: u8) -> Patch {
        self.bytes(&[0x0f, 0x80 | condition & 15, 0, 0, 0, 0]);
        Patch(self.here() - 4)
    }

    /// Changes the flags.
    pub fn sar(&mut self, register: u8, count: u8, wide: bool) {
        self.registers(0xc1, 7, register, wide);
        self.code.push(count);
    }

    /// DIV (6) or IDIV (7) by a register.
    pub fn group3(&mut self, operation: u8, register: u8, wide: bool) {
        self.registers(0xf7, operation, register, wide);
    }

    pub fn ldmxcsr(&mut self, mem: Mem) {
        self.rex(false, 2, &mem);
        self.bytes(&[0x0f, 0xae]);
        self.modrm(2, &mem);
    }

    pub fn stmxcsr(&mut self, mem: Mem) {
        self.rex(false, 3, &mem);
        self.bytes(&[0x0f, 0xae]);
        self.modrm(3, &mem);
    }

    /// The prefix C4 without W; `wide` for 256 bits.
    fn vex_vector(&mut self, map: u8, pp: u8, reg: u8, second: u8, mem: &Mem, wide: bool) {
        self.vex(map, pp, reg, second, mem);
        if let Some(last) = self.code.last_mut() {
            *last = *last & 0x7f | u8::from(wide) << 2;
        }
    }

    /// VMOVUPS of sixteen bytes; what is above becomes zero.
    pub fn vload_xmm(&mut self, to: u8, mem: Mem) {
        self.vex_vector(1, 0, to, 0, &mem, false);
        self.code.push(0x10);
        self.modrm(to, &mem);
    }

    pub fn vstore_xmm(&mut self, mem: Mem, from: u8) {
        self.vex_vector(1, 0, from, 0, &mem, false);
        self.code.push(0x11);
        self.modrm(from, &mem);
    }

    /// VINSERTF128 of the upper half.
    pub fn vload_upper(&mut self, to: u8, mem: Mem) {
        self.vex_vector(3, 1, to, to, &mem, true);
        self.code.push(0x18);
        self.modrm(to, &mem);
        self.code.push(1);
    }

    /// VEXTRACTF128 of the upper half.
    pub fn vstore_upper(&mut self, mem: Mem, from: u8) {
        self.vex_vector(3, 1, from, 0, &mem, true);
        self.code.push(0x19);
        self.modrm(from, &mem);
        self.code.push(1);
    }

    /// VPOR of sixteen bytes.
    pub fn vpor(&mut self, to: u8, second: u8, mem: Mem) {
        self.vex_vector(1, 1, to, second, &mem, false);
        self.code.push(0xeb);
        self.modrm(to, &mem);
    }

    /// Makes the low quadword of one of the first eight registers the OR of both; the register
    /// after it is lost.
    pub fn vfold(&mut self, n: u8) {
        let (a, b) = (n & 7, (n + 1) & 7);
        // VPUNPCKHQDQ b, a, a; VPOR a, a, b
        self.bytes(&[0xc5, 0x81 | (!a & 15) << 3, 0x6d, 0xc0 | b << 3 | a]);
        self.bytes(&[0xc5, 0x81 | (!a & 15) << 3, 0xeb, 0xc0 | a << 3 | b]);
    }

    /// The low quadword of one of the first eight vector registers.
    pub fn vmovq(&mut self, to: u8, from: u8) {
        let b = to >> 3 ^ 1;
        self.bytes(&[0xc4, 0xc1 | b << 5, 0xf9, 0x7e, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// The address of what comes later.
    pub fn lea_forward(&mut self, to: u8) -> Patch {
        self.bytes(&[0x48 | to >> 3 << 2, 0x8d, 0x05 | (to & 7) << 3, 0, 0, 0, 0]);
        Patch(self.here() - 4)
    }

    pub fn vzeroupper(&mut self) {
        self.bytes(&[0xc5, 0xf8, 0x77]);
    }

    pub fn jmp_mem(&mut self, mem: Mem) {
        self.rex(false, 4, &mem);
        self.code.push(0xff);
        self.modrm(4, &mem);
    }

    pub fn call_mem(&mut self, mem: Mem) {
        self.rex(false, 2, &mem);
        self.code.push(0xff);
        self.modrm(2, &mem);
    }

    pub fn jmp_reg(&mut self, register: u8) {
        if register >= 8 {
            self.code.push(0x41);
        }
        self.bytes(&[0xff, 0xe0 | register & 7]);
    }

    fn rel32(&mut self, target: usize) {
        let next = self.here() + 4;
        // The code memory is smaller than 2 GiB.
        let distance = (target as i64 - next as i64) as i32;
        self.bytes(&distance.to_le_bytes());
    }

    /// To an offset in the code memory.
    pub fn jmp(&mut self, target: usize) {
        self.code.push(0xe9);
        self.rel32(target);
    }

    /// The same if the condition (0 to 15) holds.
    pub fn jcc(&mut self, condition: u8, target: usize) {
        self.bytes(&[0x0f, 0x80 | condition & 15]);
        self.rel32(target);
    }

    /// The result is where the target is.
    pub fn call(&mut self, target: usize) -> Patch {
        self.code.push(0xe8);
        self.rel32(target);
        Patch(self.here() - 4)
    }

    pub fn ret(&mut self) {
        self.code.push(0xc3);
    }

    pub fn call_forward(&mut self) -> Patch {
        self.bytes(&[0xe8, 0, 0, 0, 0]);
        Patch(self.here() - 4)
    }

    pub fn jmp_forward(&mut self) -> Patch {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        Patch(self.here() - 4)
    }

    pub fn patch(&mut self, at: Patch) {
        self.patch_to(at, self.here());
    }

    /// Makes a jump or call go to an offset in the code memory.
    pub fn patch_to(&mut self, at: Patch, target: usize) {
        let distance = Patch::distance(at.0, target);
        let here = at.0.checked_sub(self.origin).filter(|at| *at < self.code.len());
        let (code, at) = match here {
            Some(at) => (&mut self.code, at),
            None => (&mut self.other.1, at.0.wrapping_sub(self.other.0)),
        };
        if let Some(field) = code.get_mut(at..at.wrapping_add(4)) {
            field.copy_from_slice(&distance.to_le_bytes());
        }
    }

    /// Jumps over what `f` emits if RCX is zero; that must be short.
    pub fn unless_rcx_zero(&mut self, f: impl FnOnce(&mut Self)) {
        self.skip(0xe3, f);
    }

    /// Jumps over what `f` emits if the condition (0 to 15) holds.
    pub fn unless(&mut self, condition: u8, f: impl FnOnce(&mut Self)) {
        self.skip(0x70 | condition & 15, f);
    }

    fn skip(&mut self, opcode: u8, f: impl FnOnce(&mut Self)) {
        self.bytes(&[opcode, 0]);
        let start = Short(self.code.len());
        f(self);
        self.land(start);
    }

    /// A short jump, if the condition (0 to 15) holds, to where it will [`Self::land`].
    pub fn branch(&mut self, condition: u8) -> Short {
        self.bytes(&[0x70 | condition & 15, 0]);
        Short(self.code.len())
    }

    /// The same if RCX is zero.
    pub fn branch_rcx_zero(&mut self) -> Short {
        self.bytes(&[0xe3, 0]);
        Short(self.code.len())
    }

    pub fn land(&mut self, from: Short) {
        let len = self.code.len() - from.0;
        debug_assert!(len < 128, "a short jump reaches over it");
        if let Some(distance) = self.code.get_mut(from.0 - 1) {
            *distance = len as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    fn text(f: impl FnOnce(&mut Asm)) -> String {
        let mut asm = Asm::new(0, 1 << 20);
        f(&mut asm);
        let mut decoder = Decoder::with_ip(64, &asm.code, 0, DecoderOptions::NONE);
        let (mut out, mut formatter) = (String::new(), FastFormatter::new());
        while decoder.can_decode() {
            formatter.format(&decoder.decode(), &mut out);
            out.push(';');
        }
        out
    }

    #[test]
    fn encodes_what_it_says() {
        assert_eq!(text(|a| a.load(9, Mem::at(5, -76))), "mov r9,[rbp-4Ch];");
        assert_eq!(text(|a| a.load(1, Mem::at(5, 0))), "mov rcx,[rbp];");
        assert_eq!(text(|a| a.load32(1, Mem::at(1, 0))), "mov ecx,[rcx];");
        assert_eq!(text(|a| a.store(Mem::at(12, 0), 13)), "mov [r12],r13;");
        assert_eq!(text(|a| a.store(Mem::at(13, 0), 13)), "mov [r13],r13;");
        let entry = Mem::indexed(5, 11, 2, 0x1234);
        assert_eq!(text(|a| a.load(11, entry)), "mov r11,[rbp+r11*4+1234h];");
        let scaled = Mem { base: None, index: Some((11, 3)), disp: 0 };
        assert_eq!(text(|a| a.lea(11, scaled, true)), "lea r11,[r11*8];");
        assert_eq!(text(|a| a.lea(8, Mem::at(1, 5), false)), "lea r8d,[rcx+5h];");
        assert_eq!(text(|a| a.pext(11, 10, Mem::at(5, 64))), "pext r11,r10,[rbp+40h];");
        assert_eq!(text(|a| a.pdep(1, 10, Mem::at(5, 64))), "pdep rcx,r10,[rbp+40h];");
        assert_eq!(text(|a| a.shrx(1, 1, 5)), "shrx rcx,rcx,rbp;");
        assert_eq!(text(|a| a.rorx(1, 10, 48)), "rorx rcx,r10,30h;");
        assert_eq!(text(|a| a.shlx(1, 10, 4)), "shlx rcx,r10,rsp;");
        assert_eq!(text(|a| a.mov(14, 3, true)), "mov r14,rbx;");
        assert_eq!(text(|a| a.mov(1, 9, false)), "mov ecx,r9d;");
        assert_eq!(text(|a| a.mov_imm(10, -2)), "mov r10,0FFFFFFFFFFFFFFFEh;");
        assert_eq!(text(|a| a.movzx16(1, 1)), "movzx ecx,cx;");
        assert_eq!(text(|a| a.not(1)), "not rcx;");
        assert_eq!(text(|a| a.jmp_mem(Mem::at(5, 300))), "jmp qword ptr [rbp+12Ch];");
        assert_eq!(text(|a| a.pop_mem(Mem::at(5, 8))), "pop qword ptr [rbp+8h];");
        assert_eq!(text(|a| a.store_imm(Mem::at(5, 8), 7, false)), "mov dword ptr [rbp+8h],7h;");
        assert_eq!(text(|a| a.ldmxcsr(Mem::at(5, 8))), "ldmxcsr [rbp+8h];");
        assert_eq!(text(|a| a.stmxcsr(Mem::at(5, 8))), "stmxcsr [rbp+8h];");
        assert_eq!(text(|a| a.vload_xmm(9, Mem::at(1, 160))), "vmovups xmm9,[rcx+0A0h];");
        assert_eq!(text(|a| a.vstore_xmm(Mem::at(1, 160), 3)), "vmovups [rcx+0A0h],xmm3;");
        let upper = Mem::at(1, 576);
        let insert = "vinsertf128 ymm9,ymm9,[rcx+240h],1h;";
        assert_eq!(text(|a| a.vload_upper(9, upper)), insert);
        assert_eq!(text(|a| a.vstore_upper(upper, 9)), "vextractf128 [rcx+240h],ymm9,1h;");
        assert_eq!(text(|a| a.vzeroupper()), "vzeroupper;");
        assert_eq!(text(|a| a.store16(Mem::at(11, 6), 1)), "mov [r11+6h],cx;");
        assert_eq!(text(|a| a.not32(1)), "not ecx;");
        assert_eq!(text(|a| a.vpor(0, 0, upper)), "vpor xmm0,xmm0,[rcx+240h];");
        assert_eq!(text(|a| a.vfold(0)), "vpunpckhqdq xmm1,xmm0,xmm0;vpor xmm0,xmm0,xmm1;");
        assert_eq!(text(|a| a.vmovq(1, 0)), "vmovq rcx,xmm0;");
        assert_eq!(text(|a| a.vmovq(11, 2)), "vmovq r11,xmm2;");
        let forward = |a: &mut Asm| {
            let patch = a.lea_forward(10);
            a.vzeroupper();
            a.patch(patch);
        };
        assert_eq!(text(forward), "lea r10,[0Ah];vzeroupper;");
        assert_eq!(text(|a| a.pext_register(1, 1, 11)), "pext rcx,rcx,r11;");
        assert_eq!(text(|a| a.movsxd(9, Mem::at(10, 0))), "movsxd r9,[r10];");
        assert_eq!(text(|a| a.mov_imm64(10, 1 << 40)), "mov r10,10000000000h;");
        assert_eq!(text(|a| a.group1(7, 8, Rm::Register(1), 10)), "cmp rcx,r10;");
        assert_eq!(
            text(|a| a.group1(5, 4, Rm::Memory(Mem::at(4, 100)), 15)),
            "sub [rsp+64h],r15d;"
        );
        assert_eq!(text(|a| a.group1(7, 1, Rm::Register(5), 6)), "cmp bpl,sil;");
        assert_eq!(text(|a| a.group1(7, 1, Rm::Memory(Mem::at(4, 0)), 6)), "cmp [rsp],sil;");
        assert_eq!(
            text(|a| a.group1_load(0, 8, 1, Rm::Memory(Mem::at(4, 8)))),
            "add rcx,[rsp+8h];"
        );
        assert_eq!(text(|a| a.group1_imm(7, 8, Rm::Register(1), 4088)), "cmp rcx,0FF8h;");
        assert_eq!(text(|a| a.group1_imm(7, 2, Rm::Register(9), 300)), "cmp r9w,12Ch;");
        assert_eq!(text(|a| a.group1_imm(4, 4, Rm::Register(9), -1)), "and r9d,0FFFFFFFFh;");
        assert_eq!(text(|a| a.group1_imm(7, 1, Rm::Register(7), -1)), "cmp dil,0FFh;");
        assert_eq!(text(|a| a.test(4, Rm::Register(0), 3)), "test eax,ebx;");
        assert_eq!(text(|a| a.test_imm(2, Rm::Register(0), 3)), "test ax,3h;");
        assert_eq!(text(|a| a.test_imm(8, Rm::Register(1), -4081)), "test rcx,0FFFFFFFFFFFFF00Fh;");
        let patched = text(|a| {
            let patch = a.jcc_forward(7);
            a.popfq();
            a.patch(patch);
        });
        assert_eq!(patched, "ja 7h;popfq;");
        let skipped = text(|a| a.unless_rcx_zero(|a| a.jmp(0)));
        assert_eq!(skipped, "jrcxz 7h;jmp 0h;");
    }

    #[test]
    fn jumps_lead_from_one_part_to_the_other() {
        let mut asm = Asm::new(0x100, 0x8000);
        let away = asm.jmp_forward();
        let back = asm.here();
        asm.change_part();
        asm.patch(away);
        let again = asm.jmp_forward();
        asm.jmp(back);
        asm.change_part();
        asm.patch(again);
        let [hot, cold] = asm.finish();
        let target = |code: &[u8], at| {
            Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode().near_branch64()
        };
        assert_eq!(target(&hot, 0x100), 0x8000);
        assert_eq!((target(&cold, 0x8000), target(&cold[5..], 0x8005)), (0x105, 0x105));
    }
}
