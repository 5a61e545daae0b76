//! Vector registers must survive whatever comes between two instructions.

mod programs;

use emit::{Properties, Unit};
use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};
use programs::{CODE, DATA, Pair, Rng};

/// MOV RBX, an address in the data; one in eight is not aligned.
fn point(rng: &mut Rng) -> Vec<u8> {
    let aligned = DATA + 0x1000 + 64 * rng.below(0x1c0) + 16 * rng.below(4);
    let address = if rng.below(16) == 0 { aligned + rng.below(64) } else { aligned };
    [&[0x48, 0xc7, 0xc3][..], &(address as u32).to_le_bytes()].concat()
}

/// A random SSE or AVX instruction that the translator may copy.
fn vector(rng: &mut Rng) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        match rng.below(4) {
            0 => {
                bytes.extend([0xc4, (rng.next() as u8 & 0xe0) | (1 + rng.below(3)) as u8]);
                bytes.push(rng.next() as u8);
            }
            1 => bytes.extend([0xc5, rng.next() as u8]),
            2 => bytes.extend([rng.pick(&[0x66, 0xf2, 0xf3]), 0x0f]),
            _ => bytes.extend([0x66, 0x40 | rng.below(16) as u8, 0x0f]),
        }
        if rng.below(8) == 0 {
            bytes.extend([0x3a, 0x60 | rng.below(4) as u8]);
        }
        bytes.extend((0..10).map(|_| rng.next() as u8));
        let mut insn = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        let listed = Properties::of(&insn)
            .is_ok_and(|p| matches!(p.unit, Unit::Sse | Unit::Avx) && p.gpr_written & 0x10 == 0);
        if insn.is_invalid() || !listed && !masked(&insn) {
            continue;
        }
        let mut out = Vec::new();
        if (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory) {
            out = point(rng);
            insn.set_memory_base(Register::RBX);
            insn.set_memory_index(Register::None);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
        }
        let mut encoder = Encoder::new(64);
        if encoder.encode(&insn, CODE).is_ok() {
            out.extend(encoder.take_buffer());
            return out;
        }
    }
}

fn masked(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(insn.mnemonic(), Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq)
}

/// What looks at vector registers from outside, or changes what they may be used for.
fn special(rng: &mut Rng) -> Vec<u8> {
    let all = [0xb8, 7, 0, 0, 0, 0xba, 0, 0, 0, 0]; // mov eax, 7; mov edx, 0
    let area: &[u8] = &[0x48, 0xc7, 0xc3, 0x00, 0x02, 0x20, 0x00]; // mov rbx, DATA + 0x200
    let mxcsr = |rng: &mut Rng, opcode: &[u8]| {
        let value: u32 = rng.pick(&[0x1f80, 0x1fbf, 0x9fc0, 0x7f80, 0x1f80, 0x1d00, 0x1_1f80]);
        let store = [&[0xc7, 0x03][..], &value.to_le_bytes()].concat(); // mov dword [rbx], ...
        [&point(rng), &store, opcode].concat()
    };
    match rng.below(16) {
        0 => vec![0xc5, 0xf8, 0x77],                          // vzeroupper
        1 => vec![0xc5, 0xfc, 0x77],                          // vzeroall
        2 => mxcsr(rng, &[0x0f, 0xae, 0x13]),                 // ldmxcsr [rbx]
        3 => mxcsr(rng, &[0xc5, 0xf8, 0xae, 0x13]),           // vldmxcsr [rbx]
        4 => [&point(rng)[..], &[0x0f, 0xae, 0x1b]].concat(), // stmxcsr [rbx]
        5 => [area, &[0x0f, 0xae, 0x03]].concat(),            // fxsave [rbx]
        6 => [&all, area, &[0x0f, 0xae, 0x23]].concat(),      // xsave [rbx]
        7 => [area, &[0x0f, 0xae, 0x03, 0x0f, 0xae, 0x0b]].concat(), // fxsave, fxrstor [rbx]
        8 => vec![0xd9, 0xe8, 0xd9, 0xfa],                    // fld1; fsqrt
        9 => vec![0x0f, 0xa2],                                // cpuid
        10 if rng.below(4) == 0 => vec![0x0f, 0x20, 0xc0, 0x0c, 8, 0x0f, 0x22, 0xc0], // TS
        11 if rng.below(4) == 0 => {
            // mov ecx, 0; mov eax, 3; mov edx, 0; xsetbv
            vec![0xb9, 0, 0, 0, 0, 0xb8, 3, 0, 0, 0, 0xba, 0, 0, 0, 0, 0x0f, 0x01, 0xd1]
        }
        12 => vec![0x0f, 0x06],       // clts
        13 => vec![0x48, 0x01, 0xf8], // add rax, rdi
        14 => vec![0x0f, 0xae, 0xf0], // mfence
        // movups xmm, [an address that is not there]
        _ if rng.below(32) == 0 => vec![0x0f, 0x10, 0x04, 0x25, 0, 0, 0x50, 0],
        _ => vec![0x90],
    }
}

