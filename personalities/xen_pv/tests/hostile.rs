//! A kernel that wants more than it has: each attempt has its error, and changes nothing.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use guest::{DATA, Guest, L4, RAM};
use guest_mem::PAGE;
use saved_state::{Part, Reader, Writer};
use std::mem::offset_of;
use x86_defs::paging::{P, RW, US};
use xen_abi::{
    errno::Errno,
    event_channel::{self, PORTS_2LEVEL},
    hypercall as call,
    vcpu::{self, GuestContext},
};
use zerocopy::{FromZeros, IntoBytes};

const AT: u64 = DATA * PAGE;
const SELF: u64 = 0x7ff0;

fn save(guest: &Guest) -> Vec<Part> {
    let mut writer = Writer::default();
    guest.xen.save(&mut writer);
    writer.finish()
}

fn mmuext(guest: &mut Guest, command: u64, frame: u64) -> u64 {
    guest.put(AT, &[command, frame, 0]);
    guest.call(call::MMUEXT_OP, &[AT, 1, 0, SELF])
}

fn map(guest: &mut Guest, linear: u64, entry: u64) -> u64 {
    guest.call(call::UPDATE_VA_MAPPING, &[linear, entry, 0, SELF])
}

/// Zero frames that nothing maps for writing.
fn unmapped(guest: &mut Guest, frames: &[u64]) {
    for frame in frames {
        assert_eq!(map(guest, frame * PAGE, 0), 0);
    }
}

#[test]
fn an_address_that_looks_like_the_hypervisors_is_none() {
    let mut guest = Guest::new();
    // Slot 257 of the table, by an address that no processor takes: bits 48 to 63 are not bit 47.
    for base in [0x0000_8080_0000_0000u64, 0x1234_8080_0000_0000] {
        let at = base + 14 * PAGE;
        assert!(guest.cpu.walk(at, true).is_some(), "the test's processor would");
        let own = guest.cpu.load(guest.cpu.walk(at, true).unwrap());
        for (number, args) in [
            (call::CONSOLE_IO, [0, 8, at]),
            (call::XEN_VERSION, [1, at, 0]),
            (call::MEMORY_OP, [12, at, 0]),
            (call::MULTICALL, [at, 1, 0]),
        ] {
            assert_eq!(guest.call(number, &args), Errno::Fault.result(), "{number}");
        }
        assert_eq!(map(&mut guest, at, 0), Errno::Inval.result());
        guest.put(AT, &[13, base, 1]);
        assert_eq!(guest.call(call::MMUEXT_OP, &[AT, 1, 0, SELF]), Errno::Inval.result());
        assert_eq!(guest.cpu.load(guest.cpu.walk(at, true).unwrap()), own);
    }
}

#[test]
fn frame_0_is_no_root() {
    let mut guest = Guest::new();
    unmapped(&mut guest, &[0]);
    guest.put(L4 * PAGE + 8, &[0]);
    // NEW_BASEPTR.
    assert_eq!(mmuext(&mut guest, 5, 0), Errno::Inval.result());
    assert_eq!(guest.cpu.root, L4 * PAGE);
    // As a user's root it is none.
    assert_eq!(mmuext(&mut guest, 15, 0), 0);
    assert_eq!(map(&mut guest, 0, P | RW | US), 0, "it is a page as others");
}

#[test]
fn a_state_in_which_a_vcpu_has_no_tables_is_refused() {
    let guest = Guest::new();
    let mut parts = save(&guest);
    let zero = |part: &mut Part| {
        let mut value: ciborium::Value = ciborium::from_reader(&*part.payload).unwrap();
        for (key, value) in value.as_map_mut().unwrap() {
            if key.as_text() == Some("kernel_root") {
                *value = 0.into();
            }
        }
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        part.payload = bytes;
    };
    let restore = |parts: Vec<Part>| {
        guest.xen.restore(&mut Reader::new(parts).unwrap()).map_err(|error| error.to_string())
    };
    restore(parts.clone()).unwrap();
    zero(parts.iter_mut().find(|part| part.kind == "xen-vcpu" && part.instance == 0).unwrap());
    assert!(restore(parts).unwrap_err().contains("no tables"));
}

