//! Random blocks under the translator and under the handlers one by one, from the same state.

mod common;

use common::{HIGH, Machine, Rng, by_handlers, fill, insns, random_vectors, source};
use emit::StubCache;
use iced_x86::Mnemonic;
use semantics::Insn;
use std::sync::Arc;
use translator::{Code, Left, Translator, Width};

const CODE: u64 = 0x7000;
const DATA: u64 = 0x20_0000;
const DATA_LEN: usize = 0x1_0000;

struct Pair {
    handlers: Machine,
    native: Machine,
    translator: Translator,
    stubs: StubCache,
}

fn pair(user: bool) -> Option<Pair> {
    let new = || if user { Machine::long_user() } else { Machine::long() };
    let (translator, stubs) = common::translator()?;
    let pair = Pair { handlers: new(), native: new(), translator, stubs };
    fill(pair.machines(), DATA, DATA_LEN);
    Some(pair)
}

impl Pair {
    fn translate(&mut self, bytes: &[u8]) -> Option<(Arc<[Insn]>, Code)> {
        self.translate_at(CODE, bytes)
    }

    fn translate_at(&mut self, linear: u64, bytes: &[u8]) -> Option<(Arc<[Insn]>, Code)> {
        let insns = insns(64, bytes, CODE, &self.stubs);
        let plane = self.native.cpu.mmu.plane()?;
        let source = source(&insns, bytes, linear, plane, Width::Wide);
        Some((insns.clone(), self.translator.translate(&source)?))
    }

    fn machines(&self) -> [&Machine; 2] {
        [&self.handlers, &self.native]
    }

    /// Both from the same random registers; flags that `undefined` has are not compared.
    fn run(&mut self, rng: &mut Rng, bytes: &[u8], undefined: u64) {
        let Some((insns, code)) = self.translate(bytes) else { return };
        let mut state = self.handlers.cpu.save_state(0, 0);
        for (n, gpr) in state.regs.gpr.iter_mut().enumerate() {
            *gpr = match rng.below(4) {
                0 => rng.next(),
                1 => rng.below(64),
                2 => HIGH + DATA + rng.below(0x4000),
                _ => DATA + rng.below(0x4000),
            };
            if n == 4 {
                *gpr = DATA + 0x8000 + 8 * rng.below(16);
            }
        }
        random_vectors(rng, &mut state);
        state.regs.rip = CODE;
        state.regs.rflags = 2 | rng.next() & 0x8d5;
        self.handlers.cpu.load_state(&state);
        self.native.cpu.load_state(&state);
        self.handlers.cpu.leave = false;
        self.native.cpu.leave = false;
        let expected = by_handlers(&mut self.handlers, CODE, &insns);
        let got = self.translator.run(&mut self.native.ctx(), code, false).unwrap();
        let context = || {
            let (text, flags) = (common::text(64, bytes, CODE), state.regs.rflags);
            format!("{text}\nfrom {:x?} flags {flags:x}", state.regs.gpr)
        };
        assert_eq!(got.map(drop), expected, "{}", context());
        common::same_state(self.machines(), undefined, expected.is_err(), context);
    }

    fn compare_memory(&self) {
        common::same_memory(self.machines(), DATA, DATA_LEN, String::new);
    }
}

/// A random instruction among these opcodes, as bytes; any that decodes and stays in its lane.
fn random_insn(rng: &mut Rng, wanted: impl Fn(Mnemonic) -> bool) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        if rng.below(6) == 0 {
            bytes.push([0x66, 0x64, 0x65, 0x67, 0xf0][rng.below(5) as usize]);
        }
        if rng.below(3) != 0 {
            bytes.push(0x40 | rng.below(16) as u8);
        }
        if rng.below(3) == 0 {
            bytes.push(0x0f);
        }
        for _ in 0..12 {
            bytes.push(rng.next() as u8);
        }
        // Registers and small displacements more often than others.
        let insn = common::decoder(64, &bytes, CODE).decode();
        if !insn.is_invalid() && wanted(insn.mnemonic()) {
            bytes.truncate(insn.len());
            return bytes;
        }
    }
}

fn copied(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Lea
            | Push
            | Pop
            | Leave
            | Xchg
            | Xadd
            | Cmpxchg8b
            | Cmpxchg16b
            | Cmpxchg
            | Cmove
            | Cmovb
            | Cmovg
            | Cmovs
            | Seta
            | Setl
            | Setp
            | Bswap
            | Cwde
            | Cdqe
            | Cdq
            | Cqo
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Nop
    )
}

fn undefined_flags(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Shl | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Imul
            | Mul
            | Bt
            | Bts
            | Btr
            | Btc
            | Shld
            | Shrd
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Popcnt
    )
}

