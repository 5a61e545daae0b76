//! Event channels by queues.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use guest::{DATA, Guest, L4, RAM};
use guest_mem::PAGE;
use std::mem::offset_of;
use x86_defs::paging::{P, RW, US};
use xen_abi::{
    errno::Errno,
    event_channel::{
        PORTS_2LEVEL,
        fifo::{BUSY, LINKED, MASKED, PENDING},
        op,
    },
    hypercall as call,
    xen::SharedInfo,
};

const AT: u64 = DATA * PAGE;
/// Pages of words, and control blocks of two vCPUs.
const ARRAY: u64 = DATA + 2;
const BLOCK: u64 = DATA + 3;
const SECOND: u64 = BLOCK * PAGE + 0x800;
const FIRST: u64 = BLOCK * PAGE;

fn port_op(guest: &mut Guest, operation: u64, words: &[u64]) -> u64 {
    guest.put(AT, words);
    guest.call(call::EVENT_CHANNEL_OP, &[operation, AT])
}

fn init(guest: &mut Guest, frame: u64, offset: u64, vcpu: u64) -> u64 {
    port_op(guest, op::INIT_CONTROL, &[frame, offset | vcpu << 32, 0])
}

fn ipi(guest: &mut Guest, vcpu: u64) -> u64 {
    assert_eq!(port_op(guest, op::BIND_IPI, &[vcpu]), 0);
    guest.cpu.load(AT) >> 32
}

fn send(guest: &mut Guest, port: u64) {
    assert_eq!(port_op(guest, op::SEND, &[port]), 0);
}

/// Both vCPUs have queues, and no port is masked.
fn queued() -> Guest {
    let mut guest = Guest::new();
    assert_eq!(init(&mut guest, BLOCK, 0, 0), 0);
    assert_eq!(guest.cpu.load(AT + 16), 17, "bits of a link");
    assert_eq!(init(&mut guest, BLOCK, 0x800, 1), 0);
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), 0);
    guest
}

fn word_32(guest: &Guest, at: u64) -> u32 {
    (guest.cpu.load(at & !7) >> ((at & 4) * 8)) as u32
}

fn put_32(guest: &mut Guest, at: u64, value: u32) {
    guest.cpu.memory.write(at, &value.to_le_bytes()).unwrap();
}

fn word(guest: &Guest, port: u64) -> u32 {
    word_32(guest, ARRAY * PAGE + port * 4)
}

fn set_word(guest: &mut Guest, port: u64, value: u32) {
    put_32(guest, ARRAY * PAGE + port * 4, value);
}

/// Queues that are ready, and where one begins.
fn ready(guest: &Guest, block: u64) -> u32 {
    word_32(guest, block)
}

fn head(guest: &Guest, block: u64, priority: u64) -> u64 {
    word_32(guest, block + 8 + priority * 4).into()
}

/// Whether a vCPU was told, which it is not any more.
fn told(guest: &mut Guest, vcpu: u64) -> bool {
    let at = guest.layout.info(vcpu as u32);
    let info = guest.cpu.load(at);
    guest.put(at, &[info & !0xff]);
    info & 0xff != 0
}

#[test]
fn events_come_in_their_order() {
    let mut guest = queued();
    let ports = [(); 3].map(|()| ipi(&mut guest, 0));
    let [a, b, c] = ports;
    for port in ports {
        send(&mut guest, port);
        send(&mut guest, port);
    }
    assert_eq!((ready(&guest, FIRST), head(&guest, FIRST, 7)), (1 << 7, a));
    let linked = PENDING | LINKED;
    assert_eq!([word(&guest, a), word(&guest, b)], [linked | b as u32, linked | c as u32]);
    assert_eq!(word(&guest, c), linked);
    assert!(told(&mut guest, 0) && guest.xen.is_pending(0) && !told(&mut guest, 1));
    // The selector of two levels says nothing.
    assert_eq!(guest.cpu.load(guest.layout.info(0) + 8), 0);
    // The kernel has taken all: the next begins anew.
    put_32(&mut guest, FIRST, 0);
    ports.into_iter().for_each(|port| set_word(&mut guest, port, 0));
    send(&mut guest, b);
    assert_eq!((ready(&guest, FIRST), head(&guest, FIRST, 7)), (1 << 7, b));
    assert!(told(&mut guest, 0));
    // Queues of others.
    let other = ipi(&mut guest, 1);
    assert_eq!(port_op(&mut guest, op::SET_PRIORITY, &[other]), 0);
    send(&mut guest, other);
    assert_eq!((ready(&guest, SECOND), head(&guest, SECOND, 0)), (1, other));
    assert!(told(&mut guest, 1) && !told(&mut guest, 0));
}

