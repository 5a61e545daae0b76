//! LGDT, LIDT, SGDT, SIDT, INVLPG, INVPCID, and the FSGSBASE instructions (SDM volume 2).

use crate::{Ctx, Insn, Stop, insn::segment};
use iced_x86::{Code, OpKind};
use vcpu_state::{SegReg, Table};
use x86_defs::{cr::cr4, exception::UD, is_canonical_48};

/// LGDT, and LIDT with `IDT`.
pub fn load_table<const IDT: bool>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    let ea = ctx.ea(insn);
    let long = ctx.cpu.mode.is64();
    let mut bytes = [0; 10];
    let len = if long { 10 } else { 6 };
    ctx.load_bytes(insn.segment(), ea, &mut bytes[..len])?;
    let [l0, l1, b @ ..] = bytes;
    let mut base = u64::from_le_bytes(b);
    let narrow = matches!(insn.iced().code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
    if narrow {
        base &= 0xff_ffff;
    }
    if long && !is_canonical_48(base) {
        return Err(ctx.gp(0));
    }
    let table = Table { base, limit: u16::from_le_bytes([l0, l1]) };
    if IDT {
        ctx.cpu.idtr = table;
    } else {
        ctx.cpu.gdtr = table;
    }
    ctx.cpu.serialize();
    Ok(())
}

/// SGDT, and SIDT with `IDT`.
pub fn store_table<const IDT: bool>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_umip()?;
    let table = if IDT { ctx.cpu.idtr } else { ctx.cpu.gdtr };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if ctx.cpu.mode.is64() { 10 } else { 6 };
    let ea = ctx.ea(insn);
    ctx.store_bytes(insn.segment(), ea, &bytes[..len])
}

pub fn invlpg(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    let ea = ctx.ea(insn);
    let seg = insn.segment();
    let based = !ctx.cpu.mode.is64() || matches!(seg, SegReg::Fs | SegReg::Gs);
    let base = if based { ctx.cpu.segment(seg).base } else { 0 };
    let mask = if ctx.cpu.mode.is64() { !0 } else { 0xffff_ffff };
    let linear = base.wrapping_add(ea) & mask;
    if !ctx.cpu.mode.is64() || is_canonical_48(linear) {
        ctx.cpu.mmu.flush_page(linear);
        ctx.cpu.leave = true;
    }
    Ok(())
}

pub fn invpcid(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    if !offered(ctx, 10) {
        return Err(ctx.cpu.fault(UD));
    }
    ctx.need_cpl0()?;
    let mask = if ctx.cpu.mode.is64() { !0 } else { 0xffff_ffff };
    let kind = ctx.cpu.gpr[insn.iced().op0_register().number() & 15] & mask;
    let ea = ctx.ea(insn);
    let mut bytes = [0; 16];
    ctx.load_bytes(insn.segment(), ea, &mut bytes)?;
    let words = bytes.as_chunks::<8>().0;
    let (pcid, linear) = (u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]));
    let no_pcids = ctx.cpu.cr4 & cr4::PCIDE == 0;
    let bad = match kind {
        0 => pcid >> 12 != 0 || !is_canonical_48(linear) || no_pcids && pcid != 0,
        1 => pcid >> 12 != 0 || no_pcids && pcid != 0,
        2 | 3 => pcid >> 12 != 0,
        _ => true,
    };
    if bad {
        return Err(ctx.gp(0));
    }
    let mmu = &mut ctx.cpu.mmu;
    match kind {
        0 => mmu.flush_page(linear),
        1 => mmu.flush_pcid(pcid as u16),
        2 => mmu.flush_all_pages(),
        _ => mmu.flush_non_global(),
    }
    ctx.cpu.leave = true;
    Ok(())
}

/// Bit `bit` of CPUID.7.0:EBX.
fn offered(ctx: &Ctx<'_>, bit: u32) -> bool {
    ctx.cpu.cpuid.lookup(7, 0)[1] >> bit & 1 != 0
}

fn need_fsgsbase(ctx: &mut Ctx<'_>) -> Result<(), Stop> {
    if !ctx.cpu.mode.is64() || ctx.cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(ctx.cpu.fault(UD));
    }
    Ok(())
}

/// RDFSBASE, RDGSBASE.
pub fn read_base<const SEG: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    need_fsgsbase(ctx)?;
    let base = ctx.cpu.segment(segment(SEG)).base;
    let size = insn.iced().op0_register().size() as u8;
    ctx.write_op(insn, 0, size, base)
}

/// WRFSBASE, WRGSBASE.
pub fn write_base<const SEG: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    need_fsgsbase(ctx)?;
    debug_assert_eq!(insn.iced().op0_kind(), OpKind::Register);
    let size = insn.iced().op0_register().size() as u8;
    let base = ctx.read_op(insn, 0, size)?;
    if !is_canonical_48(base) {
        return Err(ctx.gp(0));
    }
    ctx.cpu.segment_mut(segment(SEG)).base = base;
    Ok(())
}
