//! FLDENV, FNSTENV, FRSTOR and FNSAVE in software: the x87 environment in memory.
//!
//! A stub of these would show host addresses. The formats are those of SDM volume 1, 8.1.10
//! (figures 8-9 to 8-12). FCS and FDS are deprecated and stored as zero
//! (CPUID.(7,0):EBX\[13\]).
//!
//! Storing: raise what is due, write [`store`]'s bytes to memory, then [`Instruction::stored`].
//! Loading: raise what is due (both loads wait: see [`crate::x87::pending`]), read
//! [`Instruction::len`] bytes, then [`load`].

use iced_x86::Code;
use vcpu_state::FpuState;
use x86_defs::xsave;

use crate::x87;

/// Longest image: FNSAVE with 32-bit operand size.
pub const MAX_LEN: usize = 108;

/// Bytes of eight registers after the environment.
const REGISTERS_LEN: usize = 80;

/// One of the four instructions, in one operand size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// FNSTENV or FNSAVE.
    pub stores: bool,
    /// FNSAVE or FRSTOR: the registers too.
    pub registers: bool,
    /// 32-bit operand size.
    pub wide: bool,
}

impl Instruction {
    /// `None` for any other instruction.
    pub fn of(code: Code) -> Option<Self> {
        let (stores, registers, wide) = match code {
            Code::Fnstenv_m14byte => (true, false, false),
            Code::Fnstenv_m28byte => (true, false, true),
            Code::Fnsave_m94byte => (true, true, false),
            Code::Fnsave_m108byte => (true, true, true),
            Code::Fldenv_m14byte => (false, false, false),
            Code::Fldenv_m28byte => (false, false, true),
            Code::Frstor_m94byte => (false, true, false),
            Code::Frstor_m108byte => (false, true, true),
            _ => return None,
        };
        Some(Self { stores, registers, wide })
    }

    fn environment_len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// Bytes in memory.
    // The length of an operand: there is no empty one.
    #[expect(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.environment_len() + if self.registers { REGISTERS_LEN } else { 0 }
    }

    /// What the instruction does to the unit once the image is in memory: FNSTENV masks all
    /// exceptions, FNSAVE initialises.
    pub fn stored(self, fpu: &mut FpuState) {
        if self.registers {
            x87::initialise(fpu);
        } else {
            let fcw = fpu.u16(xsave::FCW) | 0x3f;
            fpu.set_u16(xsave::FCW, fcw);
            x87::make_consistent(fpu);
        }
    }
}

/// The image that FNSTENV or FNSAVE writes; [`Instruction::len`] bytes of it count.
///
/// `real` selects the formats of real-address and virtual-8086 mode.
pub fn store(fpu: &FpuState, insn: Instruction, real: bool) -> [u8; MAX_LEN] {
    let (fcw, fsw) = (fpu.u16(xsave::FCW), fpu.u16(xsave::FSW));
    let tags = x87::full_tags(fpu);
    let fop = u32::from(fpu.u16(xsave::FOP) & 0x7ff);
    let (fip, fdp) = (fpu.u64(xsave::FIP) as u32, fpu.u64(xsave::FDP) as u32);
    let mut image = [0; MAX_LEN];
    if insn.wide {
        // Reserved halves read as ones.
        let words = [fcw, fsw, tags].map(|word| 0xffff_0000 | u32::from(word));
        let pointers = if real {
            [
                0xffff_0000 | fip & 0xffff,
                fip >> 16 << 12 | fop,
                0xffff_0000 | fdp & 0xffff,
                fdp >> 16 << 12,
            ]
        } else {
            [fip, fop << 16, fdp, 0xffff_0000]
        };
        put(&mut image, words.into_iter().chain(pointers).map(u32::to_le_bytes));
    } else {
        let pointers = if real {
            [fip, fip >> 4 & 0xf000 | fop, fdp, fdp >> 4 & 0xf000]
        } else {
            [fip, 0, fdp, 0]
        };
        let words = [fcw, fsw, tags].into_iter().chain(pointers.map(|pointer| pointer as u16));
        put(&mut image, words.map(u16::to_le_bytes));
    }
    if insn.registers {
        let registers = (0..8).map(|n| register(fpu, n));
        put(&mut image[insn.environment_len()..], registers);
    }
    image
}

