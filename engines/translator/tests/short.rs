//! Random blocks of 16-bit code under the translator and under the handlers one by one, from
//! the same state: in real, unreal, virtual-8086 and 16-bit protected mode, with operands and
//! stacks that end at 64 KiB and code segments that begin anywhere.

mod common;

use common::{Machine, RAM, Rng, by_handlers, fill, insns, source};
use emit::StubCache;
use iced_x86::{Instruction, Mnemonic};
use semantics::{Insn, Stop};
use std::sync::Arc;
use translator::{Code, Left, Source, Translator, Width};
use vcpu_state::{SegReg, Segment, VcpuState};
use x86_defs::rflags;

/// Linear address of the code.
const CODE: u64 = 0x7a40;
const DATA: u64 = 0x2_0000;
const DATA_LEN: usize = 0x3_0000;

fn decode(bytes: &[u8]) -> Instruction {
    common::decoder(16, bytes, 0x1000).decode()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Real,
    /// With segments of 4 GiB.
    Unreal,
    Virtual,
    Protected,
}

const KINDS: [Kind; 4] = [Kind::Real, Kind::Unreal, Kind::Virtual, Kind::Protected];
const DATA_SEGMENTS: [SegReg; 5] = [SegReg::Ds, SegReg::Es, SegReg::Ss, SegReg::Fs, SegReg::Gs];

impl Kind {
    fn width(self) -> Width {
        if self == Kind::Protected { Width::Short } else { Width::Real }
    }

    fn machine(self) -> Machine {
        match self {
            Kind::Real | Kind::Unreal => Machine::real(),
            Kind::Virtual | Kind::Protected => Machine::protected(),
        }
    }

    fn segment(self, rng: &mut Rng) -> Segment {
        let selector = (DATA >> 4) as u16 + rng.below(0x1000) as u16;
        let base = u64::from(selector) << 4;
        let (limit, attr) = match self {
            Kind::Real => (0xffff, 0x93),
            Kind::Unreal => ([!0, 0xffff, 0x2_ffff][rng.below(3) as usize], 0x93),
            Kind::Virtual => (0xffff, 0xf3),
            Kind::Protected => {
                let limit = [0xffff, 0xffff, 0x7fff, 0xffff_ffff][rng.below(4) as usize];
                let kinds = [0x91, 0x93, 0x93, 0x93, 0x93, 0x97, 0x9b, 0, 0x13];
                (limit, kinds[rng.below(9) as usize])
            }
        };
        let anywhere = matches!(self, Kind::Unreal | Kind::Protected);
        let base = if anywhere { base + rng.below(0x1000) } else { base };
        Segment { selector, base, limit, attr }
    }

    fn flags(self, rng: &mut Rng) -> u64 {
        let more = match self {
            Kind::Virtual => rflags::VM | (3 * rng.below(2)) << 12,
            _ => 0,
        };
        more | 2 | rng.next() & (0xcd5 | rflags::IF)
    }
}

struct Pair {
    kind: Kind,
    handlers: Machine,
    native: Machine,
    translator: Translator,
    stubs: StubCache,
    /// Translated, and run.
    runs: usize,
}

