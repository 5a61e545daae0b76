//! The first instruction after which the two vCPUs differ.

use super::{Error, Pair, record::Replayer, side::Side};
use engine::Vcpu;
use guest_mem::PAGE;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::fmt;
use vcpu_state::VcpuState;
use x86_defs::cr::efer;

/// Instructions shown that lead to the difference: more than a translated block has.
const SHOWN: u64 = 80;

#[derive(Debug)]
pub struct Found {
    /// Instructions retired when the two last agreed, and how many more it takes.
    pub agreed: u64,
    pub after: u64,
    /// The difference comes again when that piece is run again; otherwise it depends on what
    /// was run before, and `after` is the length of the piece.
    pub again: bool,
    /// What was seen first, at the end of the piece.
    pub seen: Vec<String>,
    /// What differs after the first instruction with which anything differs.
    pub first: Vec<String>,
    /// The instructions before that, with what each changed.
    pub path: Vec<String>,
    /// What the translator has made of the last block that begins there.
    pub block: Vec<String>,
    pub states: Box<[VcpuState; 2]>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after {} instructions and {} more:", self.agreed, self.after)?;
        if !self.again {
            writeln!(f, "(not when the piece is run again: it depends on what was run before)")?;
        }
        self.seen.iter().take(20).try_for_each(|line| writeln!(f, "  seen: {line}"))?;
        self.first.iter().try_for_each(|line| writeln!(f, "  first: {line}"))?;
        self.path.iter().chain(&self.block).try_for_each(|line| writeln!(f, "  {line}"))?;
        for (name, state) in ["interpreter", "translator"].iter().zip(self.states.iter()) {
            let (regs, control) = (&state.regs, &state.control);
            writeln!(f, "  {name}: rip {:#x} rflags {:#x}", regs.rip, regs.rflags)?;
            writeln!(f, "    {}", registers(state))?;
            writeln!(
                f,
                "    cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x}",
                control.cr0, control.cr2, control.cr3, control.cr4
            )?;
        }
        Ok(())
    }
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

fn registers(state: &VcpuState) -> String {
    let all = NAMES.iter().zip(state.regs.gpr);
    all.map(|(name, value)| format!("{name} {value:#x}")).collect::<Vec<_>>().join(" ")
}

/// Finds it in the piece that has just been run, of at most `most` instructions.
pub fn first(
    pair: &mut Pair,
    agreed: u64,
    most: u64,
    seen: Vec<String>,
) -> Result<Box<Found>, Error> {
    let at_end = Box::new([pair.a.vcpu.state()?, pair.b.vcpu.state()?]);
    let again = !run_again(pair, most)?.is_empty();
    let (mut same, mut differs) = (0, most);
    while again && differs - same > 1 {
        let middle = same + (differs - same) / 2;
        if run_again(pair, middle)?.is_empty() {
            same = middle;
        } else {
            differs = middle;
        }
    }
    let (mut first, mut states) = (Vec::new(), at_end);
    if again {
        first = run_again(pair, differs)?;
        states = Box::new([pair.a.vcpu.state()?, pair.b.vcpu.state()?]);
    }
    let mut addresses = Vec::new();
    let path = path(pair, differs, &mut addresses)?;
    let block = block(pair, &addresses);
    Ok(Box::new(Found { agreed, after: differs, again, seen, first, path, block, states }))
}

/// What differs after so many instructions from where both last agreed.
fn run_again(pair: &mut Pair, instructions: u64) -> Result<Vec<String>, Error> {
    let Pair { a, b, recorder, reference, agreed, .. } = pair;
    let mut what = Vec::new();
    for side in [&mut *a, &mut *b] {
        reference.restore(side)?;
        side.vcpu.set_state(agreed)?;
        let mut host = Replayer::new(&recorder.log, side.memory(), true);
        side.vcpu.run_for(instructions, &mut host)?;
        host.end();
        what.extend(host.wrong());
    }
    reference.collect([a, b])?;
    what.extend(pair.compare()?);
    Ok(what)
}

/// The host code of the last of these addresses that has any.
fn block(pair: &mut Pair, addresses: &[u64]) -> Vec<String> {
    let mut found =
        addresses.iter().rev().filter_map(|at| Some((*at, pair.b.vcpu.host_code(*at)?)));
    let Some((guest, parts)) = found.next() else { return Vec::new() };
    let mut out = vec![format!("host code of the block at {guest:#x}:")];
    for (host, bytes) in &parts {
        let insns = Decoder::with_ip(64, bytes, *host, DecoderOptions::NONE);
        out.extend(insns.into_iter().map(|insn| format!("  {:#x} {insn}", insn.ip())));
    }
    out
}

