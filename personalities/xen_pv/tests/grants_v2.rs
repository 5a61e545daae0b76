//! Grants whose entries say what may be done, and another table what is done: version 2.

#[expect(dead_code, reason = "other tests use the rest")]
mod guest;

use guest::{DATA, Guest, L4, RAM};
use guest_mem::PAGE;
use saved_state::{Part, Reader, Writer};
use std::sync::Arc;
use x86_defs::paging::{P, RW, US};
use xen_abi::{
    errno::Errno,
    grant_table::{flag, op},
    hypercall as call,
};
use xen_front::{Access, Domain, Error, Grant};
use xen_pv::XenPv;

const AT: u64 = DATA * PAGE;
const SELF: u64 = 0x7ff0;
const READ: u64 = flag::READING as u64;
const WRITE: u64 = flag::WRITING as u64;
const PERMIT: u64 = flag::PERMIT_ACCESS as u64;
const READONLY: u64 = flag::READONLY as u64;
const SUB_PAGE: u64 = flag::SUB_PAGE as u64;

fn table_op(guest: &mut Guest, operation: u64, words: &[u64]) -> u64 {
    guest.put(AT, words);
    guest.call(call::GRANT_TABLE_OP, &[operation, AT, 1])
}

fn set_version(guest: &mut Guest, version: u64) -> (u64, u64) {
    let result = table_op(guest, op::SET_VERSION, &[version]);
    (result, guest.cpu.load(AT) & 0xffff_ffff)
}

/// `GNTST_*`, of a list of so many frames, and what is in the list.
fn frames(guest: &mut Guest, operation: u64, count: u64, domain: u64) -> (i16, Vec<u64>) {
    let list = AT + 64;
    guest.put(list, &[0; 40]);
    let (words, status) = match operation {
        op::SETUP_TABLE => ([domain | count << 32, 0, list], 64),
        _ => ([count | domain << 32, list, 0], 48),
    };
    assert_eq!(table_op(guest, operation, &words), 0);
    let status = (guest.cpu.load(AT + status / 64 * 8) >> (status % 64)) as i16;
    (status, (0..count.min(40)).map(|n| guest.cpu.load(list + n * 8)).collect())
}

fn domain(guest: &Guest) -> Arc<dyn Domain> {
    let xen: Arc<XenPv> = guest.xen.clone();
    xen
}

/// A domain with such entries.
fn second() -> Guest {
    let mut guest = Guest::new();
    assert_eq!(set_version(&mut guest, 2), (0, 2));
    guest
}

fn grant(guest: &mut Guest, entry: u64, header: u64, frame: u64) {
    let at = guest.layout.grants() + entry * 16;
    guest.put(at, &[header, frame]);
}

fn entry(guest: &Guest, number: u64) -> [u64; 2] {
    [0, 8].map(|n| guest.cpu.load(guest.layout.grants() + number * 16 + n))
}

fn status(guest: &Guest, entry: u64) -> u64 {
    let at = guest.layout.grant_status() + entry * 2;
    guest.cpu.load(at & !7) >> ((at & 7) * 8) & 0xffff
}

#[test]
fn a_table_of_another_version_has_what_was_reserved() {
    let mut guest = Guest::new();
    let first = guest.layout.grants();
    guest.put(first + 2 * 8, &[(PERMIT | READ) | 7 << 16 | 0x123 << 32]);
    guest.put(first + 100 * 8, &[PERMIT | 5 << 32]);
    assert_eq!(frames(&mut guest, op::GET_STATUS_FRAMES, 1, SELF).0, -1);
    for (version, now) in [(1, (0, 1)), (0, (Errno::Inval.result(), 1)), (2, (0, 2)), (2, (0, 2))] {
        assert_eq!(set_version(&mut guest, version), now);
    }
    assert_eq!(set_version(&mut guest, 3), (Errno::Inval.result(), 2));
    assert_eq!(table_op(&mut guest, op::GET_VERSION, &[SELF]), 0);
    assert_eq!(guest.cpu.load(AT), SELF | 2 << 32);
    // The console's, xenstore's, the kernel's; nothing that was behind them.
    assert_eq!(entry(&guest, 0), [PERMIT, RAM - 2]);
    assert_eq!(entry(&guest, 1), [PERMIT, RAM - 1]);
    assert_eq!(entry(&guest, 2), [PERMIT | 7 << 16, 0x123]);
    for number in 3..256 {
        assert_eq!((entry(&guest, number), status(&guest, number)), ([0, 0], 0), "{number}");
    }
    // Back again, unless a frame has no room.
    guest.put(first + 2 * 16 + 8, &[1 << 32]);
    assert_eq!(set_version(&mut guest, 1), (Errno::Inval.result(), 2));
    guest.put(first + 2 * 16 + 8, &[0x321]);
    assert_eq!(set_version(&mut guest, 1), (0, 1));
    let entries = [0, 1, 2, 3].map(|n| guest.cpu.load(first + n * 8));
    assert_eq!(
        entries,
        [PERMIT | (RAM - 2) << 32, PERMIT | (RAM - 1) << 32, PERMIT | 7 << 16 | 0x321 << 32, 0]
    );
}

