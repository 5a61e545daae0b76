//! A domain that suspends itself and goes on, and what a kernel is told of its vCPUs meanwhile.

mod guest;

use engine::{Cause, Flow, Trap};
use guest::{DATA, Guest, RAM};
use guest_mem::PAGE;
use std::sync::atomic::Ordering::SeqCst;
use x86_defs::{
    gpr::RAX,
    paging::{P, RW, US},
};
use xen_abi::{
    errno::Errno,
    event_channel, grant_table, hypercall as call, sched,
    trap::TrapInfo,
    vcpu::{self, RUNSTATE_UPDATE, runstate},
    xen::SharedInfo,
};
use xen_front::{Access, Domain};
use xen_pv::{CONSOLE_PORT, STORE_PORT};

const AT: u64 = DATA * PAGE;
const START_INFO: u64 = DATA + 5;
const BLOCK: u64 = DATA + 10;
const ARRAY: u64 = DATA + 11;

/// The vCPU looks at what there is for it.
fn asked(guest: &mut Guest) -> Flow {
    guest.cpu.halted = false;
    let next = guest.cpu.regs.rip;
    guest.xen.trap(0, Trap { cause: Cause::Asked, next }, &mut guest.cpu)
}

fn suspend(guest: &mut Guest) -> u64 {
    guest.put(AT, &[u64::from(sched::reason::SUSPEND)]);
    guest.call(call::SCHED_OP, &[sched::op::SHUTDOWN, AT, START_INFO])
}

/// Ports, a timer, a vCPU's information in a page of the domain's, a grant.
fn busy() -> Guest {
    let mut guest = Guest::new();
    guest.put(AT, &[DATA + 4, 64]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::REGISTER_VCPU_INFO, 0, AT]), 0);
    guest.put(AT, &[u64::from(event_channel::virq::TIMER), 0]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_VIRQ, AT]), 0);
    guest.put(AT, &[9000, 0]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::SET_SINGLESHOT_TIMER, 0, AT]), 0);
    let grants = guest.layout.grants();
    guest.put(grants + 9 * 8, &[1 | (DATA + 7) << 32]);
    guest.xen.raise(CONSOLE_PORT);
    guest
}

fn entry(guest: &mut Guest, frame: u64) -> u64 {
    guest.call(call::UPDATE_VA_MAPPING, &[60 * PAGE, (frame * PAGE) | P | US, 0])
}

#[test]
fn a_domain_goes_on_as_in_a_new_one() {
    let mut guest = busy();
    assert!(!guest.xen.resume(), "it is not suspended");
    assert_eq!(suspend(&mut guest), 0);
    assert!(guest.cpu.halted && guest.xen.is_suspended());
    assert_eq!(*guest.around.ended.lock().unwrap(), Some(sched::reason::SUSPEND));
    // Whatever happens meanwhile: it does not run.
    guest.xen.raise(CONSOLE_PORT);
    guest.xen.nmi();
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert!(guest.cpu.halted);
    // The page is to be written, and becomes no table.
    guest.put(AT, &[0, START_INFO]);
    assert!(guest.xen.resume());
    assert!(!guest.xen.is_suspended() && guest.xen.is_pending(0));
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert!(!guest.cpu.halted);
    let read = |offset: u64| guest.cpu.load(START_INFO * PAGE + offset);
    assert_eq!(read(0x20), RAM);
    assert_eq!(read(0x28), guest.layout.shared_info());
    assert_eq!((read(0x38), read(0x40) as u32), (RAM - 1, STORE_PORT));
    assert_eq!((read(0x48), read(0x50) as u32), (RAM - 2, CONSOLE_PORT));
    // Ports are what they are at the start, masked, and none is pending.
    assert_eq!(guest.shared(std::mem::offset_of!(SharedInfo, pending)), 0);
    assert_eq!(guest.shared(std::mem::offset_of!(SharedInfo, mask)), !0);
    assert_eq!(guest.shared(0) & 0xffff, 1 << 8);
    assert_eq!(*guest.around.timer.lock().unwrap(), None);
    guest.put(AT, &[u64::from(event_channel::virq::TIMER), 0]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_VIRQ, AT]), 0);
    assert_eq!(guest.cpu.load(AT + 8) as u32, CONSOLE_PORT + 1);
    // The old grants are none; its information has its place again, and may have another.
    assert!(guest.xen.map(9, Access::Read).is_err());
    let grants = guest.layout.grants();
    assert_eq!(
        (guest.cpu.load(grants) >> 32, guest.cpu.load(grants + 8) >> 32),
        (RAM - 2, RAM - 1)
    );
    guest.put(AT, &[DATA + 4, 64]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::REGISTER_VCPU_INFO, 0, AT]), 0);
    assert_eq!(
        guest.call(call::VCPU_OP, &[vcpu::op::REGISTER_VCPU_INFO, 0, AT]),
        Errno::Inval.result()
    );
}