/// A random x87 instruction.
fn x87(rng: &mut Rng) -> Vec<u8> {
    loop {
        let mut bytes = vec![0xd8 | rng.below(8) as u8];
        bytes.extend((0..8).map(|_| rng.next() as u8));
        let mut insn = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        if insn.is_invalid() || !Properties::of(&insn).is_ok_and(|p| p.unit == Unit::X87) {
            continue;
        }
        let mut out = Vec::new();
        if (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory) {
            out = point(rng);
            if insn.mnemonic() == iced_x86::Mnemonic::Fldcw {
                let value: u16 = rng.pick(&[0x37f, 0x77f, 0xc7f, 0xffff, 0x27f, 0x37e]);
                // mov word [rbx], ...
                out.extend([&[0x66, 0xc7, 0x03][..], &value.to_le_bytes()].concat());
            }
            insn.set_memory_base(Register::RBX);
            insn.set_memory_index(Register::None);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
        }
        let mut encoder = Encoder::new(64);
        if encoder.encode(&insn, CODE).is_ok() {
            out.extend(encoder.take_buffer());
            return out;
        }
    }
}

/// Blocks of what `insn` gives, one after another; some do without vectors.
fn program(rng: &mut Rng, mut insn: impl FnMut(&mut Rng) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.below(5) {
        let plain = rng.below(4) == 0;
        for _ in 0..rng.below(6) {
            bytes.extend(if plain { special(rng) } else { insn(rng) });
        }
        // jmp or jc to the next block
        bytes.extend(rng.pick(&[[0xeb, 0], [0x72, 0]]));
    }
    bytes.extend([0xeb, 0]);
    bytes
}

const MXCSR: [u32; 4] = [0x1f80, 0x9fc0, 0x7fa1, 0x1f80];

#[test]
fn registers_stay_across_blocks_and_instructions() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x51_3d);
    for _ in 0..1500 {
        let bytes = program(&mut rng, vector);
        let mxcsr = rng.pick(&MXCSR);
        pair.run(&mut rng, &bytes, mxcsr);
    }
    let [translated, handlers] = pair.runs;
    assert!(translated > 4 * handlers, "{:?}", pair.runs);
}

#[test]
fn registers_are_where_others_look_for_them() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x7e57);
    for _ in 0..2500 {
        let bytes = program(&mut rng, |rng| match rng.below(3) {
            0 => special(rng),
            _ => vector(rng),
        });
        let mxcsr = rng.pick(&[0x1f80, 0x9fc0, 0x1f80, 0x1f80, 0x1e80]);
        pair.run(&mut rng, &bytes, mxcsr);
    }
    assert!(pair.runs[0] > pair.runs[1], "{:?}", pair.runs);
}

#[test]
fn the_x87_stack_stays() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x8087);
    for n in 0..6000 {
        pair.fdp_exceptions_only = n % 3 == 0;
        let bytes = program(&mut rng, |rng| match rng.below(8) {
            0 if n % 2 == 0 => special(rng),
            1 => vector(rng),
            2 => point(rng),
            _ => x87(rng),
        });
        let mxcsr = rng.pick(&[0x1f80, 0x1f80, 0x1f80, 0x1e80]);
        pair.run(&mut rng, &bytes, mxcsr);
    }
    assert!(pair.runs[0] > pair.runs[1], "{:?}", pair.runs);
}