/// Takes over what FLDENV or FRSTOR read; bytes past [`Instruction::len`] do not count.
pub fn load(fpu: &mut FpuState, insn: Instruction, real: bool, image: &[u8; MAX_LEN]) {
    let word = |n: usize| {
        let at = if insn.wide { 4 * n } else { 2 * n };
        u16::from_le_bytes([image[at], image[at + 1]])
    };
    let dword = |n: usize| {
        let at = 4 * n;
        u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
    };
    let (fip, fop, fdp) = match (insn.wide, real) {
        (true, false) => (dword(3), dword(4) >> 16, dword(5)),
        (true, true) => (
            dword(3) & 0xffff | dword(4) >> 12 << 16,
            dword(4),
            dword(5) & 0xffff | dword(6) >> 12 << 16,
        ),
        // The 16-bit protected format has no opcode.
        (false, false) => (u32::from(word(3)), 0, u32::from(word(5))),
        (false, true) => (
            u32::from(word(3)) | u32::from(word(4) >> 12) << 16,
            u32::from(word(4)),
            u32::from(word(5)) | u32::from(word(6) >> 12) << 16,
        ),
    };
    fpu.set_u16(xsave::FOP, fop as u16 & 0x7ff);
    fpu.set_u64(xsave::FIP, u64::from(fip));
    fpu.set_u64(xsave::FDP, u64::from(fdp));
    x87::load_control(fpu, word(0));
    x87::load_status_and_tags(fpu, word(1), word(2));
    if insn.registers {
        let from = insn.environment_len();
        for (n, bytes) in image[from..from + REGISTERS_LEN].chunks_exact(10).enumerate() {
            let at = xsave::ST + 16 * n;
            fpu.area[at..at + 10].copy_from_slice(bytes);
            fpu.area[at + 10..at + 16].fill(0);
        }
    }
}

fn register(fpu: &FpuState, n: usize) -> [u8; 10] {
    let at = xsave::ST + 16 * n;
    let mut out = [0; 10];
    out.copy_from_slice(&fpu.area[at..at + 10]);
    out
}

fn put<const N: usize>(image: &mut [u8], fields: impl Iterator<Item = [u8; N]>) {
    for (to, field) in image.chunks_exact_mut(N).zip(fields) {
        to.copy_from_slice(&field);
    }
}

#[cfg(test)]
mod native_tests {
    //! Against the host's own instructions.
    #![expect(unsafe_code, reason = "runs the host's instructions")]

    use std::arch::asm;

    use iced_x86::Decoder;

