//! Random control flow, by the interpreter and translated, compared after every few
//! instructions.

use super::support::*;
use crate::{Translate, Translation};
use engine::Exit;
use iced_x86::code_asm::*;

pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

/// Functions of a few blocks each.
const FUNCTIONS: usize = 12;
/// How deep they call each other: what is deeper returns at once.
const DEPTH: u32 = 40;
/// Of the functions' addresses.
const TABLE: u64 = DATA + 0x800;
const SECOND: u64 = CODE + 0x1000;

/// A loop that calls the functions, which are spread over two pages, each other, with all kinds
/// of calls, jumps and returns. RBP counts the rounds, R12 the depth, R10
/// what may yet be called in this round, RBX is their dice.
fn program(rng: &mut Rng) -> (Vec<u8>, Vec<u64>) {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut functions: Vec<CodeLabel> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    let mut again = a.create_label();
    a.mov(ebp, 60).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(r10d, 200).unwrap();
    for _ in 0..3 {
        call(&mut a, rng, &functions);
    }
    a.dec(ebp).unwrap();
    a.jnz(again).unwrap();
    a.hlt().unwrap();
    for n in 0..FUNCTIONS {
        // The second half lies in the second page, but for one that goes across.
        if n == FUNCTIONS / 2 {
            let so_far = a.assemble(CODE).unwrap().len();
            for _ in so_far..0xff8 {
                a.nop().unwrap();
            }
        }
        a.set_label(&mut functions[n]).unwrap();
        function(&mut a, rng, &functions);
    }
    let result = a
        .assemble_options(CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)
        .unwrap();
    let addresses = functions.iter().map(|f| result.label_ip(f).unwrap()).collect();
    (result.inner.code_buffer, addresses)
}

fn function(a: &mut CodeAssembler, rng: &mut Rng, functions: &[CodeLabel]) {
    let (mut out, mut inside) = (a.create_label(), a.create_label());
    a.inc(r12d).unwrap();
    a.dec(r10).unwrap();
    a.js(out).unwrap();
    a.cmp(r12d, DEPTH).unwrap();
    a.ja(out).unwrap();
    for _ in 0..1 + rng.below(3) {
        let mut skip = a.create_label();
        // The dice fall anew.
        a.imul_3(rbx, rbx, 0x5851_f42d).unwrap();
        a.add(rbx, 1 + rng.below(1000) as i32).unwrap();
        a.bt(rbx, 20 + rng.below(30) as u32).unwrap();
        match rng.below(3) {
            0 => a.jc(skip).unwrap(),
            1 => a.jnc(skip).unwrap(),
            _ => a.jp(skip).unwrap(),
        }
        match rng.below(8) {
            0..4 => call(a, rng, functions),
            4 => {
                // Past what is not executed, over a jump that is.
                a.jmp(skip).unwrap();
                a.ud2().unwrap();
            }
            5 => {
                // Replaces its return address, as retpolines do.
                let (mut go, mut trap) = (a.create_label(), a.create_label());
                a.lea(rax, qword_ptr(skip)).unwrap();
                a.call(go).unwrap();
                a.set_label(&mut trap).unwrap();
                if rng.below(2) == 0 {
                    a.pause().unwrap();
                }
                a.jmp(trap).unwrap();
                a.set_label(&mut go).unwrap();
                a.mov(qword_ptr(rsp), rax).unwrap();
                a.ret().unwrap();
            }
            6 => {
                // A call whose return address is dropped.
                a.call(inside).unwrap();
                a.set_label(&mut inside).unwrap();
                inside = a.create_label();
                a.pop(rax).unwrap();
            }
            _ => a.cpuid().unwrap(),
        }
        a.inc(r13).unwrap();
        a.set_label(&mut skip).unwrap();
        a.adc(r14, r13).unwrap();
    }
    a.set_label(&mut inside).unwrap();
    a.inc(r15).unwrap();
    a.set_label(&mut out).unwrap();
    a.dec(r12d).unwrap();
    if rng.below(5) == 0 {
        // The caller's argument goes with it.
        a.pop(rax).unwrap();
        a.push(rax).unwrap();
        a.push(rax).unwrap();
        a.ret_1(8).unwrap();
    } else {
        a.ret().unwrap();
    }
}

fn call(a: &mut CodeAssembler, rng: &mut Rng, functions: &[CodeLabel]) {
    let which = rng.below(FUNCTIONS as u64);
    match rng.below(4) {
        0 | 1 => a.call(functions[which as usize]).unwrap(),
        2 => a.call(qword_ptr(TABLE + 8 * which)).unwrap(),
        _ => {
            // Whichever: by the dice.
            let mut back = a.create_label();
            a.mov(eax, ebx).unwrap();
            a.shr(eax, 7).unwrap();
            a.and(eax, 7).unwrap();
            if rng.below(2) == 0 {
                a.call(qword_ptr(rax * 8 + TABLE as i32)).unwrap();
            } else {
                a.lea(rcx, qword_ptr(back)).unwrap();
                a.push(rcx).unwrap();
                a.jmp(qword_ptr(rax * 8 + TABLE as i32)).unwrap();
            }
            a.set_label(&mut back).unwrap();
            a.inc(r13).unwrap();
        }
    }
}

#[test]
fn random_calls_jumps_and_returns() {
    for seed in 0..24 {
        let mut rng = Rng(seed);
        let (code, addresses) = program(&mut rng);
        assert!(code.len() < 0x2000 && addresses.iter().any(|a| *a >= SECOND), "{}", code.len());
        let hot = rng.below(3) as u32;
        let translating = Translate::new()
            .unwrap()
            .with_translation(Translation { hot, ..Translation::default() });
        let new = |engine: &Translate| {
            let guest = Guest::of(engine, &long_mode(), &code);
            for (n, address) in addresses.iter().enumerate() {
                let at = TABLE + 8 * n as u64;
                guest.vm.memory().write(at, &address.to_le_bytes()).unwrap();
            }
            guest
        };
        let (mut a, mut b) = (new(&Translate::new().unwrap()), new(&translating));
        for round in 0.. {
            let step = 1 + rng.below(5000);
            let exit = a.run_for(step);
            assert_eq!(exit, b.run_for(step), "{seed} {round}");
            let (x, y) = (a.vcpu.state().unwrap(), b.vcpu.state().unwrap());
            assert_eq!(x.regs, y.regs, "{seed} {round}");
            assert!(a.read::<0x2000>(DATA) == b.read::<0x2000>(DATA), "{seed} {round}");
            if exit == Exit::Idle {
                break;
            }
            assert!(round < 20_000, "it does not end");
        }
        assert!(a.vcpu.retired().unwrap() > 1000);
    }
}
