use super::*;
use guest_mem::{Change, GuestMem, Memfd, Slot};
use std::sync::Arc;
use x86_defs::{
    cr::{cr0, cr4, efer},
    exception::pf,
    paging::{A, D, G, NX, P, PS, RW, US},
};

const RAM: u64 = 0x40_0000;
const LONG: [u64; 4] =
    [cr0::PG | cr0::PE | cr0::WP, 0x1000, cr4::PAE | cr4::PGE, efer::LMA | efer::LME | efer::NXE];

struct Space(Arc<GuestMem>);

impl Space {
    fn new() -> Self {
        let ram = Memfd::new(RAM).unwrap();
        let mem = GuestMem::new(2 * RAM).unwrap();
        let slot = |id, gpa, writable| {
            Change::Map(Slot { id, gpa, mem: ram.clone(), offset: 0, len: RAM, writable })
        };
        mem.update(&[slot(0, 0, true)], |_, _| Ok(())).unwrap();
        Self(mem)
    }

    fn put(&self, gpa: u64, entry: u64) {
        self.0.write(gpa, &entry.to_le_bytes()).unwrap();
    }

    fn get(&self, gpa: u64) -> u64 {
        let mut out = [0; 8];
        self.0.read(gpa, &mut out).unwrap();
        u64::from_le_bytes(out)
    }

    /// Four levels at 0x1000, 0x2000, 0x3000, 0x4000 that map linear page `n` by the last.
    fn long(&self, n: u64, leaf: u64) {
        self.put(0x1000, 0x2000 | P | RW | US);
        self.put(0x2000, 0x3000 | P | RW | US);
        self.put(0x3000, 0x4000 | P | RW | US);
        self.put(0x4000 + 8 * n, leaf);
    }

