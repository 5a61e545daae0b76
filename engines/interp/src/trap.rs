//! Intercepts of a personality.

use engine::{Cause, Trap};
use iced_x86::Mnemonic;
use semantics::{Ctx, Insn, Stop};
use vcpu_state::Exception;
use x86_defs::exception;

/// The handler that offers an instruction to the host, if the host asked for it.
pub fn intercept(ctx: &Ctx<'_>, mnemonic: Mnemonic) -> Option<semantics::Handler> {
    let wanted = ctx.cpu.intercepts;
    match mnemonic {
        Mnemonic::Syscall if wanted.syscall => Some(syscall),
        Mnemonic::Cpuid if wanted.cpuid => Some(cpuid),
        Mnemonic::Int3 if wanted.exceptions & 1 << exception::BP != 0 => Some(breakpoint),
        Mnemonic::Into if wanted.exceptions & 1 << exception::OF != 0 => Some(overflow),
        _ => None,
    }
}

fn syscall(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    offer(ctx, Cause::Syscall, insn)
}

fn cpuid(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    offer(ctx, Cause::Cpuid, insn)
}

fn breakpoint(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let vector = exception::BP;
    offer(ctx, Cause::Exception(Exception { vector, error: None, payload: 0 }), insn)
}

fn overflow(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    if !ctx.cpu.flags.of() {
        return Ok(());
    }
    let vector = exception::OF;
    offer(ctx, Cause::Exception(Exception { vector, error: None, payload: 0 }), insn)
}

/// The host sees the registers as before the instruction; where it leaves RIP, execution goes
/// on.
fn offer(ctx: &mut Ctx<'_>, cause: Cause, insn: &Insn) -> Result<(), Stop> {
    let next = ctx.cpu.rip;
    ctx.cpu.rip = ctx.start(insn);
    ctx.trap(Trap { cause, next });
    Ok(())
}
