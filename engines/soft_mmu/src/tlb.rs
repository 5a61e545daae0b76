//! The software TLB.
//!
//! One direct-mapped table per privilege. An entry has a tag per kind of access, so that a hit
//! is one compare that also covers rights, page crossing and canonical form:
//!
//! * A tag is the page's linear address with the number of its *context* in the low twelve
//!   bits. A context is one lifetime of one PCID's entries. Forgetting a PCID gives it a new
//!   context; nothing is searched. When contexts run out, all entries go.
//! * Global pages carry the context of the address space that used them last. A miss looks
//!   whether the entry is global, and if so only changes its tag.
//! * Pages that hold decoded code, read-only memory, and pages whose dirty bit is clear have
//!   no write tag; devices' pages have no entry at all.
//!
//! Large pages enter as 4 KiB pieces. Where they were is remembered, so that invalidating one
//! address removes the other pieces too (SDM volume 3, 4.10.4.1).
//!
//! Others may copy entries, and are told by [`Changes`] what to forget.

use crate::{
    Access, Changes, PageFault, Paging, Phys, Privilege,
    reverse::{Regions, Writers},
    walk,
};
use guest_mem::{ArenaOffset, PAGE};

/// Entries per privilege.
const SIZE: usize = 16384;
/// Contexts are 1 to this.
const CONTEXTS: u16 = 0xfff;
/// PCIDs (SDM volume 3, 4.10.1).
const PCIDS: usize = 4096;
const PAGE_MASK: u64 = !(PAGE - 1);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
struct Entry {
    read: u64,
    write: u64,
    execute: u64,
    /// Arena offset less linear address.
    delta: u64,
}

/// What an entry is made from.
#[derive(Clone, Copy, Debug, Default)]
struct Origin {
    /// Linear page and context as in a tag; for a global page, the global context.
    tag: u64,
    gpa: u64,
    write: bool,
    execute: bool,
    global: bool,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub gpa: u64,
    /// `None`: a device's, or a write to read-only memory, which is a device's too.
    pub ram: Option<ArenaOffset>,
    /// A write changes bytes from which code was decoded.
    pub code: bool,
}

/// An entry as whoever copies it sees it: good until [`Tlb::changes`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub page: ArenaOffset,
    pub read: bool,
    pub write: bool,
    pub global: bool,
}

/// One vCPU's.
pub struct Tlb {
    /// Indexed by privilege; the last stays empty, for when each access must be looked at.
    planes: Box<[[Entry; SIZE]; 4]>,
    origins: Box<[[Origin; SIZE]; 4]>,
    plane: usize,
    context: u64,
    global_context: u64,
    /// Of each PCID; 0 if it has none.
    contexts: Box<[u16; PCIDS]>,
    last_context: u16,
    /// How often contexts have run out.
    rounds: u64,
    changes: Changes,
    walks: u64,
    pcid: u16,
    /// Where large pages were entered: 2 MiB, and 1 GiB or 4 MiB.
    large: Regions,
    huge: Regions,
    writers: Writers,
}

impl std::fmt::Debug for Tlb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tlb")
            .field("plane", &self.plane)
            .field("pcid", &self.pcid)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// A boxed array that never stands on the stack.
fn boxed<T: Copy + Default, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the vector has N elements"),
    }
}

fn planes<T: Copy + Default>() -> Box<[[T; SIZE]; 4]> {
    match vec![[T::default(); SIZE]; 4].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the vector has four elements"),
    }
}

