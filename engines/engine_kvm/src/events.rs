//! The events section to and from `kvm_vcpu_events`.
//!
//! A software interrupt or exception whose delivery did not finish (INT n, INT3, INTO) is left
//! out both ways: RIP still names its instruction, which simply executes again, while the
//! kernel neither tells nor takes the instruction's length that its delivery would need.

use kvm_bindings::*;
use vcpu_state::{Events, Exception, Raised, Shadow};
use x86_defs::exception;

fn is_soft(vector: u8) -> bool {
    vector == exception::BP || vector == exception::OF
}

pub(crate) fn from_kvm(e: &kvm_vcpu_events) -> Events {
    let error = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
    let payload = if e.exception_has_payload != 0 { e.exception_payload } else { 0 };
    let raised = Exception { vector: e.exception.nr, error, payload };
    Events {
        exception: match (e.exception.pending, e.exception.injected) {
            (0, 0) => Raised::None,
            (0, _) if is_soft(e.exception.nr) => Raised::None,
            (0, _) => Raised::Injected(raised),
            _ => Raised::Pending(raised),
        },
        interrupt: (e.interrupt.injected != 0 && e.interrupt.soft == 0).then_some(e.interrupt.nr),
        soft_len: None,
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: e.nmi.pending != 0,
        nmi_masked: e.nmi.masked != 0,
        shadow: match u32::from(e.interrupt.shadow) {
            0 => Shadow::None,
            KVM_X86_SHADOW_INT_STI => Shadow::Sti,
            _ => Shadow::MovSs,
        },
        sipi: None,
    }
}

pub(crate) fn to_kvm(events: &Events) -> kvm_vcpu_events {
    let flags =
        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD;
    let mut e = kvm_vcpu_events { flags, ..Default::default() };
    let soft = events.soft_len.is_some();
    match events.exception {
        Raised::None => {}
        Raised::Injected(_) if soft => {}
        Raised::Injected(x) => {
            e.exception.injected = 1;
            set_exception(&mut e, &x);
        }
        Raised::Pending(x) => {
            e.exception.pending = 1;
            set_exception(&mut e, &x);
            e.exception_has_payload = matches!(x.vector, exception::PF | exception::DB).into();
            e.exception_payload = x.payload;
        }
    }
    if let Some(vector) = events.interrupt
        && !soft
    {
        (e.interrupt.injected, e.interrupt.nr) = (1, vector);
    }
    e.interrupt.shadow = match events.shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    e.nmi.injected = events.nmi_injected.into();
    e.nmi.pending = events.nmi_pending.into();
    e.nmi.masked = events.nmi_masked.into();
    if let Some(vector) = events.sipi {
        e.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        e.sipi_vector = vector.into();
    }
    e
}

fn set_exception(e: &mut kvm_vcpu_events, x: &Exception) {
    e.exception.nr = x.vector;
    e.exception.has_error_code = x.error.is_some().into();
    e.exception.error_code = x.error.unwrap_or(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_way_there_and_back() {
        let fault = Exception { vector: 14, error: Some(2), payload: 0x1234 };
        let base = Events { nmi_masked: true, shadow: Shadow::MovSs, ..Events::default() };
        for events in [
            base,
            Events { exception: Raised::Pending(fault), ..base },
            Events { exception: Raised::Injected(Exception { payload: 0, ..fault }), ..base },
            Events { interrupt: Some(0x30), nmi_pending: true, ..base },
            Events { nmi_injected: true, shadow: Shadow::Sti, ..base },
        ] {
            assert_eq!(from_kvm(&to_kvm(&events)), events);
        }
    }

    #[test]
    fn an_unfinished_int_n_executes_again() {
        let soft = Events { interrupt: Some(0x80), soft_len: Some(2), ..Events::default() };
        assert_eq!(to_kvm(&soft).interrupt.injected, 0);
        let mut kernel = kvm_vcpu_events::default();
        (kernel.interrupt.injected, kernel.interrupt.nr, kernel.interrupt.soft) = (1, 0x80, 1);
        assert_eq!(from_kvm(&kernel), Events::default());
    }
}
