//! What tests of single blocks share: code as the interpreter has it, the handlers one by one,
//! and two machines that must be the same afterwards.
#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../../../semantics/tests/common/mod.rs"]
mod machine;

use emit::StubCache;
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction};
pub use machine::*;
use semantics::{CodeSize, Insn, Stop, features::IsaFeatures, select};
use std::sync::Arc;
use translator::{Source, Translator, Width};
use vcpu_state::VcpuState;

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

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Instructions of so many bits, at this RIP.
pub fn decoder(bits: u32, bytes: &[u8], ip: u64) -> Decoder<'_> {
    Decoder::with_ip(bits, bytes, ip, DecoderOptions::NONE)
}

/// What the interpreter makes of an instruction that ends at this offset in its block.
pub fn known(iced: &Instruction, bytes: &[u8], end: usize, stubs: &StubCache) -> Insn {
    let size = match iced.code_size() {
        iced_x86::CodeSize::Code16 => CodeSize::Bits16,
        iced_x86::CodeSize::Code32 => CodeSize::Bits32,
        _ => CodeSize::Bits64,
    };
    let mut insn = select(iced, bytes, size, IsaFeatures::all(), stubs);
    insn.end = end as u16;
    insn
}

/// All of a block.
pub fn insns(bits: u32, bytes: &[u8], ip: u64, stubs: &StubCache) -> Arc<[Insn]> {
    let mut decoder = decoder(bits, bytes, ip);
    let mut out = Vec::new();
    while decoder.can_decode() {
        let start = decoder.position();
        let iced = decoder.decode();
        let end = decoder.position();
        out.push(known(&iced, &bytes[start..end], end, stubs));
    }
    out.into()
}

/// One instruction a line.
pub fn text(bits: u32, bytes: &[u8], ip: u64) -> String {
    let (mut out, mut formatter) = (String::new(), FastFormatter::new());
    for insn in decoder(bits, bytes, ip).iter() {
        formatter.format(&insn, &mut out);
        out.push('\n');
    }
    out
}

/// A block that is in the page of this RIP.
pub fn source<'s>(
    insns: &'s Arc<[Insn]>,
    bytes: &'s [u8],
    linear: u64,
    plane: usize,
    width: Width,
) -> Source<'s> {
    let start = (linear % x86_defs::PAGE_SIZE) as u16;
    Source {
        insns,
        bytes,
        linear,
        start,
        version: plane,
        supervisor: plane < 2,
        width,
        registers: [0; 16],
        check: None,
    }
}

/// One handler. False if control goes elsewhere.
fn by_handler(machine: &mut Machine, base: u64, insn: &Insn) -> Result<bool, Stop> {
    machine.cpu.rip = base + u64::from(insn.end);
    match (insn.handler)(&mut machine.ctx(), insn) {
        Ok(()) => Ok(true),
        Err(Stop::Branch) => Ok(false),
        Err(stop) => {
            machine.cpu.rip = base + u64::from(insn.end) - u64::from(insn.len);
            Err(stop)
        }
    }
}

/// A block at `base`, until something wants to be looked at.
pub fn by_handlers(machine: &mut Machine, base: u64, insns: &[Insn]) -> Result<(), Stop> {
    for insn in insns {
        if !by_handler(machine, base, insn)? || machine.cpu.leave {
            break;
        }
    }
    Ok(())
}

/// A block at `base`, whatever wants to be looked at: the run loop would find the rest.
pub fn all_by_handlers(machine: &mut Machine, base: u64, insns: &[Insn]) -> Result<(), Stop> {
    for insn in insns {
        if !by_handler(machine, base, insn)? {
            break;
        }
        machine.cpu.leave = false;
    }
    Ok(())
}

/// What one block, or several, are run by, and the stubs of their handlers.
pub fn translator() -> Option<(Translator, StubCache)> {
    let stubs = StubCache::new().unwrap();
    Some((Translator::new(1 << 20, IsaFeatures::all(), stubs.clone()).unwrap()?, stubs))
}

/// The same bytes for both.
pub fn fill(machines: [&Machine; 2], at: u64, len: usize) {
    let mut rng = Rng(5);
    let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
    for machine in machines {
        machine.mem.write(at, &bytes).unwrap();
    }
}

/// Halves of vector registers that are zero, nearly so, or anything.
pub fn random_vectors(rng: &mut Rng, state: &mut VcpuState) {
    for n in 0..16 {
        let mut wide = || match rng.below(3) {
            0 => 0,
            1 => u128::from(rng.next() as u8) << (8 * rng.below(16)),
            _ => u128::from(rng.next()) << 64 | u128::from(rng.next()),
        };
        let (low, high) = (wide(), wide());
        state.fpu.set_xmm(n, low);
        state.fpu.set_ymm_hi(n, high);
    }
}

/// The host's processor is AMD's: what the manuals leave undefined is otherwise there than the handlers
/// have it, which do as Intel's.
pub fn is_amd() -> bool {
    cpu_model::is_amd(&cpu_model::host_table())
}

/// The result of this instruction may be the host's choice: SHLD and SHRD of 16 bits by more than 16 (SDM
/// volume 2, SHLD).
pub fn may_be_hosts_choice(bits: u32, bytes: &[u8]) -> bool {
    let insn = decoder(bits, bytes, 0).decode();
    let double = matches!(insn.mnemonic(), iced_x86::Mnemonic::Shld | iced_x86::Mnemonic::Shrd);
    double && insn.op1_register().is_gpr16()
}

/// All state is the same, but for these flags, and so is what was raised if something was.
pub fn same_state(
    [handlers, native]: [&Machine; 2],
    undefined: u64,
    raised: bool,
    context: impl Fn() -> String,
) {
    let [a, b] = [handlers, native].map(|machine| {
        let mut state = machine.cpu.save_state(0, 0);
        state.regs.rflags &= !undefined;
        state
    });
    assert_eq!(a.regs, b.regs, "{}", context());
    assert_eq!(a.segments, b.segments, "{}", context());
    assert_eq!(a.fpu, b.fpu, "{}", context());
    assert!(a == b, "{}", context());
    assert_eq!(handlers.host.mmio, native.host.mmio, "{}", context());
    if raised {
        assert_eq!(handlers.cpu.raised, native.cpu.raised, "{}", context());
    }
}

pub fn same_memory(
    [handlers, native]: [&Machine; 2],
    at: u64,
    len: usize,
    context: impl Fn() -> String,
) {
    let (mut a, mut b) = (vec![0; len], vec![0; len]);
    handlers.mem.read(at, &mut a).unwrap();
    native.mem.read(at, &mut b).unwrap();
    let differ = a.iter().zip(&b).position(|(a, b)| a != b);
    assert_eq!(differ, None, "memory differs: {}", context());
}