#[test]
fn pages_are_held_no_longer_than_that() {
    let mut guest = busy();
    // Nothing maps either page any more: what holds them is the hypervisor.
    let pages = [START_INFO, DATA + 4, BLOCK, ARRAY];
    for page in pages {
        assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[page * PAGE, 0, 0]), 0);
    }
    let pin = |guest: &mut Guest, page: u64, what: u64| {
        guest.put(AT, &[what, page]);
        guest.call(call::MMUEXT_OP, &[AT, 1, 0, 0x7ff0])
    };
    assert_eq!(pin(&mut guest, DATA + 4, 0), Errno::Busy.result());
    // Queues of ports, and grants of another version.
    let ports = |guest: &mut Guest, op: u64, words: &[u64]| {
        guest.put(AT, words);
        guest.call(call::EVENT_CHANNEL_OP, &[op, AT])
    };
    assert_eq!(ports(&mut guest, event_channel::op::INIT_CONTROL, &[BLOCK, 0, 0]), 0);
    assert_eq!(ports(&mut guest, event_channel::op::EXPAND_ARRAY, &[ARRAY]), 0);
    let version = |guest: &mut Guest| {
        guest.put(AT, &[0x7ff0]);
        assert_eq!(guest.call(call::GRANT_TABLE_OP, &[grant_table::op::GET_VERSION, AT, 1]), 0);
        guest.cpu.load(AT) >> 32
    };
    guest.put(AT, &[2]);
    assert_eq!(guest.call(call::GRANT_TABLE_OP, &[grant_table::op::SET_VERSION, AT, 1]), 0);
    assert_eq!(version(&mut guest), 2);
    assert_eq!(pin(&mut guest, BLOCK, 0), Errno::Busy.result());
    assert_eq!(suspend(&mut guest), 0);
    assert_eq!(pin(&mut guest, START_INFO, 0), Errno::Busy.result());
    assert!(guest.xen.resume());
    assert_eq!(version(&mut guest), 1);
    for page in pages {
        guest.put(page * PAGE, &[0; 512]);
        assert_eq!(pin(&mut guest, page, 0), 0, "{page}");
        assert_eq!(pin(&mut guest, page, 4), 0, "{page}");
        assert_eq!(entry(&mut guest, page), 0, "{page}");
    }
}

#[test]
fn a_start_info_that_is_none_is_refused() {
    let mut guest = busy();
    for bad in [RAM, !0, guest::L4, guest.layout.shared_info() / PAGE] {
        guest.put(AT, &[u64::from(sched::reason::SUSPEND)]);
        let result = guest.call(call::SCHED_OP, &[sched::op::SHUTDOWN, AT, bad]);
        assert!((result as i64) < 0, "{bad:#x}");
        assert!(!guest.cpu.halted && !guest.xen.is_suspended());
    }
}

#[test]
fn one_that_is_called_off_goes_on_at_once() {
    let mut guest = busy();
    guest.xen.call_off(true);
    let parts = guest.save();
    guest.xen.call_off(false);
    guest.restore(parts).unwrap();
    assert_eq!(suspend(&mut guest), 1);
    assert!(!guest.cpu.halted && !guest.xen.is_suspended());
    guest.xen.raise(CONSOLE_PORT);
    assert_ne!(guest.shared(std::mem::offset_of!(SharedInfo, pending)), 0, "it has its ports");
    assert_eq!(suspend(&mut guest), 0, "once");
}

