//! Whether two outcomes of a case agree on what is defined of it.

use crate::{
    case::{Background, Case, DIED, ENGINE, Mode, Outcome, TIMED_OUT, WRITTEN},
    defined::{Defined, Fault, defined, instruction_at, pushes_part},
    layout, vendor,
};
use iced_x86::Mnemonic;
use std::collections::BTreeMap;
use x86_defs::{exception, gpr, xsave};

const MXCSR_OE: u32 = 1 << 3;
const MXCSR_UE: u32 = 1 << 4;
const MXCSR_PE: u32 = 1 << 5;
const MXCSR_FLAGS: u32 = 0x3f;

/// How two outcomes of a case compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// One line per difference: name, natively, in the guest.
    Differs(Vec<String>),
    /// One of them never ended, or nothing is defined.
    Unjudged,
}

pub fn compare(
    mode: Mode,
    case: &Case,
    background: &Background,
    native: &Outcome,
    guest: &Outcome,
) -> Verdict {
    let lost = |out: &Outcome| out.written_count as usize > WRITTEN;
    let endless = guest.vector == TIMED_OUT;
    if matches!(native.vector, DIED | TIMED_OUT) || endless || lost(native) || lost(guest) {
        return Verdict::Unjudged;
    }
    let defined = defined(mode, case, native);
    // Gathers check alignment on some processors and not on others, a masked store of nothing
    // may fault or not, and so may the half of a pushed selector that is not written. Limits are
    // checked of masked elements too, on some.
    let optional = if native.vector == 3 { guest } else { native };
    let optional =
        if optional.vector == 3 { None } else { instruction_at(mode, case, optional.rip) };
    let limit =
        |out: &Outcome| [exception::GP, exception::SS].iter().any(|v| u32::from(*v) == out.vector);
    let optional = optional.is_some_and(|insn| {
        let masked = matches!(
            insn.mnemonic(),
            Mnemonic::Vmaskmovps
                | Mnemonic::Vmaskmovpd
                | Mnemonic::Vpmaskmovd
                | Mnemonic::Vpmaskmovq
        );
        masked && limit(native)
            || insn.is_vsib()
            || pushes_part(insn.code())
            || matches!(
                insn.mnemonic(),
                Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
            )
    });
    if !defined.values || optional && native.vector != guest.vector {
        return Verdict::Unjudged;
    }
    let mut found = Vec::new();
    let mut differ = |name: &str, native: u64, guest: u64| {
        if native != guest {
            found.push(format!("{name}: {native:#x} natively, {guest:#x} in the guest"));
        }
    };
    let fault = defined.fault;
    let page_faults = [native, guest].map(|out| out.vector == u32::from(exception::PF));
    let same = fault.order && !either_first(native.vector, guest.vector) && !wraps(mode, native);
    if same || native.vector == 3 || guest.vector == 3 || guest.vector == ENGINE {
        differ("vector", native.vector.into(), guest.vector.into());
    }
    if guest.vector != ENGINE {
        if native.vector == guest.vector && same {
            // Of the kernel's half, Linux does not tell what is present.
            let ignored = if native.cr2 >= 0x7fff_ffff_f000 { exception::pf::P } else { 0 };
            differ("error code", (native.error & !ignored).into(), (guest.error & !ignored).into());
        }
        if page_faults == [true, true] && fault.order {
            differ("CR2", native.cr2 & fault.address, guest.cr2 & fault.address);
        }
        differ("RIP", native.rip, guest.rip);
        differ("RFLAGS", native.rflags & defined.flags, guest.rflags & defined.flags);
        let registers = if fault.registers { mode.registers() } else { 0 };
        for (n, name) in NAMES.iter().enumerate().take(registers) {
            let string = matches!(n, gpr::RCX | gpr::RSI | gpr::RDI);
            let mask = match n {
                _ if string => defined.string_registers,
                // The upper half is not defined outside of 64-bit mode (SDM volume 1, 3.4.1.1), and with
                // a stack segment of its own AMD's processors show what the kernel had there.
                gpr::RSP if mode.segmented() => 0xffff_ffff,
                _ => u64::MAX,
            };
            differ(name, native.gpr[n] & mask, guest.gpr[n] & mask);
        }
        if mode == Mode::Long {
            differ("FS base", native.fs_base, guest.fs_base);
            differ("GS base", native.gs_base, guest.gs_base);
        }
        compare_vectors(mode, fault, native, guest, &mut found);
        if fault.x87 {
            compare_x87(native, guest, &mut found);
        }
        if fault.memory {
            compare_memory(&defined, background, native, guest, &mut found);
        }
    }
    match found.is_empty() {
        true => Verdict::Same,
        false if vendor::is_amd() && vendor::differs(mode, case, native) => Verdict::Unjudged,
        false => Verdict::Differs(found),
    }
}

