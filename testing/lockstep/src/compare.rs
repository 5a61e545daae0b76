//! What the manuals define of an outcome, and whether two outcomes agree on it.

use crate::{
    case::{Background, Case, DIED, ENGINE, Mode, Outcome, TIMED_OUT, WRITTEN},
    generate::{encode::decode, state},
    layout,
};
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, RflagsBits,
};
use std::{collections::BTreeMap, ops::Range};
use x86_defs::{exception, gpr, rflags, xsave};

const MXCSR_OE: u32 = 1 << 3;
const MXCSR_UE: u32 = 1 << 4;
const MXCSR_PE: u32 = 1 << 5;
const MXCSR_FLAGS: u32 = 0x3f;

/// RFLAGS bits that are compared.
const FLAGS: u64 = rflags::STATUS
    | rflags::DF
    | rflags::TF
    | rflags::IF
    | rflags::IOPL
    | rflags::NT
    | rflags::RF
    | rflags::AC
    | rflags::ID;

fn to_rflags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::OF, rflags::OF),
    ]
    .iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .fold(0, |all, (_, ours)| all | ours)
}

/// What instructions have left undefined so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Undefined {
    /// Status flags.
    pub flags: u64,
    /// A register or memory.
    pub values: bool,
    /// A branch may have skipped what would have defined a flag.
    branched: bool,
}

impl Undefined {
    pub fn read_by(&self, insn: &Instruction) -> bool {
        to_rflags(insn.rflags_read()) & self.flags != 0
    }

    /// After `insn`. `cl`: what CL holds before it, if that is known.
    pub fn step(&mut self, insn: &Instruction, cl: Option<u8>) {
        use Mnemonic::*;
        match insn.mnemonic() {
            Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd => self.shift(insn, cl),
            _ => {
                let defined = insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set();
                // With a count of zero a repeated comparison leaves the flags.
                if !self.branched && !insn.is_string_instruction() {
                    self.flags &= !to_rflags(defined);
                }
                self.flags |= to_rflags(insn.rflags_undefined());
            }
        }
        if insn.mnemonic() == Bswap && insn.op0_register().is_gpr16() {
            self.values = true;
        }
        self.branched |= insn.flow_control() != FlowControl::Next;
    }

    /// SDM volume 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD.
    fn shift(&mut self, insn: &Instruction, cl: Option<u8>) {
        use Mnemonic::*;
        let size = match insn.op0_kind() {
            OpKind::Register => insn.op0_register().size(),
            _ => insn.memory_size().size(),
        } as u32
            * 8;
        let last = insn.op_count().wrapping_sub(1);
        let count = match insn.op_kind(last) {
            OpKind::Register => cl,
            _ => Some(insn.immediate(last) as u8),
        };
        let count = count.map(|c| u32::from(c) & if size == 64 { 63 } else { 31 });
        let rotate = matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr);
        let double = matches!(insn.mnemonic(), Shld | Shrd);
        let cut = matches!(insn.mnemonic(), Shl | Sal | Shr);
        if count == Some(0) {
            return;
        }
        if !rotate && count.is_some() && !self.branched {
            self.flags = 0;
        }
        if count != Some(1) {
            self.flags |= rflags::OF;
        }
        if !rotate {
            self.flags |= rflags::AF;
        }
        if cut && size < 64 && count.is_none_or(|c| c >= size) {
            self.flags |= rflags::CF;
        }
        if double && size == 16 && count.is_none_or(|c| c > size) {
            self.flags |= rflags::STATUS;
            self.values = true;
        }
    }
}

/// What of a case's outcome is defined.
struct Defined {
    flags: u64,
    values: bool,
    /// Linear addresses whose contents are not.
    holes: Vec<Range<u64>>,
    /// Bits of RCX, RSI and RDI that are.
    string_registers: u64,
    fault: Fault,
}

/// What is defined of an instruction that faulted, beside the vector.
#[derive(Clone, Copy)]
struct Fault {
    /// Bits of CR2.
    address: u64,
    /// Vector and error code too.
    order: bool,
    /// It stored nothing.
    memory: bool,
    /// The x87 registers are as they were.
    x87: bool,
    /// The general registers are as they were.
    registers: bool,
    /// MXCSR's exception flags, all of them.
    mxcsr: bool,
}

impl Fault {
    const STRICT: Self =
        Self { address: !0, order: true, memory: true, x87: true, registers: true, mxcsr: true };

