//! A domain that is saved and restored, and states that are no domain's.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use ciborium::Value;
use guest::{DATA, Guest, L4, RAM};
use guest_mem::PAGE;
use saved_state::Part;
use vcpu_state::{MpState, SegReg, VcpuState};
use x86_defs::{
    msr,
    paging::{P, RW, US},
    rflags,
};
use xen_abi::{errno::Errno, event_channel, hypercall as call, sched, vcpu};

/// A domain that has used most of what there is.
fn busy() -> Guest {
    let mut guest = Guest::new();
    let at = DATA * PAGE;
    // A table of its own that nothing maps for writing, pinned; a page given back.
    for frame in [DATA + 2, DATA + 3] {
        assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[frame * PAGE, 0, 0]), 0);
    }
    guest.put(at, &[0, DATA + 2]);
    assert_eq!(guest.call(call::MMUEXT_OP, &[at, 1, 0, 0x7ff0]), 0);
    guest.put(at, &[at + 64, 1, 0, 0x7ff0]);
    guest.put(at + 64, &[DATA + 3]);
    assert_eq!(guest.call(call::MEMORY_OP, &[1, at]), 1);
    // A vCPU's information, a timer, ports.
    guest.put(at, &[DATA + 4, 64]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::REGISTER_VCPU_INFO, 0, at]), 0);
    guest.put(at, &[u64::from(event_channel::virq::TIMER), 0]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_VIRQ, at]), 0);
    guest.put(at, &[9000, 0]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::SET_SINGLESHOT_TIMER, 0, at]), 0);
    assert_eq!(guest.call(call::SCHED_OP, &[sched::op::BLOCK, 0]), 0);
    guest
}

#[test]
fn a_domain_goes_on_as_it_was() {
    let mut guest = busy();
    let parts = guest.save();
    *guest.around.timer.lock().unwrap() = None;
    guest.restore(parts.clone()).unwrap();
    assert_eq!(guest.save(), parts);
    assert_eq!(*guest.around.timer.lock().unwrap(), Some(9000));
    assert!(guest.xen.is_pending(0) && guest.xen.is_up(0) && !guest.xen.is_up(1));
    assert_eq!(guest.xen.pages(), RAM - 1);
    // The rules hold as before: what is pinned is not written, and what is gone is not mapped.
    let map = |guest: &mut Guest, frame: u64| {
        let entry = (frame * PAGE) | P | RW | US;
        guest.call(call::UPDATE_VA_MAPPING, &[60 * PAGE, entry, 0])
    };
    assert_eq!(map(&mut guest, DATA + 2), Errno::Busy.result());
    assert_eq!(map(&mut guest, L4), Errno::Busy.result());
    assert_eq!(map(&mut guest, DATA + 3), Errno::Inval.result());
    let at = DATA * PAGE;
    guest.put(at, &[4, DATA + 2]);
    assert_eq!(guest.call(call::MMUEXT_OP, &[at, 1, 0, 0x7ff0]), 0, "it is unpinned once");
    assert_eq!(map(&mut guest, DATA + 2), 0);
    // Its information is where it was, and no table.
    guest.put(at, &[0, DATA + 4]);
    assert_eq!(guest.call(call::MMUEXT_OP, &[at, 1, 0, 0x7ff0]), Errno::Busy.result());
}

#[test]
fn a_page_that_was_given_back_and_is_mapped_still_goes_with_the_domain() {
    let mut guest = busy();
    let (at, page) = (DATA * PAGE, DATA + 6);
    guest.put(at, &[at + 64, 1, 0, 0x7ff0]);
    guest.put(at + 64, &[page]);
    assert_eq!(guest.call(call::MEMORY_OP, &[1, at]), 1);
    let parts = guest.save();
    guest.restore(parts.clone()).unwrap();
    assert_eq!(guest.save(), parts);
    // It may not be mapped again, nor taken back while it is mapped; then it may.
    let entry = (page * PAGE) | P | US;
    assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[60 * PAGE, entry, 0]), Errno::Inval.result());
    let take = |guest: &mut Guest| guest.call(call::MEMORY_OP, &[6, at]);
    assert_eq!(take(&mut guest), 0);
    assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[page * PAGE, 0, 0]), 0);
    assert_eq!(take(&mut guest), 1);
}

#[test]
fn memory_that_breaks_the_rules_is_refused() {
    let mut guest = busy();
    let parts = guest.save();
    let entry = (L4 + 3) * PAGE + 61 * 8;
    let good = guest.cpu.load(entry);
    for bad in [
        // A table, the hypervisor's page, a page that is nobody's, for writing.
        (L4 * PAGE) | P | RW | US,
        ((DATA + 2) * PAGE) | P | RW | US,
        (guest.layout.m2p()) | P | RW | US,
        ((DATA + 3) * PAGE) | P | US,
        (1 << 40) | P | RW | US,
    ] {
        guest.put(entry, &[bad]);
        let error = guest.restore(parts.clone()).unwrap_err();
        assert!(error.contains("break"), "{bad:#x}: {error}");
    }
    guest.put(entry, &[good]);
    guest.restore(parts).unwrap();
}

