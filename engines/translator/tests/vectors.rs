//! Programs of several blocks that use vector registers, under the translator and under the
//! handlers one by one: the registers must survive whatever comes between two instructions.

#[path = "../../semantics/tests/common/mod.rs"]
mod common;

use common::Machine;
use emit::{Properties, StubCache, Unit};
use iced_x86::{Decoder, DecoderOptions, Encoder, FlowControl, Instruction, OpKind, Register};
use semantics::{CodeSize, Insn, Stop, features::IsaFeatures, select};
use std::{collections::HashMap, sync::Arc};
use translator::{Code, Left, Source, Translator};
use x86_defs::cr::{cr0, cr4};

const CODE: u64 = 0x7000;
const DATA: u64 = 0x20_0000;
const DATA_LEN: usize = 0x1_0000;

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

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Blocks by their offset in the code.
type Blocks = HashMap<u64, (Arc<[Insn]>, Vec<u8>)>;

fn blocks(bytes: &[u8], stubs: &StubCache) -> Blocks {
    let (mut blocks, mut first) = (Blocks::new(), 0);
    let mut decoder = Decoder::with_ip(64, bytes, CODE, DecoderOptions::NONE);
    let mut insns = Vec::new();
    while decoder.can_decode() {
        let start = decoder.position();
        let iced = decoder.decode();
        let own = &bytes[start..decoder.position()];
        let mut insn = select(&iced, own, CodeSize::Bits64, IsaFeatures::all(), stubs);
        insn.end = (decoder.position() - first) as u16;
        insns.push(insn);
        if iced.flow_control() != FlowControl::Next {
            let code = bytes[first..decoder.position()].to_vec();
            blocks.insert(first as u64, (std::mem::take(&mut insns).into(), code));
            first = decoder.position();
        }
    }
    assert!(insns.is_empty(), "programs end with a jump");
    blocks
}

fn by_handlers(machine: &mut Machine, insns: &[Insn]) -> Result<(), Stop> {
    let base = machine.cpu.rip;
    for insn in insns {
        machine.cpu.rip = base + u64::from(insn.end);
        let result = (insn.handler)(&mut machine.ctx(), insn);
        match result {
            Err(Stop::Branch) => break,
            Err(stop) => {
                machine.cpu.rip = base + u64::from(insn.end) - u64::from(insn.len);
                return Err(stop);
            }
            Ok(()) => {}
        }
        if machine.cpu.leave {
            machine.cpu.leave = false;
            // The run loop would find the rest.
            continue;
        }
    }
    Ok(())
}

struct Pair {
    handlers: Machine,
    native: Machine,
    translator: Translator,
    stubs: StubCache,
    /// How often blocks ran translated, and how often only by handlers.
    runs: [u64; 2],
}

impl Pair {
    fn new() -> Option<Self> {
        let translator = Translator::new(1 << 20, IsaFeatures::all()).unwrap()?;
        let (handlers, native) = (Machine::long(), Machine::long());
        let mut rng = Rng(5);
        let bytes: Vec<u8> = (0..DATA_LEN).map(|_| rng.next() as u8).collect();
        for machine in [&handlers, &native] {
            machine.mem.write(DATA, &bytes).unwrap();
        }
        let stubs = StubCache::new().unwrap();
        Some(Self { handlers, native, translator, stubs, runs: [0; 2] })
    }

    /// Runs from the same state until the program's end or a fault.
    fn run(&mut self, rng: &mut Rng, program: &[u8], mxcsr: u32) {
        let blocks = blocks(program, &self.stubs);
        let end = CODE + program.len() as u64;
        let mut state = self.handlers.cpu.save_state(0, 0);
        state.control.cr4 |= cr4::OSXSAVE | cr4::OSXMMEXCPT;
        state.control.cr0 &= !(cr0::TS | cr0::EM);
        state.control.xcr0 = 7;
        state.fpu = vcpu_state::FpuState::init();
        state.fpu.set_u32(x86_defs::xsave::MXCSR, mxcsr);
        for n in 0..16 {
            state.regs.gpr[n] = rng.next() >> rng.below(64);
            let mut half = || match rng.below(3) {
                0 => 0,
                1 => u128::from(rng.next() as f32 as u32) << 96 | u128::from(rng.next()),
                _ => u128::from((rng.next() as f64).to_bits()) << 64 | u128::from(rng.next()),
            };
            let (low, high) = (half(), half());
            state.fpu.set_xmm(n, low);
            state.fpu.set_ymm_hi(n, high);
        }
        state.regs.gpr[4] = DATA + 0x8000;
        state.regs.rflags = 2 | rng.next() & 0x8d5;
        state.regs.rip = CODE;
        let mut codes = HashMap::new();
        for round in 0..3 {
            for machine in [&mut self.handlers, &mut self.native] {
                machine.cpu.load_state(&state);
                machine.cpu.leave = false;
            }
            let mut expected = Ok(());
            while expected.is_ok() && self.handlers.cpu.rip != end {
                let insns = &blocks[&(self.handlers.cpu.rip - CODE)].0;
                expected = by_handlers(&mut self.handlers, insns);
            }
            let got = self.translated(&blocks, &mut codes, end);
            let text = || format!("round {round}, mxcsr {mxcsr:x}:\n{}", disassembly(program));
            assert_eq!(got, expected, "{}", text());
            let (a, b) = (self.handlers.cpu.save_state(0, 0), self.native.cpu.save_state(0, 0));
            assert_eq!(a.regs, b.regs, "{}", text());
            assert_eq!(a.fpu, b.fpu, "{}", text());
            assert!(a == b, "{}", text());
            if expected.is_err() {
                assert_eq!(self.handlers.cpu.raised, self.native.cpu.raised, "{}", text());
            }
            self.compare_memory(text);
        }
        let all: Vec<Code> = codes.into_values().flatten().collect();
        self.translator.remove(&all);
    }

