//! Where the hypervisor's own pages are in guest-physical memory, and how they appear to the domain.
//!
//! Behind RAM, from the next multiple of 2 MiB on:
//!
//! | what | pages |
//! |---|---|
//! | the machine-to-physical list | 8 bytes for each frame, in pages of 2 MiB |
//! | page tables of the hypervisor's slots | 5 |
//! | page tables of descriptor tables | 1 for 16 vCPUs |
//! | the hypervisor's descriptors | 1 |
//! | the page that hypervisor and domain share | 1 |
//! | grant entries | [`GRANT_FRAMES`] |
//! | how grants of version 2 are used | [`STATUS_FRAMES`] |
//! | a page table for those that follow | 1 |
//! | pages of the engine's ([`Layout::ring0`]) | 1, and 1 for each vCPU |
//!
//! In the address space the list is at [`MACH2PHYS_VIRT`], for reading, and up to 24 GiB of RAM once
//! more 48 MiB behind; the same is two slots behind. Each vCPU's descriptors are in the slot between,
//! where only the processor itself looks, as are the engine's pages.

use crate::{bounce::flat, memory::Memory};
use engine::Ring0;
use guest_mem::PAGE;
use x86_defs::{
    paging::{A, D, NX, P, PS, RW, US},
    segment::{ATTR_DPL, Descriptor},
};
use xen_abi::{
    trap::{FIRST_RESERVED_GDT_ENTRY, selector},
    xen::{LEGACY_VCPUS, MACH2PHYS_VIRT, VcpuInfo},
};

const LARGE: u64 = 2 << 20;
/// How far behind the list appears once more. A kernel that looks up a frame in the list, and the
/// other way round in its own, which begins at a multiple of 64 MiB, too, finds the same offset in
/// both: in a TLB that takes an entry's place from the address they would evict each other each time.
const AGAIN: u64 = 48 << 20;
/// Grant entries that a domain can have: 512 a page in version 1, 256 in version 2.
pub const GRANT_FRAMES: u64 = 32;
/// The words of as many entries of version 2: 2048 a page.
pub const STATUS_FRAMES: u64 = GRANT_FRAMES * 256 / 2048;
/// A vCPU's descriptors: 16 pages of linear addresses for its GDT, and as many for its LDT.
const GDT_PAGES: u64 = 16;
const PAGES: u64 = 2 * GDT_PAGES;
/// Where descriptors begin.
const GDT_VIRT: u64 = MACH2PHYS_VIRT.start + (1 << 39);
/// vCPUs whose descriptors one table maps.
const VCPUS_PER_TABLE: u64 = 512 / PAGES;
/// Where a domain that asks is told that the list is. A KVM without VT-x keeps the first of the
/// hypervisor's slots to itself.
const M2P_VIRT: u64 = MACH2PHYS_VIRT.start + (2 << 39);
/// L1 tables of descriptors.
const GDT_TABLES: u64 = (VCPUS_MAX as u64).div_ceil(VCPUS_PER_TABLE);
/// Where the engine's pages begin: behind what those map.
const RING0_VIRT: u64 = GDT_VIRT + GDT_TABLES * LARGE;
const RING0_PAGES: u64 = 1 + VCPUS_MAX as u64;
/// Entries of the M2P that name no frame of the domain's.
pub const INVALID_M2P_ENTRY: u64 = !0;
/// vCPUs at most.
pub const VCPUS_MAX: u32 = LEGACY_VCPUS as u32;

/// Sizes and places.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of RAM.
    pub ram: u64,
}

impl Layout {
    pub fn new(ram: u64) -> Self {
        Self { ram }
    }

    /// Where the hypervisor's pages begin: a multiple of 2 MiB.
    pub fn start(&self) -> u64 {
        self.ram.next_multiple_of(LARGE)
    }

    fn m2p_bytes(&self) -> u64 {
        // Those of the hypervisor's own frames, too: at most 1/256 of the list itself.
        let frames = self.start() / PAGE;
        ((frames + frames / 256 + 1024) * 8).next_multiple_of(LARGE)
    }

    /// The list from machine frames to the domain's.
    pub fn m2p(&self) -> u64 {
        self.start()
    }

    /// Where the domain is told that it is.
    pub fn m2p_linear(&self) -> u64 {
        M2P_VIRT + if self.m2p_bytes() <= AGAIN { AGAIN } else { 0 }
    }

    /// Frames that the list has entries for.
    pub fn m2p_entries(&self) -> u64 {
        self.m2p_bytes() / 8
    }

    fn tables(&self) -> u64 {
        self.start() + self.m2p_bytes()
    }

    fn own_descriptors(&self) -> u64 {
        self.tables() + (5 + GDT_TABLES) * PAGE
    }

    pub fn shared_info(&self) -> u64 {
        self.own_descriptors() + PAGE
    }

    pub fn grants(&self) -> u64 {
        self.shared_info() + PAGE
    }

    /// How grants of version 2 are used.
    pub fn grant_status(&self) -> u64 {
        self.grants() + GRANT_FRAMES * PAGE
    }

    /// The first address behind what the domain may map.
    fn shared_end(&self) -> u64 {
        self.grant_status() + STATUS_FRAMES * PAGE
    }

    /// The first address behind all, a multiple of 2 MiB.
    pub fn end(&self) -> u64 {
        let ring0 = self.ring0();
        (ring0.gpa + ring0.pages * PAGE).next_multiple_of(LARGE)
    }

    fn ring0_table(&self) -> u64 {
        self.shared_end()
    }