#[test]
fn a_part_that_is_not_there_is_missed() {
    let guest = busy();
    let parts = guest.save();
    assert_eq!(parts.len(), 3);
    for gone in 0..parts.len() {
        let mut fewer = parts.clone();
        fewer.remove(gone);
        assert!(guest.restore(fewer).unwrap_err().contains("has no xen-"), "{gone}");
    }
}

/// A state with something else under a name.
fn changed(parts: &[Part], kind: &str, changes: &[(&str, Value)]) -> Vec<Part> {
    let mut parts = parts.to_vec();
    let part = parts.iter_mut().rev().find(|part| part.kind == kind).unwrap();
    let mut state: Value = ciborium::from_reader(part.payload.as_slice()).unwrap();
    for (name, new) in changes {
        let fields = state.as_map_mut().unwrap();
        let field = fields.iter_mut().find(|(field, _)| field.as_text() == Some(name)).unwrap();
        field.1 = new.clone();
    }
    part.payload.clear();
    ciborium::into_writer(&state, &mut part.payload).unwrap();
    parts
}

#[test]
fn rings_and_roots_that_are_none_are_refused() {
    let guest = busy();
    let parts = guest.save();
    let number = |n: u64| Value::from(n);
    let ring = |frame: u64| ("rings", Value::Array(vec![number(frame), number(RAM - 2)]));
    let bad: [(&str, &[(&str, Value)]); 6] = [
        // A table, what was given back, what is not RAM.
        ("xen-domain", &[ring(L4)]),
        ("xen-domain", &[ring(DATA + 3)]),
        ("xen-domain", &[ring(RAM)]),
        ("xen-domain", &[ring(u64::MAX)]),
        // A program whose tables would be what is at address 0; one without a kernel.
        ("xen-vcpu", &[("in_kernel", Value::from(false))]),
        ("xen-vcpu", &[("kernel_root", number(0)), ("user_root", number(L4 * PAGE))]),
    ];
    for (kind, changes) in bad {
        assert!(guest.restore(changed(&parts, kind, changes)).is_err(), "{changes:?}");
    }
    assert_eq!(changed(&parts, "xen-vcpu", &[]), parts);
    guest.restore(parts).unwrap();
}

#[test]
fn only_a_domain_s_own_vcpu_is_admitted() {
    let guest = busy();
    let mut good = VcpuState::reset(0);
    xen_pv::set_up(&mut good, 0);
    good.control.cr3 = L4 * PAGE;
    good.control.cr0 |= x86_defs::cr::cr0::TS;
    good.regs.rflags = rflags::FIXED | rflags::IF;
    good.msrs.set(msr::TSC_AUX, 5);
    let mut kept = good.clone();
    guest.xen.admit(0, &mut kept).unwrap();
    assert_eq!(kept, good);
    // What is the hypervisor's is made right.
    kept.control.cr4 = 0;
    kept.segments.gdtr.base = 0;
    kept.segments.idtr.limit = 0xfff;
    // SYSENTER, a word that KVM writes, and a break in what the hypervisor has there.
    for index in [msr::IA32_SYSENTER_CS, msr::IA32_SYSENTER_EIP, 0x4b56_4d03] {
        kept.msrs.set(index, 9);
    }
    kept.debug.dr7 |= 0x3;
    (kept.events.interrupt, kept.apic.regs[0x20]) = (Some(0x20), 1);
    guest.xen.admit(0, &mut kept).unwrap();
    assert_eq!(kept, good);
    let refused: [fn(&mut VcpuState); 4] = [
        |state| state.control.cr3 = (DATA + 5) * PAGE,
        |state| state.segment_mut(SegReg::Cs).attr &= !x86_defs::segment::ATTR_DPL,
        |state| state.segment_mut(SegReg::Ss).attr &= !x86_defs::segment::ATTR_DPL,
        |state| state.regs.rflags |= rflags::IOPL,
    ];
    for (n, change) in refused.iter().enumerate() {
        let mut state = good.clone();
        change(&mut state);
        assert!(guest.xen.admit(0, &mut state).is_err(), "{n}");
    } // One that has not begun waits, whatever it says.
    let mut other = VcpuState::reset(1);
    xen_pv::set_up(&mut other, 1);
    (other.regs.rip, other.control.cr3) = (0x1000, 0x7000);
    guest.xen.admit(1, &mut other).unwrap();
    assert_eq!((other.mp, other.control.cr3), (MpState::Halted, 0));
    assert_eq!(other.regs, VcpuState::reset(1).regs);
}
