//! Hypercalls as a kernel makes them, and as one that means harm does.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use guest::{DATA, Guest, L4, RAM};
use guest_mem::PAGE;
use proptest::prelude::*;
use std::sync::atomic::Ordering::SeqCst;
use x86_defs::paging::{ADDRESS, P, RW, US};
use xen_abi::{errno::Errno, event_channel, hypercall as call, sched, vcpu, xen::SharedInfo};
use xen_pv::Layout;

#[test]
fn what_is_not_there_says_so() {
    let mut guest = Guest::new();
    assert_eq!(guest.call(999, &[]), Errno::NoSys.result());
    assert_eq!(guest.call(call::XEN_VERSION, &[0, 0]) >> 16, 4);
    assert_eq!(guest.xen.unknown(), [((999, 0), 1)]);
    let bad = 0x5000_0000;
    for number in [call::MMU_UPDATE, call::MMUEXT_OP, call::MULTICALL] {
        assert_eq!(guest.call(number, &[bad, 1, 0, 0x7ff0]), Errno::Fault.result(), "{number}");
    }
    // The hypervisor's addresses are nobody's to read or write.
    let own = Layout::gdt_linear(0) + 14 * PAGE;
    assert!(guest.cpu.walk(own, false).is_some());
    assert_eq!(guest.call(call::CONSOLE_IO, &[0, 8, own]), Errno::Fault.result());
    guest.put(DATA * PAGE, &[u64::from_le_bytes(*b"hello...")]);
    assert_eq!(guest.call(call::CONSOLE_IO, &[0, 5, DATA * PAGE]), 0);
    assert_eq!(*guest.around.said.lock().unwrap(), b"hello");
}

#[test]
fn a_long_list_goes_on_where_it_was() {
    let mut guest = Guest::new();
    // 5,000 updates of the same entry, from a list that is 20 pages long.
    let entry = (L4 + 3) * PAGE + 60 * 8;
    for n in 0..5000 {
        let value = (60 * PAGE) | P | if n % 2 == 0 { RW } else { 0 };
        guest.put(DATA * PAGE + n * 16, &[entry, value]);
    }
    let done = (DATA + 30) * PAGE;
    assert_eq!(guest.call(call::MMU_UPDATE, &[DATA * PAGE, 5000, done, 0x7ff0]), 0);
    assert_eq!(guest.cpu.load(done) as u32, 5000);
    assert_eq!(guest.cpu.load(entry) & (P | RW), P);
    // The same in a multicall, whose entry changes on the way.
    let list = (DATA + 31) * PAGE;
    guest.put(list, &[call::MMU_UPDATE, 1, DATA * PAGE, 4999, done, 0x7ff0, 0, 0]);
    assert_eq!(guest.call(call::MULTICALL, &[list, 1]), 0);
    assert_eq!((guest.cpu.load(list + 8), guest.cpu.load(done) as u32), (0, 4999));
    assert_eq!(guest.cpu.load(entry) & (P | RW), P | RW);
}

#[test]
fn a_timer_and_a_limit_do_not_disturb_each_other() {
    let mut guest = Guest::new();
    let at = DATA * PAGE;
    guest.put(at, &[u64::from(event_channel::virq::TIMER), 0]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_VIRQ, at]), 0);
    let port = guest.cpu.load(at + 8) as u32;
    guest.put(at, &[5000, 0]);
    assert_eq!(guest.call(call::VCPU_OP, &[vcpu::op::SET_SINGLESHOT_TIMER, 0, at]), 0);
    // Polls for a port until 2000, which is before the timer.
    guest.put(at + 64, &[7]);
    guest.put(at, &[at + 64, 1, 2000]);
    assert_eq!(guest.call(call::SCHED_OP, &[sched::op::POLL, at]), 0);
    assert!(guest.cpu.halted);
    assert_eq!(*guest.around.timer.lock().unwrap(), Some(2000));
    guest.now.store(2500, SeqCst);
    guest.xen.timer(0);
    let pending = std::mem::offset_of!(SharedInfo, pending);
    assert_eq!(guest.shared(pending), 0, "the timer is not due");
    assert_eq!(*guest.around.timer.lock().unwrap(), Some(5000));
    assert!(guest.xen.is_pending(0), "it sees that its time is over");
    guest.now.store(5000, SeqCst);
    guest.xen.timer(0);
    assert_eq!(guest.shared(pending), 1 << port);
    assert_eq!(*guest.around.timer.lock().unwrap(), None);
}

/// Numbers that mean something, or almost.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..40,
        (0..RAM + 2, 0u64..520).prop_map(|(frame, word)| frame * PAGE + word * 8),
        (0..RAM + 2).prop_map(|frame| (frame * PAGE) | P | RW | US),
        Just(Layout::gdt_linear(0)),
        Just(0x7ff0),
        Just(!0),
        any::<u64>(),
    ]
}

/// An entry that maps some frame for writing.
fn entry() -> impl Strategy<Value = u64> {
    (0..RAM + 2).prop_map(|frame| (frame * PAGE) | P | RW | US)
}

/// What lists are made of.
fn word() -> impl Strategy<Value = u64> {
    let of_table = (L4..L4 + 4, 0u64..64).prop_map(|(table, word)| table * PAGE + word * 8);
    prop_oneof![of_table, entry(), argument()]
}

type Call = (u64, [u64; 5]);

/// Any call, and more often those that change tables.
fn calls() -> impl Strategy<Value = Call> {
    let list = DATA * PAGE;
    let page = || (0..RAM).prop_map(|frame| frame * PAGE);
    prop_oneof![
        (0u64..42, prop::array::uniform5(argument())),
        (page(), entry())
            .prop_map(|(at, value)| (call::UPDATE_VA_MAPPING, [at, value, 0, 0x7ff0, 0])),
        (0u64..16, 0u64..8)
            .prop_map(move |(at, count)| (call::MMU_UPDATE, [list + at * 8, count, 0, 0x7ff0, 0])),
        (0u64..16, 0u64..8)
            .prop_map(move |(at, count)| (call::MMUEXT_OP, [list + at * 8, count, 0, 0x7ff0, 0])),
    ]
}

proptest! {
    /// Nothing that a kernel asks for panics or hangs; tables stay mapped for reading only.
    #[test]
    fn noise_ends_the_domain_at_most(
        words in prop::collection::vec(word(), 256),
        calls in prop::collection::vec(calls(), 1..40)
    ) {
        let mut guest = Guest::new();
        guest.put(DATA * PAGE, &words);
        for (number, args) in calls {
            guest.call(number, &args);
            if guest.around.ended.lock().unwrap().is_some() {
                break;
            }
            // While the tables of the start are in use, none of them is writable.
            let root = guest.cpu.root & ADDRESS;
            for linear in (0..RAM * PAGE).step_by(PAGE as usize) {
                if let Some(at) = guest.cpu.walk(linear, true) {
                    prop_assert_ne!(at & ADDRESS, root, "a table is writable at {:#x}", linear);
                }
            }
        }
    }
}