#[test]
fn a_masked_port_waits_until_it_is_unmasked() {
    let mut guest = queued();
    let port = ipi(&mut guest, 0);
    set_word(&mut guest, port, MASKED);
    send(&mut guest, port);
    assert_eq!((word(&guest, port), ready(&guest, FIRST)), (MASKED | PENDING, 0));
    assert_eq!(port_op(&mut guest, op::UNMASK, &[port]), 0);
    assert_eq!((word(&guest, port), ready(&guest, FIRST)), (LINKED | PENDING, 1 << 7));
    assert!(told(&mut guest, 0));
    // What is not pending is not linked.
    let other = ipi(&mut guest, 0);
    set_word(&mut guest, other, MASKED);
    assert_eq!(port_op(&mut guest, op::UNMASK, &[other]), 0);
    assert_eq!((word(&guest, other), told(&mut guest, 0)), (0, false));
}

#[test]
fn what_was_pending_before_is_pending_after() {
    let mut guest = Guest::new();
    let (masked, port) = (ipi(&mut guest, 0), ipi(&mut guest, 0));
    send(&mut guest, port);
    send(&mut guest, masked);
    assert!(told(&mut guest, 0));
    assert_eq!(init(&mut guest, BLOCK, 0, 0), 0);
    // One that comes before there are words.
    let late = ipi(&mut guest, 0);
    send(&mut guest, late);
    assert!(!told(&mut guest, 0));
    set_word(&mut guest, masked, MASKED);
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), 0);
    assert_eq!(word(&guest, masked), MASKED | PENDING);
    assert_eq!(
        [word(&guest, port), word(&guest, late)],
        [PENDING | LINKED | late as u32, PENDING | LINKED]
    );
    assert!(told(&mut guest, 0));
    // And only once.
    set_word(&mut guest, late, 0);
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), 0);
    assert_eq!(word(&guest, late), 0);
}

#[test]
fn a_vcpu_without_queues_polls() {
    let mut guest = Guest::new();
    assert_eq!(init(&mut guest, BLOCK, 0, 0), 0);
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), 0);
    let port = ipi(&mut guest, 1);
    send(&mut guest, port);
    assert_eq!((word(&guest, port), told(&mut guest, 1)), (PENDING, false));
    guest.put(AT, &[AT + 64, 1, 0]);
    guest.put(AT + 64, &[port]);
    let poll = |guest: &mut Guest| {
        guest.cpu.halted = false;
        guest.put(AT, &[AT + 64, 1, 0]);
        assert_eq!(guest.call(call::SCHED_OP, &[xen_abi::sched::op::POLL, AT]), 0);
        guest.cpu.halted
    };
    assert!(!poll(&mut guest));
    set_word(&mut guest, port, 0);
    assert!(poll(&mut guest));
}

#[test]
fn a_port_that_is_linked_is_no_other() {
    let mut guest = queued();
    let (first, second) = (ipi(&mut guest, 0), ipi(&mut guest, 0));
    send(&mut guest, first);
    send(&mut guest, second);
    for port in [first, second] {
        assert_eq!(port_op(&mut guest, op::CLOSE, &[port]), 0);
    }
    assert_eq!(word(&guest, second), LINKED, "it is not pending any more");
    let third = ipi(&mut guest, 1);
    assert!(third > second);
    // The kernel takes it out: it may be used again, in another queue. Its old one ends elsewhere.
    set_word(&mut guest, second, 0);
    put_32(&mut guest, FIRST, 0);
    assert_eq!(ipi(&mut guest, 1), second);
    send(&mut guest, second);
    assert_eq!(head(&guest, SECOND, 7), second);
    let fourth = ipi(&mut guest, 0);
    send(&mut guest, fourth);
    assert_eq!((head(&guest, FIRST, 7), ready(&guest, FIRST)), (fourth, 1 << 7));
    assert_eq!(word(&guest, second), PENDING | LINKED, "nothing of another queue follows it");
}

