//! Random blocks of 32-bit code under the translator and under the handlers one by one, from
//! the same state: flat and other segments, accesses around 4 GiB, in protected mode without
//! paging and in compatibility mode.

mod common;

use common::{CODE0_32, CODE3_32, Machine, Rng, by_handlers, fill, insns, random_vectors, source};
use emit::StubCache;
use iced_x86::{Instruction, Mnemonic};
use semantics::Insn;
use std::sync::Arc;
use translator::{Code, Left, Translator, Width};
use vcpu_state::{SegReg, Segment, VcpuState};
use x86_defs::cr::cr4;

const CODE: u64 = 0x7000;
const DATA: u64 = 0x20_0000;
const DATA_LEN: usize = 0x1_0000;

fn decode(bytes: &[u8]) -> Instruction {
    common::decoder(32, bytes, CODE).decode()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Protected,
    Compatibility,
    User,
}

const KINDS: [Kind; 3] = [Kind::Protected, Kind::Compatibility, Kind::User];

fn machine(kind: Kind) -> Machine {
    let mut machine = match kind {
        Kind::Protected => Machine::protected(),
        Kind::Compatibility => Machine::long(),
        Kind::User => Machine::long_user(),
    };
    let mut state = machine.cpu.save_state(0, 0);
    let (code, data) = match kind {
        Kind::User => ((CODE3_32, 0xc0fb), (common::DATA3, 0xc0f3)),
        _ => ((CODE0_32, 0xc09b), (common::DATA0, 0xc093)),
    };
    let flat = |(selector, attr)| Segment { selector, base: 0, limit: !0, attr };
    *state.segment_mut(SegReg::Cs) = flat(code);
    for which in [SegReg::Ds, SegReg::Es, SegReg::Ss] {
        *state.segment_mut(which) = flat(data);
    }
    // The last pages below 4 GiB are memory, too.
    machine.put(0x11000 + 8 * 3, 0x12000 | 7);
    machine.put(0x12000 + 8 * 511, (common::PT + 0x1000) | 7);
    state.control.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
    state.control.xcr0 = 7;
    state.fpu = vcpu_state::FpuState::init();
    machine.cpu.load_state(&state);
    machine
}

struct Pair {
    handlers: Machine,
    native: Machine,
    translator: Translator,
    stubs: StubCache,
    /// Translated, and run.
    runs: usize,
}

/// Sets what blocks change, and leaves the TLB as it is.
fn set(machine: &mut Machine, state: &VcpuState) {
    let cpu = &mut machine.cpu;
    cpu.gpr[..16].copy_from_slice(&state.regs.gpr);
    cpu.rip = state.regs.rip;
    cpu.set_rflags(state.regs.rflags);
    for which in [SegReg::Fs, SegReg::Gs] {
        *cpu.segment_mut(which) = *state.segments.reg.get(which as usize).unwrap();
    }
    cpu.fpu.clone_from(&state.fpu);
    cpu.leave = false;
    machine.host.mmio.clear();
}

fn text(bytes: &[u8]) -> String {
    common::text(32, bytes, CODE)
}

/// FS and GS as translated code adds their bases, and as it must not.
fn base(rng: &mut Rng, segment: &mut Segment) {
    segment.attr = if rng.below(8) == 0 { 0xc091 } else { 0xc0f3 };
    segment.limit = if rng.below(8) == 0 { 0xffff } else { !0 };
    segment.base = match rng.below(4) {
        0 => 0,
        1 => 0xffff_f800 + rng.below(0x1000),
        _ => DATA + rng.below(0x2000),
    };
}

fn random_state(rng: &mut Rng, state: &mut VcpuState) {
    for (n, gpr) in state.regs.gpr.iter_mut().enumerate() {
        *gpr = match rng.below(5) {
            0 => rng.next(),
            1 => rng.below(64),
            2 => u64::from(u32::MAX) - (rng.below(0x80) >> rng.below(8)),
            _ => DATA + rng.below(0x4000),
        };
        *gpr &= if n < 8 { 0xffff_ffff } else { !0 };
        if n == 4 && rng.below(8) != 0 {
            *gpr = DATA + 0x8000 + 4 * rng.below(16);
        }
    }
    random_vectors(rng, state);
    base(rng, state.segment_mut(SegReg::Fs));
    base(rng, state.segment_mut(SegReg::Gs));
    state.regs.rip = CODE;
    state.regs.rflags = 2 | rng.next() & 0x8d5;
}

impl Pair {
    fn new(kind: Kind) -> Option<Self> {
        let (translator, stubs) = common::translator()?;
        let (handlers, native) = (machine(kind), machine(kind));
        fill([&handlers, &native], DATA, DATA_LEN);
        Some(Self { handlers, native, translator, stubs, runs: 0 })
    }