    /// Of several accesses the first to fault is the processor's choice, and so is what those
    /// before it stored; the SDM does not say either whether tags change before an operand of
    /// an MMX instruction faults.
    fn of(insn: &Instruction) -> Self {
        use Mnemonic::*;
        let page = Self { address: !0xfff, ..Self::STRICT };
        let mmx = (0..insn.op_count()).any(|n| insn.op_register(n).is_mm());
        match insn.mnemonic() {
            Cmpsb | Cmpsw | Cmpsd | Cmpsq => Self { address: 0, order: false, ..Self::STRICT },
            // A target that is not canonical, and a stack that is not there.
            Call => Self { order: false, memory: false, ..Self::STRICT },
            Pushad | Pusha => Self { memory: false, ..Self::STRICT },
            Fxsave | Fxsave64 => Self { order: false, memory: false, ..page },
            Fnsave | Fnstenv => Self { memory: false, ..page },
            Fxrstor | Fxrstor64 => Self { order: false, x87: false, ..page },
            Frstor | Fldenv => Self { x87: false, ..page },
            Maskmovdqu | Vmaskmovdqu | Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => {
                Self { address: 0, order: false, memory: false, ..Self::STRICT }
            }
            // Ten bytes are stored in two pieces.
            Fbstp | Fstp => Self { memory: false, ..Self::STRICT },
            Maskmovq => {
                Self { address: 0, order: false, memory: false, x87: false, ..Self::STRICT }
            }
            // Which of the multiplications and additions come after the one that is reported.
            Dpps | Dppd | Vdpps | Vdppd => Self { mxcsr: false, ..Self::STRICT },
            Popad | Popa => Self { registers: false, ..Self::STRICT },
            _ if mmx => Self { x87: false, ..Self::STRICT },
            _ => Self::STRICT,
        }
    }
}

fn defined(mode: Mode, case: &Case, out: &Outcome) -> Defined {
    let mut now = Undefined::default();
    let mut all = Undefined::default();
    let mut holes = Vec::new();
    let mut flags = FLAGS;
    let mut fault = Fault::STRICT;
    let mut string_registers = u64::MAX;
    let (mut offset, mut first) = (0, true);
    while offset < case.bytes().len() {
        let ip = case.rip(mode) + offset as u64;
        let insn = decode(&case.bytes()[offset..], mode, ip);
        let ended = out.vector != u32::from(exception::BP) && out.rip == ip;
        if ended {
            fault = Fault::of(&insn);
        }
        let short_address = bytes_of(case, offset, &insn).contains(&0x67);
        if mode == Mode::Long && insn.is_string_instruction() && short_address {
            // Whether an iteration that does not happen clears the upper halves differs.
            string_registers = 0xffff_ffff;
        }
        if ended && insn.is_string_instruction() {
            // A fault in a later iteration: the flags are those before, or of the last.
            flags &= !to_rflags(insn.rflags_modified());
        }
        if insn.is_invalid() || ended && !now.branched {
            all = now;
            break;
        }
        let cl = (first && !now.branched).then_some(case.gpr[gpr::RCX] as u8);
        now.step(&insn, cl);
        all.flags |= now.flags;
        all.values |= now.values;
        holes.extend(holes_of(mode, case, &insn));
        first = false;
        offset += insn.len();
        if offset >= case.bytes().len() && !now.branched {
            all = now;
        }
    }
    Defined { flags: flags & !all.flags, values: !all.values, holes, string_registers, fault }
}

fn bytes_of<'a>(case: &'a Case, offset: usize, insn: &Instruction) -> &'a [u8] {
    let bytes = case.bytes().get(offset..).unwrap_or_default();
    &bytes[..insn.len().min(bytes.len())]
}

/// What an instruction stores that is reserved, or differs between processors: x87 pointers,
/// MXCSR_MASK.
fn holes_of(mode: Mode, case: &Case, insn: &Instruction) -> Vec<Range<u64>> {
    use Mnemonic::*;
    let short = insn.code().op_code().operand_size() == 16;
    let relative: &[(u64, u64)] = match insn.mnemonic() {
        Fxsave | Fxsave64 => &[(5, 24), (28, 32), (416, 512)],
        Fnstenv | Fnsave | Fstenv | Fsave if short => &[(6, 14)],
        Fnstenv | Fnsave | Fstenv | Fsave => &[(2, 4), (6, 8), (10, 28)],
        _ if pushes_part(insn.code()) => &[(2, 4)],
        _ => return Vec::new(),
    };
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(insn);
    let Some(used) = info.used_memory().first() else { return Vec::new() };
    let at = used.virtual_address(0, |register, _, _| {
        let full = register.full_register();
        Some(match register {
            iced_x86::Register::FS if mode == Mode::Long => case.fs_base,
            iced_x86::Register::GS if mode == Mode::Long => case.gs_base,
            r if r.is_segment_register() => state::segment_base(mode, r),
            _ if full.is_gpr64() => case.gpr[full.number() & 15],
            _ => 0,
        })
    });
    let mask = if mode == Mode::Long { u64::MAX } else { 0xffff_ffff };
    let at = at.unwrap_or(0) & mask;
    relative.iter().map(|(from, to)| at.wrapping_add(*from)..at.wrapping_add(*to)).collect()
}

/// The instruction pushes a selector as 32 bits, of which the upper half is written or not
/// (SDM volume 2, PUSH).
pub fn pushes_part(code: Code) -> bool {
    use Code::*;
    matches!(code, Pushd_CS | Pushd_SS | Pushd_DS | Pushd_ES | Pushd_FS | Pushd_GS)
}

fn instruction_at(mode: Mode, case: &Case, rip: u64) -> Option<Instruction> {
    let offset = usize::try_from(rip.wrapping_sub(case.rip(mode))).ok()?;
    let bytes = case.bytes().get(offset..).filter(|bytes| !bytes.is_empty())?;
    Some(decode(bytes, mode, rip))
}

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
            let mask = if string { defined.string_registers } else { u64::MAX };
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
    if found.is_empty() { Verdict::Same } else { Verdict::Differs(found) }
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
