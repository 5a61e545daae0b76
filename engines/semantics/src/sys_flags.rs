//! CLI, STI, PUSHF, POPF, CLAC, STAC, HLT and instructions without effect here (SDM
//! volume 2).

use crate::{Ctx, Insn, Stop, sys_v86::virtual_image};
use vcpu_state::{MpState, Shadow};
use x86_defs::{cr::cr4, exception::UD, rflags};

impl Ctx<'_> {
    pub(crate) fn iopl(&self) -> u8 {
        (self.cpu.rflags >> rflags::IOPL_SHIFT & 3) as u8
    }

    /// Protected-mode virtual interrupts apply (SDM volume 3, 20.4).
    fn pvi(&self) -> bool {
        let mode = &self.cpu.mode;
        mode.protected && !mode.v86 && mode.cpl == 3 && self.cpu.cr4 & cr4::PVI != 0
    }
}

pub fn cli(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    if !ctx.cpu.mode.protected || ctx.iopl() >= ctx.cpu.mode.cpl {
        ctx.cpu.rflags &= !rflags::IF;
    } else if ctx.vme() || ctx.pvi() {
        ctx.cpu.rflags &= !rflags::VIF;
    } else {
        return Err(ctx.gp(0));
    }
    Ok(())
}

pub fn sti(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    if !ctx.cpu.mode.protected || ctx.iopl() >= ctx.cpu.mode.cpl {
        if ctx.cpu.rflags & rflags::IF == 0 {
            ctx.cpu.rflags |= rflags::IF;
            ctx.cpu.events.shadow = Shadow::Sti;
            ctx.cpu.look = true;
            ctx.cpu.leave = true;
        }
    } else if (ctx.vme() || ctx.pvi()) && ctx.cpu.rflags & rflags::VIP == 0 {
        ctx.cpu.rflags |= rflags::VIF;
    } else {
        return Err(ctx.gp(0));
    }
    Ok(())
}

/// PUSHF with an operand size of `SIZE` bytes.
pub fn pushf<const SIZE: u8>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let mut flags = ctx.cpu.rflags() & !(rflags::VM | rflags::RF);
    if ctx.cpu.mode.v86 && ctx.iopl() < 3 {
        if !ctx.vme() || SIZE != 2 {
            return Err(ctx.gp(0));
        }
        flags = virtual_image(flags);
    }
    ctx.push(flags, SIZE)
}

pub fn popf<const SIZE: u8>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let old = ctx.cpu.rflags();
    let popped = ctx.peek(0, SIZE)?;
    let mut take =
        rflags::STATUS | rflags::TF | rflags::IF | rflags::DF | rflags::IOPL | rflags::NT;
    if SIZE > 2 {
        take |= rflags::AC | rflags::ID;
    }
    let (cpl, iopl) = (ctx.cpu.mode.cpl, ctx.iopl());
    if ctx.cpu.mode.v86 && iopl < 3 {
        if !ctx.vme() || SIZE != 2 {
            return Err(ctx.gp(0));
        }
        let new = ctx.virtual_flags(popped)?;
        ctx.pop_bytes(2);
        ctx.cpu.set_rflags(new);
        return Ok(());
    }
    if ctx.cpu.mode.protected && cpl > 0 {
        take &= !rflags::IOPL;
        if cpl > iopl {
            take &= !rflags::IF;
        }
    }
    // RF is always cleared, but by a 16-bit pop.
    let cleared = if SIZE > 2 { rflags::RF } else { 0 };
    let new = old & !(take | cleared) | popped & take;
    ctx.pop_bytes(SIZE.into());
    // Most POPFs change nothing that the block under execution depends on.
    const QUIET: u64 = rflags::STATUS | rflags::DF;
    if (old ^ new) & !QUIET == 0 {
        ctx.cpu.rflags = ctx.cpu.rflags & !QUIET | new & QUIET;
        ctx.cpu.flags.set_bits(new);
        return Ok(());
    }
    ctx.cpu.set_rflags(new);
    Ok(())
}

/// CLAC, and STAC with `SET`.
pub fn set_ac<const SET: bool>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let offered = ctx.cpu.cpuid.lookup(7, 0)[1] >> 20 & 1 != 0;
    if ctx.cpu.mode.cpl != 0 || !offered {
        return Err(ctx.cpu.fault(UD));
    }
    match SET {
        true => ctx.cpu.rflags |= rflags::AC,
        false => ctx.cpu.rflags &= !rflags::AC,
    }
    ctx.cpu.mode_changed();
    Ok(())
}

pub fn hlt(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    ctx.cpu.mp = MpState::Halted;
    ctx.cpu.leave = true;
    Err(Stop::Halt)
}

/// WBINVD, INVD: caches are not simulated.
pub fn flush_cache(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    ctx.cpu.serialize();
    Ok(())
}

/// SERIALIZE.
pub fn serialize(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.cpu.serialize();
    Ok(())
}

pub fn undefined(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    Err(ctx.cpu.fault(UD))
}