    fn walk(
        &self,
        regs: [u64; 4],
        gva: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Translation, u32> {
        let (layout, paging) = (self.0.layout(), Paging::new(regs, [0; 4], Features::default()));
        walk(Phys::new(&layout, self.0.arena()), &paging, gva, access, privilege).map_err(|e| e.0)
    }
}

use Access::{Execute, Read, Write};
use Privilege::{Supervisor, SupervisorAc, User};

#[test]
fn four_levels_set_accessed_and_dirty_only_when_allowed() {
    let space = Space::new();
    space.long(5, 0x9000 | P | US);
    assert_eq!(space.walk(LONG, 0x5123, Write, User), Err(pf::P | pf::W | pf::U));
    assert_eq!(space.get(0x1000) & A, 0, "a refused access leaves no trace");
    let read = space.walk(LONG, 0x5123, Read, User).unwrap();
    assert_eq!((read.gpa, read.shift, read.write, read.execute), (0x9123, 12, false, true));
    for table in [0x1000, 0x2000, 0x3000, 0x4028] {
        assert_eq!(space.get(table) & (A | D), A);
    }
    space.put(0x4028, 0x9000 | P | US | RW);
    assert!(!space.walk(LONG, 0x5123, Read, User).unwrap().write, "not dirty yet");
    assert!(space.walk(LONG, 0x5123, Write, User).unwrap().write);
    assert_eq!(space.get(0x4028) & (A | D), A | D);
    assert_eq!(space.get(0x3000) & D, 0);
}

#[test]
fn error_codes_say_what_was_tried() {
    let space = Space::new();
    space.long(1, 0x9000 | P | RW | NX);
    assert_eq!(space.walk(LONG, 0x6000, Read, Supervisor), Err(0));
    assert_eq!(space.walk(LONG, 0x6000, Write, User), Err(pf::W | pf::U));
    assert_eq!(space.walk(LONG, 0x1000, Read, User), Err(pf::P | pf::U));
    assert_eq!(space.walk(LONG, 0x1000, Execute, Supervisor), Err(pf::P | pf::I));
    let mut no_nx = LONG;
    no_nx[3] &= !efer::NXE;
    assert_eq!(space.walk(no_nx, 0x1000, Read, Supervisor), Err(pf::P | pf::RSVD));
    assert_eq!(space.walk(no_nx, 0x6000, Execute, User), Err(pf::U), "no I without NX or SMEP");
    no_nx[2] |= cr4::SMEP;
    assert_eq!(space.walk(no_nx, 0x6000, Execute, User), Err(pf::U | pf::I));
    space.put(0x4008, 1 << 45 | P);
    assert_eq!(space.walk(LONG, 0x1000, Write, User), Err(pf::P | pf::RSVD | pf::U | pf::W));
    space.put(0x1000, 0x2000 | P | PS);
    assert_eq!(space.walk(LONG, 0x1000, Read, Supervisor), Err(pf::P | pf::RSVD));
    space.put(0x1000, 0x7_0000_0000 | P);
    assert_eq!(space.walk(LONG, 0x1000, Read, Supervisor), Err(0), "no memory reads as zero");
}

#[test]
fn supervisor_rights() {
    let space = Space::new();
    space.long(1, 0x9000 | P | US);
    let with = |bits| [LONG[0], LONG[1], LONG[2] | bits, LONG[3]];
    assert!(space.walk(LONG, 0x1000, Execute, Supervisor).is_ok());
    let smep = space.walk(with(cr4::SMEP), 0x1000, Execute, Supervisor);
    assert_eq!(smep, Err(pf::P | pf::I));
    assert_eq!(space.walk(with(cr4::SMAP), 0x1000, Read, Supervisor), Err(pf::P));
    assert!(space.walk(with(cr4::SMAP), 0x1000, Read, SupervisorAc).is_ok());
    assert!(space.walk(with(cr4::SMAP), 0x1000, Read, User).is_ok());
    assert_eq!(space.walk(LONG, 0x1000, Write, Supervisor), Err(pf::P | pf::W));
    let mut no_wp = LONG;
    no_wp[0] &= !cr0::WP;
    assert!(space.walk(no_wp, 0x1000, Write, Supervisor).unwrap().write);
    assert_eq!(space.walk(no_wp, 0x1000, Write, User), Err(pf::P | pf::W | pf::U));
    space.put(0x3000, 0x4000 | P | RW);
    assert_eq!(space.walk(LONG, 0x1000, Read, User), Err(pf::P | pf::U), "any level denies");
}

#[test]
fn large_pages() {
    let space = Space::new();
    space.long(0, 0);
    space.put(0x3008, 0x20_0000 | P | RW | US | PS | G);
    let found = space.walk(LONG, 0x2a_bcde, Read, User).unwrap();
    assert_eq!((found.gpa, found.shift, found.global), (0x2a_bcde, 21, true));
    space.put(0x3008, 0x20_2000 | P | PS);
    assert_eq!(space.walk(LONG, 0x20_0000, Read, Supervisor), Err(pf::P | pf::RSVD));
    space.put(0x2008, 0x80_0000_0000 | P | PS | US);
    let found = space.walk(LONG, 0x7654_3210, Read, User).unwrap();
    assert_eq!((found.gpa, found.shift), (0x80_3654_3210, 30));
    let features = Features { gbpages: false, ..Features::default() };
    let paging = Paging::new(LONG, [0; 4], features);
    let layout = space.0.layout();
    let phys = Phys::new(&layout, space.0.arena());
    let refused = walk(phys, &paging, 0x7654_3210, Read, User);
    assert_eq!(refused, Err(PageFault(pf::P | pf::RSVD | pf::U)));
}

#[test]
fn two_levels_with_and_without_large_pages() {
    let space = Space::new();
    let regs = |cr4| [cr0::PG | cr0::PE, 0x1000, cr4, 0];
    let put = |at, entry: u32| space.0.write(at, &entry.to_le_bytes()).unwrap();
    put(0x1000 + 4 * 0x300, 0x2000 | 7);
    put(0x2000 + 4 * 3, 0x8000 | 7);
    assert_eq!(space.walk(regs(0), 0xc000_3018, Write, User).unwrap().gpa, 0x8018);
    assert_eq!(space.get(0x2008) >> 32, 0x8000 | 7 | A | D);
    assert_eq!(space.get(0x1000 + 4 * 0x300) & 0xffff_ffff, 0x2000 | 7 | A);
    // Bits 13 and up of a 4 MiB entry are bits 32 and up of the address.
    put(0x1004, 0x0080_0000 | 1 << 13 | 0x87);
    let found = space.walk(regs(cr4::PSE), 0x0050_1234, Read, User).unwrap();
    assert_eq!((found.gpa, found.shift), (0x1_0090_1234, 22));
    put(0x1004, 0x0080_0000 | 1 << 21 | 0x87);
    let fault = space.walk(regs(cr4::PSE), 0x0050_1234, Read, User);
    assert_eq!(fault, Err(pf::P | pf::RSVD | pf::U));
    put(0x1004, 0x2000 | 0x87);
    put(0x2000 + 4 * 0x101, 0x7000 | 7);
    assert_eq!(space.walk(regs(0), 0x0050_1234, Read, User).unwrap().gpa, 0x7234, "no PSE");
}

#[test]
fn pae_uses_the_latched_pointers() {
    let space = Space::new();
    space.put(0x1020, 0x2000 | P);
    space.put(0x1028, 0x3000 | P);
    space.put(0x3000, 0x4000 | 7);
    space.put(0x4000, 0x9000 | 7);
    let regs = [cr0::PG | cr0::PE, 0x1020, cr4::PAE, 0];
    let layout = space.0.layout();
    let phys = Phys::new(&layout, space.0.arena());
    let unlatched = Paging::new(regs, [0; 4], Features::default());
    let pdpte = load_pdptes(phys, regs[1], &unlatched).unwrap();
    space.put(0x1028, 0);
    let paging = Paging::new(regs, pdpte, Features::default());
    assert_eq!(walk(phys, &paging, 0x4000_0123, Read, User).unwrap().gpa, 0x9123);
    assert_eq!(walk(phys, &paging, 0x8000_0000, Read, User), Err(PageFault(pf::U)));
    space.put(0x4000, 0x9000 | 7 | 1 << 52);
    let fault = walk(phys, &paging, 0x4000_0000, Read, User);
    assert_eq!(fault, Err(PageFault(pf::P | pf::RSVD | pf::U)));
    space.put(0x1030, 0x2000 | P | RW);
    assert_eq!(load_pdptes(phys, regs[1], &unlatched), None, "RW is reserved there");
    assert_eq!(inspect(&space.0, &paging, 0x4000_0001), None);
}

fn fill(tlb: &mut Tlb, space: &Space, gva: u64, access: Access, privilege: Privilege) -> Place {
    let (layout, paging) = (space.0.layout(), Paging::new(LONG, [0; 4], Features::default()));
    tlb.translate(Phys::new(&layout, space.0.arena()), &paging, gva, access, privilege).unwrap()
}

#[test]
fn entries_belong_to_address_space_privilege_and_access() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    space.long(1, 0x9000 | P | RW | US);
    tlb.set_privilege(Some(User));
    tlb.switch(1, false);
    let place = fill(&mut tlb, &space, 0x1008, Read, User);
    assert_eq!(tlb.read(0x1008, 8), place.ram);
    assert_eq!(place.gpa, 0x9008);
    assert_eq!(tlb.read(0x1ff8, 8).map(|at| at.0), place.ram.map(|at| at.0 + 0xff0));
    assert_eq!(tlb.read(0x1ff9, 8), None, "crosses into the next page");
    assert_eq!((tlb.write(0x1008, 8), tlb.read(0x8000_0000_0000_1008, 8)), (None, None));
    assert!(tlb.execute(0x1000, 1).is_some());
    fill(&mut tlb, &space, 0x1008, Write, User);
    assert!(tlb.write(0x1008, 8).is_some());
    tlb.set_privilege(Some(Supervisor));
    assert_eq!(tlb.read(0x1008, 8), None);
    tlb.set_privilege(None);
    assert_eq!(tlb.read(0x1008, 8), None);
    tlb.set_privilege(Some(User));
    tlb.switch(2, false);
    assert_eq!(tlb.read(0x1008, 8), None);
    tlb.switch(1, true);
    assert!(tlb.write(0x1008, 8).is_some(), "NOFLUSH finds the old entries");
    tlb.switch(2, true);
    tlb.flush_pcid(1);
    tlb.switch(1, true);
    assert_eq!(tlb.read(0x1008, 8), None);
}