#[test]
fn blocks_of_defined_flags() {
    for user in [false, true] {
        let Some(mut pair) = pair(user) else { return };
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15 ^ u64::from(user));
        for _ in 0..3_000 {
            let bytes: Vec<u8> =
                (0..1 + rng.below(8)).flat_map(|_| random_insn(&mut rng, copied)).collect();
            pair.run(&mut rng, &bytes, 0);
        }
        pair.compare_memory();
    }
}

#[test]
fn single_instructions_with_undefined_flags() {
    let Some(mut pair) = pair(false) else { return };
    let amd = common::is_amd();
    let mut rng = Rng(77);
    for _ in 0..6_000 {
        let bytes = random_insn(&mut rng, undefined_flags);
        if amd && common::may_be_hosts_choice(64, &bytes) {
            continue;
        }
        pair.run(&mut rng, &bytes, 0x8d5);
    }
    pair.compare_memory();
}

#[test]
fn calls_and_jumps() {
    let Some(mut pair) = pair(false) else { return };
    let mut rng = Rng(99);
    let flow = |m: Mnemonic| {
        use Mnemonic::*;
        matches!(m, Jmp | Call | Ret | Je | Jb | Jg | Js | Jo | Jp | Ja | Jl)
    };
    for _ in 0..3_000 {
        let mut bytes: Vec<u8> =
            (0..rng.below(3)).flat_map(|_| random_insn(&mut rng, copied)).collect();
        let last = random_insn(&mut rng, flow);
        let ip = CODE + bytes.len() as u64;
        let insn = common::decoder(64, &last, ip).decode();
        bytes.extend(last);
        if insn.near_branch_target() == CODE {
            // It may never end.
            continue;
        }
        pair.run(&mut rng, &bytes, 0);
    }
    pair.compare_memory();
}

fn vector(mnemonic: Mnemonic) -> bool {
    let text = format!("{mnemonic:?}");
    use Mnemonic::*;
    let divides = matches!(mnemonic, Div | Idiv);
    divides
        || ["P", "Vp", "Mov", "Vmov", "Add", "Vadd", "Mul", "Vmul", "Cvt", "Vcvt", "Sub", "Ucom"]
            .iter()
            .any(|start| text.starts_with(start))
            && !matches!(
                mnemonic,
                Push | Pop | Pushf | Popf | Pushfq | Popfq | Pause | Popcnt | Mov
            )
}

#[test]
fn vectors_and_divisions() {
    for user in [false, true] {
        let Some(mut pair) = pair(user) else { return };
        for machine in [&mut pair.handlers, &mut pair.native] {
            let mut state = machine.cpu.save_state(0, 0);
            state.control.cr4 |= x86_defs::cr::cr4::OSXSAVE;
            state.control.xcr0 = 7;
            machine.cpu.load_state(&state);
        }
        let mut rng = Rng(0x1234_5678 + u64::from(user));
        for _ in 0..3_000 {
            let bytes: Vec<u8> =
                (0..1 + rng.below(4)).flat_map(|_| random_vector(&mut rng)).collect();
            pair.run(&mut rng, &bytes, 0x8d5);
        }
        pair.compare_memory();
    }
}

fn random_vector(rng: &mut Rng) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        match rng.below(5) {
            0 => {
                bytes.extend([0xc4, (rng.next() as u8 & 0xe0) | (1 + rng.below(3)) as u8]);
                bytes.push(rng.next() as u8);
            }
            1 => bytes.extend([0xc5, rng.next() as u8]),
            2 => bytes.extend([0x48 | rng.below(8) as u8, 0xf7]),
            3 => bytes.extend([[0x66, 0xf2, 0xf3][rng.below(3) as usize], 0x0f]),
            _ => bytes.extend([0x66, 0x40 | rng.below(16) as u8, 0x0f]),
        }
        bytes.extend((0..10).map(|_| rng.next() as u8));
        let insn = common::decoder(64, &bytes, CODE).decode();
        if !insn.is_invalid() && vector(insn.mnemonic()) {
            bytes.truncate(insn.len());
            return bytes;
        }
    }
}

