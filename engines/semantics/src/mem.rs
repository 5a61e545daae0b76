//! Guest memory by virtual address: segmentation, paging, RAM and MMIO.
//!
//! This file is the fast path: in 64-bit mode an access adds a base at most, hits the TLB and
//! is one instruction on the arena. [`slow`] does the rest. An access has no effect when it
//! faults: all of its pages are translated, and its rights checked, before any byte moves.

mod bytes;
mod fetch;
pub(crate) mod segmented;
mod slow;
mod stack;
mod system;
mod view;

pub use fetch::FetchPage;
pub use soft_mmu::Privilege;
pub use view::View;

use crate::{Cpu, Ctx, Stop, cpu::CodeSize};
use cpu_model::CpuidTable;
use guest_mem::{Arena, ArenaOffset, GuestMem, Layout, Plain};
use soft_mmu::{Access, Changes, Features, Held, PageFault, Paging, Phys, Place, Tlb};
use std::{collections::HashMap, sync::Arc};
use vcpu_state::SegReg;
use x86_defs::{cr::cr0, cr::cr4, dr, is_canonical_48, rflags};

/// What the vCPU knows of memory.
#[derive(Debug)]
pub struct Mmu {
    arena: Arc<Arena>,
    layout: Arc<Layout>,
    tlb: Tlb,
    paging: Paging,
    features: Features,
    /// Rights of explicit accesses.
    privilege: Privilege,
    /// Alignment is checked (SDM volume 3, 6.15, interrupt 17).
    align: bool,
    /// Data breakpoints, of the guest and of a debugger.
    watches: Vec<Watch>,
    /// Address of the debugger's watchpoint that the instruction under way has hit.
    pub watch_hit: Option<u64>,
    /// How often single pages were forgotten from which code was fetched.
    invalidations: u64,
    /// Pages from which code was fetched since.
    fetched: PageFilter,
    /// The same of global pages with a supervisor's rights, and how often these were forgotten.
    fetched_global: PageFilter,
    global_invalidations: u64,
    /// By linear address, where these pages are in guest-physical memory: all of them, as long as
    /// they are no more than [`MOST_COMPARED`].
    global_code: HashMap<u64, u64>,
    /// Of a kernel at level 3: entries of its L4 table that were asked for, a bit for each of the upper
    /// half.
    kernel_slots: [u64; 4],
    tags: Tags,
}

/// More pages of global code than this are neither remembered nor compared, but forgotten when
/// any is.
const MOST_COMPARED: usize = 8192;

/// Numbers under which translations of linear addresses for fetching may be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Differs whenever a linear address may translate otherwise than before, or with other
    /// rights; the same address space at the same privilege has the same tag again.
    pub all: u64,
    /// The same for addresses in global pages, while the rights are a supervisor's: loads of
    /// CR3 do not change it (SDM volume 3, 4.10.2.4). With a user's rights, as `all`.
    pub global: u64,
}

/// Remembers pages, and the larger ones around them, with some false positives.
#[derive(Debug)]
struct PageFilter(Box<[u64; WORDS]>);

const WORDS: usize = 1024;
const PAGE_MASK: u64 = !0xfff;

impl Default for PageFilter {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl PageFilter {
    /// The sizes of pages of which one may be forgotten: 4 KiB, 2 MiB, and larger ones.
    const SHIFTS: [u8; 3] = [12, 21, 30];

    fn at(linear: u64, shift: u8) -> (usize, u64) {
        let page = linear >> shift ^ u64::from(shift) << 56;
        let hash = (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        (hash / 64 % WORDS, 1 << (hash % 64))
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }

    fn insert(&mut self, linear: u64) {
        for shift in Self::SHIFTS {
            let (word, bit) = Self::at(linear, shift);
            self.0[word] |= bit;
        }
    }

    /// Something in the page of that size around the address.
    fn contains(&self, linear: u64, shift: u8) -> bool {
        let (word, bit) = Self::at(linear, shift);
        self.0[word] & bit != 0
    }
}

/// A watched range of linear addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    pub linear: u64,
    pub len: u64,
    /// Also reads count.
    pub reads: bool,
    /// DR6's bit, or none: a debugger's.
    pub bits: u64,
}

impl Mmu {
    pub fn new(mem: &Arc<GuestMem>) -> Self {
        Self {
            arena: mem.arena().clone(),
            layout: mem.layout(),
            tlb: Tlb::new(),
            paging: Paging::default(),
            features: Features::default(),
            privilege: Privilege::Supervisor,
            align: false,
            watches: Vec::new(),
            watch_hit: None,
            invalidations: 0,
            fetched: PageFilter::default(),
            fetched_global: PageFilter::default(),
            global_invalidations: 0,
            global_code: HashMap::new(),
            kernel_slots: [0; 4],
            tags: Tags::default(),
        }
    }

