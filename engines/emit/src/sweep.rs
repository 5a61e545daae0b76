//! A test over every instruction on the allow-list, found by decoding opcode maps exhaustively.

#![expect(unsafe_code, reason = "looks at the host's own control registers")]

use std::arch::asm;
use std::collections::{HashMap, HashSet};

use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic};
use vcpu_state::FpuState;
use x86_defs::{rflags, xsave};

use crate::properties::Properties;
use crate::{Operand, Outcome, StubCache, Unit, Unsupported, allow, stub_code};

/// Round to zero, FTZ and DAZ, everything masked: unlike the host's own.
const ODD_MXCSR: u32 = 0xffc0;

/// ModRM bytes: memory with and without more bytes, registers of many numbers.
const MODRM: [u8; 16] = [
    0x00, 0x0d, 0x53, 0x94, 0x5c, 0x66, 0x2e, 0x3f, 0xc1, 0xca, 0xd4, 0xe5, 0xfb, 0xf8, 0xda, 0xf3,
];

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Eight bytes that are interesting as integers or floating-point numbers of some size.
    fn lane(&mut self) -> u64 {
        const F32: [u32; 8] = [
            0,
            0x8000_0000,
            0x3f80_0000,
            0x7f80_0000,
            0x7fa0_0000,
            0xffc0_0000,
            0x0000_0123,
            0x7f7f_ffff,
        ];
        const F64: [u64; 8] = [
            0,
            1 << 63,
            0x3ff8_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0x7ff4_0000_0000_0001,
            0x000f_0000_0000_0001,
            0xc330_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
        ];
        let choice = self.next();
        let index = (choice >> 8 & 7) as usize;
        match choice & 3 {
            0 => F64[index],
            1 => u64::from(F32[index]) << 32 | u64::from(F32[(choice >> 16 & 7) as usize]),
            _ => self.next(),
        }
    }

    fn fpu(&mut self) -> FpuState {
        let mut fpu = FpuState::init();
        for n in 0..16 {
            fpu.set_xmm(n, u128::from(self.lane()) << 64 | u128::from(self.lane()));
            fpu.set_ymm_hi(n, u128::from(self.lane()) << 64 | u128::from(self.lane()));
        }
        for n in 0..8 {
            fpu.set_u64(xsave::ST + 16 * n, self.lane() | (self.next() & 1) << 63);
            let exponent =
                if self.next() & 3 == 0 { self.next() } else { 0x3ff0 + (self.next() & 31) };
            fpu.set_u16(xsave::ST + 16 * n + 8, exponent as u16);
        }
        fpu.area[xsave::FTW] = (self.next() | self.next()) as u8;
        fpu.set_u16(xsave::FSW, (self.next() & 0x7f7f) as u16);
        // Some exceptions unmasked, all precisions and roundings.
        let masks = if self.next() & 3 == 0 { self.next() } else { 0x3f };
        fpu.set_u16(xsave::FCW, (self.next() & 0xf00 | masks & 0x3f | 0x40) as u16);
        let masks = if self.next() & 3 == 0 { self.next() as u32 } else { 0x1f80 };
        fpu.set_u32(xsave::MXCSR, self.next() as u32 & 0xe07f | masks & 0x1f80);
        fpu
    }
}

fn host_mxcsr() -> u32 {
    let mut mxcsr = 0u32;
    // SAFETY: stores four bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack)) };
    mxcsr
}

fn set_host_mxcsr(mxcsr: u32) {
    // SAFETY: all exceptions are masked in every value that this is called with, and no
    // floating-point code runs before the default is back.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack)) };
}

fn host_x87() -> (u16, u16) {
    let (mut control, mut status) = (0u16, 0u16);
    // SAFETY: stores two bytes each.
    unsafe {
        asm!("fnstcw [{}]", "fnstsw [{}]", in(reg) &mut control, in(reg) &mut status, options(nostack));
    }
    (control, status)
}