/// Strings of bits in memory, with numbers up to some thousand before and behind the operand.
#[test]
fn bits_of_strings() {
    for user in [false, true] {
        let Some(mut pair) = pair(user) else { return };
        let mut rng = Rng(0xb175 + u64::from(user));
        for _ in 0..4_000 {
            let (bit, base) = (rng.below(16) as u8, rng.below(16) as u8);
            // movsx bit, word; op [base + disp8], bit
            let mut bytes =
                vec![0x48 | bit >> 3 << 2 | bit >> 3, 0x0f, 0xbf, 0xc0 | ((bit & 7) * 9)];
            let op = [0xa3, 0xab, 0xb3, 0xbb][rng.below(4) as usize];
            let (mut base, mut disp) = (base, rng.next() as u8);
            if op != 0xa3 && rng.below(2) == 0 {
                bytes.push(0xf0);
                // RSP is aligned: hosts punish what is locked across a line of the cache.
                (base, disp) = (4, disp & !7);
            }
            let wide = rng.below(2) as u8;
            bytes.extend([0x40 | wide << 3 | bit >> 3 << 2 | base >> 3, 0x0f, op]);
            bytes.push(0x40 | (bit & 7) << 3 | base & 7);
            if base & 7 == 4 {
                bytes.push(0x24);
            }
            bytes.push(disp);
            pair.run(&mut rng, &bytes, 0x894);
        }
        pair.compare_memory();
    }
}

/// Selectors, and the bases of FS and GS, between accesses that use them.
#[test]
fn selectors_and_bases() {
    for (user, enabled) in [(false, true), (true, true), (false, false), (true, false)] {
        let Some(mut pair) = pair(user) else { return };
        for machine in [&mut pair.handlers, &mut pair.native] {
            let mut state = machine.cpu.save_state(0, 0);
            if enabled {
                state.control.cr4 |= x86_defs::cr::cr4::FSGSBASE;
            }
            for (n, segment) in state.segments.reg.iter_mut().enumerate().take(6) {
                if !matches!(n, 1 | 2) {
                    segment.selector = 0x1230 + n as u16;
                }
            }
            machine.cpu.load_state(&state);
        }
        let mut rng = Rng(0x5e6 + u64::from(user));
        for _ in 0..2_000 {
            let mut bytes = Vec::new();
            if rng.below(2) == 0 {
                // mov rax, fs:[rbx]; wrfsbase rsi; mov rcx, fs:[rbx + 8]: no check is shared
                bytes.extend([0x64, 0x48, 0x8b, 3, 0xf3, 0x48, 0x0f, 0xae, 0xd6]);
                bytes.extend([0x64, 0x48, 0x8b, 0x4b, 8]);
            }
            for _ in 0..1 + rng.below(6) {
                let (a, b) = (rng.below(16) as u8, rng.below(8) as u8);
                match rng.below(5) {
                    // mov r16, r32 or r64, segment
                    0 => {
                        bytes.extend([0x66].iter().filter(|_| rng.below(2) == 0));
                        let rex = 0x40 | wide(&mut rng) | a >> 3;
                        bytes.extend([rex, 0x8c, 0xc0 | segment(b) | a & 7]);
                    }
                    // mov [rbx + disp8], segment
                    1 => bytes.extend([0x8c, 0x43 | segment(b), rng.next() as u8]),
                    // rdfsbase, rdgsbase, wrfsbase, wrgsbase
                    2 | 3 => {
                        let rex = 0x40 | wide(&mut rng) | a >> 3;
                        bytes.extend([0xf3, rex, 0x0f, 0xae, 0xc0 | (b & 3) << 3 | a & 7]);
                    }
                    // mov rax, fs:[rbx + disp8] or gs:
                    _ => {
                        bytes.extend([[0x64, 0x65][usize::from(b & 1)], 0x48, 0x8b, 0x43, 0x10 * b])
                    }
                }
            }
            pair.run(&mut rng, &bytes, 0);
        }
        pair.compare_memory();
    }
}

/// SIDT and SGDT in both rings, whatever follows reads of them.
#[test]
fn tables_of_descriptors() {
    for user in [false, true] {
        let Some(mut pair) = pair(user) else { return };
        for machine in [&mut pair.handlers, &mut pair.native] {
            let mut state = machine.cpu.save_state(0, 0);
            (state.segments.idtr.limit, state.segments.idtr.base) = (0x1234, 0xffff_8765_4321_0fed);
            (state.segments.gdtr.limit, state.segments.gdtr.base) = (0xfedc, 0x7abc_def0_1234);
            machine.cpu.load_state(&state);
        }
        let mut rng = Rng(0x51d7 + u64::from(user));
        for _ in 0..500 {
            let mut bytes = Vec::new();
            for _ in 0..1 + rng.below(4) {
                let (idt, base, disp) =
                    (rng.below(2) as u8, rng.pick(&[0, 3, 6]), rng.next() as u8);
                // sidt or sgdt [rax, rbx or rsi + disp8]; mov rcx, [there + 2]
                bytes.extend([0x0f, 0x01, 0x40 | idt << 3 | base, disp & 0x7f]);
                bytes.extend([0x48, 0x8b, 0x48 | base, (disp & 0x7f) + 2]);
            }
            pair.run(&mut rng, &bytes, 0);
        }
        pair.compare_memory();
        let mut stats = engine::Stats::default();
        pair.translator.report(&mut stats);
        let by = |name| stats.get("callouts by instruction", name);
        assert_eq!([by("sidt").is_some(), by("sgdt").is_some()], [user; 2]);
    }
}