    fn machines(&self) -> [&Machine; 2] {
        [&self.handlers, &self.native]
    }

    fn translate(&mut self, bytes: &[u8]) -> Option<(Arc<[Insn]>, Code)> {
        let insns = insns(32, bytes, CODE, &self.stubs);
        let plane = self.native.cpu.mmu.plane()?;
        let source = source(&insns, bytes, CODE, plane, Width::Narrow);
        Some((insns.clone(), self.translator.translate(&source)?))
    }

    /// Both from the same random registers; flags that `undefined` has are not compared.
    fn run(&mut self, rng: &mut Rng, bytes: &[u8], undefined: u64) {
        let Some((insns, code)) = self.translate(bytes) else { return };
        let mut state = self.handlers.cpu.save_state(0, 0);
        random_state(rng, &mut state);
        for machine in [&mut self.handlers, &mut self.native] {
            set(machine, &state);
        }
        let context = || {
            let segments = [state.segments.reg[4], state.segments.reg[5]];
            let flags = state.regs.rflags;
            format!("{}\n{:x?} {segments:x?} flags {flags:x}", text(bytes), state.regs.gpr)
        };
        let expected = by_handlers(&mut self.handlers, CODE, &insns);
        let got = self.translator.run(&mut self.native.ctx(), code, false).unwrap();
        self.runs += 1;
        assert_eq!(got.map(drop), expected, "{}", context());
        common::same_state(self.machines(), undefined, expected.is_err(), context);
    }

    fn compare_memory(&self) {
        assert!(self.runs > 1000, "{}", self.runs);
        common::same_memory(self.machines(), DATA, DATA_LEN, String::new);
    }
}

fn random_insn(rng: &mut Rng, wanted: impl Fn(Mnemonic) -> bool) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        if rng.below(4) == 0 {
            bytes.push([0x66, 0x64, 0x65, 0x67, 0xf0, 0x2e, 0x3e][rng.below(7) as usize]);
        }
        if rng.below(3) == 0 {
            bytes.push(0x0f);
        }
        bytes.extend((0..12).map(|_| rng.next() as u8));
        if rng.below(3) == 0 {
            // A small displacement, or one just below zero.
            let at = bytes.len() - 9;
            let value = (rng.below(0x80) as i32).wrapping_sub(0x40);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let insn = decode(&bytes);
        // What is left of a block whose segments are not flat any more is not run.
        let segment = insn.op0_register().is_segment_register();
        let loads = insn.is_privileged()
            || segment && matches!(insn.mnemonic(), Mnemonic::Pop | Mnemonic::Mov);
        if !insn.is_invalid() && !loads && wanted(insn.mnemonic()) {
            bytes.truncate(insn.len());
            return bytes;
        }
    }
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
            | Cwde
            | Cdq
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Nop
            | Pushfd
            | Pushad
            | Popad
            | Salc
            | Xlatb
    );
    arithmetic || one || others
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
        pair.compare_memory();
    }
}

#[test]
fn single_instructions_with_undefined_flags() {
    let Some(mut pair) = Pair::new(Kind::Protected) else { return };
    let amd = common::is_amd();
    let mut rng = Rng(77);
    let wanted = |mnemonic| {
        use Mnemonic::*;
        let shifts = matches!(mnemonic, Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd);
        let bits = matches!(mnemonic, Bt | Bts | Btr | Btc | Bsf | Bsr | Tzcnt | Lzcnt | Popcnt);
        let decimal = matches!(mnemonic, Aaa | Aas | Aad | Aam | Daa | Das);
        shifts || bits || decimal || matches!(mnemonic, Imul | Mul | Div | Idiv)
    };
    for _ in 0..6_000 {
        let bytes = random_insn(&mut rng, wanted);
        if amd && common::may_be_hosts_choice(32, &bytes) {
            continue;
        }
        pair.run(&mut rng, &bytes, 0x8d5);
    }
    pair.compare_memory();
}

#[test]
fn calls_and_jumps() {
    for kind in KINDS {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(99 + kind as u64);
        let flow = |m: Mnemonic| {
            use Mnemonic::*;
            matches!(m, Jmp | Call | Ret | Je | Jb | Jg | Js | Jo | Jp | Ja | Jl | Jecxz | Loop)
        };
        for _ in 0..3_000 {
            let mut bytes: Vec<u8> =
                (0..rng.below(3)).flat_map(|_| random_insn(&mut rng, plain)).collect();
            let last = random_insn(&mut rng, flow);
            let ip = CODE + bytes.len() as u64;
            let insn = common::decoder(32, &last, ip).decode();
            bytes.extend(last);
            if insn.near_branch_target() == CODE {
                // It may never end.
                continue;
            }
            pair.run(&mut rng, &bytes, 0);
        }
        pair.compare_memory();
    }
}