#[test]
fn a_suspended_domain_is_saved() {
    let mut guest = busy();
    assert_eq!(suspend(&mut guest), 0);
    let parts = guest.save();
    assert!(guest.xen.resume());
    guest.restore(parts.clone()).unwrap();
    assert_eq!(guest.save(), parts);
    assert!(guest.xen.is_suspended());
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert!(guest.cpu.halted);
    assert!(guest.xen.resume());
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert!(!guest.cpu.halted);
}

/// The area's state, when it was entered and the four times.
fn area(guest: &Guest, at: u64) -> (u64, u64, [u64; 4]) {
    let word = |n: u64| guest.cpu.load(at + n * 8);
    (word(0) & 0xffff_ffff, word(1), [word(2), word(3), word(4), word(5)])
}

#[test]
fn run_states_are_kept() {
    let mut guest = busy();
    let start = 1000;
    // Across two pages.
    let at = (DATA + 9) * PAGE - 24;
    guest.put(AT, &[at]);
    guest.now.store(start + 100, SeqCst);
    let register = vcpu::op::REGISTER_RUNSTATE_MEMORY_AREA;
    assert_eq!(guest.call(call::VCPU_OP, &[register, 0, AT]), 0);
    assert_eq!(area(&guest, at), (runstate::RUNNING.into(), start, [100, 0, 0, 0]));
    // Remote readers see whether it is being written.
    assert_eq!(guest.call(call::VM_ASSIST, &[0, 5]), 0);
    guest.now.store(start + 300, SeqCst);
    guest.put(AT, &[7]);
    guest.put(AT + 64, &[AT, 1, 0]);
    assert_eq!(guest.call(call::SCHED_OP, &[sched::op::POLL, AT + 64]), 0);
    assert_eq!(area(&guest, at), (runstate::BLOCKED.into(), start + 300, [300, 0, 0, 0]));
    assert_eq!(area(&guest, at).1 & RUNSTATE_UPDATE, 0);
    // It was not told that its thread waited, and then that it did for 40 ns.
    guest.xen.delayed(0, 5000);
    guest.now.store(start + 500, SeqCst);
    assert!(guest.xen.counts_delay(0) && !guest.xen.counts_delay(1));
    guest.xen.delayed(0, 5040);
    assert_eq!(area(&guest, at), (runstate::BLOCKED.into(), start + 500, [300, 40, 160, 0]));
    let parts = guest.save();
    guest.restore(parts.clone()).unwrap();
    assert_eq!(guest.save(), parts);
    guest.now.store(start + 600, SeqCst);
    let info = AT + 256;
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::GET_RUNSTATE_INFO, 1, info]), 0);
    assert_eq!(area(&guest, info), (runstate::OFFLINE.into(), start, [0, 0, 0, 600]));
    // Where the kernel itself may not write any more, nothing is written.
    let page = at / PAGE * PAGE;
    let elsewhere = [60 * PAGE, page | P | US | RW, 0];
    assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &elsewhere), 0);
    assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[page, page | P | US, 0]), 0);
    guest.now.store(start + 700, SeqCst);
    guest.xen.delayed(0, 5050);
    assert_eq!(area(&guest, at).1, start + 500);
    assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[page, page | P | RW | US, 0]), 0);
    guest.put(AT, &[0]);
    assert_eq!(guest.call(call::VCPU_OP, &[register, 0, AT]), 0, "none any more");
    assert!(!guest.xen.counts_delay(0));
}

