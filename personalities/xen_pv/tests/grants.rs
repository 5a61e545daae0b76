//! Pages and ports that a domain shares with back ends.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use guest::{DATA, Guest, L4, RAM};
use guest_mem::PAGE;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};
use x86_defs::paging::{P, RW, US};
use xen_abi::{errno::Errno, event_channel::op, grant_table::flag, hypercall as call};
use xen_front::{Access, Channel, Domain, Error, Grant, Part};
use xen_pv::XenPv;

const READ: u64 = flag::READING as u64;
const WRITE: u64 = flag::WRITING as u64;
const PERMIT: u64 = flag::PERMIT_ACCESS as u64;
const READONLY: u64 = flag::READONLY as u64;

/// Grants a frame by an entry, with flags, to a domain.
fn grant(guest: &mut Guest, entry: u64, flags: u64, domain: u64, frame: u64) {
    let at = guest.layout.grants() + entry * 8;
    guest.put(at, &[flags | domain << 16 | frame << 32]);
}

fn flags(guest: &Guest, entry: u64) -> u64 {
    guest.cpu.load(guest.layout.grants() + entry * 8) & 0xffff
}

fn domain(guest: &Guest) -> Arc<dyn Domain> {
    let xen: Arc<XenPv> = guest.xen.clone();
    xen
}

/// Asks for an entry of the first table; what that says.
fn map_in_table(guest: &mut Guest, frame: u64, entry: u64) -> u64 {
    guest.call(call::UPDATE_VA_MAPPING, &[frame * PAGE, entry, 0])
}

#[test]
fn a_page_is_in_use_until_it_is_let_go() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    grant(&mut guest, 8, PERMIT, 0, DATA);
    let page = Grant::map(&all, 8, Access::Write).unwrap();
    assert_eq!(flags(&guest, 8), PERMIT | READ | WRITE);
    page.write(16, &7u64.to_le_bytes()).unwrap();
    assert_eq!(guest.cpu.load(DATA * PAGE + 16), 7);
    // A second use of the same, for reading, outlives the first.
    let second = Grant::map(&all, 8, Access::Read).unwrap();
    drop(page);
    assert_eq!(flags(&guest, 8), PERMIT | READ);
    let mut byte = [0];
    second.read(16, &mut byte).unwrap();
    assert_eq!((byte, second.write(16, &[9]).is_err()), ([7], true));
    second.set_index(16, 9);
    assert_eq!(guest.cpu.load(DATA * PAGE + 16), 7);
    drop(second);
    assert_eq!(flags(&guest, 8), PERMIT);
}

#[test]
fn what_is_not_granted_is_not_there() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    let own = guest.layout.grants() / PAGE;
    let shared = guest.layout.shared_info() / PAGE;
    for (flags, to, frame, access, error) in [
        (0, 0, DATA, Access::Read, Error::Grant(9)),
        (2, 0, DATA, Access::Read, Error::Grant(9)),
        (PERMIT, 1, DATA, Access::Read, Error::Grant(9)),
        (PERMIT | READONLY, 0, DATA, Access::Write, Error::ReadOnly(9)),
        (PERMIT, 0, own, Access::Write, Error::Frame(9)),
        (PERMIT, 0, shared, Access::Read, Error::Frame(9)),
        (PERMIT, 0, u64::from(u32::MAX), Access::Read, Error::Frame(9)),
        (PERMIT, 0, L4 + 2, Access::Write, Error::Frame(9)),
    ] {
        grant(&mut guest, 9, flags, to, frame);
        assert_eq!(all.map(9, access).unwrap_err(), error, "{flags:#x} {to} {frame:#x}");
        assert_eq!(self::flags(&guest, 9), flags, "{frame:#x}");
    }
    // The table has one frame so far.
    assert_eq!(all.map(512, Access::Read).unwrap_err(), Error::Grant(512));
    assert_eq!(all.map(u32::MAX, Access::Read).unwrap_err(), Error::Grant(u32::MAX));
    // A table may be read.
    grant(&mut guest, 9, PERMIT, 0, L4);
    drop(Grant::map(&all, 9, Access::Read).unwrap());
}