fn random_vector(rng: &mut Rng) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        match rng.below(6) {
            // VZEROUPPER and VZEROALL.
            4 if rng.below(8) == 0 => bytes.extend([0xc5, 0xf8 | rng.next() as u8 & 4, 0x77]),
            5 => bytes.push(0xd8 + rng.below(8) as u8),
            0 => {
                bytes.extend([0xc4, 0xe0 | (1 + rng.below(3)) as u8]);
                bytes.push(0x80 | rng.next() as u8);
            }
            1 => bytes.extend([0xc5, 0x80 | rng.next() as u8]),
            2 => bytes.push(0x0f),
            _ => bytes.extend([[0x66, 0xf2, 0xf3][rng.below(3) as usize], 0x0f]),
        }
        bytes.extend((0..10).map(|_| rng.next() as u8));
        let insn = decode(&bytes);
        let name = format!("{:?}", insn.mnemonic());
        let starts = [
            "P", "Vp", "Mov", "Vmov", "Add", "Vadd", "Mul", "Cvt", "Vcvt", "Vzero", "Fst", "Fadd",
            "Fmul", "Fsub", "Fild", "Fist", "Fxch", "Fcom",
        ];
        let vector = starts.iter().any(|start| name.starts_with(start))
            && !["Push", "Pop", "Pause"].iter().any(|start| name.starts_with(start))
            && insn.mnemonic() != Mnemonic::Mov;
        if !insn.is_invalid() && vector {
            bytes.truncate(insn.len());
            return bytes;
        }
    }
}

#[test]
fn vectors() {
    for kind in [Kind::Protected, Kind::User] {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(0x1234_5678 + kind as u64);
        for _ in 0..3_000 {
            let bytes: Vec<u8> =
                (0..1 + rng.below(4)).flat_map(|_| random_vector(&mut rng)).collect();
            pair.run(&mut rng, &bytes, 0x8d5);
        }
        pair.compare_memory();
    }
}

/// SIDT and SGDT in both rings, of six bytes each.
#[test]
fn tables_of_descriptors() {
    for kind in [Kind::Protected, Kind::User] {
        let Some(mut pair) = Pair::new(kind) else { return };
        let mut rng = Rng(0x51d7 + kind as u64);
        for _ in 0..1_200 {
            let mut bytes = Vec::new();
            for _ in 0..1 + rng.below(4) {
                // sidt or sgdt [eax, ebx or esi + disp8]; mov ecx, [there + 2]
                let (idt, base, disp) =
                    (rng.below(2) as u8, rng.pick(&[0, 3, 6]), rng.next() as u8 & 0x7f);
                bytes.extend([0x0f, 0x01, 0x40 | idt << 3 | base, disp, 0x8b, 0x48 | base]);
                bytes.push((disp + 2) & 0x7f);
            }
            pair.run(&mut rng, &bytes, 0);
        }
        pair.compare_memory();
        let mut stats = engine::Stats::default();
        pair.translator.report(&mut stats);
        let by = |name| stats.get("callouts by instruction", name);
        let user = matches!(kind, Kind::User);
        assert_eq!([by("sidt").is_some(), by("sgdt").is_some()], [user; 2]);
    }
}

/// Strings that end in the next page, at 4 GiB, or not at all.
#[test]
fn strings() {
    for kind in KINDS {
        strings_of(kind);
    }
}

fn strings_of(kind: Kind) {
    let Some(mut pair) = Pair::new(kind) else { return };
    let mut rng = Rng(31 + kind as u64);
    let mut runs = 0;
    for _ in 0..3_000 {
        let opcode = [0xa4, 0xa5, 0xaa, 0xab][rng.below(4) as usize];
        let mut bytes = vec![0xf3, opcode];
        if rng.below(4) == 0 {
            bytes.insert(0, [0x66, 0x64, 0x67][rng.below(3) as usize]);
        }
        let Some((insns, code)) = pair.translate(&bytes) else { continue };
        let mut state = pair.handlers.cpu.save_state(0, 0);
        random_state(&mut rng, &mut state);
        let count = rng.below(0x600);
        let mut place = || match rng.below(8) {
            0 => 0xffff_f800 + rng.below(0x800),
            _ => DATA + rng.below(0x8000),
        };
        (state.regs.gpr[6], state.regs.gpr[7], state.regs.gpr[1]) = (place(), place(), count);
        if rng.below(4) == 0 {
            // Exactly at 4 GiB.
            let size = [1, 4][usize::from(opcode & 1)];
            let which = if opcode < 0xa8 { 6 + rng.below(2) as usize } else { 7 };
            state.regs.gpr[which] = (1 << 32) - size * count.max(1);
        }
        for machine in [&mut pair.handlers, &mut pair.native] {
            set(machine, &state);
        }
        let expected = by_handlers(&mut pair.handlers, CODE, &insns);
        let got = pair.translator.run(&mut pair.native.ctx(), code, false).unwrap();
        assert_eq!(got.map(drop), expected);
        let (a, b) = (pair.handlers.cpu.save_state(0, 0), pair.native.cpu.save_state(0, 0));
        assert_eq!(a.regs, b.regs, "{}{:x?}", text(&bytes), state.regs);
        assert_eq!(pair.handlers.host.mmio, pair.native.host.mmio);
        runs += 1;
    }
    pair.runs += runs;
    pair.compare_memory();
}

