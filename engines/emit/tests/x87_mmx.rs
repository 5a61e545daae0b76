//! x87 and MMX stubs: results, stack, pending exceptions, nothing of the host's left behind.

use emit::{Operand, Outcome, StubCache, x87};
use iced_x86::{Decoder, DecoderOptions};
use vcpu_state::FpuState;
use x86_defs::{rflags, xsave};

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

    fn run(&mut self, bytes: &[u8]) -> Outcome {
        let insn = Decoder::new(32, bytes, DecoderOptions::NONE).decode();
        let stub = self.cache.compile(&insn).unwrap();
        stub.run(&mut self.fpu, &mut self.gpr, &mut self.rflags, &mut self.operand)
    }

    fn done(&mut self, bytes: &[u8]) {
        assert_eq!(self.run(bytes), Outcome::Done);
    }

    fn st(&self, n: usize) -> u128 {
        let at = xsave::ST + 16 * n;
        u128::from(self.fpu.u64(at)) | u128::from(self.fpu.u16(at + 8)) << 64
    }

    fn popped_f64(&mut self) -> f64 {
        self.done(&[0xdd, 0x18]); // fstp qword [eax]
        f64::from_le_bytes(self.operand.0[..8].try_into().unwrap())
    }
}

#[test]
fn arithmetic_on_the_stack() {
    let mut cpu = Cpu::new();
    cpu.done(&[0xd9, 0xe8]); // fld1
    cpu.done(&[0xd9, 0xeb]); // fldpi
    assert_eq!(cpu.st(0), 0x4000_c90f_daa2_2168_c235);
    assert_eq!(cpu.st(1), 0x3fff_8000_0000_0000_0000);
    cpu.done(&[0xd8, 0xc1]); // fadd st, st(1)
    cpu.done(&[0xd9, 0xfa]); // fsqrt
    assert_eq!(cpu.popped_f64(), (std::f64::consts::PI + 1.0).sqrt());
    assert_eq!(cpu.popped_f64(), 1.0);
    assert_eq!(cpu.fpu.area[xsave::FTW], 0, "the stack is empty");
}

#[test]
fn fptan_and_fbstp() {
    let mut cpu = Cpu::new();
    cpu.done(&[0xd9, 0xee]); // fldz
    cpu.done(&[0xd9, 0xf2]); // fptan
    assert_eq!(cpu.popped_f64(), 1.0);
    assert_eq!(cpu.popped_f64(), 0.0);
    cpu.operand.0[..4].copy_from_slice(&(-1234567i32).to_le_bytes());
    cpu.done(&[0xdb, 0x00]); // fild dword [eax]
    cpu.done(&[0xdf, 0x30]); // fbstp [eax]
    assert_eq!(cpu.operand.0[..10], [0x67, 0x45, 0x23, 0x01, 0, 0, 0, 0, 0, 0x80]);
}

#[test]
fn fcomi_and_fcmov() {
    let mut cpu = Cpu::new();
    cpu.done(&[0xd9, 0xe8]); // fld1
    cpu.done(&[0xd9, 0xee]); // fldz
    cpu.rflags = rflags::IF | rflags::FIXED | rflags::OF;
    cpu.done(&[0xdb, 0xf1]); // fcomi st, st(1)
    assert_eq!(
        cpu.rflags & (rflags::ZF | rflags::PF | rflags::CF | rflags::IF),
        rflags::CF | rflags::IF
    );
    cpu.done(&[0xda, 0xc1]); // fcmovb st, st(1)
    assert_eq!(cpu.st(0), cpu.st(1));
}

