//! Vector instructions whose elements are accessed one by one, and the x87 environment.

use crate::{
    Ctx, Handler, Insn, Stop,
    insn::segment,
    vec::{effective, usable},
};
use emit::{Unit, gather::Gather, masked_move::MaskedMove, x87, x87_env};
use iced_x86::Instruction;
use vcpu_state::SegReg;
use x86_defs::{cr::cr0, exception, gpr, rflags};

pub(crate) fn select(iced: &Instruction) -> Option<Handler> {
    if iced.is_vsib() {
        // One that repeats a register has no other handler, and raises #UD.
        return Gather::of(iced).map(|_| gather as Handler);
    }
    if MaskedMove::of(iced).is_some() {
        return Some(masked_move);
    }
    x87_env::Instruction::of(iced.code()).map(|_| environment as Handler)
}

/// Each element that was loaded is done, and its mask clear, when a later one faults.
fn gather(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    usable(ctx, Unit::Avx, true, false)?;
    let Some(gather) = Gather::of(insn.iced()) else {
        return Err(ctx.cpu.fault(exception::UD));
    };
    let seg = segment(insn.seg);
    gather.begin(&mut ctx.cpu.fpu);
    while let Some(element) = next(ctx, &gather) {
        let value = if gather.element_size == 4 {
            u64::from(ctx.load::<u32>(seg, element.offset)?)
        } else {
            ctx.load::<u64>(seg, element.offset)?
        };
        gather.complete(&mut ctx.cpu.fpu, element, value);
    }
    gather.finish(&mut ctx.cpu.fpu);
    Ok(())
}

fn next(ctx: &Ctx<'_>, gather: &Gather) -> Option<emit::gather::Element> {
    gather.next(&ctx.cpu.fpu, ctx.cpu.gpr.first_chunk::<16>()?)
}

/// Masked moves check no alignment (SDM volume 2, exceptions of type 6).
fn load_element(ctx: &mut Ctx<'_>, seg: SegReg, ea: u64, size: usize) -> Result<u64, Stop> {
    let mut bytes = [0; 8];
    ctx.load_unaligned(seg, ea, &mut bytes[..size.min(8)])?;
    Ok(u64::from_le_bytes(bytes))
}

fn store_element(
    ctx: &mut Ctx<'_>,
    seg: SegReg,
    ea: u64,
    size: usize,
    value: u64,
) -> Result<(), Stop> {
    ctx.store_unaligned(seg, ea, &value.to_le_bytes()[..size.min(8)])
}

fn masked_move(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let Some(op) = MaskedMove::of(insn.iced()) else {
        return Err(ctx.cpu.fault(exception::UD));
    };
    let unit = match (op.vex, op.mmx) {
        (true, _) => Unit::Avx,
        (_, true) => Unit::Mmx,
        _ => Unit::Sse,
    };
    usable(ctx, unit, op.vex, false)?;
    if op.mmx && x87::pending(&ctx.cpu.fpu) {
        return Err(ctx.cpu.fault(exception::MF));
    }
    let (seg, base) = if op.element_size == 1 {
        implied_address(ctx, insn)
    } else {
        (segment(insn.seg), effective(ctx, insn))
    };
    let active = op.active(&ctx.cpu.fpu);
    let mask = insn.address_mask();
    let at = |n: usize| base.wrapping_add((n * op.element_size) as u64) & mask;
    let elements = (0..op.count).filter(|n| active >> n & 1 != 0);
    if !op.stores {
        let mut values = [0; 8];
        for n in elements {
            if let Some(value) = values.get_mut(n) {
                *value = load_element(ctx, seg, at(n), op.element_size)?;
            }
        }
        op.finish_load(&mut ctx.cpu.fpu, &values);
        return Ok(());
    }
    for n in elements {
        let value = op.element(&ctx.cpu.fpu, n);
        store_element(ctx, seg, at(n), op.element_size, value)?;
    }
    op.finish_store(&mut ctx.cpu.fpu);
    Ok(())
}

/// DS:(E/R)DI, with the segment overridable: MASKMOVDQU and MASKMOVQ.
fn implied_address(ctx: &Ctx<'_>, insn: &Insn) -> (SegReg, u64) {
    use iced_x86::OpKind;
    let iced = insn.iced();
    let mask = match iced.op0_kind() {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => !0,
    };
    let seg = match iced.segment_prefix() {
        iced_x86::Register::ES => SegReg::Es,
        iced_x86::Register::CS => SegReg::Cs,
        iced_x86::Register::SS => SegReg::Ss,
        iced_x86::Register::FS => SegReg::Fs,
        iced_x86::Register::GS => SegReg::Gs,
        _ => SegReg::Ds,
    };
    (seg, ctx.cpu.gpr[gpr::RDI] & mask)
}

/// FLDENV, FNSTENV, FRSTOR, FNSAVE.
fn environment(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let Some(op) = x87_env::Instruction::of(insn.iced().code()) else {
        return Err(ctx.cpu.fault(exception::UD));
    };
    usable(ctx, Unit::X87, false, false)?;
    let real = ctx.cpu.cr0 & cr0::PE == 0 || ctx.cpu.rflags & rflags::VM != 0;
    let (seg, ea) = (segment(insn.seg), effective(ctx, insn));
    let mask = insn.address_mask();
    let chunk_at = |i: usize| ea.wrapping_add((i * 64) as u64) & mask;
    let len = op.len().min(x87_env::MAX_LEN);
    // Alignment checks look at the operand size (SDM volume 3, table 6-7).
    let word = if matches!(len, 14 | 94) { 2 } else { 4 };
    ctx.probe(seg, ea, word, op.stores)?;
    if op.stores {
        let image = x87_env::store(&ctx.cpu.fpu, op, real);
        for (i, chunk) in image[..len].chunks(64).enumerate() {
            ctx.probe(seg, chunk_at(i), chunk.len(), true)?;
        }
        for (i, chunk) in image[..len].chunks(64).enumerate() {
            ctx.store_bytes(seg, chunk_at(i), chunk)?;
        }
        op.stored(&mut ctx.cpu.fpu);
        return Ok(());
    }
    if x87::pending(&ctx.cpu.fpu) {
        return Err(ctx.cpu.fault(exception::MF));
    }
    let mut image = [0; x87_env::MAX_LEN];
    for (i, chunk) in image[..len].chunks_mut(64).enumerate() {
        ctx.load_bytes(seg, chunk_at(i), chunk)?;
    }
    x87_env::load(&mut ctx.cpu.fpu, op, real, &image);
    Ok(())
}
