//! SSE and AVX stubs: results, upper halves, flags, exceptions.

use emit::{Operand, Outcome, Stub, StubCache, Unit};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use vcpu_state::FpuState;
use x86_defs::rflags;

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::new(64, bytes, DecoderOptions::NONE).decode()
}

struct Cpu {
    cache: StubCache,
    fpu: FpuState,
    gpr: [u64; 16],
    rflags: u64,
    operand: Operand,
}

impl Cpu {
    fn new() -> Self {
        Self {
            cache: StubCache::new().unwrap(),
            fpu: FpuState::init(),
            gpr: [0; 16],
            rflags: rflags::FIXED,
            operand: Operand::new(),
        }
    }

    fn stub(&self, bytes: &[u8]) -> Stub {
        self.cache.compile(&decode(bytes)).unwrap()
    }

    fn run(&mut self, bytes: &[u8]) -> Outcome {
        let stub = self.stub(bytes);
        stub.run(&mut self.fpu, &mut self.gpr, &mut self.rflags, &mut self.operand)
    }

    fn done(&mut self, bytes: &[u8]) {
        assert_eq!(self.run(bytes), Outcome::Done);
    }
}

fn f64s(value: u128) -> [f64; 2] {
    [f64::from_bits(value as u64), f64::from_bits((value >> 64) as u64)]
}

fn of_f64s(values: [f64; 2]) -> u128 {
    u128::from(values[0].to_bits()) | u128::from(values[1].to_bits()) << 64
}

fn f32s(value: u128) -> [f32; 4] {
    [0, 32, 64, 96].map(|shift| f32::from_bits((value >> shift) as u32))
}

fn of_f32s(values: [f32; 4]) -> u128 {
    values.iter().rev().fold(0, |all, value| all << 32 | u128::from(value.to_bits()))
}

const A: u128 = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
const B: u128 = 0xf0e1_d2c3_b4a5_9687_7869_5a4b_3c2d_1e0f;

#[test]
fn addpd_adds() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(9, of_f64s([1.5, -2.25]));
    cpu.fpu.set_xmm(2, of_f64s([0.25, 4.0]));
    cpu.done(&[0x66, 0x44, 0x0f, 0x58, 0xca]); // addpd xmm9, xmm2
    assert_eq!(f64s(cpu.fpu.xmm(9)), [1.75, 1.75]);
    assert_eq!(f64s(cpu.fpu.xmm(2)), [0.25, 4.0]);
    assert_eq!(cpu.fpu.mxcsr(), 0x1f80);
}

#[test]
fn paddb_and_pshufb_as_written_in_rust() {
    let mut cpu = Cpu::new();
    let (a, b) = (A.to_le_bytes(), B.to_le_bytes());
    cpu.fpu.set_xmm(1, A);
    cpu.fpu.set_xmm(2, B);
    cpu.done(&[0x66, 0x0f, 0xfc, 0xca]); // paddb xmm1, xmm2
    let sums: [u8; 16] = std::array::from_fn(|n| a[n].wrapping_add(b[n]));
    assert_eq!(cpu.fpu.xmm(1).to_le_bytes(), sums);
    cpu.fpu.set_xmm(1, A);
    cpu.done(&[0x66, 0x0f, 0x38, 0x00, 0xca]); // pshufb xmm1, xmm2
    let pick = |by: u8| if by & 0x80 != 0 { 0 } else { a[usize::from(by & 15)] };
    assert_eq!(cpu.fpu.xmm(1).to_le_bytes(), b.map(pick));
}

#[test]
fn aesenc_as_in_fips_197() {
    if !std::is_x86_feature_detected!("aes") {
        return;
    }
    // Appendix B, rounds 1 and 2.
    let start = 0x0848_f8e9_2a8d_c69a_2be2_f4a0_bee3_3d19;
    let key: u128 = 0x0576_6c2a_3939_a323_b12c_5488_17fe_faa0;
    let next = 0x4950_6a02_43ea_5b6b_2b35_9f68_f27f_9ca4;
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(1, start);
    cpu.operand.0[..16].copy_from_slice(&key.to_le_bytes());
    cpu.done(&[0x66, 0x0f, 0x38, 0xdc, 0x48, 0x30]); // aesenc xmm1, [rax+0x30]
    assert_eq!(cpu.fpu.xmm(1), next);
}

