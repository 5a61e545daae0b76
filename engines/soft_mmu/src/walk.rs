//! Page walks (SDM volume 3, 4.3 to 4.7).
//!
//! A table entry that does not lie in memory reads as zero, that is, as not present: a guest
//! that points its tables at devices or at nothing gets page faults. Tables in read-only
//! memory keep their accessed and dirty bits as they are.

use crate::{Access, Mode, Paging, Phys, Privilege};
use guest_mem::GuestMem;
use x86_defs::{
    exception::pf,
    paging::{A, ADDRESS, D, G, NX, P, PS, RW, US},
};

/// The error code of a page fault; its address is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault(pub u32);

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub gpa: u64,
    /// Of the page: 12, 21, 22 or 30.
    pub shift: u8,
    /// Rights of the walk's privilege, by the entries as they are now.
    pub read: bool,
    /// Also requires the dirty bit, so that a write that needs it set walks again.
    pub write: bool,
    pub execute: bool,
    /// Kept by a change of address space.
    pub global: bool,
}

/// Walks that a concurrent writer of the tables makes us repeat before we give up. The fault
/// that follows is one that the writer's own next change may have caused.
const RETRIES: usize = 256;

/// Translates `gva`, and sets accessed and dirty bits if the access is allowed.
pub fn walk(
    phys: Phys<'_>,
    paging: &Paging,
    gva: u64,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, PageFault> {
    if paging.mode == Mode::Off {
        let gpa = paging.linear(gva);
        let all = true;
        return Ok(Translation {
            gpa,
            shift: 12,
            read: all,
            write: all,
            execute: all,
            global: false,
        });
    }
    for _ in 0..RETRIES {
        let found = look(phys, paging, gva).and_then(|path| {
            let denied = path.denied(paging, access, privilege);
            if denied { Err(pf::P) } else { Ok(path) }
        });
        match found {
            Err(code) => return Err(PageFault(code | access_bits(paging, access, privilege))),
            Ok(path) => {
                if let Some(path) = path.mark(phys, access) {
                    return Ok(path.translation(paging, gva, privilege));
                }
            }
        }
    }
    Err(PageFault(access_bits(paging, access, privilege)))
}

/// Where `gva` leads, without rights and without a trace in the tables.
pub fn inspect(mem: &GuestMem, paging: &Paging, gva: u64) -> Option<u64> {
    let layout = mem.layout();
    if paging.mode == Mode::Off {
        return Some(paging.linear(gva));
    }
    if paging.mode == Mode::FourLevel && !x86_defs::is_canonical_48(gva) {
        return None;
    }
    let path = look(Phys::new(&layout, mem.arena()), paging, gva).ok()?;
    Some(path.translation(paging, gva, Privilege::Supervisor).gpa)
}

/// What a supervisor may execute at `gva`, in a global page, is at `gpa`, and to fetch it sets no
/// accessed bit: a processor that has forgotten the page would find what it knew.
pub fn is_as_fetched(phys: Phys<'_>, paging: &Paging, gva: u64, gpa: u64) -> bool {
    if paging.mode == Mode::Off {
        return false;
    }
    let Ok(path) = look(phys, paging, gva) else { return false };
    let found = path.translation(paging, gva, Privilege::Supervisor);
    let accessed = path.entries.iter().take(path.len).all(|(_, entry)| entry & A != 0);
    accessed && found.execute && found.global && found.gpa == gpa
}

/// Reads the four page-directory-pointer entries at `cr3`; `None` if one has a reserved bit
/// set, which is #GP(0) (SDM volume 3, 4.4.1).
pub fn load_pdptes(phys: Phys<'_>, cr3: u64, paging: &Paging) -> Option<[u64; 4]> {
    let reserved = paging.beyond_physical() | !(ADDRESS | 0xfff) | 0x1e6;
    let mut entries = [0; 4];
    for (n, entry) in entries.iter_mut().enumerate() {
        *entry = phys.load::<u64>((cr3 & 0xffff_ffe0) + 8 * n as u64).unwrap_or(0);
        if *entry & P != 0 && *entry & reserved != 0 {
            return None;
        }
    }
    Some(entries)
}

/// The part of the error code that says what was tried.
fn access_bits(paging: &Paging, access: Access, privilege: Privilege) -> u32 {
    let user = if privilege.is_user() { pf::U } else { 0 };
    user | match access {
        Access::Read => 0,
        Access::Write => pf::W,
        Access::Execute if paging.nx || paging.smep => pf::I,
        Access::Execute => 0,
    }
}

/// The entries that a walk used.
struct Path {
    /// Address and value, from the root on; `len` of them.
    entries: [(u64, u64); 4],
    len: usize,
    /// 4-byte entries.
    narrow: bool,
    shift: u8,
    /// RW and US of all entries, NX of any.
    rights: u64,
}

/// Goes down the tables. The error is RSVD and P, or nothing for a page that is not present.
fn look(phys: Phys<'_>, paging: &Paging, gva: u64) -> Result<Path, u32> {
    let gva = paging.linear(gva);
    let (mut table, mut shift, bits, narrow) = match paging.mode {
        Mode::FourLevel => (paging.root, 39, 9, false),
        Mode::Pae => {
            let pdpte = paging.pdpte[(gva >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(0);
            }
            (pdpte & ADDRESS, 21, 9, false)
        }
        Mode::TwoLevel | Mode::Off => (paging.root, 22, 10, true),
    };
    let mut path = Path { entries: [(0, 0); 4], len: 0, narrow, shift: 12, rights: RW | US };
    loop {
        let index = gva >> shift & ((1 << bits) - 1);
        let at = table + index * if narrow { 4 } else { 8 };
        let entry = match narrow {
            true => phys.load::<u32>(at).map(u64::from),
            false => phys.load::<u64>(at),
        }
        .unwrap_or(0);
        if entry & P == 0 {
            return Err(0);
        }
        let leaf = shift == 12 || entry & PS != 0 && (!narrow || paging.pse) && shift != 39;
        if entry & reserved(paging, shift, leaf) != 0 {
            return Err(pf::P | pf::RSVD);
        }
        path.entries[path.len] = (at, entry);
        path.len += 1;
        path.rights = path.rights & entry & (RW | US) | (path.rights | entry) & NX;
        if leaf {
            path.shift = shift;
            return Ok(path);
        }
        table = entry & if narrow { 0xffff_f000 } else { ADDRESS };
        shift -= bits;
    }
}

/// Bits of an entry that must be clear.
fn reserved(paging: &Paging, shift: u8, leaf: bool) -> u64 {
    if paging.mode == Mode::TwoLevel {
        if !leaf || shift == 12 {
            return 0;
        }
        // PSE-36: bits 13 to 20 are bits 32 to 39 of the address, as far as these exist.
        let bits = if paging.features.pse36 { paging.features.phys_bits.clamp(32, 40) } else { 32 };
        return 0x3f_e000 & !((1 << (bits - 19)) - 1);
    }
    let mut bits = paging.beyond_physical();
    if !paging.nx {
        bits |= NX;
    }
    if paging.mode == Mode::Pae {
        bits |= 0x7ff << 52;
    }
    match (shift, leaf) {
        (39, _) => bits | PS,
        (30, true) if !paging.features.gbpages => bits | PS,
        (30, true) => bits | 0x3fff_e000,
        (21, true) => bits | 0x1f_e000,
        _ => bits,
    }
}

impl Path {
    fn leaf(&self) -> u64 {
        self.entries[self.len.saturating_sub(1)].1
    }

    /// Protection (SDM volume 3, 4.6.1).
    fn denied(&self, paging: &Paging, access: Access, privilege: Privilege) -> bool {
        let user_page = self.rights & US != 0;
        let write_ok = self.rights & RW != 0;
        if privilege.is_user() {
            return !user_page
                || match access {
                    Access::Read => false,
                    Access::Write => !write_ok,
                    Access::Execute => self.rights & NX != 0,
                };
        }
        let smap = paging.smap && user_page && privilege == Privilege::Supervisor;
        match access {
            Access::Read => smap,
            Access::Write => smap || paging.wp && !write_ok,
            Access::Execute => self.rights & NX != 0 || paging.smep && user_page,
        }
    }

    /// Sets the accessed bits, and the dirty bit for a write (SDM volume 3, 4.8). `None` if
    /// an entry has changed meanwhile.
    fn mark(mut self, phys: Phys<'_>, access: Access) -> Option<Self> {
        let last = self.len - 1;
        for (n, (at, entry)) in self.entries[..self.len].iter_mut().enumerate() {
            let new = *entry | A | if n == last && access == Access::Write { D } else { 0 };
            if new == *entry {
                continue;
            }
            let replaced = match self.narrow {
                true => phys.replace(*at, *entry as u32, new as u32),
                false => phys.replace(*at, *entry, new),
            };
            if !replaced {
                return None;
            }
            *entry = new;
        }
        Some(self)
    }

    fn translation(&self, paging: &Paging, gva: u64, privilege: Privilege) -> Translation {
        let entry = self.leaf();
        let within = (1 << self.shift) - 1;
        let mut base = entry & ADDRESS & !within;
        if self.narrow && self.shift == 22 {
            base |= (entry >> 13 & 0xff) << 32;
        }
        let may = |access| !self.denied(paging, access, privilege);
        Translation {
            gpa: base | gva & within,
            shift: self.shift,
            read: may(Access::Read),
            write: may(Access::Write) && entry & D != 0,
            execute: may(Access::Execute),
            global: paging.pge && entry & G != 0,
        }
    }
}