/// Exceptions of one instruction whose order is the processor's choice (SDM volume 3, table
/// 6-2: priority within a class may vary).
fn either_first(a: u32, b: u32) -> bool {
    use exception::{AC, BR, GP, MF, PF, SS};
    let is = |list: &[u8], vector: u32| list.iter().any(|v| u32::from(*v) == vector);
    let class = [BR, SS, GP, PF, MF, AC];
    is(&class, a) && is(&class, b) && (is(&[BR, MF, AC], a) || is(&[BR, MF, AC], b))
}

/// In compatibility mode an operand reaches around the end of the address space: a limit of 4
/// GiB may then be exceeded or not (SDM volume 3, 5.3).
fn wraps(mode: Mode, native: &Outcome) -> bool {
    matches!(mode, Mode::Compat | Mode::Seg32)
        && native.vector == u32::from(exception::PF)
        && !(0x1000..0xffff_f000).contains(&native.cr2)
}

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15",
];

/// The x87 instruction and data pointers differ between processors, and are not compared.
fn compare_x87(native: &Outcome, guest: &Outcome, found: &mut Vec<String>) {
    let (n, g) = (native.fpu(), guest.fpu());
    let mut differ = differ_in(found);
    for (name, at) in [("FCW", xsave::FCW), ("FSW", xsave::FSW)] {
        differ(name.to_owned(), n.u16(at).into(), g.u16(at).into());
    }
    differ("FTW".to_owned(), n.area[xsave::FTW].into(), g.area[xsave::FTW].into());
    for st in 0..8 {
        let at = xsave::ST + 16 * st;
        let value =
            |f: &vcpu_state::FpuState| u128::from(f.u16(at + 8)) << 64 | u128::from(f.u64(at));
        differ(format!("ST{st}"), value(&n), value(&g));
    }
}

fn compare_vectors(
    mode: Mode,
    fault: Fault,
    native: &Outcome,
    guest: &Outcome,
    found: &mut Vec<String>,
) {
    let (n, g) = (native.fpu(), guest.fpu());
    let mut differ = differ_in(found);
    // Beside an unmasked overflow or underflow PE is set or not.
    let unmasked = n.mxcsr() & !(n.mxcsr() >> 7) & (MXCSR_OE | MXCSR_UE) != 0;
    let free = match native.vector == u32::from(exception::XM) {
        true if !fault.mxcsr => MXCSR_FLAGS,
        true if unmasked => MXCSR_PE,
        _ => 0,
    };
    differ("MXCSR".to_owned(), (n.mxcsr() & !free).into(), (g.mxcsr() & !free).into());
    for xmm in 0..mode.registers() {
        differ(format!("XMM{xmm}"), n.xmm(xmm), g.xmm(xmm));
        differ(format!("YMM{xmm} high"), n.ymm_hi(xmm), g.ymm_hi(xmm));
    }
}

fn differ_in(found: &mut Vec<String>) -> impl FnMut(String, u128, u128) {
    |name, native, guest| {
        if native != guest {
            found.push(format!("{name}: {native:#x} natively, {guest:#x} in the guest"));
        }
    }
}

fn compare_memory(
    defined: &Defined,
    background: &Background,
    native: &Outcome,
    guest: &Outcome,
    found: &mut Vec<String>,
) {
    let mut words: BTreeMap<u64, [Option<u64>; 2]> = BTreeMap::new();
    for (side, out) in [native, guest].into_iter().enumerate() {
        for written in out.written() {
            words.entry(written.word).or_default()[side] = Some(written.value);
        }
    }
    for (word, values) in words {
        let before = background.get(word as usize).copied().unwrap_or(0);
        let [n, g] = values.map(|v| v.unwrap_or(before));
        let Some(linear) = layout::linear_of(word as usize * 8) else { continue };
        let hole = |byte: u64| defined.holes.iter().any(|h| h.contains(&(linear + byte)));
        let mask = (0..8).filter(|&b| !hole(b)).fold(0, |m, b| m | 0xff << (8 * b));
        if (n ^ g) & mask != 0 {
            found.push(format!("memory at {linear:#x}: {n:#x} natively, {g:#x} in the guest"));
        }
    }
}
