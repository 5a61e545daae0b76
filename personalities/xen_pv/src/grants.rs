//! Pages that the domain lets back ends use, and ports that they bind: what Xen does for a driver
//! domain (`grant_table.h`, `event_channel.h`).

use crate::{
    Domain, XenPv,
    domains::BACKEND,
    events::Port,
    frames::{Owner, Use},
    layout::{GRANT_FRAMES, STATUS_FRAMES},
    lock,
    mapped::Mapped,
};
use guest_mem::PAGE;
use std::sync::{
    Arc,
    atomic::{Ordering::SeqCst, fence},
};
use xen_abi::{
    errno::Errno,
    grant_table::{EntryV1, EntryV2, flag, reserved},
};
use xen_front::{Access, Error, Gather, GrantRef, Notified, Page, Part};

/// What entries look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// 8 bytes; how a page is used is in the entry's flags.
    One = 1,
    /// 16 bytes; how a page is used is in a table of its own, which makes it cheaper to look at.
    Two,
}

impl Version {
    pub fn new(number: u32) -> Option<Self> {
        [Self::One, Self::Two].into_iter().find(|version| *version as u32 == number)
    }

    pub fn entry_size(self) -> u64 {
        match self {
            Self::One => size_of::<EntryV1>() as u64,
            Self::Two => size_of::<EntryV2>() as u64,
        }
    }
}

/// Flags that say how a page is used.
const USES: u16 = flag::READING | flag::WRITING;
/// How often an entry may change while it is marked; Xen looks five times.
const RETRIES: u32 = 16;

/// Whether an entry's flags and domain let a back end use the page so.
fn permits(header: u64, grant: GrantRef, access: Access) -> Result<(), Error> {
    let (flags, domain) = (header as u16, (header >> 16) as u16);
    if flags & flag::TYPE != flag::PERMIT_ACCESS || domain != BACKEND {
        return Err(Error::Grant(grant));
    }
    if access == Access::Write && flags & flag::READONLY != 0 {
        return Err(Error::ReadOnly(grant));
    }
    Ok(())
}

fn uses(access: Access) -> u16 {
    match access {
        Access::Read => flag::READING,
        Access::Write => USES,
    }
}

impl Domain {
    /// Where a grant's entry is, if the domain's table has that many.
    fn entry(&self, grant: GrantRef) -> Option<u64> {
        let size = self.grant_version.entry_size();
        let there = u64::from(grant) < u64::from(self.grant_frames) * PAGE / size;
        there.then(|| self.layout.grants() + u64::from(grant) * size)
    }

    /// Marks an entry as in use, so that the domain does not take the page back; its frame.
    fn mark(&self, grant: GrantRef, access: Access) -> Result<u64, Error> {
        let at = self.entry(grant).ok_or(Error::Grant(grant))?;
        if self.grant_version == Version::Two {
            return self.mark_in_status(at, grant, access);
        }
        // Who changes it all the time has granted nothing.
        for _ in 0..RETRIES {
            let entry = self.tables.memory.load(at);
            permits(entry, grant, access)?;
            if self.tables.memory.exchange(at, entry, entry | u64::from(uses(access))) {
                return Ok(entry >> 32);
            }
        }
        Err(Error::Grant(grant))
    }

    /// The same in version 2: the domain takes its flags back first, and looks at the status then. If it
    /// sees that the page is in use, it is granted still: Xen, too, looks only at what nobody uses.
    /// Linux's block driver relies on that for pages that stay granted.
    fn mark_in_status(&self, at: u64, grant: GrantRef, access: Access) -> Result<u64, Error> {
        let memory = &self.tables.memory;
        let in_use = self.status(grant) & uses(access) == uses(access);
        let permitted = |header: u64| match header as u16 {
            0 if in_use => Ok(()),
            // Of a part of a page only copies may be made, and here are none who make them.
            flags if flags & flag::SUB_PAGE != 0 => Err(Error::Grant(grant)),
            _ => permits(header, grant, access),
        };
        permitted(memory.load(at))?;
        self.change_status(grant, |status| status | uses(access));
        fence(SeqCst);
        let (header, frame) = (memory.load(at), memory.load(at + 8));
        permitted(header).inspect_err(|_| self.unmark(grant))?;
        Ok(frame)
    }