/// The last instructions of so many, by the interpreter: each with what it changed.
fn path(
    pair: &mut Pair,
    instructions: u64,
    addresses: &mut Vec<u64>,
) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    walk(pair, instructions, SHOWN, |before, insn, after| {
        addresses.push(before.regs.rip);
        let text = insn.map_or("(not mapped)".into(), |insn| insn.to_string());
        out.push(format!("{:#x} {text:40} {}", before.regs.rip, changes(before, after)));
    })?;
    Ok(out)
}

/// Runs the interpreter through the piece again, and shows the last steps: the state before,
/// the instruction, the state after.
pub fn walk(
    pair: &mut Pair,
    instructions: u64,
    last: u64,
    mut show: impl FnMut(&VcpuState, Option<Instruction>, &VcpuState),
) -> Result<(), Error> {
    let Pair { a, recorder, reference, agreed, .. } = pair;
    reference.restore(a)?;
    a.vcpu.set_state(agreed)?;
    let mut host = Replayer::new(&recorder.log, a.memory(), true);
    let before = instructions.saturating_sub(last);
    a.vcpu.run_for(before, &mut host)?;
    host.end();
    let mut state = a.vcpu.state()?;
    for _ in before..instructions {
        let insn = disassemble(a, &state);
        a.vcpu.run_for(1, &mut host)?;
        host.end();
        let next = a.vcpu.state()?;
        show(&state, insn, &next);
        state = next;
    }
    reference.collect([a, a])
}

fn changes(before: &VcpuState, after: &VcpuState) -> String {
    let mut out = Vec::new();
    for ((name, old), new) in NAMES.iter().zip(before.regs.gpr).zip(after.regs.gpr) {
        if old != new {
            out.push(format!("{name}={new:#x}"));
        }
    }
    if before.regs.rflags != after.regs.rflags {
        out.push(format!("rflags={:#x}", after.regs.rflags));
    }
    if before.fpu != after.fpu {
        out.push("fpu".into());
    }
    out.join(" ")
}

/// The instruction that is next.
fn disassemble(side: &Side, state: &VcpuState) -> Option<Instruction> {
    let cs = state.segment(vcpu_state::SegReg::Cs);
    let long = state.control.efer & efer::LMA != 0;
    let bits = match (long && cs.attr & x86_defs::segment::ATTR_L != 0, cs.attr) {
        (true, _) => 64,
        (false, attr) if attr & x86_defs::segment::ATTR_DB != 0 => 32,
        (false, _) => 16,
    };
    let base = if bits == 64 { 0 } else { cs.base };
    let mut bytes = Vec::new();
    let paging = soft_mmu::Paging::of(state, soft_mmu::Features::default());
    for n in 0..15 {
        let linear = base.wrapping_add(state.regs.rip).wrapping_add(n);
        let Some(gpa) = soft_mmu::inspect(side.memory(), &paging, linear) else { break };
        let mut byte = [0];
        if gpa % PAGE < PAGE && side.memory().read(gpa, &mut byte).is_ok() {
            bytes.push(byte[0]);
        }
    }
    let mut decoder = Decoder::with_ip(bits, &bytes, state.regs.rip, DecoderOptions::NONE);
    (!bytes.is_empty()).then(|| decoder.decode())
}

/// What is not the same of two vCPUs.
pub fn differences(a: &VcpuState, b: &VcpuState) -> Vec<String> {
    if a == b {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut number = |name: &str, a: u64, b: u64| {
        if a != b {
            out.push(format!("{name}: {a:#x} {b:#x}"));
        }
    };
    for ((name, a), b) in NAMES.iter().zip(a.regs.gpr).zip(b.regs.gpr) {
        number(name, a, b);
    }
    number("rip", a.regs.rip, b.regs.rip);
    number("rflags", a.regs.rflags, b.regs.rflags);
    for at in (0..a.fpu.area.len()).step_by(8) {
        number(&format!("xsave area {at:#x}"), a.fpu.u64(at), b.fpu.u64(at));
    }
    let mut text = |name: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
        let (a, b) = (format!("{a:x?}"), format!("{b:x?}"));
        if a != b {
            out.push(format!("{name}: {a} | {b}"));
        }
    };
    for (n, (a, b)) in a.segments.reg.iter().zip(&b.segments.reg).enumerate() {
        text(&format!("segment {n}"), a, b);
    }
    text("gdtr", &a.segments.gdtr, &b.segments.gdtr);
    text("idtr", &a.segments.idtr, &b.segments.idtr);
    text("control", &a.control, &b.control);
    text("debug", &a.debug, &b.debug);
    text("msrs", &a.msrs, &b.msrs);
    text("events", &a.events, &b.events);
    text("mp", &a.mp, &b.mp);
    text("tsc", &a.tsc, &b.tsc);
    out
}
