//! Stubs on general registers, implied ones and the stack pointer among them.

use emit::{Operand, Outcome, StubCache, Unit, Unsupported};
use iced_x86::{Decoder, DecoderOptions};
use vcpu_state::FpuState;
use x86_defs::{gpr, rflags};

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
            gpr: std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(5 * n as u32)),
            rflags: rflags::FIXED,
            operand: Operand::new(),
        }
    }

    /// False if the host lacks the extension.
    fn done(&mut self, bytes: &[u8]) -> bool {
        let insn = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        let stub = match self.cache.compile(&insn) {
            Err(Unsupported::Host) => return false,
            stub => stub.unwrap(),
        };
        let (fpu, operand) = (&mut self.fpu, &mut self.operand);
        assert_eq!(stub.run(fpu, &mut self.gpr, &mut self.rflags, operand), Outcome::Done);
        true
    }
}

/// CRC-32C, a byte, bit by bit.
fn crc32c(crc: u32, byte: u8) -> u32 {
    (0..8).fold(
        crc ^ u32::from(byte),
        |crc, _| {
            if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        },
    )
}

#[test]
fn crc32_with_high_bytes_and_the_stack_pointer() {
    let mut cpu = Cpu::new();
    let before = cpu.gpr;
    let mut check = |bytes: &[u8], register: usize, byte: u8| {
        cpu.gpr = before;
        if !cpu.done(bytes) {
            return;
        }
        let mut expected = before;
        expected[register] = u64::from(crc32c(before[register] as u32, byte));
        assert_eq!(cpu.gpr, expected, "{bytes:x?}");
    };
    let high = |register: usize| (before[register] >> 8) as u8;
    check(&[0xf2, 0x0f, 0x38, 0xf0, 0xe4], gpr::RSP, high(gpr::RAX)); // crc32 esp, ah
    check(&[0xf2, 0x0f, 0x38, 0xf0, 0xe7], gpr::RSP, high(gpr::RBX)); // crc32 esp, bh
    check(&[0xf2, 0x0f, 0x38, 0xf0, 0xf6], gpr::RSI, high(gpr::RDX)); // crc32 esi, dh
    check(&[0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc4], gpr::RAX, before[gpr::RSP] as u8); // eax, spl
    check(&[0xf2, 0x45, 0x0f, 0x38, 0xf0, 0xff], gpr::R15, before[gpr::R15] as u8); // r15d, r15b
}

#[test]
fn mulx_multiplies_by_rdx() {
    let mut cpu = Cpu::new();
    let product = u128::from(cpu.gpr[gpr::RDX]) * u128::from(cpu.gpr[gpr::RSP]);
    // mulx rdi, rsi, rsp
    if cpu.done(&[0xc4, 0xe2, 0xcb, 0xf6, 0xfc]) {
        assert_eq!(cpu.gpr[gpr::RDI], (product >> 64) as u64);
        assert_eq!(cpu.gpr[gpr::RSI], product as u64);
    }
}

#[test]
fn pdep_and_pext_scatter_and_gather_bits() {
    let mut cpu = Cpu::new();
    let (source, mask) = (cpu.gpr[gpr::RCX], cpu.gpr[gpr::RDX]);
    let places = (0..64).filter(|n| mask >> n & 1 != 0);
    let scattered =
        places.clone().enumerate().fold(0, |all, (n, to)| all | (source >> n & 1) << to);
    let gathered = places.enumerate().fold(0, |all, (n, from)| all | (source >> from & 1) << n);
    // pdep rax, rcx, rdx; pext rbx, rcx, rdx
    if cpu.done(&[0xc4, 0xe2, 0xf3, 0xf5, 0xc2]) && cpu.done(&[0xc4, 0xe2, 0xf2, 0xf5, 0xda]) {
        assert_eq!((cpu.gpr[gpr::RAX], cpu.gpr[gpr::RBX]), (scattered, gathered));
    }
}

#[test]
fn adcx_takes_and_gives_only_carry() {
    let mut cpu = Cpu::new();
    cpu.gpr[gpr::RAX] = u64::MAX;
    cpu.gpr[gpr::RCX] = 0;
    cpu.rflags = rflags::FIXED | rflags::CF | rflags::OF | rflags::IF;
    // adcx rax, rcx
    if cpu.done(&[0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc1]) {
        assert_eq!(cpu.gpr[gpr::RAX], 0);
        assert_eq!(cpu.rflags, rflags::FIXED | rflags::CF | rflags::OF | rflags::IF);
        assert!(cpu.done(&[0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc1]));
        assert_eq!(cpu.gpr[gpr::RAX], 1);
        assert_eq!(cpu.rflags, rflags::FIXED | rflags::OF | rflags::IF);
    }
}

#[test]
fn pcmpestri_takes_its_lengths_from_rax_and_rdx() {
    let mut cpu = Cpu::new();
    cpu.fpu.set_xmm(1, u128::from_le_bytes(*b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    cpu.fpu.set_xmm(2, u128::from_le_bytes(*b"hello, world\0\0\0\0"));
    // Equal ordered: the substring of one or two bytes.
    for (length, limit, index) in [(2, 12, 3), (1, 12, 2), (2, 5, 3), (2, 4, 16)] {
        cpu.gpr[gpr::RAX] = length;
        cpu.gpr[gpr::RDX] = limit;
        // pcmpestri xmm1, xmm2, 0x0c
        assert!(cpu.done(&[0x66, 0x0f, 0x3a, 0x61, 0xca, 0x0c]));
        assert_eq!(cpu.gpr[gpr::RCX], index, "{length} {limit}");
    }
}

#[test]
fn movbe_and_movnti_move_memory() {
    let mut cpu = Cpu::new();
    cpu.operand.0[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    if cpu.done(&[0x48, 0x0f, 0x38, 0xf0, 0x24, 0x24]) {
        assert_eq!(cpu.gpr[gpr::RSP], 0x0102_0304_0506_0708); // movbe rsp, [rsp]
    }
    assert!(cpu.done(&[0x48, 0x0f, 0xc3, 0x20])); // movnti [rax], rsp
    assert_eq!(cpu.operand.0[..8], cpu.gpr[gpr::RSP].to_le_bytes());
    let insn = Decoder::new(64, &[0x48, 0x0f, 0xc3, 0x20], 0).decode();
    assert_eq!(cpu.cache.compile(&insn).unwrap().properties().unit, Unit::Gpr);
}