#[test]
fn a_domain_finds_its_tables() {
    let mut guest = second();
    let (table, words) = (guest.layout.grants() / PAGE, guest.layout.grant_status() / PAGE);
    assert_eq!(frames(&mut guest, op::GET_STATUS_FRAMES, 1, SELF), (0, vec![words]));
    assert_eq!(frames(&mut guest, op::GET_STATUS_FRAMES, 2, SELF), (-1, vec![0; 2]));
    let all: Vec<u64> = (table..table + 32).collect();
    assert_eq!(frames(&mut guest, op::SETUP_TABLE, 33, SELF).0, -1);
    assert_eq!(frames(&mut guest, op::SETUP_TABLE, 32, SELF), (0, all));
    let all: Vec<u64> = (words..words + 4).collect();
    assert_eq!(frames(&mut guest, op::GET_STATUS_FRAMES, 4, SELF), (0, all));
    assert_eq!(frames(&mut guest, op::GET_STATUS_FRAMES, 5, SELF).0, -1);
    // Its own number, and others'.
    for (domain, result) in [(1, 0), (0, -8), (2, -2), (0x7ff1, -2)] {
        assert_eq!(frames(&mut guest, op::GET_STATUS_FRAMES, 1, domain).0, result, "{domain}");
        assert_eq!(frames(&mut guest, op::SETUP_TABLE, 1, domain).0, result, "{domain}");
    }
    for (domain, result) in [(1, 0), (0, Errno::Perm.result()), (2, Errno::Srch.result())] {
        assert_eq!(table_op(&mut guest, op::GET_VERSION, &[domain]), result, "{domain}");
    }
    // All of them may be mapped, and what is behind them may not.
    let map = |guest: &mut Guest, frame: u64| {
        guest.call(call::UPDATE_VA_MAPPING, &[60 * PAGE, (frame * PAGE) | P | RW | US, 0])
    };
    for frame in [table, table + 31, words, words + 3] {
        assert_eq!(map(&mut guest, frame), 0);
    }
    assert_eq!(map(&mut guest, words + 4), Errno::Inval.result());
}

#[test]
fn how_a_page_is_used_is_in_its_word() {
    let mut guest = second();
    let all = domain(&guest);
    for number in [8, 9, 255] {
        grant(&mut guest, number, PERMIT, DATA + 1);
    }
    let page = Grant::map(&all, 9, Access::Write).unwrap();
    assert_eq!((status(&guest, 9), entry(&guest, 9)), (READ | WRITE, [PERMIT, DATA + 1]));
    assert_eq!([8, 10].map(|entry| status(&guest, entry)), [0, 0]);
    page.write(16, &7u64.to_le_bytes()).unwrap();
    assert_eq!(guest.cpu.load((DATA + 1) * PAGE + 16), 7);
    let second = Grant::map(&all, 9, Access::Read).unwrap();
    drop(page);
    assert_eq!(status(&guest, 9), READ);
    // The domain takes it back, but its word says that it is in use: so it is granted, for that.
    grant(&mut guest, 9, 0, DATA + 1);
    assert_eq!(all.map(9, Access::Write).unwrap_err(), Error::Grant(9));
    drop(Grant::map(&all, 9, Access::Read).unwrap());
    grant(&mut guest, 9, 2, DATA + 1);
    assert_eq!(all.map(9, Access::Read).unwrap_err(), Error::Grant(9));
    grant(&mut guest, 9, 0, DATA + 2);
    assert_eq!(all.map(9, Access::Read).unwrap_err(), Error::Frame(9));
    grant(&mut guest, 9, 0, DATA + 1);
    assert_eq!(status(&guest, 9), READ);
    assert_eq!(set_version(&mut guest, 1), (Errno::Busy.result(), 2));
    drop(second);
    assert_eq!(all.map(9, Access::Read).unwrap_err(), Error::Grant(9));
    assert_eq!(status(&guest, 9), 0);
    assert_eq!(set_version(&mut guest, 1), (0, 1));
}