    /// As the interpreter's run loop does it.
    fn translated(
        &mut self,
        blocks: &Blocks,
        codes: &mut HashMap<u64, Option<Code>>,
        end: u64,
    ) -> Result<(), Stop> {
        let mut before = None;
        while self.native.cpu.rip != end {
            let offset = self.native.cpu.rip - CODE;
            let Some((insns, bytes)) = blocks.get(&offset) else {
                // In the middle of a block: to its end by handlers.
                self.rest(blocks, offset)?;
                before = None;
                continue;
            };
            let plane = self.native.cpu.mmu.plane().unwrap();
            let code = *codes.entry(offset).or_insert_with(|| {
                let start = ((CODE + offset) % 4096) as u16;
                self.translator.translate(&Source {
                    insns,
                    bytes,
                    start,
                    linear: CODE + offset,
                    plane,
                })
            });
            match (before.take(), code) {
                (Some(Left::Exit(link)), Some(code)) => self.translator.link(link, code),
                (Some(Left::Jump), Some(code)) => {
                    self.translator.set_jump(&self.native.ctx(), code, false);
                }
                _ => {}
            }
            let result =
                code.and_then(|code| self.translator.run(&mut self.native.ctx(), code, false));
            self.runs[usize::from(result.is_none())] += 1;
            match result {
                Some(result) => before = Some(result?),
                None => by_handlers(&mut self.native, insns)?,
            }
            self.native.cpu.leave = false;
        }
        Ok(())
    }

    fn rest(&mut self, blocks: &Blocks, offset: u64) -> Result<(), Stop> {
        let inside = |(start, (insns, _)): &(&u64, &(Arc<[Insn]>, Vec<u8>))| {
            let end = insns.last().map_or(0, |i| u64::from(i.end));
            (**start..**start + end).contains(&offset)
        };
        let (start, (insns, _)) = blocks.iter().find(inside).unwrap();
        let skip = insns.iter().take_while(|i| start + u64::from(i.end) <= offset).count();
        self.native.cpu.rip = CODE + start;
        by_handlers(&mut self.native, &insns[skip..])
    }

    fn compare_memory(&self, text: impl Fn() -> String) {
        let (mut a, mut b) = (vec![0; DATA_LEN], vec![0; DATA_LEN]);
        self.handlers.mem.read(DATA, &mut a).unwrap();
        self.native.mem.read(DATA, &mut b).unwrap();
        assert!(a == b, "memory differs; {}", text());
    }
}

fn disassembly(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut decoder = Decoder::with_ip(64, bytes, CODE, DecoderOptions::NONE);
    let mut formatter = iced_x86::FastFormatter::new();
    while decoder.can_decode() {
        formatter.format(&decoder.decode(), &mut text);
        text.push('\n');
    }
    text
}

/// MOV RBX, an address in the data; one in eight is not aligned.
fn point(rng: &mut Rng) -> Vec<u8> {
    let aligned = DATA + 0x1000 + 64 * rng.below(0x1c0) + 16 * rng.below(4);
    let address = if rng.below(16) == 0 { aligned + rng.below(64) } else { aligned };
    [&[0x48, 0xc7, 0xc3][..], &(address as u32).to_le_bytes()].concat()
}

/// A random SSE or AVX instruction that the translator may copy.
fn vector(rng: &mut Rng) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        match rng.below(4) {
            0 => {
                bytes.extend([0xc4, (rng.next() as u8 & 0xe0) | (1 + rng.below(3)) as u8]);
                bytes.push(rng.next() as u8);
            }
            1 => bytes.extend([0xc5, rng.next() as u8]),
            2 => bytes.extend([rng.pick(&[0x66, 0xf2, 0xf3]), 0x0f]),
            _ => bytes.extend([0x66, 0x40 | rng.below(16) as u8, 0x0f]),
        }
        if rng.below(8) == 0 {
            bytes.extend([0x3a, 0x60 | rng.below(4) as u8]);
        }
        bytes.extend((0..10).map(|_| rng.next() as u8));
        let mut insn = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        let listed = Properties::of(&insn)
            .is_ok_and(|p| matches!(p.unit, Unit::Sse | Unit::Avx) && p.gpr_written & 0x10 == 0);
        if insn.is_invalid() || !listed && !masked(&insn) {
            continue;
        }
        let mut out = Vec::new();
        if (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory) {
            out = point(rng);
            insn.set_memory_base(Register::RBX);
            insn.set_memory_index(Register::None);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
        }
        let mut encoder = Encoder::new(64);
        if encoder.encode(&insn, CODE).is_ok() {
            out.extend(encoder.take_buffer());
            return out;
        }
    }
}

