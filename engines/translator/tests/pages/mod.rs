//! Single blocks under the translator and under the handlers one by one, in pages that are
//! neighbours only by their linear addresses, and of which some cannot be accessed.
#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../common/mod.rs"]
mod common;

pub use common::Rng;
use common::{Machine, PT, all_by_handlers, fill, insns, source};
use emit::StubCache;
use semantics::{Insn, Stop};
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

/// From RIP on: it may have left the block.
fn by_handlers(machine: &mut Machine, insns: &[Insn]) -> Result<(), Stop> {
    let start = machine.cpu.rip.wrapping_sub(CODE);
    let first = insns.partition_point(|insn| u64::from(insn.end) <= start);
    all_by_handlers(machine, CODE, &insns[first..])
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
        let (translator, stubs) = common::translator()?;
        let page = Box::new(CodePage([0; PAGE as usize]));
        let (handlers, native) = (machine(), machine());
        fill([&handlers, &native], DATA, (PAGES * PAGE) as usize);
        Some(Self { handlers, native, translator, stubs, page, soft: false, undefined: 0 })
    }

    fn machines(&self) -> [&Machine; 2] {
        [&self.handlers, &self.native]
    }

    fn translate(&mut self, bytes: &[u8]) -> Option<(Arc<[Insn]>, Code)> {
        let insns = insns(64, bytes, CODE, &self.stubs);
        let plane = self.native.cpu.mmu.plane()?;
        self.page.0[..bytes.len()].copy_from_slice(bytes);
        let mut soft = 0;
        for (n, insn) in insns.iter().enumerate() {
            let own = usize::from(insn.end) - usize::from(insn.len)..usize::from(insn.end);
            soft |= u64::from(immediate(&bytes[own]).is_some()) << n;
        }
        let host = std::ptr::from_ref(&*self.page) as u64;
        let check = self.soft.then_some(Check { host, soft, bytes });
        let source = Source { check, ..source(&insns, bytes, CODE, plane, Width::Wide) };
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
            let text = common::text(64, bytes, CODE);
            format!("{text}\nfrom {gpr:x?} flags {flags:x}")
        };
        assert_eq!(got, expected, "{}", context());
        common::same_state(self.machines(), self.undefined, expected.is_err(), context);
        expected
    }

    pub fn compare_memory(&self) {
        common::same_memory(self.machines(), DATA, (PAGES * PAGE) as usize, String::new);
    }
}
