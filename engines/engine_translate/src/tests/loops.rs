//! Random short loops, by the interpreter and translated, compared after every few
//! instructions. Their pointers move by constants, over the ends of pages, and they are left in
//! their middle.

use super::{flow::Rng, support::*};
use crate::{Translate, Translation};
use engine::Exit;
use iced_x86::code_asm::*;

/// Pages that the loops access.
const PAGES: u64 = 3;

/// RBP counts the rounds, ECX the turns of a loop, RSI and RDI move, RAX and RDX are what is
/// computed.
fn program(rng: &mut Rng) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.mov(ebp, 50).unwrap();
    a.set_label(&mut again).unwrap();
    for _ in 0..8 {
        one(&mut a, rng);
    }
    a.dec(ebp).unwrap();
    a.jnz(again).unwrap();
    a.hlt().unwrap();
    a.assemble(CODE).unwrap()
}

fn one(a: &mut CodeAssembler, rng: &mut Rng) {
    let (mut turn, mut out) = (a.create_label(), a.create_label());
    // Around the end of a page, or anywhere.
    let around = |rng: &mut Rng| match rng.below(2) {
        0 => DATA + 0x1000 * (1 + rng.below(PAGES - 1)) - 40 + rng.below(40),
        _ => DATA + 0x200 + rng.below(0x1000 * PAGES - 0x400),
    };
    a.mov(rsi, around(rng)).unwrap();
    a.mov(rdi, around(rng)).unwrap();
    a.mov(ecx, 1 + rng.below(30) as u32).unwrap();
    let jump = rng.below(3) == 0;
    let way_out = rng.below(5);
    a.set_label(&mut turn).unwrap();
    for n in 0..1 + rng.below(6) {
        body(a, rng);
        if n == way_out || jump && n == 0 {
            a.test(eax, 1 << rng.below(4)).unwrap();
            match rng.below(2) {
                0 => a.jz(out).unwrap(),
                _ => a.jp(out).unwrap(),
            }
        }
    }
    if jump {
        a.dec(ecx).unwrap();
        a.js(out).unwrap();
        a.jmp(turn).unwrap();
    } else {
        a.sub(ecx, 1).unwrap();
        match rng.below(3) {
            0 => a.jnz(turn).unwrap(),
            1 => a.ja(turn).unwrap(),
            _ => a.jg(turn).unwrap(),
        }
    }
    a.set_label(&mut out).unwrap();
}

fn body(a: &mut CodeAssembler, rng: &mut Rng) {
    let at = rng.below(24) as i32;
    let by = rng.below(40) as i32 - 16;
    match rng.below(12) {
        0 => a.add(eax, dword_ptr(rsi + at)).unwrap(),
        1 => a.xor(rdx, qword_ptr(rsi + at)).unwrap(),
        2 => a.mov(byte_ptr(rdi + at), al).unwrap(),
        3 => a.add(qword_ptr(rdi + at), rdx).unwrap(),
        4 => a.add(rsi, by).unwrap(),
        5 => a.lea(rdi, qword_ptr(rdi + by)).unwrap(),
        6 => a.imul_3(eax, eax, 0x0101_0105).unwrap(),
        7 => a.movzx(r10d, word_ptr(rsi + at)).unwrap(),
        8 => a.adc(rax, r10).unwrap(),
        9 => {
            a.push(rax).unwrap();
            a.pop(r11).unwrap();
        }
        10 => a.movdqu(xmm1, xmmword_ptr(rsi + at)).unwrap(),
        // Its handler executes it.
        _ => a.xlatb().unwrap(),
    }
}

#[test]
fn random_loops() {
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let code = program(&mut rng);
        assert!(code.len() < 0x1000);
        let hot = rng.below(3) as u32;
        let translating = Translate::new()
            .unwrap()
            .with_translation(Translation { hot, ..Translation::default() });
        let new = |engine: &Translate| {
            let guest = Guest::of(engine, &long_mode(), &code);
            let bytes: Vec<u8> = (0..0x1000 * PAGES).map(|n| ((n * 0x9e37) >> 5) as u8).collect();
            guest.vm.memory().write(DATA, &bytes).unwrap();
            guest
        };
        let (mut a, mut b) = (new(&Translate::new().unwrap()), new(&translating));
        for round in 0.. {
            let step = 1 + rng.below(3000);
            let exit = a.run_for(step);
            assert_eq!(exit, b.run_for(step), "{seed} {round}");
            let (x, y) = (a.vcpu.state().unwrap(), b.vcpu.state().unwrap());
            assert_eq!(x.regs, y.regs, "{seed} {round}");
            let data = (a.read::<0x3000>(DATA), b.read::<0x3000>(DATA));
            assert!(data.0 == data.1, "{seed} {round}");
            if exit == Exit::Idle {
                break;
            }
            assert!(round < 20_000, "it does not end");
        }
        assert!(a.vcpu.retired().unwrap() > 1000);
    }
}
