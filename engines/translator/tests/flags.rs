//! The status flags at each place where a block can be left: blocks of instructions that write
//! and read flags in all ways, with accesses between them that hit, miss, and fault.

mod pages;

use pages::{ABSENT, DATA, PAGE, PAGES, Pair, READ_ONLY, Rng};

/// RDI, RSI, RBX and R8 hold addresses, RSP another.
const BASES: [u8; 4] = [7, 6, 3, 8];
/// RCX is a count, of 0 or 1, and the others are anything; R10, R11, R14 and R15 are in memory.
const OTHERS: [u8; 10] = [0, 2, 5, 9, 10, 11, 12, 13, 14, 15];

/// The REX prefix, with W or without.
fn rex(rng: &mut Rng, reg: u8, rm: u8) -> u8 {
    0x40 | (rng.below(2) as u8) << 3 | reg >> 3 << 2 | rm >> 3
}

fn modrm(reg: u8, rm: u8) -> u8 {
    0xc0 | (reg & 7) << 3 | rm & 7
}

/// An operation of two registers: bytes, words, and more.
fn operation(rng: &mut Rng) -> Vec<u8> {
    // ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST
    let opcode = rng.pick(&[0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x84, 0x38, 0x84]);
    let opcode = opcode | rng.pick(&[0, 1, 1, 1]);
    let (reg, rm) = (rng.pick(&OTHERS), rng.pick(&OTHERS));
    let reg = if rng.below(3) == 0 { rm } else { reg };
    let mut out = if rng.below(6) == 0 { vec![0x66] } else { Vec::new() };
    out.extend([rex(rng, reg, rm), opcode, modrm(reg, rm)]);
    out
}

/// The same of a register and an immediate.
fn with_immediate(rng: &mut Rng) -> Vec<u8> {
    let rm = rng.pick(&OTHERS);
    let operation = rng.below(8) as u8;
    let immediate = rng.next() as i32 >> rng.below(32);
    match rng.below(4) {
        0 => vec![rex(rng, 0, rm), 0x80, modrm(operation, rm), immediate as u8],
        1 => {
            let mut out = vec![rex(rng, 0, rm), 0x81, modrm(operation, rm)];
            out.extend(immediate.to_le_bytes());
            out
        }
        2 => {
            // TEST
            let mut out = vec![rex(rng, 0, rm), 0xf7, modrm(0, rm)];
            out.extend(immediate.to_le_bytes());
            out
        }
        _ => vec![rex(rng, 0, rm), 0x83, modrm(operation, rm), immediate as u8],
    }
}

/// Instructions that write some of the flags, or read some, or neither.
fn other(rng: &mut Rng) -> Vec<u8> {
    let (a, b) = (rng.pick(&OTHERS), rng.pick(&OTHERS));
    let condition = rng.below(16) as u8;
    match rng.below(15) {
        0 => vec![rex(rng, 0, a), 0xff, modrm(rng.below(2) as u8, a)], // inc, dec
        1 => vec![rex(rng, 0, a), 0xf7, modrm(3, a)],                  // neg
        2 => vec![0xf3, rex(rng, a, b), 0x0f, 0xb8, modrm(a, b)],      // popcnt
        3 => vec![rex(rng, 0, a), 0x0f, 0x90 | condition, modrm(0, a)], // setcc
        4 => vec![rex(rng, a, b), 0x0f, 0x40 | condition, modrm(a, b)], // cmovcc
        5 => vec![rex(rng, a, b), 0x89, modrm(a, b)],                  // mov
        6 => vec![0x48 | a >> 3 << 2 | b >> 3, 0x8d, 0x44 | (a & 7) << 3, b & 7 | 0x28, 9], // lea
        7 => vec![rng.pick(&[0xf5, 0xf8, 0xf9])],                      // cmc, clc, stc
        8 => vec![rng.pick(&[0x9e, 0x9f])],                            // sahf, lahf
        9 => vec![rex(rng, 0, a), 0xd1, modrm(rng.below(4) as u8, a)], // rotate by 1
        10 => vec![rex(rng, 0, a), 0x0f, 0xba, modrm(4, a), rng.next() as u8 & 31], // bt
        // rol, ror, rcl, shl, shr and sar by cl
        11 => vec![rex(rng, 0, a), 0xd3, modrm(rng.pick(&[0, 1, 2, 4, 5, 7]), a)],
        12 => vec![0xd7],                  // xlat, by its handler
        13 => vec![0x9c],                  // pushfq
        _ => vec![0x66, 0x0f, 0x2e, 0xc1], // ucomisd
    }
}