#[test]
fn legacy_keeps_and_vex_zeroes_the_upper_half() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(1, A);
    cpu.fpu.set_ymm_hi(1, B);
    cpu.done(&[0x0f, 0x28, 0xca]); // movaps xmm1, xmm2
    assert_eq!((cpu.fpu.xmm(1), cpu.fpu.ymm_hi(1)), (0, B));
    if !std::is_x86_feature_detected!("avx") {
        return;
    }
    cpu.fpu.set_xmm(2, A);
    cpu.fpu.set_ymm_hi(2, A);
    cpu.done(&[0xc5, 0xf8, 0x28, 0xca]); // vmovaps xmm1, xmm2
    assert_eq!((cpu.fpu.xmm(1), cpu.fpu.ymm_hi(1)), (A, 0));
    cpu.done(&[0xc5, 0xec, 0x57, 0xda]); // vxorps ymm3, ymm2, ymm2
    cpu.done(&[0xc5, 0xe4, 0x56, 0xea]); // vorps ymm5, ymm3, ymm2
    assert_eq!((cpu.fpu.xmm(5), cpu.fpu.ymm_hi(5)), (A, A));
    assert_eq!(cpu.fpu.ymm_hi(2), A);
}

#[test]
fn masked_exceptions_are_sticky() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(0, of_f32s([1.0, 6.0, 2.0, 3.0]));
    cpu.fpu.set_xmm(1, of_f32s([0.0, 2.0, 2.0, 3.0]));
    cpu.done(&[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1
    assert_eq!(f32s(cpu.fpu.xmm(0)), [f32::INFINITY, 3.0, 1.0, 1.0]);
    assert_eq!(cpu.fpu.mxcsr(), 0x1f84);
    cpu.fpu.set_xmm(1, of_f32s([1.0, 7.0, 1.0, 1.0]));
    cpu.done(&[0x0f, 0x5e, 0xc1]);
    assert_eq!(cpu.fpu.mxcsr(), 0x1fa4, "ZE stays, PE comes");
}

#[test]
fn unmasked_exceptions_leave_the_destination() {
    let mut cpu = Cpu::new();
    let dividend = of_f32s([1.0, 1.0, 2.0, 3.0]);
    cpu.fpu.set_xmm(0, dividend);
    cpu.fpu.set_xmm(1, of_f32s([0.0, 3.0, 2.0, 3.0]));
    cpu.fpu.set_u32(x86_defs::xsave::MXCSR, 0x1d80); // ZM clear
    assert_eq!(cpu.run(&[0x0f, 0x5e, 0xc1]), Outcome::SimdException);
    assert_eq!(cpu.fpu.xmm(0), dividend);
    assert_eq!(cpu.fpu.mxcsr(), 0x1d84, "no PE beside a pre-computation exception");
    // A flag that was set before raises nothing by itself.
    cpu.fpu.set_xmm(1, of_f32s([1.0, 1.0, 2.0, 3.0]));
    assert_eq!(cpu.run(&[0x0f, 0x5e, 0xc1]), Outcome::Done);
    // COMISS of a signalling NaN with IM clear: flags stay.
    cpu.fpu.set_u32(x86_defs::xsave::MXCSR, 0x1f00);
    cpu.fpu.set_xmm(1, 0x7fa0_0000);
    cpu.rflags = 0x8d7;
    assert_eq!(cpu.run(&[0x0f, 0x2f, 0xc1]), Outcome::SimdException);
    assert_eq!((cpu.rflags, cpu.fpu.mxcsr()), (0x8d7, 0x1f01));
}

#[test]
fn rounding_control_applies_and_the_host_keeps_its_own() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(1, of_f64s([2.5, 0.0]));
    for (rounding, expected) in [(0, 2), (1, 2), (2, 3), (3, 2)] {
        cpu.fpu.set_u32(x86_defs::xsave::MXCSR, 0x1f80 | rounding << 13);
        cpu.done(&[0xf2, 0x48, 0x0f, 0x2d, 0xe1]); // cvtsd2si rsp, xmm1
        assert_eq!(cpu.gpr[4], expected);
        let third = std::hint::black_box(1.0f64) / std::hint::black_box(3.0);
        assert_eq!(third.to_bits(), 0x3fd5_5555_5555_5555);
    }
}

