//! Intercepts of a personality.

use crate::Interp;
use engine::{Cause, Exit, Flow, Trap};
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
    trap(ctx, Trap { cause, next });
    Ok(())
}

pub(crate) fn trap(ctx: &mut Ctx<'_>, trap: Trap) {
    if ctx.trap(trap) == Flow::Stop {
        ctx.cpu.stop_asked = true;
    }
    ctx.cpu.leave = true;
}

impl Interp {
    /// Offers the exception in `Cpu::raised` to the host, if it asked for its vector. `None`:
    /// it goes to the guest.
    pub(crate) fn intercepted(&mut self, ctx: &mut Ctx<'_>) -> Option<Option<Exit>> {
        let exception = ctx.cpu.raised;
        let wanted = ctx.cpu.intercepts.exceptions;
        if wanted.checked_shr(exception.vector.into()).unwrap_or(0) & 1 == 0 {
            return None;
        }
        // Of a fault, the instruction that follows is not known without decoding it.
        let next = ctx.cpu.rip;
        trap(ctx, Trap { cause: Cause::Exception(exception), next });
        Some(None)
    }
}