fn random_state(kind: Kind, rng: &mut Rng, state: &mut VcpuState, ip: u64) {
    for (n, gpr) in state.regs.gpr.iter_mut().enumerate() {
        *gpr = match rng.below(6) {
            0 => rng.next(),
            1 => rng.below(64),
            2 => 0xffff - rng.below(16),
            3 => rng.below(0x1_0000) | (rng.next() & 0xffff) << 16,
            _ => rng.below(0x1_0000),
        };
        *gpr &= if n < 8 { 0xffff_ffff } else { !0 };
        if n == 4 && rng.below(8) != 0 {
            *gpr = (0x4000 + 2 * rng.below(16)) | ((rng.next() & 0xffff) << 16);
        }
    }
    if rng.below(8) != 0 {
        // Strings take their time.
        state.regs.gpr[1] &= 0xffff_003f;
    }
    for which in DATA_SEGMENTS {
        *state.segment_mut(which) = kind.segment(rng);
    }
    let ss = state.segment_mut(SegReg::Ss);
    if kind == Kind::Protected && rng.below(8) != 0 {
        (ss.limit, ss.attr) = (0xffff, 0x93);
    }
    let cs = state.segment_mut(SegReg::Cs);
    cs.base = CODE - ip;
    (cs.selector, cs.limit, cs.attr) = ((cs.base >> 4) as u16, 0xffff, 0x9b);
    match kind {
        Kind::Virtual => (cs.limit, cs.attr) = (0xffff, 0xf3),
        Kind::Protected => (cs.selector, cs.limit) = (common::CODE0_32, 0x1_ffff),
        _ => {}
    }
    if matches!(kind, Kind::Virtual | Kind::Protected) {
        state.control.cr0 |= 1;
    }
    state.regs.rip = ip;
    state.regs.rflags = kind.flags(rng);
}

fn set(machine: &mut Machine, state: &VcpuState) {
    machine.cpu.load_state(state);
    machine.cpu.leave = false;
}

impl Pair {
    fn new(kind: Kind) -> Option<Self> {
        let (translator, stubs) = common::translator()?;
        let (handlers, native) = (kind.machine(), kind.machine());
        fill([&handlers, &native], DATA, DATA_LEN);
        Some(Self { kind, handlers, native, translator, stubs, runs: 0 })
    }

    fn machines(&self) -> [&Machine; 2] {
        [&self.handlers, &self.native]
    }

    fn translate(&mut self, bytes: &[u8], ip: u64) -> Option<(Arc<[Insn]>, Code)> {
        let insns = insns(16, bytes, ip, &self.stubs);
        let plane = self.native.cpu.mmu.plane()?;
        let source = source(&insns, bytes, ip, plane, self.kind.width());
        let source = Source { start: (CODE % 4096) as u16, ..source };
        Some((insns.clone(), self.translator.translate(&source)?))
    }

    /// Both from the same random registers; flags that `undefined` has are not compared.
    fn run(&mut self, rng: &mut Rng, bytes: &[u8], undefined: u64) {
        let ip = match rng.below(4) {
            // The page begins before the segment.
            0 => 0x10 * rng.below(0x20),
            1 => CODE,
            2 => 0xfd0 - 0x10 * rng.below(4),
            _ => CODE - 0x10 * rng.below(CODE / 16),
        };
        // What branches to its own beginning goes on there.
        let mut decoder = common::decoder(16, bytes, ip);
        if decoder.iter().any(|insn| insn.near_branch_target() == ip) {
            return;
        }
        let mut state = self.handlers.cpu.save_state(0, 0);
        random_state(self.kind, rng, &mut state, ip);
        for machine in [&mut self.handlers, &mut self.native] {
            set(machine, &state);
        }
        let Some((insns, code)) = self.translate(bytes, ip) else { return };
        let context = || {
            let (segments, flags) = (&state.segments.reg[..6], state.regs.rflags);
            let (text, kind) = (common::text(16, bytes, ip), self.kind);
            format!(
                "{kind:?} at {ip:x}\n{text}{bytes:x?}\n{:x?}\n{segments:x?}\n{flags:x}",
                state.regs.gpr
            )
        };
        let expected = by_handlers(&mut self.handlers, ip, &insns);
        let got = self.translator.run(&mut self.native.ctx(), code, false);
        let got = got.unwrap_or_else(|| panic!("not run: {}", context()));
        self.runs += 1;
        assert_eq!(got.map(drop), expected, "{}", context());
        common::same_state(self.machines(), undefined, expected.is_err(), context);
        if self.runs.is_multiple_of(256) {
            self.compare_memory();
        }
    }