#[test]
fn queues_are_in_pages_of_the_domain_s_own() {
    let mut guest = Guest::new();
    let own = guest.layout.shared_info() / PAGE;
    let bad = Errno::Inval.result();
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), Errno::OpNotSupp.result());
    assert_eq!(port_op(&mut guest, op::SET_PRIORITY, &[1]), Errno::NoSys.result());
    for (frame, offset, vcpu, result) in [
        (BLOCK, 0, 2, Errno::NoEnt.result()),
        (BLOCK, 4, 0, bad),
        (BLOCK, PAGE - 64, 0, bad),
        (BLOCK, 0xffff_fff8, 0, bad),
        (own, 0, 0, bad),
        (guest.layout.m2p() / PAGE, 0, 0, bad),
        (RAM, 0, 0, bad),
        (!0, 0, 0, bad),
        (u64::MAX / PAGE + BLOCK + 1, 0, 0, bad),
        (L4, 0, 0, Errno::Busy.result()),
        (L4 + 3, 0, 0, Errno::Busy.result()),
    ] {
        assert_eq!(init(&mut guest, frame, offset, vcpu), result, "{frame:#x} {offset:#x} {vcpu}");
    }
    // It has two levels still.
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), Errno::OpNotSupp.result());
    assert_eq!(init(&mut guest, BLOCK, PAGE - 72, 0), 0);
    assert_eq!(init(&mut guest, BLOCK, 0, 0), bad, "once");
    for (frame, result) in [(own, bad), (RAM, bad), (!0, bad), (L4 + 1, Errno::Busy.result())] {
        assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[frame]), result, "{frame:#x}");
    }
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), 0);
    for (port, priority) in [(1, 16), (1, 256), (1, 0xffff_ffff), (0, 1), (700, 1)] {
        assert_eq!(port_op(&mut guest, op::SET_PRIORITY, &[port | priority << 32]), bad);
    }
    // None of them becomes a table, or goes to someone else.
    for frame in [ARRAY, BLOCK] {
        assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[frame * PAGE, 0, 0]), 0);
        guest.put(AT, &[0, frame]);
        let pinned = guest.call(call::MMUEXT_OP, &[AT, 1, 0, 0x7ff0]);
        assert_eq!(pinned, Errno::Busy.result());
        guest.put(AT, &[AT + 64, 1, 0, 0x7ff0]);
        guest.put(AT + 64, &[frame]);
        assert_eq!(guest.call(call::MEMORY_OP, &[1, AT]), 1);
        guest.put(AT, &[AT + 64, 1, 0, 0x7ff0]);
        assert_eq!(guest.call(call::MEMORY_OP, &[6, AT]), 0, "it is still in use");
    }
}

#[test]
fn queues_have_more_ports_and_an_end() {
    let mut guest = Guest::new();
    assert_eq!(init(&mut guest, BLOCK, 0, 0), 0);
    for _ in 0..16 {
        assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), 0);
    }
    assert_eq!(port_op(&mut guest, op::EXPAND_ARRAY, &[ARRAY]), Errno::NoSpc.result());
    // As many as there are words; saved with all of them.
    let mut last = 0;
    for _ in PORTS_2LEVEL..PORTS_2LEVEL + 10 {
        last = ipi(&mut guest, 0);
    }
    guest.put(AT, &[0]);
    while guest.call(call::EVENT_CHANNEL_OP, &[op::BIND_IPI, AT]) == 0 {
        last = guest.cpu.load(AT) >> 32;
        guest.put(AT, &[0]);
    }
    assert_eq!(last, 16 * 1024 - 1);
    assert_eq!(port_op(&mut guest, op::BIND_IPI, &[0]), Errno::NoSpc.result());
    guest.restore(guest.save()).unwrap();
}

/// Whatever the words, links and heads are: a call returns, and nothing else changes.
#[test]
fn what_a_kernel_fills_its_queues_with_stays_there() {
    for fill in
        [!0, LINKED, LINKED | 5, LINKED | 0x1_ffff, BUSY | LINKED | 3, BUSY, MASKED | LINKED]
    {
        let mut guest = queued();
        let ports: Vec<u64> = (0..20).map(|n| ipi(&mut guest, n % 2)).collect();
        let rest = |guest: &Guest| -> Vec<u64> {
            let written = [DATA, ARRAY, BLOCK];
            let others = (0..RAM).filter(|frame| !written.contains(frame));
            others
                .flat_map(|frame| (0..512).map(move |n| frame * PAGE + n * 8))
                .map(|at| guest.cpu.load(at))
                .collect()
        };
        let before = rest(&guest);
        for round in 0..4 {
            for (n, port) in ports.iter().enumerate() {
                send(&mut guest, *port);
                assert_eq!(port_op(&mut guest, op::UNMASK, &[*port]), 0);
                let priority = (n as u64 + round) % 16;
                assert_eq!(port_op(&mut guest, op::SET_PRIORITY, &[port | priority << 32]), 0);
                if n as u64 % 3 == round % 3 {
                    for word in 0..1024 {
                        set_word(&mut guest, word, fill);
                    }
                }
            }
            for at in (0..72).step_by(4) {
                put_32(&mut guest, FIRST + at, fill);
            }
        }
        assert!(rest(&guest) == before, "{fill:#x}");
        guest.restore(guest.save()).unwrap();
    }
}