/// Code that is not what was translated does not run: other segments, upper halves that a
/// 64-bit program has left, the last page.
#[test]
fn what_is_not_flat_is_not_run() {
    let Some(mut pair) = Pair::new(Kind::Compatibility) else { return };
    // mov eax, [ebx]
    let (_, code) = pair.translate(&[0x8b, 0x03]).unwrap();
    let good = pair.native.cpu.save_state(0, 0);
    let mut runs = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = good.clone();
        (state.regs.rip, state.regs.gpr[3]) = (CODE, DATA);
        change(&mut state);
        pair.native.cpu.load_state(&state);
        pair.native.cpu.leave = false;
        let result = pair.translator.run(&mut pair.native.ctx(), code, false);
        assert!(result.is_none_or(|result| matches!(result, Ok(Left::Exit(_)))));
        result.is_some()
    };
    assert!(runs(&|_| ()));
    assert!(runs(&|state| state.regs.gpr[8] = !0));
    assert!(!runs(&|state| state.regs.gpr[3] |= 1 << 32));
    assert!(!runs(&|state| state.regs.rip = 0xffff_f000));
    for which in [SegReg::Cs, SegReg::Ds, SegReg::Es, SegReg::Ss] {
        assert!(!runs(&|state| state.segment_mut(which).base = 0x1000), "{which:?}");
        assert!(!runs(&|state| state.segment_mut(which).limit -= 1), "{which:?}");
    }
    for which in [SegReg::Ds, SegReg::Es, SegReg::Ss] {
        assert!(!runs(&|state| state.segment_mut(which).attr &= !0x80), "{which:?}");
        assert!(!runs(&|state| state.segment_mut(which).attr &= !2), "{which:?}");
    }
    assert!(!runs(&|state| state.segment_mut(SegReg::Ss).attr &= !0x4000));
    assert!(!runs(&|state| state.segment_mut(SegReg::Cs).attr = 0xa09b), "64-bit code");
}

/// A segment register that is loaded in a block ends it, if addresses are others then.
#[test]
fn a_segment_that_is_loaded_counts_at_once() {
    let Some(mut pair) = Pair::new(Kind::Protected) else { return };
    // GDT entry 7: data with a base of 0x100.
    for machine in [&pair.handlers, &pair.native] {
        machine.put(common::GDT + 0x38, 0x00cf_9300_0100_ffff);
    }
    // mov eax, [ebx]; mov ds, ecx; mov edx, [ebx]
    let bytes = [0x8b, 0x03, 0x8e, 0xd9, 0x8b, 0x13];
    let (insns, code) = pair.translate(&bytes).unwrap();
    for selector in [0x38, u64::from(common::DATA0)] {
        let mut state = pair.native.cpu.save_state(0, 0);
        (state.regs.rip, state.regs.gpr[3], state.regs.gpr[1]) = (CODE, DATA, selector);
        *state.segment_mut(SegReg::Ds) =
            Segment { selector: common::DATA0, base: 0, limit: !0, attr: 0xc093 };
        for machine in [&mut pair.handlers, &mut pair.native] {
            machine.cpu.load_state(&state);
            machine.cpu.leave = false;
        }
        pair.translator.run(&mut pair.native.ctx(), code, false).unwrap().unwrap();
        // What is left is interpreted.
        let rip = pair.native.cpu.rip;
        let rest = insns.iter().filter(|insn| CODE + u64::from(insn.end) > rip);
        for insn in rest {
            pair.native.cpu.rip = CODE + u64::from(insn.end);
            (insn.handler)(&mut pair.native.ctx(), insn).unwrap();
        }
        for insn in insns.iter() {
            pair.handlers.cpu.rip = CODE + u64::from(insn.end);
            (insn.handler)(&mut pair.handlers.ctx(), insn).unwrap();
        }
        assert_eq!(pair.handlers.cpu.save_state(0, 0).regs, pair.native.cpu.save_state(0, 0).regs);
    }
}
