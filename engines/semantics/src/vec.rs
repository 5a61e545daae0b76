//! Vector and floating-point instructions: the checks, the memory operand, and a stub of the
//! host's own units in between.

use crate::{
    Ctx, Handler, Insn, Stop,
    insn::{RIP_REG, segment},
    vec_gather, vec_state,
};
use cpu_model::CpuidTable;
use emit::{Operand, Outcome, Stub, StubCache, Unit, x87};
use iced_x86::{CpuidFeature, Instruction};
use vcpu_state::SegReg;
use x86_defs::{
    cr::{cr0, cr4, xcr0},
    exception,
};

/// How a vector or floating-point instruction is executed.
pub struct Selected {
    pub handler: Handler,
    pub stub: Option<Stub>,
    /// x87's FOP, if the instruction records it.
    pub fop: u16,
}

impl std::fmt::Debug for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selected").field("stub", &self.stub).finish_non_exhaustive()
    }
}

/// The handler of an instruction of this kind; `None` if it is none, or may not be executed.
/// `bytes` are those that `iced` was decoded from.
pub fn select_vector(iced: &Instruction, bytes: &[u8], stubs: &StubCache) -> Option<Selected> {
    if let Some(handler) = vec_state::select(iced).or_else(|| vec_gather::select(iced)) {
        return Some(Selected { handler, stub: None, fop: 0 });
    }
    let stub = stubs.compile(iced).ok()?;
    let properties = stub.properties();
    let fop = if properties.x87_pointers { x87::opcode(bytes) } else { 0 };
    let simple = properties.memory.is_none()
        && properties.flags_read | properties.flags_written == 0
        && properties.unit != Unit::X87;
    let handler = if simple { run_registers } else { run };
    Some(Selected { handler, stub: Some(stub), fop })
}

/// True if the guest's CPUID offers the extensions that an instruction belongs to.
pub fn offered(iced: &Instruction, cpuid: &CpuidTable) -> bool {
    iced.cpuid_features().iter().all(|feature| match feature_name(*feature) {
        Some(name) => cpuid.has_named(name),
        None => true,
    })
}

/// The name in the CPUID table of an extension that can be hidden; `None` for what every
/// x86-64 processor has. Extensions without a name here are not decoded into a handler anyway.
fn feature_name(feature: CpuidFeature) -> Option<&'static str> {
    use CpuidFeature::*;
    Some(match feature {
        SSE3 => "sse3",
        SSSE3 => "ssse3",
        SSE4_1 => "sse4_1",
        SSE4_2 => "sse4_2",
        POPCNT => "popcnt",
        AES => "aes",
        PCLMULQDQ => "pclmulqdq",
        SHA => "sha",
        AVX => "avx",
        AVX2 => "avx2",
        FMA => "fma",
        F16C => "f16c",
        BMI1 => "bmi1",
        BMI2 => "bmi2",
        ADX => "adx",
        MOVBE => "movbe",
        LZCNT => "lzcnt",
        RDRAND => "rdrand",
        RDSEED => "rdseed",
        CMPXCHG16B => "cx16",
        FSGSBASE => "fsgsbase",
        SMAP => "smap",
        INVPCID => "invpcid",
        RDTSCP => "rdtscp",
        RDPID => "rdpid",
        XSAVE => "xsave",
        XSAVEOPT => "xsaveopt",
        XSAVEC => "xsavec",
        XSAVES => "xsaves",
        CLFLUSHOPT => "clflushopt",
        CLWB => "clwb",
        VAES => "vaes",
        VPCLMULQDQ => "vpclmulqdq",
        GFNI => "gfni",
        SERIALIZE => "serialize",
        _ => return None,
    })
}

/// Raises #UD or #NM where the unit may not be used now.
#[inline]
pub fn usable(ctx: &mut Ctx<'_>, unit: Unit, vex: bool, wait: bool) -> Result<(), Stop> {
    let cpu = &mut *ctx.cpu;
    let unavailable = match unit {
        Unit::X87 if wait => cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS,
        Unit::X87 => cpu.cr0 & (cr0::EM | cr0::TS) != 0,
        Unit::Gpr => false,
        _ => cpu.cr0 & cr0::TS != 0,
    };
    let undefined = match unit {
        Unit::X87 => false,
        Unit::Mmx => cpu.cr0 & cr0::EM != 0,
        Unit::Sse | Unit::MmxSse => cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0,
        Unit::Avx => {
            const NEEDED: u64 = xcr0::SSE | xcr0::AVX;
            cpu.mode.real_like() || cpu.cr4 & cr4::OSXSAVE == 0 || cpu.xcr0 & NEEDED != NEEDED
        }
        Unit::Gpr => vex && cpu.mode.real_like(),
    };
    if undefined {
        return Err(cpu.fault(exception::UD));
    }
    if unavailable {
        return Err(cpu.fault(exception::NM));
    }
    Ok(())
}

/// The effective address of the memory operand.
#[inline]
pub(crate) fn effective(ctx: &Ctx<'_>, insn: &Insn) -> u64 {
    let cpu = &*ctx.cpu;
    let base = match insn.base {
        RIP_REG => cpu.rip,
        number => cpu.gpr[usize::from(number & 31)],
    };
    let index = cpu.gpr[usize::from(insn.index & 31)] << (insn.scale & 3);
    base.wrapping_add(index).wrapping_add(insn.disp as i64 as u64) & insn.address_mask()
}

