//! A vCPU's registers and stack as text, for a guest that ended badly.

use guest_mem::GuestMem;
use std::fmt::Write;
use vcpu_state::{SegReg, VcpuState};

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEGMENTS: [(&str, SegReg); 8] = [
    ("es", SegReg::Es),
    ("cs", SegReg::Cs),
    ("ss", SegReg::Ss),
    ("ds", SegReg::Ds),
    ("fs", SegReg::Fs),
    ("gs", SegReg::Gs),
    ("ldtr", SegReg::Ldtr),
    ("tr", SegReg::Tr),
];

/// Registers, then code at RIP and words from the stack, as far as they are mapped.
pub(crate) fn text(id: u32, state: &VcpuState, memory: &GuestMem) -> String {
    let mut out = String::new();
    registers(&mut out, id, state);
    let linear = |segment: SegReg, offset: u64| state.segment(segment).base.wrapping_add(offset);
    let code = bytes(state, memory, linear(SegReg::Cs, state.regs.rip), 32);
    line(&mut out, "code", &code, 1);
    let stack = bytes(state, memory, linear(SegReg::Ss, state.regs.gpr[4]), 256);
    line(&mut out, "stack", &stack, 8);
    out
}

/// Writing to a string does not fail.
fn registers(out: &mut String, id: u32, state: &VcpuState) {
    let regs = &state.regs;
    let _ = writeln!(out, "vcpu {id}: rip {:016x} rflags {:08x}", regs.rip, regs.rflags);
    for row in 0..4 {
        for column in 0..4 {
            let n = row * 4 + column;
            let _ = write!(out, "{:>4} {:016x}", NAMES[n], regs.gpr[n]);
        }
        out.push('\n');
    }
    for (name, which) in SEGMENTS {
        let s = state.segment(which);
        let _ = writeln!(
            out,
            "{name:>4} {:04x} base {:016x} limit {:08x} attr {:04x}",
            s.selector, s.base, s.limit, s.attr
        );
    }
    let (gdtr, idtr, c) = (&state.segments.gdtr, &state.segments.idtr, &state.control);
    let _ = writeln!(
        out,
        "gdtr {:016x}/{:04x} idtr {:016x}/{:04x}",
        gdtr.base, gdtr.limit, idtr.base, idtr.limit
    );
    let _ = writeln!(
        out,
        " cr0 {:08x} cr2 {:016x} cr3 {:016x} cr4 {:08x} efer {:x}",
        c.cr0, c.cr2, c.cr3, c.cr4, c.efer
    );
}

fn line(out: &mut String, what: &str, bytes: &[u8], word: usize) {
    let _ = write!(out, "{what:>5}");
    if bytes.is_empty() {
        out.push_str(" not mapped");
    }
    for (i, chunk) in bytes.chunks(word).enumerate() {
        if word > 1 && i % 4 == 0 && i > 0 {
            out.push_str("\n     ");
        }
        out.push(' ');
        for byte in chunk.iter().rev() {
            let _ = write!(out, "{byte:02x}");
        }
    }
    out.push('\n');
}

/// As many of `len` bytes as are mapped, in multiples of 8.
fn bytes(state: &VcpuState, memory: &GuestMem, address: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for at in (0..len).step_by(8) {
        let mut word = [0; 8];
        if crate::virt::read(state, memory, address.wrapping_add(at), &mut word).is_err() {
            break;
        }
        out.extend_from_slice(&word);
    }
    out
}
