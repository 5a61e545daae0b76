//! The instructions that move register state as a whole: FXSAVE and FXRSTOR, the XSAVE family
//! (SDM volume 1, chapter 13), MXCSR, VZEROUPPER and VZEROALL.

use crate::{
    Ctx, Handler, Insn, Stop,
    insn::segment,
    vec::{aligned, effective, usable},
};
use emit::{Unit, sse_control};
use iced_x86::{Instruction, Mnemonic};
use vcpu_state::{FpuState, SegReg};
use x86_defs::{
    cr::{cr0, cr4, xcr0},
    exception, gpr, xsave,
};

pub(crate) fn select(iced: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    Some(match iced.mnemonic() {
        Fxsave | Fxsave64 => fxsave,
        Fxrstor | Fxrstor64 => fxrstor,
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 => xsave_standard,
        Xsavec | Xsavec64 | Xsaves | Xsaves64 => xsave_compacted,
        Xrstor | Xrstor64 | Xrstors | Xrstors64 => xrstor,
        Ldmxcsr | Vldmxcsr => ldmxcsr,
        Stmxcsr | Vstmxcsr => stmxcsr,
        Vzeroupper => vzeroupper,
        Vzeroall => vzeroall,
        _ => return None,
    })
}

const X87: u64 = xcr0::X87;
const SSE: u64 = xcr0::SSE;
const AVX: u64 = xcr0::AVX;

/// The parts of the area: FCW to FDP, MXCSR with its mask, ST0 to ST7, XMM, upper halves.
const CONTROL: std::ops::Range<usize> = 0..24;
const MXCSR: std::ops::Range<usize> = xsave::MXCSR..xsave::MXCSR + 8;
const STACK: std::ops::Range<usize> = xsave::ST..xsave::XMM;
const XMM: std::ops::Range<usize> = xsave::XMM..xsave::XMM + 256;
const YMM: std::ops::Range<usize> = xsave::YMM_HI..xsave::YMM_HI + 256;
/// XMM8 to XMM15 are left alone outside 64-bit mode.
const XMM_32: usize = 128;

/// The memory operand: an area that begins at `ea`.
#[derive(Clone, Copy)]
struct Area {
    seg: SegReg,
    ea: u64,
    mask: u64,
    /// REX.W: FIP and FDP have 64 bits, not 32 and a selector.
    wide: bool,
    /// XMM and YMM registers that the mode has.
    registers: usize,
}

impl Area {
    fn of(ctx: &Ctx<'_>, insn: &Insn) -> Self {
        use Mnemonic::*;
        let wide = matches!(
            insn.iced().mnemonic(),
            Fxsave64
                | Fxrstor64
                | Xsave64
                | Xsaveopt64
                | Xsavec64
                | Xsaves64
                | Xrstor64
                | Xrstors64
        );
        let registers = registers(ctx);
        let (seg, ea) = (segment(insn.seg), effective(ctx, insn));
        Self { seg, ea, mask: insn.address_mask(), wide, registers }
    }

    fn at(&self, offset: usize) -> u64 {
        self.ea.wrapping_add(offset as u64) & self.mask
    }

    fn load(&self, ctx: &mut Ctx<'_>, offset: usize, out: &mut [u8]) -> Result<(), Stop> {
        for (i, chunk) in out.chunks_mut(64).enumerate() {
            ctx.load_bytes(self.seg, self.at(offset + i * 64), chunk)?;
        }
        Ok(())
    }

    fn store(&self, ctx: &mut Ctx<'_>, offset: usize, data: &[u8]) -> Result<(), Stop> {
        for (i, chunk) in data.chunks(64).enumerate() {
            ctx.store_bytes(self.seg, self.at(offset + i * 64), chunk)?;
        }
        Ok(())
    }

    /// The part of a component's bytes that this mode's registers have.
    fn vector(&self, range: std::ops::Range<usize>) -> std::ops::Range<usize> {
        if self.registers == 8 { range.start..range.start + XMM_32 } else { range }
    }

