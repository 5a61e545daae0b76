//! Instructions that access memory, and what each accesses.

use crate::modes::Mode;

/// What an instruction does at its operand's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// Reads and writes: faults as a write does.
    Modify,
    /// Nothing, whatever the address.
    Never,
}

/// What can be said of the result beside faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Result {
    /// RAX is what was read, extended by zeros.
    Load,
    /// Memory is RAX's low bytes.
    Store,
    /// Nothing: it is compared between the ways of execution.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Legacy prefixes, whether REX.W, opcode.
    Legacy(&'static [u8], bool, &'static [u8]),
    /// Map, prefix (0, 1 for 66, 2 for F3, 3 for F2), W, 256 bits, the opcode, and whether the
    /// second source is register 2.
    Vex(u8, u8, bool, bool, u8, bool),
}

#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub name: &'static str,
    pub coding: Coding,
    /// ModRM.reg.
    pub reg: u8,
    pub imm: &'static [u8],
    pub len: usize,
    pub access: Access,
    /// An operand at another address is #GP(0).
    pub aligned: usize,
    pub result: Result,
    /// Follows, so that RAX has the result.
    pub tail: &'static [u8],
}

const fn form(name: &'static str, coding: Coding, reg: u8, len: usize, access: Access) -> Form {
    let (imm, tail) = (&[], &[]);
    Form { name, coding, reg, imm, len, access, aligned: 1, result: Result::Other, tail }
}

impl Form {
    const fn imm(self, imm: &'static [u8]) -> Self {
        Self { imm, ..self }
    }
    const fn aligned(self, aligned: usize) -> Self {
        Self { aligned, ..self }
    }
    const fn loads(self) -> Self {
        Self { result: Result::Load, ..self }
    }
    const fn stores(self) -> Self {
        Self { result: Result::Store, ..self }
    }
    const fn tail(self, tail: &'static [u8]) -> Self {
        Self { tail, result: Result::Load, ..self }
    }

    /// The instruction with its operand; its length is the same for each displacement of the
    /// mode.
    pub fn encode(&self, mode: &Mode, disp: i32) -> Vec<u8> {
        let mut out = mode.prefixes();
        match self.coding {
            Coding::Legacy(prefixes, wide, opcode) => {
                out.extend(prefixes);
                let rex = 0x40 | u8::from(wide) << 3 | u8::from(self.reg >= 8) << 2 | mode.rex();
                if rex != 0x40 {
                    out.push(rex);
                }
                out.extend(opcode);
            }
            Coding::Vex(map, prefix, wide, long, opcode, second) => {
                let extensions = u8::from(self.reg < 8) << 7 | (!mode.rex() & 3) << 5;
                let vvvv = if second { !2 & 15 } else { 15 };
                let last = u8::from(wide) << 7 | vvvv << 3 | u8::from(long) << 2 | prefix;
                out.extend([0xc4, extensions | map, last, opcode]);
            }
        }
        out.extend(mode.modrm(self.reg, disp));
        out.extend(self.imm);
        out
    }
}

use Access::{Modify, Never, Read, Write};
use Coding::{Legacy, Vex};

/// MOVQ RAX, XMM0.
const LOW: &[u8] = &[0x66, 0x48, 0x0f, 0x7e, 0xc0];

