//! The parts of an encoding.

use super::PROBE;
use crate::regs::HOST_RSP;
use iced_x86::{Instruction, Register};

/// Where an operand is encoded (SDM volume 2, 2.1 and 2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nowhere: the instruction has no such operand, or no choice.
    #[default]
    None,
    /// Nowhere: it is always this register.
    Always(Register),
    /// ModRM.reg.
    Reg,
    /// ModRM.rm, for a register or memory.
    Rm,
    /// The low bits of the opcode.
    Opcode,
    /// VEX.vvvv.
    Vvvv,
    /// In so many bytes.
    Immediate(u8),
}

/// VEX.L and VEX.pp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vex {
    l: u8,
    pp: u8,
}

/// An encoding but for memory and immediate operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// 66, F2 and F3 as far as it has them; else zero.
    prefixes: [u8; 2],
    pub wide: bool,
    /// Bit 3 of the registers in ModRM.reg, of the index, and in ModRM.rm or the opcode.
    pub r: u8,
    pub x: u8,
    pub b: u8,
    vex: Option<Vex>,
    vvvv: u8,
    /// 1 for 0F, 2 for 0F38, 3 for 0F3A.
    map: u8,
    opcode: u8,
    pub modrm: Option<u8>,
}

/// More bytes than an instruction has.
const ROOM: usize = 24;

/// An encoded instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bytes {
    bytes: [u8; ROOM],
    len: usize,
}

impl Parts {
    /// Of an encoding that ends with the opcode or ModRM.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let mut parts = Self::default();
        let (mut bytes, mut count) = (bytes, 0);
        while let [prefix @ (0x66 | 0xf2 | 0xf3), rest @ ..] = bytes {
            *parts.prefixes.get_mut(count)? = *prefix;
            (bytes, count) = (rest, count + 1);
        }
        let rest = match bytes {
            [0xc5, a, rest @ ..] => {
                parts.map = 1;
                parts.vex_fields(*a, *a & 0x7f, rest)
            }
            [0xc4, a, b, rest @ ..] => {
                (parts.x, parts.b) = (!a >> 6 & 1, !a >> 5 & 1);
                parts.map = a & 31;
                parts.vex_fields(*a, *b, rest)
            }
            [0x62 | 0x8f, ..] => return None,
            [rex @ 0x40..=0x4f, rest @ ..] => {
                (parts.wide, parts.r, parts.x, parts.b) =
                    (rex & 8 != 0, rex >> 2 & 1, rex >> 1 & 1, rex & 1);
                parts.legacy_map(rest)
            }
            rest => parts.legacy_map(rest),
        };
        let [opcode, rest @ ..] = rest else { return None };
        parts.opcode = *opcode;
        match rest {
            [] => {}
            [modrm] => parts.modrm = Some(*modrm),
            _ => return None,
        }
        (parts.map <= 3).then_some(parts)
    }

    fn vex_fields<'b>(&mut self, r: u8, last: u8, rest: &'b [u8]) -> &'b [u8] {
        self.r = !r >> 7;
        self.wide = last & 0x80 != 0;
        self.vvvv = !last >> 3 & 15;
        self.vex = Some(Vex { l: last >> 2 & 1, pp: last & 3 });
        rest
    }

    fn legacy_map<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (map, rest) = match bytes {
            [0x0f, 0x38, rest @ ..] => (2, rest),
            [0x0f, 0x3a, rest @ ..] => (3, rest),
            [0x0f, rest @ ..] => (1, rest),
            rest => (0, rest),
        };
        self.map = map;
        rest
    }

    /// With a register in the place of an operand, where the first one was.
    #[inline]
    pub fn put(&mut self, role: Role, number: u8) {
        let (low, high) = (number & 7, number >> 3 & 1);
        match role {
            Role::Reg => {
                self.r = high;
                self.modrm = self.modrm.map(|modrm| modrm | low << 3);
            }
            Role::Rm => {
                self.b = high;
                self.modrm = self.modrm.map(|modrm| modrm | low);
            }
            Role::Opcode => {
                self.b = high;
                self.opcode |= low;
            }
            Role::Vvvv => self.vvvv = number & 15,
            Role::None | Role::Always(_) | Role::Immediate(_) => {}
        }
    }

    /// The operand that made `other` of this: [`PROBE`] instead of the first register.
    pub fn role(&self, other: &Self) -> Option<Role> {
        [Role::Reg, Role::Rm, Role::Opcode, Role::Vvvv].into_iter().find(|role| {
            let mut expected = *self;
            expected.put(*role, PROBE);
            expected == *other
        })
    }

    /// All that comes before ModRM; `rex` if there has to be one.
    #[inline]
    pub fn write(&self, to: &mut Bytes, rex: bool) {
        for prefix in self.prefixes.into_iter().filter(|prefix| *prefix != 0) {
            to.push(prefix);
        }
        let (w, r, x, b) = (u8::from(self.wide), self.r, self.x, self.b);
        if let Some(Vex { l, pp }) = self.vex {
            let last = (!self.vvvv & 15) << 3 | l << 2 | pp;
            if self.map == 1 && w | x | b == 0 {
                to.push(0xc5);
                to.push((r ^ 1) << 7 | last);
            } else {
                to.push(0xc4);
                to.push((r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | self.map);
                to.push(w << 7 | last);
            }
        } else {
            let bits = w << 3 | r << 2 | x << 1 | b;
            if bits != 0 || rex {
                to.push(0x40 | bits);
            }
            if self.map > 0 {
                to.push(0x0f);
            }
            match self.map {
                2 => to.push(0x38),
                3 => to.push(0x3a),
                _ => {}
            }
        }
        to.push(self.opcode);
    }
}

/// A memory operand with a base.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub base: u8,
    /// And its scale as a shift count.
    pub index: Option<(u8, u8)>,
    disp: i32,
}

impl Operand {
    pub fn of(insn: &Instruction) -> Option<Self> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let disp = i32::try_from(insn.memory_displacement64() as i64).ok()?;
        let index = match index {
            Register::None => None,
            _ if index.is_gpr64() && index.number() as u8 != HOST_RSP => {
                Some((index.number() as u8, insn.memory_index_scale().trailing_zeros() as u8))
            }
            _ => return None,
        };
        base.is_gpr64().then(|| Self { base: base.number() as u8, index, disp })
    }

    /// ModRM, SIB and displacement.
    #[inline]
    pub fn write(self, to: &mut Bytes, modrm: u8) {
        let (base, small) = (self.base & 7, i8::try_from(self.disp));
        let mode = match (self.disp, small) {
            (0, _) if base != 5 => 0,
            (_, Ok(_)) => 0x40,
            _ => 0x80,
        };
        match self.index {
            Some((index, shift)) => {
                to.push(modrm & 0x38 | mode | 4);
                to.push(shift << 6 | (index & 7) << 3 | base);
            }
            None if base == HOST_RSP => {
                to.push(modrm & 0x38 | mode | 4);
                to.push(0x24);
            }
            None => to.push(modrm & 0x38 | mode | base),
        }
        let [first, rest @ ..] = self.disp.to_le_bytes();
        if mode != 0 {
            to.push(first);
        }
        if mode == 0x80 {
            rest.into_iter().for_each(|byte| to.push(byte));
        }
    }
}

impl Bytes {
    #[inline]
    pub fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    /// All that there is room for, and how many of them count.
    pub fn all(&self) -> (&[u8; ROOM], usize) {
        (&self.bytes, self.len)
    }

    pub fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
