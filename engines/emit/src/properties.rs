//! What the interpreter must know about an instruction before and after it runs a stub.

use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};
use x86_defs::rflags;

use crate::{Unsupported, allow, host};

/// The unit that an instruction needs, hence which state #NM and #UD guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// x87. #NM if CR0.EM or CR0.TS; for WAIT only if both CR0.MP and CR0.TS.
    X87,
    /// MMX registers. #UD if CR0.EM, #NM if CR0.TS.
    Mmx,
    /// MMX and XMM registers together (CVTPI2PS, MOVQ2DQ and their kin): as `Sse`, and an x87
    /// exception that is pending comes first.
    MmxSse,
    /// Legacy encodings on XMM registers. #UD if CR0.EM or not CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// VEX encodings on XMM and YMM registers. #UD if not CR4.OSXSAVE or XCR0 lacks SSE or AVX,
    /// in real mode and in virtual-8086 mode; #NM if CR0.TS.
    Avx,
    /// General registers only: always usable (VEX encodings not in real or virtual-8086 mode).
    Gpr,
}

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// In bytes, 1 to 32.
    pub size: u8,
    pub read: bool,
    pub write: bool,
    /// The operand's effective address must be a multiple of this, else #GP(0); 1 if it need
    /// not be aligned (#AC aside).
    pub alignment: u8,
}

/// The facts about one instruction, apart from its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    pub unit: Unit,
    /// Has a VEX prefix.
    pub vex: bool,
    pub memory: Option<MemoryUse>,
    /// General registers that it reads or writes (bit n is register n), those of its address
    /// not counted.
    pub gpr_used: u16,
    pub gpr_written: u16,
    /// XMM or YMM registers that it reads or writes.
    pub vector_used: u16,
    pub vector_written: u16,
    /// The upper halves of YMM registers matter as operands.
    pub wide: bool,
    /// RFLAGS bits that it reads, of the status flags.
    pub flags_read: u64,
    /// RFLAGS bits that it writes, those that the manual leaves undefined included.
    pub flags_written: u64,
    /// Depends on MXCSR, and may raise SIMD floating-point exceptions.
    pub simd_fp: bool,
    /// Reports a pending x87 exception (#MF) before it executes (SDM volume 1, 8.7).
    pub waiting: bool,
    /// Sets FIP, FDP and FOP: the x87 instructions but for the control ones
    /// (SDM volume 1, 8.1.8).
    pub x87_pointers: bool,
    pub(crate) x87_control: Option<X87Control>,
    /// VCVTPS2PH.
    pub(crate) to_half: bool,
}

/// x87 instructions that only concern control and status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum X87Control {
    Initialise,
    ClearExceptions,
    LoadControl,
    StoreControl,
    StoreStatus,
    /// Does nothing but report what is pending.
    Wait,
}

impl X87Control {
    fn of(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Fninit => Self::Initialise,
            Mnemonic::Fnclex => Self::ClearExceptions,
            Mnemonic::Fldcw => Self::LoadControl,
            Mnemonic::Fnstcw => Self::StoreControl,
            Mnemonic::Fnstsw => Self::StoreStatus,
            Mnemonic::Wait => Self::Wait,
            _ => return None,
        })
    }
}

impl Properties {
    /// The facts about `insn`, if it is on the allow-list and the host has it.
    pub fn of(insn: &Instruction) -> Result<Self, Unsupported> {
        let unit = unit(insn)?;
        if !host::executes(insn) {
            return Err(Unsupported::Host);
        }
        let vex = insn.encoding() == EncodingKind::VEX;
        let mnemonic = insn.mnemonic();
        let mut properties = Self {
            unit,
            vex,
            memory: None,
            gpr_used: 0,
            gpr_written: 0,
            vector_used: 0,
            vector_written: 0,
            wide: false,
            flags_read: flags(insn.rflags_read()),
            flags_written: flags(insn.rflags_modified()),
            simd_fp: allow::legacy_simd_fp(mnemonic) || allow::vex_simd_fp(mnemonic),
            waiting: waiting(insn, unit),
            x87_control: X87Control::of(mnemonic),
            to_half: mnemonic == Mnemonic::Vcvtps2ph,
            x87_pointers: unit == Unit::X87 && !is_x87_control(mnemonic),
        };
        properties.add_operands(insn)?;
        Ok(properties)
    }