/// The forms that are tried in every addressing mode.
pub const FEW: &[Form] = &[
    form("mov r8", Legacy(&[], false, &[0x8a]), 0, 1, Read).tail(&[0x0f, 0xb6, 0xc0]),
    form("mov r32", Legacy(&[], false, &[0x8b]), 0, 4, Read).loads(),
    form("mov r64", Legacy(&[], true, &[0x8b]), 0, 8, Read).loads(),
    form("mov m8", Legacy(&[], false, &[0x88]), 0, 1, Write).stores(),
    form("mov m64", Legacy(&[], true, &[0x89]), 0, 8, Write).stores(),
    form("mov m16,imm", Legacy(&[0x66], false, &[0xc7]), 0, 2, Write).imm(&[0x34, 0x12]),
    form("add m32", Legacy(&[], false, &[0x01]), 0, 4, Modify),
    form("lock xadd m64", Legacy(&[0xf0], true, &[0x0f, 0xc1]), 0, 8, Modify).loads(),
    form("movups load", Legacy(&[], false, &[0x0f, 0x10]), 0, 16, Read).tail(LOW),
    form("movups store", Legacy(&[], false, &[0x0f, 0x11]), 0, 16, Write),
    form("vmovdqu ymm load", Vex(1, 2, false, true, 0x6f, false), 0, 32, Read).tail(LOW),
    form("vmovdqu ymm store", Vex(1, 2, false, true, 0x7f, false), 0, 32, Write),
    form("fld m80", Legacy(&[], false, &[0xdb]), 5, 10, Read),
    form("lea", Legacy(&[], true, &[0x8d]), 0, 1, Never),
];

