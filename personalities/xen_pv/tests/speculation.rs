//! What a kernel is told of speculation, and what it tells the processor.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use engine::{Cause, Flow, Trap};
use guest::{CAPABILITIES, DATA, Guest};
use guest_mem::PAGE;
use vcpu_state::Exception;
use x86_defs::{
    exception::GP,
    gpr::{RAX, RCX, RDX},
    msr,
};

/// RDMSR, and WRMSR behind it.
const CODE: u64 = DATA * PAGE;

/// Has #GP at what is at `rip`, for which the domain is asked; whether it goes on behind it.
fn privileged(guest: &mut Guest, rip: u64) -> bool {
    guest.cpu.regs.rip = rip;
    let exception = Exception { vector: GP, error: Some(0), payload: 0 };
    let trap = Trap { cause: Cause::Exception(exception), next: rip };
    let flow = guest.xen.trap(0, trap, &mut guest.cpu);
    flow == Flow::Continue && guest.cpu.regs.rip == rip + 2
}

fn read(guest: &mut Guest, index: u32) -> Option<u64> {
    guest.cpu.regs.gpr[RCX] = index.into();
    let done = privileged(guest, CODE);
    done.then(|| guest.cpu.regs.gpr[RDX] << 32 | guest.cpu.regs.gpr[RAX])
}

fn write(guest: &mut Guest, index: u32, value: u64) -> bool {
    guest.cpu.regs.gpr[RCX] = index.into();
    (guest.cpu.regs.gpr[RDX], guest.cpu.regs.gpr[RAX]) = (value >> 32, value & 0xffff_ffff);
    privileged(guest, CODE + 2)
}

fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.put(CODE, &[u64::from_le_bytes([0x0f, 0x32, 0x0f, 0x30, 0, 0, 0, 0])]);
    guest
}

#[test]
fn what_needs_no_mitigation_is_told() {
    let mut guest = guest();
    assert_eq!(read(&mut guest, msr::IA32_ARCH_CAPABILITIES), Some(CAPABILITIES));
    assert!(!write(&mut guest, msr::IA32_ARCH_CAPABILITIES, CAPABILITIES));
    assert!(write(&mut guest, msr::IA32_SPEC_CTRL, 1 << 10 | 1));
    assert!(!write(&mut guest, msr::IA32_SPEC_CTRL, 1 << 11));
    assert!(!write(&mut guest, msr::IA32_SPEC_CTRL, 1 << 32));
    assert_eq!(read(&mut guest, msr::IA32_SPEC_CTRL), Some(1 << 10 | 1));
    for (have, needless) in [(Some(1), false), (None, true)] {
        for name in ["arch_capabilities", "ibrs", "bhi_ctrl"] {
            assert_eq!(xen_pv::hidden(have).contains(&name), needless, "{name}");
        }
        assert!(xen_pv::hidden(have).contains(&"smap"));
    }
}

#[test]
fn a_domain_that_moves_is_told_the_same() {
    let mut here = guest();
    assert!(write(&mut here, msr::IA32_SPEC_CTRL, 1));
    let mut there = guest();
    there.restore(here.save()).unwrap();
    assert_eq!(read(&mut there, msr::IA32_SPEC_CTRL), Some(1));
    assert_eq!(read(&mut there, msr::IA32_ARCH_CAPABILITIES), Some(CAPABILITIES));
}