#[test]
fn what_is_not_granted_is_not_there() {
    let mut guest = second();
    let all = domain(&guest);
    let own = guest.layout.grant_status() / PAGE;
    for (header, frame, access, error) in [
        (0, DATA, Access::Read, Error::Grant(9)),
        // To take over, and another's grant.
        (2, DATA, Access::Read, Error::Grant(9)),
        (3, DATA, Access::Read, Error::Grant(9)),
        (PERMIT | SUB_PAGE | 64 << 48, DATA, Access::Read, Error::Grant(9)),
        (PERMIT | SUB_PAGE | READONLY, DATA, Access::Write, Error::Grant(9)),
        (PERMIT | 1 << 16, DATA, Access::Read, Error::Grant(9)),
        (PERMIT | READONLY, DATA, Access::Write, Error::ReadOnly(9)),
        (PERMIT, own, Access::Write, Error::Frame(9)),
        (PERMIT, DATA | 1 << 32, Access::Read, Error::Frame(9)),
        (PERMIT, DATA | 1 << 52, Access::Read, Error::Frame(9)),
        (PERMIT, u64::MAX, Access::Write, Error::Frame(9)),
        (PERMIT, L4 + 2, Access::Write, Error::Frame(9)),
    ] {
        grant(&mut guest, 9, header, frame);
        assert_eq!(all.map(9, access).unwrap_err(), error, "{header:#x} {frame:#x}");
        assert_eq!((entry(&guest, 9), status(&guest, 9)), ([header, frame], 0), "{frame:#x}");
    }
    // The table has one frame so far.
    grant(&mut guest, 256, PERMIT, DATA);
    assert_eq!(all.map(256, Access::Read).unwrap_err(), Error::Grant(256));
    frames(&mut guest, op::SETUP_TABLE, 32, SELF);
    drop(Grant::map(&all, 256, Access::Read).unwrap());
    grant(&mut guest, 8191, PERMIT, DATA);
    drop(Grant::map(&all, 8191, Access::Read).unwrap());
    for none in [8192, u32::MAX] {
        assert_eq!(all.map(none, Access::Read).unwrap_err(), Error::Grant(none));
    }
}

fn save(guest: &Guest) -> Vec<Part> {
    let mut writer = Writer::default();
    guest.xen.save(&mut writer);
    writer.finish()
}

#[test]
fn a_version_goes_with_the_domain() {
    let mut guest = second();
    grant(&mut guest, 40, PERMIT, DATA + 1);
    let parts = save(&guest);
    let xen = guest.xen.clone();
    let restore = |parts: Vec<Part>| {
        xen.restore(&mut Reader::new(parts).unwrap()).map_err(|error| error.to_string())
    };
    restore(parts.clone()).unwrap();
    assert_eq!(save(&guest), parts);
    let page = Grant::map(&domain(&guest), 40, Access::Write).unwrap();
    assert_eq!((page.gpa(), status(&guest, 40)), ((DATA + 1) * PAGE, READ | WRITE));
    drop(page);
    // One that was taken back while it was in use, and is used again where the domain goes on.
    let page = Grant::map(&domain(&guest), 40, Access::Write).unwrap();
    guest.put(guest.layout.grants() + 40 * 16, &[0]);
    std::mem::forget(page);
    restore(save(&guest)).unwrap();
    drop(Grant::map(&domain(&guest), 40, Access::Write).unwrap());
    assert_eq!(domain(&guest).map(40, Access::Read).unwrap_err(), Error::Grant(40));
    for version in [0, 3] {
        let mut bad = parts.clone();
        let part = bad.iter_mut().find(|part| part.kind == "xen-domain").unwrap();
        let mut value: ciborium::Value = ciborium::from_reader(&*part.payload).unwrap();
        for (key, value) in value.as_map_mut().unwrap() {
            if key.as_text() == Some("grant_version") {
                *value = version.into();
            }
        }
        part.payload.clear();
        ciborium::into_writer(&value, &mut part.payload).unwrap();
        assert!(restore(bad).unwrap_err().contains("no version"), "{version}");
    }
}
