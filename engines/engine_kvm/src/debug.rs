//! A debugger's breakpoints in the processor's own registers, beside the guest's.

use engine::{Breakpoint, BreakpointKind, DebugExit, Error, GuestDebug};
use kvm_bindings::*;
use x86_defs::dr;

pub(crate) const BREAKPOINTS: usize = 4;

/// R/W and LEN of DR7 (SDM volume 3, 18.2.4).
fn condition(breakpoint: &Breakpoint) -> Result<u64, Error> {
    let (kind, len) = match breakpoint.kind {
        BreakpointKind::Execute => return Ok(0),
        BreakpointKind::Write { len } => (1, len),
        BreakpointKind::Access { len } => (3, len),
    };
    let code = match len {
        1 => 0,
        2 => 1,
        4 => 3,
        8 => 2,
        _ => return Err(Error::Unsupported("a watchpoint of this length")),
    };
    if !breakpoint.address.is_multiple_of(len.into()) {
        return Err(Error::Unsupported("a watchpoint that is not aligned"));
    }
    Ok(kind | code << 2)
}

pub(crate) fn to_kvm(debug: &GuestDebug) -> Result<kvm_guest_debug, Error> {
    if debug.breakpoints.len() > BREAKPOINTS {
        return Err(Error::Unsupported("more than four breakpoints"));
    }
    let mut out = kvm_guest_debug::default();
    if debug.single_step {
        out.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    }
    let mut dr7 = dr::DR7_RESET;
    for (i, breakpoint) in debug.breakpoints.iter().enumerate() {
        out.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        out.arch.debugreg[i] = breakpoint.address;
        dr7 |= 2 << (2 * i) | condition(breakpoint)? << (16 + 4 * i);
    }
    out.arch.debugreg[7] = dr7;
    Ok(out)
}

/// Which of what was asked for ended the run.
pub(crate) fn exit(debug: &GuestDebug, at: &kvm_debug_exit_arch) -> DebugExit {
    let hit = |(i, b): (usize, &Breakpoint)| (at.dr6 >> i & 1 != 0).then_some(*b);
    let hits = || debug.breakpoints.iter().enumerate().filter_map(hit);
    let execute = hits().find(|b| b.kind == BreakpointKind::Execute && b.address == at.pc);
    match (execute, hits().find(|b| b.kind != BreakpointKind::Execute)) {
        (Some(b), _) => DebugExit::Breakpoint { address: b.address },
        (None, Some(b)) => DebugExit::Watchpoint { address: b.address },
        (None, None) => DebugExit::Step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_become_debug_registers() {
        let breakpoints = vec![
            Breakpoint { address: 0x1000, kind: BreakpointKind::Execute },
            Breakpoint { address: 0x2008, kind: BreakpointKind::Write { len: 8 } },
            Breakpoint { address: 0x3004, kind: BreakpointKind::Access { len: 4 } },
        ];
        let debug = GuestDebug { single_step: false, breakpoints };
        let kernel = to_kvm(&debug).unwrap();
        assert_eq!(kernel.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(kernel.arch.debugreg[..3], [0x1000, 0x2008, 0x3004]);
        assert_eq!(kernel.arch.debugreg[7], 0x0f90_042a);
        let at = kvm_debug_exit_arch { dr6: 2, pc: 0x1234, ..Default::default() };
        assert_eq!(exit(&debug, &at), DebugExit::Watchpoint { address: 0x2008 });
        let at = kvm_debug_exit_arch { dr6: 1, pc: 0x1000, ..Default::default() };
        assert_eq!(exit(&debug, &at), DebugExit::Breakpoint { address: 0x1000 });
    }

    #[test]
    fn what_the_processor_cannot_watch_is_refused() {
        let one = |address, kind| GuestDebug {
            breakpoints: vec![Breakpoint { address, kind }],
            ..GuestDebug::default()
        };
        assert!(to_kvm(&one(1, BreakpointKind::Write { len: 2 })).is_err());
        assert!(to_kvm(&one(0, BreakpointKind::Write { len: 3 })).is_err());
        let mut five = one(0, BreakpointKind::Execute);
        five.breakpoints = vec![five.breakpoints[0]; 5];
        assert!(to_kvm(&five).is_err());
    }
}