#[test]
fn general_registers_in_and_out() {
    let mut cpu = Cpu::new();
    cpu.gpr = std::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64);
    for n in 0..16u8 {
        let (rex, low) = (0x48 | n >> 3, n & 7);
        cpu.done(&[0x66, rex, 0x0f, 0x6e, 0xc0 | low]); // movq xmm0, rN
        assert_eq!(cpu.fpu.xmm(0) as u64, cpu.gpr[usize::from(n)]);
    }
    cpu.fpu.set_xmm(3, A);
    for n in 0..16u8 {
        let (rex, low) = (0x40 | n >> 3, n & 7);
        let mut expected = cpu.gpr;
        expected[usize::from(n)] = u64::from(A as u32);
        cpu.done(&[0x66, rex, 0x0f, 0x7e, 0xd8 | low]); // movd eN, xmm3
        assert_eq!(cpu.gpr, expected, "32-bit writes zero-extend, and touch nothing else");
    }
}

#[test]
fn comiss_and_ptest_write_only_status_flags() {
    let mut cpu = Cpu::new();
    cpu.rflags = rflags::IF | rflags::TF | rflags::STATUS | rflags::FIXED;
    cpu.fpu.set_xmm(0, of_f32s([1.0, 0.0, 0.0, 0.0]));
    cpu.fpu.set_xmm(1, of_f32s([2.0, 0.0, 0.0, 0.0]));
    cpu.done(&[0x0f, 0x2f, 0xc1]); // comiss xmm0, xmm1
    assert_eq!(cpu.rflags, rflags::IF | rflags::TF | rflags::CF | rflags::FIXED);
    cpu.fpu.set_xmm(1, 0);
    cpu.done(&[0x66, 0x0f, 0x38, 0x17, 0xc1]); // ptest xmm0, xmm1
    assert_eq!(cpu.rflags, rflags::IF | rflags::TF | rflags::ZF | rflags::CF | rflags::FIXED);
}

#[test]
fn pcmpistri_finds() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(1, u128::from_le_bytes(*b"l\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    cpu.operand.0[..16].copy_from_slice(b"hello, world\0\0\0\0");
    cpu.gpr[1] = u64::MAX;
    // pcmpistri xmm1, [rcx], 0: equal any, least significant index
    cpu.done(&[0x66, 0x0f, 0x3a, 0x63, 0x09, 0x00]);
    assert_eq!(cpu.gpr[1], 2);
    assert_eq!(cpu.rflags & rflags::STATUS, rflags::CF | rflags::ZF | rflags::SF);
}

#[test]
fn properties_tell_the_memory_operand() {
    let cpu = Cpu::new();
    let memory = |bytes: &[u8]| {
        let stub = cpu.stub(bytes);
        let memory = stub.properties().memory.unwrap();
        (memory.size, memory.read, memory.write, memory.alignment)
    };
    assert_eq!(memory(&[0x0f, 0x28, 0x00]), (16, true, false, 16)); // movaps xmm0, [rax]
    assert_eq!(memory(&[0x0f, 0x11, 0x00]), (16, false, true, 1)); // movups [rax], xmm0
    assert_eq!(memory(&[0xf2, 0x0f, 0x58, 0x00]), (8, true, false, 1)); // addsd xmm0, [rax]
    assert_eq!(memory(&[0x66, 0x0f, 0xef, 0x00]), (16, true, false, 16)); // pxor xmm0, [rax]
    assert_eq!(memory(&[0x0f, 0x16, 0x00]), (8, true, false, 1)); // movhps xmm0, [rax]
    assert_eq!(memory(&[0x66, 0x0f, 0xe7, 0x00]), (16, false, true, 16)); // movntdq [rax], xmm0
    if std::is_x86_feature_detected!("avx") {
        assert_eq!(memory(&[0xc5, 0xfd, 0x6f, 0x00]), (32, true, false, 32)); // vmovdqa ymm0, [rax]
        assert_eq!(memory(&[0xc5, 0xfc, 0x58, 0x00]), (32, true, false, 1)); // vaddps ymm0, ymm0, [rax]
    }
    assert_eq!(cpu.stub(&[0x0f, 0x28, 0x00]).properties().unit, Unit::Sse);
}

#[test]
fn stores_fill_the_operand() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(7, A);
    cpu.done(&[0x65, 0x0f, 0x11, 0x3c, 0x25, 0x10, 0, 0, 0]); // movups gs:[0x10], xmm7
    assert_eq!(cpu.operand.0[..16], A.to_le_bytes());
    assert_eq!(cpu.operand.0[16..], [0; 48]);
}