    /// Takes what page walks depend on from CPUID.
    pub fn set_features(&mut self, cpuid: &CpuidTable) {
        let [_, _, _, basic] = cpuid.lookup(1, 0);
        let [_, _, _, extended] = cpuid.lookup(0x8000_0001, 0);
        let [sizes, ..] = cpuid.lookup(0x8000_0008, 0);
        let phys_bits = match sizes as u8 {
            0 => 36,
            bits => bits.clamp(32, 52),
        };
        let (gbpages, pse36) = (extended >> 26 & 1 != 0, basic >> 17 & 1 != 0);
        self.features = Features { phys_bits, gbpages, pse36 };
    }

    pub fn features(&self) -> Features {
        self.features
    }

    pub fn phys(&self) -> Phys<'_> {
        Phys::new(&self.layout, &self.arena)
    }

    /// The page, which holds code from now on, is not to be written without asking.
    pub fn revoke_write(&mut self, page: ArenaOffset) {
        self.tlb.flush_write_page(page);
    }

    /// No page is to be written without asking.
    pub fn revoke_writes(&mut self) {
        self.tlb.flush_write();
    }

    /// What copies of the TLB's entries have to forget.
    #[inline]
    pub fn tlb_changes(&self) -> &Changes {
        self.tlb.changes()
    }

    /// Copies have forgotten it.
    pub fn forget_tlb_changes(&mut self) {
        self.tlb.forget_changes();
    }

    /// See [`Tlb::walks`].
    pub fn walks(&self) -> u64 {
        self.tlb.walks()
    }

    /// See [`Tlb::plane`].
    #[inline]
    pub fn plane(&self) -> Option<usize> {
        self.tlb.plane()
    }

    /// Enters the page of an explicit access in the TLB, as if that was made. False if it
    /// cannot be, or must be looked at: then it may not have happened yet.
    pub fn fill(&mut self, linear: u64, write: bool) -> bool {
        let access = if write { Access::Write } else { Access::Read };
        is_canonical_48(linear)
            && self.plane().is_some()
            && self
                .translate(linear, access, self.privilege)
                .is_ok_and(|place| place.ram.is_some() && !place.code)
    }

    /// As [`Self::fill`], before an access that is likely to come: a page counts as accessed then,
    /// but not as written if it did not before (SDM volume 3, 4.8).
    pub fn fill_early(&mut self, linear: u64, write: bool) -> bool {
        let phys = Phys::new(&self.layout, &self.arena);
        let written = || {
            soft_mmu::walk(phys, &self.paging, linear, Access::Read, self.privilege)
                .is_ok_and(|found| found.write)
        };
        is_canonical_48(linear) && (!write || written()) && self.fill(linear, write)
    }

    /// What the TLB knows of a page with the current rights.
    #[inline]
    pub fn held(&self, linear: u64) -> Option<Held> {
        self.tlb.held(linear)
    }

    pub fn host_address(&self, at: ArenaOffset) -> u64 {
        self.arena.host_address(at)
    }

    /// The end of the mapping, of one file, that a host address in the arena is part of.
    pub fn mapped_until(&self, host: u64) -> Option<u64> {
        let first = self.arena.host_address(ArenaOffset(0));
        let at = ArenaOffset(host.checked_sub(first)? as usize);
        self.arena.mapped_until(at).map(|end| self.arena.host_address(end))
    }

    /// Under which numbers translations for fetching may be kept now.
    #[inline(always)]
    pub fn tags(&self) -> Tags {
        self.tags
    }

    /// Forgets all translations, global ones included.
    pub fn flush_all(&mut self) {
        self.tlb.flush_all();
        self.forget_global_code();
        self.retag();
    }

    /// The same, for the guest: its page tables may differ, and nothing else.
    ///
    /// Kernels do so when they change any of their pages, and their code is mostly where it was.
    /// Then what is known of where its addresses lead stays.
    pub fn flush_all_pages(&mut self) {
        self.tlb.flush_all();
        let mut all = self.global_code.iter();
        let stays = self.compares() && all.all(|(linear, gpa)| self.is_at(*linear, *gpa));
        if !stays {
            self.forget_global_code();
        }
        self.retag();
    }