#[test]
fn a_context_that_no_vcpu_can_begin_with_is_refused() {
    let mut guest = Guest::new();
    let good = || {
        let mut context = GuestContext::new_zeroed();
        context.control[3] = L4 * PAGE;
        context
    };
    let bad: [fn(&mut GuestContext); 9] = [
        |context| context.user_regs.rip = 1 << 47,
        |context| context.event_callback = 1 << 60,
        |context| context.failsafe_callback = 1 << 60,
        |context| context.syscall_callback = 1 << 60,
        |context| context.fs_base = 1 << 50,
        |context| context.gs_base_kernel = 1 << 50,
        |context| context.traps[14].address = 0x8000_0000_0000,
        |context| context.gdt_entries = 8192,
        |context| context.control[3] = 5,
    ];
    let initialise = |guest: &mut Guest, context: &GuestContext| {
        guest.cpu.memory.write(AT, context.as_bytes()).unwrap();
        guest.call(call::VCPU_OP, &[vcpu::op::INITIALISE, 1, AT])
    };
    for (n, change) in bad.iter().enumerate() {
        let mut context = good();
        change(&mut context);
        assert_eq!(initialise(&mut guest, &context), Errno::Inval.result(), "{n}");
    }
    assert_eq!(initialise(&mut guest, &good()), 0);
    assert_eq!(initialise(&mut guest, &good()), Errno::Exist.result());
}

#[test]
fn ports_have_an_end_and_come_back() {
    let mut guest = Guest::new();
    // A port that cannot be told is none: where the answer goes is read, but not written.
    let read_only = (DATA + 1) * PAGE;
    guest.put(read_only, &[SELF]);
    assert_eq!(map(&mut guest, read_only, read_only | P | US), 0);
    for _ in 0..2 * PORTS_2LEVEL {
        let result =
            guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::ALLOC_UNBOUND, read_only]);
        assert_eq!(result, Errno::Fault.result());
    }
    let mut bound = 0;
    loop {
        guest.put(AT, &[0]);
        match guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_IPI, AT]) {
            0 => bound += 1,
            error => {
                assert_eq!(error, Errno::NoSpc.result());
                break;
            }
        }
    }
    // 0, xenstore's and the console's are others.
    assert_eq!(bound, PORTS_2LEVEL - 3);
    let close = |guest: &mut Guest, port: u64| {
        guest.put(AT, &[port]);
        guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::CLOSE, AT])
    };
    for port in 1..u64::from(PORTS_2LEVEL) {
        assert_eq!(close(&mut guest, port), 0);
        assert_eq!(close(&mut guest, port), Errno::Inval.result());
    }
    for port in [0, u64::from(PORTS_2LEVEL), 0xffff_ffff] {
        assert_eq!(close(&mut guest, port), Errno::Inval.result());
        guest.xen.raise(port as u32);
    }
    guest.put(AT, &[0]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[event_channel::op::BIND_IPI, AT]), 0);
}

/// Pages and tables of other domains are not this one's to change, nor is their memory to be asked for.
#[test]
fn other_domains_are_not_its_own() {
    let mut guest = Guest::new();
    let (perm, srch) = (Errno::Perm.result(), Errno::Srch.result());
    // A flush, and an entry of the list of frames.
    for (foreign, flush, update) in [
        (SELF, 0, 0),
        (0, perm, perm),
        (1, srch, srch),
        (2, srch, srch),
        (0x7ff1, perm, perm),
        (0x7ff4, srch, srch),
        (SELF | 2 << 16, 0, 0),
        (SELF | 1 << 16, 0, perm),
        (SELF | 3 << 16, 0, Errno::Inval.result()),
    ] {
        guest.put(AT, &[6, 0, 0]);
        assert_eq!(guest.call(call::MMUEXT_OP, &[AT, 1, 0, foreign]), flush, "{foreign:#x}");
        guest.put(AT, &[(DATA * PAGE) | 1, DATA]);
        assert_eq!(guest.call(call::MMU_UPDATE, &[AT, 1, 0, foreign]), update, "{foreign:#x}");
        // The same in a multicall.
        guest.put(AT + 64, &[call::MMU_UPDATE, 1, AT, 1, 0, foreign, 0, 0]);
        assert_eq!(guest.call(call::MULTICALL, &[AT + 64, 1]), 0);
        assert_eq!(guest.cpu.load(AT + 72), update, "{foreign:#x}");
    }
    for (domain, result) in [(SELF, RAM), (1, RAM), (0, perm), (2, srch)] {
        guest.put(AT, &[domain]);
        assert_eq!(guest.call(call::MEMORY_OP, &[3, AT]), result, "{domain:#x}");
        assert_eq!(guest.call(call::MEMORY_OP, &[4, AT]), result, "{domain:#x}");
    }
    for (domain, result) in [(SELF, 0), (1, 0), (0, perm), (2, srch)] {
        guest.put(AT, &[domain]);
        let alloc = [event_channel::op::ALLOC_UNBOUND, AT];
        assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &alloc), result, "{domain:#x}");
        guest.put(AT, &[AT + 64, 0, 0, domain]);
        assert_eq!(guest.call(call::MEMORY_OP, &[1, AT]), result, "{domain:#x}");
    }
}