#[test]
fn global_pages_outlive_address_spaces_but_not_their_invalidation() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    space.long(1, 0x9000 | P | RW | G);
    fill(&mut tlb, &space, 0x1000, Write, Supervisor);
    space.put(0x4008, 0);
    tlb.switch(0, false);
    assert!(fill(&mut tlb, &space, 0x1000, Write, Supervisor).ram.is_some());
    assert!(tlb.write(0x1000, 8).is_some());
    tlb.flush_non_global();
    assert!(fill(&mut tlb, &space, 0x1000, Read, Supervisor).ram.is_some());
    tlb.flush_page(0x1000);
    assert_eq!(tlb.read(0x1000, 8), None);
    let (layout, paging) = (space.0.layout(), Paging::new(LONG, [0; 4], Features::default()));
    let phys = Phys::new(&layout, space.0.arena());
    assert!(tlb.translate(phys, &paging, 0x1000, Read, Supervisor).is_err());
    space.put(0x4008, 0x9000 | P | RW | G);
    fill(&mut tlb, &space, 0x1000, Write, Supervisor);
    space.put(0x4008, 0);
    tlb.flush_all();
    assert!(tlb.translate(phys, &paging, 0x1000, Read, Supervisor).is_err());
}

#[test]
fn one_address_invalidates_all_of_a_large_page() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    space.long(0, 0);
    space.put(0x3008, 0x20_0000 | P | RW | PS);
    fill(&mut tlb, &space, 0x20_0000, Read, Supervisor);
    fill(&mut tlb, &space, 0x3f_f000, Read, Supervisor);
    tlb.flush_page(0x30_0000);
    assert_eq!((tlb.read(0x20_0000, 1), tlb.read(0x3f_f000, 1)), (None, None));
    space.put(0x2008, P | RW | PS);
    fill(&mut tlb, &space, 0x4000_0000, Read, Supervisor);
    tlb.flush_page(0x7fff_f000);
    assert_eq!(tlb.read(0x4000_0000, 1), None);
}

