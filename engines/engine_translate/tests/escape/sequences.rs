//! Several accesses in a row, from bases that move: what one of them was allowed must not serve
//! another that it does not cover.

use crate::{
    access::{Attempt, OPTIONAL, Outcome, Plan, plain_gprs},
    forms::{Access, FEW, Form, MANY},
    guest::{PAGE, Space},
    modes::{Mode, PLAIN},
};

const SEQUENCES: usize = 250;
/// Of each, so many starts.
const STARTS: usize = 8;
const BASES: [u8; 8] = [3, 4, 5, 6, 7, 8, 9, 13];

/// Xorshift: the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// An access near a base, or a change of a base.
fn insn(random: &mut Random) -> Vec<u8> {
    let (base, other) = (random.of(&BASES), random.of(&BASES));
    let near = [0, 8, 16, 24, -8, -16, 64, 100, -120, 127];
    let far = [256, 400, 511, 512, -300, -512, 4000, -4096];
    let disp = if random.below(4) == 0 { random.of(&far) } else { random.of(&near) };
    let mode = |disp| Mode { base: Some(base), disp, ..PLAIN };
    let (wide, high) = (0x48 | base >> 3, 0x48 | base >> 3 | other >> 3 << 2);
    match random.below(16) {
        // ADD base, imm8
        0 => vec![wide, 0x83, 0xc0 | base & 7, random.of(&[8, 0xf8, 64, 0x80])],
        // MOV base, other
        1 => vec![high, 0x89, 0xc0 | (other & 7) << 3 | base & 7],
        // XCHG base, other
        2 => vec![high, 0x87, 0xc0 | (other & 7) << 3 | base & 7],
        // LEA other, [base + disp]
        3 => [vec![high, 0x8d], mode(disp).modrm(other, disp)].concat(),
        // PUSH other; POP other
        4 => vec![0x40 | other >> 3, 0x50 | other & 7],
        5 => vec![0x40 | other >> 3, 0x58 | other & 7],
        // MOVSXD base, other
        6 => vec![0x48 | other >> 3 | base >> 3 << 2, 0x63, 0xc0 | (base & 7) << 3 | other & 7],
        // INVLPG [base], which ring 3 may not
        7 => mode(0).prefixed(&[0x0f, 0x01], 7),
        _ => {
            let there = |f: &Form| {
                // A locked access across cache lines stops the whole host for a while.
                let locks = f.name.starts_with("lock") || f.name.starts_with("xchg");
                // The manual leaves flags undefined here and there.
                let flags = ["adc", "cmovo", "setb"].iter().any(|n| f.name.starts_with(n));
                !locks && !flags && !OPTIONAL.contains(&f.name) && f.access != Access::Never
            };
            let memory = |f: &&Form| there(f) && f.len <= 32;
            let all: Vec<&Form> = FEW.iter().chain(MANY).filter(memory).collect();
            random.of(&all).encode(&mode(disp), disp)
        }
    }
}

impl Mode {
    fn prefixed(&self, opcode: &[u8], reg: u8) -> Vec<u8> {
        [&[0x40 | self.rex()][..], opcode, &self.modrm(reg, self.disp)].concat()
    }
}

pub fn plan(plan: &mut Plan, space: &Space, addresses: &[u64]) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let pages: Vec<u64> = space.pages().map(|(linear, _)| linear).collect();
    for _ in 0..SEQUENCES {
        let count = 3 + random.below(8);
        let code: Vec<u8> = (0..count).flat_map(|_| insn(&mut random)).collect();
        let (rip, end) = plan.place(&[], &code, &[]);
        for start in 0..STARTS {
            let mut gprs = plain_gprs();
            // Bases near each other and near a page's edge.
            let edge = random.of(&pages).wrapping_add(random.of(&[0, PAGE, PAGE, PAGE / 2]));
            for base in BASES {
                let apart: u64 = random.of(&[0, 8, 16, 64, 4, 1, 512]) * random.of(&[0, 1, 2, 5]);
                let sign = if random.below(2) == 0 { apart } else { apart.wrapping_neg() };
                gprs[usize::from(base)] = edge.wrapping_add(sign);
            }
            if start % 4 == 3 {
                gprs[usize::from(random.of(&BASES))] = random.of(addresses);
            }
            plan.attempts.push(Attempt {
                name: "a sequence",
                mode: PLAIN,
                linear: edge,
                rip,
                end,
                gprs,
                outcome: Outcome::Same,
                loads: None,
                writes: Vec::new(),
                stores: None,
            });
        }
    }
}