#[test]
fn exceptions_are_deferred_to_the_next_waiting_instruction() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_u16(xsave::FCW, 0x37b); // ZM clear
    cpu.done(&[0xd9, 0xe8]); // fld1
    cpu.done(&[0xd9, 0xee]); // fldz
    cpu.done(&[0xde, 0xf9]); // fdivp st(1), st
    assert!(x87::pending(&cpu.fpu));
    assert_eq!(cpu.fpu.u16(xsave::FSW) & 0x8084, 0x8084, "B, ES, ZE");
    let before = cpu.fpu.clone();
    for waiting in [&[0xd9, 0xe8][..], &[0x9b], &[0x0f, 0x77], &[0x0f, 0xfc, 0xc1]] {
        assert_eq!(cpu.run(waiting), Outcome::X87Pending);
        assert_eq!(cpu.fpu, before);
    }
    cpu.done(&[0xdf, 0xe0]); // fnstsw ax
    assert_eq!(cpu.gpr[0] as u16, before.u16(xsave::FSW));
    cpu.operand.0[..8].copy_from_slice(&[3, 0, 0, 0, 4, 0, 0, 0]);
    cpu.done(&[0x66, 0x0f, 0x2a, 0x08]); // cvtpi2pd xmm1, [eax]: does not wait
    assert_eq!(cpu.fpu.xmm(1), u128::from(3f64.to_bits()) | u128::from(4f64.to_bits()) << 64);
    assert_eq!(cpu.fpu.area[..xsave::MXCSR], before.area[..xsave::MXCSR]);
    cpu.done(&[0xdb, 0xe2]); // fnclex
    cpu.done(&[0x9b]); // wait
}

#[test]
fn an_unmasked_exception_suppresses_a_store() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_u16(xsave::FCW, 0x37e); // IM clear
    cpu.operand.0 = [0xa5; 64];
    assert_eq!(cpu.run(&[0xd9, 0x18]), Outcome::NoStore); // fstp dword [eax], empty stack
    assert_eq!(cpu.operand.0, [0xa5; 64]);
    assert_eq!(cpu.fpu.u16(xsave::FSW) & 0x41, 0x41, "stack fault");
}

#[test]
fn nothing_of_the_host_is_left_in_the_environment() {
    let mut cpu = Cpu::new();
    cpu.done(&[0xd9, 0xe8]); // fld1
    cpu.done(&[0xdd, 0x18]); // fstp qword [eax]
    assert_eq!((cpu.fpu.u64(xsave::FIP), cpu.fpu.u64(xsave::FDP)), (0, 0));
    assert_eq!(cpu.fpu.u16(xsave::FOP), 0);
    let last = x87::LastInstruction {
        fip: 0x1234,
        fdp: Some(0x5678),
        fop: x87::opcode(&[0xdd, 0x18]),
        exceptions_only: false,
    };
    x87::record(&mut cpu.fpu, &last);
    assert_eq!((cpu.fpu.u64(xsave::FIP), cpu.fpu.u64(xsave::FDP)), (0x1234, 0x5678));
    assert_eq!(cpu.fpu.u16(xsave::FOP), 0x518);
    cpu.done(&[0xd9, 0xe8]); // fld1
    assert_eq!(cpu.fpu.u64(xsave::FIP), 0x1234);
}

#[test]
fn mmx_marks_registers_and_emms_empties_them() {
    let mut cpu = Cpu::new();
    cpu.gpr[0] = 0x7f01_0203;
    cpu.done(&[0x0f, 0x6e, 0xc0]); // movd mm0, eax
    cpu.done(&[0x0f, 0xfc, 0xc0]); // paddb mm0, mm0
    assert_eq!(cpu.st(0), 0xffff_0000_0000_fe02_0406);
    assert_eq!(cpu.fpu.area[xsave::FTW], 0xff);
    cpu.done(&[0x0f, 0x77]); // emms
    assert_eq!(cpu.fpu.area[xsave::FTW], 0);
}

#[test]
fn mmx_conversions_obey_mxcsr() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(1, u128::from(f32::NAN.to_bits()));
    cpu.done(&[0x0f, 0x2d, 0xc1]); // cvtps2pi mm0, xmm1
    assert_eq!(cpu.st(0), 0xffff_0000_0000_8000_0000);
    assert_eq!(cpu.fpu.mxcsr(), 0x1f81);
    cpu.fpu.set_u32(xsave::MXCSR, 0x1f00);
    let before = cpu.fpu.clone();
    assert_eq!(cpu.run(&[0x0f, 0x2d, 0xc9]), Outcome::SimdException); // cvtps2pi mm1, xmm1
    assert_eq!(cpu.fpu.mxcsr(), 0x1f01);
    assert_eq!(cpu.fpu.area[xsave::ST..], before.area[xsave::ST..]);
}