/// Whoever serves xenstore and the console writes what the domain asks for into its rings: as a page
/// table, one would be the domain's to fill.
#[test]
fn a_ring_becomes_nothing_else() {
    let mut guest = Guest::new();
    let busy = Errno::Busy.result();
    let refused = |guest: &mut Guest, ring: u64, what: &str| {
        assert_eq!(mmuext(guest, 0, ring), busy, "{what}: pinned");
        guest.put(AT, &[ring]);
        assert_eq!(guest.call(call::SET_GDT, &[AT, 512]), busy, "{what}: descriptors");
        let upper = (L4 + 1) * PAGE + 8;
        guest.put(AT, &[upper, (ring * PAGE) | P | RW | US]);
        assert_eq!(guest.call(call::MMU_UPDATE, &[AT, 1, 0, SELF]), busy, "{what}: linked");
    };
    for ring in [RAM - 1, RAM - 2] {
        assert_eq!(map(&mut guest, ring * PAGE, 0), 0);
        refused(&mut guest, ring, "at first");
    }
    let parts = save(&guest);
    guest.xen.restore(&mut Reader::new(parts).unwrap()).unwrap();
    for ring in [RAM - 1, RAM - 2] {
        refused(&mut guest, ring, "restored");
        // Given back, it is nobody else's, nor does the host take it.
        guest.put(ring * PAGE, &[ring]);
        guest.put(AT, &[AT + 64, 1, 0, SELF]);
        guest.put(AT + 64, &[ring]);
        assert_eq!(guest.call(call::MEMORY_OP, &[1, AT]), 1);
        guest.put(AT, &[AT + 64, 1, 0, SELF]);
        assert_eq!(guest.call(call::MEMORY_OP, &[6, AT]), 0);
        assert_eq!(guest.cpu.load(ring * PAGE), ring);
    }
    let parts = save(&guest);
    guest.xen.restore(&mut Reader::new(parts.clone()).unwrap()).unwrap();
    assert_eq!(save(&guest), parts);
}

/// The host gets what the domain gives back, once nothing maps it any more.
#[test]
fn memory_that_is_given_back_is_the_hosts() {
    let mut guest = Guest::new();
    unmapped(&mut guest, &[50]);
    for frame in [50, 51] {
        guest.put(frame * PAGE + 8, &[frame]);
    }
    let there = |guest: &Guest| [50, 51].map(|frame| guest.cpu.load(frame * PAGE + 8));
    guest.put(AT, &[AT + 64, 2, 0, SELF]);
    guest.put(AT + 64, &[50, 51]);
    assert_eq!(guest.call(call::MEMORY_OP, &[1, AT]), 2);
    assert_eq!(there(&guest), [0, 51], "one is mapped still");
    unmapped(&mut guest, &[51]);
    assert_eq!(there(&guest), [0, 0]);
}

/// What a domain has follows what it gives back, once nothing maps it any more.
#[test]
fn a_domain_has_what_it_has_not_given_back() {
    let mut guest = Guest::new();
    unmapped(&mut guest, &[50]);
    let memory = |guest: &mut Guest, operation: u64, frames: &[u64]| {
        guest.put(AT, &[AT + 64, frames.len() as u64, 0, SELF]);
        guest.put(AT + 64, frames);
        guest.call(call::MEMORY_OP, &[operation, AT])
    };
    let now = |guest: &mut Guest| {
        guest.put(AT, &[SELF]);
        [3, 4].map(|operation| guest.call(call::MEMORY_OP, &[operation, AT]))
    };
    assert_eq!(now(&mut guest), [RAM, RAM]);
    assert_eq!(memory(&mut guest, 1, &[50, 51]), 2);
    assert_eq!(now(&mut guest), [RAM - 1, RAM], "one is mapped still");
    guest.xen.restore(&mut Reader::new(save(&guest)).unwrap()).unwrap();
    assert_eq!(now(&mut guest), [RAM - 1, RAM]);
    unmapped(&mut guest, &[51]);
    assert_eq!(now(&mut guest), [RAM - 2, RAM]);
    assert_eq!(memory(&mut guest, 6, &[51, 50]), 2);
    assert_eq!(now(&mut guest), [RAM, RAM]);
    assert_eq!(memory(&mut guest, 6, &[50]), 0);
    assert_eq!(now(&mut guest), [RAM, RAM]);
}

/// How often the vCPU comes back before it is done.
fn slices(guest: &mut Guest, number: u64, args: &[u64]) -> u32 {
    use engine::{Cause, Flow, Trap};
    use x86_defs::gpr::{R10, RAX, RDI, RDX, RSI};
    let rip = guest.cpu.regs.rip;
    guest.cpu.regs.gpr[RAX] = number;
    for (register, value) in [RDI, RSI, RDX, R10].into_iter().zip(args) {
        guest.cpu.regs.gpr[register] = *value;
    }
    for slice in 1.. {
        let trap = Trap { cause: Cause::Syscall, next: rip + 2 };
        let flow = guest.xen.trap(0, trap, &mut guest.cpu);
        assert_eq!(flow, Flow::Continue);
        if guest.cpu.regs.rip != rip {
            return slice;
        }
    }
    0
}