/// An access to memory.
fn access(rng: &mut Rng) -> Vec<u8> {
    let (base, reg) = (rng.pick(&BASES), rng.pick(&OTHERS));
    let disp = rng.pick(&[0, 0, 8, 16, 64]);
    let prefix = 0x48 | reg >> 3 << 2 | base >> 3;
    let place = [0x40 | (reg & 7) << 3 | base & 7, disp];
    let opcode: &[u8] = match rng.below(18) {
        0..=6 => &[0x8b],
        7 | 8 => &[0x89],
        9 => &[0x01],
        10 => &[0x03],
        11 => &[0x3b],
        12 => &[0x11],
        13 => &[0x0f, 0x4c],
        14 => return vec![0x41, 0x50 | rng.pick(&[2, 3, 4])], // push r10 to r12
        15 => return vec![0x41, 0x58 | rng.pick(&[2, 4])],    // pop
        16 => return vec![0x0f, 0x28, 0x43, disp & 0x70],     // movaps xmm0, [rbx+disp]
        // inc qword [base+disp]
        _ => return vec![0x48 | base >> 3, 0xff, 0x40 | base & 7, disp],
    };
    [&[prefix], opcode, &place].concat()
}

/// How the block ends: by itself, JCC, JMP, RET, CALL, JMP [base].
fn end(rng: &mut Rng) -> Vec<u8> {
    match rng.below(8) {
        0 | 1 => vec![0x70 | rng.below(16) as u8, 0x20],
        2 => vec![0xeb, 0x20],
        3 => vec![0xc3],
        4 => vec![0xe8, 0x20, 0, 0, 0],
        5 => vec![0xff, 0x23],
        _ => Vec::new(),
    }
}

fn block(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..2 + rng.below(10) {
        out.extend(match rng.below(8) {
            0..=3 => access(rng),
            4 => operation(rng),
            5 => with_immediate(rng),
            6 => other(rng),
            _ => match rng.below(2) {
                0 => operation(rng),
                _ => with_immediate(rng),
            },
        });
    }
    out.extend(end(rng));
    out
}

/// Where accesses go: mostly they succeed.
fn address(rng: &mut Rng) -> u64 {
    let page = match rng.below(12) {
        0 => return DATA + ABSENT * PAGE + 16 * rng.below(16),
        1 => return 1 << 60 | rng.next(),
        2 => READ_ONLY,
        _ => rng.below(PAGES - 1),
    };
    let offset = match rng.below(6) {
        0 => PAGE - rng.below(16),
        1 => PAGE - 16 * rng.below(8),
        _ => 16 * rng.below(240),
    };
    DATA + page * PAGE + offset
}

/// The block shifts, and stores flags.
fn keeps_af_of_a_shift(bytes: &[u8]) -> bool {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};
    let of = |wanted: &[Mnemonic]| {
        let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        decoder.iter().any(|insn| wanted.contains(&insn.mnemonic()))
    };
    of(&[Mnemonic::Shl, Mnemonic::Shr, Mnemonic::Sar])
        && of(&[Mnemonic::Lahf, Mnemonic::Pushf, Mnemonic::Pushfq])
}

#[test]
fn flags_are_right_wherever_a_block_is_left() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x0f1a_65ee_d123_4567);
    let amd = cpu_model::is_amd(&cpu_model::host_table());
    if amd {
        // AF after shifts is the host's in translated code; handlers do as Intel's.
        pair.undefined = 0x10;
    }
    let mut faults = 0;
    for n in 0..10_000 {
        let bytes = block(&mut rng);
        if amd && keeps_af_of_a_shift(&bytes) {
            continue;
        }
        for _ in 0..4 {
            let mut gpr = [0; 16].map(|_: u64| rng.next() >> rng.below(64));
            BASES.iter().for_each(|r| gpr[usize::from(*r)] = address(&mut rng));
            gpr[1] = rng.below(2) << 6 | rng.below(2);
            gpr[4] = address(&mut rng) & !7;
            let flags = 2 | rng.next() & 0x8d5;
            faults += usize::from(pair.run(&bytes, gpr, flags).is_err());
        }
        if n % 16 == 0 {
            pair.native.cpu.mmu.flush_all();
        }
        if n % 64 == 0 {
            pair.compare_memory();
        }
    }
    pair.compare_memory();
    assert!(faults > 5000, "{faults}");
}