fn wide(rng: &mut Rng) -> u8 {
    (rng.below(2) as u8) << 3
}

/// The field of ModRM for ES, CS, SS, DS, FS or GS.
fn segment(n: u8) -> u8 {
    (n % 6) << 3
}

/// A loop over linked blocks, and its end by a request.
#[test]
fn linked_blocks() {
    let Some(mut pair) = pair(false) else { return };
    // add rax, rcx; jmp +2
    let (_, first) = pair.translate(&[0x48, 0x01, 0xc8, 0xeb, 0x02]).unwrap();
    // dec rcx; jnz -12
    let second = pair.translate_at(CODE + 7, &[0x48, 0xff, 0xc9, 0x75, 0xf4]).unwrap().1;
    let cpu = &mut pair.native.cpu;
    (cpu.rip, cpu.gpr[0], cpu.gpr[1], cpu.leave) = (CODE, 0, 1000, false);
    let run = |pair: &mut Pair, code| {
        pair.translator.run(&mut pair.native.ctx(), code, false).unwrap().unwrap()
    };
    for (code, next, to) in [(first, second, CODE + 7), (second, first, CODE)] {
        let left = run(&mut pair, code);
        let Left::Exit(link) = left else { panic!("{left:?}") };
        assert_eq!(pair.native.cpu.rip, to);
        pair.translator.link(link, next);
    }
    assert_eq!(pair.native.cpu.gpr[1], 999);
    let left = run(&mut pair, first);
    assert!(matches!(left, Left::Exit(_)), "{left:?}");
    assert_eq!(pair.native.cpu.gpr[0], 1000 * 1001 / 2);
    assert_eq!((pair.native.cpu.rip, pair.native.cpu.gpr[1]), (CODE + 12, 0));
    // Flags are set: the block is not even begun.
    let cpu = &mut pair.native.cpu;
    (cpu.rip, cpu.gpr[1]) = (CODE, 5);
    cpu.slot.flags.store(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(run(&mut pair, first), Left::Boundary);
    assert_eq!((pair.native.cpu.rip, pair.native.cpu.gpr[1]), (CODE, 5));
    // What is removed cannot be run, and nothing goes there.
    pair.native.cpu.slot.flags.store(0, std::sync::atomic::Ordering::SeqCst);
    pair.translator.remove(&[first]);
    assert!(pair.translator.run(&mut pair.native.ctx(), first, false).is_none());
    pair.native.cpu.rip = CODE + 7;
    let left = run(&mut pair, second);
    assert!(matches!(left, Left::Exit(_)), "{left:?}");
    assert_eq!((pair.native.cpu.rip, pair.native.cpu.gpr[1]), (CODE, 4));
}

/// A loop that is one block: it ends by itself, and by a request of another thread.
#[test]
fn a_loop_of_one_block() {
    let Some(mut pair) = pair(false) else { return };
    // add rax, rcx; dec rcx; jnz -8
    let (_, code) = pair.translate(&[0x48, 0x01, 0xc8, 0x48, 0xff, 0xc9, 0x75, 0xf8]).unwrap();
    for count in [1, 2, 3, 4, 5, 6, 7, 1000] {
        let cpu = &mut pair.native.cpu;
        (cpu.rip, cpu.gpr[0], cpu.gpr[1], cpu.leave) = (CODE, 0, count, false);
        let left = pair.translator.run(&mut pair.native.ctx(), code, false).unwrap().unwrap();
        assert!(matches!(left, Left::Exit(_)), "{left:?}");
        let cpu = &pair.native.cpu;
        assert_eq!((cpu.rip, cpu.gpr[0], cpu.gpr[1]), (CODE + 8, count * (count + 1) / 2, 0));
    }
    // inc rax; jmp -5
    let (_, code) = pair.translate(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]).unwrap();
    (pair.native.cpu.rip, pair.native.cpu.gpr[0]) = (CODE, 0);
    let slot = pair.native.cpu.slot.clone();
    let request = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        slot.flags.store(1, std::sync::atomic::Ordering::SeqCst);
    });
    let left = pair.translator.run(&mut pair.native.ctx(), code, false).unwrap().unwrap();
    request.join().unwrap();
    assert_eq!((left, pair.native.cpu.rip), (Left::Boundary, CODE));
    assert!(pair.native.cpu.gpr[0] > 0);
}
