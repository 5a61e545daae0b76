//! Blocks with many accesses to neighbouring places, under the translator and under the
//! handlers one by one, in pages that are neighbours only by their linear addresses.

mod pages;

use pages::{DATA, HIGH, PAGE, PAGES, Pair, Rng, frame, pte};

/// RDI, RSI, RBP, RBX, R8, R9, R14 and RSP hold addresses.
const BASES: [u8; 8] = [7, 6, 5, 3, 8, 9, 14, 4];
/// RAX, RCX, RDX, R10, R11, R12 and R15 do not.
const OTHERS: [u8; 7] = [0, 1, 2, 10, 11, 12, 15];

/// ModRM and what follows, with a base and a small displacement, sometimes an index.
fn operand(rng: &mut Rng, rex: &mut u8, reg: u8) -> Vec<u8> {
    let base = rng.pick(&BASES[..]);
    let disp = rng.below(80) as u8;
    *rex |= reg >> 3 << 2 | base >> 3;
    if rng.below(8) == 0 {
        // RCX, which is small.
        return vec![0x40 | (reg & 7) << 3 | 4, 1 << 3 | base & 7, disp];
    }
    match base & 7 {
        4 => vec![0x40 | (reg & 7) << 3 | 4, 0x24, disp],
        rm => vec![0x40 | (reg & 7) << 3 | rm, disp],
    }
}

fn random_insn(rng: &mut Rng) -> Vec<u8> {
    let (base, other) = (rng.pick(&BASES), rng.pick(&OTHERS));
    let wide = if rng.below(2) == 0 { 0x48 } else { 0x40 };
    let mut out = Vec::new();
    match rng.below(25) {
        // MOV, ADD and CMP in both directions, MOVZX, vectors.
        0..=8 => {
            let opcodes: [&[u8]; 13] = [
                &[0x8b],
                &[0x89],
                &[0x88],
                &[0x8a],
                &[0x01],
                &[0x03],
                &[0x3b],
                &[0x0f, 0xb6],
                &[0x0f, 0xb7],
                // MOVUPS and MOVAPS.
                &[0x0f, 0x10],
                &[0x0f, 0x11],
                &[0x0f, 0x28],
                &[0x0f, 0x29],
            ];
            let number = rng.below(13) as usize;
            let opcode = opcodes[number];
            let mut rex = wide;
            let mut rest = operand(rng, &mut rex, other);
            if let Some(disp) = rest.last_mut()
                && number > 10
            {
                *disp &= [0x70, 0x70, 0x78][rng.below(3) as usize];
            }
            out.push(rex);
            out.extend(opcode);
            out.extend(rest);
        }
        // PUSH and POP.
        9 => out.extend([0x40 | other >> 3, 0x50 | other & 7]),
        10 => out.extend([0x40 | other >> 3, 0x58 | other & 7]),
        // ADD base, imm32; MOV base, base; LEA base, [base+imm8]; INC base.
        11 => {
            let by = rng.below(600) as i32 - 300;
            let to = if rng.below(3) == 0 { other } else { base };
            out.extend([0x48 | to >> 3, 0x81, 0xc0 | to & 7]);
            out.extend(by.to_le_bytes());
        }
        12 => {
            let from = rng.pick(&BASES);
            out.extend([
                0x48 | from >> 3 << 2 | base >> 3,
                0x89,
                0xc0 | (from & 7) << 3 | base & 7,
            ]);
        }
        13 => {
            let mut rex = 0x48;
            let mut rest = operand(rng, &mut rex, base);
            if let Some(disp) = rest.last_mut() {
                *disp = rng.next() as u8;
            }
            out.extend([rex, 0x8d]);
            out.extend(rest);
        }
        14 => out.extend([0x48 | base >> 3, 0xff, 0xc0 | base & 7]),
        // ADD, MOV, XOR, XCHG, XADD and CMOVE of registers.
        15..=20 => {
            let from = rng.pick(&OTHERS);
            let opcodes: [&[u8]; 6] =
                [&[0x01], &[0x89], &[0x31], &[0x87], &[0x0f, 0xc1], &[0x0f, 0x44]];
            let number = rng.below(6) as usize;
            if number < 5 && rng.below(4) == 0 {
                // Of 16 bits.
                out.push(0x66);
            }
            out.push(wide | from >> 3 << 2 | other >> 3);
            out.extend(opcodes[number]);
            out.push(0xc0 | (from & 7) << 3 | other & 7);
        }
        // MOV, ADD and XCHG of AH, CH, DH or BH with memory, of registers, MOVZX.
        21..=22 => {
            let high = 4 + rng.below(4) as u8;
            let base = rng.pick(&[3, 5, 6, 7]);
            let opcode = [0x88, 0x8a, 0x00, 0x02, 0x86][rng.below(5) as usize];
            match rng.below(4) {
                0 => out.extend([0x0f, 0xb6, 0xc0 | (other & 7) << 3 | high]),
                1 => out.extend([opcode, 0xc0 | high << 3 | rng.below(8) as u8]),
                _ => out.extend([opcode, 0x40 | high << 3 | base, rng.below(100) as u8]),
            }
        }
        // CPUID and XLAT are left to their handlers; LEAVE; SHL by CL.
        _ => match rng.below(4) {
            0 => out.extend([0x0f, 0xa2]),
            1 => out.push(0xd7),
            2 => out.push(0xc9),
            _ => out.extend([0x48 | other >> 3, 0xd3, 0xe0 | other & 7]),
        },
    }
    out
}

