//! A guest with scattered pages, and what the manual says of accesses to them.

use crate::modes::{FS_BASE, GS_BASE};
use engine::{Engine, Intercepts, Vm, VmConfig};
use engine_translate::{Translate, Translation, Windowing};
use guest_mem::{Change, Memfd, Slot};
use std::{collections::BTreeMap, sync::Arc};
use vcpu_state::{SegReg, Segment, Table, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    paging,
};

pub const PAGE: u64 = 4096;
pub const RAM: u64 = 0x40_0000;
/// Linear and physical address of the code.
pub const CODE: u64 = 0x1000_0000;
pub const CODE_GPA: u64 = 0x10_0000;
pub const CODE_LEN: u64 = 0x28_0000;
/// Physical memory of the data pages.
pub const DATA_GPA: u64 = 0x2_0000;
pub const DATA_LEN: usize = 0x2_0000;
/// Linear addresses of the tables, which only a supervisor may read.
pub const GDT: u64 = 0x3000_0000;
pub const IDT: u64 = 0x3000_1000;
/// Behind the GDT.
pub const TSS: u64 = GDT + 0x800;
/// Their physical address, one after the other.
pub const TABLES_GPA: u64 = 0x1000;
/// A stack that is always there, at the end of a page.
pub const STACK: u64 = 0x2000_1000;
const TABLES: u64 = 0x8_0000;

/// A page of data as the guest sees it.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub gpa: u64,
    pub user: bool,
    pub writable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: u32,
    /// CR2, of a page fault.
    pub address: u64,
}

/// One linear range that an instruction accesses.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub linear: u64,
    pub len: usize,
    pub write: bool,
    /// Relative to the stack segment.
    pub stack: bool,
}

/// The data pages by linear address.
#[derive(Clone, Debug, Default)]
pub struct Space(BTreeMap<u64, Page>);

/// What memory holds at first: no byte is zero.
pub fn pattern(gpa: u64) -> u8 {
    let mixed = (gpa ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as u8 | 1
}

fn canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}

impl Space {
    /// Neighbours are far apart in physical memory, and beside pages of every kind there are
    /// pages of the others, and none.
    pub fn new() -> Self {
        let mut space = Self::default();
        let mut next = 0;
        let mut add = |linear: u64, user: bool, writable: bool| {
            // Seven and 32 have no common divisor.
            let gpa = DATA_GPA + next * 7 % 32 * PAGE;
            next += 1;
            space.0.insert(linear, Page { gpa, user, writable });
        };
        for page in 0..3 {
            add(0x50_0000 + page * PAGE, true, true);
        }
        for (page, user, writable) in
            [(0x60, true, true), (0x61, true, false), (0x62, true, true), (0x63, false, true)]
        {
            add(0x50_0000 + page * PAGE, user, writable);
        }
        add(0x50_0000 + 0x64 * PAGE, true, true);
        // The ends of the canonical ranges, of the 32-bit range and of all addresses.
        add(0x7fff_ffff_f000, true, true);
        add(0xffff_8000_0000_0000, true, true);
        add(0xffff_ffff_ffff_f000, true, true);
        add(0, true, true);
        add(0xffff_f000, true, true);
        add(0x1_0000_0000, true, true);
        // Where a TLB of 512, 1024, 2048 or 4096 entries has the first page.
        add(0x50_0000 + (PAGE << 12), true, true);
        // What FS and GS begin with.
        add(FS_BASE & !(PAGE - 1), true, true);
        add(GS_BASE & !(PAGE - 1), true, true);
        add(STACK - PAGE, true, true);
        space
    }

    pub fn pages(&self) -> impl Iterator<Item = (u64, Page)> + '_ {
        self.0.iter().map(|(linear, page)| (*linear, *page))
    }

    /// Where bytes are, one by one; of those that are nowhere, none.
    pub fn bytes(&self, linear: u64, len: usize) -> Option<Vec<u64>> {
        (0..len as u64)
            .map(|n| {
                let at = linear.wrapping_add(n);
                self.0.get(&(at & !(PAGE - 1))).map(|page| page.gpa + at % PAGE)
            })
            .collect()
    }

    /// What comes of accesses in this order (SDM volume 3, 4.7 and 6.15; volume 1, 3.3.7.1).
    pub fn access(&self, ranges: &[Range], user: bool) -> Option<Fault> {
        ranges.iter().find_map(|range| self.one(range, user))
    }

    fn one(&self, range: &Range, user: bool) -> Option<Fault> {
        let last = range.linear.wrapping_add(range.len as u64 - 1);
        if !canonical(range.linear) || !canonical(last) {
            let vector = if range.stack { 12 } else { 13 };
            return Some(Fault { vector, error: 0, address: 0 });
        }
        let first = range.linear & !(PAGE - 1);
        let second = last & !(PAGE - 1);
        let places = [(first, range.linear), (second, second)];
        places.into_iter().find_map(|(page, address)| {
            let page = self.0.get(&page);
            let allowed = page.is_some_and(|p| (p.user || !user) && (p.writable || !range.write));
            let error =
                u32::from(page.is_some()) | u32::from(range.write) << 1 | u32::from(user) << 2;
            (!allowed).then_some(Fault { vector: 14, error, address })
        })
    }
}