const fn index(gva: u64) -> usize {
    (gva / PAGE) as usize % SIZE
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Tlb {
    pub fn new() -> Self {
        let mut tlb = Self {
            planes: planes(),
            origins: planes(),
            plane: 0,
            context: 0,
            global_context: 0,
            contexts: boxed(0),
            last_context: 0,
            rounds: 0,
            changes: Changes::default(),
            walks: 0,
            pcid: 0,
            large: Regions::new(21),
            huge: Regions::new(30),
            writers: Writers::new(),
        };
        tlb.flush_all();
        tlb
    }

    /// With whose rights [`Self::read`] and its like hit from now on. `None`: never, so that
    /// each access goes the slow way, as alignment checks need.
    #[inline]
    pub fn set_privilege(&mut self, privilege: Option<Privilege>) {
        self.plane = privilege.map_or(3, Privilege::plane);
    }

    #[inline(always)]
    fn entry(&self, gva: u64) -> &Entry {
        &self.planes[self.plane & 3][index(gva)]
    }

    /// The tag that an access of `len` bytes must find: that of its last byte's page. If it
    /// crosses into the next page, it cannot be found where the first byte's page would be.
    #[inline(always)]
    fn wanted(&self, gva: u64, len: usize) -> u64 {
        gva.wrapping_add(len as u64 - 1) & PAGE_MASK | self.context
    }

    /// Where `len` bytes (at least 1) can be read, if the page is known.
    #[inline(always)]
    pub fn read(&self, gva: u64, len: usize) -> Option<ArenaOffset> {
        let entry = self.entry(gva);
        let at = ArenaOffset(gva.wrapping_add(entry.delta) as usize);
        (entry.read == self.wanted(gva, len)).then_some(at)
    }

    #[inline(always)]
    pub fn write(&self, gva: u64, len: usize) -> Option<ArenaOffset> {
        let entry = self.entry(gva);
        let at = ArenaOffset(gva.wrapping_add(entry.delta) as usize);
        (entry.write == self.wanted(gva, len)).then_some(at)
    }

    /// Like [`Self::read`] with a supervisor's implicit rights, whatever the current ones.
    #[inline]
    pub fn supervisor_read(&self, gva: u64, len: usize) -> Option<ArenaOffset> {
        let entry = &self.planes[Privilege::Supervisor.plane()][index(gva)];
        let at = ArenaOffset(gva.wrapping_add(entry.delta) as usize);
        (entry.read == self.wanted(gva, len)).then_some(at)
    }

    #[inline]
    pub fn supervisor_write(&self, gva: u64, len: usize) -> Option<ArenaOffset> {
        let entry = &self.planes[Privilege::Supervisor.plane()][index(gva)];
        let at = ArenaOffset(gva.wrapping_add(entry.delta) as usize);
        (entry.write == self.wanted(gva, len)).then_some(at)
    }

    #[inline(always)]
    pub fn execute(&self, gva: u64, len: usize) -> Option<ArenaOffset> {
        let entry = self.entry(gva);
        let at = ArenaOffset(gva.wrapping_add(entry.delta) as usize);
        (entry.execute == self.wanted(gva, len)).then_some(at)
    }

    /// What copies of entries have to forget.
    #[inline]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Copies have forgotten it.
    pub fn forget_changes(&mut self) {
        self.changes.clear();
    }

    /// How often page tables were walked.
    pub fn walks(&self) -> u64 {
        self.walks
    }

    /// The plane of the current rights; `None` while each access must be looked at.
    #[inline]
    pub fn plane(&self) -> Option<usize> {
        (self.plane < 3).then_some(self.plane)
    }

    /// What can be copied of an entry for the current rights.
    #[inline]
    pub fn held(&self, gva: u64) -> Option<Held> {
        let (page, entry) = (gva & PAGE_MASK, self.entry(gva));
        let tag = page | self.context;
        let (read, write) = (entry.read == tag, entry.write == tag);
        let at = ArenaOffset(page.wrapping_add(entry.delta) as usize);
        let global = self.origins[self.plane & 3][index(gva)].global;
        (read || write).then_some(Held { page: at, read, write, global })
    }

    /// Translates the slow way with rights that may differ from the current ones, and enters
    /// the page. `gva` is canonical.
    pub fn translate(
        &mut self,
        phys: Phys<'_>,
        paging: &Paging,
        gva: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        let gva = paging.linear(gva);
        if let Some(place) = self.known(gva, access, privilege) {
            return Ok(place);
        }
        self.walks += 1;
        let found = walk(phys, paging, gva, access, privilege)?;
        let write = access == Access::Write;
        let page = phys.page(found.gpa);
        let Some((region, number, base)) = page.filter(|(r, ..)| !write || r.slot.writable) else {
            return Ok(Place { gpa: found.gpa, ram: None, code: false });
        };
        let code = region.code().get(number);
        if write {
            region.dirty().set(number);
        }
        // A write tag only for writes: it is what marks the page dirty.
        let writable = found.write && write && !code && region.slot.writable;
        let global = found.global || privilege.shares_upper() && gva >> 63 != 0;
        let context = if global { self.global_context } else { self.context };
        let page = gva & PAGE_MASK;
        let origin = Origin {
            tag: page | context,
            gpa: found.gpa & PAGE_MASK,
            write: writable,
            execute: found.execute,
            global,
        };
        let tag = page | self.context;
        let entry = Entry {
            read: if found.read { tag } else { 0 },
            write: if writable { tag } else { 0 },
            execute: if found.execute { tag } else { 0 },
            delta: (base.0 as u64).wrapping_sub(page),
        };
        self.enter(privilege.plane(), index(gva), origin, entry);
        match found.shift {
            12 => {}
            21 => self.large.insert(gva),
            // 4 MiB and 1 GiB.
            _ => self.huge.insert(gva),
        }
        let at = ArenaOffset(base.0 + (gva & !PAGE_MASK) as usize);
        Ok(Place { gpa: found.gpa, ram: Some(at), code: write && code })
    }

    fn enter(&mut self, plane: usize, index: usize, origin: Origin, entry: Entry) {
        let (old, was) = (self.origins[plane][index], self.planes[plane][index]);
        // What belongs to other address spaces, copies have forgotten.
        let current = old.tag != 0 && (old.global || old.tag & !PAGE_MASK == self.context);
        let page = old.tag & PAGE_MASK;
        let same = page == origin.tag & PAGE_MASK
            && was.delta == entry.delta
            && (origin.write || !old.write);
        if current && !same {
            match page == origin.tag & PAGE_MASK {
                true => self.changes.page(page),
                false => self.changes.evict(page),
            }
        }
        if origin.write {
            let at = (origin.tag & PAGE_MASK).wrapping_add(entry.delta);
            let number = plane * SIZE + index;
            let (origins, planes) = (&self.origins, &self.planes);
            // What others allowed may be gone.
            let stale = |other| !collides(origins, planes, other, at);
            self.writers.insert(at, number, stale);
        }
        self.origins[plane][index] = origin;
        self.planes[plane][index] = entry;
    }

    /// An entry that allows the access. One of a global page that another address space used
    /// last becomes the current one's.
    fn known(&mut self, gva: u64, access: Access, privilege: Privilege) -> Option<Place> {
        let (p, i) = (privilege.plane(), index(gva));
        let (page, origin) = (gva & PAGE_MASK, self.origins[p][i]);
        let context = if origin.global { self.global_context } else { self.context };
        if origin.tag != page | context {
            return None;
        }
        let (tag, entry) = (page | self.context, &mut self.planes[p][i]);
        if origin.global {
            // A page that exists can be read, except where SMAP or the like forbade it.
            entry.read = if entry.read != 0 { tag } else { 0 };
            entry.write = if origin.write { tag } else { 0 };
            entry.execute = if origin.execute { tag } else { 0 };
        }
        let found = match access {
            Access::Read => entry.read,
            Access::Write => entry.write,
            Access::Execute => entry.execute,
        };
        let place = Place {
            gpa: origin.gpa | gva & !PAGE_MASK,
            ram: Some(ArenaOffset(gva.wrapping_add(entry.delta) as usize)),
            code: false,
        };
        (found == tag).then_some(place)
    }

    /// A load of CR3: what follows belongs to `pcid`, whose entries are forgotten unless
    /// `keep` is set; global ones stay.
    pub fn switch(&mut self, pcid: u16, keep: bool) {
        self.changes.local = true;
        self.pcid = pcid % PCIDS as u16;
        let known = self.contexts[usize::from(self.pcid)];
        if keep && known != 0 {
            self.context = u64::from(known);
        } else {
            self.renew();
        }
    }

    /// Gives the current PCID a new context.
    fn renew(&mut self) {
        self.changes.local = true;
        let Some(context) = self.allocate() else { return self.flush_all() };
        self.contexts[usize::from(self.pcid)] = context;
        self.context = u64::from(context);
    }

    fn allocate(&mut self) -> Option<u16> {
        (self.last_context < CONTEXTS).then(|| {
            self.last_context += 1;
            self.last_context
        })
    }

    /// Forgets everything, global pages included.
    pub fn flush_all(&mut self) {
        self.changes.all();
        self.contexts.fill(0);
        self.large.clear();
        self.huge.clear();
        let (Some(global), Some(context)) = (self.allocate(), self.allocate()) else {
            return self.restart();
        };
        self.global_context = u64::from(global);
        self.contexts[usize::from(self.pcid)] = context;
        self.context = u64::from(context);
    }

    /// Contexts have run out: numbers begin anew, so the old entries must go.
    fn restart(&mut self) {
        self.changes.all();
        self.planes.iter_mut().for_each(|p| p.fill(Entry::default()));
        self.origins.iter_mut().for_each(|p| p.fill(Origin::default()));
        self.rounds += 1;
        (self.last_context, self.global_context, self.context) = (2, 1, 2);
        self.contexts[usize::from(self.pcid)] = 2;
    }

    /// Forgets the entries of all PCIDs but global ones (INVPCID type 3).
    pub fn flush_non_global(&mut self) {
        self.contexts.fill(0);
        self.renew();
    }

    /// Forgets the entries of one PCID but global ones (INVPCID type 1).
    pub fn flush_pcid(&mut self, pcid: u16) {
        if pcid == self.pcid {
            self.renew();
        } else if let Some(context) = self.contexts.get_mut(usize::from(pcid)) {
            *context = 0;
        }
    }

    /// Forgets a page in all address spaces: more than INVLPG and INVPCID type 0 ask for.
    /// If it may have been a large one, so that other addresses are concerned, returns how many
    /// low bits of an address are the offset in it.
    pub fn flush_page(&mut self, gva: u64) -> Option<u8> {
        let shift = match (self.huge.contains(gva), self.large.contains(gva)) {
            (true, _) => Some(self.huge.shift),
            (false, true) => Some(self.large.shift),
            (false, false) => None,
        };
        if let Some(shift) = shift {
            self.changes.all();
            self.forget_region(gva, shift);
            // The larger region may have others of the smaller size: they only cost time.
            let regions = if shift == self.huge.shift { &mut self.huge } else { &mut self.large };
            regions.remove(gva);
            return Some(shift);
        }
        self.changes.page(gva & PAGE_MASK);
        for plane in 0..3 {
            if self.origins[plane][index(gva)].tag & PAGE_MASK == gva & PAGE_MASK {
                self.origins[plane][index(gva)] = Origin::default();
                self.planes[plane][index(gva)] = Entry::default();
            }
        }
        None
    }

    /// The page is known, and known to be the same in all address spaces.
    pub fn is_global(&self, gva: u64, privilege: Privilege) -> bool {
        let origin = &self.origins[privilege.plane()][index(gva)];
        origin.global && origin.tag == gva & PAGE_MASK | self.global_context
    }

    /// Each next write to any page takes the slow path, which marks the page dirty.
    pub fn flush_write(&mut self) {
        self.changes.all();
        for entry in self.planes.as_flattened_mut() {
            entry.write = 0;
        }
        for origin in self.origins.as_flattened_mut() {
            origin.write = false;
        }
    }

    /// The next write to the page of the arena takes the slow path: it now holds code.
    pub fn flush_write_page(&mut self, page: ArenaOffset) {
        let page = page.0 as u64 & PAGE_MASK;
        self.changes.revoke(ArenaOffset(page as usize));
        let Some(named) = self.writers.of(page) else { return self.revoke_everywhere(page) };
        for number in named {
            self.revoke(number / SIZE, number % SIZE, page);
        }
    }

    /// Takes the right to write, if the entry gives it for this page of the arena.
    fn revoke(&mut self, plane: usize, index: usize, page: u64) {
        let (origin, entry) = (&mut self.origins[plane][index], &mut self.planes[plane][index]);
        let linear = origin.tag & PAGE_MASK;
        if origin.write && linear.wrapping_add(entry.delta) == page {
            origin.write = false;
            entry.write = 0;
            self.changes.page(linear);
        }
    }

    #[cold]
    fn revoke_everywhere(&mut self, page: u64) {
        let mut others = Vec::new();
        for (plane, index) in (0..3).flat_map(|p| (0..SIZE).map(move |i| (p, i))) {
            let (origin, entry) = (&self.origins[plane][index], &self.planes[plane][index]);
            if !origin.write {
                continue;
            }
            let at = (origin.tag & PAGE_MASK).wrapping_add(entry.delta);
            if at == page {
                self.revoke(plane, index, page);
            } else if Writers::collide(at, page) {
                others.push((at, plane * SIZE + index));
            }
        }
        self.writers.forget(page);
        others.into_iter().for_each(|(at, number)| self.writers.insert(at, number, |_| false));
    }

    /// The number of the address space's present lifetime, below 2^51. Under one number, a
    /// linear address translates always to the same, but for what [`Self::flush_page`] and
    /// unannounced changes of the tables do.
    pub fn context(&self) -> u64 {
        self.rounds << 12 | self.context
    }

    /// Forgets all of a naturally aligned region, whose entries lie in a row.
    fn forget_region(&mut self, gva: u64, shift: u8) {
        let first = index(gva >> shift << shift);
        let count = SIZE.min(1 << shift.saturating_sub(12).min(32));
        for (plane, n) in (0..4).flat_map(|p| (0..count).map(move |n| (p, n))) {
            let index = (first + n) % SIZE;
            let origin = &mut self.origins[plane][index];
            if (origin.tag ^ gva) >> shift == 0 {
                *origin = Origin::default();
                self.planes[plane][index] = Entry::default();
            }
        }
    }
}

/// The entry of this number allows to write a page that is not told apart from this one.
fn collides(
    origins: &[[Origin; SIZE]; 4],
    planes: &[[Entry; SIZE]; 4],
    number: usize,
    page: u64,
) -> bool {
    let (plane, index) = (number / SIZE % 4, number % SIZE);
    let (origin, entry) = (&origins[plane][index], &planes[plane][index]);
    let at = (origin.tag & PAGE_MASK).wrapping_add(entry.delta);
    origin.write && Writers::collide(at, page)
}