#[test]
fn a_page_that_a_back_end_writes_is_no_table() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    let table = DATA + 3;
    // Nothing maps it any more.
    assert_eq!(map_in_table(&mut guest, table, 0), 0);
    grant(&mut guest, 8, PERMIT, 0, table);
    let page = Grant::map(&all, 8, Access::Write).unwrap();
    // The domain forgets its entry, which changes nothing.
    grant(&mut guest, 8, 0, 0, 0);
    let at = DATA * PAGE;
    guest.put(at, &[0, table]);
    let pin = |guest: &mut Guest| guest.call(call::MMUEXT_OP, &[at, 1, 0, 0x7ff0]);
    assert_eq!(pin(&mut guest), Errno::Busy.result());
    drop(page);
    assert_eq!(pin(&mut guest), 0);
    assert_eq!(map_in_table(&mut guest, table, (table * PAGE) | P | RW | US), Errno::Busy.result());
    grant(&mut guest, 8, PERMIT, 0, table);
    assert_eq!(all.map(8, Access::Write).unwrap_err(), Error::Frame(8));
}

/// More than are used at the same time, of two pages, 8 bytes each.
fn parts() -> Vec<Part> {
    let part = |n: usize| Part { grant: 8 + n as u32 % 2, offset: n * 100, len: 8 };
    (0..40).map(part).collect()
}

#[test]
fn parts_of_pages_are_copied_in_their_order() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    grant(&mut guest, 8, PERMIT, 0, DATA);
    grant(&mut guest, 9, PERMIT, 0, DATA + 1);
    let bytes: Vec<u8> = (0..320).map(|n| n as u8).collect();
    // In pieces that end elsewhere than the parts do.
    let pieces: Vec<&[u8]> = bytes.chunks(77).collect();
    all.copy_to(&parts(), &pieces).unwrap();
    let third = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    assert_eq!(guest.cpu.load(DATA * PAGE + 200), third);
    let mut back = vec![0; 320];
    all.copy_from(&parts(), &mut back).unwrap();
    assert!(back == bytes);
    // Fewer bytes than the parts have room for.
    all.copy_to(&parts(), &[&[9; 12]]).unwrap();
    all.copy_from(&parts(), &mut back[..20]).unwrap();
    assert_eq!(back[..20], [[9; 12].as_slice(), &bytes[12..20]].concat());
    for entry in [8, 9] {
        assert_eq!(flags(&guest, entry), PERMIT);
    }
}

#[test]
fn what_may_not_be_copied_is_refused_and_nothing_stays_in_use() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    grant(&mut guest, 8, PERMIT, 0, DATA);
    grant(&mut guest, 9, PERMIT, 0, DATA + 1);
    grant(&mut guest, 10, PERMIT | READONLY, 0, DATA + 1);
    grant(&mut guest, 11, PERMIT, 0, L4);
    let with = |part: Part| {
        let mut parts = parts();
        parts[30] = part;
        parts
    };
    let part = |grant, offset, len| Part { grant, offset, len };
    let copy = |parts: &[Part]| {
        let data = vec![1; 8192];
        (all.copy_from(parts, &mut vec![0; 8192]), all.copy_to(parts, &[&data]))
    };
    let both = |error: Error| (Err(error), Err(error));
    assert_eq!(copy(&with(part(12, 0, 8))), both(Error::Grant(12)));
    assert_eq!(copy(&with(part(8, 4090, 7))), both(Error::Range(7, 4090)));
    assert_eq!(copy(&with(part(8, usize::MAX, 7))), both(Error::Range(7, usize::MAX)));
    assert_eq!(copy(&with(part(10, 0, 8))), (Ok(()), Err(Error::ReadOnly(10))));
    // Its tables may be read, as by any mapping.
    assert_eq!(copy(&with(part(11, 0, 8))), (Ok(()), Err(Error::Frame(11))));
    for entry in 8..12 {
        assert_eq!(flags(&guest, entry) & (READ | WRITE), 0, "{entry}");
    }
    // It is a page like any other again.
    let frame = DATA + 1;
    assert_eq!(map_in_table(&mut guest, frame, (frame * PAGE) | P | US), 0);
}