#[test]
fn code_and_dirty_pages() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    space.long(1, 0x9000 | P | RW);
    let layout = space.0.layout();
    let region = &layout.regions()[0];
    fill(&mut tlb, &space, 0x1000, Read, Supervisor);
    assert!(!region.dirty().get(9));
    assert!(!fill(&mut tlb, &space, 0x1000, Write, Supervisor).code);
    assert!(region.dirty().get(9) && tlb.write(0x1000, 1).is_some());
    tlb.flush_write();
    assert!(tlb.write(0x1000, 1).is_none() && tlb.read(0x1000, 1).is_some());
    fill(&mut tlb, &space, 0x1000, Write, Supervisor);
    region.code().set(9);
    tlb.flush_write_page(region.arena_at(0x9abc));
    assert!(tlb.write(0x1000, 1).is_none() && tlb.read(0x1000, 1).is_some());
    assert!(fill(&mut tlb, &space, 0x1000, Write, Supervisor).code);
    assert!(tlb.write(0x1000, 1).is_none());
}

#[test]
fn all_who_write_a_page_lose_the_right() {
    for aliases in 1..10 {
        let (space, mut tlb) = (Space::new(), Tlb::new());
        let page = space.0.layout().regions()[0].arena_at(0x9000);
        let writers = |tlb: &mut Tlb| {
            let mut count = 0;
            for privilege in [User, Supervisor] {
                tlb.set_privilege(Some(privilege));
                count += (1..=aliases).filter(|n| tlb.write(n << 12, 1).is_some()).count();
            }
            count
        };
        for n in 1..=aliases {
            space.long(n, 0x9000 | P | RW | US);
            fill(&mut tlb, &space, n << 12, Write, User);
            fill(&mut tlb, &space, n << 12, Write, Supervisor);
        }
        assert_eq!(writers(&mut tlb), 2 * aliases as usize);
        tlb.flush_write_page(page);
        assert_eq!(writers(&mut tlb), 0);
        fill(&mut tlb, &space, aliases << 12, Write, Supervisor);
        assert_eq!(writers(&mut tlb), 1);
        tlb.flush_write_page(page);
        assert_eq!(writers(&mut tlb), 0);
    }
}

#[test]
fn devices_are_not_cached_and_contexts_run_out_well() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    space.long(1, 0xfee0_0000 | P | RW);
    space.put(0x4010, 0x9000 | P | RW);
    let place = fill(&mut tlb, &space, 0x1020, Read, Supervisor);
    assert_eq!((place.gpa, place.ram), (0xfee0_0020, None));
    assert_eq!(tlb.read(0x1020, 4), None);
    tlb.switch(7, false);
    for n in 0..20_000u32 {
        fill(&mut tlb, &space, 0x2000, Read, Supervisor);
        assert!(tlb.read(0x2000, 1).is_some());
        match n % 3 {
            0 => tlb.switch(7, false),
            1 => tlb.flush_all(),
            _ => tlb.flush_non_global(),
        }
        assert!(tlb.read(0x2000, 1).is_none());
    }
}

/// A copy of an entry, and what it was made for.
#[derive(Clone, Copy)]
struct Copied {
    linear: u64,
    privilege: Privilege,
    held: Held,
    pcid: u16,
}