/// Bytes of memory as 8-byte entries of page tables.
struct Tables {
    vm: Arc<dyn Vm>,
    next: u64,
}

impl Tables {
    fn entry(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.vm.memory().read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn set(&self, at: u64, value: u64) {
        self.vm.memory().write(at, &value.to_le_bytes()).unwrap();
    }

    fn map(&mut self, linear: u64, gpa: u64, user: bool, writable: bool) {
        let mut table = TABLES;
        for level in [39, 30, 21] {
            let at = table + (linear >> level & 511) * 8;
            if self.entry(at) == 0 {
                self.next += PAGE;
                assert!(self.next < CODE_GPA);
                self.set(at, self.next | paging::P | paging::RW | paging::US);
            }
            table = self.entry(at) & !(PAGE - 1);
        }
        let rights = if user { paging::US } else { 0 } | if writable { paging::RW } else { 0 };
        self.set(table + (linear >> 12 & 511) * 8, gpa | paging::P | rights);
    }
}

/// The ways of execution.
pub fn engines() -> Vec<(&'static str, Translate)> {
    let how = |windows| {
        let all = Translation { windows, ..Translation::default() };
        let hot = Translation { code_memory: 1 << 20, hot: 0, ..all };
        Translate::new().unwrap().with_translation(hot)
    };
    vec![
        ("interpreted", Translate::new().unwrap()),
        ("translated", how(Windowing::Off)),
        ("translated, with windows", how(Windowing::Eager)),
    ]
}

/// A guest of an engine, all of whose exceptions come to the host.
pub fn vm(engine: &Translate, space: &Space, intercepts: Intercepts) -> Arc<dyn Vm> {
    let cpuid = engine.caps().cpuid.clone();
    let config = VmConfig { intercepts, cpuid, memory: RAM, ..VmConfig::default() };
    let vm = engine.create_vm(&config).unwrap();
    let mem = Memfd::new(RAM).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
    vm.set_layout(&[Change::Map(slot)]).unwrap();
    let mut tables = Tables { vm: vm.clone(), next: TABLES };
    for page in (0..CODE_LEN).step_by(PAGE as usize) {
        tables.map(CODE + page, CODE_GPA + page, true, true);
    }
    for (linear, page) in space.pages() {
        tables.map(linear, page.gpa, page.user, page.writable);
    }
    vm.memory().write(DATA_GPA, &patterned()).unwrap();
    // Descriptors: code and data for rings 0 and 3.
    let descriptors: [u64; 7] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    let bytes: Vec<u8> = descriptors.iter().flat_map(|d| d.to_le_bytes()).collect();
    vm.memory().write(TABLES_GPA, &bytes).unwrap();
    // No map of I/O permissions.
    vm.memory().write(TABLES_GPA + 0x866, &[0xff; 2]).unwrap();
    tables.map(GDT, TABLES_GPA, false, true);
    tables.map(IDT, TABLES_GPA + PAGE, false, true);
    vm
}

/// The data pages at first.
pub fn patterned() -> Vec<u8> {
    (0..DATA_LEN as u64).map(|n| pattern(DATA_GPA + n)).collect()
}

/// 64-bit mode in ring 0 or 3.
pub fn state(user: bool) -> VcpuState {
    let mut state = VcpuState::reset(0);
    let ring: u16 = if user { 0x60 } else { 0 };
    let data = if user { 0x2b } else { 0x10 };
    let code = if user { 0x33 } else { 8 };
    let flat = Segment { selector: data, base: 0, limit: !0, attr: 0xc093 | ring };
    state.segments.reg[..6].fill(flat);
    let attr = 0xa09b | ring;
    *state.segment_mut(SegReg::Cs) = Segment { selector: code, attr, ..flat };
    state.segment_mut(SegReg::Fs).base = FS_BASE;
    state.segment_mut(SegReg::Gs).base = GS_BASE;
    *state.segment_mut(SegReg::Ldtr) = Segment { selector: 0, base: 0, limit: 0, attr: 0 };
    let tss = Segment { selector: 0x40, base: TSS, limit: 0x67, attr: 0x8b };
    *state.segment_mut(SegReg::Tr) = tss;
    state.segments.gdtr = Table { base: GDT, limit: 0x37 };
    state.segments.idtr = Table { base: IDT, limit: 0xfff };
    state.control.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP | cr0::MP;
    state.control.cr3 = TABLES;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    state.control.xcr0 = 7;
    state.control.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    state.regs.gpr[4] = STACK - 64;
    state.regs.rip = CODE;
    state
}
