//! Nonsense in registers, tables and memory: whatever happens, it is the guest's own fault.

mod common;

use common::*;
use semantics::{CodeSize, Stop, event};
use vcpu_state::{SegReg, Segment};
use x86_defs::cr::{cr0, cr4, efer};

/// Xorshift: the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    /// Values near the places where arithmetic goes wrong, addresses of the tables, and noise.
    fn value(&mut self) -> u64 {
        let near = self.below(5).wrapping_sub(2);
        match self.below(8) {
            0 => near,
            1 => (1u64 << self.below(64)).wrapping_add(near),
            2 => u64::from(u32::MAX).wrapping_add(near),
            3 => (0x7fff_ffff_ffffu64).wrapping_add(near),
            4 => 0x1000 * self.below(0x20) + self.below(0x100),
            5 => 8 * self.below(16) + self.below(8),
            6 => HIGH + self.below(RAM),
            _ => self.next(),
        }
    }

    fn segment(&mut self) -> Segment {
        let selector = self.value() as u16;
        let (base, limit) = (self.value(), self.value() as u32);
        Segment { selector, base, limit, attr: self.next() as u16 & 0xf0ff }
    }
}

/// First bytes of system instructions, with how many random ones follow: ModRM, SIB and the
/// like, as far as the decoder wants them.
const OPCODES: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x31],
    &[0x0f, 0x32],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xa2],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x0f, 0x38, 0x82],
    &[0x07],
    &[0x17],
    &[0x1f],
    &[0x8c],
    &[0x8e],
    &[0x9a],
    &[0x9c],
    &[0x9d],
    &[0xc4],
    &[0xc5],
    &[0xca],
    &[0xcb],
    &[0xcc],
    &[0xcd],
    &[0xce],
    &[0xcf],
    &[0xea],
    &[0xec],
    &[0xef],
    &[0xf1],
    &[0xf4],
    &[0xfa],
    &[0xfb],
    &[0xff],
    &[0x63],
    &[0x50],
    &[0x58],
    &[0x8b],
    &[0x89],
];

fn scramble(m: &mut Machine, r: &mut Random) {
    let mut state = m.cpu.save_state(0, 0);
    for gpr in &mut state.regs.gpr {
        *gpr = r.value();
    }
    state.regs.rflags = r.next() & 0x3f_ffff;
    state.regs.rip = r.value();
    let mut cr0 = cr0::ET | r.next() & cr0::DEFINED;
    let mut cr4 = r.next() & 0x37_ffff;
    let mut efer = r.next() & 0xd01;
    // One in eight is a state that no processor can be in, as a damaged save might have it.
    let possible = r.below(8) != 0;
    if possible && cr0 & cr0::PE == 0 {
        cr0 &= !cr0::PG;
        state.regs.rflags &= !x86_defs::rflags::VM;
    }
    if possible {
        efer &= !efer::LMA;
    }
    if possible && cr0 & cr0::PG != 0 && efer & efer::LME != 0 {
        efer |= efer::LMA;
        cr4 |= cr4::PAE;
        state.regs.rflags &= !x86_defs::rflags::VM;
    }
    (state.control.cr0, state.control.cr4, state.control.efer) = (cr0, cr4, efer);
    state.control.cr3 = if r.below(4) == 0 { r.value() } else { PML4 };
    state.control.pdpte = [0x12000 | 1, r.value(), 0, r.next()];
    for which in 0..8 {
        if r.below(2) == 0 {
            state.segments.reg[which] = r.segment();
        }
    }
    if r.below(2) == 0 {
        state.segment_mut(SegReg::Tr).base = TSS;
        state.segment_mut(SegReg::Ss).base = 0;
    }
    if r.below(8) == 0 {
        (state.segments.gdtr.base, state.segments.idtr.base) = (r.value(), r.value());
        (state.segments.gdtr.limit, state.segments.idtr.limit) = (r.value() as u16, !0);
    } else {
        (state.segments.gdtr.base, state.segments.idtr.base) = (GDT, IDT);
        (state.segments.gdtr.limit, state.segments.idtr.limit) = (0x7f, 0xfff);
    }
    for dr in &mut state.debug.dr {
        *dr = r.value();
    }
    state.debug.dr7 = r.next() & 0xffff_23ff & if r.below(4) == 0 { !0 } else { !0xff };
    // Tables: descriptors, gates, the TSS, page tables, some at random and some plausible.
    for (table, entries) in [(GDT, 16), (IDT, 512), (TSS, 16), (0x8000, 16), (PT, 16)] {
        for _ in 0..4 {
            let kinds = [0x82, 0x89, 0x8b, 0x9b, 0x93, 0x97, 0x9f, 0xec, 0xe5, 0xee, 0xef, 0x8e];
            let kind = kinds[r.below(12) as usize];
            let entry = match r.below(3) {
                0 => r.next(),
                1 => r.value(),
                _ => r.next() & 0x00ff_00ff_ffff_ffff | kind << 40,
            };
            m.put(table + 8 * r.below(entries), entry);
        }
    }
    m.put(PML4, 0x11000 | 7);
    m.cpu.load_state(&state);
}

/// Executes one instruction, and delivers what comes of it.
fn round(m: &mut Machine, r: &mut Random) -> Option<Stop> {
    let mut bytes = [0; 15];
    bytes.fill_with(|| r.next() as u8);
    let mut at = 0;
    for (prefix, odds) in [(0x66, 3), (0x67, 6), (0xf0, 16), (0xf3, 8), (0x64, 8)] {
        if r.below(odds) == 0 {
            bytes[at] = prefix;
            at += 1;
        }
    }
    if m.cpu.mode.code == CodeSize::Bits64 && r.below(2) == 0 {
        bytes[at] = 0x48;
        at += 1;
    }
    let opcode = OPCODES[r.below(OPCODES.len() as u64) as usize];
    bytes[at..at + opcode.len()].copy_from_slice(opcode);
    let result = m.execute(&bytes).and_then(|()| match r.below(8) {
        0 => event::interrupt(&mut m.ctx(), r.next() as u8),
        1 => event::nmi(&mut m.ctx()),
        _ => Ok(()),
    });
    match result {
        Err(Stop::Fault) => event::raise(&mut m.ctx()).err(),
        other => other.err(),
    }
}

#[test]
fn nothing_that_a_guest_writes_stops_the_host() {
    let mut r = Random(0x9e37_79b9_7f4a_7c15);
    let mut m = Machine::protected();
    let rounds = if std::env::var_os("SARANG_LONG").is_some() { 3_000_000 } else { 40_000 };
    let mut outcomes = [0u32; 4];
    for n in 0..rounds {
        if n % 8 == 0 {
            scramble(&mut m, &mut r);
        }
        let outcome = match round(&mut m, &mut r) {
            None => 0,
            Some(Stop::Halt) => 1,
            Some(Stop::Shutdown) => 2,
            Some(stop) => panic!("{stop:?} {}", m.cpu.unhandled),
        };
        outcomes[outcome] += 1;
    }
    assert!(outcomes.iter().take(3).all(|n| *n > 0), "{outcomes:?}");
}