    use super::*;
    use crate::{Operand, Outcome, StubCache};

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn fpu(&mut self) -> FpuState {
            let mut fpu = FpuState::init();
            for n in 0..8 {
                let significand = [0, 1 << 63, self.next(), 1, self.next() | 1 << 63];
                let exponent = [0, 0x7fff, self.next(), 0x3fff, 0x8000];
                fpu.set_u64(xsave::ST + 16 * n, significand[self.next() as usize % 5]);
                fpu.set_u16(xsave::ST + 16 * n + 8, exponent[self.next() as usize % 5] as u16);
            }
            fpu.area[xsave::FTW] = self.next() as u8;
            fpu.set_u16(xsave::FSW, self.next() as u16);
            x87::load_control(&mut fpu, self.next() as u16);
            fpu
        }
    }

    macro_rules! native {
        ($name:ident, $text:literal) => {
            /// Loads the x87 unit from the state, runs one instruction, saves it back.
            fn $name(fpu: &mut FpuState, image: &mut [u8; MAX_LEN]) {
                // SAFETY: the area has FXSAVE's length and alignment, the image the longest
                // operand's length; the unit is left as the host's ABI has it, and MXCSR in
                // the area is its default.
                unsafe {
                    asm!(
                        "fxrstor64 [{area}]", $text, "fxsave64 [{area}]", "fninit",
                        area = in(reg) fpu.area.as_mut_ptr(), image = in(reg) image.as_mut_ptr(),
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                        out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                        out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                        out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                        out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                        out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                        options(nostack)
                    );
                }
            }
        };
    }
    native!(fnstenv, "fnstenv [{image}]");
    native!(fnsave, "fnsave [{image}]");
    native!(fldenv, "fldenv [{image}]");
    native!(frstor, "frstor [{image}]");
    native!(fnstenv16, ".byte 0x66\nfnstenv [{image}]");
    native!(fnsave16, ".byte 0x66\nfnsave [{image}]");
    native!(fldenv16, ".byte 0x66\nfldenv [{image}]");
    native!(frstor16, ".byte 0x66\nfrstor [{image}]");

    native!(fninit, "fninit # {image}");
    native!(fnclex, "fnclex # {image}");
    native!(fldcw, "fldcw [{image}]");
    native!(fnstcw, "fnstcw [{image}]");
    native!(fnstsw, "fnstsw [{image}]");

    type Native = fn(&mut FpuState, &mut [u8; MAX_LEN]);

    /// The x87 state but for the pointers, which depend on the host's model.
    fn state(fpu: &FpuState) -> (u16, u16, u8, Vec<[u8; 10]>) {
        let registers = (0..8).map(|n| register(fpu, n)).collect();
        (fpu.u16(xsave::FCW), fpu.u16(xsave::FSW), fpu.area[xsave::FTW], registers)
    }

    /// The image without pointers.
    fn comparable(insn: Instruction, image: &[u8; MAX_LEN]) -> Vec<u8> {
        let words = if insn.wide { 12 } else { 6 };
        [&image[..words], &image[insn.environment_len()..insn.len()]].concat()
    }

    #[test]
    fn stores_as_the_host() {
        let mut random = Random(0x1234_5678_9abc_def1);
        let cases: [(Native, Instruction); 4] = [
            (fnstenv, Instruction { stores: true, registers: false, wide: true }),
            (fnsave, Instruction { stores: true, registers: true, wide: true }),
            (fnstenv16, Instruction { stores: true, registers: false, wide: false }),
            (fnsave16, Instruction { stores: true, registers: true, wide: false }),
        ];
        for round in 0..4000 {
            let (native, insn) = cases[round & 3];
            let mut fpu = random.fpu();
            x87::make_consistent(&mut fpu);
            let mut hosts = (fpu.clone(), [0; MAX_LEN]);
            native(&mut hosts.0, &mut hosts.1);
            let image = store(&fpu, insn, false);
            insn.stored(&mut fpu);
            assert_eq!(comparable(insn, &image), comparable(insn, &hosts.1), "{insn:?}");
            assert_eq!(state(&fpu), state(&hosts.0), "{insn:?}");
        }
    }

    #[test]
    fn loads_as_the_host() {
        let mut random = Random(0x0fed_cba9_8765_4321);
        let cases: [(Native, Instruction); 4] = [
            (fldenv, Instruction { stores: false, registers: false, wide: true }),
            (frstor, Instruction { stores: false, registers: true, wide: true }),
            (fldenv16, Instruction { stores: false, registers: false, wide: false }),
            (frstor16, Instruction { stores: false, registers: true, wide: false }),
        ];
        for round in 0..4000 {
            let (native, insn) = cases[round & 3];
            let mut fpu = random.fpu();
            // Both wait.
            fpu.set_u16(xsave::FSW, fpu.u16(xsave::FSW) & 0x7f00);
            let mut image = [0; MAX_LEN];
            image.fill_with(|| random.next() as u8);
            let mut hosts = (fpu.clone(), image);
            native(&mut hosts.0, &mut hosts.1);
            load(&mut fpu, insn, false, &image);
            assert_eq!(state(&fpu), state(&hosts.0), "{insn:?}");
        }
    }

    #[test]
    fn control_instructions_as_the_host() {
        let cases: [(Native, [u8; 2]); 5] = [
            (fninit, [0xdb, 0xe3]),
            (fnclex, [0xdb, 0xe2]),
            (fldcw, [0xd9, 0x28]),
            (fnstcw, [0xd9, 0x38]),
            (fnstsw, [0xdd, 0x38]),
        ];
        let cache = StubCache::new().unwrap();
        let mut random = Random(0x1111_2222_3333_4444);
        for round in 0..2000 {
            let (native, bytes) = cases[round % 5];
            let stub = cache.compile(&Decoder::new(64, &bytes, 0).decode()).unwrap();
            let mut fpu = random.fpu();
            x87::make_consistent(&mut fpu);
            if x87::pending(&fpu) && stub.properties().waiting {
                continue;
            }
            let mut image = [0; MAX_LEN];
            image.fill_with(|| random.next() as u8);
            let mut operand = Operand::new();
            operand.0[..16].copy_from_slice(&image[..16]);
            let mut hosts = (fpu.clone(), image);
            native(&mut hosts.0, &mut hosts.1);
            let outcome = stub.run(&mut fpu, &mut [0; 16], &mut 2, &mut operand);
            assert_eq!(outcome, Outcome::Done);
            assert_eq!(state(&fpu), state(&hosts.0), "{bytes:x?}");
            assert_eq!(operand.0[..16], hosts.1[..16], "{bytes:x?}");
        }
    }

    #[test]
    fn pointers_go_round_in_every_format() {
        let mut fpu = FpuState::init();
        fpu.set_u64(xsave::FIP, 0x9_1234);
        fpu.set_u64(xsave::FDP, 0xa_5678);
        fpu.set_u16(xsave::FOP, 0x51d);
        for wide in [false, true] {
            for real in [false, true] {
                let insn = Instruction { stores: true, registers: false, wide };
                let image = store(&fpu, insn, real);
                let mut again = FpuState::init();
                load(&mut again, Instruction { stores: false, ..insn }, real, &image);
                let limit = if wide || real { u64::MAX } else { 0xffff };
                assert_eq!(again.u64(xsave::FIP), 0x9_1234 & limit);
                assert_eq!(again.u64(xsave::FDP), 0xa_5678 & limit);
                let fop = if wide || real { 0x51d } else { 0 };
                assert_eq!(again.u16(xsave::FOP), fop);
            }
        }
    }
}
