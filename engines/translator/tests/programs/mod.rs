//! Programs of several blocks, under the translator with linked blocks as in the run loop, and
//! under the handlers one by one.
#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../common/mod.rs"]
mod common;

pub use common::Rng;
use common::{Machine, decoder, fill, known, source};
use emit::StubCache;
use iced_x86::FlowControl;
use semantics::{Insn, Stop};
use std::{collections::HashMap, sync::Arc};
use translator::{Code, Left, Translator, Width};
use vcpu_state::VcpuState;
use x86_defs::cr::{cr0, cr4};

pub const CODE: u64 = 0x7000;
pub const DATA: u64 = 0x20_0000;
/// Here memory ends.
pub const END: u64 = common::RAM;
const DATA_LEN: usize = 0x1_0000;

/// Blocks by their offset in the code.
pub type Blocks = HashMap<u64, (Arc<[Insn]>, Vec<u8>)>;

fn blocks(bytes: &[u8], stubs: &StubCache) -> Blocks {
    let (mut blocks, mut first) = (Blocks::new(), 0);
    let mut decoder = decoder(64, bytes, CODE);
    let mut insns = Vec::new();
    while decoder.can_decode() {
        let start = decoder.position();
        let iced = decoder.decode();
        let own = &bytes[start..decoder.position()];
        insns.push(known(&iced, own, decoder.position() - first, stubs));
        if iced.flow_control() != FlowControl::Next {
            let code = bytes[first..decoder.position()].to_vec();
            blocks.insert(first as u64, (std::mem::take(&mut insns).into(), code));
            first = decoder.position();
        }
    }
    assert!(insns.is_empty(), "programs end with a jump");
    blocks
}

/// From RIP on, which is where the block begins.
fn by_handlers(machine: &mut Machine, insns: &[Insn]) -> Result<(), Stop> {
    let base = machine.cpu.rip;
    common::all_by_handlers(machine, base, insns)
}

pub struct Pair {
    pub handlers: Machine,
    pub native: Machine,
    pub translator: Translator,
    stubs: StubCache,
    /// How often blocks ran translated, and how often only by handlers.
    pub runs: [u64; 2],
    /// What the processor does to the x87 pointers.
    pub fdp_exceptions_only: bool,
}

impl Pair {
    pub fn new() -> Option<Self> {
        let (translator, stubs) = common::translator()?;
        let (handlers, native) = (Machine::long(), Machine::long());
        fill([&handlers, &native], DATA, DATA_LEN);
        Some(Self { handlers, native, translator, stubs, runs: [0; 2], fdp_exceptions_only: true })
    }

    /// Runs from the same state until the program's end or a fault.
    pub fn run(&mut self, rng: &mut Rng, program: &[u8], mxcsr: u32) {
        self.run_from(rng, program, mxcsr, |_, _| ());
    }

    /// The same, with `setup` to change the random state.
    pub fn run_from(
        &mut self,
        rng: &mut Rng,
        program: &[u8],
        mxcsr: u32,
        setup: impl FnOnce(&mut Rng, &mut VcpuState),
    ) {
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
        setup(rng, &mut state);
        state.regs.rflags = 2 | rng.next() & 0x8d5;
        state.regs.rip = CODE;
        let mut codes = HashMap::new();
        for round in 0..3 {
            for machine in [&mut self.handlers, &mut self.native] {
                machine.cpu.load_state(&state);
                machine.cpu.leave = false;
                machine.cpu.fdp_exceptions_only = self.fdp_exceptions_only;
            }
            let mut expected = Ok(());
            while expected.is_ok() && self.handlers.cpu.rip != end {
                let insns = &blocks[&(self.handlers.cpu.rip - CODE)].0;
                expected = by_handlers(&mut self.handlers, insns);
            }
            let got = self.translated(&blocks, &mut codes, end);
            let text =
                || format!("round {round}, mxcsr {mxcsr:x}:\n{}", common::text(64, program, CODE));
            assert_eq!(got, expected, "{}", text());
            common::same_state(self.machines(), 0, expected.is_err(), text);
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
                let linear = CODE + offset;
                self.translator.translate(&source(insns, bytes, linear, plane, Width::Wide))
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
        for (at, len) in [(DATA, DATA_LEN), (END - 0x2000, 0x2000)] {
            common::same_memory(self.machines(), at, len, &text);
        }
    }

    fn machines(&self) -> [&Machine; 2] {
        [&self.handlers, &self.native]
    }

    /// Translates a single block.
    pub fn block(&mut self, bytes: &[u8]) -> Option<Code> {
        let blocks = blocks(bytes, &self.stubs);
        let (insns, bytes) = blocks.get(&0)?;
        let plane = self.native.cpu.mmu.plane()?;
        self.translator.translate(&source(insns, bytes, CODE, plane, Width::Wide))
    }
}