    fn add_operands(&mut self, insn: &Instruction) -> Result<(), Unsupported> {
        // Without its address registers, the rest are the operation's own.
        let mut bare = *insn;
        if has_memory(insn) {
            bare.set_memory_base(Register::None);
            bare.set_memory_index(Register::None);
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(&bare, InstructionInfoOptions::NONE);
        for used in info.used_registers() {
            let (register, written) = (used.register(), writes(used.access()));
            if register.is_gpr() {
                let bit = 1 << (register.full_register().number() & 15);
                self.gpr_used |= bit;
                self.gpr_written |= if written { bit } else { 0 };
            } else if register.is_vector_register() {
                if register.number() > 15 {
                    return Err(Unsupported::NotListed);
                }
                let bit = 1 << register.number();
                self.vector_used |= bit;
                self.vector_written |= if written { bit } else { 0 };
            }
        }
        self.wide = insn
            .op_kinds()
            .enumerate()
            .any(|(n, kind)| kind == OpKind::Register && insn.op_register(n as u32).is_ymm());
        if has_memory(insn) {
            let [memory] = info.used_memory() else { return Err(Unsupported::NotListed) };
            let size = u8::try_from(insn.memory_size().size()).unwrap_or(0);
            if size == 0 || size > 32 {
                return Err(Unsupported::NotListed);
            }
            self.memory = Some(MemoryUse {
                size,
                read: reads(memory.access()),
                write: writes(memory.access()),
                alignment: alignment(insn, self.unit, size),
            });
        }
        Ok(())
    }

    /// It runs on the x87 register file.
    pub(crate) fn on_x87(&self) -> bool {
        matches!(self.unit, Unit::X87 | Unit::Mmx | Unit::MmxSse)
    }
}

pub(crate) fn has_memory(insn: &Instruction) -> bool {
    insn.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// Finds an instruction on the allow-list.
fn unit(insn: &Instruction) -> Result<Unit, Unsupported> {
    let features = insn.cpuid_features();
    let mnemonic = insn.mnemonic();
    let x87 = features.iter().any(|feature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
    });
    // The other extensions share mnemonics with plain instructions (MOVSD, CMPSD).
    let base = features.iter().all(|feature| {
        matches!(
            feature,
            CpuidFeature::INTEL8086
                | CpuidFeature::INTEL186
                | CpuidFeature::INTEL286
                | CpuidFeature::INTEL386
                | CpuidFeature::INTEL486
                | CpuidFeature::X64
        )
    });
    let plain_operands = insn.op_kinds().all(|kind| {
        matches!(
            kind,
            OpKind::Register
                | OpKind::Memory
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
        )
    });
    if insn.has_lock_prefix() || insn.is_vsib() || !plain_operands {
        return Err(Unsupported::NotListed);
    }
    let unit = match insn.encoding() {
        EncodingKind::Legacy if mnemonic == Mnemonic::Wait => Unit::X87,
        EncodingKind::Legacy if x87 && allow::x87(mnemonic) => Unit::X87,
        EncodingKind::Legacy | EncodingKind::VEX if !base && allow::general(mnemonic) => Unit::Gpr,
        EncodingKind::Legacy
            if !base && (allow::legacy_simd(mnemonic) || allow::legacy_simd_fp(mnemonic)) =>
        {
            legacy_simd_unit(insn)
        }
        EncodingKind::VEX if allow::vex_simd(mnemonic) || allow::vex_simd_fp(mnemonic) => Unit::Avx,
        _ => return Err(Unsupported::NotListed),
    };
    Ok(unit)
}

fn legacy_simd_unit(insn: &Instruction) -> Unit {
    let any = |test: fn(Register) -> bool| {
        insn.op_kinds()
            .enumerate()
            .any(|(n, kind)| kind == OpKind::Register && test(insn.op_register(n as u32)))
    };
    match insn.mnemonic() {
        Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd => Unit::MmxSse,
        Mnemonic::Emms => Unit::Mmx,
        _ => match (any(Register::is_mm), any(Register::is_xmm)) {
            (true, true) => Unit::MmxSse,
            // CVTPS2PI and its kin with a memory source.
            (true, false) if allow::legacy_simd_fp(insn.mnemonic()) => Unit::MmxSse,
            (true, false) => Unit::Mmx,
            (false, _) => Unit::Sse,
        },
    }
}

/// The control instructions that do not wait (SDM volume 1, 8.3.11 and 8.7).
fn waiting(insn: &Instruction, unit: Unit) -> bool {
    match unit {
        Unit::X87 => !matches!(
            insn.mnemonic(),
            Mnemonic::Fnclex
                | Mnemonic::Fninit
                | Mnemonic::Fnstcw
                | Mnemonic::Fnstsw
                | Mnemonic::Fneni
                | Mnemonic::Fndisi
                | Mnemonic::Fnsetpm
        ),
        Unit::Mmx => true,
        // "If the source operand is a memory location, no transition takes place."
        Unit::MmxSse => {
            !(matches!(insn.mnemonic(), Mnemonic::Cvtpi2pd | Mnemonic::Cvtpi2ps)
                && has_memory(insn))
        }
        Unit::Sse | Unit::Avx | Unit::Gpr => false,
    }
}

/// x87 control instructions leave FIP, FDP and FOP alone (SDM volume 1, 8.1.8).
fn is_x87_control(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fnclex
            | Mnemonic::Fninit
            | Mnemonic::Fldcw
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
            | Mnemonic::Wait
    )
}

/// Alignment that memory operands must have (SDM volume 2, 2.4: exception types 1, 2 and 4).
fn alignment(insn: &Instruction, unit: Unit, size: u8) -> u8 {
    match (unit, insn.mnemonic()) {
        (
            Unit::Avx,
            Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntdqa,
        ) => size,
        (
            Unit::Sse | Unit::MmxSse,
            Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm,
        ) => 1,
        (Unit::Sse | Unit::MmxSse, _) if size == 16 => 16,
        _ => 1,
    }
}

fn reads(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Status flags from iced's own bit numbers.
fn flags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::OF, rflags::OF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}
