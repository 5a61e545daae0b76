//! Delivery of exceptions and interrupts (SDM volume 3, chapter 6).
//!
//! A delivery that faults has changed nothing, so that the fault is delivered from the same
//! state; [`raise`] follows the rules for faults on top of faults.

mod legacy;
mod long;
mod real;

use crate::{Ctx, Stop};
use engine::Trace;
use vcpu_state::{Exception, MpState, Raised};
use x86_defs::{
    dr,
    exception::{CP, DB, DE, DF, GP, NMI, NP, PF, SS, TS, selector_error},
    rflags,
};

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub vector: u8,
    pub error: Option<u32>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The processor found it.
    Exception,
    /// From outside: an interrupt or NMI.
    External,
    /// INT n, INT3, INTO: gates are checked for the right to use them.
    Software,
    /// INT1.
    Privileged,
}

impl Event {
    /// The error code that names the event's gate.
    pub fn gate_error(&self) -> u32 {
        u32::from(self.vector) * 8 + selector_error::IDT
    }

    /// The image of RFLAGS to push: faults are restarted with RF set, so that an instruction
    /// breakpoint does not hit again (SDM volume 3, 18.3.1.1).
    fn pushed_flags(&self, flags: u64) -> u64 {
        let fault = self.kind == Kind::Exception && !matches!(self.vector, DB | DF);
        flags | if fault { rflags::RF } else { 0 }
    }
}

/// Delivers the exception in `Cpu::raised`, whose faulting instruction RIP names, and those
/// that follow from it. `Err(Shutdown)` is a triple fault.
pub fn raise(ctx: &mut Ctx<'_>) -> Result<(), Stop> {
    let mut exception = ctx.cpu.raised;
    loop {
        commit_payload(ctx, &exception);
        if ctx.cpu.trace {
            let rip = ctx.cpu.rip;
            ctx.call(|host| host.trace(Trace::Exception { exception, rip }));
        }
        let Exception { vector, error, .. } = exception;
        match ctx.deliver(Event { vector, error, kind: Kind::Exception }) {
            Err(Stop::Fault) if vector == DF => return Err(Stop::Shutdown),
            Err(Stop::Fault) => exception = follow(exception, ctx.cpu.raised),
            other => return other,
        }
    }
}

/// Delivers an external interrupt.
pub fn interrupt(ctx: &mut Ctx<'_>, vector: u8) -> Result<(), Stop> {
    ctx.cpu.mp = MpState::Running;
    if ctx.cpu.trace {
        let rip = ctx.cpu.rip;
        ctx.call(|host| host.trace(Trace::Interrupt { vector, rip, software: false }));
    }
    match ctx.deliver(Event { vector, error: None, kind: Kind::External }) {
        Err(Stop::Fault) => raise(ctx),
        other => other,
    }
}

/// Delivers an NMI, and masks NMIs until IRET.
pub fn nmi(ctx: &mut Ctx<'_>) -> Result<(), Stop> {
    ctx.cpu.mp = MpState::Running;
    ctx.cpu.events.nmi_masked = true;
    if ctx.cpu.trace {
        let rip = ctx.cpu.rip;
        ctx.call(|host| host.trace(Trace::Nmi { rip }));
    }
    match ctx.deliver(Event { vector: NMI, error: None, kind: Kind::External }) {
        Err(Stop::Fault) => raise(ctx),
        other => other,
    }
}

/// Delivers what restored state says is on its way; true if there was something.
pub fn inject(ctx: &mut Ctx<'_>) -> Result<bool, Stop> {
    let events = &mut ctx.cpu.events;
    let soft = events.soft_len.take();
    if let Raised::Pending(e) | Raised::Injected(e) = std::mem::take(&mut events.exception) {
        match soft {
            None => {
                ctx.cpu.raised = e;
                raise(ctx)?;
            }
            Some(len) => inject_software(ctx, e.vector, len)?,
        }
        return Ok(true);
    }
    if let Some(vector) = events.interrupt.take() {
        match soft {
            None => interrupt(ctx, vector)?,
            Some(len) => inject_software(ctx, vector, len)?,
        }
        return Ok(true);
    }
    if std::mem::take(&mut events.nmi_injected) {
        nmi(ctx)?;
        return Ok(true);
    }
    Ok(false)
}

/// An INT n of `len` bytes that RIP still names.
fn inject_software(ctx: &mut Ctx<'_>, vector: u8, len: u8) -> Result<(), Stop> {
    let start = ctx.cpu.rip;
    ctx.cpu.rip = start.wrapping_add(len.into()) & ctx.cpu.mode.ip_mask();
    match ctx.deliver(Event { vector, error: None, kind: Kind::Software }) {
        Err(Stop::Fault) => {
            ctx.cpu.rip = start;
            raise(ctx)
        }
        other => other,
    }
}

/// CR2 or DR6.
fn commit_payload(ctx: &mut Ctx<'_>, exception: &Exception) {
    match exception.vector {
        PF => ctx.cpu.cr2 = exception.payload,
        DB => {
            ctx.cpu.dr6 = ctx.cpu.dr6 & !dr::DR6_B | exception.payload;
            ctx.cpu.dr7 &= !dr::DR7_GD;
        }
        _ => {}
    }
}

/// What a fault during the delivery of an exception becomes (SDM volume 3, table 6-5).
fn follow(first: Exception, second: Exception) -> Exception {
    let contributory = |v| matches!(v, DE | TS | NP | SS | GP | CP);
    let double = match first.vector {
        PF => second.vector == PF || contributory(second.vector),
        v if contributory(v) => contributory(second.vector),
        _ => false,
    };
    if double { Exception { vector: DF, error: Some(0), payload: 0 } } else { second }
}

impl Ctx<'_> {
    /// Delivers an event once. RIP is what the handler returns to. A fault has no effect but
    /// on `Cpu::raised`.
    pub(crate) fn deliver(&mut self, event: Event) -> Result<(), Stop> {
        let result = if !self.cpu.mode.protected {
            self.deliver_real(event)
        } else if self.cpu.mode.long {
            self.deliver_long(event)
        } else {
            self.deliver_legacy(event)
        };
        if result == Err(Stop::Fault) && event.kind != Kind::Software {
            let raised = &mut self.cpu.raised;
            if matches!(raised.vector, TS | NP | SS | GP) {
                raised.error = raised.error.map(|code| code | selector_error::EXT);
            }
        }
        self.cpu.leave = true;
        result
    }

    /// Software interrupts: INT n and its relatives, whose handlers return behind them.
    pub(crate) fn software_interrupt(&mut self, vector: u8, kind: Kind) -> Result<(), Stop> {
        if self.cpu.trace {
            let rip = self.cpu.rip;
            self.call(|host| host.trace(Trace::Interrupt { vector, rip, software: true }));
        }
        self.deliver(Event { vector, error: None, kind })
    }

    /// #GP with a selector or gate as error code.
    pub(crate) fn gp(&mut self, error: u32) -> Stop {
        self.cpu.fault_code(GP, error)
    }
}