    /// Where the word of an entry is: of 8 bytes, and which bits of it.
    fn status_at(&self, grant: GrantRef) -> (u64, u64) {
        let at = self.layout.grant_status() + u64::from(grant) * 2;
        (at & !7, (at & 7) * 8)
    }

    fn status(&self, grant: GrantRef) -> u16 {
        let (at, shift) = self.status_at(grant);
        (self.tables.memory.load(at) >> shift) as u16
    }

    fn change_status(&self, grant: GrantRef, f: impl Fn(u16) -> u16) {
        let (at, shift) = self.status_at(grant);
        crate::events::change(&self.tables.memory, at, |word| {
            let new = u64::from(f((word >> shift) as u16));
            word & !(0xffff << shift) | new << shift
        });
    }

    /// The opposite, as far as nobody else uses it.
    fn unmark(&self, grant: GrantRef) {
        let Some(at) = self.entry(grant) else { return };
        let kept = match self.mapped.get(grant) {
            None => 0,
            Some(Mapped { writers: 0, .. }) => flag::READING,
            Some(_) => USES,
        };
        let gone = USES & !kept;
        match self.grant_version {
            Version::One => {
                let gone = u64::from(gone);
                crate::events::change(&self.tables.memory, at, |entry| entry & !gone);
            }
            Version::Two => self.change_status(grant, |status| status & !gone),
        }
    }

    /// Entries get another shape. What the builder put there stays; all else is gone.
    pub(crate) fn set_grant_version(&mut self, version: Version) -> Result<(), Errno> {
        if version == self.grant_version {
            return Ok(());
        }
        if !self.mapped.is_empty() {
            return Err(Errno::Busy);
        }
        let (memory, table) = (&self.tables.memory, self.layout.grants());
        let header = |entry: u64| entry & 0xffff_ffff & !u64::from(USES);
        let reserved = (0..u64::from(reserved::COUNT)).map(|number| match self.grant_version {
            Version::One => {
                let entry = memory.load(table + number * 8);
                (header(entry), entry >> 32)
            }
            Version::Two => {
                let at = table + number * 16;
                (header(memory.load(at)), memory.load(at + 8))
            }
        });
        let reserved: Vec<(u64, u64)> = reserved.collect();
        // Entries of version 1 have no room for the frames of more than 16 TiB.
        if version == Version::One && reserved.iter().any(|(_, frame)| frame >> 32 != 0) {
            return Err(Errno::Inval);
        }
        let frames = table / PAGE..table / PAGE + GRANT_FRAMES + STATUS_FRAMES;
        frames.for_each(|frame| memory.clear(frame));
        for (number, (header, frame)) in (0..).zip(reserved) {
            match version {
                Version::One => memory.store(table + number * 8, header | frame << 32),
                Version::Two => {
                    memory.store(table + number * 16, header);
                    memory.store(table + number * 16 + 8, frame);
                }
            }
        }
        self.tables.work += (GRANT_FRAMES + STATUS_FRAMES) * PAGE / 8;
        self.grant_version = version;
        Ok(())
    }

    fn map_grant(&mut self, grant: GrantRef, access: Access) -> Result<u64, Error> {
        let frame = self.mark(grant, access)?;
        let used = self.use_frame(grant, frame, access);
        if used.is_err() {
            self.unmark(grant);
        }
        used.map(|()| frame)
    }

    fn use_frame(&mut self, grant: GrantRef, frame: u64, access: Access) -> Result<(), Error> {
        let frames = &mut self.tables.frames;
        let own = frames.get(frame).is_some_and(|found| found.owner == Owner::Domain);
        // An entry in use that names another frame now: the domain changed it, against the rules.
        let same = self.mapped.get(grant).is_none_or(|mapped| mapped.frame == frame);
        if !own || !same {
            return Err(Error::Frame(grant));
        }
        // It was a page table a moment ago. A kernel that maps it for writing first, as all do, has
        // made the TLBs forget that.
        if access == Access::Write && frames.is_walked(frame) {
            return Err(Error::Frame(grant));
        }
        frames.hold(frame).map_err(|_| Error::Frame(grant))?;
        if access == Access::Write && frames.start(frame, Use::Writable, &mut |_| {}).is_err() {
            frames.let_go(frame);
            return Err(Error::Frame(grant));
        }
        self.mapped.add(grant, frame, access);
        Ok(())
    }