/// Calls `each` with every encoding worth trying.
pub(crate) fn encodings(mut each: impl FnMut(u32, &[u8])) {
    let immediates = [0x1b, 0x02, 0, 0, 0, 0, 0, 0];
    let mut both = |bytes: &[u8], only_64: bool| {
        each(64, bytes);
        if !only_64 {
            each(32, bytes);
            each(16, bytes);
        }
    };
    let maps: [&[u8]; 3] = [&[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for map in maps {
        for prefix in [None, Some(0x66), Some(0xf3), Some(0xf2)] {
            for rex in [None, Some(0x48), Some(0x45), Some(0x4d)] {
                for opcode in 0..=255u8 {
                    for modrm in MODRM {
                        let mut bytes: Vec<u8> = prefix.into_iter().chain(rex).collect();
                        bytes.extend_from_slice(map);
                        bytes.extend_from_slice(&[opcode, modrm]);
                        bytes.extend_from_slice(&immediates);
                        both(&bytes, rex.is_some());
                    }
                }
            }
        }
    }
    // 66 and F2 together: CRC32 r32, r/m16.
    for modrm in MODRM {
        both(&[0x66, 0xf2, 0x0f, 0x38, 0xf1, modrm, 0, 0, 0, 0, 0], false);
    }
    for map in 1..=3u8 {
        for flags in 0..=255u8 {
            // R, X and B one, and W, vvvv, L, pp as they come; some vvvv suffice.
            if !matches!(flags >> 3 & 0xf, 0xf | 0xa | 0x0) {
                continue;
            }
            for opcode in 0..=255u8 {
                for modrm in MODRM {
                    let head = [0xc4, 0xe0 | map, flags, opcode, modrm];
                    both(&[&head[..], &immediates].concat(), false);
                }
            }
        }
    }
    for opcode in 0xd8..=0xdfu8 {
        for modrm in 0..=255u8 {
            both(&[&[opcode, modrm][..], &immediates].concat(), false);
        }
    }
    both(&[0x9b], false);
}

fn listed(mnemonic: Mnemonic) -> bool {
    allow::x87(mnemonic)
        || allow::legacy_simd(mnemonic)
        || allow::legacy_simd_fp(mnemonic)
        || allow::vex_simd(mnemonic)
        || allow::vex_simd_fp(mnemonic)
        || allow::general(mnemonic)
}

fn run_one(random: &mut Random, cache: &StubCache, insn: &Instruction) {
    let stub = match cache.compile(insn) {
        Ok(stub) => stub,
        Err(Unsupported::Encoding) => panic!("no encoding for {:?}", insn.code()),
        Err(_) => return,
    };
    let properties = stub.properties().clone();
    let before = random.fpu();
    let mut fpu = before.clone();
    let gpr_before: [u64; 16] = std::array::from_fn(|_| random.lane());
    let mut gpr = gpr_before;
    let flags_before = random.next() & rflags::DEFINED | rflags::FIXED;
    let mut flags = flags_before;
    let mut operand = Operand::new();
    operand.0.fill_with(|| random.next() as u8);
    let operand_before = operand.clone();

    let plain = !properties.simd_fp && !properties.on_x87();
    set_host_mxcsr(if plain { ODD_MXCSR } else { 0x1f80 });
    let outcome = stub.run(&mut fpu, &mut gpr, &mut flags, &mut operand);
    let mxcsr = host_mxcsr();
    set_host_mxcsr(0x1f80);

    let code = insn.code();
    if plain {
        assert_eq!(mxcsr, ODD_MXCSR, "{code:?} changed MXCSR");
        let mut again = (before.clone(), gpr_before, flags_before, operand_before.clone());
        let _ = stub.run(&mut again.0, &mut again.1, &mut again.2, &mut again.3);
        assert_eq!(
            (&again.0.area, again.1, again.2),
            (&fpu.area, gpr, flags),
            "{code:?} depends on MXCSR"
        );
    } else {
        assert_eq!(mxcsr & !0x3f, 0x1f80, "{code:?} left its MXCSR in the host");
        assert_eq!(host_x87(), (0x37f, 0), "{code:?} left its x87 state in the host");
    }
    check_unwritten(&properties, &before, &fpu, code);
    for n in 0..16 {
        if properties.gpr_written >> n & 1 == 0 || outcome != Outcome::Done {
            assert_eq!(gpr[n], gpr_before[n], "{code:?} changed register {n}");
        }
    }
    assert_eq!((flags ^ flags_before) & !properties.flags_written, 0, "{code:?} changed flags");
    let written = match properties.memory {
        Some(memory) if memory.write => usize::from(memory.size),
        _ => 0,
    };
    assert_eq!(operand.0[written..], operand_before.0[written..], "{code:?} wrote too much");
    if outcome == Outcome::SimdException {
        assert!(properties.simd_fp);
        assert_ne!(fpu.mxcsr() & !(fpu.mxcsr() >> 7) & 0x3f, 0);
    }
}

fn check_unwritten(properties: &Properties, before: &FpuState, after: &FpuState, code: Code) {
    for n in 0..16 {
        let written = properties.vector_written >> n & 1 != 0;
        if !written {
            assert_eq!(after.xmm(n), before.xmm(n), "{code:?} changed XMM{n}");
        }
        if !written || !properties.vex {
            assert_eq!(after.ymm_hi(n), before.ymm_hi(n), "{code:?} changed YMM{n}");
        }
    }
    let mxcsr = before.mxcsr() ^ after.mxcsr();
    assert_eq!(mxcsr & !if properties.simd_fp { 0x3f } else { 0 }, 0, "{code:?} changed MXCSR");
    if code == Code::Fninit {
        return;
    }
    let x87 = [xsave::FOP..xsave::MXCSR, xsave::MXCSR_MASK..xsave::ST];
    for range in x87 {
        assert_eq!(after.area[range.clone()], before.area[range], "{code:?}: pointers");
    }
    if !properties.on_x87() {
        assert_eq!(after.area[..xsave::MXCSR], before.area[..xsave::MXCSR], "{code:?}");
        assert_eq!(after.area[xsave::ST..xsave::XMM], before.area[xsave::ST..xsave::XMM]);
    }
}

#[test]
fn every_listed_instruction_runs() {
    let cache = StubCache::new().unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen: HashSet<Code> = HashSet::new();
    encodings(|bitness, bytes| {
        let insn = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
        if insn.is_invalid() || !listed(insn.mnemonic()) {
            return;
        }
        seen.insert(insn.code());
        run_one(&mut random, &cache, &insn);
    });
    let ours = |code: &Code| {
        let mut insn = Instruction::default();
        insn.set_code(*code);
        listed(code.mnemonic())
            && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && Properties::of(&insn).is_ok()
    };
    let missed: Vec<Code> =
        Code::values().filter(ours).filter(|code| !seen.contains(code)).collect();
    assert!(missed.is_empty(), "never decoded: {missed:?}");
    let units = |unit| seen.iter().filter(|code| unit_of(**code) == Some(unit)).count();
    assert!(units(Unit::X87) > 120, "{}", units(Unit::X87));
    assert!(units(Unit::Sse) > 300, "{}", units(Unit::Sse));
}

/// Runs the instruction between loads and stores of all vector registers, instead of those only
/// that its properties name.
fn run_with_all_registers(random: &mut Random, cache: &StubCache, insn: &Instruction) {
    let stub = cache.compile(insn).unwrap();
    let mut all = stub.properties().clone();
    all.vector_used = 0xffff;
    all.vector_written = 0xffff;
    all.wide = all.vex;
    let (normal, pointers) = stub_code::normalise(insn, &all).unwrap();
    let code = stub_code::build(&normal, &pointers, &all).unwrap();
    let reference = cache.transient(code, all);

    let fpu = random.fpu();
    let gpr: [u64; 16] = std::array::from_fn(|_| random.lane());
    let mut operand = Operand::new();
    operand.0.fill_with(|| random.next() as u8);
    let mut expected = (fpu.clone(), gpr, 2u64, operand.clone());
    let mut actual = (fpu, gpr, 2u64, operand);
    let outcomes = [(&reference, &mut expected), (&stub, &mut actual)]
        .map(|(stub, state)| stub.run(&mut state.0, &mut state.1, &mut state.2, &mut state.3));
    assert_eq!(outcomes[0], outcomes[1]);
    let code = insn.code();
    assert!(expected.0 == actual.0, "{code:?}");
    assert_eq!((expected.1, expected.2), (actual.1, actual.2), "{code:?}");
    if outcomes[0] == Outcome::Done {
        assert_eq!(expected.3.0, actual.3.0, "{code:?}");
    }
}

#[test]
fn properties_name_every_vector_register() {
    let cache = StubCache::new().unwrap();
    let mut random = Random(0x0bad_cafe_dead_beef);
    let mut seen: HashMap<Code, u32> = HashMap::new();
    encodings(|bitness, bytes| {
        let insn = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
        let vector = Properties::of(&insn)
            .is_ok_and(|properties| matches!(properties.unit, Unit::Sse | Unit::Avx));
        let times = seen.entry(insn.code()).or_default();
        if vector && *times < 12 {
            *times += 1;
            run_with_all_registers(&mut random, &cache, &insn);
        }
    });
    assert!(seen.values().filter(|times| **times == 12).count() > 500);
}

fn unit_of(code: Code) -> Option<Unit> {
    let mut insn = Instruction::default();
    insn.set_code(code);
    Properties::of(&insn).ok().map(|properties| properties.unit)
}