/// A multicall of what is dear comes back in between, so that its vCPU can be stopped.
#[test]
fn a_multicall_is_not_for_ever() {
    let mut guest = Guest::new();
    // 24 pages of calls, of which each asks 16 times that all TLBs forget all.
    let (ops, list) = ((DATA + 30) * PAGE, AT);
    for n in 0..16 {
        guest.put(ops + n * 24, &[10, 0, 0]);
    }
    let count = 24 * PAGE / 64;
    for n in 0..count {
        guest.put(list + n * 64, &[call::MMUEXT_OP, 1, ops, 16, 0, SELF, 0, 0]);
    }
    let flushes = count * 16;
    let most = u64::from(slices(&mut guest, call::MULTICALL, &[list, count]));
    assert!(most >= flushes / 2048, "{flushes} flushes in {most} slices");
    assert_eq!(guest.cpu.load(list + (count - 1) * 64 + 8), 0);
    // Pages that are given back and taken again, which are cleared.
    let (reservation, extents) = (ops, ops + 64);
    let frames: Vec<u64> = (50..58).collect();
    unmapped(&mut guest, &frames);
    guest.put(reservation, &[extents, frames.len() as u64, 0, SELF]);
    guest.put(extents, &frames);
    for n in 0..count {
        guest.put(list + n * 64, &[call::MEMORY_OP, 1, [1, 6][n as usize % 2], reservation]);
    }
    let most = slices(&mut guest, call::MULTICALL, &[list, count]);
    assert!(most > 3, "{} pages cleared in {most} slices", count * 4);
}

#[test]
fn no_code_of_64_and_32_bits() {
    let mut guest = Guest::new();
    // A table of descriptors with one that has both L and D.
    let frame = DATA + 2;
    unmapped(&mut guest, &[frame]);
    let code = |flags: u64| 0x000f_fb00_0000_ffff | flags << 52;
    guest.put(frame * PAGE + 8, &[code(0xa), code(0xe), code(0xc)]);
    guest.put(AT, &[frame]);
    assert_eq!(guest.call(call::SET_GDT, &[AT, 512]), 0);
    let mut iret = |selector: u64| {
        // RAX, R11, RCX, flags, RIP, CS, RFLAGS, RSP, SS.
        let stack = (DATA + 8) * PAGE;
        guest.put(stack, &[1, 0, 0, 0, 0x1000, selector, 0x202, 0x7000, 0xe02b]);
        guest.cpu.regs.gpr[x86_defs::gpr::RSP] = stack;
        guest.call(call::IRET, &[]);
        guest.around.ended.lock().unwrap().take()
    };
    assert_eq!(iret(8 & !3), None, "64 bits");
    assert_eq!(iret(24 & !3), None, "32 bits");
    assert!(iret(16 & !3).is_some(), "both, and there is no failsafe handler");
}

/// Whatever the number, the operation and the pointers are: an error or a result, and the domain's
/// tables stay its own to read only.
#[test]
fn every_hypercall_with_every_operation() {
    let shared = offset_of!(xen_abi::xen::SharedInfo, pending);
    let pointers = [0, AT, AT + PAGE - 4, (RAM - 1) * PAGE + PAGE - 2, RAM * PAGE, !0, !7, 1 << 47];
    for number in (0..64).filter(|number| ![call::IRET, call::SCHED_OP].contains(number)) {
        let mut guest = Guest::new();
        for operation in (0..40).chain([255, 1 << 31, 1 << 32, !0]) {
            for pointer in pointers {
                guest.put(AT, &[!0; 16]);
                for args in [
                    [operation, pointer, 1, SELF],
                    [pointer, operation, 0, SELF],
                    [operation, 0, pointer, SELF],
                    [pointer, 1, pointer, SELF],
                ] {
                    if number == call::MULTICALL && args[1] > 1 << 20 {
                        continue;
                    }
                    let result = guest.call(number, &args) as i64;
                    assert!(result >= -100, "{number} {args:x?}: {result}");
                }
            }
        }
        assert_eq!(*guest.around.ended.lock().unwrap(), None, "{number}");
        for table in L4..L4 + 4 {
            let entry = (table * PAGE) | P | RW | US;
            let result = map(&mut guest, 60 * PAGE, entry);
            assert_eq!(result, Errno::Busy.result(), "after {number}");
        }
        assert_eq!(map(&mut guest, 60 * PAGE, (60 * PAGE) | P | RW | US), 0, "after {number}");
        assert_eq!(guest.call(call::XEN_VERSION, &[0, 0]) >> 16, 4);
        assert_eq!(guest.shared(shared) & 1, 0);
    }
}
