//! Blocks with many accesses to neighbouring places, under the translator and under the
//! handlers one by one, in pages that are neighbours only by their linear addresses.

#[path = "../../semantics/tests/common/mod.rs"]
mod common;

use common::{HIGH, Machine, PT};
use emit::StubCache;
use iced_x86::{Decoder, DecoderOptions};
use semantics::{CodeSize, Insn, Stop, features::IsaFeatures, select};
use std::sync::Arc;
use translator::{Check, Code, Source, Translator, Width, immediate};

const CODE: u64 = 0x7000;
const DATA: u64 = 0x20_0000;
const PAGE: u64 = 4096;
const PAGES: u64 = 16;
/// Pages that cannot be accessed, or not be written.
const ABSENT: u64 = 5;
const READ_ONLY: u64 = 9;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn pick(&mut self, from: &[u8]) -> u8 {
        from[self.below(from.len() as u64) as usize]
    }
}

fn insns(bytes: &[u8], stubs: &StubCache) -> Vec<Insn> {
    let mut decoder = Decoder::with_ip(64, bytes, CODE, DecoderOptions::NONE);
    let mut out = Vec::new();
    while decoder.can_decode() {
        let start = decoder.position();
        let iced = decoder.decode();
        let own = &bytes[start..decoder.position()];
        let mut insn = select(&iced, own, CodeSize::Bits64, IsaFeatures::all(), stubs);
        insn.end = decoder.position() as u16;
        out.push(insn);
    }
    out
}

/// From RIP on.
fn by_handlers(machine: &mut Machine, insns: &[Insn]) -> Result<(), Stop> {
    let start = machine.cpu.rip - CODE;
    for insn in insns.iter().filter(|insn| u64::from(insn.end) > start) {
        machine.cpu.rip = CODE + u64::from(insn.end);
        match (insn.handler)(&mut machine.ctx(), insn) {
            Ok(()) => {}
            Err(Stop::Branch) => break,
            Err(stop) => {
                machine.cpu.rip = CODE + u64::from(insn.end) - u64::from(insn.len);
                return Err(stop);
            }
        }
    }
    Ok(())
}

struct Pair {
    handlers: Machine,
    native: Machine,
    translator: Translator,
    stubs: StubCache,
    /// Where translations find operands that are loaded from the code, if they are.
    page: Box<CodePage>,
    soft: bool,
}

#[repr(align(4096))]
struct CodePage([u8; PAGE as usize]);

/// The entry of a page's table entry.
fn pte(page: u64) -> u64 {
    PT + 8 * (DATA / PAGE + page)
}

/// Neighbours are not neighbours in memory.
fn frame(page: u64) -> u64 {
    (DATA / PAGE + page * 7 % PAGES) << 12
}

impl Pair {
    fn new() -> Option<Self> {
        let machine = || {
            let mut machine = Machine::long();
            let mut rng = Rng(5);
            let bytes: Vec<u8> = (0..PAGES * PAGE).map(|_| rng.next() as u8).collect();
            machine.mem.write(DATA, &bytes).unwrap();
            for page in 0..PAGES {
                let rights = match page {
                    ABSENT => 6,
                    READ_ONLY => 5,
                    _ => 7,
                };
                machine.put(pte(page), frame(page) | rights);
            }
            machine.cpu.mmu.flush_all();
            machine
        };
        let translator = Translator::new(1 << 20, IsaFeatures::all()).unwrap()?;
        let stubs = StubCache::new().unwrap();
        let page = Box::new(CodePage([0; PAGE as usize]));
        Some(Self { handlers: machine(), native: machine(), translator, stubs, page, soft: false })
    }

    fn translate(&mut self, bytes: &[u8]) -> Option<(Arc<[Insn]>, Code)> {
        let insns: Arc<[Insn]> = insns(bytes, &self.stubs).into();
        let plane = self.native.cpu.mmu.plane()?;
        let start = (CODE % PAGE) as u16;
        self.page.0[..bytes.len()].copy_from_slice(bytes);
        let mut soft = 0;
        for (n, insn) in insns.iter().enumerate() {
            let own = usize::from(insn.end) - usize::from(insn.len)..usize::from(insn.end);
            soft |= u64::from(immediate(&bytes[own]).is_some()) << n;
        }
        let host = std::ptr::from_ref(&*self.page) as u64;
        let check = self.soft.then_some(Check { host, soft, bytes });
        let source =
            Source { insns: &insns, bytes, linear: CODE, start, plane, width: Width::Wide, check };
        Some((insns.clone(), self.translator.translate(&source)?))
    }

    /// Both from these registers. What the TLB knows stays.
    fn run(&mut self, bytes: &[u8], gpr: [u64; 16], flags: u64) {
        let Some((insns, code)) = self.translate(bytes) else { return };
        for cpu in [&mut self.handlers.cpu, &mut self.native.cpu] {
            cpu.gpr[..16].copy_from_slice(&gpr);
            cpu.flags.set_bits(flags);
            (cpu.rip, cpu.leave) = (CODE, false);
        }
        let expected = by_handlers(&mut self.handlers, &insns);
        let mut got = self.translator.run(&mut self.native.ctx(), code, false).unwrap().map(drop);
        if self.native.cpu.leave {
            // Some handlers ask for the run loop.
            got = by_handlers(&mut self.native, &insns);
        }
        let context = || {
            let mut text = String::new();
            let mut formatter = iced_x86::FastFormatter::new();
            for insn in Decoder::with_ip(64, bytes, CODE, DecoderOptions::NONE).iter() {
                formatter.format(&insn, &mut text);
                text.push('\n');
            }
            format!("{text}\nfrom {gpr:x?} flags {flags:x}")
        };
        assert_eq!(got, expected, "{}", context());
        let (mut a, mut b) = (self.handlers.cpu.save_state(0, 0), self.native.cpu.save_state(0, 0));
        for state in [&mut a, &mut b] {
            // OF and AF after SHL.
            state.regs.rflags &= !0x810;
        }
        assert_eq!(a.regs, b.regs, "{}", context());
        assert!(a == b, "{}", context());
        if expected.is_err() {
            assert_eq!(self.handlers.cpu.raised, self.native.cpu.raised, "{}", context());
        }
    }

    fn compare_memory(&self) {
        let (mut a, mut b) = (vec![0; (PAGES * PAGE) as usize], vec![0; (PAGES * PAGE) as usize]);
        self.handlers.mem.read(DATA, &mut a).unwrap();
        self.native.mem.read(DATA, &mut b).unwrap();
        assert!(a == b);
    }
}

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
            pair.run(&bytes, gpr, flags);
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
        pair.run(&bytes, gpr, 2);
        let mut expected = [0; 8];
        pair.native.mem.read(frame(11 + round) + 72, &mut expected).unwrap();
        assert_eq!(pair.native.cpu.gpr[3], u64::from_le_bytes(expected));
    }
}