/// Those that are tried in one mode.
pub const MANY: &[Form] = &[
    form("mov r16", Legacy(&[0x66], false, &[0x8b]), 0, 2, Read),
    form("movzx8", Legacy(&[], false, &[0x0f, 0xb6]), 0, 1, Read).loads(),
    form("movzx16", Legacy(&[], true, &[0x0f, 0xb7]), 0, 2, Read).loads(),
    form("movsx8", Legacy(&[], true, &[0x0f, 0xbe]), 0, 1, Read),
    form("movsxd", Legacy(&[], true, &[0x63]), 0, 4, Read),
    form("mov m16", Legacy(&[0x66], false, &[0x89]), 0, 2, Write).stores(),
    form("mov m32", Legacy(&[], false, &[0x89]), 0, 4, Write).stores(),
    form("mov m64,imm", Legacy(&[], true, &[0xc7]), 0, 8, Write).imm(&[1, 2, 3, 4]),
    form("mov sreg", Legacy(&[], false, &[0x8c]), 3, 2, Write),
    form("add r64", Legacy(&[], true, &[0x03]), 0, 8, Read),
    form("cmp m8", Legacy(&[], false, &[0x38]), 0, 1, Read),
    form("cmp m32,imm", Legacy(&[], false, &[0x81]), 7, 4, Read).imm(&[1, 2, 3, 4]),
    form("test m64", Legacy(&[], true, &[0x85]), 0, 8, Read),
    form("adc m8", Legacy(&[], false, &[0x10]), 0, 1, Modify),
    form("or m16", Legacy(&[0x66], false, &[0x09]), 0, 2, Modify),
    form("sub m64,imm", Legacy(&[], true, &[0x83]), 5, 8, Modify).imm(&[9]),
    form("lock or m16", Legacy(&[0xf0, 0x66], false, &[0x09]), 0, 2, Modify),
    form("lock inc m8", Legacy(&[0xf0], false, &[0xfe]), 0, 1, Modify),
    form("lock btc m64,imm", Legacy(&[0xf0], true, &[0x0f, 0xba]), 7, 8, Modify).imm(&[33]),
    form("inc m32", Legacy(&[], false, &[0xff]), 0, 4, Modify),
    form("not m64", Legacy(&[], true, &[0xf7]), 2, 8, Modify),
    form("neg m8", Legacy(&[], false, &[0xf6]), 3, 1, Modify),
    form("xchg m8", Legacy(&[], false, &[0x86]), 0, 1, Modify),
    form("xchg m64", Legacy(&[], true, &[0x87]), 0, 8, Modify).loads(),
    form("cmpxchg m32", Legacy(&[], false, &[0x0f, 0xb1]), 3, 4, Modify),
    form("lock cmpxchg m64", Legacy(&[0xf0], true, &[0x0f, 0xb1]), 3, 8, Modify),
    form("cmpxchg8b", Legacy(&[], false, &[0x0f, 0xc7]), 1, 8, Modify),
    form("lock cmpxchg16b", Legacy(&[0xf0], true, &[0x0f, 0xc7]), 1, 16, Modify).aligned(16),
    form("shl m32,1", Legacy(&[], false, &[0xd1]), 4, 4, Modify),
    form("rol m64,imm", Legacy(&[], true, &[0xc1]), 0, 8, Modify).imm(&[3]),
    form("shld m64,imm", Legacy(&[], true, &[0x0f, 0xa4]), 0, 8, Modify).imm(&[7]),
    form("bt m32,imm", Legacy(&[], false, &[0x0f, 0xba]), 4, 4, Read).imm(&[7]),
    form("imul r64", Legacy(&[], true, &[0x0f, 0xaf]), 0, 8, Read),
    form("mul m64", Legacy(&[], true, &[0xf7]), 4, 8, Read),
    form("div m64", Legacy(&[], true, &[0xf7]), 6, 8, Read),
    form("idiv m32", Legacy(&[], false, &[0xf7]), 7, 4, Read),
    form("bsf", Legacy(&[], true, &[0x0f, 0xbc]), 0, 8, Read),
    form("popcnt", Legacy(&[0xf3], true, &[0x0f, 0xb8]), 0, 8, Read),
    form("lzcnt", Legacy(&[0xf3], false, &[0x0f, 0xbd]), 0, 4, Read),
    form("movbe load", Legacy(&[], true, &[0x0f, 0x38, 0xf0]), 0, 8, Read),
    form("movbe store", Legacy(&[], false, &[0x0f, 0x38, 0xf1]), 0, 4, Write),
    form("crc32", Legacy(&[0xf2], true, &[0x0f, 0x38, 0xf1]), 0, 8, Read),
    form("cmovo, not taken or taken", Legacy(&[], true, &[0x0f, 0x40]), 0, 8, Read),
    form("setb", Legacy(&[], false, &[0x0f, 0x92]), 0, 1, Write),
    form("andn", Vex(2, 0, true, false, 0xf2, true), 0, 8, Read),
    form("bextr", Vex(2, 0, true, false, 0xf7, true), 0, 8, Read),
    form("shlx", Vex(2, 1, true, false, 0xf7, true), 0, 8, Read),
    form("rorx", Vex(3, 3, true, false, 0xf0, false), 0, 8, Read).imm(&[9]),
    form("mulx", Vex(2, 3, true, false, 0xf6, true), 0, 8, Read),
    form("movnti", Legacy(&[], true, &[0x0f, 0xc3]), 0, 8, Write).stores(),
    form("movdiri", Legacy(&[], true, &[0x0f, 0x38, 0xf9]), 0, 8, Write).stores(),
    form("prefetcht0", Legacy(&[], false, &[0x0f, 0x18]), 1, 1, Never),
    form("prefetchw", Legacy(&[], false, &[0x0f, 0x0d]), 1, 1, Never),
    form("nop m", Legacy(&[], false, &[0x0f, 0x1f]), 0, 4, Never),
    form("clflush", Legacy(&[], false, &[0x0f, 0xae]), 7, 1, Read),
    form("clflushopt", Legacy(&[0x66], false, &[0x0f, 0xae]), 7, 1, Read),
    form("clwb", Legacy(&[0x66], false, &[0x0f, 0xae]), 6, 1, Read),
    form("movss load", Legacy(&[0xf3], false, &[0x0f, 0x10]), 0, 4, Read).tail(LOW),
    form("movss store", Legacy(&[0xf3], false, &[0x0f, 0x11]), 0, 4, Write),
    form("movsd load", Legacy(&[0xf2], false, &[0x0f, 0x10]), 0, 8, Read).tail(LOW),
    form("movsd store", Legacy(&[0xf2], false, &[0x0f, 0x11]), 0, 8, Write),
    form("movd load", Legacy(&[0x66], false, &[0x0f, 0x6e]), 0, 4, Read).tail(LOW),
    form("movq store", Legacy(&[0x66], true, &[0x0f, 0x7e]), 0, 8, Write),
    form("movq mm", Legacy(&[], false, &[0x0f, 0x6f]), 0, 8, Read),
    form("movntq", Legacy(&[], false, &[0x0f, 0xe7]), 0, 8, Write),
    form("movlps", Legacy(&[], false, &[0x0f, 0x12]), 0, 8, Read).tail(LOW),
    form("movhps", Legacy(&[], false, &[0x0f, 0x16]), 0, 8, Read),
    form("movhps store", Legacy(&[], false, &[0x0f, 0x17]), 0, 8, Write),
    form("movaps load", Legacy(&[], false, &[0x0f, 0x28]), 0, 16, Read).aligned(16).tail(LOW),
    form("movaps store", Legacy(&[], false, &[0x0f, 0x29]), 0, 16, Write).aligned(16),
    form("movdqa", Legacy(&[0x66], false, &[0x0f, 0x6f]), 0, 16, Read).aligned(16).tail(LOW),
    form("lddqu", Legacy(&[0xf2], false, &[0x0f, 0xf0]), 0, 16, Read).tail(LOW),
    form("movntps", Legacy(&[], false, &[0x0f, 0x2b]), 0, 16, Write).aligned(16),
    form("movntdq", Legacy(&[0x66], false, &[0x0f, 0xe7]), 0, 16, Write).aligned(16),
    form("movntdqa", Legacy(&[0x66], false, &[0x0f, 0x38, 0x2a]), 0, 16, Read)
        .aligned(16)
        .tail(LOW),
    form("pxor", Legacy(&[0x66], false, &[0x0f, 0xef]), 0, 16, Read).aligned(16),
    form("paddd mm", Legacy(&[], false, &[0x0f, 0xfe]), 0, 8, Read),
    form("pshufd", Legacy(&[0x66], false, &[0x0f, 0x70]), 0, 16, Read).aligned(16).imm(&[27]),
    form("pinsrb", Legacy(&[0x66], false, &[0x0f, 0x3a, 0x20]), 0, 1, Read).imm(&[3]),
    form("pextrb", Legacy(&[0x66], false, &[0x0f, 0x3a, 0x14]), 0, 1, Write).imm(&[3]),
    form("pextrq", Legacy(&[0x66], true, &[0x0f, 0x3a, 0x16]), 0, 8, Write).imm(&[1]),
    form("extractps", Legacy(&[0x66], false, &[0x0f, 0x3a, 0x17]), 0, 4, Write).imm(&[1]),
    form("insertps", Legacy(&[0x66], false, &[0x0f, 0x3a, 0x21]), 0, 4, Read).imm(&[0]),
    form("pmovzxbw", Legacy(&[0x66], false, &[0x0f, 0x38, 0x30]), 0, 8, Read),
    form("pmovsxbq", Legacy(&[0x66], false, &[0x0f, 0x38, 0x22]), 0, 2, Read),
    form("aesenc", Legacy(&[0x66], false, &[0x0f, 0x38, 0xdc]), 0, 16, Read).aligned(16),
    form("pcmpistri", Legacy(&[0x66], false, &[0x0f, 0x3a, 0x63]), 0, 16, Read).imm(&[0]),
    form("cvtsi2sd", Legacy(&[0xf2], true, &[0x0f, 0x2a]), 0, 8, Read),
    form("ucomisd", Legacy(&[0x66], false, &[0x0f, 0x2e]), 0, 8, Read),
    form("stmxcsr", Legacy(&[], false, &[0x0f, 0xae]), 3, 4, Write),
    form("vaddps ymm", Vex(1, 0, false, true, 0x58, true), 0, 32, Read),
    form("vmovaps ymm", Vex(1, 0, false, true, 0x28, false), 0, 32, Read).aligned(32).tail(LOW),
    form("vmovntps ymm", Vex(1, 0, false, true, 0x2b, false), 0, 32, Write).aligned(32),
    form("vbroadcastss", Vex(2, 1, false, true, 0x18, false), 0, 4, Read),
    form("vbroadcastsd", Vex(2, 1, false, true, 0x19, false), 0, 8, Read).tail(LOW),
    form("vbroadcastf128", Vex(2, 1, false, true, 0x1a, false), 0, 16, Read).tail(LOW),
    form("vinsertf128", Vex(3, 1, false, true, 0x18, true), 0, 16, Read).imm(&[1]),
    form("vextractf128", Vex(3, 1, false, true, 0x19, false), 0, 16, Write).imm(&[1]),
    form("vpbroadcastb", Vex(2, 1, false, true, 0x78, false), 0, 1, Read),
    form("vcvtph2ps", Vex(2, 1, false, true, 0x13, false), 0, 16, Read),
    form("vcvtps2ph", Vex(3, 1, false, true, 0x1d, false), 0, 16, Write).imm(&[0]),
    form("fld m32", Legacy(&[], false, &[0xd9]), 0, 4, Read),
    form("fld m64", Legacy(&[], false, &[0xdd]), 0, 8, Read),
    form("fadd m32", Legacy(&[], false, &[0xd8]), 0, 4, Read),
    form("fild m16", Legacy(&[], false, &[0xdf]), 0, 2, Read),
    form("fild m64", Legacy(&[], false, &[0xdf]), 5, 8, Read),
    form("fbld", Legacy(&[], false, &[0xdf]), 4, 10, Read),
    form("fst m32", Legacy(&[], false, &[0xd9]), 2, 4, Write),
    form("fst m64", Legacy(&[], false, &[0xdd]), 2, 8, Write),
    form("fstp m80", Legacy(&[], false, &[0xdb]), 7, 10, Write),
    form("fistp m64", Legacy(&[], false, &[0xdf]), 7, 8, Write),
    form("fisttp m32", Legacy(&[], false, &[0xdb]), 1, 4, Write),
    form("fbstp", Legacy(&[], false, &[0xdf]), 6, 10, Write),
    form("fnstcw", Legacy(&[], false, &[0xd9]), 7, 2, Write),
    form("fldcw", Legacy(&[], false, &[0xd9]), 5, 2, Read),
    form("fnstsw", Legacy(&[], false, &[0xdd]), 7, 2, Write),
    form("fnstenv", Legacy(&[], false, &[0xd9]), 6, 28, Write),
    form("fldenv", Legacy(&[], false, &[0xd9]), 4, 28, Read),
    form("fnsave", Legacy(&[], false, &[0xdd]), 6, 108, Write),
    form("frstor", Legacy(&[], false, &[0xdd]), 4, 108, Read),
    form("fxsave", Legacy(&[], false, &[0x0f, 0xae]), 0, 512, Write).aligned(16),
    form("fxsave64", Legacy(&[], true, &[0x0f, 0xae]), 0, 512, Write).aligned(16),
    form("sgdt", Legacy(&[], false, &[0x0f, 0x01]), 0, 10, Write),
    form("sidt", Legacy(&[], false, &[0x0f, 0x01]), 1, 10, Write),
    form("sldt", Legacy(&[], false, &[0x0f, 0x00]), 0, 2, Write),
    form("smsw", Legacy(&[], false, &[0x0f, 0x01]), 4, 2, Write),
    form("verr", Legacy(&[], false, &[0x0f, 0x00]), 4, 2, Read),
    form("lar", Legacy(&[], false, &[0x0f, 0x02]), 0, 2, Read),
    form("lsl", Legacy(&[], true, &[0x0f, 0x03]), 0, 2, Read),
];