    fn compare_memory(&self) {
        common::same_memory(self.machines(), 0, RAM as usize, String::new);
    }

    fn finish(&self) {
        assert!(self.runs > 1000, "{}", self.runs);
        self.compare_memory();
    }
}

fn random_insn(rng: &mut Rng, wanted: impl Fn(Mnemonic) -> bool) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        for _ in 0..rng.below(3) {
            let prefixes = [0x66, 0x66, 0x67, 0x2e, 0x26, 0x36, 0x3e, 0x64, 0x65, 0xf0, 0xf3];
            bytes.push(prefixes[rng.below(11) as usize]);
        }
        if rng.below(3) == 0 {
            bytes.push(0x0f);
        }
        bytes.extend((0..12).map(|_| rng.next() as u8));
        if rng.below(3) == 0 {
            // A small displacement, or one just below zero.
            let at = bytes.len() - 10;
            let value = (rng.below(0x80) as i16).wrapping_sub(0x40);
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let insn = decode(&bytes);
        let system = [insn.op0_register(), insn.op1_register()];
        let system = system.iter().any(|r| r.is_cr() || r.is_dr() || r.is_tr());
        if !insn.is_invalid() && !system && wanted(insn.mnemonic()) {
            bytes.truncate(insn.len());
            return bytes;
        }
    }
}

fn string(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    let moves = matches!(mnemonic, Movsb | Movsw | Movsd | Stosb | Stosw | Stosd);
    let reads = matches!(mnemonic, Lodsb | Lodsw | Lodsd | Scasb | Scasw | Scasd);
    moves || reads || matches!(mnemonic, Cmpsb | Cmpsw | Cmpsd)
}

fn plain(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    let arithmetic = matches!(mnemonic, Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test);
    let one = matches!(mnemonic, Inc | Dec | Neg | Not | Lea | Push | Pop | Leave | Xchg | Xadd);
    let others = matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Cmpxchg8b
            | Cmpxchg
            | Cmove
            | Cmovb
            | Cmovg
            | Seta
            | Setl
            | Setp
            | Bswap
            | Cbw
            | Cwde
            | Cwd
            | Cdq
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Nop
            | Pushf
            | Pusha
            | Popa
            | Pushad
            | Popad
            | Salc
            | Xlatb
            | Lds
            | Les
            | Lfs
            | Lgs
            | Cli
            | Sti
            | Cld
            | Std
            | Enter
            | Andn
    );
    arithmetic || one || others || string(mnemonic)
}

#[test]
fn blocks_of_defined_flags() {
    for kind in KINDS {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15 ^ kind as u64);
        for _ in 0..4_000 {
            let bytes: Vec<u8> =
                (0..1 + rng.below(6)).flat_map(|_| random_insn(&mut rng, plain)).collect();
            pair.run(&mut rng, &bytes, 0);
        }
        pair.finish();
    }
}

#[test]
fn segments_and_stacks() {
    let wanted = |mnemonic| {
        use Mnemonic::*;
        matches!(mnemonic, Push | Pop | Pushf | Lds | Les | Lfs | Lgs | Leave)
    };
    for kind in KINDS {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(0x1234_5679 ^ kind as u64);
        for _ in 0..4_000 {
            let mut bytes = Vec::new();
            for _ in 0..1 + rng.below(5) {
                match rng.below(3) {
                    // MOV from and to a segment register.
                    0 => {
                        bytes.extend([0x8c | rng.next() as u8 & 2, 0xc0 | rng.next() as u8 & 0x1f])
                    }
                    1 => bytes.extend(random_insn(&mut rng, wanted)),
                    _ => bytes.extend(random_insn(&mut rng, plain)),
                }
            }
            pair.run(&mut rng, &bytes, 0);
        }
        pair.finish();
    }
}

