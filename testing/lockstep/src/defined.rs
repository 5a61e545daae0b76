//! What the manuals define of a case's outcome: flags, registers, memory, and what is left of
//! an instruction that faults.

use crate::{
    case::{Case, Mode, Outcome},
    generate::{encode::decode, state},
    layout,
};
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, RflagsBits,
};
use std::ops::Range;
use x86_defs::{exception, gpr, rflags};

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

    /// The same where it is known that `insn` was executed.
    pub fn executed(&mut self, insn: &Instruction, cl: u8) {
        self.step(insn, Some(cl));
        self.branched = false;
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
#[derive(Debug)]
pub struct Defined {
    pub flags: u64,
    pub values: bool,
    /// Linear addresses whose contents are not.
    pub holes: Vec<Range<u64>>,
    /// Bits of RCX, RSI and RDI that are.
    pub string_registers: u64,
    pub fault: Fault,
}

/// What is defined of an instruction that faulted, beside the vector.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Bits of CR2.
    pub address: u64,
    /// Vector and error code too.
    pub order: bool,
    /// It stored nothing.
    pub memory: bool,
    /// The x87 registers are as they were.
    pub x87: bool,
    /// The general registers are as they were.
    pub registers: bool,
    /// MXCSR's exception flags, all of them.
    pub mxcsr: bool,
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
            Fxsave | Fxsave64 | Xsave | Xsave64 => Self { order: false, memory: false, ..page },
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

pub fn defined(mode: Mode, case: &Case, out: &Outcome) -> Defined {
    let mut now = Undefined::default();
    let mut all = Undefined::default();
    let mut holes = Vec::new();
    let mut flags = FLAGS;
    // Also where a jump into the middle of an instruction has found another.
    let faulted = instruction_at(mode, case, out.rip);
    let faulted = faulted.filter(|_| out.vector != u32::from(exception::BP));
    let fault = faulted.map_or(Fault::STRICT, |insn| Fault::of(&insn));
    let mut string_registers = u64::MAX;
    let (mut offset, mut first) = (0, true);
    while offset < case.bytes().len() {
        let ip = case.rip(mode) + offset as u64;
        let insn = decode(&case.bytes()[offset..], mode, ip);
        let ended = out.vector != u32::from(exception::BP) && out.rip == ip;
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
        Fxsave | Fxsave64 | Xsave | Xsave64 => &[(5, 24), (28, 32), (416, 512)],
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

pub fn instruction_at(mode: Mode, case: &Case, rip: u64) -> Option<Instruction> {
    let offset = usize::try_from(rip.wrapping_sub(case.rip(mode))).ok()?;
    let bytes = case.bytes().get(offset..).filter(|bytes| !bytes.is_empty())?;
    // Its end may be what fills the rest of the page.
    let bytes = [bytes, &[layout::FILL; 15]].concat();
    Some(decode(&bytes, mode, rip))
}
