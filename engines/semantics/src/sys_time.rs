//! RDTSC, RDTSCP, RDPID, RDPMC (SDM volume 2). Decoding has asked CPUID for them.

use crate::{Ctx, Insn, Stop};
use x86_defs::{
    cr::{cr0, cr4},
    gpr::{RAX, RCX, RDX},
};

/// #GP(0) for user mode while CR4.TSD is set.
fn need_tsc(ctx: &mut Ctx<'_>) -> Result<(), Stop> {
    if ctx.cpu.cr4 & cr4::TSD != 0 && ctx.cpu.cr0 & cr0::PE != 0 && ctx.cpu.mode.cpl != 0 {
        return Err(ctx.gp(0));
    }
    Ok(())
}

pub fn rdtsc(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    need_tsc(ctx)?;
    let tsc = ctx.tsc();
    ctx.cpu.gpr[RAX] = tsc & 0xffff_ffff;
    ctx.cpu.gpr[RDX] = tsc >> 32;
    Ok(())
}

pub fn rdtscp(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    rdtsc(ctx, insn)?;
    ctx.cpu.gpr[RCX] = ctx.cpu.hot.tsc_aux & 0xffff_ffff;
    Ok(())
}

pub fn rdpid(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.cpu.hot.tsc_aux & 0xffff_ffff;
    let size = insn.iced().op0_register().size() as u8;
    ctx.write_op(insn, 0, size, value)
}

/// There are no performance counters.
pub fn rdpmc(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    Err(ctx.gp(0))
}