#[test]
fn an_entry_in_use_stays_with_its_frame() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    grant(&mut guest, 8, PERMIT, 0, DATA);
    let page = Grant::map(&all, 8, Access::Write).unwrap();
    grant(&mut guest, 8, PERMIT, 0, DATA + 1);
    assert_eq!(all.map(8, Access::Write).unwrap_err(), Error::Frame(8));
    assert_eq!(page.gpa(), DATA * PAGE);
    drop(page);
    drop(Grant::map(&all, 8, Access::Write).unwrap());
}

#[test]
fn a_port_is_bound_once_and_told_both_ways() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    let at = DATA * PAGE;
    let allocate = |guest: &mut Guest, remote: u64| {
        guest.put(at, &[0x7ff0 | remote << 16]);
        assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[op::ALLOC_UNBOUND, at]), 0);
        (guest.cpu.load(at) >> 32) as u32
    };
    let heard = Arc::new(AtomicU32::new(0));
    let hear = || -> Arc<dyn Fn() + Send + Sync> {
        let heard = heard.clone();
        Arc::new(move || {
            heard.fetch_add(1, SeqCst);
        })
    };
    let others = allocate(&mut guest, 7);
    assert_eq!(all.bind(others, hear()).unwrap_err(), Error::Port(others));
    let port = allocate(&mut guest, 0);
    let send = |guest: &mut Guest| {
        guest.put(at, &[u64::from(port)]);
        guest.call(call::EVENT_CHANNEL_OP, &[op::SEND, at])
    };
    assert_eq!(send(&mut guest), 0);
    let channel = Channel::bind(&all, port, hear()).unwrap();
    assert_eq!(all.bind(port, hear()).unwrap_err(), Error::Port(port));
    assert_eq!(all.bind(RAM as u32 * 100, hear()).unwrap_err(), Error::Port(RAM as u32 * 100));
    assert_eq!((send(&mut guest), heard.load(SeqCst)), (0, 1));
    channel.notify();
    assert_eq!(guest.shared(std::mem::offset_of!(xen_abi::xen::SharedInfo, pending)), 1 << port);
    drop(channel);
    assert_eq!((send(&mut guest), heard.load(SeqCst)), (0, 1));
    // What the domain closes is gone for the back end, too.
    let channel = Channel::bind(&all, port, hear()).unwrap();
    guest.put(at, &[u64::from(port)]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[op::CLOSE, at]), 0);
    channel.notify();
    assert_eq!(guest.shared(std::mem::offset_of!(xen_abi::xen::SharedInfo, pending)), 0);
    drop(channel);
    assert_eq!(send(&mut guest), Errno::Inval.result());
}

/// A back end whose port the domain has closed does not take it from who has it now.
#[test]
fn a_port_is_unbound_by_who_has_bound_it() {
    let mut guest = Guest::new();
    let all = domain(&guest);
    let port = |guest: &mut Guest| {
        guest.put(DATA * PAGE, &[0x7ff0, 0]);
        assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[op::ALLOC_UNBOUND, DATA * PAGE]), 0);
        (guest.cpu.load(DATA * PAGE) >> 32) as u32
    };
    let heard = Arc::new(AtomicU32::new(0));
    let hears = || {
        let heard = heard.clone();
        Arc::new(move || {
            heard.fetch_add(1, SeqCst);
        })
    };
    let first = port(&mut guest);
    let old = Channel::bind(&all, first, hears()).unwrap();
    guest.put(DATA * PAGE, &[u64::from(first)]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[op::CLOSE, DATA * PAGE]), 0);
    assert_eq!(port(&mut guest), first);
    let new = Channel::bind(&all, first, hears()).unwrap();
    drop(old);
    guest.put(DATA * PAGE, &[u64::from(first)]);
    assert_eq!(guest.call(call::EVENT_CHANNEL_OP, &[op::SEND, DATA * PAGE]), 0);
    assert_eq!(heard.load(SeqCst), 1);
    drop(new);
}
