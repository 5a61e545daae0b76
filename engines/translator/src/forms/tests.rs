//! Against the general encoder and the general facts.

use super::*;
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};
use std::collections::HashSet;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A random instruction, in one of the general and vector maps.
fn random(rng: &mut Rng) -> Instruction {
    loop {
        let mut bytes = Vec::new();
        match rng.below(8) {
            0 => bytes.push([0x66, 0xf0, 0xf2, 0xf3, 0x65][rng.below(5) as usize]),
            1 => bytes.extend([0x66, 0x0f]),
            2 => bytes.extend([0xf2, 0x0f]),
            3 => bytes.extend([0xc5, rng.next() as u8]),
            4 => bytes.extend([0xc4, rng.next() as u8 & 0xe0 | (1 + rng.below(3) as u8)]),
            5 => bytes.extend([0x40 | rng.below(16) as u8, 0x0f]),
            _ => bytes.push(0x40 | rng.below(16) as u8),
        }
        bytes.extend((0..14).map(|_| rng.next() as u8));
        let insn = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        if !insn.is_invalid() {
            return insn;
        }
    }
}

fn numbered_at_random(rng: &mut Rng, register: Register) -> Register {
    let number = rng.below(16) as u8;
    match rng.below(8) {
        0 if register.is_gpr8() => Register::AH + u32::from(number & 3),
        _ => numbered(register, number).unwrap_or(register),
    }
}

/// With other registers, and memory where translated code has it.
fn changed(rng: &mut Rng, insn: &Instruction) -> Instruction {
    let mut insn = *insn;
    for n in 0..insn.op_count() {
        if insn.op_kind(n) == OpKind::Register && rng.below(4) != 0 {
            let other = numbered_at_random(rng, insn.op_register(n));
            insn.set_op_register(n, other);
        }
    }
    if has_memory(&insn) {
        insn.set_segment_prefix(Register::None);
        insn.set_memory_base(regs::name(rng.below(16) as u8, 8));
        insn.set_memory_index_scale(1);
        insn.set_memory_index(match rng.below(3) {
            0 => Register::None,
            _ => regs::name(5 + rng.below(11) as u8, 8),
        });
        if insn.memory_index() != Register::None {
            insn.set_memory_index_scale(1 << rng.below(4));
        }
        let disp = [0, 5, -128, 128, 0x1234_5678][rng.below(5) as usize];
        insn.set_memory_displacement64(disp as u64);
        insn.set_memory_displ_size((disp != 0).into());
    }
    insn
}

#[test]
fn encodes_as_the_general_encoder_does() {
    let (mut rng, mut forms) = (Rng(88), Forms::default());
    let (mut same, mut refused) = (HashSet::new(), 0);
    for _ in 0..400_000 {
        let insn = random(&mut rng);
        let insn = changed(&mut rng, &insn);
        let expected = forms.general(&insn, 0).ok();
        let Some(form) = forms.form(&insn).copied().filter(|_| plain(&insn)) else { continue };
        let Some(got) = form.encode(&insn) else { continue };
        let got = got.ok();
        assert_eq!(
            got.as_ref().map(Bytes::get),
            expected.as_ref().map(Bytes::get),
            "{:?} {insn}",
            insn.code()
        );
        refused += usize::from(got.is_none());
        same.insert((insn.code(), has_memory(&insn)));
    }
    assert!(same.len() > 1000 && refused > 100, "{} {refused}", same.len());
    let common = [Code::Add_rm64_r64, Code::Mov_r32_rm32, Code::Movaps_xmm_xmmm128];
    assert!(common.iter().all(|code| same.contains(&(*code, true))));
    assert!(common.iter().all(|code| same.contains(&(*code, false))));
}

#[test]
fn facts_are_the_general_ones() {
    let (mut rng, mut forms) = (Rng(89), Forms::default());
    let mut known = HashSet::new();
    for _ in 0..400_000 {
        let insn = random(&mut rng);
        let Some(facts) = forms.facts(&insn) else { continue };
        let info = forms.factory.info(&insn);
        let (mut written, mut named) = (0, facts.written);
        for used in info.used_registers().iter().filter(|used| writes(used.access())) {
            let register = used.register();
            if register.is_gpr() {
                written |= 1 << (register.full_register().number() & 15);
            }
        }
        for (n, access) in (0..insn.op_count()).zip(facts.accesses) {
            let register = insn.op_register(n);
            if insn.op_kind(n) == OpKind::Register && writes(access) && register.is_gpr() {
                named |= 1 << (register.full_register().number() & 15);
            }
        }
        let text = format!("{:?} {insn}", insn.code());
        assert_eq!(named, written, "{text}");
        let accesses: Vec<_> = (0..insn.op_count()).map(|n| info.op_access(n)).collect();
        // Of a difference with itself, the general facts say that it depends on nothing.
        let same = |(a, b)| insn.op_register(a) == insn.op_register(b);
        let idiom = [(0, 1), (1, 2)].into_iter().any(same);
        if accesses[..] != facts.accesses[..accesses.len()] {
            assert!(idiom, "{text}");
        }
        known.insert(insn.mnemonic());
    }
    let wanted = [Mnemonic::Add, Mnemonic::Mul, Mnemonic::Cmpxchg, Mnemonic::Mulx];
    assert!(wanted.iter().all(|mnemonic| known.contains(mnemonic)));
}