    fn store_part(&self, ctx: &mut Ctx<'_>, range: std::ops::Range<usize>) -> Result<(), Stop> {
        let mut bytes = [0; 256];
        let part = &mut bytes[..range.len()];
        part.copy_from_slice(&ctx.cpu.fpu.area[range.clone()]);
        if range == CONTROL {
            part[5] = 0;
            if !self.wide {
                // The selectors, which are deprecated and zero.
                part[12..16].fill(0);
                part[20..24].fill(0);
            }
        }
        self.store(ctx, range.start, part)
    }
}

/// x87 and SSE are both needed: FXSAVE's checks.
fn fx_usable(ctx: &mut Ctx<'_>, area: &Area) -> Result<(), Stop> {
    if ctx.cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(ctx.cpu.fault(exception::NM));
    }
    aligned(ctx, area.seg, area.ea, 16)
}

fn fxsave(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let area = Area::of(ctx, insn);
    fx_usable(ctx, &area)?;
    // All of it is the operand, also what is reserved.
    ctx.probe(area.seg, area.ea, xsave::LEGACY_LEN, true)?;
    area.store_part(ctx, CONTROL)?;
    area.store_part(ctx, MXCSR)?;
    area.store_part(ctx, STACK)?;
    let range = area.vector(XMM);
    area.store_part(ctx, range)
}

fn fxrstor(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let area = Area::of(ctx, insn);
    fx_usable(ctx, &area)?;
    let mut image = Image::load(ctx, &area, X87 | SSE)?;
    image.check_mxcsr(ctx)?;
    image.take(ctx, &area, X87 | SSE);
    image.take_mxcsr(ctx);
    Ok(())
}

/// RFBM: what is asked for of what is enabled.
fn requested(ctx: &Ctx<'_>) -> u64 {
    let asked = ctx.cpu.gpr[gpr::RAX] & 0xffff_ffff | ctx.cpu.gpr[gpr::RDX] << 32;
    asked & ctx.cpu.xcr0
}

/// Components that are not in their initial configuration.
fn in_use(fpu: &FpuState) -> u64 {
    // All bytes, many at a time, instead of one by one to the first that is not zero.
    let zero = |range: std::ops::Range<usize>| fpu.area[range].iter().fold(0, |or, b| or | b) == 0;
    let x87_initial = fpu.u16(xsave::FCW) == xsave::FCW_RESET && zero(2..24) && zero(STACK);
    let component = |initial: bool, bit: u64| if initial { 0 } else { bit };
    component(x87_initial, X87) | component(zero(XMM), SSE) | component(zero(YMM), AVX)
}

fn xsave_usable(ctx: &mut Ctx<'_>, insn: &Insn, area: &Area) -> Result<(), Stop> {
    use Mnemonic::*;
    if ctx.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(ctx.cpu.fault(exception::UD));
    }
    if ctx.cpu.cr0 & cr0::TS != 0 {
        return Err(ctx.cpu.fault(exception::NM));
    }
    let supervisor = matches!(insn.iced().mnemonic(), Xsaves | Xsaves64 | Xrstors | Xrstors64);
    if supervisor && ctx.cpu.mode.cpl != 0 {
        return Err(ctx.cpu.fault_code(exception::GP, 0));
    }
    aligned(ctx, area.seg, area.ea, 64)
}

/// Stores the components of `which`; not MXCSR.
fn store_components(ctx: &mut Ctx<'_>, area: &Area, which: u64) -> Result<(), Stop> {
    if which & X87 != 0 {
        area.store_part(ctx, CONTROL)?;
        area.store_part(ctx, STACK)?;
    }
    if which & SSE != 0 {
        let range = area.vector(XMM);
        area.store_part(ctx, range)?;
    }
    if which & AVX != 0 {
        let range = area.vector(YMM);
        area.store_part(ctx, range)?;
    }
    Ok(())
}