/// Linear address of an effective address, before any check.
pub(crate) fn linear(ctx: &Ctx<'_>, seg: SegReg, ea: u64) -> u64 {
    if ctx.cpu.mode.is64() {
        let based = matches!(seg, SegReg::Fs | SegReg::Gs);
        return if based { ctx.cpu.segment(seg).base.wrapping_add(ea) } else { ea };
    }
    ctx.cpu.segment(seg).base.wrapping_add(ea) & 0xffff_ffff
}

/// #GP(0) unless the operand is aligned.
pub(crate) fn aligned(ctx: &mut Ctx<'_>, seg: SegReg, ea: u64, to: u64) -> Result<(), Stop> {
    if linear(ctx, seg, ea) & (to - 1) != 0 {
        return Err(ctx.cpu.fault_code(exception::GP, 0));
    }
    Ok(())
}

/// The commonest kind: registers only, no flags.
fn run_registers(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let Some(stub) = insn.cold.as_ref().and_then(|cold| cold.stub.as_ref()) else {
        return Err(ctx.cpu.fault(exception::UD));
    };
    let properties = stub.properties();
    usable(ctx, properties.unit, properties.vex, false)?;
    let mut operand = Operand::new();
    let outcome = stub_run(ctx, stub, &mut 0, &mut operand);
    finish(ctx, outcome)
}

fn run(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let Some(cold) = insn.cold.as_ref() else { return Err(ctx.cpu.fault(exception::UD)) };
    let Some(stub) = cold.stub.as_ref() else { return Err(ctx.cpu.fault(exception::UD)) };
    let properties = stub.properties();
    let wait = properties.unit == Unit::X87 && cold.iced.mnemonic() == iced_x86::Mnemonic::Wait;
    usable(ctx, properties.unit, properties.vex, wait)?;
    let mut operand = Operand::new();
    let (seg, ea) = (segment(insn.seg), effective(ctx, insn));
    let writes = properties.memory.is_some_and(|memory| memory.write);
    if let Some(memory) = properties.memory {
        if memory.alignment > 1 {
            aligned(ctx, seg, ea, memory.alignment.into())?;
        }
        if memory.read {
            let size = usize::from(memory.size).min(operand.0.len());
            match checks_alignment(&cold.iced) {
                true => ctx.load_bytes(seg, ea, &mut operand.0[..size])?,
                false => ctx.load_unaligned(seg, ea, &mut operand.0[..size])?,
            }
        }
    }
    // A store that faults must find the x87 stack as it was before the pop, or before the MMX
    // instruction made all of it valid.
    let stack = matches!(properties.unit, Unit::X87 | Unit::Mmx);
    let before = (writes && stack).then(|| ctx.cpu.fpu.clone());
    let gpr_before = (writes && properties.gpr_written != 0).then_some(ctx.cpu.gpr);
    let mut flags = ctx.cpu.flags.bits();
    let outcome = stub_run(ctx, stub, &mut flags, &mut operand);
    if writes && outcome == Outcome::Done {
        let size = properties.memory.map_or(0, |memory| usize::from(memory.size));
        let stored = match checks_alignment(&cold.iced) {
            true => ctx.store_bytes(seg, ea, &operand.0[..size.min(64)]),
            false => ctx.store_unaligned(seg, ea, &operand.0[..size.min(64)]),
        };
        if let Err(stop) = stored {
            if let Some(fpu) = before {
                ctx.cpu.fpu = fpu;
            }
            if let Some(gpr) = gpr_before {
                ctx.cpu.gpr = gpr;
            }
            return Err(stop);
        }
    }
    finish(ctx, outcome)?;
    if properties.flags_written != 0 {
        ctx.cpu.flags.set_bits(flags);
    }
    if properties.x87_pointers {
        let fip = ctx.start(insn);
        let exceptions_only = ctx.cpu.fdp_exceptions_only;
        let fdp = properties.memory.map(|_| ea);
        let last = x87::LastInstruction { fip, fdp, fop: cold.fop, exceptions_only };
        x87::record(&mut ctx.cpu.fpu, &last);
    }
    Ok(())
}

/// Conversions of half-precision numbers do not (SDM volume 2, exceptions of type 11).
fn checks_alignment(iced: &Instruction) -> bool {
    !matches!(iced.mnemonic(), iced_x86::Mnemonic::Vcvtph2ps | iced_x86::Mnemonic::Vcvtps2ph)
}

#[inline]
fn stub_run(ctx: &mut Ctx<'_>, stub: &Stub, flags: &mut u64, operand: &mut Operand) -> Outcome {
    let cpu = &mut *ctx.cpu;
    match cpu.gpr.first_chunk_mut::<16>() {
        Some(gpr) => stub.run(&mut cpu.fpu, gpr, flags, operand),
        None => Outcome::NoStore,
    }
}

#[inline]
fn finish(ctx: &mut Ctx<'_>, outcome: Outcome) -> Result<(), Stop> {
    match outcome {
        Outcome::Done | Outcome::NoStore => Ok(()),
        Outcome::SimdException if ctx.cpu.cr4 & cr4::OSXMMEXCPT == 0 => {
            Err(ctx.cpu.fault(exception::UD))
        }
        Outcome::SimdException => Err(ctx.cpu.fault(exception::XM)),
        // With CR0.NE clear a PC raises IRQ 13 instead (SDM volume 1, 8.7.1); no system of the
        // last decades runs so, and this board has no FERR# line.
        Outcome::X87Pending => Err(ctx.cpu.fault(exception::MF)),
    }
}