#[test]
fn queues_go_on_in_a_restored_domain() {
    let mut guest = queued();
    let (first, second, third) = (ipi(&mut guest, 0), ipi(&mut guest, 0), ipi(&mut guest, 1));
    assert_eq!(port_op(&mut guest, op::SET_PRIORITY, &[third | 3 << 32]), 0);
    send(&mut guest, first);
    let parts = guest.save();
    guest.restore(parts.clone()).unwrap();
    assert_eq!(guest.save(), parts);
    // Behind the one that was there.
    send(&mut guest, second);
    assert_eq!(word(&guest, first), PENDING | LINKED | second as u32);
    send(&mut guest, third);
    assert_eq!((head(&guest, SECOND, 3), ready(&guest, SECOND)), (third, 1 << 3));
    for frame in [ARRAY, BLOCK] {
        assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[frame * PAGE, 0, 0]), 0);
        guest.put(AT, &[0, frame]);
        let pinned = guest.call(call::MMUEXT_OP, &[AT, 1, 0, 0x7ff0]);
        assert_eq!(pinned, Errno::Busy.result());
    }
}

type Map = Vec<(ciborium::Value, ciborium::Value)>;

#[test]
fn queues_that_cannot_be_are_refused() {
    let mut guest = queued();
    ipi(&mut guest, 0);
    let good = guest.save();
    let changed = |change: &dyn Fn(&mut Map)| {
        let mut parts = good.clone();
        let part = parts.iter_mut().find(|part| part.kind == "xen-domain").unwrap();
        let mut value: ciborium::Value = ciborium::from_reader(&*part.payload).unwrap();
        let map = value.as_map_mut().unwrap();
        let (_, fifo) = map.iter_mut().find(|(key, _)| key.as_text() == Some("fifo")).unwrap();
        change(fifo.as_map_mut().unwrap());
        part.payload.clear();
        ciborium::into_writer(&value, &mut part.payload).unwrap();
        guest.restore(parts)
    };
    changed(&|_| {}).unwrap();
    let field = |map: &mut Map, name: &str| {
        map.iter().position(|(key, _)| key.as_text() == Some(name)).unwrap()
    };
    let array = |frames: &[u64]| {
        let frames: Vec<ciborium::Value> = frames.iter().map(|frame| (*frame).into()).collect();
        changed(&|map| {
            let at = field(map, "array");
            map[at].1 = frames.clone().into();
        })
    };
    for bad in [&[L4][..], &[RAM], &[!0], &[guest.layout.shared_info() / PAGE], &[ARRAY; 17]] {
        assert!(array(bad).is_err(), "{bad:x?}");
    }
    for bad in [L4 * PAGE, BLOCK * PAGE + 4, BLOCK * PAGE + 0xfc0, RAM * PAGE, !7] {
        let result = changed(&|map| {
            let at = field(map, "queues");
            map[at].1.as_array_mut().unwrap()[0].as_array_mut().unwrap()[0] = bad.into();
        });
        assert!(result.is_err(), "{bad:#x}");
    }
    for name in ["ports", "queues"] {
        let result = changed(&|map| {
            let at = field(map, name);
            map[at].1.as_array_mut().unwrap().pop();
        });
        assert!(result.is_err(), "{name}");
    }
    for (index, bad) in [(0, 16), (1, 2), (2, 16)] {
        let result = changed(&|map| {
            let at = field(map, "ports");
            map[at].1.as_array_mut().unwrap()[1].as_array_mut().unwrap()[index] = bad.into();
        });
        assert!(result.is_err(), "{index}");
    }
    changed(&|_| {}).unwrap();
    assert_eq!(guest.shared(offset_of!(SharedInfo, pending)), 0);
    let entry = (L4 * PAGE) | P | RW | US;
    assert_eq!(guest.call(call::UPDATE_VA_MAPPING, &[60 * PAGE, entry, 0]), Errno::Busy.result());
}