/// XSAVE and XSAVEOPT (SDM volume 1, 13.7 and 13.9). The modified optimization is not made.
fn xsave_standard(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let area = Area::of(ctx, insn);
    xsave_usable(ctx, insn, &area)?;
    let rfbm = requested(ctx);
    let in_use = in_use(&ctx.cpu.fpu);
    let optimized = matches!(insn.iced().mnemonic(), Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64);
    let mut old = [0; 8];
    area.load(ctx, xsave::XSTATE_BV, &mut old)?;
    let which = if optimized { rfbm & in_use } else { rfbm };
    store_components(ctx, &area, which)?;
    if rfbm & (SSE | AVX) != 0 {
        area.store_part(ctx, MXCSR)?;
    }
    let bv = u64::from_le_bytes(old) & !rfbm | in_use & rfbm;
    area.store(ctx, xsave::XSTATE_BV, &bv.to_le_bytes())
}

/// XSAVEC and XSAVES (SDM volume 1, 13.10 and 13.11). With these three components the compacted
/// format has AVX where the standard format has it.
fn xsave_compacted(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let area = Area::of(ctx, insn);
    xsave_usable(ctx, insn, &area)?;
    let rfbm = requested(ctx);
    let mut which = in_use(&ctx.cpu.fpu);
    if ctx.cpu.fpu.mxcsr() != xsave::MXCSR_RESET {
        which |= SSE;
    }
    which &= rfbm;
    store_components(ctx, &area, which)?;
    if which & SSE != 0 {
        area.store_part(ctx, MXCSR)?;
    }
    let mut header = [0; 16];
    header[..8].copy_from_slice(&which.to_le_bytes());
    header[8..].copy_from_slice(&(rfbm | COMPACTED).to_le_bytes());
    area.store(ctx, xsave::XSTATE_BV, &header)
}

/// XCOMP_BV: the area has the compacted format.
const COMPACTED: u64 = 1 << 63;

/// What was read of an area, before anything is changed.
struct Image {
    bytes: FpuState,
}

impl Image {
    fn load(ctx: &mut Ctx<'_>, area: &Area, which: u64) -> Result<Self, Stop> {
        let mut bytes = FpuState::init();
        area.load(ctx, 0, &mut bytes.area[..xsave::ST])?;
        if which & X87 != 0 {
            area.load(ctx, STACK.start, &mut bytes.area[STACK])?;
        }
        if which & SSE != 0 {
            let range = area.vector(XMM);
            area.load(ctx, range.start, &mut bytes.area[range])?;
        }
        if which & AVX != 0 {
            let range = area.vector(YMM);
            area.load(ctx, range.start, &mut bytes.area[range])?;
        }
        Ok(Self { bytes })
    }

    fn check_mxcsr(&self, ctx: &mut Ctx<'_>) -> Result<(), Stop> {
        if self.bytes.mxcsr() & !xsave::MXCSR_MASK_VALUE != 0 {
            return Err(ctx.cpu.fault_code(exception::GP, 0));
        }
        Ok(())
    }

    /// Loads the components of `which` into the registers; not MXCSR.
    fn take(&mut self, ctx: &mut Ctx<'_>, area: &Area, which: u64) {
        let (to, from) = (&mut ctx.cpu.fpu.area, &mut self.bytes.area);
        if which & X87 != 0 {
            if !area.wide {
                from[12..16].fill(0);
                from[20..24].fill(0);
            }
            to[CONTROL].copy_from_slice(&from[CONTROL]);
            to[5] = 0;
            to[STACK].copy_from_slice(&from[STACK]);
            // Each register has 10 bytes; the rest is reserved.
            for register in to[STACK].chunks_mut(16) {
                register[10..].fill(0);
            }
            let control = ctx.cpu.fpu.u16(xsave::FCW);
            emit::x87::load_control(&mut ctx.cpu.fpu, control);
        }
        let (to, from) = (&mut ctx.cpu.fpu.area, &self.bytes.area);
        for (bit, range) in [(SSE, XMM), (AVX, YMM)] {
            if which & bit != 0 {
                let range = area.vector(range);
                to[range.clone()].copy_from_slice(&from[range]);
            }
        }
    }

