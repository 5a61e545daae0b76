//! Accesses that the fast path does not do.

mod common;

use common::*;
use semantics::Stop;
use vcpu_state::SegReg::{Ds, Ss};
use x86_defs::{
    cr::{cr0, cr4},
    exception::{AC, GP, PF, SS},
    paging::{A, D, G, NX, P, RW, US},
    rflags,
};

/// Maps linear page `page` of the first 4 MiB.
fn map(m: &mut Machine, page: u64, entry: u64) {
    m.put(PT + 8 * page, entry);
    m.cpu.mmu.flush_page(page << 12);
}

fn raised(m: &Machine) -> (u8, Option<u32>, u64) {
    (m.cpu.raised.vector, m.cpu.raised.error, m.cpu.raised.payload)
}

#[test]
fn an_access_across_pages_is_all_or_nothing() {
    let mut m = Machine::long();
    map(&mut m, 0x20, 0x50000 | P | RW);
    map(&mut m, 0x21, 0x60000 | P | RW);
    m.ctx().store(Ds, 0x20ffd, 0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(m.get(0x50ff8) >> 40, 0x66_7788);
    assert_eq!(m.get(0x60000), 0x11_2233_4455);
    assert_eq!(m.ctx().load::<u64>(Ds, 0x20ffd), Ok(0x1122_3344_5566_7788));
    let old = m.ctx().rmw(Ds, 0x20ffe, true, |v: u32| v.wrapping_add(1));
    assert_eq!(old, Ok(0x4455_6677));
    assert_eq!(m.get(0x60000) & 0xffff, 0x4455);
    map(&mut m, 0x21, 0x60000 | P);
    assert_eq!(m.ctx().store(Ds, 0x20ffd, 0u64), Err(Stop::Fault));
    assert_eq!(raised(&m), (PF, Some(3), 0x21000), "the second page's address");
    assert_eq!(m.get(0x50ff8) >> 40, 0x66_7888, "nothing was written");
    assert_eq!(m.get(PT + 8 * 0x21) & D, 0);
    let mut out = [0; 16];
    m.ctx().load_bytes(Ds, 0x20ff8, &mut out).unwrap();
    assert_eq!(out[8..10], [0x55, 0x44]);
    assert_eq!(m.ctx().store_bytes(Ds, 0x20ff8, &[0; 16]), Err(Stop::Fault));
    assert_eq!(m.ctx().probe(Ds, 0x20ff8, 9, true), Err(Stop::Fault));
    assert_eq!(m.ctx().probe(Ds, 0x20ff8, 8, true), Ok(()));
}

#[test]
fn addresses_that_are_not_canonical() {
    let mut m = Machine::long();
    assert_eq!(m.ctx().load::<u8>(Ds, 1 << 47), Err(Stop::Fault));
    assert_eq!(raised(&m).0, GP);
    assert_eq!(m.ctx().store(Ss, (1 << 47) - 1, 0u16), Err(Stop::Fault));
    assert_eq!(raised(&m), (SS, Some(0), 0));
}

#[test]
fn devices_see_each_byte_once() {
    let mut m = Machine::long();
    map(&mut m, 0x20, 0xfee0_0000 | P | RW);
    map(&mut m, 0x21, 0x60000 | P | RW);
    assert_eq!(m.ctx().load::<u32>(Ds, 0x20010), Ok(0x1312_1110));
    m.ctx().store(Ds, 0x20ffe, 0xaabb_ccddu32).unwrap();
    assert_eq!(m.host.mmio, [(0xfee0_0ffe, vec![0xdd, 0xcc])]);
    assert_eq!(m.get(0x60000), 0xaabb);
    let old = m.ctx().rmw(Ds, 0x20020, true, |v: u16| v + 1);
    assert_eq!(old, Ok(0x2120));
    assert_eq!(m.host.mmio[1], (0xfee0_0020, vec![0x21, 0x21]));
    m.ctx().store_bytes(Ds, 0x20040, &[7; 20]).unwrap();
    let sizes: Vec<usize> = m.host.mmio[2..].iter().map(|(_, data)| data.len()).collect();
    assert_eq!(sizes, [8, 8, 4]);
    assert_eq!(m.ctx().host_span(Ds, 0x20000, 8, true), None);
}

#[test]
fn alignment_is_checked_for_user_mode_that_asks() {
    let mut m = Machine::long_user();
    let mut state = m.cpu.save_state(0, 0);
    state.control.cr0 |= cr0::AM;
    state.regs.rflags |= rflags::AC;
    m.cpu.load_state(&state);
    assert_eq!(m.ctx().load::<u32>(Ds, 0x5000), Ok(0));
    assert_eq!(m.ctx().load::<u32>(Ds, 0x5002), Err(Stop::Fault));
    assert_eq!(raised(&m), (AC, Some(0), 0));
    assert_eq!(m.ctx().store(Ds, 0x5001, 0u64), Err(Stop::Fault));
    assert_eq!(m.ctx().load::<u8>(Ds, 0x5001), Ok(0));
    // The processor's own accesses are not concerned.
    assert_eq!(m.ctx().load_linear::<u64>(0x5001), Ok(0));
    m.cpu.set_rflags(2);
    assert_eq!(m.ctx().load::<u32>(Ds, 0x5002), Ok(0));
}

#[test]
fn smap_follows_ac_and_not_for_the_processor_itself() {
    let mut m = Machine::long();
    m.cpu.gpr[0] = m.cpu.cr4 | cr4::SMAP;
    map(&mut m, 0x20, 0x50000 | P | RW);
    m.step(&[0x0f, 0x22, 0xe0]).unwrap();
    assert_eq!(m.ctx().load::<u8>(Ds, 0x21000), Err(Stop::Fault));
    assert_eq!(raised(&m), (PF, Some(1), 0x21000));
    m.step(&[0x0f, 0x01, 0xcb]).unwrap();
    assert_eq!(m.ctx().load::<u8>(Ds, 0x21000), Ok(0));
    assert_eq!(m.ctx().load_linear::<u8>(0x21000), Err(Stop::Fault));
    m.step(&[0x0f, 0x01, 0xca]).unwrap();
    assert_eq!(m.ctx().load::<u8>(Ds, 0x21000), Err(Stop::Fault));
    assert_eq!(m.ctx().load::<u8>(Ds, 0x20000), Ok(0), "a supervisor page");
}

#[test]
fn writes_to_code_are_told_each_time() {
    let mut m = Machine::long();
    m.ctx().store(Ds, 0x5000, 1u8).unwrap();
    let layout = m.mem.layout();
    let (region, at) = layout.find(0x5000).unwrap();
    region.code().set(5);
    m.cpu.mmu.revoke_write(region.arena_at(at));
    let told = |m: &mut Machine| {
        let ranges = std::mem::take(&mut m.cpu.stale_code);
        ranges.iter().any(|r| r.contains(&0x5000))
    };
    m.ctx().store(Ds, 0x5000, 2u32).unwrap();
    assert!(told(&mut m));
    region.code().set(5);
    m.ctx().rmw(Ds, 0x5000, true, |v: u8| v + 1).unwrap();
    assert!(told(&mut m));
    region.code().set(5);
    m.ctx().store_bytes(Ds, 0x4ffc, &[1; 8]).unwrap();
    assert!(told(&mut m));
    region.code().set(5);
    assert_eq!(m.ctx().host_span(Ds, 0x5000, 8, true), None);
    assert!(m.ctx().host_span(Ds, 0x5000, 8, false).is_some());
}

#[test]
fn fetches_need_execute_rights() {
    let mut m = Machine::long_user();
    map(&mut m, 0x20, 0x50000 | P | US | NX);
    assert_eq!(m.ctx().fetch_page(0x20123), Err(Stop::Fault));
    assert_eq!(raised(&m), (PF, Some(0x15), 0x20123));
    assert_eq!(m.ctx().fetch_page(0x5123).unwrap().gpa, 0x5000);
    assert_eq!(m.ctx().fetch_page(1 << 47), Err(Stop::Fault));
    assert_eq!(raised(&m).0, GP);
}

#[test]
fn fetch_tags_tell_address_spaces_and_rights_apart() {
    let mut m = Machine::long();
    let kernel = m.cpu.mmu.tags().all;
    m.ctx().fetch_page(0x5000).unwrap();
    m.cpu.mmu.flush_page(0x9000);
    assert_eq!(m.cpu.mmu.tags().all, kernel, "no code was fetched there");
    m.cpu.mmu.flush_page(0x5000);
    assert_ne!(m.cpu.mmu.tags().all, kernel);
    let kernel = m.cpu.mmu.tags().all;
    m.gate64(14, 0x9000, CODE0, 0, 0, 14);
    m.cpu.hot.star = 0x0013_0008 << 32;
    m.cpu.gpr[1] = 0x7000;
    m.step(&[0x48, 0x0f, 0x07]).unwrap();
    assert_ne!(m.cpu.mmu.tags().all, kernel);
    m.step(&[0x0f, 0x05]).unwrap();
    assert_eq!(m.cpu.mmu.tags().all, kernel, "the same again");
    m.cpu.gpr[0] = PML4;
    m.step(&[0x0f, 0x22, 0xd8]).unwrap();
    assert_ne!(m.cpu.mmu.tags().all, kernel);
}

/// Global code that is where it was is known after all translations are forgotten; what differs
/// in any way that a fetch would see is not.
#[test]
fn global_code_that_stays_is_known_after_a_flush() {
    const CODE: u64 = 0x20;
    let entry = 0x50000 | P | RW | G | A;
    let global = |m: &Machine| m.cpu.mmu.tags().global;
    let changes = [0, 0x51000 ^ 0x50000, NX, G, A, P];
    for (flush, change) in [false, true].into_iter().flat_map(|f| changes.map(|c| (f, c))) {
        let mut m = Machine::long();
        map(&mut m, CODE, entry);
        assert!(m.ctx().fetch_page(CODE << 12).unwrap().global);
        let before = global(&m);
        // What is not code does not matter.
        m.put(PT + 8 * (CODE + 1), 0x60000 | P);
        m.put(PT + 8 * CODE, entry ^ change);
        match flush {
            true => m.cpu.mmu.flush_all_pages(),
            false => m.cpu.mmu.flush_page(CODE << 12),
        }
        assert_eq!(global(&m) == before, change == 0, "{flush} {change:x}");
        // What was not compared, because it is not remembered any more, is not known.
        let before = global(&m);
        m.put(PT + 8 * CODE, entry);
        m.ctx().fetch_page(CODE << 12).unwrap();
        m.cpu.mmu.flush_all();
        assert_ne!(global(&m), before);
    }
}

/// Of more global code than is remembered, each change is seen, too.
#[test]
fn global_code_beyond_what_is_remembered_is_forgotten() {
    const PAGES: u64 = 9000;
    let mut m = Machine::long();
    m.put(PT + 8 * 0x20, 0x50000 | P | RW | G | A);
    // All tables but the first are the same, so that the page is in many places.
    let at = |n: u64| (n + 1) << 21 | 0x20 << 12;
    let (directory, pages) = (PT - 0x1000, 511);
    (1..=pages).for_each(|n| m.put(directory + 8 * n, PT | 7));
    let pointers = directory - 0x1000;
    (0..PAGES / pages + 1).for_each(|n| m.put(pointers + 8 * n, directory | 7));
    m.cpu.mmu.flush_all();
    let linear = |n: u64| (n / pages) << 30 | at(n % pages);
    for n in 0..PAGES {
        assert!(m.ctx().fetch_page(linear(n)).unwrap().global, "{n}");
    }
    let global = |m: &Machine| m.cpu.mmu.tags().global;
    let before = global(&m);
    m.cpu.mmu.flush_page(linear(PAGES - 1));
    assert_ne!(global(&m), before);
    // Now few are known, and stay.
    m.ctx().fetch_page(linear(0)).unwrap();
    let before = global(&m);
    m.cpu.mmu.flush_all_pages();
    assert_eq!(global(&m), before);
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    let mut m = Machine::long();
    m.cpu.gpr[0] = 0x5004;
    m.step(&[0x0f, 0x23, 0xc0]).unwrap();
    // Enabled, on writes of four bytes.
    m.cpu.gpr[0] = 1 | 1 << 16 | 3 << 18;
    m.step(&[0x0f, 0x23, 0xf8]).unwrap();
    m.ctx().load::<u64>(Ds, 0x5000).unwrap();
    m.ctx().store(Ds, 0x5000, 0u32).unwrap();
    m.ctx().store(Ds, 0x5008, 0u32).unwrap();
    assert_eq!(m.cpu.dr_hits, 0);
    m.ctx().store(Ds, 0x5000, 0u64).unwrap();
    assert_eq!(m.cpu.dr_hits, 1);
}