/// As the changes tell.
fn forget(tlb: &mut Tlb, copies: &mut Vec<Copied>) {
    let changes = tlb.changes();
    copies.retain(|c| {
        !(changes.all
            || changes.local && !c.held.global
            || changes.pages().contains(&c.linear)
            || changes.evicted().contains(&c.linear))
    });
    tlb.forget_changes();
}

/// Copies of entries, kept as [`Changes`] let them, never allow what the TLB was told to forget,
/// whatever made way for what in it meanwhile.
#[test]
fn copies_obey_every_invalidation() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    // Linear pages whose entries have the same places; each page of memory is mapped twice.
    let pages: Vec<u64> = (0..6).flat_map(|n| [n << 12, 0x400_0000 | n << 12]).collect();
    for n in 0..6 {
        let global = if n < 3 { G } else { 0 };
        space.long(n, (0x9000 + (n << 12)) | P | RW | US | global);
        space.put(0x5000 + 8 * n, (0xe000 - (n << 12)) | P | RW | US | global);
    }
    space.put(0x3100, 0x5000 | P | RW | US);
    let layout = space.0.layout();
    let (mut seed, mut pcid, mut copies) = (1u64, 0, Vec::<Copied>::new());
    let mut pick = |n: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % n
    };
    let (mut revoked, mut kept) = (0, 0);
    for _ in 0..40_000 {
        let linear = pages[pick(12) as usize];
        match pick(16) {
            0 => {
                let page = layout.regions()[0].arena_at(0x9000 + (pick(6) << 12));
                tlb.flush_write_page(page);
                forget(&mut tlb, &mut copies);
                assert!(!copies.iter().any(|c| c.held.write && c.held.page == page));
                revoked += 1;
            }
            1 => {
                tlb.flush_page(linear);
                forget(&mut tlb, &mut copies);
                assert!(!copies.iter().any(|c| c.linear == linear));
            }
            2 => {
                pcid = pick(3) as u16;
                tlb.switch(pcid, pick(4) != 0);
                forget(&mut tlb, &mut copies);
                assert!(copies.iter().all(|c| c.held.global));
                kept += copies.len();
            }
            3 if pick(20) == 0 => tlb.flush_all(),
            _ => {
                let privilege = [User, SupervisorAc][pick(2) as usize];
                let access = [Read, Write, Execute][pick(3) as usize];
                fill(&mut tlb, &space, linear, access, privilege);
                tlb.set_privilege(Some(privilege));
                if let Some(held) = tlb.held(linear) {
                    copies.push(Copied { linear, privilege, held, pcid });
                }
            }
        }
        forget(&mut tlb, &mut copies);
        for c in &copies {
            assert!(c.held.global || c.pcid == pcid);
            assert_ne!(c.privilege, Supervisor);
        }
    }
    assert!(revoked > 1000 && kept > 100, "{revoked} {kept}");
}

#[test]
fn pages_beside_large_ones_are_invalidated_alone() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    space.long(1, 0x9000 | P | RW);
    space.put(0x3008, 0x20_0000 | P | RW | PS);
    fill(&mut tlb, &space, 0x1000, Read, Supervisor);
    fill(&mut tlb, &space, 0x20_0000, Read, Supervisor);
    tlb.forget_changes();
    assert_eq!(tlb.flush_page(0x1000), None);
    assert_eq!((tlb.changes().all, tlb.changes().pages()), (false, &[0x1000][..]));
    assert!(tlb.read(0x20_0000, 1).is_some());
    assert!(tlb.flush_page(0x20_1000) == Some(21) && tlb.changes().all);
}

#[test]
fn what_made_way_is_told_apart_from_what_is_wrong() {
    let (space, mut tlb) = (Space::new(), Tlb::new());
    // The same place in the table.
    let (first, second) = (0x1000, 0x400_1000);
    space.put(0x3000 + 8 * (second >> 21), 0x20_0000 | P | RW | PS);
    space.long(1, 0x9000 | P | RW);
    fill(&mut tlb, &space, first, Write, Supervisor);
    let page = tlb.held(first).unwrap().page;
    tlb.forget_changes();
    fill(&mut tlb, &space, second, Read, Supervisor);
    assert_eq!((tlb.changes().pages(), tlb.changes().evicted()), (&[][..], &[first][..]));
    tlb.forget_changes();
    // It is not known any more; copies of it may be.
    tlb.flush_write_page(page);
    assert_eq!((tlb.changes().all, tlb.changes().revoked()), (false, &[page][..]));
    tlb.forget_changes();
    tlb.flush_page(first);
    assert!(tlb.changes().all || tlb.changes().pages() == [first]);
}
