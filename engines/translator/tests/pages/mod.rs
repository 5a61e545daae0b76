//! Single blocks under the translator and under the handlers one by one, in pages that are
//! neighbours only by their linear addresses, and of which some cannot be accessed.
#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../../../semantics/tests/common/mod.rs"]
mod common;

use common::{Machine, PT};
use emit::StubCache;
use iced_x86::{Decoder, DecoderOptions};
use semantics::{CodeSize, Insn, Stop, features::IsaFeatures, select};
use std::sync::Arc;
use translator::{Check, Code, Source, Translator, Width, immediate};

pub const HIGH: u64 = common::HIGH;
const CODE: u64 = 0x7000;
pub const DATA: u64 = 0x20_0000;
pub const PAGE: u64 = 4096;
pub const PAGES: u64 = 16;
/// Pages that cannot be accessed, or not be written.
pub const ABSENT: u64 = 5;
pub const READ_ONLY: u64 = 9;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub fn pick(&mut self, from: &[u8]) -> u8 {
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
    // It may have left the block.
    let start = machine.cpu.rip.wrapping_sub(CODE);
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

pub struct Pair {
    pub handlers: Machine,
    pub native: Machine,
    translator: Translator,
    stubs: StubCache,
    /// Where translations find operands that are loaded from the code, if they are.
    page: Box<CodePage>,
    pub soft: bool,
    /// Flags that are not compared.
    pub undefined: u64,
}

#[repr(align(4096))]
struct CodePage([u8; PAGE as usize]);

/// The entry of a page's table entry.
pub fn pte(page: u64) -> u64 {
    PT + 8 * (DATA / PAGE + page)
}

/// Neighbours are not neighbours in memory.
pub fn frame(page: u64) -> u64 {
    (DATA / PAGE + page * 7 % PAGES) << 12
}

impl Pair {
    pub fn new() -> Option<Self> {
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
        Some(Self {
            handlers: machine(),
            native: machine(),
            translator,
            stubs,
            page,
            soft: false,
            undefined: 0,
        })
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
        let source = Source {
            insns: &insns,
            bytes,
            linear: CODE,
            start,
            plane,
            width: Width::Wide,
            registers: [0; 16],
            check,
        };
        Some((insns.clone(), self.translator.translate(&source)?))
    }

    /// Both from these registers. What the TLB knows stays. The result is the handlers'.
    pub fn run(&mut self, bytes: &[u8], gpr: [u64; 16], flags: u64) -> Result<(), Stop> {
        let Some((insns, code)) = self.translate(bytes) else { return Ok(()) };
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
            state.regs.rflags &= !self.undefined;
        }
        assert_eq!(a.regs, b.regs, "{}", context());
        assert!(a == b, "{}", context());
        if expected.is_err() {
            assert_eq!(self.handlers.cpu.raised, self.native.cpu.raised, "{}", context());
        }
        expected
    }

    pub fn compare_memory(&self) {
        let (mut a, mut b) = (vec![0; (PAGES * PAGE) as usize], vec![0; (PAGES * PAGE) as usize]);
        self.handlers.mem.read(DATA, &mut a).unwrap();
        self.native.mem.read(DATA, &mut b).unwrap();
        assert!(a == b);
    }
}