#[test]
fn strings() {
    for kind in KINDS {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(31 + kind as u64);
        for _ in 0..3_000 {
            let mut bytes = random_insn(&mut rng, string);
            if rng.below(2) == 0 {
                bytes.insert(0, 0xf2 | rng.next() as u8 & 1);
            }
            bytes.extend(random_insn(&mut rng, plain));
            pair.run(&mut rng, &bytes, 0);
        }
        pair.finish();
    }
}

#[test]
fn single_instructions_with_undefined_flags() {
    let Some(mut pair) = Pair::new(Kind::Real) else { return };
    let amd = common::is_amd();
    let mut rng = Rng(77);
    let wanted = |mnemonic| {
        use Mnemonic::*;
        let shifts = matches!(mnemonic, Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd);
        let bits = matches!(mnemonic, Bt | Bts | Btr | Btc | Bsf | Bsr | Tzcnt | Lzcnt | Popcnt);
        let decimal = matches!(mnemonic, Aaa | Aas | Aad | Aam | Daa | Das);
        shifts || bits || decimal || matches!(mnemonic, Imul | Mul | Div | Idiv)
    };
    for _ in 0..8_000 {
        let bytes = random_insn(&mut rng, wanted);
        if amd && common::may_be_hosts_choice(16, &bytes) {
            continue;
        }
        pair.run(&mut rng, &bytes, 0x8d5);
    }
    pair.finish();
}

#[test]
fn calls_and_jumps() {
    for kind in KINDS {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(99 + kind as u64);
        let flow = |m: Mnemonic| {
            use Mnemonic::*;
            let loops = matches!(m, Jcxz | Jecxz | Loop | Loope | Loopne);
            loops || matches!(m, Jmp | Call | Ret | Je | Jb | Jg | Js | Jo | Jp | Ja | Jl)
        };
        for _ in 0..5_000 {
            let mut bytes: Vec<u8> =
                (0..rng.below(3)).flat_map(|_| random_insn(&mut rng, plain)).collect();
            bytes.extend(random_insn(&mut rng, flow));
            pair.run(&mut rng, &bytes, 0);
        }
        pair.finish();
    }
}

/// Code that is not what was translated does not run: in another place of its segment, in
/// another mode, with a stack of 32 bits, with upper halves that a 64-bit program has left.
#[test]
fn what_it_was_not_made_for_is_not_run() {
    let Some(mut pair) = Pair::new(Kind::Protected) else { return };
    // mov ax, [bx]
    let mut state = pair.native.cpu.save_state(0, 0);
    random_state(Kind::Protected, &mut Rng(1), &mut state, 0xa40);
    *state.segment_mut(SegReg::Ss) = Segment { selector: 0x10, base: 0, limit: 0xffff, attr: 0x93 };
    set(&mut pair.native, &state);
    let (_, code) = pair.translate(&[0x8b, 0x07], 0xa40).unwrap();
    let mut runs = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = state.clone();
        change(&mut state);
        set(&mut pair.native, &state);
        let result = pair.translator.run(&mut pair.native.ctx(), code, false);
        assert!(result.is_none_or(|result| matches!(result, Ok(Left::Exit(_)) | Err(Stop::Fault))));
        result.is_some()
    };
    assert!(runs(&|_| ()));
    assert!(runs(&|state| state.segment_mut(SegReg::Ds).limit = 0x100));
    assert!(runs(&|state| state.segment_mut(SegReg::Cs).base += 0x1000));
    assert!(!runs(&|state| state.regs.rip += 0x1000));
    assert!(!runs(&|state| state.regs.rip += 0x10));
    assert!(!runs(&|state| state.segment_mut(SegReg::Cs).limit = 0xfffe));
    assert!(!runs(&|state| state.segment_mut(SegReg::Ss).attr |= 0x4000));
    assert!(!runs(&|state| state.regs.gpr[0] |= 1 << 32));
    assert!(!runs(&|state| state.control.cr0 &= !1), "real mode");
    assert!(!runs(&|state| state.segment_mut(SegReg::Cs).attr |= 0x4000), "32-bit code");
}