    /// All pages of global code are remembered.
    fn compares(&self) -> bool {
        self.global_code.len() <= MOST_COMPARED
    }

    /// Of a page of global code the tables say what they said.
    fn is_at(&self, linear: u64, gpa: u64) -> bool {
        soft_mmu::is_as_fetched(Phys::new(&self.layout, &self.arena), &self.paging, linear, gpa)
    }

    pub(crate) fn forget_global_code(&mut self) {
        self.global_invalidations += 1;
        self.fetched_global.clear();
        self.global_code.clear();
    }

    /// Forgets all translations; where a kernel's code is at level 3, stays.
    pub(crate) fn flush_tlb(&mut self) {
        self.tlb.flush_all();
        self.retag();
    }

    /// Another address space of the same guest at level 3 is used, in planes of its own.
    pub(crate) fn set_root(&mut self, cr3: u64) {
        self.paging.set_root(cr3);
    }

    /// The entries of L4 tables in the upper half that a kernel at level 3 has used.
    pub(crate) fn kernel_slots(&self) -> impl Iterator<Item = u64> {
        let words = self.kernel_slots;
        (0..256u64).filter(move |n| words[(n / 64) as usize] >> (n % 64) & 1 != 0).map(|n| 256 + n)
    }

    /// Code is fetched from the page; true if what is known of it may be kept under
    /// [`Tags::global`].
    fn note_fetch(&mut self, linear: u64, gpa: u64, privilege: Privilege) -> bool {
        self.fetched.insert(linear);
        let global = privilege != Privilege::User && self.tlb.is_global(linear, privilege);
        if global {
            self.fetched_global.insert(linear);
            // With one more than are compared, none is.
            if self.compares() {
                self.global_code.insert(linear & PAGE_MASK, gpa & PAGE_MASK);
            }
        }
        global
    }

    /// Forgets the translations of one address in all address spaces (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        let shift = self.tlb.flush_page(linear).unwrap_or(12);
        let (any, global) =
            (self.fetched.contains(linear, shift), self.fetched_global.contains(linear, shift));
        if any {
            self.invalidations += 1;
            self.fetched.clear();
        }
        let page = linear & PAGE_MASK;
        let known = || self.global_code.get(&page).is_none_or(|gpa| self.is_at(page, *gpa));
        let global = global && !(shift == 12 && self.compares() && known());
        if global {
            self.forget_global_code();
        }
        if any || global {
            self.retag();
        }
    }

    /// Forgets what is not global, in all address spaces.
    pub fn flush_non_global(&mut self) {
        self.tlb.flush_non_global();
        self.retag();
    }

    /// Forgets what is not global of one PCID.
    pub fn flush_pcid(&mut self, pcid: u16) {
        self.tlb.flush_pcid(pcid);
        self.retag();
    }

    /// CR3 was loaded; `paging` has the new root.
    pub(crate) fn switch(&mut self, paging: Paging, pcid: u16, keep: bool) {
        self.paging = paging;
        self.tlb.switch(pcid, keep);
        self.retag();
    }

    fn retag(&mut self) {
        self.tags = self.tags_of(self.privilege);
    }

    /// The tags in this address space at one privilege or the other.
    #[inline]
    pub fn tags_of(&self, privilege: Privilege) -> Tags {
        let number = match privilege {
            Privilege::Supervisor | Privilege::SupervisorAc => 0,
            Privilege::User => 1,
            Privilege::Deprivileged => 3,
        };
        // Either part alone takes a vCPU's lifetime to come round.
        let all = (self.invalidations << 30 ^ self.tlb.context()) << 2 | number;
        let user = privilege == Privilege::User;
        let global = if user { all } else { self.global_invalidations << 2 | 2 };
        Tags { all, global }
    }

    /// The data breakpoints; while there are any, each access is looked at.
    pub fn set_watches(&mut self, watches: Vec<Watch>) {
        self.watches = watches;
        self.open_fast_path();
    }

    pub fn watches(&self) -> &[Watch] {
        &self.watches
    }

    fn open_fast_path(&mut self) {
        let fast = !self.align && self.watches.is_empty();
        self.tlb.set_privilege(fast.then_some(self.privilege));
    }

    fn translate(
        &mut self,
        linear: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        if privilege.shares_upper() {
            let slot = linear >> 39 & 255;
            self.kernel_slots[(slot / 64) as usize] |= (linear >> 63) << (slot % 64);
        }
        let phys = Phys::new(&self.layout, &self.arena);
        self.tlb.translate(phys, &self.paging, linear, access, privilege)
    }
}