    fn take_mxcsr(&self, ctx: &mut Ctx<'_>) {
        ctx.cpu.fpu.set_u32(xsave::MXCSR, self.bytes.mxcsr());
    }
}

/// XRSTOR and XRSTORS (SDM volume 1, 13.8 and 13.12).
fn xrstor(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let area = Area::of(ctx, insn);
    xsave_usable(ctx, insn, &area)?;
    let supervisor = matches!(insn.iced().mnemonic(), Mnemonic::Xrstors | Mnemonic::Xrstors64);
    let mut header = [0; xsave::HEADER_LEN];
    area.load(ctx, xsave::XSTATE_BV, &mut header)?;
    let (bv, comp) = (word(&header, 0), word(&header, 8));
    let compacted = comp & COMPACTED != 0;
    let reserved_from = if compacted { 16 } else { 8 };
    let reserved_to = if compacted { 64 } else { 24 };
    let enabled = ctx.cpu.xcr0;
    let bad = header[reserved_from..reserved_to].iter().any(|b| *b != 0)
        || bv & !enabled != 0
        || compacted && (comp & !COMPACTED & !enabled != 0 || bv & !comp != 0)
        || supervisor && !compacted
        || compacted && ctx.cpu.cpuid.lookup(0xd, 1)[0] & 2 == 0;
    if bad {
        return Err(ctx.cpu.fault_code(exception::GP, 0));
    }
    let rfbm = requested(ctx);
    let restore = rfbm & bv;
    let mut image = Image::load(ctx, &area, restore)?;
    // The standard format has MXCSR apart from XSTATE_BV; the compacted one makes it part of
    // SSE.
    let mxcsr = if compacted { restore & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    if mxcsr {
        image.check_mxcsr(ctx)?;
    }
    image.take(ctx, &area, restore);
    if mxcsr {
        image.take_mxcsr(ctx);
    } else if compacted && rfbm & !bv & SSE != 0 {
        ctx.cpu.fpu.set_u32(xsave::MXCSR, xsave::MXCSR_RESET);
    }
    if rfbm & !bv != 0 {
        let mut initial = Image { bytes: FpuState::init() };
        initial.take(ctx, &area, rfbm & !bv);
    }
    Ok(())
}

fn word(header: &[u8; xsave::HEADER_LEN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn mxcsr_usable(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let vex = matches!(insn.iced().mnemonic(), Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr);
    usable(ctx, if vex { Unit::Avx } else { Unit::Sse }, vex, false)
}

fn ldmxcsr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    mxcsr_usable(ctx, insn)?;
    let ea = effective(ctx, insn);
    let value: u32 = ctx.load(segment(insn.seg), ea)?;
    if !sse_control::load_mxcsr(&mut ctx.cpu.fpu, value) {
        return Err(ctx.cpu.fault_code(exception::GP, 0));
    }
    Ok(())
}

fn stmxcsr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    mxcsr_usable(ctx, insn)?;
    let (ea, value) = (effective(ctx, insn), ctx.cpu.fpu.mxcsr());
    ctx.store(segment(insn.seg), ea, value)
}

/// How many vector registers the mode has.
fn registers(ctx: &Ctx<'_>) -> usize {
    if ctx.cpu.mode.is64() { 16 } else { 8 }
}

fn vzeroupper(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    usable(ctx, Unit::Avx, true, false)?;
    let registers = registers(ctx);
    sse_control::zero_upper(&mut ctx.cpu.fpu, registers);
    Ok(())
}

fn vzeroall(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    usable(ctx, Unit::Avx, true, false)?;
    let registers = registers(ctx);
    sse_control::zero_all(&mut ctx.cpu.fpu, registers);
    Ok(())
}