#[test]
fn sites_share_stubs() {
    let cpu = Cpu::new();
    cpu.stub(&[0x0f, 0x28, 0x00]); // movaps xmm0, [rax]
    cpu.stub(&[0x0f, 0x28, 0x05, 1, 2, 3, 4]); // movaps xmm0, [rip+...]
    cpu.stub(&[0x65, 0x0f, 0x28, 0x44, 0x8b, 0x10]); // movaps xmm0, gs:[rbx+rcx*4+0x10]
    assert_eq!(cpu.cache.resident_stubs(), 1);
}

#[test]
fn transient_stubs_work_alike() {
    let mut cpu = Cpu::new();
    cpu.cache = StubCache::with_len(8192).unwrap();
    let mut stubs = Vec::new();
    for n in 0..=255u8 {
        let stub = cpu.stub(&[0x66, 0x0f, 0x70, 0xca, n]); // pshufd xmm1, xmm2, n
        stubs.push((n, stub));
    }
    assert!(cpu.cache.resident_stubs() < 100);
    let lanes = [0x1111_1111u32, 0x2222_2222, 0x3333_3333, 0x4444_4444];
    cpu.fpu.set_xmm(2, lanes.iter().rev().fold(0, |all, &lane| all << 32 | u128::from(lane)));
    for (n, stub) in &stubs {
        let outcome = stub.run(&mut cpu.fpu, &mut cpu.gpr, &mut cpu.rflags, &mut cpu.operand);
        assert_eq!(outcome, Outcome::Done);
        let expected = (0..4).rev().fold(0u128, |all, lane| {
            all << 32 | u128::from(lanes[usize::from(n >> (2 * lane) & 3)])
        });
        assert_eq!(cpu.fpu.xmm(1), expected);
    }
}

#[test]
fn what_is_not_listed_is_refused() {
    let cache = StubCache::new().unwrap();
    for bytes in [
        &[0x0f, 0xae, 0x10][..],               // ldmxcsr [rax]
        &[0x0f, 0xae, 0x00],                   // fxsave [rax]
        &[0xd9, 0x30],                         // fnstenv [rax]
        &[0x0f, 0x31],                         // rdtsc
        &[0xa5],                               // movsd (string)
        &[0x66, 0x0f, 0xf7, 0xc1],             // maskmovdqu xmm0, xmm1
        &[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08], // vpgatherdd
        &[0xc5, 0xf8, 0x77],                   // vzeroupper
        &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1], // vaddps zmm
        &[0x48, 0x01, 0xc8],                   // add rax, rcx
    ] {
        assert!(cache.compile(&decode(bytes)).is_err(), "{bytes:x?}");
    }
}