impl Cpu {
    /// CPL, code size or protection mode have changed, or RFLAGS.AC: called by `update_mode`.
    pub fn mode_changed(&mut self) {
        let ac = self.rflags & rflags::AC != 0;
        let user = self.mode.cpl == 3;
        self.mmu.privilege = match (user, ac) {
            (true, _) if self.is_deprivileged() => Privilege::Deprivileged,
            (true, _) => Privilege::User,
            // Without CR4.SMAP the two have the same rights.
            (false, true) => Privilege::SupervisorAc,
            (false, false) => Privilege::Supervisor,
        };
        self.mmu.align = user && ac && self.cr0 & cr0::AM != 0;
        self.mmu.open_fast_path();
        self.mmu.retag();
    }

    /// CR0, CR4 or EFER has changed so that translations may differ, or what was cached must
    /// go (SDM volume 3, 4.10.4.1).
    pub fn paging_changed(&mut self) {
        self.mmu.paging = self.new_paging();
        self.mmu.flush_all();
        self.mode_changed();
    }

    pub(crate) fn new_paging(&self) -> Paging {
        Paging::new([self.cr0, self.cr3, self.cr4, self.efer], self.pdpte, self.mmu.features)
    }

    /// All of the state was replaced.
    pub fn state_replaced(&mut self) {
        let cpuid = self.cpuid.clone();
        self.mmu.set_features(&cpuid);
        self.fdp_exceptions_only = cpuid.lookup(7, 0)[1] & 1 << 6 != 0;
        let pcid = Paging::pcid(self.cr3, self.cr4);
        let paging = self.new_paging();
        self.mmu.switch(paging, pcid, false);
        self.mmu.flush_all();
        self.debug_changed();
    }

    /// Takes the layout anew and forgets all translations.
    pub fn layout_changed(&mut self) {
        self.mmu.layout = self.mem.layout();
        self.mmu.flush_all();
    }

    /// DR7 or an address it enables has changed: data breakpoints of the guest follow.
    pub(crate) fn debug_changed(&mut self) {
        let debugger = self.mmu.watches.iter().filter(|w| w.bits == 0);
        let mut watches: Vec<_> = debugger.copied().collect();
        for (n, address) in self.dr.iter().enumerate() {
            let enabled = self.dr7 >> (2 * n) & 3 != 0;
            let kind = self.dr7 >> (16 + 4 * n) & 3;
            if enabled && matches!(kind, 1 | 3) {
                let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize];
                let linear = address & !(len - 1);
                watches.push(Watch { linear, len, reads: kind == 3, bits: 1 << n });
            }
        }
        self.mmu.set_watches(watches);
    }
}

impl Cpu {
    /// I/O breakpoints that an access to a port hits (SDM volume 3, 18.2.4).
    pub(crate) fn note_port(&mut self, port: u16, size: u8) {
        if self.dr7 & dr::DR7_ENABLED == 0 || self.cr4 & cr4::DE == 0 {
            return;
        }
        for (n, address) in self.dr.iter().enumerate() {
            let enabled = self.dr7 >> (2 * n) & 3 != 0 && self.dr7 >> (16 + 4 * n) & 3 == 2;
            let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize];
            let apart = u64::from(port).wrapping_sub(address & !(len - 1));
            if enabled && (apart < len || apart.wrapping_neg() < size.into()) {
                self.dr_hits |= 1 << n;
                self.leave = true;
            }
        }
    }
}