#[test]
fn the_time_is_copied_whenever_the_clocks_are_told() {
    let mut guest = busy();
    let at = (DATA + 9) * PAGE;
    guest.put(AT, &[at]);
    let register = vcpu::op::REGISTER_VCPU_TIME_MEMORY_AREA;
    assert_eq!(guest.call(call::VCPU_OP, &[register, 0, AT]), 0);
    assert_eq!((guest.cpu.load(at) as u32, guest.cpu.load(at + 16)), (2, 1000));
    guest.now.store(7000, SeqCst);
    guest.xen.start_time();
    assert_eq!((guest.cpu.load(at) as u32, guest.cpu.load(at + 16)), (4, 7000));
    let parts = guest.save();
    guest.restore(parts).unwrap();
    guest.put(AT, &[0]);
    assert_eq!(guest.call(call::VCPU_OP, &[register, 0, AT]), 0);
    guest.now.store(8000, SeqCst);
    guest.xen.start_time();
    assert_eq!(guest.cpu.load(at + 16), 7000, "it is the kernel's again");
}

/// A handler in the trap table, and the stack that it is entered with.
fn handles_nmi(guest: &mut Guest, address: u64) {
    let trap = TrapInfo { vector: 2, flags: 4, cs: 0xe033, padding: 0, address };
    guest.put(
        AT,
        &[u64::from(trap.vector) | u64::from(trap.flags) << 8 | 0xe033 << 16, address, 0, 0],
    );
    assert_eq!(guest.call(call::SET_TRAP_TABLE, &[AT]), 0);
}

#[test]
fn an_nmi_enters_the_kernel_once_until_it_returns() {
    let mut guest = busy();
    guest.xen.nmi();
    let rip = guest.cpu.regs.rip;
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert_eq!(guest.cpu.regs.rip, rip, "nobody takes it yet");
    handles_nmi(&mut guest, 0x7000);
    assert_eq!(guest.cpu.regs.rip, 0x7000, "as soon as somebody does");
    // A second one waits for IRET, in saved state too.
    guest.xen.nmi();
    guest.cpu.regs.rip = 0x7100;
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert_eq!(guest.cpu.regs.rip, 0x7100);
    let parts = guest.save();
    guest.restore(parts.clone()).unwrap();
    assert_eq!(guest.save(), parts);
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert_eq!(guest.cpu.regs.rip, 0x7100);
    let frame = (DATA + 6) * PAGE;
    guest.put(frame, &[0, 0, 0, 0, 0x8000, 0xe030, 0x200, (DATA + 8) * PAGE, 0xe02b]);
    guest.cpu.regs.gpr[x86_defs::gpr::RSP] = frame;
    guest.cpu.regs.gpr[RAX] = call::IRET;
    let trap = Trap { cause: Cause::Syscall, next: 0x7102 };
    assert_eq!(guest.xen.trap(0, trap, &mut guest.cpu), Flow::Continue);
    assert_eq!(guest.cpu.regs.rip, 0x7000);
    // What was interrupted: the place that IRET returned to.
    let pushed = guest.cpu.load(guest.cpu.regs.gpr[x86_defs::gpr::RSP] + 16);
    assert_eq!(pushed, 0x8000);
}

#[test]
fn a_vcpu_sends_one_to_another_and_to_itself() {
    let mut guest = busy();
    handles_nmi(&mut guest, 0x7000);
    let send = vcpu::op::SEND_NMI;
    assert_eq!(guest.call(call::VCPU_OP, &[send, 0, 1]), Errno::Inval.result());
    assert_eq!(guest.call(call::VCPU_OP, &[send, 9, 0]), Errno::NoEnt.result());
    assert_eq!(guest.call(call::VCPU_OP, &[send, 1, 0]), 0);
    assert!(guest.xen.is_pending(1));
    // One that waits is woken.
    guest.put(AT, &[AT + 64, 1, 0]);
    guest.put(AT + 64, &[7]);
    assert_eq!(guest.call(call::SCHED_OP, &[sched::op::POLL, AT]), 0);
    assert!(guest.cpu.halted);
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert!(guest.cpu.halted);
    guest.xen.nmi();
    assert_eq!(asked(&mut guest), Flow::Continue);
    assert!(!guest.cpu.halted);
    assert_eq!(guest.cpu.regs.rip, 0x7000);
}