/// Near the ends of pages more often than elsewhere.
fn address(rng: &mut Rng) -> u64 {
    let page = rng.below(PAGES - 1) * PAGE;
    let at = match rng.below(4) {
        0 => rng.below(8) * 16,
        1 => PAGE - 96 + rng.below(96),
        2 => rng.below(256) * 16,
        _ => rng.below(PAGE - 256),
    };
    DATA + page + at + if rng.below(4) == 0 { HIGH } else { 0 }
}

#[test]
fn neighbouring_accesses() {
    let Some(mut pair) = Pair::new() else { return };
    // OF and AF after SHL.
    pair.undefined = 0x810;
    let mut rng = Rng(0x5151_1234_9876_abcd);
    for n in 0..12_000 {
        let count = 2 + rng.below(12);
        let bytes: Vec<u8> = (0..count).flat_map(|_| random_insn(&mut rng)).collect();
        pair.soft = rng.below(4) == 0;
        for _ in 0..2 {
            let mut gpr = [0; 16].map(|_: u64| rng.next());
            BASES.iter().for_each(|r| gpr[usize::from(*r)] = address(&mut rng));
            gpr[1] = rng.below(40);
            let flags = 2 | rng.next() & 0x8d5;
            let _ = pair.run(&bytes, gpr, flags);
        }
        if n % 64 == 0 {
            pair.native.cpu.mmu.flush_all();
            pair.compare_memory();
        }
    }
    pair.compare_memory();
}

/// A handler between two accesses that share a check changes where they go.
#[test]
fn a_mapping_that_changes_between_accesses() {
    let Some(mut pair) = Pair::new() else { return };
    let code: [&[u8]; 5] = [
        &[0x48, 0x8b, 0x07],             // mov rax, [rdi]
        &[0x48, 0x89, 0x16],             // mov [rsi], rdx
        &[0x0f, 0x01, 0x3f],             // invlpg [rdi]
        &[0x48, 0x8b, 0x5f, 0x08],       // mov rbx, [rdi+8]
        &[0x48, 0x03, 0x47, 0x10, 0x90], // add rax, [rdi+16]; nop
    ];
    let bytes = code.concat();
    let mut gpr = [0; 16];
    for round in 0..4 {
        let page = 2 + round % 2;
        gpr[7] = DATA + page * PAGE + 64;
        gpr[6] = pte(page);
        gpr[2] = frame(11 + round) | 7;
        pair.run(&bytes, gpr, 2).unwrap();
        let mut expected = [0; 8];
        pair.native.mem.read(frame(11 + round) + 72, &mut expected).unwrap();
        assert_eq!(pair.native.cpu.gpr[3], u64::from_le_bytes(expected));
    }
}