    fn unmap_grant(&mut self, grant: GrantRef, access: Access) {
        let Some(frame) = self.mapped.take(grant, access) else { return };
        if access == Access::Write {
            self.tables.frames.end_outside(frame);
        }
        self.tables.frames.let_go(frame);
        self.unmark(grant);
    }
}

/// Parts of pages that are used at the same time: as many as a large frame of a network has.
const TOGETHER: usize = 20;

impl XenPv {
    /// Uses each part's page while `copy` is called with its address. The domain's lock is not held
    /// there, and only twice taken for many.
    fn each_part(
        &self,
        parts: &[Part],
        access: Access,
        mut copy: impl FnMut(u64, &Part),
    ) -> Result<(), Error> {
        for parts in parts.chunks(TOGETHER) {
            let mut addresses = [0; TOGETHER];
            let mut used = 0;
            let mut domain = lock(&self.domain);
            let mapped = parts.iter().zip(&mut addresses).try_for_each(|(part, address)| {
                let fits =
                    part.offset.checked_add(part.len).is_some_and(|end| end <= PAGE as usize);
                if !fits {
                    return Err(Error::Range(part.len, part.offset));
                }
                *address = domain.map_grant(part.grant, access)? * PAGE + part.offset as u64;
                used += 1;
                Ok(())
            });
            drop(domain);
            if mapped.is_ok() {
                parts.iter().zip(addresses).for_each(|(part, address)| copy(address, part));
            }
            let mut domain = lock(&self.domain);
            for part in parts.iter().take(used) {
                domain.unmap_grant(part.grant, access);
            }
            mapped?;
        }
        Ok(())
    }
}

impl xen_front::Domain for XenPv {
    fn map(&self, grant: GrantRef, access: Access) -> Result<Page, Error> {
        let mut domain = lock(&self.domain);
        let frame = domain.map_grant(grant, access)?;
        let page = Page::new(domain.tables.memory.whole().clone(), frame * PAGE);
        if page.is_none() {
            domain.unmap_grant(grant, access);
        }
        let page = page.ok_or(Error::Frame(grant))?;
        Ok(if access == Access::Read { page.read_only() } else { page })
    }

    fn unmap(&self, grant: GrantRef, access: Access) {
        lock(&self.domain).unmap_grant(grant, access);
    }

    fn copy_from(&self, parts: &[Part], out: &mut [u8]) -> Result<(), Error> {
        let mut rest = out;
        self.each_part(parts, Access::Read, |address, part| {
            let len = part.len.min(rest.len());
            let (here, later) = std::mem::take(&mut rest).split_at_mut(len);
            self.memory.read(address, here);
            rest = later;
        })
    }

    fn copy_to(&self, parts: &[Part], data: &[&[u8]]) -> Result<(), Error> {
        let mut data = Gather::new(data);
        self.each_part(parts, Access::Write, |address, part| {
            let mut at = 0;
            while at < part.len
                && let Some(bytes) = data.next(part.len - at)
            {
                self.memory.write(address + at as u64, bytes);
                at += bytes.len();
            }
        })
    }

    fn bind(&self, port: u32, notified: Notified) -> Result<(), Error> {
        let mut domain = lock(&self.domain);
        match domain.events.get(port).map(|channel| channel.port) {
            Some(Port::Unbound(BACKEND)) => {
                domain.events.set(port, Port::Bound);
                domain.notified.insert(port, notified);
                Ok(())
            }
            _ => Err(Error::Port(port)),
        }
    }

    fn unbind(&self, port: u32, notified: &Notified) {
        let mut domain = lock(&self.domain);
        // Not if the domain has closed it, and may have another there, which another has bound.
        if domain.notified.get(&port).is_some_and(|bound| Arc::ptr_eq(bound, notified)) {
            domain.notified.remove(&port);
            domain.events.set(port, Port::Unbound(BACKEND));
        }
    }

    fn notify(&self, port: u32) {
        let mut domain = lock(&self.domain);
        if domain.notified.contains_key(&port) {
            self.raise_in(&mut domain, port);
        }
    }
}