    /// For an engine that intercepts by code of its own.
    pub fn ring0(&self) -> Ring0 {
        let gpa = self.ring0_table() + PAGE;
        Ring0 { gpa, linear: RING0_VIRT, pages: RING0_PAGES, code: selector::HYPERVISOR }
    }

    /// Whether a frame behind RAM is one that the domain may map.
    pub fn is_shared(&self, frame: u64) -> bool {
        (self.shared_info()..self.shared_end()).contains(&(frame * PAGE))
    }

    /// Where a vCPU's information is until it asks for another place.
    pub fn info(&self, vcpu: u32) -> u64 {
        self.shared_info() + u64::from(vcpu) * size_of::<VcpuInfo>() as u64
    }

    /// The linear address of a vCPU's descriptors.
    pub fn gdt_linear(vcpu: u32) -> u64 {
        GDT_VIRT + u64::from(vcpu) * PAGES * PAGE
    }

    /// The linear address of its LDT.
    pub fn ldt_linear(vcpu: u32) -> u64 {
        Self::gdt_linear(vcpu) + GDT_PAGES * PAGE
    }

    /// The table's entry that maps a page of a vCPU's LDT.
    pub fn ldt_entry(&self, vcpu: u32, page: u64) -> u64 {
        self.gdt_entry(vcpu, GDT_PAGES + page)
    }

    /// The table's entry that maps a page of a vCPU's descriptors.
    pub fn gdt_entry(&self, vcpu: u32, page: u64) -> u64 {
        self.gdt_tables() + (u64::from(vcpu) * PAGES + page) * 8
    }

    fn gdt_tables(&self) -> u64 {
        self.tables() + 5 * PAGE
    }

    /// The hypervisor's entries of each L4 table.
    pub fn slots(&self) -> [u64; 16] {
        let mut slots = [0; 16];
        slots[0] = self.tables() | TABLE_OF_DOMAIN;
        slots[2] = slots[0];
        slots[1] = (self.tables() + 2 * PAGE) | TABLE;
        slots
    }

    /// Fills the hypervisor's pages.
    pub fn build(&self, memory: &Memory, vcpus: u32) {
        let shared = self.shared_info() / PAGE..self.shared_end() / PAGE;
        shared.for_each(|frame| memory.clear(frame));
        for entry in 0..self.m2p_entries() {
            let value = if entry < self.ram / PAGE { entry } else { INVALID_M2P_ENTRY };
            memory.store(self.m2p() + entry * 8, value);
        }
        for vcpu in 0..VCPUS_MAX {
            // No events until the kernel wants them.
            memory.store(self.info(vcpu), 1 << 8);
        }
        self.build_own(memory, vcpus);
    }

    /// Fills those that the domain never writes, and whose contents are no part of its state.
    pub fn build_own(&self, memory: &Memory, vcpus: u32) {
        let own = self.tables() / PAGE..self.shared_info() / PAGE;
        own.for_each(|frame| memory.clear(frame));
        memory.clear(self.ring0_table() / PAGE);
        // L3 and L2 of the list. One L2 maps 1 GiB of it: the list of 512 GiB of RAM.
        let [m2p_l3, m2p_l2, gdt_l3, gdt_l2] = [0, 1, 2, 3].map(|n| self.tables() + n * PAGE);
        memory.store(m2p_l3, m2p_l2 | TABLE_OF_DOMAIN);
        for (index, page) in (0..self.m2p_bytes()).step_by(LARGE as usize).take(512).enumerate() {
            let entry = (self.m2p() + page) | P | US | A | D | PS | NX;
            let told = self.m2p_linear() - M2P_VIRT;
            for at in [0, told / LARGE] {
                memory.store(m2p_l2 + (at + index as u64) * 8, entry);
            }
        }
        memory.store(gdt_l3, gdt_l2 | TABLE);
        for table in 0..GDT_TABLES {
            memory.store(gdt_l2 + table * 8, (self.gdt_tables() + table * PAGE) | TABLE);
        }
        let own = self.own_descriptors();
        let attr = flat(selector::CS64).attr & !ATTR_DPL;
        let index = u64::from(selector::HYPERVISOR / 8) - u64::from(FIRST_RESERVED_GDT_ENTRY);
        memory.store(own + index * 8, Descriptor::new(0, 0xf_ffff, attr).0);
        let (table, ring0) = (self.ring0_table(), self.ring0());
        memory.store(gdt_l2 + GDT_TABLES * 8, table | TABLE);
        for page in 0..ring0.pages {
            let rights = if page == 0 { P | A } else { P | RW | A | D | NX };
            memory.store(table + page * 8, (ring0.gpa + page * PAGE) | rights);
        }
        for selector in [selector::CS32, selector::CS64, selector::SS] {
            let segment = flat(selector);
            let descriptor = Descriptor::new(0, 0xf_ffff, segment.attr);
            let index = u64::from(selector / 8) - u64::from(FIRST_RESERVED_GDT_ENTRY);
            memory.store(own + index * 8, descriptor.0);
        }
        for vcpu in 0..vcpus {
            let page = u64::from(FIRST_RESERVED_GDT_ENTRY) * 8 / PAGE;
            memory.store(self.gdt_entry(vcpu, page), own | P | RW | A | D | NX);
        }
    }
}

/// Of the hypervisor's tables that only the processor walks.
const TABLE: u64 = P | RW | A | D;
/// Of those that the domain reads by.
const TABLE_OF_DOMAIN: u64 = P | US | A | D;