fn masked(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(insn.mnemonic(), Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq)
}

/// What looks at vector registers from outside, or changes what they may be used for.
fn special(rng: &mut Rng) -> Vec<u8> {
    let all = [0xb8, 7, 0, 0, 0, 0xba, 0, 0, 0, 0]; // mov eax, 7; mov edx, 0
    let area: &[u8] = &[0x48, 0xc7, 0xc3, 0x00, 0x02, 0x20, 0x00]; // mov rbx, DATA + 0x200
    let mxcsr = |rng: &mut Rng, opcode: &[u8]| {
        let value: u32 = rng.pick(&[0x1f80, 0x1fbf, 0x9fc0, 0x7f80, 0x1f80, 0x1d00, 0x1_1f80]);
        let store = [&[0xc7, 0x03][..], &value.to_le_bytes()].concat(); // mov dword [rbx], ...
        [&point(rng), &store, opcode].concat()
    };
    match rng.below(16) {
        0 => vec![0xc5, 0xf8, 0x77],                          // vzeroupper
        1 => vec![0xc5, 0xfc, 0x77],                          // vzeroall
        2 => mxcsr(rng, &[0x0f, 0xae, 0x13]),                 // ldmxcsr [rbx]
        3 => mxcsr(rng, &[0xc5, 0xf8, 0xae, 0x13]),           // vldmxcsr [rbx]
        4 => [&point(rng)[..], &[0x0f, 0xae, 0x1b]].concat(), // stmxcsr [rbx]
        5 => [area, &[0x0f, 0xae, 0x03]].concat(),            // fxsave [rbx]
        6 => [&all, area, &[0x0f, 0xae, 0x23]].concat(),      // xsave [rbx]
        7 => [area, &[0x0f, 0xae, 0x03, 0x0f, 0xae, 0x0b]].concat(), // fxsave, fxrstor [rbx]
        8 => vec![0xd9, 0xe8, 0xd9, 0xfa],                    // fld1; fsqrt
        9 => vec![0x0f, 0xa2],                                // cpuid
        10 if rng.below(4) == 0 => vec![0x0f, 0x20, 0xc0, 0x0c, 8, 0x0f, 0x22, 0xc0], // TS
        11 if rng.below(4) == 0 => {
            // mov ecx, 0; mov eax, 3; mov edx, 0; xsetbv
            vec![0xb9, 0, 0, 0, 0, 0xb8, 3, 0, 0, 0, 0xba, 0, 0, 0, 0, 0x0f, 0x01, 0xd1]
        }
        12 => vec![0x0f, 0x06],       // clts
        13 => vec![0x48, 0x01, 0xf8], // add rax, rdi
        14 => vec![0x0f, 0xae, 0xf0], // mfence
        // movups xmm, [an address that is not there]
        _ if rng.below(32) == 0 => vec![0x0f, 0x10, 0x04, 0x25, 0, 0, 0x50, 0],
        _ => vec![0x90],
    }
}

/// Blocks of what `insn` gives, one after another; some do without vectors.
fn program(rng: &mut Rng, mut insn: impl FnMut(&mut Rng) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.below(5) {
        let plain = rng.below(4) == 0;
        for _ in 0..rng.below(6) {
            bytes.extend(if plain { special(rng) } else { insn(rng) });
        }
        // jmp or jc to the next block
        bytes.extend(rng.pick(&[[0xeb, 0], [0x72, 0]]));
    }
    bytes.extend([0xeb, 0]);
    bytes
}

const MXCSR: [u32; 4] = [0x1f80, 0x9fc0, 0x7fa1, 0x1f80];

#[test]
fn registers_stay_across_blocks_and_instructions() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x51_3d);
    for _ in 0..1500 {
        let bytes = program(&mut rng, vector);
        let mxcsr = rng.pick(&MXCSR);
        pair.run(&mut rng, &bytes, mxcsr);
    }
    let [translated, handlers] = pair.runs;
    assert!(translated > 4 * handlers, "{:?}", pair.runs);
}

#[test]
fn registers_are_where_others_look_for_them() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x7e57);
    for _ in 0..2500 {
        let bytes = program(&mut rng, |rng| match rng.below(3) {
            0 => special(rng),
            _ => vector(rng),
        });
        let mxcsr = rng.pick(&[0x1f80, 0x9fc0, 0x1f80, 0x1f80, 0x1e80]);
        pair.run(&mut rng, &bytes, mxcsr);
    }
    assert!(pair.runs[0] > pair.runs[1], "{:?}", pair.runs);
}