impl Ctx<'_> {
    /// Loads in 64-bit mode from a segment whose base is not used; `seg` tells #SS from #GP.
    #[inline(always)]
    pub fn load_flat<T: Plain>(&mut self, seg: SegReg, ea: u64) -> Result<T, Stop> {
        match self.cpu.mmu.tlb.read(ea, size_of::<T>()) {
            Some(at) => Ok(self.cpu.mmu.arena.load(at)),
            None => self.load_slow(seg, ea),
        }
    }

    #[inline(always)]
    pub fn store_flat<T: Plain>(&mut self, seg: SegReg, ea: u64, v: T) -> Result<(), Stop> {
        match self.cpu.mmu.tlb.write(ea, size_of::<T>()) {
            Some(at) => {
                self.cpu.mmu.arena.store(at, v);
                Ok(())
            }
            None => self.store_slow(seg, ea, v),
        }
    }

    /// Stores `f` of what is there; returns what was there. `locked`: atomically, and then `f`
    /// may be called more than once.
    #[inline(always)]
    pub fn rmw_flat<T: Plain>(
        &mut self,
        seg: SegReg,
        ea: u64,
        locked: bool,
        mut f: impl FnMut(T) -> T,
    ) -> Result<T, Stop> {
        match self.cpu.mmu.tlb.write(ea, size_of::<T>()) {
            Some(at) => Ok(modify(&self.cpu.mmu.arena, at, locked, f)),
            None => self.rmw_slow(seg, ea, locked, &mut f),
        }
    }

    /// The linear address in 64-bit mode, where only FS and GS have bases.
    #[inline(always)]
    fn linear64(&self, seg: SegReg, ea: u64) -> u64 {
        match seg {
            SegReg::Fs | SegReg::Gs => self.cpu.segment(seg).base.wrapping_add(ea),
            _ => ea,
        }
    }

    #[inline]
    pub fn load<T: Plain>(&mut self, seg: SegReg, ea: u64) -> Result<T, Stop> {
        let linear = match self.cpu.mode.code {
            CodeSize::Bits64 => self.linear64(seg, ea),
            _ => self.segmented(seg, ea, size_of::<T>() as u64, Access::Read)?,
        };
        self.load_flat(seg, linear)
    }

    #[inline]
    pub fn store<T: Plain>(&mut self, seg: SegReg, ea: u64, v: T) -> Result<(), Stop> {
        let linear = match self.cpu.mode.code {
            CodeSize::Bits64 => self.linear64(seg, ea),
            _ => self.segmented(seg, ea, size_of::<T>() as u64, Access::Write)?,
        };
        self.store_flat(seg, linear, v)
    }

    #[inline]
    pub fn rmw<T: Plain>(
        &mut self,
        seg: SegReg,
        ea: u64,
        locked: bool,
        f: impl FnMut(T) -> T,
    ) -> Result<T, Stop> {
        let linear = match self.cpu.mode.code {
            CodeSize::Bits64 => self.linear64(seg, ea),
            _ => self.segmented(seg, ea, size_of::<T>() as u64, Access::Write)?,
        };
        self.rmw_flat(seg, linear, locked, f)
    }

    /// The linear address of `len` bytes (at least 1), after the checks of segmentation.
    pub(crate) fn linear(
        &mut self,
        seg: SegReg,
        ea: u64,
        len: u64,
        access: Access,
    ) -> Result<u64, Stop> {
        match self.cpu.mode.code {
            CodeSize::Bits64 => Ok(self.linear64(seg, ea)),
            _ => self.segmented(seg, ea, len, access),
        }
    }

    /// As [`Self::host_span`], after the page has been looked for that the TLB does not know: another
    /// one of the same instruction may have its place there.
    pub fn host_span_found(
        &mut self,
        seg: SegReg,
        ea: u64,
        len: u64,
        write: bool,
    ) -> Option<ArenaOffset> {
        if let Some(at) = self.host_span(seg, ea, len, write) {
            return Some(at);
        }
        let access = if write { Access::Write } else { Access::Read };
        let linear = match self.cpu.mode.code {
            CodeSize::Bits64 => self.linear64(seg, ea),
            _ => self.cpu.checked_linear(seg, ea, len, access)?,
        };
        self.cpu.mmu.fill(linear, write).then(|| self.host_span(seg, ea, len, write))?
    }

    /// The RAM of `ea..ea+len`, if it lies in one page, segment checks pass, and `write` (or
    /// reading) needs nothing but the access itself: no device, no code, nothing to log.
    /// Never faults: on `None`, take the slow path.
    pub fn host_span(
        &mut self,
        seg: SegReg,
        ea: u64,
        len: u64,
        write: bool,
    ) -> Option<ArenaOffset> {
        if !(1..=guest_mem::PAGE).contains(&len) {
            return None;
        }
        let access = if write { Access::Write } else { Access::Read };
        let linear = match self.cpu.mode.code {
            CodeSize::Bits64 => self.linear64(seg, ea),
            _ => self.cpu.checked_linear(seg, ea, len, access)?,
        };
        match write {
            true => self.cpu.mmu.tlb.write(linear, len as usize),
            false => self.cpu.mmu.tlb.read(linear, len as usize),
        }
    }
}

/// Read-modify-write of RAM.
#[inline(always)]
fn modify<T: Plain>(arena: &Arena, at: ArenaOffset, locked: bool, mut f: impl FnMut(T) -> T) -> T {
    let mut old = arena.load(at);
    if !locked {
        arena.store(at, f(old));
        return old;
    }
    loop {
        let seen = arena.compare_exchange(at, old, f(old));
        if seen == old {
            return old;
        }
        old = seen;
    }
}
